"""TensorFlow's functions in networks of Keras 2: the same numbers as TensorFlow's own."""

import json

import numpy as np
import pytest
import tensorflow as tf

from nas.files.readers import keras2_config

X, Y = np.random.default_rng(0).normal(size=(2, 2, 6, 6, 4)).astype(np.float32)
BOTH = {"y": ["second", 0, 0], "name": None}
ALL = {"start": None, "stop": None, "step": None}


def network(*steps):
    """Two inputs, then functions: (name, class, function, nodes); the last one's output."""

    def put(name: str) -> dict:
        config = {"name": name, "batch_input_shape": [None, 6, 6, 4], "dtype": "float32"}
        return {"class_name": "InputLayer", "config": config, "name": name, "inbound_nodes": []}

    layers = [put("first"), put("second")]
    for name, function, nodes in steps:
        kind = "SlicingOpLambda" if function.endswith("getitem") else "TFOpLambda"
        config = {"name": name, "function": function, "dtype": "float32", "trainable": True}
        layers.append({"class_name": kind, "config": config, "name": name, "inbound_nodes": nodes})
    config = {
        "name": "old",
        "layers": layers,
        "input_layers": [["first", 0, 0], ["second", 0, 0]],
        "output_layers": [[steps[-1][0], 0, 0]],
    }
    text = json.dumps({"class_name": "Functional", "config": config})
    return keras2_config.built(keras2_config.parsed(text, "old.h5"), 0, "old.h5")


def of_first(function, **given):
    return network(("out", function, [["first", 0, 0, given]]))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: of_first("math.reduce_mean", axis=[1, 2]), tf.reduce_mean(X, [1, 2])),
        (lambda: of_first("math.reduce_max", axis=1, keepdims=True), tf.reduce_max(X, 1, True)),
        (lambda: of_first("image.resize", size=[12, 9]), tf.image.resize(X, (12, 9))),
        (
            lambda: of_first("image.resize", size=[3, 3], method="nearest"),
            tf.image.resize(X, (3, 3), "nearest"),
        ),
        (lambda: of_first("expand_dims", axis=-1), X[..., None]),
        (lambda: of_first("compat.v1.transpose", perm=[0, 3, 1, 2]), X.transpose(0, 3, 1, 2)),
        (lambda: of_first("math.l2_normalize", axis=-1), tf.math.l2_normalize(X, -1)),
        (lambda: of_first("compat.v1.pad", paddings=[[0, 0], [1, 2], [0, 0], [0, 0]]),
         np.pad(X, [(0, 0), (1, 2), (0, 0), (0, 0)])),
        (lambda: of_first("math.subtract", y=[0.1, 0.2, 0.3, 0.4]),
         X - np.float32([0.1, 0.2, 0.3, 0.4])),
        (lambda: of_first("clip_by_value", clip_value_min=0.0, clip_value_max=0.5), X.clip(0, 0.5)),
        (lambda: of_first("nn.leaky_relu", alpha=0.1), np.where(X > 0, X, 0.1 * X)),
        (lambda: of_first("math.argmax", axis=-1), X.argmax(-1)),
        (lambda: of_first("math.maximum", **BOTH), np.maximum(X, Y)),
        (lambda: of_first("math.truediv", **BOTH), X / Y),
        (lambda: of_first("linalg.matmul", b=["second", 0, 0], transpose_b=True),
         X @ Y.swapaxes(-1, -2)),
        (lambda: of_first("__operators__.getitem", slice_spec=[ALL, ALL | {"stop": 3, "step": 2}]),
         X[:, :3:2]),
        (lambda: of_first("__operators__.getitem", slice_spec=["Ellipsis", 0]), X[..., 0]),
        (
            lambda: network(
                ("out", "concat", [[[name, 0, 0, {"axis": 2}] for name in ("first", "second")]])
            ),
            np.concatenate([X, Y], 2),
        ),
        (
            lambda: network(("out", "math.truediv", [["_CONSTANT_VALUE", -1, 1.0, BOTH]])),
            1 / Y,
        ),
    ],
)  # fmt: skip
def test_a_function_is_the_operation_of_keras_3(model, expected):
    np.testing.assert_allclose(model()([X, Y]), expected, rtol=1e-5, atol=1e-6)


def test_parts_and_a_batch_that_a_reshape_is_told():
    """x = tf.reshape(x, (tf.shape(x)[0], 36, 4)); first, second = tf.split(x, [1, 3], -1)."""
    model = network(
        ("shape", "compat.v1.shape", [["first", 0, 0, {"out_type": "int32"}]]),
        ("batch", "__operators__.getitem", [["shape", 0, 0, {"slice_spec": 0}]]),
        ("rows", "reshape", [["first", 0, 0, {"shape": [["batch", 0, 0], 36, 4]}]]),
        ("parts", "split", [["rows", 0, 0, {"num_or_size_splits": [1, 3], "axis": -1}]]),
        ("out", "math.multiply", [["parts", 0, 0, {"y": ["parts", 0, 1], "name": None}]]),
    )
    rows = X.reshape(2, 36, 4)
    np.testing.assert_allclose(model([X, Y]), rows[..., :1] * rows[..., 1:], rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        ("nn.depth_to_space", {"block_size": 2}),
        ("image.resize", {"size": [3, 3], "method": "lanczos3"}),
        ("image.resize", {"size": [3, 3], "antialias": True}),
        ("compat.v1.image.resize_bilinear", {"size": [3, 3], "align_corners": True}),
        ("compat.v1.pad", {"paddings": [[0, 0]] * 4, "constant_values": 1}),
        ("linalg.matmul", {"b": ["second", 0, 0], "transpose_a": True}),
    ],
)
def test_what_keras_3_does_otherwise_is_refused(function, given):
    with pytest.raises(ValueError, match=f"old.h5: 'out' is the TensorFlow operation {function}"):
        of_first(function, **given)

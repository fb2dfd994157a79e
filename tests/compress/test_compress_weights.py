"""Which weights are kernels, along which axes; values on levels."""

import keras
import numpy as np
import pytest

from compress.quantization.quantizers import (
    CLIPS,
    LearnedClip,
    codes,
    fake_quantize,
    levels,
    round_to_levels,
    scales,
)
from compress.rewriting.graph import rewrite
from compress.rewriting.parametrized import parametrize
from compress.rewriting.record import Record
from compress.rewriting.weights import kernel_values, kernels, plain_copy, record_untouched
from nas import registry


def tiny(name):
    module = registry.module("family", name)
    return module.build(module.VARIANTS["tiny"])


def network():
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, name="conv")(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = keras.layers.SeparableConv2D(4, 1, name="separable")(x)
    x = keras.layers.Conv2DTranspose(5, 2, name="transposed")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Reshape((-1, 5))(x)
    x = keras.layers.Bidirectional(
        keras.layers.LSTM(4, return_sequences=True, name="lstm"), name="both"
    )(x)
    x = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="heads")(x)
    x = keras.layers.Reshape((-1, 6))(x)
    return keras.Model(inputs, keras.layers.Dense(7, use_bias=False, name="head")(x))


def test_kinds_and_axes_of_stock_layers():
    found = {kernel.path: kernel for kernel in kernels(network())}
    expected = {
        "conv/kernel": ("conv", 3, (0, 1, 2)),
        "depthwise/kernel": ("depthwise", 2, (0, 1)),
        "separable/depthwise_kernel": ("depthwise", 2, (0, 1)),
        "separable/pointwise_kernel": ("conv", 3, (0, 1, 2)),
        "transposed/kernel": ("conv", 2, (0, 1, 3)),
        "both/forward_lstm/lstm_cell/kernel": ("recurrent", 1, (0,)),
        "both/forward_lstm/lstm_cell/recurrent_kernel": ("recurrent", 1, (0,)),
        "both/backward_lstm/lstm_cell/kernel": ("recurrent", 1, (0,)),
        "both/backward_lstm/lstm_cell/recurrent_kernel": ("recurrent", 1, (0,)),
        "heads/kernel": ("dense", 2, (0,)),
        "head/kernel": ("dense", 1, (0,)),
    }
    assert {p: (k.kind, k.output_axis, k.input_axes) for p, k in found.items()} == expected
    assert found["depthwise/kernel"].scale_shape == (1, 1, 6, 2)
    assert found["heads/kernel"].scale_shape == (1, 2, 3)
    assert [kernel.path for kernel in kernels(network(), "^conv|head/")] == [
        "conv/kernel",
        "head/kernel",
    ]


def test_outputs_depend_linearly_on_each_index_that_has_a_scale():
    """What `input_axes` say is true: scaling one output's weights scales that output only."""
    model = network()
    for path in ("heads/kernel", "head/kernel"):
        kernel = next(kernel for kernel in kernels(model) if kernel.path == path)
        layer = model.get_layer(kernel.layer)
        x = np.random.default_rng(0).normal(size=(2, 3, kernel.shape[0])).astype(np.float32)
        before = np.asarray(layer(x))
        factor = np.random.default_rng(1).uniform(0.5, 2, kernel.scale_shape).astype(np.float32)
        layer.kernel.assign(layer.kernel * factor)
        np.testing.assert_allclose(np.asarray(layer(x)), before * factor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("mobile_vmoe", {"conv", "dense", "experts"}),
        ("conformer", {"conv", "dense", "depthwise", "embedding", "recurrent", "other"}),
        ("decoder", {"dense", "embedding"}),
    ],
)
def test_kernels_of_families_are_most_of_their_weights(family, kinds):
    model = tiny(family)
    found = kernels(model)
    assert {kernel.kind for kernel in found} == kinds
    assert sum(kernel.size for kernel in found) > 0.9 * model.count_params()
    named = {kernel.path for kernel in found}
    assert not [path for path in named if "bias" in path or "norm" in path or "/router" in path]
    shapes = {weight.path: tuple(weight.shape) for weight in model.weights}
    assert all(shapes[kernel.path] == kernel.shape for kernel in found)


def test_rows_of_tables_and_outputs_of_experts_have_scales():
    embedding = next(k for k in kernels(tiny("decoder")) if k.kind == "embedding")
    assert embedding.scale_shape == (embedding.shape[0], 1)
    expert = next(k for k in kernels(tiny("mobile_vmoe")) if k.kind == "experts")
    assert expert.scale_shape == (expert.shape[0], 1, expert.shape[2])


def test_parametrized_layers_are_seen_through():
    model = network()
    found = kernels(model)
    scale = scales(np.asarray(model.get_layer("head").kernel), 2, (0,))
    wrapped = parametrize(model, {"head/kernel": LearnedClip(scale, 2)})
    assert kernels(wrapped) == found
    assert len(np.unique(np.abs(kernel_values(wrapped)["head/kernel"] / scale).round(3))) == 2
    stock = plain_copy(wrapped)
    assert [type(layer) for layer in stock.layers] == [type(layer) for layer in model.layers]
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(stock(x), wrapped(x), atol=1e-6)
    stock.get_layer("conv").kernel.assign(stock.get_layer("conv").kernel * 0)
    assert np.any(kernel_values(wrapped)["conv/kernel"])  # a copy: the original is as it was


def test_what_is_left_is_told_with_the_reason_that_came_first():
    record = Record(untouched={"conv": "a reason from before"})
    record_untouched(network(), ["head/kernel"], record, "too small")
    assert record.untouched["conv"] == "a reason from before"
    assert record.untouched["heads"] == "too small"
    assert record.untouched["norm"].startswith("no kernel")
    assert not {"head", "reshape"} & set(record.untouched)


def test_a_model_that_is_not_flat_is_refused():
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="is a model itself"):
        kernels(keras.Model(inputs, network()(inputs)))


def test_levels():
    assert levels(2).tolist() == [-1.5, -0.5, 0.5, 1.5]  # balanced: no zero
    assert levels(3).tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]
    assert levels(4).tolist() == list(range(-7, 8))
    assert len(levels(8)) == 255 and levels(8)[127] == 0
    with pytest.raises(ValueError, match="bits=5"):
        levels(5)


def squared_error(values, scale, bits):
    return np.square(values - round_to_levels(values, scale, bits)).sum(0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_newton_is_no_worse_than_any_other_scale_for_any_output(bits, draw):
    values = getattr(np.random.default_rng(bits), draw)(size=(200, 12)).astype(np.float32)
    values[:, 0] = 0
    newton = scales(values, bits, (0,))
    assert newton.shape == (1, 12) and newton.dtype == np.float32 and np.all(newton > 0)
    found = squared_error(values, newton, bits)
    for clip in CLIPS:
        other = squared_error(values, scales(values, bits, (0,), clip), bits)
        assert np.all(found <= other * 1.02 + 1e-6), clip
    most = scales(values, bits, (0,), "maxabs")
    assert np.all(found <= squared_error(values, most, bits) + 1e-6)
    for share in np.linspace(0.05, 1.2, 47):  # a grid over all scales
        tried = squared_error(values, (most * share).astype(np.float32), bits)
        assert np.all(found <= tried * 1.02 + 1e-6)


def test_a_row_of_zeros_is_nearly_zero_and_masked_values_do_not_count():
    values = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    values[:, 1] = 0
    assert np.abs(round_to_levels(values, scales(values, 2, (0,)), 2)[:, 1]).max() < 0.01
    mask = np.ones_like(values, bool)
    mask[:32] = False
    assert np.array_equal(scales(values, 2, (0,), mask=mask), scales(values[32:], 2, (0,)))
    with pytest.raises(ValueError, match="NaN"):
        scales(values * np.nan, 2, (0,))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_forward_is_exactly_on_levels_and_codes_read_back(bits):
    values = (np.random.default_rng(0).standard_t(3, size=(64, 8)) * 3).astype(np.float32)
    scale = scales(values, bits, (0,))
    out = np.asarray(fake_quantize(keras.ops.convert_to_tensor(values), scale, bits))
    assert np.array_equal(out, round_to_levels(values, scale, bits))
    assert np.array_equal(codes(out, scale, bits), codes(values, scale, bits))
    assert set(np.unique(codes(out, scale, bits))) <= set(range(len(levels(bits))))


def gradients(function, *arrays):
    """Of the sum of function(*arrays), by the backend at hand."""
    if keras.config.backend() == "jax":
        import jax

        return jax.grad(lambda *x: function(*x).sum(), tuple(range(len(arrays))))(*arrays)
    import tensorflow as tf

    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = tf.reduce_sum(function(*tensors))
    return tape.gradient(total, tensors)


@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_straight_through_inside_the_clip_and_lsqs_for_the_scale(bits):
    edge = 2.0 if bits == 2 else 7.0
    scale = np.array([[0.5, 2.0]], np.float32)
    ratio = np.random.default_rng(0).uniform(-1.5 * edge, 1.5 * edge, (50, 2)).astype(np.float32)
    of_weight, of_scale = gradients(
        lambda w, s: fake_quantize(w, s, bits, share=0.25), ratio * scale, scale
    )
    inside = np.abs(ratio) <= edge
    assert 10 < inside.sum() < 90
    assert np.array_equal(np.asarray(of_weight), inside.astype(np.float32))
    level = round_to_levels(ratio, np.ones((1, 1), np.float32), bits)
    expected = np.where(inside, level - ratio, level).sum(0, keepdims=True) * 0.25
    np.testing.assert_allclose(np.asarray(of_scale), expected, rtol=1e-4)


def test_rewriting_leaves_kernels_where_they_were():
    model = network()  # holds a wrapper, whose layers are built under its name
    assert kernels(rewrite(model, lambda _, copy: copy)) == kernels(model)

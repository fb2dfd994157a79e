"""Structured pruning: leaving channels out is the same as zeros for them, in any graph."""

import importlib

import keras
import numpy as np
import pytest
from keras import layers

from compress.channels.channel_graph import Channels
from compress.channels.layer_rules import rule
from compress.examples.data import Data
from compress.method import NotApplicable, compress
from compress.prune import Prune
from compress.prune_channels import PruneChannels
from families.layers import LSTM, Attention, Experts, HeadNormalization, Rotary, RotaryAngles
from latency.networks import count


def _shaken(model, seed=0):
    """All weights such that no channel is zero or like another, as after training."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        value = np.asarray(weight)
        weight.assign(value + 0.2 * np.abs(generator.normal(size=value.shape)))
    return model


def _inputs(model, examples=3, seed=0):
    generator = np.random.default_rng(seed)
    made = {}
    for tensor in model.inputs:
        shape = (examples, *tensor.shape[1:])
        whole = "int" in tensor.dtype
        made[tensor.name] = (
            generator.integers(1, 5, shape) if whole else generator.normal(size=shape)
        )
        made[tensor.name] = made[tensor.name].astype(tensor.dtype)
    return made if isinstance(model.input, dict) else list(made.values())[0]


def _outputs(model, inputs):
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(output) for output in outputs]


# Axis of what a weight reads.
_READING = {
    **{"kernel": -2, "pointwise_kernel": -2, "recurrent_kernel": 0, "project": 1},
    "projection_kernel": 0,
}


def _masked(model, small):
    """The whole model, zeros in all rows that read what `small` has not: found by their values.

    No bookkeeping of the method enters: all weights are different numbers (but for chance), so a
    row of a whole kernel is there in the small one where many of its numbers are.
    """
    masked = keras.models.clone_model(model)
    masked.set_weights(model.get_weights())
    kept = {weight.path: np.asarray(weight) for weight in small.weights}
    for weight in masked.weights:
        owner = model.get_layer(weight.path.split("/")[0])
        axis = _READING.get(weight.name)
        if axis is None or isinstance(owner, layers.DepthwiseConv1D | layers.DepthwiseConv2D):
            continue
        value, left = np.asarray(weight), kept[weight.path]
        axis = (-1 if isinstance(owner, layers.Conv2DTranspose) else axis) % value.ndim
        if weight.name == "project":  # of experts: each has its own
            found = np.stack([np.isin(a, b) for a, b in zip(value, left, strict=True)])
        else:
            found = np.isin(value, left)
        each = (axis, 0) if weight.name == "project" else (axis,)
        others = tuple(other for other in range(value.ndim) if other not in each)
        weight.assign(value * (found.mean(others, keepdims=True) > 0.3))
    return masked


def _equal(model, method, data=None):
    """The finished compression, after a proof that leaving out is masking."""
    out = compress(model, [method], data=data)
    inputs = _inputs(model)
    small, whole = _outputs(out.model, inputs), _outputs(model, inputs)
    masked = _outputs(_masked(model, out.model), inputs)
    for a, b, c in zip(small, masked, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))
        assert np.abs(a - c).max() > 1e-3 * np.abs(c).max()  # something was left out
    assert out.model.count_params() < model.count_params()
    told = out.record.details[repr(method)]
    assert told["params"] == [model.count_params(), out.model.count_params()]
    return out


@pytest.mark.parametrize(
    ("family", "fraction", "less"),
    [
        ("mobile_vmoe", 0.25, 0.8),
        ("decoder", 0.5, 0.6),
        pytest.param("mnasnet", 0.25, 0.65, marks=pytest.mark.slow),
        pytest.param("conformer", 0.25, 0.8, marks=pytest.mark.slow),
    ],
)
def test_every_family_gets_smaller(family, fraction, less, tmp_path):
    """Also multiply-adds; and layers say why they stay as they are."""
    keras.utils.set_random_seed(0)
    module = importlib.import_module(f"families.{family}")
    model = _shaken(module.build(module.VARIANTS["tiny"]))
    out = _equal(model, PruneChannels(fraction))
    small = out.model
    assert small.count_params() < less * model.count_params()
    assert count.count(small).macs < (less + 0.1) * count.count(model).macs
    for layer in model.layers:
        shapes = [weight.shape for weight in layer.weights]
        same = shapes == [weight.shape for weight in small.get_layer(layer.name).weights]
        assert same == (layer.name in out.record.untouched) or not shapes, layer.name
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    inputs = _inputs(model)
    for a, b in zip(_outputs(loaded, inputs), _outputs(small, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def _residual():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, padding="same", name="a")(x))
    x = layers.Add()([x, layers.PReLU(shared_axes=[1, 2], name="slopes")(y)])
    y = layers.SeparableConv2D(8, 3, padding="same", name="b")(x)
    x = layers.MaxPooling2D()(layers.Maximum()([x, y]))
    return keras.Model(image, layers.Dense(5, name="head")(layers.Flatten()(x)))


def _concatenated():
    image = keras.Input((8, 8, 3))
    a = layers.Conv2D(8, 3, activation="relu", name="a")(image)
    b = layers.Conv2D(4, 3, name="b")(image)
    x = layers.Concatenate(name="both")([a, b])
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.Conv2DTranspose(8, 2, strides=2, name="up")(x)
    x = layers.Cropping2D(2)(layers.UpSampling2D()(layers.ZeroPadding2D()(x)))
    x = layers.Reshape((-1, 8))(x)
    x = layers.Conv1D(8, 3, name="flat")(x)
    return keras.Model(image, layers.Dense(5, name="head")(layers.GlobalMaxPooling1D()(x)))


def _recurrent():
    sequence = keras.Input((6, 4))
    x = layers.LSTM(8, return_sequences=True, name="keras_lstm")(sequence)
    x = layers.GRU(8, return_sequences=True, name="gru")(x)
    x, last, _ = LSTM(8, name="ours")(x)
    y, *_ = LSTM(8, 6, name="projected")(x)
    y = layers.Flatten()(y)
    x = layers.Concatenate()([y, last])
    return keras.Model(sequence, layers.Dense(5, name="head")(x))


def _attention():
    tokens = keras.Input((6, 12))
    query = layers.Dense(32, name="query")(tokens)
    key, value = (layers.Dense(16, name=name)(tokens) for name in ("key", "value"))
    query = HeadNormalization(8, name="query_norm")(query)
    angles = RotaryAngles(4, name="angles")(tokens[..., 0])
    query, key = Rotary(8, name="rotary_q")(query, angles), Rotary(4, name="rotary_k")(key, angles)
    x = Attention(8, 4, name="attention")(query, key, value)
    x = layers.Dense(12, name="project")(x)
    x = Experts(3, 8, 2, gated=True, name="experts")(layers.LayerNormalization()(x))
    return keras.Model(tokens, layers.Dense(5, name="head")(x))


def _shared():
    image = keras.Input((4, 6))
    reuse = layers.Dense(6, activation="tanh", name="twice")
    x = layers.Dense(6, name="first")(image)
    return keras.Model(image, layers.Dense(5, name="head")(reuse(reuse(x))))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (_residual, {"stem": 6, "a": 6, "b": 6, "head": 5}),
        (_concatenated, {"a": 6, "b": 3, "up": 6, "flat": 6}),
        (_recurrent, {"keras_lstm": 24, "gru": 18, "ours": 24, "projected": 32}),
        (_attention, {"query": 24, "key": 12, "value": 12}),
        (_shared, {"first": 5, "twice": 5}),
    ],
)
def test_leaving_out_is_masking(build, left):
    """`left`: the size of the last axis of a layer's first kernel, by hand."""
    keras.utils.set_random_seed(1)
    model = _shaken(build())
    out = _equal(model, PruneChannels(0.25))
    for name, size in left.items():
        weights = {w.name: w.shape for w in out.model.get_layer(name).weights}
        shape = weights.get("kernel", weights.get("pointwise_kernel"))
        assert shape[-2 if name == "up" else -1] == size, name


class Mixed(layers.Layer):
    def call(self, inputs):
        return keras.ops.flip(inputs, -1)


def test_what_is_not_known_or_seen_as_a_whole_stays():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, name="before")(image)
    x = Mixed(name="strange")(x)
    x = layers.Conv2D(8, 3, name="after")(x)
    x = Mixed(name="odd")(layers.ReLU()(x))
    y = layers.Conv2D(8, 1, groups=2, name="grouped")(x)
    z = layers.Dense(8, activation="softmax", name="weights")(layers.Conv2D(8, 1, name="last")(y))
    model = keras.Model(image, [z, layers.Dense(8, name="head")(layers.Conv2D(8, 1, name="c")(z))])
    out = compress(model, [PruneChannels(0.5)])
    filters = {layer.name: layer.filters for layer in out.model.layers if hasattr(layer, "filters")}
    assert filters == {"before": 8, "after": 8, "grouped": 4, "last": 4, "c": 4}
    untouched = out.record.untouched
    assert "strange (Mixed)" in untouched["before"] and "no rule" in untouched["after"]
    assert set(untouched) == {"before", "after"}
    with pytest.raises(NotApplicable, match=r"no channels .* can go: no rule .*strange \(Mixed\)"):
        compress(keras.Model(image, model.get_layer("after").output), [PruneChannels()])


def test_how_many_and_which_stay():
    image = keras.Input((8,))
    x = layers.Dense(20, "relu", name="one")(image)
    x = layers.Dense(30, "relu", name="two")(x)
    model = keras.Model(image, layers.Dense(3, name="head")(x))

    def units(method):
        out = compress(model, [method])
        return [layer.units for layer in out.model.layers[1:]], out.record.untouched

    assert units(PruneChannels(0.25))[0] == [15, 23, 3]
    assert units(PruneChannels(0.25, round_to=8))[0] == [16, 24, 3]
    assert units(PruneChannels(0.25, which="two"))[0] == [20, 23, 3]
    sizes, untouched = units(PruneChannels(0.05, which="one"))
    assert sizes == [19, 30, 3] and "outputs" in untouched["head"]
    assert units(PruneChannels(0.99))[0] == [1, 1, 3]
    with pytest.raises(NotApplicable, match="one: 20"):
        compress(model, [PruneChannels(0.01)])
    with pytest.raises(NotApplicable, match="which='head'"):
        compress(model, [PruneChannels(which="head")])
    with pytest.raises(ValueError, match="importance='size'"):
        PruneChannels(importance="size")
    with pytest.raises(NotApplicable, match="targets"):
        compress(model, [PruneChannels(importance="taylor")], data=Data(np.ones((4, 8))))
    with pytest.raises(NotApplicable, match="inputs"):
        compress(model, [PruneChannels(importance="activation")])


def _squared(outputs, targets):
    return keras.ops.mean(keras.ops.square(outputs - targets), -1)


def _scored():
    keras.utils.set_random_seed(2)
    image = keras.Input((8,))
    x = layers.Dense(6, "tanh", name="one")(image)
    x = layers.Dense(6, "relu", name="two")(x)
    model = _shaken(keras.Model(image, layers.Dense(3, name="head")(x)))
    generator = np.random.default_rng(5)
    x = generator.normal(size=(40, 8)).astype("float32")
    return model, Data(x, generator.normal(size=(40, 3)).astype("float32"), _squared)


def test_taylor_is_the_derivative_by_a_gate():
    model, data = _scored()
    method = PruneChannels(0.5, "taylor")
    out = compress(model, [method], data=data)

    def loss(unit, gate):
        kernel = model.get_layer("two").kernel
        before = np.asarray(kernel)
        changed = before.copy()
        changed[unit] *= gate
        kernel.assign(changed)
        value = np.asarray(_squared(model(data.inputs), data.targets))
        kernel.assign(before)
        return value

    change = [np.abs(loss(unit, 1.01) - loss(unit, 0.99)).sum() for unit in range(6)]
    kept = np.sort(np.argsort(change)[3:])
    np.testing.assert_array_equal(
        np.asarray(out.model.get_layer("one").kernel),
        np.asarray(model.get_layer("one").kernel)[:, kept],
    )


def test_activation_is_what_a_unit_adds():
    model, data = _scored()
    out = compress(model, [PruneChannels(0.5, "activation")], data=Data(data.inputs))
    hidden = np.tanh(data.inputs @ model.layers[1].kernel + model.layers[1].bias)
    adds = (np.asarray(hidden) ** 2).mean(0) * (np.asarray(model.layers[2].kernel) ** 2).sum(1)
    kept = np.sort(np.argsort(adds)[3:])
    np.testing.assert_array_equal(
        np.asarray(out.model.layers[1].kernel), np.asarray(model.layers[1].kernel)[:, kept]
    )


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_hidden_units_of_experts_and_states_are_scored_too(importance):
    for build in (_attention, _recurrent):
        keras.utils.set_random_seed(1)
        model = _shaken(build())
        inputs = _inputs(model, 8)
        targets = np.zeros((8, *model.output_shape[1:]), "float32")
        loss = lambda o, t: keras.ops.mean(  # noqa: E731
            keras.ops.square(o - t), tuple(range(1, len(o.shape)))
        )
        _equal(model, PruneChannels(0.25, importance), Data(inputs, targets, loss))


def test_magnitude_drops_the_unit_that_is_nearly_nothing():
    model, _ = _scored()
    one, two = model.layers[1:3]
    one.kernel.assign(np.asarray(one.kernel) * np.where(np.arange(6) == 4, 1e-3, 1))
    two.kernel.assign(np.asarray(two.kernel) * np.where(np.arange(6) == 4, 1e-3, 1)[:, None])
    small = compress(model, [PruneChannels(0.2)]).model
    kept = [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(
        np.asarray(small.layers[1].kernel), np.asarray(one.kernel)[:, kept]
    )


def test_masks_come_after_in_whatever_order():
    model, _ = _scored()
    for methods in ([Prune(0.5), PruneChannels(0.5)], [PruneChannels(0.5), Prune(0.5)]):
        out = compress(model, methods)
        assert [layer.units for layer in out.model.layers[1:]] == [3, 3, 3]
        assert out.record.weights["two/kernel"].mask.shape == (3, 3)
        assert np.count_nonzero(np.asarray(out.model.layers[2].kernel)) == round(9 * 0.5)


def test_groups_are_those_of_the_papers_figure():
    """A convolution, its norm, what is added and what reads the sum: one group."""
    channels = Channels(_residual(), rule)
    (group,) = channels.groups()
    assert group.makers == ("stem", "a", "b") and len(group.units) == 8 and group.grain == 1
    tied = {
        (slot.layer.name, slot.layer.weights[slot.weight].name)
        for slot in channels.slots
        if np.isin(channels.find(slot.labels), group.units).any()
    }
    assert ("head", "kernel") in tied and ("norm", "moving_variance") in tied
    assert len(tied) == 13


@pytest.mark.slow
def test_jax(passes_on_jax):
    passes_on_jax(__file__, "taylor or scored_too or activation_is")

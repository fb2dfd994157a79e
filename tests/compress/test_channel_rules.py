"""Rules of layers and operations for channels: leaving units out is the same as zeros for them."""

import keras
import numpy as np
import pytest
from keras import layers

from compress.examples.data import Data
from compress.method import compress
from compress.prune_channels import PruneChannels


def _shaken(model, seed=0):
    """All weights such that no channel is zero or like another, as after training."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        value = np.asarray(weight)
        weight.assign(value + 0.2 * np.abs(generator.normal(size=value.shape)))
    return model


def _outputs(model, seed=0):
    inputs = np.random.default_rng(seed).normal(size=(3, *model.input_shape[1:]))
    return keras.ops.convert_to_numpy(model(inputs.astype("float32"), training=False))


def _squared(outputs, targets):
    return keras.ops.mean(keras.ops.square(outputs - targets), -1)


def _grouped():
    """ResNeXt's block, a depthwise convolution said by groups, and one with holes."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 1, name="reduce")(image)
    x = layers.Conv2D(24, 3, padding="same", groups=4, name="grouped")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="mix")(x)
    x = layers.Conv2D(16, 3, groups=8, activation="relu", name="by_channel")(x)
    x = layers.Conv2D(8, 2, dilation_rate=2, name="holes")(x)
    return keras.Model(image, layers.Dense(5, name="head")(layers.Flatten()(x)))


def _both_ways():
    sequence = keras.Input((6, 4))
    cell = layers.LSTM(8, return_sequences=True, name="a")
    x = layers.Bidirectional(cell, name="concat")(sequence)
    cell = layers.GRU(8, return_sequences=True, name="b")
    x = layers.Bidirectional(cell, merge_mode="sum", name="sum")(x)
    x = layers.Bidirectional(layers.SimpleRNN(4, name="c"), merge_mode="ave", name="last")(x)
    return keras.Model(sequence, layers.Dense(5, name="head")(x))


def _heads():
    """Two encoders of Keras's own attention: the second one narrows what it makes."""
    tokens = keras.Input((6, 12))
    x = layers.Dense(12, name="embed")(tokens)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 3, name="self")(x, x)])
    y = layers.Dense(8, name="memory")(tokens)
    x = layers.MultiHeadAttention(8, 2, 5, output_shape=8, name="cross")(query=x, value=y)
    return keras.Model(tokens, layers.Dense(5, name="head")(x))


def _temporal():
    """A temporal convolutional network with numbers in its graph."""
    x = sequence = keras.Input((12, 4))
    for number, rate in enumerate((1, 2, 4)):
        y = layers.Conv1D(8, 3, padding="causal", dilation_rate=rate, name=f"causal{number}")(x)
        y = keras.ops.relu(y * 0.5 + 1.0) / np.float32(3)
        x = layers.Conv1D(8, 1, name="match")(x) if number == 0 else x
        x = keras.ops.add(x, layers.SpatialDropout1D(0.1)(y))
    x = keras.ops.mean(x, axis=1)
    return keras.Model(sequence, layers.Dense(5, name="head")(x))


def _pruned(model, method, data=None):
    """The small network, and a copy of the whole one that zeros are to be written into."""
    keras.utils.set_random_seed(1)
    _shaken(model)
    small = compress(model, [method], data=data).model
    masked = keras.models.clone_model(model)
    masked.set_weights(model.get_weights())
    return small, masked


def _kept(small, whole):
    """Indices of the units that are left, found by the values of biases."""
    return np.flatnonzero(np.isin(np.asarray(whole), np.asarray(small)))


def _cut(kernel, axis, kept):
    """Zeros in what a kernel reads of units that are not kept."""
    value = np.asarray(kernel)
    shape = [1] * value.ndim
    shape[axis] = -1
    kernel.assign(value * np.isin(np.arange(value.shape[axis]), kept).reshape(shape))


def _assert_equal(small, masked):
    np.testing.assert_allclose(_outputs(small), _outputs(masked), rtol=1e-6, atol=2e-5)


def test_groups_keep_the_same_places():
    small, masked = _pruned(_grouped(), PruneChannels(0.25))
    layer = masked.get_layer
    kept = {
        name: _kept(small.get_layer(name).bias, layer(name).bias)
        for name in ("reduce", "grouped", "mix", "by_channel", "holes")
    }
    counts = {"reduce": 12, "grouped": 20, "mix": 6, "by_channel": 12, "holes": 6}
    assert {name: len(places) for name, places in kept.items()} == counts
    assert small.get_layer("by_channel").groups == 6
    assert len(np.unique(kept["reduce"] % 4)) == 3 and len(np.unique(kept["grouped"] % 6)) == 5
    _cut(layer("grouped").kernel, -2, np.unique(kept["reduce"] % 4))
    _cut(layer("mix").kernel, -2, kept["grouped"])
    _cut(layer("holes").kernel, -2, kept["by_channel"])
    by_place = np.asarray(layer("head").kernel).reshape(-1, 8, 5)
    by_place = by_place * np.isin(np.arange(8), kept["holes"])[:, None]
    layer("head").kernel.assign(by_place.reshape(-1, 5))
    _assert_equal(small, masked)


def test_numbers_in_the_graph_are_passed():
    small, masked = _pruned(_temporal(), PruneChannels(0.25))
    kept = _kept(small.get_layer("match").bias, masked.get_layer("match").bias)
    assert len(kept) == 6
    for name in ("causal1", "causal2", "head"):
        _cut(masked.get_layer(name).kernel, -2, kept)
    _assert_equal(small, masked)


@pytest.mark.parametrize("importance", ["magnitude", "activation", "taylor"])
def test_two_directions_lose_the_same_units(importance):
    generator = np.random.default_rng(0)
    examples, targets = generator.normal(size=(8, 6, 4)), generator.normal(size=(8, 5))
    data = Data(examples.astype("float32"), targets.astype("float32"), _squared)
    small, masked = _pruned(_both_ways(), PruneChannels(0.25, importance), data)

    def cells(model, name):
        layer = model.get_layer(name)
        return [layer.forward_layer.cell, layer.backward_layer.cell]

    for name, after in {"concat": "sum", "sum": "last", "last": "head"}.items():
        first, second = (
            _kept(np.ravel(a.bias)[: a.units], np.ravel(b.bias)[: b.units])
            for a, b in zip(cells(small, name), cells(masked, name), strict=True)
        )
        units = cells(masked, name)[0].units
        assert first.tolist() == second.tolist() and len(first) == 0.75 * units
        for cell in cells(masked, name):
            _cut(cell.recurrent_kernel, 0, first)
        read = [*first, *(first + units)] if name == "concat" else first
        readers = [masked.get_layer("head")] if after == "head" else cells(masked, after)
        for reader in readers:
            _cut(reader.kernel, 0, read)
    _assert_equal(small, masked)


def test_heads_of_keras_attention_leave_whole():
    small, masked = _pruned(_heads(), PruneChannels(0.25))
    layer = masked.get_layer
    for name, left in {"self": 3, "cross": 6}.items():
        assert small.get_layer(name).num_heads == left
        mine, theirs = (np.asarray(m.get_layer(name)._query_dense.bias) for m in (small, masked))
        heads = np.flatnonzero(np.isin(theirs, mine).all(1))
        _cut(layer(name)._output_dense.kernel, 0, heads)
    kept = {
        name: _kept(small.get_layer(name).bias, layer(name).bias) for name in ("embed", "memory")
    }
    assert {name: len(places) for name, places in kept.items()} == {"embed": 9, "memory": 6}
    for part in ("query", "key", "value"):
        _cut(getattr(layer("self"), f"_{part}_dense").kernel, 0, kept["embed"])
        source = "embed" if part == "query" else "memory"
        _cut(getattr(layer("cross"), f"_{part}_dense").kernel, 0, kept[source])
    mine, theirs = (m.get_layer("cross")._output_dense.bias for m in (small, masked))
    _cut(layer("head").kernel, 0, _kept(mine, theirs))
    assert small.get_layer("cross").output.shape[-1] == 6
    _assert_equal(small, masked)


@pytest.mark.parametrize("join", [layers.Add(), layers.Concatenate(), keras.ops.add])
def test_arrays_in_the_graph_are_not_cut(join):
    """What has a value for each channel keeps them; a number for all does not."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, "relu", name="before")(inputs)
    array = keras.ops.convert_to_tensor(np.ones((1, 8), "float32"))
    x = join(x, array) if join is keras.ops.add else join([x, array])
    x = layers.Dense(8, "relu", name="after")(x) + 0.5
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    out = compress(model, [PruneChannels(0.5)])
    assert [out.model.get_layer(name).units for name in ("before", "after")] == [8, 4]
    assert "no rule" in out.record.untouched["before"]
    assert out.model(np.ones((1, 6))).shape == (1, 3)

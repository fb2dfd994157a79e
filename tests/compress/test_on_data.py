"""Rounding on data: what layers multiply is seen in all kinds of them, and outputs stay close."""

import keras
import numpy as np
import pytest
from keras import layers

from compress.examples.data import Data
from compress.method import NotApplicable, compress
from compress.prune import Prune
from compress.ptq import PTQ
from compress.qat import QAT
from compress.quantization.least_squares import round_to_moments
from compress.quantization.on_data import round_on_data
from compress.quantization.products import watched
from compress.quantization.quantizers import levels, round_to_levels, scales
from compress.rewriting.weights import kernels
from families.layers.experts import Experts

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(96, 12, 12, 4)).astype(np.float32)
SEQUENCES = RNG.normal(size=(96, 6, 8)).astype(np.float32)


def image_network() -> keras.Model:
    """Convolutions of every kind."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((12, 12, 4))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.Conv2D(16, 3, groups=4, padding="same", activation="relu", name="grouped")(x)
    x = layers.Conv2D(8, 3, dilation_rate=2, padding="same", name="dilated")(x)
    x = layers.SeparableConv2D(12, 3, name="separable")(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="transposed")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(6, name="head")(x))


def sequence_network() -> keras.Model:
    """Recurrent cells, attention, experts, and a layer that is called step by step."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((6, 8))
    x = layers.Conv1D(8, 3, padding="causal", name="causal")(x)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True), name="both")(x)
    x = layers.GRU(8, return_sequences=True, name="gru")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.Add()([x, Experts(4, 16, top_k=1, name="experts")(x)])
    x = layers.TimeDistributed(layers.Dense(5), name="steps")(x)
    return keras.Model(inputs, x)


def error(before: keras.Model, after: keras.Model, inputs: np.ndarray) -> float:
    was, now = (keras.ops.convert_to_numpy(one(inputs)) for one in (before, after))
    return float(np.sqrt(np.mean((was - now) ** 2) / np.var(was)))


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Dense(5, use_bias=False), (3, 4)),
        (layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (3, 4)),
        (layers.EinsumDense("abcd,cde->abce", (6, 3, 5)), (6, 3, 4)),  # one for each c
        (layers.Conv1D(5, 3, padding="causal", dilation_rate=2, use_bias=False), (7, 4)),
        (layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False, groups=2), (7, 7, 4)),
        (layers.Conv2D(5, (1, 3), dilation_rate=(1, 2), use_bias=False), (5, 7, 4)),
        (layers.Conv3D(5, 2, use_bias=False), (4, 4, 4, 2)),
        (layers.Conv2DTranspose(5, 3, strides=2, padding="same", use_bias=False), (4, 4, 3)),
        (layers.Conv1DTranspose(5, 4, strides=3, use_bias=False), (4, 3)),
        (layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False), (5, 5, 3)),
        (layers.SeparableConv2D(5, 3, strides=2, use_bias=False), (7, 7, 4)),
        (layers.SeparableConv1D(5, 3, use_bias=False, padding="same"), (7, 4)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_rows_times_the_kernel_are_what_a_layer_computes(layer, shape):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    x = RNG.normal(size=(2, *shape)).astype(np.float32)
    kernel = next(k for k in kernels(model) if not k.path.endswith("depthwise_kernel") or len(
        kernels(model)) == 1)  # fmt: skip
    variable = next(one for one in model.weights if one.path == kernel.path)
    seen = []
    with watched({id(variable): kernel}, seen.append):
        outputs = keras.ops.convert_to_numpy(model.layers[-1](x))
    (product,) = seen
    matrix = product.view.apply(keras.ops.convert_to_numpy(variable))
    found = keras.ops.convert_to_numpy(product.rows(2)) @ matrix  # (groups, rows, outputs)
    groups, _, width = found.shape
    expected = outputs.reshape(-1, groups, width).transpose(1, 0, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(product.view.restore(matrix), keras.ops.convert_to_numpy(variable))


def test_experts_see_the_tokens_that_are_routed_to_them():
    inputs = keras.Input((80, 8))
    layer = Experts(4, 16, top_k=1, name="experts")
    model = keras.Model(inputs, layer(inputs))
    x = RNG.normal(size=(4, 80, 8)).astype(np.float32)
    kernel = next(k for k in kernels(model) if k.path.endswith("expand"))
    seen = []
    with watched({id(layer.expand): kernel}, seen.append):
        layer(x)
    logits = x.reshape(-1, 8) @ keras.ops.convert_to_numpy(layer.router)
    (product,) = seen
    rows = keras.ops.convert_to_numpy(product.rows(4))
    for expert in range(4):
        mine = rows[product.owner == expert].reshape(-1, 8)
        mine = mine[np.abs(mine).sum(1) > 0]  # blocks are filled with zeros
        wanted = x.reshape(-1, 8)[logits.argmax(1) == expert]
        assert np.allclose(mine[np.lexsort(mine.T)], wanted[np.lexsort(wanted.T)], atol=1e-6)


def test_no_level_next_to_those_found_is_better():
    """Coordinate descent ends where no single code can be changed with profit."""
    rows = RNG.normal(size=(300, 12)) @ RNG.normal(size=(12, 12))
    square = (rows.T @ rows / 300)[None].astype(np.float32)
    target = RNG.normal(size=(1, 12, 5)).astype(np.float32)

    def wrong(q, scale):
        difference = (target - scale * q)[0]
        return np.einsum("io,ij,jo->o", difference, square[0], difference)

    for bits in (4, 3, 2):
        q, scale = round_to_moments(target, square, bits)
        assert set(np.unique(q)) <= set(levels(bits).tolist())
        least = wrong(q, scale)
        newton = scales(target[0], bits, (0,))
        nearest = round_to_levels(target[0], newton, bits)[None]
        assert np.all(least < wrong(nearest / newton, newton[None]))
        for place in range(12):
            for step in (-1.0, 1.0):
                moved = q.copy()
                moved[0, place] = np.clip(moved[0, place] + step, *levels(bits)[[0, -1]])
                # The inverse is damped by a hundredth, and so is what descent minimizes.
                assert np.all(wrong(moved, scale) > least * 0.9)


@pytest.mark.parametrize("build, inputs", [(image_network, IMAGES), (sequence_network, SEQUENCES)])
def test_outputs_change_less_than_by_rounding_to_the_nearest(build, inputs):
    model = build()
    seen, unseen = inputs[:64], inputs[64:]
    errors = {}
    for rounding in ("data", "nearest"):
        done = compress(model, [PTQ(3, rounding=rounding)], None, Data(seen))
        errors[rounding] = error(model, done.model, unseen)
        (details,) = done.record.details.values()
    assert errors["data"] < 0.6 * errors["nearest"]
    details = compress(model, [PTQ(3)], None, Data(seen)).record.details[repr(PTQ(3))]
    assert details["examples"] == 64
    assert all("depthwise" in path for path in details.get("rounded_without_examples", {}))


def test_a_norm_takes_the_mean_where_there_is_no_bias():
    model, data = image_network(), Data(IMAGES[:64])

    def means(one):
        network = keras.Model(one.input, one.get_layer("norm").output)
        return np.mean(keras.ops.convert_to_numpy(network(data.inputs)), (0, 1, 2))

    off = {}
    for rounding in ("data", "nearest"):
        done = compress(model, [PTQ(2, rounding=rounding)], None, data).model
        off[rounding] = np.abs(means(done) - means(model)).max()
        shift = np.subtract(*(one.get_layer("norm").get_weights()[2] for one in (model, done)))
        assert np.any(shift) == (rounding == "data")
    assert off["data"] < 1e-3 < off["nearest"]


def test_training_meets_norms_and_biases_as_they_are_and_a_second_update_changes_nothing():
    """Engines go by the class of a layer: momenta of norms follow the length of a training."""
    model, data, method = image_network(), Data(IMAGES[:64]), PTQ(4)

    def fit(prepared, update):
        kinds = {type(layer) for layer in prepared.layers}
        assert layers.BatchNormalization in kinds
        assert np.array_equal(prepared.get_layer("norm").get_weights()[2], np.zeros(8))
        update(1, 1)  # as an engine may, at its end

    once = compress(model, [method], None, data).model
    twice = compress(model, [method], fit, data).model
    assert error(once, twice, IMAGES) < 1e-6


def test_integer_activations_where_training_chose_all_levels():
    model, data = image_network(), Data(IMAGES[:64])
    done = compress(model, [QAT(4, embeddings=None), PTQ(8)], None, data)
    assert done.record.activations == 8 and done.record.weights["head/kernel"].bits == 4


def test_pruned_weights_stay_zero_and_others_make_up_for_them():
    model = image_network()
    done = compress(model, [PTQ(2), Prune(0.5)], None, Data(IMAGES[:64]))
    weight = done.record.weights["dilated/kernel"]
    value = done.model.get_layer("dilated").kernel.numpy()
    assert weight.bits == 2 and 0.45 < (value == 0).mean() < 0.55
    assert np.array_equal(value == 0, ~weight.mask)


def test_training_begins_where_rounding_on_data_ends():
    model = image_network()
    data = Data(IMAGES[:64])
    rounded = compress(model, [PTQ(2, depthwise=2)], None, data).model
    trained = compress(model, [QAT(2)], None, data).model
    assert error(rounded, trained, IMAGES[64:]) < 1e-3


def test_the_network_given_is_not_changed_and_loops_of_either_backend_are_seen():
    model = sequence_network()
    before = model.get_weights()
    found = round_on_data(model, {k.path: 4 for k in kernels(model)}, Data(SEQUENCES[:64]))
    assert all(map(np.array_equal, before, model.get_weights()))
    assert found.blind == {} and found.examples == 64
    assert {path.split("/")[0] for path in found.values} >= {"both", "gru", "attention", "experts"}


def test_rounding_asked_for_on_data_needs_data_and_few_bits_without_are_warned_of():
    model = image_network()
    with pytest.raises(NotApplicable, match=r"ptq rounding=data .*--data"):
        compress(model, [PTQ(4, rounding="data")])
    details = compress(model, [PTQ(2)]).record.details[repr(PTQ(2))]
    assert "give --data" in details["warning"] and details["examples"] == 0
    assert "warning" not in compress(model, [PTQ(4)]).record.details[repr(PTQ(4))]


@pytest.mark.slow
def test_on_jax(passes_on_jax):
    passes_on_jax(__file__, "network_given")

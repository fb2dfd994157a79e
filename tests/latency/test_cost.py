"""The counter against hand-computed sizes, published networks and its own refusals."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from families import mnasnet, mobilenet_v2
from latency.networks.count import count


def network(layer, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, layer(inputs if len(inputs) > 1 else inputs[0]))


@pytest.mark.parametrize(
    ("layer", "shapes", "macs", "params"),
    [
        (layers.Conv1D(4, 3), [(10, 2)], 8 * 4 * 3 * 2, 28),
        (layers.Conv2D(8, 3, strides=2, padding="same"), [(9, 9, 4)], 25 * 8 * 9 * 4, 296),
        (layers.Conv2D(8, 3, groups=2, use_bias=False), [(6, 6, 4)], 16 * 8 * 9 * 2, 144),
        (layers.Conv2D(8, 3, dilation_rate=2), [(8, 8, 4)], 16 * 8 * 9 * 4, 296),
        (layers.Conv3D(2, (1, 2, 3)), [(2, 3, 4, 5)], 2 * 2 * 2 * 2 * 6 * 5, 62),
        (layers.DepthwiseConv1D(3, padding="same"), [(7, 4)], 7 * 4 * 3, 16),
        (layers.DepthwiseConv2D(5, depth_multiplier=2), [(8, 8, 3)], 16 * 6 * 25, 156),
        (layers.SeparableConv2D(8, 3, use_bias=False), [(6, 6, 4)], 16 * (4 * 9 + 8 * 4), 68),
        (layers.Conv2DTranspose(3, 4, strides=2, padding="same"), [(5, 5, 2)], 25 * 16 * 2 * 3, 99),
        (layers.Dense(7), [(5,)], 35, 42),
        (layers.Dense(7), [(3, 5)], 105, 42),
        (layers.EinsumDense("abc,cd->abd", (4, 6)), [(4, 5)], 4 * 5 * 6, 30),
        (layers.EinsumDense("abc,cde->abde", (4, 2, 3)), [(4, 5)], 4 * 5 * 6, 30),
        (layers.EinsumDense("...x,xy->...y", 6), [(4, 5)], 4 * 5 * 6, 30),
        (layers.LSTM(6), [(4, 5)], 4 * 4 * 6 * (5 + 6), 4 * 6 * (5 + 6 + 1)),
        (layers.Bidirectional(layers.GRU(6)), [(4, 5)], 2 * 4 * 18 * (5 + 6), 2 * 18 * (5 + 6 + 2)),
        (
            lambda x: layers.MultiHeadAttention(2, 3, 5)(key=x[1], value=x[1], query=x[0]),
            [(6, 4), (7, 8)],
            # query and output; keys and values; the products of both
            6 * 2 * (4 * 3 + 5 * 4) + 7 * 2 * 8 * (3 + 5) + 6 * 7 * 2 * (3 + 5),
            2 * (4 * 3 + 3) + 2 * (8 * 3 + 3) + 2 * (8 * 5 + 5) + 2 * 5 * 4 + 4,
        ),
        (layers.Embedding(11, 4), [(3,)], 0, 44),
        (layers.LayerNormalization(), [(3, 4)], 0, 8),
        (layers.Attention(), [(6, 4), (5, 4)], 6 * 5 * 4 + 6 * 5 * 4, 0),
        (layers.Dot(axes=(2, 2)), [(6, 4), (5, 4)], 6 * 5 * 4, 0),
        (lambda x: ops.matmul(x[0], x[1]), [(2, 6, 4), (2, 4, 5)], 2 * 6 * 5 * 4, 0),
        (lambda x: ops.einsum("bqhd,bkhd->bhqk", *x), [(6, 2, 4), (5, 2, 4)], 2 * 6 * 5 * 4, 0),
        (lambda x: ops.tensordot(x, np.ones((4, 5)), axes=[[2], [0]]), [(6, 4)], 6 * 5 * 4, 0),
        (
            lambda x: ops.dot_product_attention(*x),
            [(6, 2, 4), (5, 2, 4), (5, 2, 4)],
            2 * (2 * 6 * 5 * 4),
            0,
        ),
        (lambda x: ops.relu(x) + 1.0, [(6,)], 0, 0),
    ],
)
def test_counts_equal_hand_computation(layer, shapes, macs, params):
    cost = count(network(layer, *shapes))
    assert (cost.macs, cost.total_params, cost.uncounted) == (macs, params, ())


def test_channels_first_counts_the_same():
    layer = layers.Conv2D(8, 3, data_format="channels_first")
    assert count(network(layer, (4, 6, 6))).macs == 16 * 8 * 9 * 4


def test_shared_layer_counts_macs_per_call_and_weights_once():
    shared = layers.Dense(4, use_bias=False)
    cost = count(network(lambda x: shared(shared(x)), (4,)))
    assert (cost.macs, cost.total_params) == (32, 16)
    assert [(row.macs, row.params, row.weight_bytes) for row in cost.layers] == [
        (16, 16, 64),
        (16, 0, 0),
    ]


def test_frozen_and_moving_parameters_are_total_only():
    model = network(layers.BatchNormalization(), (4, 4, 3))
    assert (count(model).trainable_params, count(model).total_params) == (6, 12)
    model.trainable = False
    assert (count(model).trainable_params, count(model).total_params) == (0, 12)


def test_bytes_follow_shape_and_dtype():
    layer = layers.Conv2D(8, 1, use_bias=False, dtype="mixed_bfloat16")
    (row,) = count(network(layer, (4, 4, 2))).layers
    assert (row.weight_bytes, row.input_bytes, row.output_bytes) == (2 * 8 * 4, 32 * 4, 128 * 2)


@keras.saving.register_keras_serializable("tests")
class Mystery(layers.Layer):
    """A layer that the counter has never heard of."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 3))

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


def test_unknown_layers_are_reported_not_silently_free():
    cost = count(network(Mystery(name="odd"), (4,)))
    assert (cost.macs, cost.total_params, cost.uncounted) == (0, 12, ("odd (Mystery)",))
    attention = layers.AdditiveAttention(name="additive")
    assert count(network(attention, (6, 4), (5, 4))).uncounted == ("additive (AdditiveAttention)",)


def test_refuses_what_it_cannot_count():
    sequential = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert count(sequential) == count(keras.Model(sequential.inputs, sequential.outputs))
    assert count(sequential).macs == 8
    with pytest.raises(ValueError, match="without an input shape"):
        count(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="Functional"):
        count(layers.Dense(2))
    with pytest.raises(ValueError, match="is a model"):
        count(network(network(layers.Dense(2), (4,)), (4,)))
    with pytest.raises(ValueError, match="open sizes"):
        count(network(layers.Dense(2), (None, 4)))


@pytest.mark.parametrize("model", [mnasnet, mobilenet_v2])
def test_rows_add_up_to_the_model(model):
    network = model.build(model.VARIANTS["tiny"])
    cost = count(network)
    assert cost.total_params == network.count_params() == sum(row.params for row in cost.layers)
    assert cost.macs == sum(row.macs for row in cost.layers)
    assert len({row.name for row in cost.layers}) == len(cost.layers) == len(network.layers) - 1


def counted():
    return keras.config.backend(), str(count(mnasnet.build(mnasnet.VARIANTS["tiny"])))


@pytest.mark.slow
def test_same_counts_under_the_jax_backend(on_jax):
    (backend, here), (other, there) = counted(), on_jax(counted)
    assert here == there and backend != other == "jax"

"""A layer from outside the package that knows itself: counted, pruned, quantized, written."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import ops

from compress.channels.layer_rules import rule
from compress.method import compress
from compress.prune_channels import PruneChannels
from compress.ptq import PTQ
from compress.rewriting.weights import kernels
from latency.networks.count import count
from latency.tflite.direct_writer import assemble

RANDOM = np.random.default_rng(0)


@keras.saving.register_keras_serializable("elsewhere")
class Mixing(keras.layers.Layer):
    """x mixing, without a bias."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.mixing = self.add_weight(shape=(shape[-1], self.units), name="mixing")

    def call(self, inputs):
        return ops.matmul(inputs, self.mixing)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def macs(self, shape):
        return int(np.prod(shape)) * self.units

    def kernels(self):
        return {"mixing": ("dense", 1, (0,))}

    def channels(self, graph, node, labels):
        outputs = graph.fresh(self.units, self.name)
        graph.slot(self, "mixing", 0, labels[0], "in", node.input_tensors[0])
        graph.slot(self, "mixing", 1, outputs, "out")
        graph.size(self, units=lambda count: count(outputs))
        return [outputs]

    def litert(self, graph, inputs, shape):
        kernel = graph.constant(self.get_weights()[0].T, f"{self.name}/kernel")
        bias = graph.constant(np.zeros(self.units), f"{self.name}/bias")
        return graph.add("FULLY_CONNECTED", [*inputs, kernel, bias], shape, self.name, {})

    def get_config(self):
        return super().get_config() | {"units": self.units}


class Doubling(Mixing):
    """Overrides `call` and none of the methods: what it inherits is not true of it."""

    def call(self, inputs):
        return 2 * super().call(inputs)


class Wide(keras.layers.Dense):
    """A layer whose attribute happens to have the name of such a method."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.channels = self.kernels = units


def network(layer=Mixing):
    inputs = keras.Input((6,))
    x = layer(8, name="mix")(inputs)
    x = keras.layers.Activation("relu")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def test_it_is_counted():
    found = count(network())
    assert found.macs == 6 * 8 + 8 * 3
    assert not found.uncounted


def test_it_is_pruned_to_what_zeros_would_give():
    model = network()
    weight, reader = model.get_layer("mix").mixing, model.get_layer("head").kernel
    value, read = ops.convert_to_numpy(weight).copy(), ops.convert_to_numpy(reader).copy()
    value[:, [1, 5]] *= 1e-3  # the weakest
    read[[1, 5]] *= 1e-3
    weight.assign(value)
    reader.assign(read)
    small = compress(model, [PruneChannels(0.25)]).model
    assert small.get_layer("mix").units == 6
    value[:, [1, 5]] = 0
    weight.assign(value)
    inputs = RANDOM.normal(size=(4, 6)).astype("float32")
    np.testing.assert_allclose(small(inputs), model(inputs), atol=1e-5)


def test_it_is_quantized():
    model = network()
    assert [kernel.path for kernel in kernels(model)] == ["mix/mixing", "head/kernel"]
    done = compress(model, [PTQ(4)])
    assert done.record.weights["mix/mixing"].scale.shape == (1, 8)
    assert len(np.unique(done.model.get_layer("mix").get_weights()[0][:, 0])) <= 15


def test_it_is_written_without_the_converter():
    model = network()
    interpreter = Interpreter(model_content=assemble(model))
    interpreter.allocate_tensors()
    inputs = RANDOM.normal(size=(1, 6)).astype("float32")
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, model(inputs), atol=1e-5)


def test_what_a_subclass_computes_otherwise_is_not_trusted():
    model = network(Doubling)
    assert rule(model.get_layer("mix")) is None
    assert [kernel.path for kernel in kernels(model)] == ["head/kernel"]
    with pytest.raises(ValueError, match="Doubling cannot be written directly"):
        assemble(model)


def test_attributes_of_the_same_name_do_no_harm():
    model = network(Wide)
    assert rule(model.get_layer("mix")) is None
    assert [kernel.path for kernel in kernels(model)] == ["mix/kernel", "head/kernel"]

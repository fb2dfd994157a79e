"""Layers as packages ship them: copied where possible, else refused with name and remedy."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from compress.method import compress
from compress.ptq import PTQ
from compress.rewriting import graph
from compress.rewriting.parametrized import Parametrized
from latency.networks.random_inputs import random_inputs
from nas.files.flatten import flatten

package = keras.saving.register_keras_serializable("tests_rewriting")


@package
class MoreThanItTakes(layers.Layer):
    """As KerasHub's patch embedding: its configuration holds what follows from its arguments."""

    def __init__(self, units, patches=4, **kwargs):
        super().__init__(**kwargs)
        self.units, self.patches = units, patches
        self.dense = layers.Dense(units, name="inner")

    def build(self, shape):
        self.dense.build((*shape[:-2], self.patches, shape[-2] * shape[-1] // self.patches))

    def call(self, x):
        width = x.shape[-2] * x.shape[-1] // self.patches
        return self.dense(ops.reshape(x, (-1, self.patches, width)))

    def get_config(self):
        more = {"units": self.units, "patches": self.patches, "positions": self.patches + 1}
        return super().get_config() | more


@package
class Contradicting(MoreThanItTakes):
    """Left out, an entry would get another value."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.seed = np.random.randint(1 << 30)

    def get_config(self):
        return super().get_config() | {"secret": self.seed}


@package
class BuildsItself(layers.Layer):
    """As KerasHub's decoder: made from its configuration, it is built already."""

    def __init__(self, **kwargs):
        shape = kwargs.pop("known_shape", None)
        super().__init__(**kwargs)
        self.known_shape = None
        if shape:
            self.build(shape)

    def build(self, shape):
        self.known_shape = shape
        self.dense = layers.Dense(shape[-1], name="inner")
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return x + self.dense(x)

    def get_config(self):
        return super().get_config() | {"known_shape": self.known_shape}


@package
class OfPlainTensors(layers.Layer):
    """As Gemma's block: its code takes no sparse tensors, so it says itself what comes out."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], shape[-1]), name="kernel")

    def call(self, x):
        if isinstance(x, keras.KerasTensor) or "Symbolic" in type(x).__name__:
            raise TypeError("this layer was traced")
        return ops.matmul(x, self.kernel)

    def compute_output_shape(self, shape):
        return shape


@package
class Unwritten(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = units

    def call(self, x):
        return x


def _model(layer, shape=(4, 6)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(3, name="head")(layer(inputs)))


@pytest.mark.parametrize("kind", ["more", "itself", "plain"])
def test_layers_of_packages_are_rounded_and_saved(kind, tmp_path):
    keras.utils.set_random_seed(0)
    made = {"more": lambda: MoreThanItTakes(8), "itself": BuildsItself, "plain": OfPlainTensors}
    model = _model(made[kind]())
    done = compress(model, [PTQ(8, activations=None)])
    assert len(done.record.weights) == 2
    inputs = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    before, after = (ops.convert_to_numpy(one(inputs)) for one in (model, done.model))
    assert 0 < np.abs(before - after).max() < 0.05 * np.abs(before).max()
    done.model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(inputs)), after)


def test_shapes_are_the_layers_own_not_traced():
    model = _model(OfPlainTensors(name="block"))
    twin = Parametrized(graph.copy(model.get_layer("block")))
    assert twin(keras.Input((4, 6))).shape == (None, 4, 6)


def test_layers_that_cannot_be_copied_are_named():
    cases = {
        Unwritten(3): r"'unwritten' \(Unwritten\) cannot be copied: .*units.*get_config",
        Contradicting(8): r"'contradicting' \(Contradicting\) cannot be copied: .*secret.*get_conf",
    }
    for layer, message in cases.items():
        with pytest.raises(ValueError, match=message):
            compress(_model(layer), [PTQ(8)])


def test_a_call_that_fails_on_the_copy_is_named():
    class Strict(layers.Layer):
        calls = 0

        def call(self, x):
            Strict.calls += 1
            if Strict.calls > 1:
                raise RuntimeError("only once")
            return x

    model = _model(Strict(name="strict"))
    with pytest.raises(ValueError, match=r"'strict' \(Strict\) cannot be called .*only once"):
        graph.rewrite(model, lambda _, copy: copy)


@pytest.mark.parametrize("kind", ["dense", "embedding", "einsum"])
def test_adapters_of_keras_are_merged(kind):
    """Flat and copied, the kernel is what `enable_lora` makes of it, and is rounded as a whole."""
    keras.utils.set_random_seed(0)
    made = {
        "dense": lambda: layers.Dense(8, name="adapted"),
        "embedding": lambda: layers.Embedding(5, 8, name="adapted"),
        "einsum": lambda: layers.EinsumDense("abc,cd->abd", (4, 8), name="adapted"),
    }
    layer = made[kind]()
    inputs = keras.Input((4,), dtype="int32") if kind == "embedding" else keras.Input((4, 6))
    model = keras.Model(inputs, layers.Dense(3, name="head")(layer(inputs)))
    layer.enable_lora(2)
    layer.weights[-1].assign(np.random.default_rng(0).normal(size=layer.weights[-1].shape))
    flat = flatten(model).model  # compares the two
    names = [weight.name for weight in flat.get_layer("adapted").weights]
    assert names[0] in ("kernel", "embeddings") and not any("lora" in name for name in names)
    done = compress(flat, [PTQ(8, activations=None)])
    examples = random_inputs(model, 3)
    before, after = (ops.convert_to_numpy(one(examples)) for one in (model, done.model))
    assert 0 < np.abs(before - after).max() < 0.05 * np.abs(before).max()

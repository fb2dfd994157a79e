"""What every family must hold; a new file in families/ is found and tested as it is."""

import dataclasses
import importlib
import math
import pkgutil
import re

import keras
import numpy as np
import pytest

import families


def _families():
    for entry in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"families.{entry.name}")
        if hasattr(module, "VARIANTS"):
            yield module


FAMILIES = {module.__name__.split(".")[-1]: module for module in _families()}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    keras.utils.set_random_seed(0)
    return family.build(family.VARIANTS["tiny"])


def _random_inputs(model, batch: int = 8):
    generator = np.random.default_rng(0)
    inputs = [
        generator.integers(0, 2, (batch, *tensor.shape[1:])).astype(tensor.dtype)
        if "int" in tensor.dtype
        else generator.normal(size=(batch, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]
    return keras.tree.pack_sequence_as(model.input, inputs)


def test_the_families_are_found():
    assert {"mnasnet", "mobilenet_v2"} <= set(FAMILIES)


def test_configs_are_frozen_hashable_and_pasteable(family):
    assert "tiny" in family.VARIANTS
    for config in family.VARIANTS.values():
        assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen
        assert type(config) is family.Config
        pasted = eval(repr(config), vars(family))
        assert pasted == config and hash(pasted) == hash(config) and repr(pasted) == repr(config)
    assert len(set(family.VARIANTS.values())) == len(family.VARIANTS)


def test_model_is_flat_and_functional(model):
    assert type(model) is keras.Model or type(model).__name__ == "Functional"
    for layer in model.layers:
        assert not isinstance(layer, keras.Model)
        composite = [inner.name for inner in layer._flatten_layers(include_self=False)]
        assert not composite, f"{layer.name} holds layers of its own: {composite}"


def test_names_are_unique_paths(model):
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z]+\d*(_[a-z]+|_\d+)*", name), name


def test_names_do_not_depend_on_what_was_built_before(family, model):
    # Keras numbers what nobody named: conv2d here, conv2d_1 the next time.
    again = family.build(family.VARIANTS["tiny"])
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]


def test_outputs_are_logits_of_every_class(family, model):
    config = family.VARIANTS["tiny"]
    outputs = model(_random_inputs(model), training=False)
    for output in keras.tree.flatten(outputs):
        assert np.isfinite(keras.ops.convert_to_numpy(output)).all()
    if hasattr(config, "classes") and not isinstance(outputs, dict):
        assert outputs.shape == (8, config.classes)
        rows = keras.ops.convert_to_numpy(outputs).sum(axis=-1)
        assert not np.allclose(rows, 1.0), "these are probabilities, not logits"


def test_one_step_lowers_the_loss(family):
    keras.utils.set_random_seed(0)
    model = family.build(family.VARIANTS["tiny"])
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0  # the same function before and after the step
    inputs = _random_inputs(model)
    targets = [
        np.random.default_rng(1).normal(size=(8, *tensor.shape[1:])).astype("float32")
        for tensor in model.outputs
    ]
    targets = keras.tree.pack_sequence_as(model.output, targets)
    model.compile(keras.optimizers.SGD(1e-3), loss="mse", run_eagerly=True)
    before = model.train_on_batch(inputs, targets)
    after = model.train_on_batch(inputs, targets)
    assert math.isfinite(before) and after < before


def test_keras_file_round_trip_is_exact(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    for saved, read in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(saved.numpy(), read.numpy())
    inputs = _random_inputs(model, batch=2)
    outputs = (keras.tree.flatten(net(inputs, training=False)) for net in (model, loaded))
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_array_equal(ours, theirs)

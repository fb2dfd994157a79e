"""What every family must hold; a new file in families/ is found and tested as it is."""

import dataclasses
import importlib
import json
import math
import pkgutil
import re

import keras
import numpy as np
import pytest

import families
from families.layers import shapes_only
from latency.networks import count
from latency.networks.random_inputs import random_inputs
from latency.tflite import convert
from latency.tflite.signature import names


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
    """Random numbers; valid integers: tokens of the vocabulary, lengths of half to the whole."""
    inputs = random_inputs(model, batch)
    if isinstance(inputs, dict) and "frames" in inputs:
        whole = (inputs["features"] if "features" in inputs else inputs["audio"]).shape[1]
        inputs["frames"] = np.linspace(whole, whole // 2, batch).astype("int32")
    return inputs


def _as_trained(model):
    """The model with weights as after training: as they begin, its outputs may be nearly 0."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if "int" in weight.dtype:  # the state of a generator
            continue
        if weight.name in ("moving_variance", "gamma", "scale"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        else:
            fan_in = math.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 10
            weight.assign(generator.normal(0, (2 / fan_in) ** 0.5, weight.shape))
    return model


def _deployed(family):
    """The form of the tiny network that runs on a device."""
    config = family.VARIANTS["tiny"]
    return family.deploy(config) if hasattr(family, "deploy") else config


def test_the_families_are_found():
    found = {"mnasnet", "mobilenet_v2", "vit", "mobile_vmoe", "conformer", "decoder"}
    assert found | {"efficientnet", "efficientnet_x"} <= set(FAMILIES)


def test_configs_are_frozen_hashable_and_pasteable(family):
    assert "tiny" in family.VARIANTS
    for config in family.VARIANTS.values():
        assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen
        assert type(config) is family.Config
        pasted = eval(repr(config), vars(family))
        assert pasted == config and hash(pasted) == hash(config) and repr(pasted) == repr(config)
    aliases = getattr(family, "ALIASES", {})  # rows of published tables that are one network
    for alias, name in aliases.items():
        assert family.VARIANTS[alias] == family.VARIANTS[name]
    assert len(set(family.VARIANTS.values())) == len(family.VARIANTS) - len(aliases)


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
    # Of several outputs the sum comes first.
    before, after = (np.ravel(model.train_on_batch(inputs, targets))[0] for _ in range(2))
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


def test_the_deployed_form_takes_its_weights_from_the_trained_one(family, model):
    step = family.build(_deployed(family))
    paths = {weight.path: tuple(weight.shape) for weight in model.weights}
    for weight in step.weights:
        assert paths.get(weight.path) == tuple(weight.shape), weight.path


def test_the_deployed_form_is_flat_and_static(family):
    step = family.build(_deployed(family))
    test_model_is_flat_and_functional(step)
    for tensor in (*step.inputs, *step.outputs):
        assert tensor.shape[0] is None and None not in tensor.shape[1:], tensor


def test_litert_computes_what_keras_does(family):
    step = _as_trained(family.build(_deployed(family)))
    inputs = _random_inputs(step, batch=2)
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    expected = keras.tree.flatten(step(tensors, training=False))
    takes, gives = names(step)
    tflite = convert.convert(step)
    outputs = convert.run(tflite, dict(zip(takes, keras.tree.flatten(inputs), strict=True)))
    assert sorted(outputs) == sorted(gives)
    for name, theirs in zip(gives, expected, strict=True):
        _assert_equal(outputs[name], theirs, name)


def test_every_multiplication_is_counted(family):
    for config in (family.VARIANTS["tiny"], _deployed(family)):
        with shapes_only():
            counted = count.count(family.build(config))
        assert not counted.uncounted and counted.macs > 0


def _assert_equal(ours, theirs, name: str) -> None:
    theirs = keras.ops.convert_to_numpy(theirs)
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 1e-3, name
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale, rtol=0, err_msg=name)


def outputs_on_jax(path, arrays):
    """Outputs of a model in a .keras file, as the process that compiles for JAX reads it."""
    import jax

    from latency.jax_runtime import worker

    assert keras.backend.backend() == "jax"
    model = worker._load({"model": str(path), "imports": ["families.layers"]})
    inputs = keras.tree.pack_sequence_as(model.input, arrays)
    groups = model.trainable_variables, model.non_trainable_variables
    weights = [[variable.value for variable in group] for group in groups]
    run = jax.jit(lambda t, n, x: model.stateless_call(t, n, x, training=False)[0])
    return [np.asarray(output) for output in keras.tree.flatten(run(*weights, inputs))]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_backends_agree(name, tmp_path, on_jax):
    """Keras on JAX reads the .keras files of every family, and its networks answer the same."""
    module = FAMILIES[name]
    forms = {"trained": module.VARIANTS["tiny"], "deployed": _deployed(module)}
    if len(set(forms.values())) == 1:
        del forms["deployed"]
    for form, config in forms.items():
        model = _as_trained(module.build(config))
        inputs = _random_inputs(model, batch=2)
        tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        expected = keras.tree.flatten(model(tensors, training=False))
        model.save(tmp_path / f"{form}.keras")
        arrays = [np.asarray(array) for array in keras.tree.flatten(inputs)]
        found = on_jax(outputs_on_jax, tmp_path / f"{form}.keras", arrays)
        assert len(found) == len(expected)
        for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            _assert_equal(ours, theirs, f"{name}-{form} {index}")


# What models.json calls a network, where the name here does not follow from it.
CALLED = {
    ("mobile_v_moe", "ViT-Ti/16 dense 12x192 (baseline)"): ("vit", "ti16"),
    ("mobile_v_moe", "12x192, E=10, L=2 MoE layers"): ("mobile_vmoe", "ti16"),
    ("multilingual_streaming", "Encoder Endpointer EP3"): ("conformer", "endpointer"),
    ("afm", "on-device 2024 (3B)"): ("decoder", "afm_2024_on_device"),
    ("afm", "on-device 2025 (AFMTextV7)"): ("decoder", "afm_2025_on_device"),
    ("afm", "on-device 2025 draft model"): ("decoder", "afm_2025_draft"),
    ("mc_suite", "Mixtral-8x7B Base expert dropping"): ("decoder", "mixtral_8x7b"),
}


def _called(row: dict) -> tuple[str, str] | None:
    """Family and variant of a row of models.json; None where no family here has it."""
    family, variant = row["family"], row["variant"]
    if (family, variant) in CALLED:
        return CALLED[family, variant]
    if family == "v_moe":  # "V-MoE-S/32 Last-2" is s32_last2, "ViT-S/32" s32
        size, _, layout = variant.partition("-")[2].removeprefix("MoE-").partition(" ")
        parts = (size.replace("/", ""), layout.replace("-", ""))
        return "mobile_vmoe", "_".join(filter(None, parts)).lower()
    if family == "mnasnet" and variant.endswith("_r224"):
        variant = variant.removesuffix("_r224")
    return (family, variant) if variant in getattr(FAMILIES.get(family), "VARIANTS", ()) else None


@pytest.mark.slow
def test_published_counts(shared_data):
    """Every row of models.json that is marked hard, of the families here."""
    path = shared_data.parent / "reference" / "models.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [
        row
        for row in json.loads(path.read_text())
        if (row.get("check") or {}).get("kind") == "hard"
    ]
    found = {}
    for row in rows:
        if (called := _called(row)) is None:
            continue
        family, variant = called
        config = FAMILIES[family].VARIANTS[variant]
        with shapes_only():
            counted = count.count(FAMILIES[family].build(config))
        check = row["check"]
        wanted = check.get("params_exact") or row["params"]
        off = {"params": (counted.trainable_params / wanted - 1, check["params_tol_pct"])}
        if check.get("flops_tol_pct") and row["flops_or_madds"]:
            off["macs"] = (counted.macs / row["flops_or_madds"] - 1, check["flops_tol_pct"])
        if "params_exact" in check:
            assert counted.trainable_params == wanted, called
        for what, (share, tolerance) in off.items():
            assert abs(share) <= tolerance / 100, f"{called}: {what} off by {share:.2%}"
        found[called] = row["variant"]
    assert len(found) >= 58, sorted(found)  # a name that no longer fits is not a pass

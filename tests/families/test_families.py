"""All families: what is published of them, and the same answers on both backends."""

import importlib
import json
import pkgutil

import keras
import numpy as np
import pytest

import families
from families.layers import shapes_only
from latency.networks import count
from nas.networks.build import deploy
from nas.testing.expectations import as_trained, expect_close, inputs_of, outputs


def _families():
    for entry in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"families.{entry.name}")
        if hasattr(module, "VARIANTS"):
            yield module


FAMILIES = {module.__name__.split(".")[-1]: module for module in _families()}


def test_the_families_are_found():
    found = {"mnasnet", "mobilenet_v2", "vit", "mobile_vmoe", "conformer", "decoder"}
    assert found | {"efficientnet", "efficientnet_x"} <= set(FAMILIES)


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
    forms = {"trained": module.VARIANTS["tiny"], "deployed": deploy(module.VARIANTS["tiny"])}
    if len(set(forms.values())) == 1:
        del forms["deployed"]
    for form, config in forms.items():
        model = as_trained(module.build(config))
        inputs = inputs_of(model, batch=2)
        expected = outputs(model, inputs)
        model.save(tmp_path / f"{form}.keras")
        arrays = [np.asarray(array) for array in keras.tree.flatten(inputs)]
        found = on_jax(outputs_on_jax, tmp_path / f"{form}.keras", arrays)
        assert len(found) == len(expected)
        for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            expect_close(ours, theirs, f"{name}-{form} {index}")


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

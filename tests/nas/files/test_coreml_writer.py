"""Core ML packages: sizes follow the bits, codes are found in what the converter made of them."""

import importlib
import json

import keras
import numpy as np
import pytest
from coded import coded
from coreml_refusal import refusal
from keras import layers

from compress.rewriting.record import Record, Weight
from nas.files.writers.mlpackage import mil_constants

pytest.importorskip("coremltools")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Core ML files are written from Keras on TensorFlow", allow_module_level=True)

from nas.files.writers import coreml  # noqa: E402
from nas.networks import build

FAMILIES = ("mnasnet", "vit", "mobile_vmoe", "conformer", "decoder")


def convolutions():
    """Kernels that the converter transposes, and scales by the normalization behind them."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(64, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, name="depth")(x)
    x = layers.Dense(48, name="with_bias")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(32, use_bias=False, name="bare")(x))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.uniform(0.3, 1.5, weight.shape))
    return model


@pytest.mark.parametrize(("bits", "density"), [(2, None), (4, None), (3, 0.4), (32, 0.2)])
def test_sizes_follow_the_bits(bits, density, tmp_path):
    model = convolutions()
    record = coded(model, bits, density=density)
    path = tmp_path / "network.mlpackage"
    written = coreml.write(path, model, record)
    each = bits if density is None else 1 + density * min(bits, 16)
    assert each < written.bits_per_weight < each + 0.5
    assert written.bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert written.bytes < written.bits_per_weight / 8 * model.count_params() + 25_000
    kind = ("" if density is None else "sparse ") + ("float16" if bits == 32 else f"int{bits}")
    assert {written.weights[path] for path in record.weights} == {kind}
    assert written.weights["norm/gamma"] == "float16" and not written.left
    assert "codes equal" in written.checked and "not executed" in written.checked


def test_the_values_in_the_package_are_those_of_the_codes(tmp_path):
    """Read by coremltools' own unpacking, against the record alone."""
    model = convolutions()
    record = coded(model, 2, groups=2)
    coreml.write(tmp_path / "n.mlpackage", model, record)
    program = coreml._program(tmp_path / "n.mlpackage")
    unpacked = [
        np.asarray(one.materialized_val_inference(), np.float32)
        for one in mil_constants.constants(program)
        if one.op_type == "constexpr_lut_to_dense"
    ]
    expected = {path: known.dense() for path, known in record.weights.items()}
    bare, depth = expected["bare/kernel"], expected["depth/kernel"]
    for value in (bare, np.transpose(depth, (2, 3, 0, 1))):
        assert any(
            one.shape == value.shape and np.allclose(one, value, rtol=1e-3) for one in unpacked
        )
    norm = model.get_layer("norm")
    factor = norm.gamma / np.sqrt(norm.moving_variance + norm.epsilon)
    folded = np.transpose(expected["conv/kernel"] * factor, (3, 2, 0, 1))
    assert any(
        one.shape == folded.shape and np.allclose(one, folded, rtol=4e-3) for one in unpacked
    )


def test_recurrent_layers_are_unrolled(tmp_path):
    inputs = keras.Input((4, 16))
    x = layers.LSTM(24, return_sequences=True, name="lstm")(inputs)
    model = keras.Model(inputs, layers.GRU(16, name="gru")(x))
    record = coded(model, 4, chosen=lambda path: path.endswith("kernel"))
    written = coreml.write(tmp_path / "n.mlpackage", model, record)
    assert written.bits_per_weight < 8 and not written.left
    assert not model.get_layer("lstm").unroll, "the model itself is not changed"
    model = keras.Model(x := keras.Input((None, 16)), layers.LSTM(4, name="endless")(x))
    with pytest.raises(ValueError, match="endless.*known length"):
        coreml.write(tmp_path / "n.mlpackage", model, Record())


def test_variants_share_weights_in_one_package(tmp_path):
    inputs = keras.Input((256,))
    hidden = layers.Dense(256, name="hidden")
    first = keras.Model(inputs, hidden(inputs))
    x = keras.layers.ReLU(name="again")(hidden(inputs))
    record = coded(first, 4)
    alone = coreml.write(tmp_path / "alone.mlpackage", first, record)
    record.variants = {"rectified": keras.Model(inputs, x)}
    both = coreml.write(tmp_path / "both.mlpackage", first, record)
    assert both.bytes < 1.2 * alone.bytes and "main, rectified" in both.checked
    assert both.bits_per_weight == pytest.approx(alone.bits_per_weight, rel=0.05)


def test_what_cannot_be_in_codes_is_said(tmp_path):
    inputs = keras.Input((16,))
    model = keras.Model(inputs, layers.Dense(16, use_bias=False, name="dense")(inputs))
    coded(model, 2)
    scale = np.linspace(1, 2, 256, dtype=np.float32).reshape(16, 16)  # a scale for each weight
    codes = np.random.default_rng(0).integers(0, 4, (16, 16)).astype(np.uint8)
    known = Weight(2, codes, np.float32([[-1.5, -0.5, 0.5, 1.5]]), scale)
    model.weights[0].assign(known.dense())
    written = coreml.write(tmp_path / "n.mlpackage", model, Record(weights={"dense/kernel": known}))
    assert written.weights == {"dense/kernel": "float16"} and "dense/kernel" in written.left


def test_where_nothing_can_be_written(tmp_path):
    model = keras.Model(x := keras.Input((4,)), layers.Dense(3)(x))
    with pytest.raises(ValueError, match="named .mlpackage"):
        coreml.write(tmp_path / "n.tflite", model, Record())
    (tmp_path / "n.mlpackage").mkdir()
    with pytest.raises(ValueError, match="exists and is no"):
        coreml.write(tmp_path / "n.mlpackage", model, Record())
    with pytest.raises(ValueError, match="precision"):
        coreml.write(tmp_path / "m.mlpackage", model, Record(), precision="int8")


@pytest.mark.slow
def test_on_jax_the_backend_to_use_is_named(tmp_path, on_jax):
    assert "KERAS_BACKEND=tensorflow" in on_jax(refusal, tmp_path / "n.mlpackage")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_deployed(family, tmp_path):
    module = importlib.import_module(f"families.{family}")
    config = module.VARIANTS["tiny"]
    model = build.deployed(build.build(config), config)
    floats = coreml.write(tmp_path / "float.mlpackage", model, Record())
    record = coded(model, 2, least=256)
    written = coreml.write(tmp_path / "codes.mlpackage", model, record)
    coded_ones = sum(known.codes.size for known in record.weights.values())
    each = (2 * coded_ones + 16 * (model.count_params() - coded_ones)) / model.count_params()
    assert written.bits_per_weight < each + 1.2 and floats.bits_per_weight < 17
    # The file loses what was counted, but for the text and the blob headers of unpacking: each
    # weight has two blobs for one, of 64 bytes more, and an operation.
    counted = (floats.bits_per_weight - written.bits_per_weight) / 8 * model.count_params()
    assert counted - 400 * len(record.weights) < floats.bytes - written.bytes < counted + 4096
    inside = sum(record.weights[path].codes.size for path in record.weights.keys() - written.left)
    assert inside > 0.8 * coded_ones, json.dumps(written.left)

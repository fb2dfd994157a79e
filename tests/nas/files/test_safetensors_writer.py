"""Files of packed weights: sizes follow the bits, codes come back exactly, damage is told."""

import json

import keras
import numpy as np
import pytest
from coded import coded
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, safe_open, save_file

from compress.examples.data import Data
from compress.rewriting.record import Record, Weight
from families import mnasnet, mobile_vmoe
from nas.files.writers import safetensors
from nas.files.writers.safetensors import pack, unpack
from nas.files.writers.written_file import CannotWrite


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_codes_come_back_from_their_bits(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    content = pack(codes, bits)
    assert content.nbytes == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(content, bits, count), codes)


def test_codes_are_where_the_format_says():
    assert pack(np.uint8([1, 2, 3, 0]), 2).tolist() == [1 | 2 << 2 | 3 << 4]
    assert pack(np.uint8([5, 10]), 4).tolist() == [5 | 10 << 4]
    stream = sum(code << 3 * n for n, code in enumerate([1, 2, 3, 4, 5, 6, 7, 0]))
    assert pack(np.uint8([1, 2, 3, 4, 5, 6, 7, 0]), 3).tobytes() == stream.to_bytes(3, "little")
    with pytest.raises(ValueError, match="more than 2 bits"):
        pack(np.uint8([4]), 2)


def test_long_arrays_are_packed_in_parts():
    codes = np.random.default_rng(0).integers(0, 8, 2**20 + 13).astype(np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes, 3), 3, codes.size), codes)


def dense(width=256):
    inputs = keras.Input((width,))
    x = keras.layers.Dense(width, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(width)(x))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("density", [None, 0.3])
def test_sizes_follow_the_bits(bits, density, tmp_path):
    model = dense()
    record = coded(model, bits, density=density)
    written = safetensors.write(tmp_path / "n.safetensors", model, record)
    each = bits if density is None else 1 + density * bits
    # Beside the codes: a level table, and a scale and a bias of 32 bits for each of 256 columns.
    assert written.bits_per_weight == pytest.approx(each + 2 * 32 / 256, abs=0.25)
    assert written.bytes == (tmp_path / "n.safetensors").stat().st_size
    assert written.bytes < written.bits_per_weight / 8 * model.count_params() + 4096
    kinds = {written.weights[path] for path in record.weights}
    assert kinds == {("" if density is None else "sparse ") + f"int{bits}"}
    assert not written.left and "codes equal" in written.checked


def test_masks_alone(tmp_path):
    model = dense()
    record = coded(model, bits=32, density=0.1)
    written = safetensors.write(tmp_path / "n.safetensors", model, record)
    assert written.bits_per_weight == pytest.approx(1 + 0.1 * 32 + 32 / 256, abs=0.2)
    again = safetensors.load(tmp_path / "n.safetensors")
    for weight in model.weights:
        np.testing.assert_array_equal(again[weight.path], weight)


@pytest.mark.parametrize("family", [mnasnet, mobile_vmoe])
def test_a_network_comes_back_whole(family, tmp_path):
    config = family.VARIANTS["tiny"]
    model = family.build(config)
    record = coded(model, 2, groups=2)
    path = tmp_path / "network.safetensors"
    inputs = np.random.default_rng(0).random((4, *model.input_shape[1:]), np.float32)
    written = safetensors.write(path, model, record, Data(inputs), config=config)
    again = safetensors.network(path)
    np.testing.assert_allclose(again(inputs), model(inputs), atol=1e-6)
    found = safetensors.read(path).record
    assert len(found) > 0.8 * len(record.weights)
    for name, known in record.weights.items():
        if name in written.left:  # a token of few numbers
            continue
        np.testing.assert_array_equal(found[name].codes, known.codes)
        np.testing.assert_array_equal(found[name].dense(), known.dense())
    with safe_open(path, "numpy") as file:
        assert file.metadata()["family"] == family.__name__.removeprefix("families.")


def test_codes_that_take_more_than_floats_are_left(tmp_path):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(8, use_bias=False)(inputs))
    record = coded(model, 4)  # 16 levels and 8 scales for 16 weights
    written = safetensors.write(tmp_path / "n.safetensors", model, record)
    (path,) = record.weights
    assert written.weights == {path: "float32"} and path in written.left


def test_a_network_that_is_not_its_codes_is_an_error(tmp_path):
    model = dense(16)
    record = coded(model, 2)
    model.layers[1].kernel.assign_add(np.ones((16, 16)))
    with pytest.raises(CannotWrite, match="differs from the network"):
        safetensors.write(tmp_path / "n.safetensors", model, record)
    model.layers[1].bias.assign(np.full(16, np.nan))
    with pytest.raises(CannotWrite, match="not finite"):
        safetensors.write(tmp_path / "n.safetensors", model, Record())
    assert not list(tmp_path.iterdir()), "nothing is left of a file that is wrong"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "n.safetensors"
    model = dense(16)
    safetensors.write(path, model, coded(model, 2, density=0.5))
    return path


def changed(path, target, change):
    arrays = load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    change(arrays, metadata)
    save_file(arrays, target, metadata)
    return target


def told(metadata, **fields):
    weights = json.loads(metadata["weights"])
    for form in weights.values():
        form.update(fields)
    metadata["weights"] = json.dumps(weights)


DAMAGE = {
    "fewer codes": lambda a, m: a.update({n: x[:-1] for n, x in a.items() if n.endswith(":codes")}),
    "no mask": lambda a, m: [a.pop(n) for n in list(a) if n.endswith(":mask")],
    "no levels": lambda a, m: [a.pop(n) for n in list(a) if n.endswith(":levels")],
    "few levels": lambda a, m: a.update(
        {n: x[:, :2].copy() for n, x in a.items() if n.endswith(":levels")}
    ),
    "huge": lambda a, m: told(m, shape=[10**6, 10**6]),
    "other shape": lambda a, m: told(m, shape=[256, 1]),
    "bits": lambda a, m: told(m, bits=40),
    "json": lambda a, m: m.update(weights="{"),
    "no json": lambda a, m: m.pop("weights"),
    "layers": lambda a, m: m.update(model="????"),
    "foreign": lambda a, m: m.update(format="pt"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_in_a_line(name, packed, tmp_path):
    path = changed(packed, tmp_path / "bad.safetensors", DAMAGE[name])
    with pytest.raises(ValueError) as error:
        safetensors.network(path)
    assert "bad.safetensors" in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_truncated_files_are_told(packed, tmp_path):
    content, path = packed.read_bytes(), tmp_path / "cut.safetensors"
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut.safetensors"):
            safetensors.network(path)


def test_weights_of_one_group_per_table(tmp_path):
    """Levels that differ by groups along the axis in front."""
    model = dense(8)
    kernel = model.layers[1].kernel
    codes = np.random.default_rng(0).integers(0, 4, (8, 8)).astype(np.uint8)
    levels = np.sort(np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32), axis=1)
    known = Weight(2, codes, levels, np.ones((1, 1), np.float32), axis=0)
    kernel.assign(known.dense())
    path = tmp_path / "n.safetensors"
    safetensors.write(path, model, Record(weights={kernel.path: known}))
    for row in range(8):
        expected = levels[row // 2][codes[row]]
        np.testing.assert_array_equal(safetensors.load(path)[kernel.path][row], expected)

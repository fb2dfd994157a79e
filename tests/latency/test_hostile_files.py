"""`nas profile` on files that are damaged, foreign, huge or malicious: one line, exit code 2."""

import json
import os
import pickle
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from latency import cpu
from latency.networks import keras_file
from latency.tflite import convert, profiler
from latency.tflite import process as litert_process
from latency.tflite.graph import Graph
from nas.cli.command_line import main


def network(classes=3):
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, strides=2)(x)
    x = layers.Add()([x, layers.Conv2D(4, 1)(x)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


@pytest.fixture(scope="module")
def tflite() -> bytes:
    return convert.assemble(network())


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "sound.keras"
    network().save(path)
    return path.read_bytes()


def refused(path: Path, capsys, seconds: float = 10) -> str:
    """The one line that `nas profile` says about a file."""
    started = time.monotonic()
    assert main(["profile", str(path), "--runs", "3"]) == 2
    assert time.monotonic() - started < seconds
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("timing ")]
    assert len(lines) == 1 and lines[0].startswith("nas: ") and path.name in lines[0], err
    assert "Traceback" not in err and not out
    return lines[0]


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
FOREIGN = {
    "empty": (b"", "an empty file"),
    "text": (b"print('hello')\n" * 50, "print"),
    "png": (PNG, "a PNG picture"),
    "pickle": (pickle.dumps(list(range(100))), "a Python pickle"),
    "short": (b"\x1c\0\0\0TF", "starts with"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "zip archive"),
}


@pytest.mark.parametrize("suffix", [".tflite", ".keras"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_named_for_what_it_is(name, suffix, tmp_path, capsys):
    content, words = FOREIGN[name]
    path = tmp_path / f"network{suffix}"
    path.write_bytes(content)
    line = refused(path, capsys)
    assert words in line or (suffix, name) == (".keras", "zip"), line


@pytest.mark.parametrize("suffix", [".tflite", ".keras", ""])
def test_a_directory_is_refused(suffix, tmp_path, capsys):
    path = tmp_path / f"network{suffix}"
    path.mkdir()
    refused(path, capsys)


@pytest.mark.parametrize("start", [b"", b"\x1c\0\0\0TFL3", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".tflite", ".keras"])
def test_a_file_larger_than_memory_is_not_read(start, suffix, tmp_path, capsys):
    path = tmp_path / f"network{suffix}"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(max(20 * 2**30, int(2**20 * keras_file.free_mb())))  # sparse
    refused(path, capsys)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(tflite, tmp_path, capsys):
    path = tmp_path / "network.tflite"
    path.write_bytes(tflite)
    path.chmod(0)
    assert "ermission" in refused(path, capsys)


def test_a_truncated_file_is_refused(tflite, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("network.tflite")
    path.write_bytes(tflite[: len(tflite) // 3])
    line = refused(path, capsys)
    assert str(tmp_path) not in line, "it is named as the user names it"


def test_a_sound_file_beside_a_bad_one_is_timed(tflite, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cpu, "_NOMINAL_BLOCKS", 30)
    monkeypatch.setattr(profiler, "_PROCESSES", 1)
    good, bad = tmp_path / "good.tflite", tmp_path / "bad.tflite"
    good.write_bytes(tflite)
    bad.write_bytes(tflite[:200])
    assert main(["profile", str(bad), str(good), "--runs", "3", "--json"]) == 2
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["model"]).name for row in rows] == ["good.tflite"]


def test_a_tensor_larger_than_memory_is_refused(tmp_path, capsys):
    graph = Graph()
    shape = (1, 200_000, 200_000, 4)
    image = graph.tensor(shape, "image")
    added = graph.add("ADD", [image, image], shape, "twice", schema.AddOptionsT())
    path = tmp_path / "wide.tflite"
    path.write_bytes(graph.serialize([image], [added]))
    refused(path, capsys, seconds=30)


def slow_network(size=600, filters=128) -> bytes:
    """Hundreds of billions of multiplications, but a small file."""
    graph = Graph()
    shape = (1, size, size, filters)
    x = image = graph.tensor(shape, "image")
    for number in range(10):
        weights = graph.constant(np.zeros((filters, 3, 3, filters)), f"kernel{number}")
        bias = graph.constant(np.zeros(filters), f"bias{number}")
        options = schema.Conv2DOptionsT(strideH=1, strideW=1)
        x = graph.add("CONV_2D", [x, weights, bias], shape, f"layer{number}", options)
    return graph.serialize([image], [x])


def test_a_file_that_takes_too_long_is_given_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(litert_process, "_CHECK_S", 2)
    path = tmp_path / "slow.tflite"
    path.write_bytes(slow_network())
    assert "within 2 s" in refused(path, capsys)


def test_a_file_that_crashes_litert_is_refused(tmp_path, capsys):
    """LiteRT 2.3 divides by the number of parts, and dies of SIGSEGV: a sound flatbuffer."""
    graph = Graph()
    image = graph.tensor((1, 8, 8, 3), "image")
    axis = graph.constant(np.array(1), "axis", np.int32)
    options = schema.SplitOptionsT(numSplits=0)
    parts = graph.add("SPLIT", [axis, image], (1, 8, 8, 3), "parts", options)
    path = tmp_path / "split.tflite"
    path.write_bytes(graph.serialize([image], [parts]))
    assert "SIG" in refused(path, capsys)


def variants(content: bytes, count: int, seed: int):
    """Truncated files, and files with one to eight bits or whole bytes changed."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        changed = bytearray(content)
        if number % 5 == 0:
            changed = changed[: generator.integers(8, len(content))]
        else:
            for _ in range(generator.integers(1, 9)):
                position = generator.integers(8, len(changed))
                if number % 2:
                    changed[position] ^= 1 << generator.integers(8)
                else:
                    changed[position] = generator.integers(256)
        yield bytes(changed)


def fuzz(content: bytes, folder: Path, count: int, seed: int) -> dict[str, int]:
    """What became of variants: "crashed" and "refused" in the first process, and the rest."""
    found = {"crashed": 0, "refused": 0, "ran": 0}
    first = litert_process.Process(MALLOC_PERTURB_="165")
    with first, litert_process.Process() as second:  # the second stands for the caller's own
        for number, changed in enumerate(variants(content, count, seed)):
            path = folder / f"{number}.tflite"
            path.write_bytes(changed)
            try:
                first.run("check", 20, file=str(path), threads=1)
            except ValueError as error:
                found["crashed" if "crashes" in str(error) else "refused"] += 1
                assert "\n" not in str(error) and len(str(error)) < 2000
            else:
                second.run("check", 20, file=str(path), threads=1)
                found["ran"] += 1
            path.unlink()
    return found


def test_what_passes_the_trial_does_not_crash_later(tflite, tmp_path):
    found = fuzz(tflite, tmp_path, 200, seed=0)
    assert sum(found.values()) == 200 and found["refused"] > 10 and found["ran"] > 10, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_variants(seed, tflite, tmp_path):
    assert fuzz(tflite, tmp_path, 1000, seed)["ran"] > 50


@pytest.mark.slow
def test_a_large_network_is_timed(tmp_path, capsys):
    graph = Graph()
    image = graph.tensor((1, 8700), "image")
    weights = graph.constant(np.full((8700, 8700), 0.01), "kernel")
    bias = graph.constant(np.zeros(8700), "bias")
    options = schema.FullyConnectedOptionsT()
    out = graph.add("FULLY_CONNECTED", [image, weights, bias], (1, 8700), "dense", options)
    path = tmp_path / "large.tflite"
    path.write_bytes(graph.serialize([image], [out]))
    assert path.stat().st_size > 300e6
    assert main(["profile", str(path), "--runs", "3", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["memory_mb"] > 300


class Writing:
    """Pickled, it writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def changed_archive(content: bytes, path: Path, change) -> Path:
    """A .keras file whose parts (a dict) `change` changes."""
    source = path.with_suffix(".source")
    source.write_bytes(content)
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in parts.items():
            archive.writestr(name, value)
    return path


def lambda_model(path: Path, written: Path) -> Path:
    inputs = keras.Input((4,))
    target = str(written)
    code = f"lambda x: (__import__('os').mkdir({target!r}), x)[1]"
    outputs = layers.Lambda(eval(code), output_shape=(4,))(inputs)
    keras.Model(inputs, outputs).save(path)
    # It is poison indeed: where code is let in, it runs.
    keras.saving.load_model(path, safe_mode=False)(np.zeros((1, 4)))
    written.rmdir()
    return path


def config_with(parts, layer: dict) -> None:
    config = json.loads(parts["config.json"])
    config["config"]["layers"][1] |= layer
    parts["config.json"] = json.dumps(config).encode()


def malicious(archive: bytes, folder: Path, written: Path) -> dict[str, Path]:
    """Files that would make the directory `written` if anything in them was run."""
    function = {
        "module": "os",
        "class_name": "function",
        "config": "mkdir",
        "registered_name": "mkdir",
    }

    def poisoned(parts):
        parts["model.weights.h5"] = pickle.dumps(Writing(written))
        pickle.loads(parts["model.weights.h5"])
        written.rmdir()  # poison, too

    def poisoned_npz(parts):
        del parts["model.weights.h5"]
        stream = folder / "weights.npz"
        np.savez(stream, array=np.array([Writing(written)], object))
        parts["model.weights.npz"] = stream.read_bytes()

    def system(parts):
        config_with(
            parts, {"module": "os", "class_name": "mkdir", "config": {"path": str(written)}}
        )

    def activation(parts):
        config = json.loads(parts["config.json"])
        config["config"]["layers"][1]["config"]["activation"] = function
        parts["config.json"] = json.dumps(config).encode()

    changes = {
        "pickle for weights": poisoned,
        "pickle in npz": poisoned_npz,
        "layer from os": system,
        "activation from os": activation,
    }
    files = {
        name: changed_archive(archive, folder / f"{name}.keras", change)
        for name, change in changes.items()
    }
    files["lambda"] = lambda_model(folder / "lambda.keras", written)
    return files


def test_nothing_in_a_keras_file_is_run(archive, tmp_path):
    """Keras is imported once for all of them: 5 to 15 s."""
    written = tmp_path / "written"
    files = malicious(archive, tmp_path, written)
    sound = tmp_path / "sound.keras"
    sound.write_bytes(archive)
    with litert_process.Process() as process:
        into = tmp_path / "out.tflite"
        process.run("convert", 120, file=str(sound), into=str(into), modules=[])
        assert into.read_bytes()[4:8] == b"TFL3"
        for name, path in files.items():
            with pytest.raises(ValueError) as error:
                process.run("convert", 60, file=str(path), into=str(into), modules=[])
            assert "crashes" not in str(error.value), name
            assert not written.exists(), name


@pytest.mark.slow
def test_malicious_keras_files_get_one_line(archive, tmp_path, capsys):
    written = tmp_path / "written"
    for name, path in malicious(archive, tmp_path, written).items():
        line = refused(path, capsys, seconds=90)
        assert not written.exists() and len(line) < 600, name
        assert name != "lambda" or "Lambda" in line


def test_a_bomb_is_not_unpacked(archive, tmp_path, capsys, monkeypatch):
    def swell(parts):
        parts["assets/zeros"] = bytes(200 * 2**20)

    path = changed_archive(archive, tmp_path / "bomb.keras", swell)
    assert path.stat().st_size < 2e6
    monkeypatch.setattr(keras_file, "free_mb", lambda: 300.0)
    assert "unpacks to" in refused(path, capsys)


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("config.json", None, "without config.json"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"[" * 100_000, "config.json cannot be read"),
        ("config.json", b"\xff\xfe", "config.json cannot be read"),
    ],
)
def test_a_bad_architecture_is_refused(part, content, words, archive, tmp_path, capsys):
    def change(parts):
        del parts[part]
        if content is not None:
            parts[part] = content

    assert words in refused(changed_archive(archive, tmp_path / "bad.keras", change), capsys)


def test_a_damaged_archive_is_refused(archive, tmp_path, capsys):
    path = tmp_path / "damaged.keras"
    path.write_bytes(archive[: len(archive) // 2])
    refused(path, capsys)
    changed = bytearray(archive)
    changed[len(changed) // 2] ^= 1  # in the weights
    path.write_bytes(changed)
    assert "damaged" in refused(path, capsys)


def test_variants_of_an_archive_are_refused_or_whole(archive, tmp_path):
    path = tmp_path / "changed.keras"
    whole = 0
    for changed in variants(archive, 300, seed=4):
        path.write_bytes(changed)
        try:
            keras_file.check(path)
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            whole += 1
    assert whole < 150, "most changes break a checksum"


@pytest.mark.slow
def test_layers_larger_than_memory_are_refused(archive, tmp_path, capsys):
    def widen(parts):
        config = json.loads(parts["config.json"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Dense":
                layer["config"]["units"] = 10**11
        parts["config.json"] = json.dumps(config).encode()

    path = changed_archive(archive, tmp_path / "wide.keras", widen)
    refused(path, capsys, seconds=180)

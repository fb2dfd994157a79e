"""What is handed over: class names and preprocessing in the files, use.py beside them."""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import wave
import zipfile
from typing import Any

import keras
import numpy as np
import pytest
from flatbuffers import encode, number_types, packer, table
from PIL import Image

import nas
from compress.ptq import PTQ
from latency.tflite import convert
from nas.data import task_of
from nas.files.hand_over import attach, model_card, use
from nas.files.writers.tflite import metadata
from nas.files.writers.tflite.editable_file import File
from nas.tasks import image_folder, npz, text
from nas.tasks.inputs.preprocessing import Preprocessing

RANDOM = np.random.default_rng(0)
PTQ_FLOAT = PTQ(bits=8, activations=None)
ALONE = """
import json, runpy, sys
for name in ("nas", "latency", "keras", "tensorflow", "jax"):
    sys.modules[name] = None  # so that importing it fails
sys.argv = ["use.py", *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _use(folder: pathlib.Path, *words: str) -> str:
    """What use.py in a folder prints, with LiteRT and NumPy alone."""
    words = ("-c", ALONE.replace('"use.py"', repr(str(folder / "use.py"))), *words)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _same(folder: pathlib.Path, example: pathlib.Path, model: Any, inputs: np.ndarray) -> None:
    (found,) = json.loads(_use(folder, str(example), "--json")).values()
    np.testing.assert_allclose(found, model(inputs), rtol=2e-3, atol=2e-3)


def _photos(root: pathlib.Path) -> pathlib.Path:
    for shade, name in ((60, "cat"), (200, "dög"), (130, "鳥")):
        (root / name).mkdir(parents=True)
        for number in range(8):
            pixels = RANDOM.integers(shade - 50, shade + 50, (11, 17, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_use_py_runs_one_picture_as_keras_does(tmp_path):
    """Scaled, normalized, its aspect kept, told by the names of classes; no command needs nas."""
    folder = _photos(tmp_path / "photos")
    options = {"mean": "0.485/0.456/0.406", "std": "0.2/0.3/0.4", "aspect": "keep"}
    task = image_folder.load(str(folder), size=16, **options)
    keras.utils.set_random_seed(0)
    layers = [keras.Input((16, 16, 3)), keras.layers.Conv2D(8, 3, activation="relu")]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    nas.train(model, task, epochs=30)
    out = tmp_path / "out" / "a.tflite"
    small = nas.compress(model, [PTQ_FLOAT], task, out=out, by_layer=False)
    photo = folder / "dög" / "3.png"
    pixels = use.picture(photo, (16, 16, 3), "keep").astype("f")
    seen = (pixels / 255 - [0.485, 0.456, 0.406]) / np.array([0.2, 0.3, 0.4])
    _same(out.parent, photo, small.model, seen[None].astype("f"))
    best = small.model(seen[None].astype("f")).numpy().argmax()
    assert task.labels[best] in _use(out.parent, str(photo)).splitlines()[0]
    (file,) = small.record["files"]
    assert file["after"]["bytes"] == out.stat().st_size
    assert 0 < file["after"]["card_bytes"] < 2500
    assert small.record["card"]["labels"] == ["cat", "dög", "鳥"]
    assert json.loads(out.with_suffix(".json").read_text())["card"] == small.record["card"]


def test_use_py_runs_a_sound_numbers_and_an_array(tmp_path):
    sounds = RANDOM.integers(-9000, 9000, (40, 64), dtype=np.int16)
    np.savez(tmp_path / "sounds.npz", x=sounds, y=np.arange(40) % 2, class_names=["no", "yes"])
    task = npz.load(f"{tmp_path}/sounds.npz", factor=1 / 32768, sample_rate=8000)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(2, activation="softmax")])
    out = tmp_path / "sounds" / "a.tflite"
    small = nas.compress(model, [PTQ_FLOAT], task, out=out, by_layer=False)
    with wave.open(str(tmp_path / "one.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(sounds[0].tobytes())
    seen = sounds[:1].astype("f") / 32768
    _same(out.parent, tmp_path / "one.wav", small.model, seen)
    assert "'yes'" in _use(out.parent, str(tmp_path / "one.wav"))

    rows = RANDOM.random((40, 3), "f")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    out = tmp_path / "rows" / "a.tflite"
    small = nas.compress(model, [PTQ_FLOAT], (rows, rows.sum(1)), out=out, by_layer=False)
    np.save(tmp_path / "row.npy", rows[0])
    _same(out.parent, tmp_path / "row.npy", small.model, rows[:1])
    _same(out.parent, pathlib.Path(",".join(map(str, rows[0]))), small.model, rows[:1])


def test_use_py_reads_a_text_character_by_character(tmp_path):
    """A step of one token with its cache, as `nas generate --export` writes it."""
    from families import decoder
    from nas.text.language_models import write_step
    from nas.text.tokenizer import Characters

    config = dataclasses.replace(decoder.VARIANTS["tiny"], vocabulary=5, length=8)
    model = decoder.build(config)
    write_step(tmp_path / "step.tflite", model, config, 8, Characters("abcde"))
    (found,) = json.loads(_use(tmp_path, "badce", "--json")).values()
    tokens = np.array([[1, 0, 3, 2, 4, 0, 0, 0]])
    expected = keras.ops.convert_to_numpy(model(tokens))[0, :5]
    np.testing.assert_allclose(np.reshape(found, expected.shape), expected, atol=1e-4)
    assert "'a'" in _use(tmp_path, "badce")


def test_what_use_py_cannot_run_is_said_in_one_line(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    nas.compress(model, [PTQ_FLOAT], out=tmp_path / "a.tflite", by_layer=False)
    (tmp_path / "x.png").write_bytes(b"no")
    for example, words in (("1,2", "expected (3,)"), ("none", "nor numbers"), ("x.png", "array")):
        place = str(tmp_path / example) if example == "x.png" else example
        done = subprocess.run(
            [sys.executable, str(tmp_path / "use.py"), place], capture_output=True, text=True
        )
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode and last.startswith("use.py: ") and words in last, done.stderr


class Table:
    """A table of a flatbuffer, read by the numbers of metadata_schema.fbs only."""

    def __init__(self, data: bytes, place: int | None = None):
        if place is None:
            assert data[4:8] == b"M001"
            place = encode.Get(packer.uoffset, data, 0)
        self.table = table.Table(data, place)

    def _at(self, field: int) -> int:
        offset = self.table.Offset(4 + 2 * field)
        return self.table.Pos + offset if offset else 0

    def text(self, field: int) -> str:
        return self.table.String(self._at(field)).decode() if self._at(field) else ""

    def number(self, field: int, kind: str) -> int:
        place = self._at(field)
        return self.table.Get(getattr(number_types, f"{kind}Flags"), place) if place else 0

    def child(self, field: int) -> "Table":
        return Table(self.table.Bytes, self.table.Indirect(self._at(field)))

    def children(self, field: int) -> list["Table"]:
        if not self._at(field):
            return []
        offset = self._at(field) - self.table.Pos
        first, count = self.table.Vector(offset), self.table.VectorLen(offset)
        return [Table(self.table.Bytes, self.table.Indirect(first + 4 * n)) for n in range(count)]

    def floats(self, field: int) -> list[float]:
        offset = self._at(field) - self.table.Pos
        flags = number_types.Float32Flags
        return self.table.GetVectorAsNumpy(flags, offset).tolist()


def _picture_file(shape: tuple[int, ...] = (24, 32, 3)) -> tuple[Any, bytes, dict[str, Any]]:
    layers = [keras.Input(shape), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax")], name="cats")
    seen = Preprocessing("image", 255.0, (0.5, 0.25, 0.0), (0.5,))
    labels = ("cat", "dög", "鳥")
    card = model_card.Origin("cats", "a.keras", labels, seen, "classes", "nas x").card(model)
    return model, convert.bytes_of(model), card


def test_the_standard_metadata_can_be_read_by_its_schema():
    """Names, size, color space, normalization of raw pixels, labels: what MediaPipe reads.

    Read by mediapipe 1.2.3's ImageClassifier, too, on the file of one mean and one std.
    """
    _, plain, card = _picture_file()
    tflite = metadata.with_metadata(plain, card)
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
    (entry,) = (one for one in model.metadata if one.name == b"TFLITE_METADATA")
    found = Table(bytes(model.buffers[entry.buffer].data))
    assert found.text(0) == "cats" and "command: nas x" in found.text(1)
    (graph,) = found.children(3)
    (image,), (scores,) = graph.children(2), graph.children(3)
    assert image.child(3).number(0, "Uint8") == 2  # ImageProperties
    properties = image.child(3).child(1)
    size = properties.child(1)
    assert properties.number(0, "Int8") == 1  # RGB
    assert (size.number(0, "Uint32"), size.number(1, "Uint32")) == (32, 24)  # width, height
    normalization = image.children(4)[0].child(1)
    assert normalization.floats(0) == [127.5, 63.75, 0.0] and normalization.floats(1) == [127.5]
    (labels,) = scores.children(6)
    assert labels.text(0) == "labels.txt" and labels.number(2, "Int8") == 2  # of an axis
    with zipfile.ZipFile(io.BytesIO(tflite)) as archive:
        assert archive.read("labels.txt").decode().split("\n") == ["cat", "dög", "鳥"]
        kinds = {one.compress_type for one in archive.infolist()}
    assert kinds == {zipfile.ZIP_STORED}  # MediaPipe refuses others
    assert len(tflite) - len(plain) < 1600


def test_metadata_changes_nothing_that_runs_and_is_the_same_each_time(tmp_path):
    model, plain, card = _picture_file()
    tflite = metadata.with_metadata(plain, card)
    assert metadata.with_metadata(plain, card) == tflite == metadata.with_metadata(tflite, card)
    x = RANDOM.random((2, 24, 32, 3), "f")
    np.testing.assert_array_equal(convert.run(tflite, x), convert.run(plain, x))
    path = tmp_path / "a.tflite"
    path.write_bytes(tflite)
    assert nas.open(path).file == path
    own = metadata.with_metadata(plain, card | {"labels": ["mine", "yours", "theirs"]})
    again = metadata.with_metadata(own, card)  # a user's own labels stay
    path.write_bytes(again)
    assert use.read_card(path)["labels"] == ["mine", "yours", "theirs"]


def test_a_file_without_signature_goes_by_its_tensors(tmp_path):
    """As packages ship them: nothing but the names of tensors, and another than the network's."""
    model, plain, card = _picture_file()
    file = File(plain)
    file.model.signatureDefs, graph = None, file.graphs[0]
    graph.tensors[graph.inputs[0]].name, graph.tensors[graph.outputs[0]].name = "in:0", "out:0"
    path = tmp_path / "a.tflite"
    path.write_bytes(metadata.with_metadata(file.pack(), card))
    pixels = RANDOM.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = (pixels.astype("f") / 255 - [0.5, 0.25, 0.0]) / 0.5
    found = use.run(path, str(tmp_path / "a.png"))
    np.testing.assert_allclose(found["out:0"], model(seen[None]), rtol=1e-4, atol=1e-5)


def test_a_keras_file_keeps_its_card_and_hands_it_on(tmp_path):
    """Class names and scale of a training are in a file compressed without any data."""
    from families import mnasnet

    folder = _photos(tmp_path / "photos")
    task = image_folder.load(str(folder), size=32, aspect="crop")
    done = nas.train(mnasnet.VARIANTS["tiny"], task, epochs=1, out=tmp_path / "a.keras")
    assert done.record["card"]["labels"] == ["cat", "dög", "鳥"]
    assert {"use.py", "a.keras"} <= {pathlib.Path(file).name for file in done.files}
    assert keras.models.load_model(tmp_path / "a.keras").count_params() == done.record["params"]
    done.write(tmp_path / "tflite" / "a.tflite")  # with its own use.py
    assert use.read_card(tmp_path / "tflite" / "a.tflite")["labels"] == ["cat", "dög", "鳥"]
    photo = folder / "cat" / "0.png"
    pixels = use.picture(photo, (32, 32, 3), "crop")[None].astype("f") / 255
    _same(tmp_path / "tflite", photo, done.model, pixels)
    nas.compress(tmp_path / "a.keras", [PTQ_FLOAT], out=tmp_path / "b.tflite", by_layer=False)
    card = use.read_card(tmp_path / "b.tflite")
    assert card["labels"] == ["cat", "dög", "鳥"] and "a.keras" in card["made"]["of"]
    assert (card["inputs"][0]["kind"], card["inputs"][0]["aspect"]) == ("image", "crop")
    assert str(tmp_path) not in json.dumps(card)  # nothing of this machine


def test_preprocessing_is_that_of_the_network_that_was_trained(tmp_path):
    """A network that rescales pixels itself takes them raw, and its file says so."""
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    x = RANDOM.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    out = tmp_path / "a.tflite"
    nas.compress(model, [PTQ_FLOAT], task_of((x, np.arange(40) % 2)), out=out, by_layer=False)
    entry = use.read_card(out)["inputs"][0]
    assert (entry["kind"], entry["scale"], entry["mean"]) == ("image", 1.0, [0.0])


def test_a_file_named_use_py_of_the_users_stays(tmp_path):
    (tmp_path / "use.py").write_text("mine = 1\n")
    assert attach.write_script(tmp_path).name == "use_network.py"
    assert (tmp_path / "use.py").read_text() == "mine = 1\n"


def test_core_ml_packages_say_it_too(tmp_path):
    """Description, version, class names and the card, as coremltools reads them."""
    pytest.importorskip("coremltools")
    from coremltools.proto import Model_pb2

    from nas.files.writers.mlpackage.metadata import PROGRAM, add_metadata

    file = tmp_path / "a.mlpackage" / PROGRAM
    file.parent.mkdir(parents=True)
    program = Model_pb2.Model(specificationVersion=8)
    file.write_bytes(program.SerializeToString())
    _, _, card = _picture_file()
    add_metadata(tmp_path / "a.mlpackage", card)
    found = Model_pb2.Model.FromString(file.read_bytes()).description.metadata
    assert found.userDefined["classes"].split("\n") == ["cat", "dög", "鳥"]
    assert json.loads(found.userDefined["model_card"])["inputs"][0]["scale"] == 255
    assert found.shortDescription == "cats, made by nas of a.keras"


def test_the_characters_of_a_text_are_its_vocabulary(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be " * 40)
    task = text.load(f"{tmp_path}/a.txt", length=8)
    assert "".join(task.labels) == " benort" and task.preprocessing.tokenizer == "characters"

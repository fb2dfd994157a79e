"""Files that name layers of our own are read by every process that reads files."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import pytest

from families import decoder
from latency.jax_runtime import process
from latency.tflite import convert
from nas.cli.command_line import main

CONFIG = dataclasses.replace(
    decoder.VARIANTS["tiny"], vocabulary=11, length=4, dim=16, head_width=8, layers=1, hidden=24
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "decoder.keras"
    decoder.build(decoder.deploy(CONFIG)).save(path)
    return path


def test_it_becomes_a_litert_file(file):
    """In a process that never imported Keras, as `nas profile` is; the worker finds the layers."""
    code = (
        "import pathlib, sys; from nas import backend; from latency.tflite import convert;"
        "tflite = convert.file_of(pathlib.Path(sys.argv[1]));"
        "assert not {'keras', 'families.layers'} & set(sys.modules);"
        "pathlib.Path(sys.argv[1]).with_suffix('.tflite').write_bytes(tflite)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
    session = convert.Session(file.with_suffix(".tflite"))
    assert session.inputs.keys() == decoder.build(decoder.deploy(CONFIG)).input.keys()


def test_jax_reads_it(file):
    pytest.importorskip("jax")
    request = {"operation": "devices", "platform": "cpu"}  # after it has loaded the file
    answer = process.ask(request, file, environment={"JAX_PLATFORMS": "cpu"}, limit_s=120)
    assert answer["devices"]


def test_a_layer_that_nobody_has_is_named(file, tmp_path, capsys):
    path = tmp_path / "foreign.keras"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content.replace(b"nas>Attention", b"nas>Nonesuch"))
                layers = config["config"]["layers"]
                (layer,) = (one for one in layers if one["class_name"] == "Attention")
                layer |= {"class_name": "Nonesuch", "module": "families.layers.attention"}
                content = json.dumps(config).encode()
            target.writestr(name, content)
    assert main(["profile", str(path), "--runs", "3"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nas: ")]
    assert len(told) == 1 and "Nonesuch" in told[0] and "Traceback" not in told[0], told[0]

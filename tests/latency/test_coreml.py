"""Core ML where there is no Mac: real conversions, real devicectl listings, and what it refuses."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras import layers

from latency import iphone
from latency.apple import coreml
from latency.iphone import IPhone
from latency.macos import MacOS
from latency.target import Kind, TargetUnavailable
from nas import registry

needs_coremltools = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None, reason="coremltools is not installed"
)
elsewhere = pytest.mark.skipif(sys.platform == "darwin", reason="says what lacks off a Mac")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A model and its package of batch 2, converted once."""
    folder = tmp_path_factory.mktemp("coreml")
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = keras.ops.gelu(x, approximate=False)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    words = keras.Input((5,), name="words", dtype="int32")
    y = layers.Embedding(11, 8, name="table")(words)
    x = layers.Add(name="sum")([x, layers.GlobalAveragePooling1D(name="mean")(y)])
    model = keras.Model([image, words], [layers.Dense(4, name="logits")(x), x], name="both")
    return model, coreml.convert(model, 2, "float16", str(folder / "both.mlpackage"))


@needs_coremltools
@pytest.mark.slow
def test_the_package_holds_the_network(kept):
    import coremltools as ct
    from coremltools.optimize.coreml import get_weights_metadata

    model, package = kept
    assert package.name == "both.mlpackage"
    program = ct.models.MLModel(str(package), skip_model_load=True)
    description = program.get_spec().description
    types = {
        one.name: (
            tuple(one.type.multiArrayType.shape),
            one.type.multiArrayType.ArrayDataType.Name(one.type.multiArrayType.dataType),
        )
        for one in description.input
    }
    assert types == {"image": ((2, 12, 12, 3), "FLOAT16"), "words": ((2, 5), "INT32")}
    assert [tuple(one.type.multiArrayType.shape) for one in description.output] == [(2, 4), (2, 8)]
    blocks = program.get_spec().mlProgram.functions["main"].block_specializations.values()
    kinds = [one.type for block in blocks for one in block.operations if one.type != "const"]
    assert kinds.count("conv") == 2
    assert kinds.count("gather") == 1
    assert "erf" in kinds or "gelu" in kinds  # of the Erfc that coremltools does not know
    stored = {
        tuple(value.val.shape): value.val
        for value in get_weights_metadata(program, weight_threshold=1).values()
        if value.val is not None
    }
    for name, axes in (("stem", (3, 2, 0, 1)), ("depthwise", (2, 3, 0, 1))):  # to Core ML's order
        kernel = np.asarray(model.get_layer(name).kernel).transpose(axes)
        assert stored[kernel.shape].dtype == np.float16
        np.testing.assert_array_equal(stored[kernel.shape], kernel.astype(np.float16))


@needs_coremltools
@elsewhere
@pytest.mark.slow
def test_off_a_mac_the_file_is_kept_and_what_lacks_is_said(tmp_path):
    path = tmp_path / "model.keras"
    inputs = keras.Input((4,))
    keras.Model(inputs, layers.Dense(2)(inputs)).save(path)
    with pytest.raises(TargetUnavailable, match=r"macOS only \(this is Linux\).* lies at ") as told:
        MacOS().profile(path)
    package = str(told.value).split(" lies at ")[1]
    assert os.path.getsize(f"{package}/Data/com.apple.CoreML/model.mlmodel") > 0
    converted = os.stat(package).st_mtime_ns
    with pytest.raises(TargetUnavailable, match="Xcode"):
        IPhone().profile(path)
    assert os.stat(package).st_mtime_ns == converted  # of the cache, not anew
    with pytest.raises(TargetUnavailable, match="it cannot load .*: there is no Core ML here"):
        coreml.ask(
            {"operation": "time", "package": package, "units": "ALL", "warmup": 1, "runs": 1}, 120
        )


@needs_coremltools
@pytest.mark.slow
def test_what_has_no_core_ml_form_is_refused(tmp_path):
    inputs = keras.Input((8, 3))
    recurrent = keras.Model(inputs, layers.LSTM(4)(inputs), name="recurrent")
    with pytest.raises(ValueError, match="recurrent: Core ML has no form"):
        coreml.convert(recurrent, 1, "float16", str(tmp_path))
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ValueError, match="broken.keras: a damaged .keras file"):
        coreml.convert(broken, 1, "float16", str(tmp_path))
    assert not list(tmp_path.glob("*.mlpackage"))


def test_bad_input_is_refused_before_anything_is_started(tmp_path):
    for options, message in (
        ({"units": "npu"}, "units='npu': expected one of all, cpu, cpu_gpu, cpu_ane"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"limit_s": 0}, "limit_s=0"),
    ):
        with pytest.raises(ValueError, match=message):
            MacOS(**options)
        with pytest.raises(ValueError, match=message):
            IPhone(**options)
    with pytest.raises(ValueError, match="team"):
        IPhone(team="A; rm -rf ~")
    with pytest.raises(ValueError, match="bundle="):
        IPhone(provisioning="0-1")
    file = tmp_path / "model.tflite"
    file.write_bytes(b"1")
    mine = tmp_path / "mine.mlpackage"
    mine.mkdir()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    if importlib.util.find_spec("coremltools") is not None:
        with pytest.raises(ValueError, match="Core ML targets need a .keras file"):
            MacOS().profile(file)
        with pytest.raises(ValueError, match="exists and is no .mlpackage"):
            MacOS(save=str(mine)).profile(model)


def test_without_coremltools_it_says_how_to_get_it():
    code = """
import sys
sys.modules["coremltools"] = None
from latency import iphone, macos
from latency.apple import coreml
from latency.target import TargetUnavailable
assert macos.MacOS.discover()[0].missing
try:
    coreml.convert("model.keras", 1, "float16", None)
except TargetUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'nas[coreml]'" in done.stdout, done.stderr


def test_a_worker_that_takes_too_long_is_ended():
    started = time.monotonic()
    with pytest.raises(TargetUnavailable, match="convert did not end within 0.05 s"):
        coreml.ask({"operation": "convert"}, 0.05)
    assert time.monotonic() - started < 5


def test_a_time_is_shared_out_by_the_plan_and_says_that_it_is_an_estimate():
    answer = {
        "samples_ms": [2.0, 2.0, 2.0],
        "clock": "Core ML's prediction call",
        "plan": [
            {"name": "a", "type": "conv", "on": "ane", "cost": 0.6},
            {"name": "b", "type": "add", "on": "cpu", "cost": 0.2},
            {"name": "c", "type": "const", "on": None, "cost": None},
        ],
    }
    timing = coreml.timed(answer, {"device": "Mac"})
    assert timing.kind is Kind.MEASURED and timing.per_op_kind is Kind.PREDICTED
    assert [(row["name"], row["on"]) for row in timing.per_op] == [("a", "ane"), ("b", "cpu")]
    assert [row["ms"] for row in timing.per_op] == pytest.approx([1.5, 0.5])
    assert timing.conditions["operations_on"] == {"ane": 1, "cpu": 1}
    without = coreml.timed(answer | {"plan": None}, {})
    assert without.per_op is None and without.per_op_kind is None


def entry(name, udid, state="connected", kind="iPhone", **properties):
    return {
        "identifier": f"id-{udid}",
        "hardwareProperties": {
            "deviceType": kind,
            "udid": udid,
            "marketingName": "iPhone 15 Pro",
            "productType": "iPhone16,1",
        },
        "deviceProperties": {
            "name": name,
            "osVersionNumber": "17.5",
            "osBuildUpdate": "21F79",
            "developerModeStatus": "enabled",
            **properties,
        },
        "connectionProperties": {"tunnelState": state, "pairingState": "paired"},
    }


@pytest.fixture
def xcode(tmp_path, monkeypatch):
    """Puts xcrun and devicectl on PATH that list the given devices, or do as the script says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(*devices, script=None):
        listing = tmp_path / "listing.json"
        listing.write_text(json.dumps({"result": {"devices": devices}}))
        wanted = 'while [ "$1" != -j ]; do shift; done'
        lines = script or f'{wanted}\ncp {listing} "$2"'
        for name in ("xcrun", "devicectl"):
            (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
            (folder / name).chmod(0o755)

    return install


def test_iphones_are_listed_with_what_hinders_them(xcode):
    xcode(
        entry("Ann's iPhone", "00008110-01"),
        entry("Asleep", "00008110-02", state="disconnected"),
        entry("Locked", "00008110-03", developerModeStatus="disabled"),
        entry("Watch", "00008110-04", kind="appleWatch"),
    )
    found = IPhone.discover()
    assert [one.spec for one in found] == [f"iphone:00008110-0{number}" for number in (1, 2, 3)]
    assert all(registry.target(one.spec).phone == one.spec[7:] for one in found)
    assert found[0].device == "iPhone 15 Pro (Ann's iPhone), iOS 17.5"
    if importlib.util.find_spec("coremltools") is not None:
        assert found[0].missing is None
    assert "disconnected" in found[1].missing and "Developer Mode" in found[2].missing
    assert IPhone().device == IPhone("Ann's iPhone").device == IPhone("00008110-01").device
    with pytest.raises(TargetUnavailable, match="Asleep.*attach it by cable"):
        _ = IPhone("Asleep").device
    with pytest.raises(TargetUnavailable, match="no iPhone Bob is known.*Ann's iPhone"):
        _ = IPhone("Bob").device


def test_two_iphones_must_be_told_apart_and_none_is_said(xcode):
    xcode(entry("One", "1-1"), entry("Two", "1-2"))
    with pytest.raises(ValueError, match=r"say which, iphone:1-1 \(One\), iphone:1-2 \(Two\)"):
        _ = IPhone().device
    xcode()
    assert "attach one" in IPhone.discover()[0].missing


def test_an_xcode_that_fails_or_hangs_is_said(xcode, monkeypatch):
    xcode(script="echo 'error: unable to find utility \"devicectl\"' >&2; exit 72")
    assert "unable to find utility" in IPhone.discover()[0].missing
    xcode(script='while [ "$1" != -j ]; do shift; done; echo "{}" > "$2"')
    assert "not known" in IPhone.discover()[0].missing
    monkeypatch.setattr(iphone, "_LIST_S", 0.3)
    xcode(script="exec sleep 20")
    started = time.monotonic()
    assert "did not list" in IPhone.discover()[0].missing
    assert time.monotonic() - started < 5


@elsewhere
def test_without_xcode_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "Xcode" in IPhone.discover()[0].missing
    assert "macOS only" in MacOS.discover()[0].missing


@needs_coremltools
@elsewhere
@pytest.mark.slow
def test_a_listed_phone_is_handed_to_coremltools(xcode, tmp_path):
    """As far as it goes without Xcode: coremltools reads the same list and asks for xcodebuild."""
    xcode(entry("Ann's iPhone", "00008110-01"))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    target = IPhone("Ann's iPhone", save=str(tmp_path))
    with pytest.raises(TargetUnavailable, match="'xcodebuild' command is required.* lies at "):
        target.profile(model)
    assert list(tmp_path.glob("*-float16-batch1-*.mlpackage"))

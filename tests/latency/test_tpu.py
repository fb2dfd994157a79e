"""TPU estimates: the real TPU compiler where libtpu is installed, and reading what it says."""

import importlib.util
import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from latency import tpu
from latency.jax_runtime import process
from latency.target import DoesNotFit, Kind, TargetUnavailable
from latency.tpu import TPU
from latency.tpu_compiler import calibration, chips, compile, schedule

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None or importlib.util.find_spec("jax") is None,
    reason="libtpu is not installed: pip install 'nas[tpu]'",
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A .keras file of three convolutions and a classifier."""
    import keras

    inputs = keras.Input((16, 16, 8), name="image")
    x = keras.layers.Conv2D(16, 3, padding="same", name="full")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = keras.layers.Conv2D(8, 1, name="project")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    path = tmp_path_factory.mktemp("network") / "small.keras"
    keras.Model(inputs, keras.layers.Dense(10, name="logits")(x)).save(path)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The smallest network that is one: it compiles fastest."""
    import keras

    inputs = keras.Input((128,))
    path = tmp_path_factory.mktemp("dense") / "dense.keras"
    keras.Model(inputs, keras.layers.Dense(128, name="only")(inputs)).save(path)
    return path


@pytest.fixture
def no_process(monkeypatch):
    """From now on starting a JAX process is an error."""

    def start():
        def fail(*_, **__):
            raise AssertionError("a JAX process was started")

        monkeypatch.setattr(process, "ask", fail)

    return start


@needs_libtpu
def test_a_compiled_estimate_and_its_cache(network, no_process, tmp_path, monkeypatch):
    """Layers by name, memory, conditions; the same again without any process, and compiled anew."""
    first = TPU("v5e").profile(network, batch_size=8, details=True)
    assert first.kind is Kind.COMPILED and not first.measured and first.per_op_kind is Kind.COMPILED
    rows = {row["name"]: row for row in first.per_op}
    assert {"full", "depthwise", "project", "logits"} & set(rows) >= {"depthwise", "logits"}
    assert rows["depthwise"]["type"] == "DepthwiseConv2D"
    assert all(row["ms"] > 0 for row in rows.values())
    assert sum(row["ms"] for row in rows.values()) == pytest.approx(first.median_ms, rel=0.2)
    told = first.conditions
    assert told["by_schedule"] > 0 and told["by_traffic"] == 0 and told["calibration"] == "none"
    assert told["runtime"].startswith("libtpu ") and told["chip"] == "v5e"
    assert 0.001 < first.median_ms < 0.1
    inputs_mb = 8 * 16 * 16 * 8 * 2 / 1e6
    assert inputs_mb < first.memory_mb < 10

    records = list((tmp_path / "cache" / "tpu").glob("*.json"))
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "cache", kept)
    shutil.rmtree(tmp_path / "cache")
    again = TPU("v5e").profile(network, batch_size=8)
    assert again.samples_ms == first.samples_ms and again.memory_mb == first.memory_mb
    assert again.per_op is None
    assert {path.name for path in records} == {
        path.name for path in (tmp_path / "cache" / "tpu").glob("*.json")
    }

    # The same program in a file that is not known: lowered, found, not compiled.
    monkeypatch.setenv("NAS_CACHE", str(kept))
    (index,) = (kept / "tpu").glob("*.program.json")
    index.unlink()
    (record,) = (kept / "tpu").glob("*.json")
    stamp = record.stat().st_mtime_ns
    assert TPU("v5e").profile(network, batch_size=8).samples_ms == first.samples_ms
    assert record.stat().st_mtime_ns == stamp and index.exists()

    no_process()
    assert TPU("v5e").profile(network, batch_size=8).samples_ms == first.samples_ms
    rough = TPU("v5e", schedule=False).profile(network, batch_size=8)
    assert rough.conditions["by_estimated_cycles"] > 0 == rough.conditions["by_schedule"]
    assert rough.median_ms != first.median_ms
    with pytest.raises(AssertionError, match="a JAX process was started"):
        TPU("v5e").profile(network, batch_size=16)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("chip", chips.CHIPS)
def test_every_generation_compiles(chip, dense):
    found = TPU(chip).profile(dense, batch_size=8, details=True)
    assert 0 < found.median_ms < 0.1 and found.device == chips.CHIPS[chip].device
    assert found.conditions["by_schedule"] > 0
    assert "only" in {row["name"] for row in found.per_op}


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    "chip, topology, devices", [("v5e", "2x2", 4), ("v4", "2x2x1", 4), ("v3", "2x2", 8)]
)
def test_a_slice_shares_the_batch(chip, topology, devices, dense):
    whole = TPU(chip, topology=topology).profile(dense, batch_size=64)
    assert whole.conditions["devices"] == devices
    assert whole.conditions["sharded"].startswith(f"data parallel, {64 // devices} of the batch")
    with pytest.raises(ValueError, match=f"expected a multiple of {devices}"):
        TPU(chip, topology=topology).profile(dense, batch_size=devices + 1)
    with pytest.raises(ValueError, match="topology='3x5x7'|topology='17x1'"):
        TPU(chip, topology="3x5x7" if chip == "v4" else "17x1").profile(dense, batch_size=255)


@pytest.mark.slow
@needs_libtpu
def test_the_type_is_that_of_the_computation(network):
    half, single = (TPU("v5e", dtype=dtype).profile(network, 64) for dtype in tpu._DTYPES)
    assert single.memory_mb > 1.3 * half.memory_mb


@needs_libtpu
def test_too_little_memory_is_a_result(tmp_path, no_process):
    import keras

    inputs = keras.Input((8192, 8192))
    model = keras.Model(inputs, keras.layers.Dense(8192, name="wide")(inputs))
    for _ in range(2):  # the second time it is known
        with pytest.raises(ValueError, match=r"TPU v2.*batch 64.*needs .* GB of .* GB") as error:
            TPU("v2").profile(model, batch_size=64)
        assert isinstance(error.value, DoesNotFit)
        assert error.value.needed_mb > error.value.available_mb > 6000
        no_process()


@needs_libtpu
def test_a_bad_file_is_said_in_one_line(tmp_path):
    path = tmp_path / "broken.keras"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="broken.keras") as error:
        TPU("v3").profile(path)
    assert "\n" not in str(error.value)
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    with pytest.raises(ValueError, match="JAX targets need a .keras file or a catalog model"):
        TPU("v3").profile(tmp_path / "model.tflite")


def test_options_are_checked_at_once():
    with pytest.raises(ValueError, match="no TPU 'v9': expected one of v2, v3, v4, v5e, v5p, v6e"):
        TPU("v9")
    with pytest.raises(ValueError, match="dtype='int8': expected one of bfloat16, float32"):
        TPU("v3", dtype="int8")
    with pytest.raises(ValueError, match="topology='2x2': expected 3 sizes for v4, e.g. 2x2x1"):
        TPU("v4", topology="2x2")
    with pytest.raises(ValueError, match="topology='2x0'"):
        TPU("v3", topology="2x0")
    with pytest.raises(ValueError, match="needs a chip"):
        TPU(topology="2x2")


def test_without_libtpu_it_says_how_to_get_it(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(TargetUnavailable, match="libtpu is missing: pip install 'nas.tpu.'.*Terms"):
        TPU("v3").identity()
    listed = {one.spec: one for one in TPU.discover()}
    assert set(listed) == {f"tpu:{name}" for name in chips.CHIPS}
    assert all(one.missing and "nas[tpu]" in one.missing for one in listed.values())


@needs_libtpu
def test_without_jax_it_says_how_to_get_it(monkeypatch, tmp_path, network):
    (tmp_path / "jax.py").write_text("raise ImportError('no jax here')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TargetUnavailable, match="no jax here.*pip install 'nas.tpu.'"):
        TPU("v3").profile(network)


@pytest.mark.skipif(
    any(Path("/dev", name).exists() for name in tpu._DEVICE_FILES), reason="there may be a TPU"
)
def test_without_a_tpu_nothing_is_started_to_look_for_one(no_process):
    no_process()
    assert tpu.attached_devices() == ((), None)
    with pytest.raises(TargetUnavailable, match="no TPU is attached.*tpu:v2, tpu:v3.*tpu:7x"):
        TPU().identity()
    with pytest.raises(TargetUnavailable, match="calibrating needs an attached TPU"):
        TPU("v3").calibrate([])


@needs_libtpu
def test_what_is_found_here_can_be_compiled_for():
    listed = {one.spec: one for one in TPU.discover()}
    if "tpu" not in listed:
        assert listed["tpu:v5e"].kind is Kind.COMPILED and listed["tpu:v5e"].missing is None
        assert "libtpu 0." in listed["tpu:v5e"].device


@needs_libtpu
class TestMeasured:
    """An attached TPU, played: what is asked of the worker, and that the answer is MEASURED."""

    @pytest.fixture
    def asked(self, monkeypatch):
        requests = []

        def answer(request, model=None, **_):
            requests.append(request)
            return {"samples_ms": [1.0, 2.0], "memory_mb": 3.0, "conditions": {"stable": True}}

        monkeypatch.setattr(tpu, "attached_devices", lambda: (("TPU v5 lite",) * 4, None))
        monkeypatch.setattr(process, "ask", answer)
        return requests

    def test_any_and_its_own_chip(self, asked, network):
        for target, devices in ((TPU(), 1), (TPU("v5e"), 1), (TPU("v5e", topology="2x2"), 4)):
            found = target.profile(network, batch_size=4, runs=7)
            assert found.measured and found.samples_ms == (1.0, 2.0)
            assert asked[-1]["devices"] == devices and asked[-1]["runs"] == 7
            assert asked[-1]["platform"] == "tpu" and asked[-1]["dtype"] == "bfloat16"
            assert target.identity()["kind"] == "measured"
        assert [one.spec for one in TPU.discover()] == ["tpu"]

    def test_another_chip_is_compiled_for(self, asked):
        if importlib.util.find_spec("libtpu"):
            assert TPU("v3").identity()["kind"] == "compiled"
            assert TPU("v5e", topology="4x4").identity()["kind"] == "compiled"
        assert not asked

    def test_calibration_pairs_both(self, asked, network, monkeypatch):
        monkeypatch.setattr(TPU, "compile", lambda *_: RECORD)
        fitted = TPU().calibrate([network, network], batch_size=2)
        estimated = TPU("v5e").estimate(RECORD)[0]
        assert fitted.points == 2 and fitted.apply(estimated) == pytest.approx(1.5)


OPERATION = {"layer": "a", "type": "Dense", "times": 1, "overlapped": False, "hbm_bytes": 0}
RECORD = {
    "operations": [
        OPERATION | {"cycles": 1_500_000, "estimated_cycles": 3_000_000},
        OPERATION | {"cycles": None, "estimated_cycles": 1_500_000, "times": 3},
        OPERATION | {"cycles": 10, "estimated_cycles": 10, "hbm_bytes": 738_000_000, "layer": "b"},
        OPERATION
        | {"cycles": None, "estimated_cycles": None, "hbm_bytes": 73_800_000, "overlapped": True},
    ],
    "dispatch_cycles": 0,
    "unknown_loops": 0,
    "memory_mb": 1.0,
    "flops": 1e9,
    "compile_s": 1.0,
    "devices": 1,
}


def test_an_estimate_is_the_sum_of_the_longer_of_cycles_and_traffic():
    """v5e: 1.5 GHz, 738 GB/s."""
    total, rows = TPU("v5e").estimate(RECORD)
    assert total == pytest.approx(1 + 3 * 1 + 1)
    assert [(row["name"], row["ms"]) for row in rows] == [
        ("a", pytest.approx(4)),
        ("b", pytest.approx(1)),
    ]
    assert TPU("v5e", schedule=False).estimate(RECORD)[0] == pytest.approx(2 + 3 * 1 + 1)
    # All traffic bounds the sum from below: copies beside the work are not free.
    light = [row | {"cycles": 0, "estimated_cycles": 0} for row in RECORD["operations"]]
    assert TPU("v5e").estimate(RECORD | {"operations": light})[0] == pytest.approx(1.1)


def test_a_calibrated_estimate_says_so_and_stays_one(monkeypatch, tmp_path, network):
    monkeypatch.setattr(tpu, "_runtime", lambda: "libtpu 1, JAX 1")
    monkeypatch.setattr(TPU, "compile", lambda *_: RECORD)
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"v5e": [[1, 3], [10, 30]], "v3": [[1, 1]]}))
    target = TPU("v5e", calibration=str(path))
    found = target.profile(network, details=True)
    assert found.median_ms == pytest.approx(15) and found.kind is Kind.COMPILED
    assert found.conditions["calibration"] == "calibrated from 2 points"
    assert found.conditions["uncalibrated_ms"] == pytest.approx(5)
    assert sum(row["ms"] for row in found.per_op) == pytest.approx(15)
    assert target.identity() != TPU("v5e").identity()
    with pytest.raises(ValueError, match="no such file"):
        TPU("v5e", calibration=str(tmp_path / "absent")).identity()


def test_calibrations_are_factors_or_power_laws(tmp_path):
    assert calibration.fit([]).apply(7.0) == 7.0
    near = calibration.fit([(1.0, 2.0), (1.1, 2.3), (1.2, 2.3)])
    assert near.exponent == 1.0 and near.factor == pytest.approx(2.0, rel=0.05)
    power = calibration.fit([(x, 3 * x**0.8) for x in (0.1, 1.0, 5.0, 20.0)])
    assert power.exponent == pytest.approx(0.8) and power.apply(2.0) == pytest.approx(3 * 2**0.8)
    wild = calibration.fit([(1.0, 1.0), (2.0, 1.0), (40.0, 1.0)])
    assert wild.exponent == 0.5
    with pytest.raises(ValueError, match="expected two positive times"):
        calibration.fit([(1.0, 0.0)])
    path = tmp_path / "new" / "points.json"
    assert calibration.add(path, "v3", [(1.0, 2.0)]).points == 1
    assert calibration.add(path, "v3", [(2.0, 4.0)]).factor == pytest.approx(2.0)
    path.write_text('{"v3": 5}')
    with pytest.raises(ValueError, match="points.json: expected"):
        calibration.read(path)


SCHEDULE = """
LB: loop body
     0   :  { %1 = vnop }
   0x1 LB: > { %s2 = sphi %s3 /* iteration index, stage = 0 */ ;; %4 = x /* stage = 2 */ }
   0x2   :  { %5 = vnop } /* printed as if outside */
   0x3 LB: >> { %6 = a }
   0x4   : >> { %p7 = scmp.ge.s32.totalorder %s8, 5  ;; %9 = b
base_bounds: (1) */ }
   0x5   : >> { %10 = sbr.rel (!%p7) target = $region1 }
   0x6 PF: > { %11 = c }
   0x7 LB: >> { %12 = d }
   0x8   : > { %p13 = scmp.ge.s32.totalorder %s14, 12 /* loop exit test */ }
   0x9   : > { %15 = sbr.rel (!%p13) target = $region2 }
   0xa   :  { %16 = e }
"""


def test_static_cycles_follow_the_loops():
    """Ten trips (12 less 2 stages) of 5 bundles, 3 bundles five times, and one uncounted loop."""
    assert schedule.static_cycles(SCHEDULE) == (2 + 10 * (5 + 5 * 3 + 1), 1)


HLO = """HloModule jit_network, is_scheduled=true

%fused (param_1: bf16[4,256], param_0.2: s32[]) -> bf16[1,256] {
  %param_1 = s32[] parameter(1)
  %param_0.2 = bf16[4,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %slice.1 = bf16[1,256]{1,0:T(8,128)(2,1)} dynamic-slice(%param_0.2, %param_1), metadata={}
}

%update (p: f32[1024,128], q: f32[8,128], r: s32[]) -> f32[1024,128] {
  %p = f32[1024,128]{1,0:T(8,128)} parameter(0)
  %q = f32[8,128]{1,0:T(8,128)} parameter(1)
  %r = s32[] parameter(2)
  ROOT %dus = f32[1024,128]{1,0:T(8,128)} dynamic-update-slice(%p, %q, %r, %r)
}

%body (state: (f32[16,128])) -> (f32[16,128]) {
  %state = (f32[16,128]{1,0:T(8,128)}) parameter(0)
  %gte = f32[16,128]{1,0:T(8,128)} get-tuple-element(%state), index=0
  %double = f32[16,128]{1,0:T(8,128)S(1)} fusion(%gte), kind=kLoop, calls=%nothing, backend_config={"window_config":{"estimated_cycles":"77"}}
  ROOT %tuple = (f32[16,128]{1,0:T(8,128)}) tuple(%double)
}

ENTRY %main (a: bf16[4,256]) -> bf16[1,256] {
  %a = bf16[4,256]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="inputs"}
  %i = s32[] parameter(1)
  %cache = f32[1024,128]{1,0:T(8,128)} parameter(2)
  %new = f32[8,128]{1,0:T(8,128)S(1)} parameter(3)
  %start = (bf16[4,256]{1,0:T(8,128)(2,1)S(1)}, bf16[4,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %done = bf16[4,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %written = f32[1024,128]{1,0:T(8,128)} fusion(%cache, %new, %i), kind=kLoop, calls=%update
  %init = (f32[16,128]{1,0:T(8,128)}) tuple(%new)
  %loop = (f32[16,128]{1,0:T(8,128)}) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  ROOT %fusion.9 = bf16[1,256]{1,0:T(8,128)(2,1)} fusion(%a, %i), kind=kLoop, calls=%fused, metadata={op_name="jit(network)/pick/slice" id=3}
}
"""  # noqa: E501


def test_operations_of_a_program_with_a_loop_a_copy_and_slices():
    schedules = schedule.Schedules({"fusion.9": 12}, 0)
    found = {one.name: one for one in schedule.operations(HLO, schedules)}
    assert list(found) == ["start", "written", "double", "fusion.9"]
    assert found["start"].overlapped and found["start"].hbm_bytes == 8 * 256 * 2
    assert found["written"].hbm_bytes == 2 * 8 * 128 * 4 + 4 * 0 + 4  # a part, twice; an index
    assert (found["double"].times, found["double"].estimated_cycles) == (6, 77)
    assert found["double"].hbm_bytes == 16 * 128 * 4
    last = found["fusion.9"]
    assert (last.cycles, last.source) == (12, "jit(network)/pick/slice")
    assert last.hbm_bytes == 8 * 256 * 2 * 2 + 4  # the slice, read and written; an index


def test_layers_are_found_in_the_names_that_jax_gives():
    layers = {"outer": "Functional", "conv": "Conv2D"}
    variables = {"weights[0][1]": "conv"}
    for source, layer in {
        "jit(network)/conv/conv_general_dilated": "conv",
        "jit(network)/outer/conv/add": "conv",
        "jit(network)/outer/while/body/add": "outer",
        "weights[0][1]": "conv",
        "inputs['image']": "inputs",
        "jit(network)/convert": "other",
        "": "other",
    }.items():
        assert compile.layer_of(source, layers, variables) == layer

"""Why a network takes its time: sums, bounds by hand, measured against estimated, the pictures."""

import importlib.util
import json
import re

import keras
import pytest

from latency import cpu
from latency.cpu import CPU
from latency.gpu import GPU
from latency.networks import count
from latency.predicted import Predicted
from latency.roofline import explanation, file_kernels, kernel_times, measure_limits, of_tflite
from latency.roofline.device_limits import DeviceLimits
from latency.target import Kind, Latency
from latency.tflite import convert, profiler
from latency.tflite.graph import Operation
from latency.tpu_compiler import kernels as tpu_kernels
from latency.tpu_compiler import schedule
from nas.cli import command_line
from nas.report.plots import figure
from nas.report.plots import roofline as roofline_plot
from nas.report.tables import explanation as explanation_table

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
# 1 TFLOP/s, 100 GB/s beyond caches of 1 MB that give 1000: the ridge is 10 FLOPs a byte.
LIMITS = DeviceLimits({"": 1.0, "depthwise": 0.5}, ((1e6, 1000.0), (1e8, 100.0)), 2.0, "made up")


@pytest.fixture(scope="module")
def model():
    """Every layer is one operation of LiteRT: what `latency.networks.count` counts is what it
    runs."""
    inputs = keras.Input((12, 12, 8), name="image")
    same = {"padding": "same", "bias_initializer": "ones"}
    x = keras.layers.Conv2D(16, 3, activation="relu", name="block1_conv", **same)(inputs)
    x = keras.layers.DepthwiseConv2D(3, name="block2_depthwise", **same)(x)
    x = keras.layers.Conv2D(32, 1, name="block2_project", **same)(x)
    x = keras.layers.AveragePooling2D(2, name="head_pool")(x)
    x = keras.layers.Flatten(name="head_flatten")(x)
    x = keras.layers.Dense(10, name="head_logits", bias_initializer="ones")(x)
    return keras.Model(inputs, x, name="small")


def latency(ms=10.0, kind=Kind.MEASURED, batch=1, **more):
    return Latency("t", "d", batch, (ms,), kind, **more)


def kernel(name, op_class, macs, moved):
    return kernel_times.Kernel(name, op_class.title(), op_class, macs, moved)


KERNELS = (
    kernel("stem_conv", "conv", 5e8, 1e8),  # 1e9 FLOPs: 1 ms; 1e8 bytes at 100 GB/s: 1 ms
    kernel("block1_depthwise", "depthwise", 5e7, 1e8),  # .2 ms at half the peak; 1 ms
    kernel("block1_project", "matmul", 1e9, 1e6),  # 2 ms; 1e6 bytes at 1000 GB/s: 1 us
    kernel("block2_add", "elementwise", 0.0, 500.0),  # nothing; .5 ns: the launch, 2 us
)


def explained(ms=(2.0, 4.0, 2.0, None), kind=Kind.MEASURED, **more):
    return explanation.explain(KERNELS, ms, limits=LIMITS, latency=latency(**more), kind=kind)


def test_bounds_by_hand():
    found = explained()
    conv, depthwise, project, add = found.operations
    assert LIMITS.ridge == 10 and conv.intensity == 10
    assert depthwise.limits_ms == pytest.approx({"compute": 0.2, "memory": 1.0, "launch": 0.002})
    assert (depthwise.bound, depthwise.intensity) == ("memory", 1.0)
    assert project.limits_ms == pytest.approx({"compute": 2.0, "memory": 0.001, "launch": 0.002})
    assert (project.bound, add.bound) == ("compute", "launch")
    assert [one.efficiency for one in found.operations[:3]] == pytest.approx([0.5, 0.25, 1.0])
    assert add.efficiency is None and add.intensity == 0
    # Between the two sizes on a line of logarithms: ten times the bytes, half the way down.
    assert LIMITS.gbs(1e7) == pytest.approx(1000 / 10**0.5)
    assert [LIMITS.gbs(10), LIMITS.gbs(1e12)] == pytest.approx([1000, 100])


def test_parts_add_up():
    found = explained()
    for parts in (found.classes, found.stages, found.bounds):
        for field in ("count", "flops", "bytes", "ms", "attainable_ms"):
            total = sum(getattr(part, field) for part in parts)
            assert total == pytest.approx(getattr(found.total, field))
    assert [part.name for part in found.stages] == ["stem", "block1", "block2"]
    assert found.classes[0].name == "depthwise" and found.classes[0].tflops == 0.025
    # The operation without a time of its own is in no efficiency.
    assert found.total.efficiency == pytest.approx(4 / 8)
    assert found.total.bound == "compute" and found.stages[1].intensity == pytest.approx(
        2.1e9 / 1.01e8
    )


def test_sums_of_a_file_are_those_of_the_network(model):
    counted = count.count(model)
    kernels = file_kernels.read(convert.file_of(model))
    assert sum(one.macs for one in kernels) == counted.macs
    layers = {row.name: row for row in counted.layers}
    rows = {one.name.split("/")[0]: one for one in kernels}
    for name, op_class in (
        ("block1_conv", "conv"),
        ("block2_depthwise", "depthwise"),
        ("block2_project", "matmul"),
        ("head_pool", "reduction"),
        ("head_logits", "matmul"),
    ):
        row = layers[name]
        assert (rows[name].macs, rows[name].op_class) == (row.macs, op_class)
        assert rows[name].bytes == row.weight_bytes + row.input_bytes + row.output_bytes


def test_multiply_adds_of_operations_without_a_layer():
    cases = (
        ("TRANSPOSE_CONV", ((4,), (5, 3, 3, 2), (1, 4, 4, 2)), (1, 8, 8, 5), {}, 16 * 90),
        ("BATCH_MATMUL", ((2, 3, 4), (2, 4, 5)), (2, 3, 5), {}, 120),
        ("BATCH_MATMUL", ((2, 4, 3), (2, 4, 5)), (2, 3, 5), {"adjX": True}, 120),
        ("ADD", ((1, 8), (1, 8)), (1, 8), {}, 0),
    )
    for name, inputs, output, options, macs in cases:
        assert file_kernels.macs(Operation(name, inputs, (output,), options)) == macs
    grouped = Operation("CONV_2D", ((1, 4, 4, 6), (6, 3, 3, 1)), ((1, 4, 4, 6),), {})
    assert file_kernels.op_class(grouped) == "depthwise"
    with pytest.raises(ValueError, match="not a readable LiteRT file"):
        file_kernels.read(b"\0" * 40)


def test_sums_of_an_estimated_gpu(model):
    target = GPU("a100", dtype="bfloat16", how="layers")
    told = target.profile(model, batch_size=4, details=True)
    found = target.explain(model, told)
    assert found.kind is Kind.PREDICTED and found.latency_kind is Kind.PREDICTED
    assert found.total.flops == 2 * 4 * count.count(model).macs
    kernels, _ = kernel_times.layer_graph(model, 4, "bfloat16")
    assert found.total.bytes == sum(one.bytes for one in kernels)
    assert [one.ms for one in found.operations] == [row["ms"] for row in told.per_op]
    assert all(0 < one.efficiency <= 1 for one in found.operations)
    # 3 us of a launch are more than anything this small can take.
    assert {one.bound for one in found.operations} == {"launch"}
    assert found.limits.peaks["depthwise"] == 19.5 and found.limits.peak_tflops == 312


def test_unfused_bytes_of_a_layer_graph_are_those_that_are_counted(model):
    kernels, _ = kernel_times.layer_graph(model, 1, "float32", fusion="none")
    rows = [row for row in count.count(model).layers if row.type != "Flatten"]
    counted = sum(row.weight_bytes + row.input_bytes + row.output_bytes for row in rows)
    assert sum(one.bytes for one in kernels) == counted


def test_what_this_machine_takes(model, tmp_path, monkeypatch):
    """Real times of operations, and the roof measured once, then known."""
    monkeypatch.setattr(measure_limits, "_RUNS", 3)
    monkeypatch.setattr(measure_limits, "_MOVED", (2**16, 2**22))
    monkeypatch.setattr(cpu, "_NOMINAL_BLOCKS", 20)
    monkeypatch.setattr(profiler, "_PROCESSES", 1)
    monkeypatch.setattr(profiler, "_SECONDS", 0.1)
    monkeypatch.setattr(profiler, "_AGREE", 1.0)
    target = CPU(threads=1)
    told = target.profile(model, runs=5, details=True)
    found = target.explain(model, told)
    assert found.kind is Kind.MEASURED and found.latency_ms == told.median_ms
    assert found.total.flops == 2 * count.count(model).macs
    timed = [one for one in found.operations if one.ms]
    assert timed and all(one.efficiency == one.attainable_ms / one.ms for one in timed)
    fastest = sum(row["fastest_ms"] for row in told.per_op if row["within"] == "graph")
    assert sum(one.ms for one in timed) == pytest.approx(fastest, rel=0.11)
    assert 0.001 < found.limits.peak_tflops < 10 and 0.5 < found.limits.bandwidth_gbs < 5000
    assert found.limits.conditions["threads"] == 1 and found.limits.source.startswith("measured")
    again, known = measure_limits.measured(target)
    assert known and again == found.limits


def test_times_that_nobody_took_are_not_called_measured(model, monkeypatch):
    monkeypatch.setattr(measure_limits, "measured", lambda target: (LIMITS, True))
    told = latency(0.5, conditions={"per_op": "not told: another release"})
    found = of_tflite.explain(CPU(threads=1), model, told)
    assert found.kind is Kind.PREDICTED and found.latency_kind is Kind.MEASURED
    assert "another release" in found.notes[0]
    assert all(one.efficiency == 1 for one in found.operations)
    lines = "\n".join(explanation_table.explanation("small", "cpu", found))
    assert "ms PREDICTED" in lines and "0.5 ms measured" in lines


def test_a_device_without_a_known_roof_says_so(model):
    with pytest.raises(ValueError, match="what it can do at most is not known"):
        Predicted("pixel7").explain(model, latency())


HLO = """
%inner (p: bf16[1,8,8,16]) -> bf16[1,8,8,16] {
  %p = bf16[1,8,8,16]{3,2,1,0} parameter(0)
  ROOT %c = bf16[1,8,8,16]{3,2,1,0} convolution(%p, %p), metadata={op_name="jit(f)/expand/conv"}
}

%outer (q: bf16[1,8,8,16]) -> bf16[1,8,8,16] {
  %q = bf16[1,8,8,16]{3,2,1,0} parameter(0)
  %f = bf16[1,8,8,16]{3,2,1,0} fusion(%q), kind=kOutput, calls=%inner
  ROOT %d = bf16[1,8,8,16]{3,2,1,0} convolution(%f, %f), metadata={op_name="jit(f)/project/conv"}
}

ENTRY %main (a: bf16[1,8,8,16]) -> bf16[1,8,8,16] {
  %a = bf16[1,8,8,16]{3,2,1,0} parameter(0)
  %copy.1 = bf16[1,8,8,16]{3,2,1,0} copy(%a), metadata={op_name="jit(f)/expand/conv"}
  ROOT %fusion.1 = bf16[1,8,8,16]{3,2,1,0} fusion(%copy.1), kind=kOutput, calls=%outer
}
"""


def test_a_fused_operation_tells_its_products():
    copy, fused = schedule.operations(HLO, schedule.Schedules({}, 0))
    assert copy.products == () and copy.name == "copy.1"
    assert fused.products == ("jit(f)/expand/conv", "jit(f)/project/conv")


def test_products_are_placed_where_they_are_computed(model):
    """A layer in two operations, two in one, one in none by name, one in none at all."""

    def operation(name, layer, type_, *products, **more):
        row = {"name": name, "layer": layer, "type": type_, "products": list(products)}
        row |= {"cycles": 10, "hbm_bytes": 100, "times": 1, "overlapped": False}
        return row | more

    record = {
        "devices": 2,
        "unknown_loops": 3,
        "operations": [
            operation("copy.1", "block1_conv", "Conv2D"),
            operation("fusion.1", "block1_conv", "Conv2D", "block1_conv"),
            operation("fusion.2", "head_pool", "AveragePooling2D", "block1_conv", times=3),
            operation("reduce", "block2_depthwise", "DepthwiseConv2D", "block2_depthwise"),
            operation("convert", "head_logits", "Dense"),
            operation("fusion.3", "head_logits", "Dense", cycles=99),
            operation("fusion.4", "head_pool", "AveragePooling2D"),
            operation("slice-start", "other", "", overlapped=True),
        ],
    }
    record["operations"][2]["products"].append("block2_depthwise")
    macs = {row.name: row.macs * 8 / 2 for row in count.count(model).layers}
    found, notes = tpu_kernels.kernels(record, model, batch_size=8)
    assert sum(one.macs for one in found) == sum(macs.values())
    conv, depthwise = macs["block1_conv"] / 2, macs["block2_depthwise"] / 2
    expected = [0, conv, conv + depthwise, depthwise, 0, macs["head_logits"], 0, 0]
    assert [one.macs for one in found[:8]] == expected
    assert [one.op_class for one in found[:4]] == ["copy", "conv", "conv+depthwise", "depthwise"]
    assert [one.op_class for one in found[4:8]] == ["elementwise", "matmul", "reduction", "copy"]
    assert found[2].bytes == 300 and found[2].name == "block1_conv"
    (lost,) = found[8:]
    assert (lost.name, lost.bytes) == ("block2_project", 0)
    assert "3 loops" in notes[1] and "block2_project" in notes[2]


@pytest.mark.slow
@needs_libtpu
def test_a_compiled_network(tmp_path):
    from latency.tpu import TPU

    inputs = keras.Input((8, 8, 8))
    x = keras.layers.Conv2D(16, 3, padding="same", name="block1_conv")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="block1_depthwise")(x)
    network = keras.Model(inputs, keras.layers.Conv2D(8, 1, name="block1_project")(x))
    target = TPU("v3")
    told = target.profile(network, batch_size=8, details=True)
    found = target.explain(network, told)
    assert found.kind is Kind.COMPILED and not any("FLOPs" in note for note in found.notes)
    assert found.total.flops == 2 * 8 * count.count(network).macs
    assert all(0 < one.efficiency < 1.001 for one in found.operations if one.ms)
    assert found.total.ms <= told.median_ms
    by_class = {part.name: part for part in found.classes}
    assert {"conv", "depthwise", "matmul"} <= set(by_class)
    assert by_class["depthwise"].intensity < found.limits.ridge


def test_the_table():
    text = "\n".join(explanation_table.explanation("net", "cpu:threads=1", explained()))
    line = next(line for line in text.splitlines() if line.startswith("operation"))
    for column in ("type", "MFLOPs", "MB", "FLOPs/B", "bound", "ms measured", "attainable"):
        assert column in line
    rows = [line.split() for line in text.splitlines()]
    slowest = next(row for row in rows if row[:2] == ["block1_depthwise", "Depthwise"])
    assert slowest[2:] == ["100", "100", "1", "memory", "4", "1", "25%", "50%"]
    assert "depthwise: 50% of the time for 3.2% of the FLOPs" in " ".join(text.split())
    assert "1 FLOPs a byte are below the ridge: bound by memory" in " ".join(text.split())
    assert all(len(line) <= 110 for line in text.splitlines())


def test_networks_side_by_side():
    """B has twice the FLOPs in a conv in place of the depthwise, and is faster."""
    one = explained(kind=Kind.COMPILED, ms=(2.0, 4.0, 2.0, 0.0))
    kernels = [KERNELS[0], kernel("block1_conv", "conv", 2e9, 1e8), *KERNELS[2:]]
    about = latency(7.0, Kind.COMPILED)
    other = explanation.explain(
        kernels, (2.0, 1.0, 2.0, 0.0), limits=LIMITS, latency=about, kind=Kind.COMPILED
    )
    rows = [
        {"model": "a", "spec": "tpu:v3", "why": one},
        {"model": "b", "spec": "tpu:v3", "why": other},
    ]
    text = explanation_table.table(rows)
    stages = [line.split() for line in text.splitlines() if line.startswith("block1 ")]
    # GFLOPs of both and their ratio, FLOPs a byte, GFLOP/s, ms and their ratio.
    assert stages == [
        ["block1", "2.1", "6", "x2.86", "20.8", "59.4", "350", "2,000", "6", "3", "x0.50"]
    ]
    told = " ".join(text.split("side by side")[1].split())
    assert "b is 1.43 times faster than a" in told and "with 2.26 times its FLOPs" in told
    assert "Most of it: block1 -3 ms" in told


def test_the_command(tmp_path, capsys, monkeypatch):
    """Two networks on a chip that is not there: tables, JSON, and both kinds of picture."""
    monkeypatch.chdir(tmp_path)
    words = ["profile", "mnasnet:tiny", "--target", "gpu:a100,how=layers", "--why"]
    assert command_line.main(words) == 0
    out = capsys.readouterr().out
    assert "PREDICTED" in out and "no operation was measured" in " ".join(out.split())
    assert (tmp_path / "why.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    plot = tmp_path / "pictures" / "why.svg"
    words.insert(1, "mobilenet_v2:tiny")
    words += ["--batch", "1,8", "--json", "--plot", str(plot)]
    assert command_line.main(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 4 and {row["plot"] for row in rows} == {str(plot)}
    for row in rows:
        told = row["why"]
        assert told["per_op_kind"] == told["latency_kind"] == row["kind"] == "predicted"
        assert told["total"]["flops"] == pytest.approx(sum(o["flops"] for o in told["operations"]))
        for one in told["operations"]:
            assert one["attainable_ms"] == max(one["limits_ms"].values())
            assert one["efficiency"] == pytest.approx(one["attainable_ms"] / one["ms"])
            assert one["limits_ms"][one["bound"]] == one["attainable_ms"]
    drawn = plot.read_text()
    assert drawn.lstrip().startswith("<?xml") and "mobilenet_v2:tiny on gpu:a100" in drawn
    assert len(re.findall("ridge", drawn)) == 4
    assert command_line.main(["profile", "mnasnet:tiny", "--why", "--plot", "why.txt"]) == 2
    assert "--plot why.txt: expected a file that ends in" in capsys.readouterr().err


def test_a_target_that_cannot_explain_leaves_the_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(GPU, "explain", lambda *_: (_ for _ in ()).throw(ValueError("no roof")))
    words = ["profile", "mnasnet:tiny", "--target", "gpu:a100,how=layers", "--why"]
    assert command_line.main([*words, "--plot", str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert "PREDICTED" in out and "no roof" in err and not (tmp_path / "a.png").exists()


def test_many_panels_fit_one_picture(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(roofline_plot, "MOST", 3)
    rows = [{"model": f"n{i}", "spec": "x", "why": explained()} for i in range(5)]
    with Image.open(figure.save(tmp_path / "many.png", roofline_plot.draw(rows))) as picture:
        picture.load()  # whole: a cut file raises
        two_lines, width = picture.height, picture.width
    with Image.open(figure.save(tmp_path / "two.png", roofline_plot.draw(rows[:2]))) as picture:
        assert picture.width == width and picture.height < two_lines

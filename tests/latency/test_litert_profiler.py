"""Per-operation times by LiteRT's profiler: they add up, are named rightly, or are not told."""

import os
import subprocess
import sys

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from families import mnasnet
from latency import cpu
from latency.cpu import CPU
from latency.measuring import stopwatch
from latency.target import Kind
from latency.tflite import convert, process, profiler
from latency.tflite.graph import Graph, operations
from latency.tflite.profiler import ProfilerFailed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(cpu, "_NOMINAL_BLOCKS", 60)
    monkeypatch.setattr(profiler, "_PROCESSES", 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("profiler") / "tiny.tflite"
    path.write_bytes(convert.assemble(mnasnet.build(mnasnet.VARIANTS["tiny"])))
    return path


def test_every_operation_of_the_graph_is_told_in_order(file):
    rows, runs = profiler.operations(file, 1, 50)
    graph = operations(file.read_bytes())
    named = [row for row in rows if row["name"] != row["kernel"]]
    # XNNPACK adds a reshape in front of a fully connected layer, which is no operation of the file.
    assert [row["type"] for row in named] == [operation.name for operation in graph]
    assert named[0]["name"].startswith("stem_conv/") and runs >= 50
    assert len({row["name"] for row in named}) == len(named)
    assert all(0 <= row["fastest_ms"] <= row["ms"] < 5 for row in rows)
    assert {row["within"] for row in rows} == {"graph"}


def test_details_of_the_target(file):
    latency = CPU().profile(file, runs=20, details=True)
    assert latency.per_op_kind is Kind.MEASURED
    assert latency.op_min_ms == sum(row["fastest_ms"] for row in latency.per_op)
    # Whole microseconds, cut off: at most one less for each operation.
    assert 0.3 * latency.median_ms < latency.op_min_ms < 1.2 * latency.median_ms
    size_mb = file.stat().st_size / 2**20
    assert size_mb < latency.memory_mb < size_mb + 100
    plain = CPU().profile(file, runs=20)
    assert plain.per_op is None and plain.memory_mb is None


def test_time_goes_to_the_operation_that_works(tmp_path):
    """Of three convolutions the middle one has 16 times the work of either other."""
    graph = Graph()
    generator = np.random.default_rng(0)

    def convolution(x, inputs, filters, name):
        weights = graph.constant(generator.normal(0, 0.1, (filters, 3, 3, inputs)), f"{name}/w")
        bias = graph.constant(np.zeros(filters), f"{name}/b")
        options = schema.Conv2DOptionsT(strideH=1, strideW=1)
        return graph.add("CONV_2D", [x, weights, bias], (1, 64, 64, filters), name, options)

    image = graph.tensor((1, 64, 64, 4), "image")
    x = convolution(
        convolution(convolution(image, 4, 64, "first"), 64, 64, "second"), 64, 4, "last"
    )
    path = tmp_path / "three.tflite"
    path.write_bytes(graph.serialize([image], [x]))
    rows, _ = profiler.operations(path, 1, 20)
    fastest = {row["name"].split("/")[0]: row["fastest_ms"] for row in rows}
    assert fastest["second"] > 4 * fastest["first"] and fastest["second"] > 4 * fastest["last"]


def kernels(text):
    return text.split(", ")


@pytest.mark.parametrize(
    ("kinds", "told", "numbers", "expected"),
    [
        # An activation that is a kernel of its own, and is no operation.
        (["CONV_2D", "ADD"], "Convolution, Add, Clamp", [None] * 3, [0, 1, None]),
        # Two reshapes for one: which is it?
        (["RESHAPE"], "Static Reshape, Static Reshape", [None] * 2, [None, None]),
        (["CONV_2D", "CONV_2D"], "Convolution", [None], [None]),
        # Outside of XNNPACK the number is told.
        (["CONV_2D", "MYSTERY"], "Fully Connected, MYSTERY", [None, 1], [0, 1]),
        (["DEPTHWISE_CONV_2D", "CONV_2D"], "Convolution DWConv, Convolution", [None] * 2, [0, 1]),
        (["MEAN"], "Frobnicate", [None], [None]),
        ([], "Add", [None], [None]),
    ],
)
def test_only_certain_names_are_given(kinds, told, numbers, expected):
    assert profiler._matched(kinds, kernels(told), numbers) == expected


def answer(fastest, wall, **changes):
    told = [{"within": "graph"}] * len(fastest)
    about = {"kernels": ["a"], "rows": told, "wall_us": wall, "busy_us": wall}
    return about | {"fastest_us": fastest, **changes}


def test_what_does_not_add_up_is_not_believed():
    profiler._plausible([answer([900, 900], 2000)])
    profiler._plausible([answer([900, 900], 30_000, busy_us=2500)])  # a busy machine
    with pytest.raises(ProfilerFailed, match="add up to 5000 us"):
        profiler._plausible([answer([5000], 2000)])
    with pytest.raises(ProfilerFailed, match="add up to 10 us"):
        profiler._plausible([answer([10], 9000)])
    with pytest.raises(ProfilerFailed, match="process to process"):
        profiler._plausible([answer([9], 10), answer([9], 10, kernels=["b"])])


@pytest.mark.parametrize(
    "change",
    [
        "told = profiler._EVENT; fields = [told.fields[name] for name in told.names]; "
        "profiler._EVENT = np.dtype({'names': told.names, 'itemsize': 88, 'formats': "
        "[kind for kind, _ in fields], 'offsets': [min(place, 80) for _, place in fields]})",
        "profiler._Session.run = lambda self: self._call('LiteRtRenamed')",
        "profiler._library = lambda: profiler.Path('/nowhere/libLiteRt.so')",
    ],
)
def test_another_release_is_noticed(file, change):
    """An event of another size, a function that is gone, a library that is gone."""
    code = (
        "import sys; import numpy as np; from latency.tflite import profiler\n"
        f"{change}\n"
        "try: profiler.profile_file(sys.argv[1], 1, 5, True)\n"
        "except (profiler.ProfilerFailed, OSError) as error: print('told:', error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.startswith("told:") or result.returncode < 0, result


def test_without_a_profiler_the_figure_stays(file, monkeypatch):
    def crash(*_, **__):
        raise ValueError("LiteRT crashes on it (SIGSEGV)")

    monkeypatch.setattr(process.Process, "run", crash)
    monkeypatch.setattr(convert, "file_of", lambda model, *_: model)
    latency = CPU().profile(file, runs=10, details=True)
    assert latency.per_op is None and latency.per_op_kind is None and latency.memory_mb is None
    assert "SIGSEGV" in latency.conditions["per_op"] and "SIGSEGV" in latency.conditions["memory"]
    assert latency.median_ms > 0


def test_operations_are_timed_on_the_cores_of_the_caller(file, monkeypatch):
    seen = []
    ask = process.Process.run

    def asking(self, *arguments, **options):
        told = ask(self, *arguments, **options)
        seen.append(os.sched_getaffinity(self.pid))
        return told

    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("needs Linux")
    monkeypatch.setattr(process.Process, "run", asking)
    with stopwatch.exclusive_cores(1) as cores:
        profiler.operations(file, 1, 5)
    assert seen == [set(cores)]

"""What LiteRT's benchmark_model prints, from the formats of its source and of public reports."""

import subprocess
import sys

import keras
import pytest
from adbd import TOOL, install_tool

from latency.benchmark_tool import benchmark_model
from latency.measuring import reference_networks
from latency.target import TargetUnavailable
from latency.tflite import convert

# tensorflow/tensorflow#43541, a phone's GPU in 2020.
GPU_2020 = """STARTING!
Log parameter values verbosely: [0]
Min num runs: [50]
Num threads: [4]
#threads used for CPU inference: [4]
Use gpu: [1]
Loaded model /data/local/tmp/tflite/denoising_32bit.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created 1 GPU delegate kernels.
Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.
The input model file size (MB): 7.07479
Initialized session in 870.557ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=4 first=130565 curr=120829 min=117370 max=130565 avg=122373 std=4930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=119212 curr=118055 min=113737 max=124776 avg=119375 std=1948

Inference timings in us: Init: 870557, First inference: 130565, Warmup (avg): 122373, Inference (avg): 119375
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE
Memory footprint delta from the start of the tool (MB): init=8.97656 overall=18.7227
"""  # noqa: E501

# A phone's CPU as current tools print it; from a public repository's log, shortened.
XNNPACK_NOW = """INFO: STARTING!
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the delegate w/ 1 delegate kernels.
INFO: count=1 curr=905463 p5=905463 median=905463 p95=905463

INFO: count=50 first=900416 curr=898333 min=898007 max=906121 avg=899641 std=1549 p5=898333 median=899281 p95=904305

INFO: Inference timings in us: Init: 614333, First inference: 905463, Warmup (avg): 905463, Inference (avg): 899641
INFO: Memory footprint delta from the start of the tool (MB): init=146.363 overall=150.141
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.4531
INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t   [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t   ModifyGraphWithDelegate\t    6.348\t    6.348\t 55.640%\t 55.640%\t  7148.000\t        1\tModifyGraphWithDelegate/0

Timings (microseconds): count=1 curr=11409
Memory (bytes): count=0
2 nodes observed

INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t   [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t   QUANTIZE\t    0.199\t    0.203\t  1.328%\t  1.328%\t     0.000\t        1\t[tfl.quantize]:0
\t   Convolution (NHWC, QC8) DWConv\t    0.428\t    0.051\t  4.317%\t  8.304%\t     0.000\t       13\tDelegate/Convolution (NHWC, QC8) DWConv:1

Timings (microseconds): count=50 first=15000 curr=15001 min=14000 max=16000 avg=15300 std=70
"""  # noqa: E501

# StatsCalculator (tensorflow/core/util) with the columns of 2019 and of today.
TABLE = """Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t         AllocateTensors\t    7.000\t    7.000\t100.000%\t100.000%\t     0.000\t        1\tAllocateTensors/0

Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t{start}  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t{zero}    4.269\t    4.100\t 39.000%\t 39.000%\t     0.000\t        1\t[Mobilenet/Conv2d_0/Relu6]:0
\t   TfLiteXNNPackDelegate\t{zero}    6.000\t    5.900\t 61.000%\t100.000%\t     0.000\t        1\t[softmax, with: marks]:1

============================== Top by Computation Time ==============================
\t             [node type]\t{start}  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t   TfLiteXNNPackDelegate\t{zero}    6.000\t    5.900\t 61.000%\t100.000%\t     0.000\t        1\t[softmax, with: marks]:1

Number of nodes executed: 2
============================== Summary by node type ==============================
\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\t                 CONV_2D\t        1\t     4.100\t    39.000%\t    39.000%\t     0.000\t        1

Timings (microseconds): count=50 first=79449 curr=81350 min=77385 max=88213 avg=79732 std=1929
Memory (bytes): count=0
2 nodes observed

Delegate internal:
============================== Run Order ==============================
\t             [node type]\t{start}  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tConvolution (NHWC, F32) DWConv\t{zero}    3.000\t    2.500\t 61.000%\t100.000%\t     0.000\t        1\tConvolution (NHWC, F32) DWConv:0
"""  # noqa: E501


def test_a_report_of_2020():
    report = benchmark_model.parse(GPU_2020)
    assert (report.runs, report.average_ms, report.first_ms) == (50, 119.375, 119.212)
    assert (report.fastest_ms, report.slowest_ms, report.last_ms) == (113.737, 124.776, 118.055)
    assert report.median_ms is None and report.init_ms == 870.557
    assert report.memory_mb == 18.7227 and report.delegated == "completely"
    assert report.operations == ()


def test_a_report_of_the_current_tool():
    report = benchmark_model.parse(XNNPACK_NOW)
    assert (report.runs, report.average_ms, report.median_ms) == (50, 899.641, 899.281)
    assert report.memory_mb == 93.4531 and report.init_ms == 614.333
    assert report.delegated is None, "XNNPACK is no delegate that was asked for"
    quantize, depthwise = report.operations
    assert (quantize["name"], quantize["ms"]) == ("[tfl.quantize]:0", 0.203)
    # 4.317 % of 15.3 ms: the printed average is that of one of 13 calls.
    assert (depthwise["calls"], depthwise["ms"]) == (13, pytest.approx(0.663))


def test_the_oldest_forms():
    old = "Average inference timings in us: Warmup: 83235, Init: 38467, Inference: 79760.9"
    report = benchmark_model.parse(f"STARTING!\r\n{old}\r\n")
    assert (report.runs, report.init_ms) == (1, 38.467)
    assert report.runs_ms == pytest.approx((79.7609,))
    only = benchmark_model.parse(
        "Timings (microseconds): count=50 first=79449 curr=81350 min=77385 max=88213 avg=79732 "
        "std=1929\nMemory (bytes): count=0\nPeak memory footprint (MB): init=6.8 overall=9.89453"
    )
    assert (only.runs, only.average_ms, only.memory_mb) == (50, 79.732, 9.89453)


@pytest.mark.parametrize("start", ["", "  [start]\t"])
def test_operations_are_those_of_the_timed_runs(start):
    output = GPU_2020 + TABLE.format(start=start, zero=start and "    0.000\t")
    report = benchmark_model.parse(output)
    assert (report.runs, report.average_ms) == (50, 119.375), "not the profiler's own sum"
    assert [(row["name"], row["type"], row["ms"], row["within"]) for row in report.operations] == [
        ("[Mobilenet/Conv2d_0/Relu6]:0", "CONV_2D", 4.1, "graph"),
        ("[softmax, with: marks]:1", "TfLiteXNNPackDelegate", 5.9, "graph"),
        ("Convolution (NHWC, F32) DWConv:0", "Convolution (NHWC, F32) DWConv", 2.5, "delegate"),
    ]
    assert all(row["calls"] == 1 for row in report.operations)


@pytest.mark.parametrize(
    "runs_us",
    [(5000, 7000, 6000), (5000, 4000, 6000), (4000, 5111, 6000), (5000, 5000, 5000)]
    + [(5000, 5000, 4000), (5000, 4000, 4000), (5000, 6000), (4123,), (9, 9)],
)
def test_three_runs_are_all_known(runs_us):
    count, first, last = len(runs_us), runs_us[0], runs_us[-1]
    if len(set(runs_us)) == 1:
        line = f"count={count} curr={last}" + ("(all same)" if count > 1 else "")
    else:
        line = f"count={count} first={first} curr={last} min={min(runs_us)} max={max(runs_us)} "
        line += f"avg={sum(runs_us) / count:g} std=1"
    report = benchmark_model.parse(f"count=1 curr=1\n{line}\n")
    assert report.runs_ms == pytest.approx([us / 1e3 for us in runs_us], rel=1e-5)
    with pytest.raises(ValueError, match="cannot be told apart"):
        _ = benchmark_model.parse(GPU_2020).runs_ms


def test_no_timings_are_no_report():
    for output in ("", "ERROR: Failed to load model", "count=0\nTimings (microseconds): no stats"):
        with pytest.raises(ValueError, match="no timings"):
            benchmark_model.parse(output)
    refused = "Though NNAPI delegate is explicitly applied, the model graph will not be executed by"
    assert benchmark_model.parse(f"{refused} the delegate.\ncount=1 curr=5").delegated == "not"
    partly = (
        "Explicitly applied GPU delegate, and the model graph will be partially executed by "
        "the delegate w/ 3 delegate kernels."
    )
    assert benchmark_model.parse(f"{partly}\ncount=1 curr=5").delegated == "partially"


def test_arguments():
    listed = benchmark_model.arguments(
        "/x.tflite", threads=4, warmup=2, runs=3, delegate="gpu", operations=True, limit_s=20
    )
    assert listed[0] == "--graph=/x.tflite" and "--use_gpu=true" in listed
    assert {"--num_runs=3", "--min_secs=0", "--max_secs=20", "--num_threads=4"} <= set(listed)
    assert "--enable_op_profiling=true" in listed
    with pytest.raises(ValueError, match="expected one of cpu, gpu, nnapi"):
        benchmark_model.arguments("/x", threads=1, warmup=0, runs=1, delegate="tpu")


def test_the_tool_is_found_or_it_is_told_where_to_get_it(tmp_path):
    with pytest.raises(TargetUnavailable, match="android_aarch64_benchmark_model and save it as"):
        benchmark_model.find("arm64-v8a")
    with pytest.raises(TargetUnavailable, match="build tflite/tools/benchmark"):
        benchmark_model.find("linux-riscv64")
    with pytest.raises(ValueError, match="found no file"):
        benchmark_model.find("arm64-v8a", str(tmp_path / "none"))
    cached = tmp_path / "cache" / "benchmark_model" / "arm64-v8a"  # NAS_CACHE of every test
    cached.parent.mkdir(parents=True)
    cached.write_text("tool")
    assert benchmark_model.find("arm64-v8a") == cached
    assert benchmark_model.find("x86", str(cached)) == cached


def test_what_is_looked_up_is_there(tmp_path):
    """The tool draws integers up to 99; the embedding here has 11 rows."""
    tokens, cache = keras.Input((2,), dtype="int32", name="tokens"), keras.Input((3,), name="cache")
    looked_up = keras.layers.Embedding(11, 3, name="embed")(tokens)
    outputs = {"cache": cache + looked_up[:, 0], "all": looked_up}
    file = tmp_path / "tokens.tflite"
    file.write_bytes(convert.convert(keras.Model({"tokens": tokens, "cache": cache}, outputs)))
    inputs = benchmark_model.integers(file)
    assert len(inputs) == 3
    script = install_tool(tmp_path / "tool", TOOL)
    for given, ends in ((inputs, 0), ((), 1)):
        words = benchmark_model.arguments(str(file), threads=1, warmup=1, runs=3, inputs=given)
        told = subprocess.run(
            [sys.executable, script, *words], capture_output=True, text=True, check=False
        )
        assert told.returncode == ends, told.stderr
    image = tmp_path / "image.tflite"
    image.write_bytes(reference_networks.network("small"))
    assert benchmark_model.integers(image) == []

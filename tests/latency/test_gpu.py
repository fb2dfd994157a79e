"""GPUs without one: specifications, rooflines by hand, kernel lists of XLA, and what is refused."""

import dataclasses
import importlib.util
import os
import pathlib
import time

import keras
import pytest
from keras import layers

from families import mnasnet
from latency.gpu import GPU, _plugin
from latency.networks import count
from latency.nvidia import compile, nvidia_smi
from latency.roofline import gpu_chips, kernel_times
from latency.roofline.kernel_times import Kernel, Rates
from latency.target import Kind, TargetUnavailable
from nas import registry

ROOT = pathlib.Path(__file__).parents[2]
no_gpu = pytest.mark.skipif(nvidia_smi.present(), reason="a GPU is attached")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx2080ti"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A10G", None),
    ],
)
def test_a_driver_s_name_is_the_right_chip_or_none(device, name):
    found = gpu_chips.named(device)
    assert (found and found.name) == name


def test_chips_are_plausible_and_sourced():
    for name, chip in gpu_chips.CHIPS.items():
        assert registry.target(f"gpu:{name},how=layers").chip == name
        assert chip.source and 5 < chip.float32 < 200 and 4 < chip.memory_gb < 300
        # Boost clock x cores x units x 2: what the vendor's float32 figure is made of.
        units = 64 if chip.capability in ((6, 0), (7, 0), (7, 5), (8, 0)) else 128
        assert chip.float32 == pytest.approx(chip.cores * units * 2 * chip.clock_ghz / 1e3, rel=0.1)
        assert chip.tensor.get("float16", 1e9) >= chip.float32
        assert 15 < chip.memory_gb / chip.bandwidth_gb_s * 1e3 < 100  # ms to read it all


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no GPU 'h1000' is known"):
        GPU("h1000")
    with pytest.raises(ValueError, match="dtype='int8'"):
        GPU("h100", dtype="int8")
    with pytest.raises(ValueError, match="how='guess'"):
        GPU("h100", how="guess")
    with pytest.raises(ValueError, match="V100 SXM2 has no bfloat16 units.*float16"):
        GPU("v100", dtype="bfloat16")
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, layers.Dense(2)(inputs), name="inner")
    outer = keras.Model(inputs, inner(inputs))
    with pytest.raises(ValueError, match="'inner' is a model"):
        GPU("h100", how="layers").profile(outer)


def block():
    """A residual block on 8x8x16 images: two convolutions with what follows fused into them."""
    inputs = keras.Input((8, 8, 16))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(16, 1, name="second")(x)
    y = layers.Add(name="add")([x, y])
    y = layers.Dropout(0.5, name="dropout")(y)
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    return keras.Model(inputs, layers.Dense(10, name="logits")(y))


def test_the_layer_graph_counts_what_a_hand_counts():
    kernels, memory_mb = kernel_times.layer_graph(block(), 2, "float32")
    image = 2 * 8 * 8 * 16 * 4  # bytes
    expected = [
        ("first", "conv", 2 * 64 * 9 * 16 * 16, 2 * image + (9 * 256 + 4 * 16) * 4),
        # `add` is computed here: it reads x, which is read anyway, and the sum is written.
        ("second", "matmul", 2 * 64 * 256, 2 * image + (256 + 16) * 4),
        ("pool", "reduction", 0, image + 2 * 16 * 4),
        ("logits", "matmul", 2 * 160, 2 * 16 * 4 + 2 * 10 * 4 + 170 * 4),
    ]
    found = [(one.name, one.op_class, one.macs, one.bytes) for one in kernels]
    assert found == expected
    weights = (9 * 256 + 64 + 272 + 170) * 4
    assert memory_mb == pytest.approx((weights + image + 2 * image) / 1e6)  # input, x and the sum


def test_kernels_scale_with_batch_and_type_and_keep_every_multiply_add():
    model = mnasnet.build(mnasnet.VARIANTS["tiny"])
    macs = count.count(model).macs
    one, _ = kernel_times.layer_graph(model, 1, "float32")
    many, _ = kernel_times.layer_graph(model, 8, "float32")
    half, _ = kernel_times.layer_graph(model, 8, "bfloat16")
    assert sum(kernel.macs for kernel in one) == macs
    assert sum(kernel.macs for kernel in many) == 8 * macs
    assert sum(k.bytes for k in half) == sum(k.bytes for k in many) / 2
    names = [kernel.name for kernel in one]
    assert "stem_norm" not in names and "stem_relu" not in names  # in stem_conv
    eager, _ = kernel_times.layer_graph(model, 1, "float32", fusion="none")
    assert {"stem_norm", "stem_relu"} <= {kernel.name for kernel in eager}
    assert sum(kernel.macs for kernel in eager) == macs
    assert sum(k.bytes for k in eager) > 1.5 * sum(k.bytes for k in one)
    excite = [kernel.op_class for kernel in one if kernel.name.endswith("_excite")]
    assert excite and set(excite) == {"elementwise"}  # what it scales is pooled, too


def test_a_kernel_takes_the_longer_of_computing_and_moving():
    chip = gpu_chips.chip("a100")
    rates = Rates(
        compute={"conv": 0.5, "depthwise": 0.5, "matmul": 0.5},
        memory=dict.fromkeys(kernel_times.CLASSES, 0.5),
        launch_us=2.0,
        run_us=100.0,
    )
    computes = Kernel("a", "Conv2D", "conv", macs=312e9, bytes=1.0)
    moves = Kernel("b", "Add", "elementwise", macs=0, bytes=2039e6)
    vector = Kernel("c", "DepthwiseConv2D", "depthwise", macs=19.5e9, bytes=1.0)
    times = kernel_times.times_ms([computes, moves, vector], chip, "bfloat16", rates)
    assert times == pytest.approx([4.002, 2.002, 4.002])
    assert kernel_times.total_ms([moves], chip, "bfloat16", rates) == pytest.approx(2.102)
    slower = kernel_times.times_ms([computes], chip, "float32", rates)
    assert slower == pytest.approx([8.002])  # TensorFloat-32


def costs_of_networks():
    """Kernel lists of six networks at three batch sizes, the networks in turn."""
    models = [
        mnasnet.build(
            dataclasses.replace(
                mnasnet.VARIANTS["tiny"],
                input_shape=(size, size, 3),
                head_filters=head,
                stem_filters=stem,
            )
        )
        for size, head, stem in ((32, 64, 8), (48, 128, 16), (64, 256, 24))
        + ((32, 256, 32), (48, 64, 24), (64, 128, 16))
    ]
    batches = (1, 16, 256)
    return [kernel_times.layer_graph(one, size, "float32")[0] for size in batches for one in models]


def test_calibration_brings_estimates_near_measurements_of_other_networks():
    chip = gpu_chips.chip("rtx3090")
    true = Rates(
        compute={"conv": 0.3, "depthwise": 0.1, "matmul": 0.4},
        memory={name: 0.3 + 0.1 * i for i, name in enumerate(kernel_times.CLASSES)},
        launch_us=8.0,
        run_us=60.0,
    )
    costs = costs_of_networks()
    points = [(one, kernel_times.total_ms(one, chip, "float32", true)) for one in costs]
    seen, others = points[::2], points[1::2]
    fitted = kernel_times.fit(seen, chip, "float32", Rates())
    for rates, least, most in ((Rates(), 0.3, 1), (fitted, 0, 0.03)):
        errors = [
            abs(kernel_times.total_ms(c, chip, "float32", rates) / ms - 1) for c, ms in others
        ]
        assert least <= max(errors) <= most
    with pytest.raises(ValueError, match="at least 1"):
        kernel_times.fit([], chip, "float32", Rates())


@no_gpu
def test_an_estimate_says_what_it_is_and_calibration_changes_its_identity():
    model = mnasnet.build(mnasnet.VARIANTS["tiny"])
    target = GPU("rtx4090", how="layers")
    before, identity = target.profile(model, 32), target.identity()
    assert before.kind is Kind.PREDICTED and not before.measured
    assert before.device == "NVIDIA GeForce RTX 4090" and len(before.samples_ms) == 1
    assert "public specifications" in before.conditions["estimate"]
    assert before.conditions["specification"] == gpu_chips.chip("rtx4090").source
    total = sum(row["ms"] for row in before.per_op) + Rates().run_us / 1e3
    assert before.median_ms == pytest.approx(total) and before.per_op_kind is Kind.PREDICTED
    assert identity["calibration"] is None and identity["kind"] == "predicted"
    costs, _ = target.costs(model, 32)
    kept = target.calibrate([(costs, 3 * before.median_ms)])
    after = target.profile(model, 32)
    assert abs(after.median_ms / before.median_ms - 3) < 0.2
    assert kept["before"] == pytest.approx(2 / 3) and kept["after"] < 0.07
    assert "calibrated from 1 points" in after.conditions["estimate"]
    assert target.identity()["calibration"] not in (None, identity["calibration"])
    other = GPU("rtx4090", how="layers", dtype="bfloat16")
    assert other.identity()["calibration"] is None


@no_gpu
def test_an_estimate_that_misses_layers_says_so():
    class Hidden(keras.layers.Layer):
        def build(self, shape):
            self.matrix = self.add_weight((shape[-1], shape[-1]), name="matrix")

        def call(self, x):
            return x @ self.matrix

    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(4)(Hidden(name="secret")(inputs)))
    from keras.src.applications.convnext import LayerScale

    scaled = keras.Model(inputs, LayerScale(0.1, 8)(inputs))  # a vector multiplies no matrix
    assert GPU("rtx4090", how="layers").profile(scaled).conditions["stable"]
    latency = GPU("rtx4090", how="layers").profile(model)
    assert not latency.conditions["stable"]
    assert "secret (Hidden)" in latency.conditions["reason"]


def test_what_does_not_fit_is_told():
    model = mnasnet.build(mnasnet.VARIANTS["tiny"])
    with pytest.raises(ValueError, match=r"needs \d+ MB, GeForce GTX 1080 Ti has 11300 MB"):
        GPU("gtx1080ti", how="layers").profile(model, 10**6)


@no_gpu
def test_without_a_gpu_it_names_an_estimate():
    model = mnasnet.build(mnasnet.VARIANTS["tiny"])
    with pytest.raises(TargetUnavailable, match="none is attached.*--target gpu:h100"):
        GPU().profile(model)
    with pytest.raises(TargetUnavailable, match="gpu:l4,how=layers"):
        GPU("l4", how="measured").profile(model)
    found = {(one.spec, one.kind): one.missing for one in GPU.discover()}
    assert "attached" in found["gpu", Kind.MEASURED]


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi on PATH that does as the script says."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(nvidia_smi, "_PROC", tmp_path / "proc")

    def install(script):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return install


_T4 = "Tesla T4, GPU-1, 550.54.15, 15360, 41, 27.31, 0, 585, 5000, P8"


def test_nvidia_smi_is_read_and_what_it_does_not_tell_is_missing(smi):
    smi(
        f'echo "{_T4}"; echo "NVIDIA H200, GPU-2, 570.10, [N/A], 30, [Not Supported], 97, 1, 2, P0"'
    )
    first, second = nvidia_smi.cards()
    assert (first.name, first.driver) == ("Tesla T4", "550.54.15")
    assert first.state["temperature_c"] == 41 and first.state["power_w"] == 27.31
    assert second.driver == "570.10"
    assert "memory_mb" not in second.state and "power_w" not in second.state
    assert {one.spec for one in GPU.discover()} >= {"gpu:t4", "gpu:h200"}


def test_a_driver_that_fails_or_hangs_is_no_gpu(smi, monkeypatch, tmp_path):
    smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert nvidia_smi.cards() == []
    information = tmp_path / "proc" / "gpus" / "0000:01:00.0" / "information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA L4\nIRQ:   \t\t 34\n")
    assert [card.name for card in nvidia_smi.cards()] == ["NVIDIA L4"]
    monkeypatch.setattr(nvidia_smi, "_LIMIT_S", 0.3)
    smi("exec sleep 20")
    started = time.monotonic()
    assert [card.name for card in nvidia_smi.cards()] == ["NVIDIA L4"]
    assert time.monotonic() - started < 5


def test_another_chip_than_the_attached_one_is_estimated_and_said_so(smi):
    smi(f'echo "{_T4}"')
    model = mnasnet.build(mnasnet.VARIANTS["tiny"])
    latency = GPU("h100", how="layers").profile(model)
    assert latency.kind is Kind.PREDICTED and latency.conditions["attached"] == ["Tesla T4"]
    assert GPU("t4").identity()["kind"] == GPU().identity()["kind"] == "measured"
    assert GPU("v100").identity()["kind"] == "predicted"  # older than what CUDA 13 compiles for
    assert GPU(how="layers").device == "NVIDIA T4"  # the attached one, estimated
    with pytest.raises(TargetUnavailable, match="H100 SXM5 80 GB is not attached"):
        GPU("h100", how="measured").profile(model)


@no_gpu
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_a_gpu_that_jax_does_not_reach_is_unavailable_and_never_estimated(smi):
    smi(f'echo "{_T4}"')
    with pytest.raises(TargetUnavailable, match="JAX|nas.gpu"):
        GPU("t4").profile(mnasnet.build(mnasnet.VARIANTS["tiny"]))


# Lines of XLA's own output (JAX 0.10.2, CUDA plugin, H100), shortened.
_PROGRAM = """HloModule jit_network, is_scheduled=true

%fused (param_0: bf16[8,16], param_1: bf16[16,4]) -> bf16[8,4] {
  %param_0 = bf16[8,16]{1,0} parameter(0)
  %param_1 = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,4]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], /*index=1*/bf16[8,16]{1,0}) parameter(0)
  %g = bf16[8,16]{1,0} get-tuple-element(%p), index=1
  ROOT %copy.1 = bf16[8,16]{1,0} copy(%g)
}

ENTRY %main (x: bf16[2,8,8,16], w: bf16[32,3,3,16], a: bf16[8,16], b: bf16[16,4]) -> bf16[8,4] {
  %x = bf16[2,8,8,16]{3,2,1,0} parameter(0), sharding={replicated}
  %w = bf16[32,3,3,16]{3,2,1,0} parameter(1)
  %a = bf16[8,16]{1,0} parameter(2)
  %b = bf16[16,4]{1,0} parameter(3)
  %conv = (bf16[2,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(network)/stem_conv/conv_general_dilated"}
  %get = bf16[2,8,8,32]{3,2,1,0} get-tuple-element(%conv), index=0
  %gemm = (bf16[8,4]{1,0}, s8[1024]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", metadata={op_name="jit(network)/head/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %tuple = (s32[], bf16[8,16]{1,0}) tuple(%a, %a)
  %while.1 = (s32[], bf16[8,16]{1,0}) while(%tuple), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %gemm_fusion = bf16[8,4]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused, metadata={op_name="jit(network)/logits/dot_general"}
}
"""  # noqa: E501


def test_a_program_of_xla_becomes_kernels():
    rows = [(one.name, one.op_class, one.macs, one.bytes) for one in compile.parse(_PROGRAM)]
    conv_bytes = 2 * (2 * 64 * 16 + 32 * 9 * 16 + 2 * 64 * 32)
    assert rows[0] == ("stem_conv", "conv", 2 * 64 * 32 * 9 * 16, conv_bytes)
    assert rows[1][:3] == ("head", "matmul", 8 * 4 * 16)
    assert rows[2:5] == [("copy.1", "elementwise", 0.0, 2 * 2 * 128)] * 3
    assert rows[5] == ("logits", "matmul", 8 * 4 * 16, 2 * (128 + 64 + 32))
    with pytest.raises(ValueError, match="no entry"):
        compile.parse("")


@no_gpu
@pytest.mark.slow
@pytest.mark.skipif(_plugin() is None, reason="JAX's CUDA plugin is not installed (nas[gpu])")
def test_xla_compiles_for_a_gpu_that_is_not_there():
    model = mnasnet.build(mnasnet.VARIANTS["tiny"])
    macs = 4 * count.count(model).macs
    for name in ("t4", "a100", "rtx4090", "h100"):
        target = GPU(name, dtype="float16")
        latency = target.profile(model, 4)
        assert latency.kind is Kind.COMPILED and target.identity()["kind"] == "compiled"
        found = sum(kernel.macs for kernel in target.costs(model, 4)[0])
        assert macs <= found < 1.01 * macs  # some channels are padded, for the matrix units
        started = time.monotonic()
        assert target.profile(model, 4).samples_ms == latency.samples_ms
        assert time.monotonic() - started < 3  # recalled


@pytest.mark.slow
def test_published_times_of_an_a100_are_ranked_better_than_by_multiply_adds(shared_data):
    """Held-out networks of Accel-NASBench after 12 measured ones: as `tools/bench_gpu.py`."""
    import numpy as np
    from scipy.stats import spearmanr

    place = importlib.util.spec_from_file_location("bench_gpu", ROOT / "tools" / "bench_gpu.py")
    bench = importlib.util.module_from_spec(place)
    place.loader.exec_module(bench)
    data = np.load(shared_data / "nas" / "accel_nasbench_dev.npz")
    chip, points, macs = gpu_chips.chip("a100"), [], []
    for index in np.random.default_rng(1).choice(len(data["arch"]), 24, replace=False):
        model = bench.accel_nasbench(data["arch"][index])
        assert model.count_params() > 1e6 * data["mparams"][index]  # and the moving averages
        kernels, _ = kernel_times.layer_graph(model, 128, "float16")
        points.append((kernels, 128e3 / float(data["throughput_a100"][index])))
        macs.append(sum(kernel.macs for kernel in kernels))
    real = np.array([ms for _, ms in points])[12:]
    rates = kernel_times.fit(points[:12], chip, "float16", Rates())
    found = [kernel_times.total_ms(kernels, chip, "float16", rates) for kernels, _ in points[12:]]
    rank = spearmanr(found, real).statistic
    assert rank > 0.95 and rank > spearmanr(macs[12:], real).statistic
    assert np.mean(np.abs(np.array(found) / real - 1)) < 0.05

"""The kernels that XLA makes of a network for an NVIDIA GPU that need not be there.

Runs in `latency.jax_runtime.worker`'s process, with the CUDA plugin of JAX and without CUDA itself.
"""

import dataclasses
import json
import math
import re
from typing import Any

from latency.roofline.gpu_chips import Chip, chip
from latency.roofline.kernel_times import Kernel
from latency.target import TargetUnavailable

# Bytes of shared memory, and threads, of one streaming multiprocessor: CUDA C programming guide,
# "Technical specifications per compute capability".
_CORES = {
    (7, 0): (98304, 2048, 64),
    (7, 5): (65536, 1024, 64),
    (8, 0): (167936, 2048, 64),
    (8, 6): (102400, 1536, 128),
    (8, 9): (102400, 1536, 128),
    (9, 0): (233472, 2048, 128),
    (10, 0): (233472, 2048, 128),
    (12, 0): (102400, 1536, 128),
}
COMPILED_FOR = tuple(_CORES)

# Operations of a program that start no kernel.
_NO_KERNEL = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("opt-barrier", "partition-id", "replica-id", "add-dependency"),
}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+)\w*\[([\d,]*)\]")


def kernels(request: dict[str, Any], model: Any) -> dict[str, Any]:
    """The kernel list of the model for request["chip"] at "dtype" and "batch_size"."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from latency.jax_runtime import worker

    try:
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=target_config(chip(request["chip"])),
            topology="1x1x1",
        )
    except Exception as error:  # the plugin is missing or of another version: any type
        raise TargetUnavailable(
            f"JAX cannot compile for CUDA ({str(error).splitlines()[0][:200]}): "
            "pip install 'nas[gpu]'"
        ) from error
    device = described.devices[0]
    place = SingleDeviceSharding(device)
    network = worker.forward(model, request["dtype"])
    weights, inputs = worker.arguments(model, request["dtype"], request["batch_size"])
    lowered = jax.jit(network).lower(worker.placed(weights, place), worker.placed(inputs, place))
    compiled = lowered.compile()
    return {
        "kernels": [dataclasses.asdict(one) for one in parse(compiled.as_text())],
        "memory_mb": worker.memory_mb(compiled),
    }


def target_config(gpu: Chip) -> str:
    """The chip in the words of XLA (GpuTargetConfigProto, as text)."""
    shared, threads, units = _CORES[gpu.capability]
    major, minor = gpu.capability
    extension = "ACCELERATED_FEATURES" if major in (9, 10) else "NONE"
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  core_count: {gpu.cores} fpus_per_core: {units} clock_rate_ghz: {gpu.clock_ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {int(gpu.bandwidth_gb_s * 1e9)} device_memory_size: {int(gpu.memory_gb * 1e9)}
  l2_cache_size: {int(gpu.l2_mb * 2**20)}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {gpu.title}"
"""


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One line of a program."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found[1] if found else None


def parse(text: str) -> list[Kernel]:
    """The kernels of an optimized HLO program as XLA prints it, in order; loops unrolled.

    Bytes are those of all operands and results, multiply-adds those of matrix products and
    convolutions, wherever in the kernel they are.
    """
    computations, entry = _computations(text)
    return _kernels(computations, entry)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    found: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if opened := _COMPUTATION.match(line):
            current = opened[2]
            found[current] = []
            entry = current if opened[1] else entry
        elif current and (read := _INSTRUCTION.match(line)):
            name, shape, opcode, rest = read.groups()
            arguments = rest[: _closing(rest)]
            operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
            found[current].append(_Instruction(name, shape, opcode, operands, rest))
    if not entry:
        raise ValueError("not a program of XLA: it has no entry")
    return found, entry


def _closing(text: str) -> int:
    """Where the parenthesis closes that was opened before `text`."""
    depth = 1
    for position, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return position
    return len(text)


def _kernels(computations: dict[str, list[_Instruction]], name: str) -> list[Kernel]:
    rows: list[Kernel] = []
    shapes = {one.name: one.shape for one in computations[name]}
    for one in computations[name]:
        if one.opcode in _NO_KERNEL or one.opcode.endswith("-done"):
            continue
        if one.opcode == "while":
            body = one.attribute(r"body=%([\w.\-]+)") or ""
            trips = int(one.attribute(r'"known_trip_count":\{"n":"(\d+)"') or 1)
            rows += _kernels(computations, body) * trips
            continue
        called = one.attribute(r"(?:calls|to_apply)=%([\w.\-]+)") or ""
        if one.opcode in ("call", "async-start") and called in computations:
            rows += _kernels(computations, called)
            continue
        if one.opcode == "conditional":  # the branch with the most kernels
            listed = one.attribute(r"branch_computations=\{([^}]*)\}") or ""
            branches = re.findall(r"%([\w.\-]+)", listed)
            longest: list[Kernel] = []
            for each in branches:
                found = _kernels(computations, each)
                longest = found if len(found) > len(longest) else longest
            rows += longest
            continue
        inner = computations.get(called, []) if one.opcode == "fusion" else []
        inner_shapes = {each.name: each.shape for each in inner}
        work = [_work(one, shapes), *(_work(each, inner_shapes) for each in inner)]
        macs = sum(each[0] for each in work)
        classes = [each[1] for each in work if each[1] is not None]
        reduces = any(each.opcode in ("reduce", "reduce-window") for each in [one, *inner])
        rows.append(
            Kernel(
                name=_layer(one),
                type=_type(one),
                op_class=classes[0] if classes else "reduction" if reduces else "elementwise",
                macs=macs,
                bytes=_bytes(one.shape) + sum(_bytes(shapes[each]) for each in set(one.operands)),
            )
        )
    return rows


def _work(one: _Instruction, shapes: dict[str, str]) -> tuple[float, str | None]:
    """Multiply-adds of an instruction and the class of kernel that they make it."""
    target = one.attribute(r'custom_call_target="([^"]+)"') or ""
    if one.opcode == "convolution" or "cudnn$conv" in target:
        return _convolution(one, shapes, backward="Backward" in target)
    contracted = one.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
    if "cublas" in target:
        listed = one.attribute(r'"lhs_contracting_dimensions":(\[[^\]]*\])') or "[]"
        contracted = ",".join(str(axis) for axis in json.loads(listed))
    if one.opcode == "dot" or "cublas" in target:
        left = _sizes(shapes[one.operands[0]])
        inner = math.prod(left[int(axis)] for axis in (contracted or "").split(",") if axis)
        return float(math.prod(_sizes(one.shape)) * inner), "matmul"
    return 0.0, None


def _convolution(
    one: _Instruction, shapes: dict[str, str], backward: bool
) -> tuple[float, str | None]:
    kernel = _sizes(shapes[one.operands[1]])
    labels = one.attribute(r"dim_labels=\w+_(\w+)->") or ""
    if len(labels) != len(kernel) or not {"o", "i"} <= set(labels):
        raise ValueError(f"convolution {one.name}: kernel {kernel} labelled {labels!r}")
    groups = int(one.attribute(r"feature_group_count=(\d+)") or 1)
    filters, inputs = kernel[labels.index("o")], kernel[labels.index("i")]
    moved = shapes[one.operands[0]] if backward else one.shape
    macs = float(math.prod(_sizes(moved)) * math.prod(kernel) / filters)
    if groups > 1:
        return macs, "depthwise" if groups == filters or inputs == 1 else "conv"
    return macs, "matmul" if math.prod(kernel) == filters * inputs else "conv"


def _sizes(shape: str) -> list[int]:
    """The sizes of the first array in a shape."""
    found = _SHAPE.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _bytes(shape: str) -> float:
    """Bytes of all arrays in a shape."""
    total = 0.0
    for kind, sizes in _SHAPE.findall(shape):
        bits = 8 if kind == "pred" else int(kind.lstrip("bsufc"))
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits / 8
    return total


def _layer(one: _Instruction) -> str:
    """The Keras layer that an instruction comes from, else its own name."""
    parts = (one.attribute(r'op_name="([^"]*)"') or "").split("/")
    named = [part for part in parts[1:-1] if part and not part.startswith("jit(")]
    return named[0] if named else one.name


def _type(one: _Instruction) -> str:
    """What kind of kernel it is: a library's name, or the compiler's kind of fusion."""
    target = one.attribute(r'custom_call_target="([^"]+)"')
    if target:
        return target.strip("_").replace("$", " ")
    kind = one.attribute(r'"kind":"(\w+)"') or one.attribute(r"kind=k(\w+)")
    return f"{one.opcode} {kind.strip('_')}" if kind else one.opcode

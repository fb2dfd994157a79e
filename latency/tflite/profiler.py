"""The time of each operation on this CPU, by LiteRT's own profiler.

Python has no way to it, so the C interface of libLiteRt.so is called (litert/c/litert_profiler.h of
https://github.com/google-ai-edge/LiteRT). It may change between releases and takes the process with
it when it does: `operations` asks `latency.tflite.process`, and believes only what adds up.
"""

import ctypes
import functools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from latency.tflite.process import Process

_PROCESSES = 4  # memory falls differently in each: single ones differ by 4 %
_SECONDS = 1.2  # on the core in each at least, for a minimum is found late on a busy machine
_AGREE = 0.005  # between the minima of even and of odd runs
_MOST_S = 6.0  # until they are to agree
_LIMIT_S = 60.0
_WARMUP = 5
_CPU, _WRITE = 1, 1  # LiteRtHwAccelerator, LiteRtTensorBufferLockMode
_EVENT = np.dtype(
    {
        "names": ["tag", "type", "start_us", "elapsed_us", "number", "more", "source"],
        "formats": ["u8", "i4", "u8", "u8", "u8", "u8", "i4"],
        # Between them lie the memory before and after: three sizes each.
        "offsets": [0, 8, 16, 24, 80, 88, 96],
        "itemsize": 104,
    }
)
_INVOKED, _IN_DELEGATE, _DELEGATED = 2, 4, 8  # types of events that are operations
# What XNNPACK calls the kernels that it makes of an operation, where the words differ.
_KERNELS = {
    "CONV_2D": ("Convolution", "Fully Connected"),
    "DEPTHWISE_CONV_2D": ("Convolution",),
    "TRANSPOSE_CONV": ("Deconvolution",),
    "FULLY_CONNECTED": ("Fully Connected", "Dynamic Fully Connected"),
    "BATCH_MATMUL": ("Batch Matrix Multiply", "Fully Connected"),
    "MUL": ("Multiply",),
    "SUB": ("Subtract",),
    "DIV": ("Divide",),
    "LOGISTIC": ("Sigmoid",),
    "HARD_SWISH": ("HardSwish", "Hard Swish"),
    "RELU": ("Clamp", "ReLU"),
    "RELU6": ("Clamp",),
    "MEAN": ("Mean", "Global Average Pooling"),
    "AVERAGE_POOL_2D": ("Average Pooling", "Global Average Pooling"),
    "MAX_POOL_2D": ("Max Pooling",),
    "RESHAPE": ("Static Reshape", "Reshape", "Copy"),
    "PAD": ("Constant Pad", "Static Constant Pad"),
    "CONCATENATION": ("Concatenate",),
    "RESIZE_BILINEAR": ("Resize Bilinear", "Static Resize Bilinear"),
    "QUANTIZE": ("Convert",),
    "DEQUANTIZE": ("Convert",),
}


class ProfilerFailed(ValueError):
    """LiteRT's profiler gives nothing that is plausible; the message says why."""


def operations(tflite: Path, threads: int, runs: int) -> tuple[tuple[dict[str, Any], ...], int]:
    """Rows of `Latency.per_op` in the order of the graph, and the number of runs they are made of.

    "ms" is the median, "fastest_ms" the fastest of at least `runs` runs in each of four processes,
    which inherit the cores of the calling thread. The resolution is a microsecond. "name" is the
    operation's output tensor, or what the kernel calls itself where that is not clear. Raises
    `ProfilerFailed`.
    """
    answers = []
    try:
        for number in range(_PROCESSES):
            with Process() as process:
                # The first one gives the names.
                options = {"threads": threads, "runs": runs, "names": not number}
                answers.append(process.run("profile", _LIMIT_S, file=str(tflite), **options))
    except ValueError as error:
        raise ProfilerFailed(str(error)) from error
    _plausible(answers)
    medians = np.median([answer["median_us"] for answer in answers], axis=0) / 1e3
    fastest = np.min([answer["fastest_us"] for answer in answers], axis=0) / 1e3
    rows = tuple(
        {**row, "ms": float(median), "fastest_ms": float(least)}
        for row, median, least in zip(answers[0]["rows"], medians, fastest, strict=True)
    )
    return rows, sum(answer["runs"] for answer in answers)


def _plausible(answers: list[dict[str, Any]]) -> None:
    """The operations cannot take longer than the run, nor only a small part of its time on cores.

    That time is without other processes', and the mean of all threads.
    """
    if any(answer["kernels"] != answers[0]["kernels"] for answer in answers):
        raise ProfilerFailed("the operations differ from process to process")
    outer = [row["within"] == "graph" for row in answers[0]["rows"]]
    for answer in answers:
        total = float(np.compress(outer, answer["fastest_us"]).sum())
        wall, busy = answer["wall_us"], answer["busy_us"]
        if not any(outer) or total > 1.05 * wall + 5 or (busy > 2000 and total < 0.25 * busy):
            raise ProfilerFailed(
                f"its operations add up to {total:.0f} us where the fastest run took {wall:.0f} us "
                f"({busy:.0f} us on a core)"
            )


def profile_file(file: str, threads: int, runs: int, names: bool) -> dict[str, Any]:
    """Profiles a `.tflite` file in this process, which it may end. Times in microseconds.

    At least `runs` runs, and on until the minima of even and odd runs agree; a network that takes
    very long gets fewer.
    """
    session = _Session(file, threads)
    for _ in range(_WARMUP):
        session.run()
    _, first = session.profiled()
    kernels = [ctypes.string_at(int(tag))[:200].decode("utf-8", "replace") for tag in first["tag"]]
    times: list[np.ndarray] = []
    spans: list[tuple[float, float]] = []
    fastest = np.full((2, len(kernels)), np.inf)  # of even and of odd runs
    started, on_core = time.perf_counter(), time.thread_time()
    while True:
        span_us, events = session.profiled()
        if not np.array_equal(events[["type", "number"]], first[["type", "number"]]):
            raise ProfilerFailed("the operations differ from run to run")
        half = fastest[len(times) % 2]
        np.minimum(half, events["elapsed_us"], out=half)
        times.append(events["elapsed_us"])
        spans.append(span_us)
        passed = time.perf_counter() - started
        even, odd = fastest.sum(axis=1)
        found = abs(even - odd) <= _AGREE * min(even, odd)
        enough = len(times) >= runs and time.thread_time() - on_core >= _SECONDS
        if enough and (found or passed >= _MOST_S):
            break
        if passed >= _LIMIT_S / 3 and len(times) >= 2:
            break
    return {
        "kernels": kernels,
        "rows": _rows(file, kernels, first) if names else None,
        "median_us": np.median(times, axis=0).tolist(),
        "fastest_us": np.min(times, axis=0).tolist(),
        "wall_us": min(wall for wall, _ in spans),
        "busy_us": min(busy for _, busy in spans) / threads,
        "runs": len(times),
    }


Handle = ctypes.c_void_p  # of one of LiteRT's objects


class _Session:
    """A compiled network with buffers and a profiler."""

    def __init__(self, file: str, threads: int):
        self._library = ctypes.CDLL(str(_library()))
        environment = self._make("LiteRtCreateEnvironment", 0, None)
        model = self._make("LiteRtCreateModelFromFile", environment, file.encode())
        options = self._make("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        for name, text in (
            (b"runtime_options_string", b"enable_profiling = true\n"),
            (b"cpu_options_string", b"num_threads = %d\n" % threads),
        ):
            self._call("LiteRtAddOpaqueOptions", options, self._text_options(name, text))
        self._compiled = self._make("LiteRtCreateCompiledModel", environment, model, options)
        signature = self._make("LiteRtGetModelSignature", model, ctypes.c_size_t(0))
        self._inputs = self._buffers(environment, signature, "Input")
        self._outputs = self._buffers(environment, signature, "Output")
        self._profiler = self._make("LiteRtCompiledModelGetProfiler", self._compiled)

    def run(self) -> None:
        self._call(
            "LiteRtRunCompiledModel",
            self._compiled,
            ctypes.c_size_t(0),
            ctypes.c_size_t(len(self._inputs)),
            self._inputs,
            ctypes.c_size_t(len(self._outputs)),
            self._outputs,
        )

    def profiled(self) -> tuple[tuple[float, float], np.ndarray]:
        """The microseconds of a run, by the wall and on cores, and its operations as events."""
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        busy, wall = time.process_time_ns(), time.perf_counter_ns()
        self.run()
        wall, busy = time.perf_counter_ns() - wall, time.process_time_ns() - busy
        self._call("LiteRtStopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        if not 0 < count.value < 100_000:
            raise ProfilerFailed(f"LiteRT's profiler gave {count.value} events")
        # Twice the room, and marked: a release with a larger or smaller event shows itself.
        room = np.full(2 * count.value * _EVENT.itemsize, 0xA5, np.uint8)
        self._call(
            "LiteRtGetProfilerEvents", self._profiler, count, room.ctypes.data_as(ctypes.c_void_p)
        )
        written = int(np.flatnonzero(room != 0xA5)[-1]) + 1
        end = count.value * _EVENT.itemsize
        events = room[:end].view(_EVENT)
        if not end - 8 < written <= end or events["tag"].min() < 4096:
            raise ProfilerFailed(
                f"LiteRT's events have {written / count.value:.1f} bytes instead of "
                f"{_EVENT.itemsize}: not the release that this was written for"
            )
        took_us = (wall / 1e3, busy / 1e3)
        return took_us, events[np.isin(events["type"], (_INVOKED, _IN_DELEGATE, _DELEGATED))]

    def _buffers(self, environment: Handle, signature: Handle, kind: str) -> Any:
        count = ctypes.c_size_t()
        self._call(f"LiteRtGetNumSignature{kind}s", signature, ctypes.byref(count))
        buffers = []
        for number in map(ctypes.c_size_t, range(count.value)):
            tensor = self._make(f"LiteRtGetSignature{kind}TensorByIndex", signature, number)
            # LiteRtRankedTensorType: element type, rank, dimensions; 72 bytes.
            ranked = (ctypes.c_int32 * 32)()
            self._call("LiteRtGetRankedTensorType", tensor, ctypes.byref(ranked))
            for axis in range(ranked[1] & 0x7F):
                ranked[2 + axis] = max(ranked[2 + axis], 1)  # a dynamic batch
            needed = self._make(
                f"LiteRtGetCompiledModel{kind}BufferRequirements",
                self._compiled,
                ctypes.c_size_t(0),
                number,
            )
            create = "LiteRtCreateManagedTensorBufferFromRequirements"
            buffer = self._make(create, environment, ctypes.byref(ranked), needed)
            if kind == "Input":
                self._fill(buffer, ranked[0])
            buffers.append(buffer)
        return (ctypes.c_void_p * len(buffers))(*buffers)

    def _fill(self, buffer: Handle, element: int) -> None:
        """Random values below 1 in float32, zeros in other types, as `litert.runner` fills."""
        size, place = ctypes.c_size_t(), ctypes.c_void_p()
        self._call("LiteRtGetTensorBufferPackedSize", buffer, ctypes.byref(size))
        values: np.ndarray = np.zeros(size.value, np.uint8)
        if element == 1:  # kLiteRtElementTypeFloat32
            values = np.random.default_rng(0).random(size.value // 4, np.float32)
        self._call("LiteRtLockTensorBuffer", buffer, ctypes.byref(place), _WRITE)
        ctypes.memmove(place, values.ctypes.data, values.nbytes)
        self._call("LiteRtUnlockTensorBuffer", buffer)

    def _text_options(self, name: bytes, text: bytes) -> Handle:
        system = ctypes.CDLL(None)  # the library frees what it is given
        system.malloc.restype = ctypes.c_void_p
        place = system.malloc(ctypes.c_size_t(len(text) + 1))
        ctypes.memmove(place, text + b"\0", len(text) + 1)
        free = ctypes.cast(system.free, ctypes.c_void_p)
        return self._make("LiteRtCreateOpaqueOptions", name, ctypes.c_void_p(place), free)

    def _make(self, name: str, *arguments: Any) -> Handle:
        """What a function writes to its last argument, a pointer."""
        made = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(made))
        return made

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise ProfilerFailed(f"this LiteRT has no {name}") from None
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status:
            raise ProfilerFailed(f"{name} failed with status {status}")


def _library() -> Path:
    import ai_edge_litert

    folder = Path(ai_edge_litert.__file__).parent
    name = {"darwin": "libLiteRt.dylib", "win32": "libLiteRt.dll"}.get(sys.platform, "libLiteRt.so")
    if not (folder / name).is_file():
        raise ProfilerFailed(f"ai-edge-litert comes without {name}")
    return folder / name


def _rows(file: str, kernels: list[str], events: np.ndarray) -> list[dict[str, str]]:
    """The name and the type of each event, and the kernel that it is."""
    graph = _graph(file)
    types = events["type"].tolist()
    # An operation outside of XNNPACK tells its number in the graph.
    numbers = [
        int(number) if type_ == _INVOKED else None
        for type_, number in zip(types, events["number"].tolist(), strict=True)
    ]
    matched = _matched([kind for kind, _ in graph], kernels, numbers)
    rows = []
    for kernel, type_, number in zip(kernels, types, matched, strict=True):
        kind, name = (kernel, kernel) if number is None else graph[number]
        within = "delegate" if type_ == _IN_DELEGATE else "graph"
        rows.append({"name": name, "type": kind, "kernel": kernel, "within": within})
    return rows


def _graph(file: str) -> list[tuple[str, str]]:
    """The type and the name (of the first output) of each operation of the main graph, in order."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(Path(file).read_bytes())
    graph = model.Subgraphs(0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    found = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "UNKNOWN")
        name = graph.Tensors(operator.Outputs(0)).Name() if operator.OutputsLength() else None
        # The converter names all that it fused, by ";"; the first is what made the output.
        found.append((kind, (name or b"").decode("utf-8", "replace").split(";")[0] or kind))
    return found


def _matched(kinds: list[str], kernels: list[str], numbers: list[int | None]) -> list[int | None]:
    """Which operation of the graph each kernel is; None where that is not certain.

    XNNPACK's kernels come in graph order, but an operation may be several of them (ADD and its
    activation) or none. Of the longest common sequences two are taken, which match as early and as
    late as can be: what they agree in is certain.
    """

    @functools.cache
    def runs_as(kind: str, kernel: str) -> bool:
        if kind == "DEPTHWISE_CONV_2D" or "DWConv" in kernel:
            return kind == "DEPTHWISE_CONV_2D" and kernel.startswith("Convolution")
        words = kind.removesuffix("_2D").replace("_", " ").lower()
        return kernel.startswith(_KERNELS.get(kind, ())) or kernel.lower().startswith(words)

    def fits(event: int, operation: int) -> bool:
        if numbers[event] is not None:
            return numbers[event] == operation
        return runs_as(kinds[operation], kernels[event])

    longest = [[0] * (len(kinds) + 1) for _ in range(len(kernels) + 1)]
    for event in range(len(kernels) - 1, -1, -1):
        row, below = longest[event], longest[event + 1]
        for operation in range(len(kinds) - 1, -1, -1):
            both = below[operation + 1] + 1 if fits(event, operation) else 0
            row[operation] = max(both, below[operation], row[operation + 1])

    def walk(early: bool) -> list[int | None]:
        found: list[int | None] = [None] * len(kernels)
        event = operation = 0
        while event < len(kernels) and operation < len(kinds):
            best, below = longest[event][operation], longest[event + 1]
            match = fits(event, operation) and best == below[operation + 1] + 1
            skips = best in (below[operation], longest[event][operation + 1])
            if match and (early or not skips):
                found[event] = operation
                event, operation = event + 1, operation + 1
            elif best == below[operation]:
                event += 1
            else:
                operation += 1
        return found

    return [
        first if first == last else None
        for first, last in zip(walk(early=True), walk(early=False), strict=True)
    ]

"""LiteRT's `benchmark_model`: where it is, its arguments, and what it prints.

google-ai-edge/LiteRT, tflite/tools/benchmark: formats of the current tool and of those since 2019.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency.target import TargetUnavailable, cache_directory
from latency.tflite import convert

DELEGATES = ("cpu", "gpu", "nnapi")
# Every run of an invocation with this many runs is known: see `Report.runs_ms`.
RUNS_AN_INVOCATION = 3
_PREBUILT = (
    "https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/lite/tools/nightly/"
    "latest/{}_benchmark_model"
)
_NAMES = {
    "arm64-v8a": "android_aarch64",
    "armeabi-v7a": "android_arm",
    "linux-aarch64": "linux_aarch64",
    "linux-armv7l": "linux_arm",
    "linux-x86_64": "linux_x86-64",
}
_NAMES_OF_ABIS = {
    "arm64-v8a": "aarch64",
    "armeabi-v7a": "armv7l",
    "x86": "i686",
    "linux-aarch64": "aarch64",
    "linux-armv7l": "armv7l",
    "linux-armv6l": "armv7l",
    "linux-i686": "i686",
    "linux-riscv64": "riscv64",
    "linux-x86_64": "x86_64",
}
_ELF_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_STATISTIC = re.compile(r"(\w+)=(-?[\d.]+(?:e[+-]?\d+)?)")
_NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"


@dataclasses.dataclass(frozen=True)
class Report:
    """What one invocation of the tool printed; times in milliseconds.

    `median_ms` is None from older tools, which print no percentiles. `delegated` is what
    became of the graph under the GPU or NNAPI delegate: "completely", "partially" or "not".
    `operations` has one dict an operation: name, type, ms (average of a run), calls (a run), and
    `within`: "graph", or "delegate" for a part of an operation of the graph that is listed too.
    """

    runs: int
    average_ms: float
    first_ms: float
    last_ms: float
    fastest_ms: float
    slowest_ms: float
    median_ms: float | None = None
    init_ms: float | None = None
    memory_mb: float | None = None
    delegated: str | None = None
    operations: tuple[dict[str, Any], ...] = ()

    @property
    def runs_ms(self) -> tuple[float, ...]:
        """Every timed run: the tool prints the first, the last, the extremes and the average.

        Of up to three runs that is all of them; of more, `ValueError`.
        """
        if self.runs > RUNS_AN_INVOCATION:
            raise ValueError(f"the runs of an invocation of {self.runs} cannot be told apart")
        if self.runs < 3:
            return (self.first_ms, self.last_ms)[: self.runs]
        middle = 3 * self.average_ms - self.first_ms - self.last_ms
        for extreme in (self.fastest_ms, self.slowest_ms):
            if extreme not in (self.first_ms, self.last_ms):
                middle = extreme  # as printed; the average has six digits only
        return (self.first_ms, min(max(middle, self.fastest_ms), self.slowest_ms), self.last_ms)


def find(abi: str, path: str | None = None) -> Path:
    """The tool for a machine: `path`, else NAS_CACHE/benchmark_model/ABI.

    `abi` is Android's ("arm64-v8a") or "linux-" and `uname -m`. Raises `TargetUnavailable` saying
    what to get and where to put it.
    """
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"benchmark={path}: expected LiteRT's benchmark_model, found no file")
        return _made_for(Path(path), abi)
    folder = cache_directory()
    cached = folder / "benchmark_model" / abi
    if cached.is_file():
        return _made_for(cached, abi)
    source = (
        f"download {_PREBUILT.format(_NAMES[abi])}"
        if abi in _NAMES
        else "build tflite/tools/benchmark:benchmark_model of github.com/google-ai-edge/LiteRT"
    )
    raise TargetUnavailable(
        f"LiteRT's benchmark_model for {abi} is missing: {source} and save it as {cached}, "
        "or name it with the option benchmark=PATH"
    )


def _made_for(tool: Path, abi: str) -> Path:
    """The tool, unless it is a program for other machines; `ValueError` says for which."""
    with open(tool, "rb") as file:
        start = file.read(4096)
    # man elf: e_machine is the 16 bits at 18; byte 5 tells their order.
    number = int.from_bytes(start[18:20], "little" if start[5:6] == b"\1" else "big")
    made, wanted = _ELF_MACHINES.get(number, f"machine {number}"), _NAMES_OF_ABIS.get(abi, abi)
    made_for_android = b"/system/bin/linker" in start
    if start[:4] == b"\x7fELF" and (
        made != wanted or made_for_android and abi.startswith("linux-")
    ):
        made += " Android" if made_for_android else ""
        raise ValueError(f"{tool}: built for {made}, the device needs one for {abi}")
    return tool


def arguments(
    graph: str,
    *,
    threads: int,
    warmup: int,
    runs: int,
    delegate: str = "cpu",
    operations: bool = False,
    warmup_s: float = 0.0,
    limit_s: float = 150.0,
    inputs: Sequence[str] = (),
) -> list[str]:
    """The tool's arguments for exactly `runs` timed runs, unless `limit_s` ends them before.

    `warmup_s` prolongs the warm-up; `inputs` is what `integers` gives. `operations` asks for the
    time of each operation and for peak memory, both of which disturb the timing.
    """
    if delegate not in DELEGATES:
        raise ValueError(f"delegate={delegate!r}: expected one of {', '.join(DELEGATES)}")
    listed = [
        f"--graph={graph}",
        f"--num_threads={int(threads)}",
        f"--warmup_runs={int(warmup)}",
        f"--warmup_min_secs={float(warmup_s):g}",
        f"--num_runs={int(runs)}",
        "--min_secs=0",  # the default of a second adds runs
        f"--max_secs={float(limit_s):g}",
        *inputs,
    ]
    if delegate != "cpu":
        listed.append(f"--use_{delegate}=true")
    if operations:
        listed += ["--enable_op_profiling=true", "--report_peak_memory_footprint=true"]
    return listed


def integers(file: Path) -> list[str]:
    """The arguments that make what a `.tflite` file looks up valid: its int32 and int64 inputs 0.

    The tool draws them from 0 to 99, which may lie outside of an embedding. It goes by the names of
    tensors and separates them by commas and colons; where a name holds these, it draws after all.
    """
    details = convert.load(file).get_input_details()
    looked_up = [one["name"] for one in details if one["dtype"] in (np.int32, np.int64)]
    if not looked_up or any({",", ":"} & set(one["name"]) for one in details):
        return []
    shapes = (",".join(map(str, one["shape"])) for one in details)
    return [
        f"--input_layer={','.join(one['name'] for one in details)}",
        f"--input_layer_shape={':'.join(shapes)}",
        f"--input_layer_value_range={':'.join(f'{name},0,0' for name in looked_up)}",
    ]


def parse(output: str) -> Report:
    """The report in what the tool printed; `ValueError` where there is none."""
    # Newer tools mark what they log; a table is logged as one, and marked on its first line.
    lines = [line.strip().removeprefix("INFO: ") for line in output.splitlines()]
    statistics = _timings(lines)
    if not statistics or not statistics.get("count") or not statistics.keys() & {"avg", "curr"}:
        last = next((line for line in reversed(lines) if line), "nothing")
        raise ValueError(f"benchmark_model printed no timings; its last line: {last[:200]}")
    # Equal runs are told as `count=2 curr=5(all same)`.
    same_us = statistics["curr"] if "curr" in statistics else statistics["avg"]
    average_ms, first_ms, last_ms, fastest_ms, slowest_ms = (
        statistics.get(key, same_us) / 1e3 for key in ("avg", "first", "curr", "min", "max")
    )
    median_us, init_us = statistics.get("median"), _number(rf"\bInit: {_NUMBER}", output)
    return Report(
        runs=int(statistics["count"]),
        average_ms=average_ms,
        first_ms=first_ms,
        last_ms=last_ms,
        fastest_ms=fastest_ms,
        slowest_ms=slowest_ms,
        median_ms=None if median_us is None else median_us / 1e3,
        init_ms=None if init_us is None else init_us / 1e3,
        memory_mb=_memory_mb(output),
        delegated=_delegated(output),
        operations=tuple(_operations(lines)),
    )


def _timings(lines: list[str]) -> dict[str, float] | None:
    """The statistics (microseconds) of the timed runs: the last such line, after the warm-up's.

    The profiler's own sums, and the one average of the oldest tools, count where there is no other.
    """
    timed = summed = averaged = None
    for line in lines:
        if line.startswith("count="):
            timed = _statistics(line)
        elif line.startswith("Timings (microseconds): count="):
            summed = _statistics(line)
        elif line.startswith("Average inference timings in us"):
            average = _number(rf"Inference: {_NUMBER}", line)
            averaged = None if average is None else {"count": 1.0, "avg": average}
    return timed or summed or averaged


def _statistics(line: str) -> dict[str, float]:
    return {key: float(value) for key, value in _STATISTIC.findall(line)}


def _number(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text)
    return float(found[1]) if found else None


def _memory_mb(output: str) -> float | None:
    """Peak memory: watched periodically if it was, else the tool's growth over its start."""
    for pattern in (
        rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}",
        rf"(?:Memory footprint delta|Peak memory footprint)[^\n]*\boverall={_NUMBER}",
    ):
        memory = _number(pattern, output)
        if memory is not None:
            return memory
    return None


def _delegated(output: str) -> str | None:
    found = re.search(
        r"(?:GPU|NNAPI) delegate(?: is explicitly applied)?, (?:and )?the model graph will "
        r"(?:be (completely|partially)|(not) be) executed",
        output,
    )
    return (found[1] or found[2]) if found else None


def _operations(lines: list[str]) -> list[dict[str, Any]]:
    """The rows of the tables "Run Order" of the timed runs (not those of the initialization)."""
    start = next((i for i, line in enumerate(lines) if line.startswith("Operator-wise Prof")), 0)
    rows: list[dict[str, Any]] = []
    columns: list[str] | None = None
    within = "graph"
    for line in lines[start:]:
        cells = [cell.strip() for cell in line.split("\t", len(columns or ()) - 1)]
        if line.startswith("Delegate internal"):
            within = "delegate"
        elif line.startswith("="):
            columns = [] if " Run Order " in line else None
        elif columns == [] and "[Name]" in cells:
            columns = cells
        elif columns and len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            rows.append(
                {
                    "name": row["[Name]"],
                    "type": row["[node type]"],
                    # The average is that of a call; old tools print 0 for one call a run.
                    "ms": float(row["[avg ms]"]) * max(1, int(row["[times called]"])),
                    "calls": max(1, int(row["[times called]"])),
                    "within": within,
                }
            )
        elif columns:
            columns = None
    return rows

"""LiteRT's benchmark_model on a Linux board: found there or sent to it, run, and removed again."""

import contextlib
import dataclasses
import functools
import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from latency.benchmark_tool import benchmark_model, invocations
from latency.boards.openssh import Board
from latency.target import TargetUnavailable

_WARMUP_S = 0.2  # a governor raises the clock within some 20 ms; then caches
# Where a folder can be, as the board's shell reads it: the first that has room and executes.
_PLACES = ('"${TMPDIR:-/tmp}"', '"$HOME"')
_MAKE = """place={place}/{name}
mkdir -m 700 "$place" || exit 1
set -- $(df -Pk "$place" | tail -n 1)
if [ "$4" -lt {need_kb} ]; then
  rm -rf "$place"
  echo "$4 kB are free"
  exit 2
fi
echo true > "$place/try" && chmod 700 "$place/try" && "$place/try" && exit 0
rm -rf "$place"
exit 3"""
_REMOVE = """for root in {places}; do
  [ -d "$root/{name}" ] || continue
  process=$(cat "$root/{name}/pid" 2> /dev/null)
  case $(readlink "/proc/$process/cwd") in */{name}) kill -9 $process;; esac
  rm -rf "$root/{name}"
done
true"""
# The tool ends, and its folder goes, when the input ends: this side is gone, or has waited enough.
_RUN = """cd {place} || exit 99
exec 3<&0
{command} < /dev/null &
child=$!
echo $child > pid
( read -r _ <&3; cd /; rm -rf {place}; kill -9 $child ) > /dev/null 2>&1 &
watching=$!
wait $child
status=$?
kill $watching 2> /dev/null
wait $watching 2> /dev/null
exit $status"""


@dataclasses.dataclass(frozen=True)
class Tool:
    """The tool for a board: a `file` of this machine, or None for the one on the board's PATH."""

    file: Path | None
    runtime: str  # "LiteRT benchmark_model 0123456789ab"

    def measure(
        self,
        board: Board,
        records: Path,
        file: Path,
        setting: dict[str, Any],
        warmup: int,
        runs: int,
        details: bool,
    ) -> invocations.Invocations:
        """Times a network; `setting` has threads, cores (None: not pinned) and limit_s.

        Raises `TargetUnavailable` where the board is lost, has no room, or does not end in
        `limit_s`, `ValueError` where the tool cannot run the network.
        """
        with self._ready(board, records, file, setting) as run:
            return invocations.invoke(run, warmup, runs, details)

    @contextlib.contextmanager
    def again(
        self, board: Board, records: Path, file: Path, setting: dict[str, Any]
    ) -> Iterator[Callable[[int], Sequence[float]]]:
        """A function that times a number of runs and gives their median; called repeatedly."""
        with self._ready(board, records, file, setting) as run:
            yield lambda runs: [invocations.usual_ms(run(warmup=1, runs=runs))]

    def operations(
        self, board: Board, records: Path, file: Path, setting: dict[str, Any], runs: int
    ) -> benchmark_model.Report:
        """One invocation that times each operation."""
        with self._ready(board, records, file, setting) as run:
            return run(warmup=1, runs=min(runs, 10), operations=True)

    @contextlib.contextmanager
    def _ready(
        self, board: Board, records: Path, model: Path, setting: dict[str, Any]
    ) -> Iterator[Callable[..., benchmark_model.Report]]:
        """What runs the tool on a network; both are in a folder of the board until this ends."""
        files = [("model.tflite", model)] + ([("benchmark_model", self.file)] if self.file else [])
        size = sum(file.stat().st_size for _, file in files)
        make = functools.partial(_make, board, size)
        with invocations.temporary_folder(records, make, functools.partial(remove, board)) as place:
            for name, file in files:
                board.send(file, f"{place}/{name}")
            if self.file:
                board.ask(f"chmod 700 {place}/benchmark_model")
            inputs = benchmark_model.integers(model)
            yield functools.partial(self._run, board, place, inputs=inputs, **setting)

    def _run(
        self,
        board: Board,
        place: str,
        *,
        threads: int,
        limit_s: float,
        cores: list[int] | None,
        **options: Any,
    ) -> benchmark_model.Report:
        """One invocation of the tool, ended by `limit_s`."""
        words = ["./benchmark_model" if self.file else "benchmark_model"]
        words += benchmark_model.arguments(
            "model.tflite",
            threads=threads,
            warmup_s=_WARMUP_S,
            limit_s=limit_s / 4,  # its warm-up and its runs have this each
            **options,
        )
        if cores is not None:
            words = ["taskset", f"{sum(1 << core for core in cores):x}", *words]
        try:
            script = _RUN.format(place=place, command=shlex.join(words))
            status, output = board.run(script, limit_s=limit_s)
        except TimeoutError as error:
            raise TargetUnavailable(
                f"benchmark_model hangs on board {board.where}: ended after {limit_s:g} s"
            ) from error
        if status == 127 and "taskset" in output and "benchmark_model" not in output:
            raise TargetUnavailable(
                f"board {board.where} has no taskset to pin cores with: `apt-get install "
                "util-linux` on it, or cores=all"
            )
        if status in (126, 127):
            last = (output.strip().splitlines() or ["it said nothing"])[-1]
            raise ValueError(
                f"board {board.where} cannot execute benchmark_model ({last[:200]}): is it one for "
                "this machine and system?"
            )
        if status:
            raise invocations.failure(status, output, f"board {board.where}")
        return benchmark_model.parse(output)


def find(board: Board, machine: str, path: str | None) -> Tool:
    """The tool: `path`, else the one on the board's PATH, else that of the cache."""
    if path is None:
        listed = board.ask(
            'tool=$(command -v benchmark_model) && { sha256sum "$tool" || cksum "$tool"; }; true'
        ).split()
        if listed:
            return Tool(None, f"LiteRT benchmark_model {listed[0][:12]}")
    file = benchmark_model.find(f"linux-{machine}", path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Tool(file, f"LiteRT benchmark_model {digest}")


def remove(board: Board, name: str) -> None:
    """Removes a folder from the board; ends a tool that runs there."""
    board.ask(_REMOVE.format(name=name, places=" ".join(_PLACES)))


def _make(board: Board, size: int, name: str) -> str:
    """Makes a folder with room for `size` bytes; where it is, as the board's shell reads it."""
    need_kb, reasons = size // 1024 + 64, []
    for place in _PLACES:
        try:
            script = _MAKE.format(place=place, name=name, need_kb=need_kb)
            status, output = board.run(script)
        except TimeoutError as error:
            raise TargetUnavailable(f"{error} to make a folder") from error
        if not status:
            return f"{place}/{name}"
        last = (output.strip().splitlines() or ["it said nothing"])[-1][:120]
        causes = {2: f"no room for {size / 1e6:.1f} MB, {last}", 3: "it executes no programs there"}
        reasons.append(causes.get(status, last))
    raise TargetUnavailable(
        f"board {board.where} has no place for benchmark_model: in its temporary folder "
        f"{reasons[0]}; in its home {reasons[1]}: free some, or runtime=python, which needs none"
    )

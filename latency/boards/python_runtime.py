"""The board's own Python LiteRT: found, and made to time a network by a script sent to it."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency.benchmark_tool import invocations
from latency.boards import python_script
from latency.boards.openssh import Board, pieces
from latency.measuring import stopwatch
from latency.target import TargetUnavailable

INSTALL = (
    "`python3 -m venv ~/venv && ~/venv/bin/pip install ai-edge-litert` on it (python=PATH names "
    "a Python elsewhere)"
)
_PATH = re.compile(r"(?:~?/|[A-Za-z0-9_])[A-Za-z0-9_./+@ -]*")
_BUSY = 0.9  # CPU time below this share of wall time: something else had the core
_OTHERS = 0.15  # of a core that other processes had
# The name of a Python and the script come as data: `dd` takes no byte more, `read` neither.
_TAKE = """IFS= read -r python
code=$(dd bs=1 count={size} 2> /dev/null)
case $python in "~/"*) python=$HOME/${{python#??}};; esac
"""
# Ends what runs when the input ends: this side is gone, or has waited long enough.
_PROBE = """exec 3<&0
for one in "$python" {others}; do
  command -v "$one" > /dev/null 2>&1 || continue
  "$one" -c "$code" probe < /dev/null &
  child=$!
  ( read -r _ <&3; kill -9 $child ) > /dev/null 2>&1 &
  watching=$!
  wait $child
  found=$?
  kill $watching 2> /dev/null
  wait $watching 2> /dev/null
  [ $found = 0 ] && echo "nas-python $(command -v "$one")" && exit 0
done
exit 1"""
_ELSEWHERE = 'python3 "$HOME/venv/bin/python" "$HOME/.venv/bin/python" python'


@dataclasses.dataclass(frozen=True)
class Python:
    """A Python on a board that has LiteRT."""

    executable: str
    runtime: str  # "ai-edge-litert 2.3.0, Python 3.11.2"

    def measure(
        self,
        board: Board,
        records: Path,
        file: Path,
        setting: dict[str, Any],
        warmup: int,
        runs: int,
        details: bool,
    ) -> "Run":
        """Times a network; nothing is written on the board, and it ends when the connection does.

        `setting` has threads, cores (a list, or None: not pinned) and limit_s. Raises
        `TargetUnavailable` where the board is lost or does not end in `limit_s`, `ValueError` where
        it cannot run the network.
        """
        limit_s = setting["limit_s"]
        request = setting | {
            "model_bytes": file.stat().st_size,
            "warmup": warmup,
            "runs": runs,
        }

        def data() -> Iterator[bytes]:
            yield self.executable.encode() + b"\n" + _CODE
            yield json.dumps(request).encode() + b"\n"
            yield from pieces(file)

        script = _TAKE.format(size=len(_CODE)) + '"$python" -c "$code" measure'
        try:
            status, output = board.run(script, data(), limit_s)
        except TimeoutError as error:
            raise TargetUnavailable(
                f"{self.runtime} hangs on board {board.where}: ended after {limit_s:g} s; "
                "fewer runs, or a higher limit_s"
            ) from error
        result = _result(output)
        if result is None:
            raise self._died(board, status, output)
        reason = str(result.get("reason", ""))[:300]
        if result.get("error") == "import":
            raise TargetUnavailable(
                f"{self.runtime} on board {board.where} does not start: {reason}; install it anew: "
                f"{INSTALL}"
            )
        if "error" in result:
            last = (reason.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"{self.runtime} on board {board.where} cannot run it: {last}")
        return Run(setting["threads"], result)

    @contextlib.contextmanager
    def again(
        self, board: Board, records: Path, file: Path, setting: dict[str, Any]
    ) -> Iterator[Callable[[int], Sequence[float]]]:
        """A function that times a number of runs and gives all of them, to be called repeatedly."""
        yield (
            lambda runs: (
                self.measure(board, records, file, setting, 0, runs, details=False).samples_ms
            )
        )

    def _died(self, board: Board, status: int, output: str) -> Exception:
        """Why Python ended without a result; a status over 128 is a signal's number."""
        last = next((one for one in output.splitlines()[::-1] if one.strip()), "it said nothing")
        if status == 137:
            return ValueError(
                f"board {board.where} killed LiteRT while it ran the network: is its memory full?"
            )
        if status == 132:
            return TargetUnavailable(
                f"{self.runtime} uses instructions that the CPU of board {board.where} lacks: "
                "install another version, or runtime=benchmark_model"
            )
        return ValueError(
            f"{self.runtime} ended with status {status} on board {board.where}: {last[:300]}"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """What the script measured of one network."""

    threads: int
    result: dict[str, Any]
    per_op: tuple[dict[str, Any], ...] | None = None  # Python times none
    operations_missing: str | None = None

    @property
    def samples_ms(self) -> tuple[float, ...]:
        return tuple(self.result["samples_ms"])

    @property
    def memory_mb(self) -> float | None:
        """How much the network added to the peak of memory."""
        return self.result["memory_mb"]

    @property
    def share(self) -> float | None:
        """CPU time over wall time: below 1 where something else had the core; of one thread."""
        if self.threads > 1:
            return None
        return float(np.sum(self.result["cpu_ms"]) / np.sum(self.samples_ms))

    def conditions(self) -> dict[str, Any]:
        """How the samples came about."""
        names = ("warmup_runs", "warm", "init_ms", "clocks_mhz", "others_cores")
        missing = self.operations_missing
        return {name: self.result[name] for name in names} | {
            **({"operations_missing": missing} if missing else {}),
            "values": "random from 0 to 1 of a fixed seed, integers 0",
            "samples": "every run",
            "contention": None if self.share is None else round(self.share, 3),
            "cpu_median_ms": float(np.median(self.result["cpu_ms"])),
        }

    def instabilities(self) -> list[str]:
        """Why the samples' median cannot be believed."""
        found = stopwatch.instabilities(self.samples_ms, invocations.SPREAD)
        if self.result["warm"] is False:
            found.append("it did not become steady in some seconds of warm-up")
        if self.share is not None and self.share < _BUSY:
            found.append(f"the network had its core for {self.share:.0%} of the time only")
        elif (self.result["others_cores"] or 0) > _OTHERS:
            found.append(f"other processes used {self.result['others_cores']:.2g} of its cores")
        return found


def check_path(path: Any) -> None:
    """Raises `ValueError` unless this can be a Python on a board."""
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ValueError(f"python={path!r}: expected a path on the board, as ~/venv/bin/python")


def find(board: Board, path: str | None) -> Python | None:
    """The Python on a board that has LiteRT: `path`, else where it usually is; None without."""
    script = _TAKE.format(size=len(_CODE)) + _PROBE.format(others="" if path else _ELSEWHERE)
    try:
        status, output = board.run(script, [(path or "").encode() + b"\n" + _CODE])
    except TimeoutError as error:
        raise TargetUnavailable(f"{error} to start Python: is it overloaded?") from error
    result = None if status else _result(output)
    if result is None:
        return None
    # By the name it was found by: a wrapper or a link may set up what Python itself does not tell.
    named = re.findall(r"^nas-python (.+)$", output, re.MULTILINE)
    return Python(path or named[-1], result["runtime"])


def _result(output: str) -> dict[str, Any] | None:
    """What `board_run.tell` printed."""
    for line in reversed(output.splitlines()):
        if line.startswith("nas-result "):
            try:
                return json.loads(line.removeprefix("nas-result "))
            except ValueError:
                return None
    return None


_CODE = Path(python_script.__file__).read_bytes()

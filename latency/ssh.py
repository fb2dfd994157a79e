"""Linux boards over ssh (Raspberry Pi, Jetson): their own Python LiteRT, or its benchmark_model."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from latency.benchmark_tool import invocations
from latency.boards import benchmark_tool, board_state, openssh, python_runtime
from latency.roofline import of_tflite
from latency.roofline.explanation import Explanation
from latency.system.json_records import utc_now
from latency.system.spared import keep_json
from latency.target import (
    FoundDevice,
    Kind,
    Latency,
    Target,
    TargetUnavailable,
    Timing,
    cache_directory,
)

_RUNTIMES = ("auto", "python", "benchmark_model")
_LOOK_S = 3  # for a board in `nas devices`


_Job = tuple[openssh.Board, Path, Path, dict[str, Any]]  # board, records, file, setting


@dataclasses.dataclass(frozen=True)
class SSH(Target):
    """A board by `host`, `[user@]host[:port]` or a name of ~/.ssh/config, which ssh can log in to.

    `runtime` is python (every run is timed; nothing is written on the board), benchmark_model
    (LiteRT's tool: `benchmark`, else the one on the board's PATH, else the one in
    NAS_CACHE/benchmark_model/linux-ARCH), or auto, which is python where the board has it. `python`
    is a Python on the board, by default python3 or that of ~/venv. `cores` is "2-3" or "1+3"; "all"
    pins nothing; by default as many of the fastest cores as there are `threads`. It waits
    `cool_down_s` for the board to come below `max_temperature_c` and not to throttle, and then
    refuses. An invocation may take `limit_s`. `config` is a file in the place of ~/.ssh/config,
    by default what NAS_SSH_CONFIG names.

    >>> SSH("pi@raspberrypi", threads=4).threads
    4
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.MEASURED})
    runs_tflite: ClassVar[bool] = True
    host: str | None = None
    port: int | None = None
    threads: int = 1
    cores: str | None = None
    runtime: str = "auto"
    python: str | None = None
    benchmark: str | None = None
    max_temperature_c: float = 70.0  # a Raspberry Pi slows down at 80, its soft limit is 60 to 70
    cool_down_s: float = 120.0
    limit_s: float = 300.0
    config: str | None = None

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        """The boards that were measured on before, whether they answer: no network is searched."""
        known = sorted(_known().glob("*.json"))
        if not known:
            hint = "none was used yet: name one that `ssh` can log in to, --target ssh:user@host"
            return [FoundDevice("ssh:user@host", "Linux boards over ssh", Kind.MEASURED, hint)]
        with concurrent.futures.ThreadPoolExecutor(min(16, len(known))) as pool:
            return [one for one in pool.map(cls._look, known) if one]

    @classmethod
    def _look(cls, file: Path) -> FoundDevice | None:
        """One board that was used before; None where its record cannot be read."""
        try:
            record = json.loads(file.read_text())
            spec, device = str(record["spec"]), str(record["device"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        missing = None
        try:
            where = cls(**record["options"])._address
            openssh.Board(where, _LOOK_S).close()
        except (TargetUnavailable, ValueError, TypeError) as error:
            missing = f"{error}; to forget it, delete {file}"
        return FoundDevice(spec, device, Kind.MEASURED, missing)

    def __post_init__(self):
        if self.host is None or isinstance(self.host, float):
            raise ValueError(f"host={self.host}: expected a board, ssh:user@host (quote a number)")
        object.__setattr__(self, "host", str(self.host))
        invocations.check_options(self)
        if self.runtime not in _RUNTIMES:
            raise ValueError(f"runtime={self.runtime!r}: expected one of {', '.join(_RUNTIMES)}")
        if self.python is not None:
            python_runtime.check_path(self.python)
        _ = self._address

    @property
    def device(self) -> str:
        return board_state.about(self._board()).name

    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement still holds."""
        board = self._board()
        about = board_state.about(board)
        return self._conditions(about, self._program(board, about), board_state.read(board))

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        with self._ready(model, batch_size) as (board, about, before, conditions, program, job):
            outcome = program.measure(*job, warmup, runs, details)
            if details and outcome.per_op is None and self.runtime == "auto":
                # Python does not time operations; the tool does, where there is one.
                outcome = self._with_operations(outcome, about, job, runs)
            after = board_state.read(board)
        conditions |= {"after": after.conditions(), **outcome.conditions(), "date": utc_now()}
        reasons = board_state.instabilities(before, after) + outcome.instabilities()
        return invocations.timing_of(outcome, conditions, reasons)

    def spells(self, model: Any, batch_size: int, seconds: float) -> Iterator[Timing]:
        """From a cool board on; Python gives every run, the tool the median of a spell."""
        with self._ready(model, batch_size) as (board, _, _, conditions, program, job):

            def state() -> dict[str, Any]:
                return board_state.read(board).conditions()

            with program.again(*job) as sample:
                yield from invocations.spells(sample, state, conditions, seconds)

    def explain(self, model: Any, latency: Latency) -> Explanation:
        return of_tflite.explain(self, model, latency)

    @contextlib.contextmanager
    def _ready(self, model: Any, batch_size: int) -> Iterator[tuple]:
        """The board alone and cool, what it is, its state, the conditions, and what to run.

        The last two are the program and the first arguments of its `measure`.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = invocations.checked_file(model, Path(folder), batch_size)
            board = self._board()
            about = board_state.about(board)
            program = self._program(board, about)
            with invocations.alone("ssh", about.identifier, f"board {board.where}") as records:
                invocations.remove_left(records, functools.partial(benchmark_tool.remove, board))
                before, waited_s = self._cooled(board)
                conditions = self._conditions(about, program, before) | before.conditions()
                conditions["waited_s"] = round(waited_s, 1)
                setting = {"threads": self.threads, "limit_s": self.limit_s}
                setting["cores"] = conditions["pinned_cores"]
                job = (board, records, file, setting)
                yield board, about, before, conditions, program, job
        self._remember(about)

    def _with_operations(
        self, outcome: python_runtime.Run, about: board_state.About, job: _Job, runs: int
    ) -> python_runtime.Run:
        """The timed runs with the operations of the tool, or with the reason why they lack."""
        try:
            tool = benchmark_tool.find(job[0], about.machine, self.benchmark)
        except TargetUnavailable:
            missing = f"no benchmark_model for linux-{about.machine} (runtime=benchmark_model)"
            return dataclasses.replace(outcome, operations_missing=missing)
        try:
            report = tool.operations(*job, runs)
        except (TargetUnavailable, ValueError) as error:  # the times are good all the same
            return dataclasses.replace(outcome, operations_missing=str(error))
        return dataclasses.replace(outcome, per_op=report.operations or None)

    def _program(
        self, board: openssh.Board, about: board_state.About
    ) -> python_runtime.Python | benchmark_tool.Tool:
        """What times networks on the board; `TargetUnavailable` says how to get it."""
        if self.runtime == "python" or self.runtime == "auto" and self.python:
            python = python_runtime.find(board, self.python)
            if python is None:
                named = self.python or "python3, nor that of ~/venv"
                raise TargetUnavailable(
                    f"board {board.where} has no LiteRT in {named}: {python_runtime.INSTALL}"
                )
            return python
        if self.runtime == "auto" and not self.benchmark:
            python = python_runtime.find(board, None)
            if python is not None:
                return python
        try:
            return benchmark_tool.find(board, about.machine, self.benchmark)
        except TargetUnavailable as error:
            if self.runtime == "benchmark_model":
                raise
            raise TargetUnavailable(
                f"board {board.where} has no Python with LiteRT: {python_runtime.INSTALL};"
                f" or {error}"
            ) from error

    def _cooled(self, board: openssh.Board) -> tuple[board_state.State, float]:
        """The board's state once it is cool, and the seconds waited for that."""
        return invocations.cooled(
            lambda: board_state.read(board),
            lambda state: state.too_hot(self.max_temperature_c),
            self.cool_down_s,
            f"board {board.where}",
            "give it a fan or a rest",
        )

    def _conditions(
        self,
        about: board_state.About,
        program: python_runtime.Python | benchmark_tool.Tool,
        state: board_state.State,
    ) -> dict[str, Any]:
        usual, online = state.fastest(self.threads), tuple(state.cores)
        return {
            "device": about.name,
            "system": about.system,
            "board": hashlib.sha256(about.identifier.encode()).hexdigest()[:12],
            "runtime": program.runtime,
            "threads": self.threads,
            "pinned_cores": invocations.pinned(self.cores, self.threads, usual, online, "board"),
            "governor": state.governor,
        }

    @property
    def _address(self) -> openssh.Address:
        return openssh.address(str(self.host), self.port, self.config)

    def _board(self) -> openssh.Board:
        return openssh.connected(self._address)

    def _remember(self, about: board_state.About) -> None:
        """Keeps what `found` lists: how the board was reached."""
        names = ("host", "port", "config", "python", "benchmark", "runtime")
        options = {name: getattr(self, name) for name in names}
        for name in ("config", "benchmark"):  # of this machine, whatever the folder is then
            options[name] = options[name] and str(Path(options[name]).absolute())
        default = {field.name: field.default for field in dataclasses.fields(self)}
        changed = [f"{n}={options[n]}" for n in names[1:] if options[n] != default[n]]
        spec = ",".join([f"ssh:{self.host}", *changed])
        record = {"spec": spec, "device": about.name, "options": options, "date": utc_now()}
        name = hashlib.sha256(spec.encode()).hexdigest()[:16]
        keep_json(_known() / f"{name}.json", record)


def _known() -> Path:
    """Where the boards that were used are recorded."""
    return cache_directory() / "ssh" / "known"

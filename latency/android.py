"""Android phones over adb: LiteRT's own benchmark_model on pinned cores, cool or not at all."""

import contextlib
import dataclasses
import datetime
import hashlib
import math
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latency import adb, benchmark_model, litert, phone_state
from latency.target import Found, Kind, Target, TargetUnavailable, Timing, cache_directory

_PLACE = "/data/local/tmp"  # what the shell user may write and execute
_BUSY_S = 900.0  # for another process that measures on the same phone
_WARMUP_S = 0.2  # a governor raises the clock within some 20 ms; then caches
_AGREE = 0.15  # the samples' median and the tool's own figure of one long invocation
_SPREAD = 0.06  # half width of the median's confidence interval beyond which it is not stable


@dataclasses.dataclass(frozen=True)
class Android(Target):
    """A phone, by `serial` (as `adb devices` prints it, or HOST:PORT) or the only one attached.

    `delegate` is cpu (XNNPACK), gpu or nnapi. `cores` is "4-7" or "4+6"; "all" pins nothing; by
    default the biggest cores, as many clusters of them as `threads` need. It waits `cool_down_s`
    for battery and skin to come below `max_temperature_c` and for the phone not to throttle, and
    then refuses. An invocation of the tool may take `limit_s`. `benchmark` is LiteRT's
    benchmark_model for the phone, else NAS_CACHE/benchmark_model/ABI.

    The tool prints no single times, only the first, last, fastest, slowest and the average, which
    are all of three runs: the samples are the runs of invocations of three.

    >>> Android("0A1B2C", threads=4, cores="4-7").threads
    4
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.MEASURED})
    serial: str | None = None
    threads: int = 1
    delegate: str = "cpu"
    cores: str | None = None
    max_temperature_c: float = 40.0  # skin and battery; phones begin to throttle about there
    cool_down_s: float = 120.0
    limit_s: float = 300.0
    benchmark: str | None = None

    @classmethod
    def found(cls) -> list[Found]:
        """Every phone that adb lists; what hinders those that cannot be used."""
        try:
            phones = adb.attached()
        except TargetUnavailable as error:
            return [Found("android", "Android phones", Kind.MEASURED, str(error))]
        listed = []
        for phone in phones:
            device, missing = phone.about or "Android phone", None
            try:
                target = cls(phone.serial)
                about = phone_state.about(adb.ready(phone.serial))
                device = about.name
                target._tool(about)
            except (TargetUnavailable, ValueError) as error:
                missing = str(error)
            listed.append(Found(f"android:{phone.serial}", device, Kind.MEASURED, missing))
        nothing = "no phone is attached: plug one in and switch on USB debugging"
        return listed or [Found("android", "Android phones", Kind.MEASURED, nothing)]

    def __post_init__(self):
        if self.serial is not None:  # a spec makes numbers of digits
            if isinstance(self.serial, float):
                raise ValueError(f"serial={self.serial}: quote it, android:'SERIAL'")
            object.__setattr__(self, "serial", adb.checked(str(self.serial)))
        if self.cores is not None:
            object.__setattr__(self, "cores", str(self.cores))
            _cores(self.cores)
        if not isinstance(self.threads, int) or not 1 <= self.threads <= 64:
            raise ValueError(f"threads={self.threads!r}: expected 1 to 64")
        if self.delegate not in benchmark_model.DELEGATES:
            names = ", ".join(benchmark_model.DELEGATES)
            raise ValueError(f"delegate={self.delegate!r}: expected one of {names}")
        for name, least in (("max_temperature_c", 0), ("cool_down_s", 0), ("limit_s", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not least <= value < math.inf:
                raise ValueError(f"{name}={value!r}: expected a number from {least}")

    @property
    def device(self) -> str:
        return phone_state.about(adb.ready(self.serial)).name

    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement still holds."""
        phone = adb.ready(self.serial)
        about = phone_state.about(phone)
        return self._conditions(about, self._tool(about), phone_state.read(phone))

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        if batch_size != 1:
            raise ValueError(f"batch_size={batch_size}: a LiteRT file is written for batch 1")
        with tempfile.TemporaryDirectory() as folder:
            file = _checked_file(model, Path(folder))
            phone = adb.ready(self.serial)
            about = phone_state.about(phone)
            tool = self._tool(about)
            with _alone(phone.serial) as records:
                _remove_left(phone, records)
                before, waited_s = self._cooled(phone)
                conditions = self._conditions(about, tool, before)
                with _folder(phone, records) as place:
                    phone.push(tool, f"{place}/benchmark_model")
                    phone.push(file, f"{place}/model.tflite")
                    phone_state.ask(phone, f"chmod 755 {place}/benchmark_model")
                    whole, samples, detail = self._invoke(
                        phone, place, conditions["pinned_cores"], warmup, runs, details
                    )
                after = phone_state.read(phone)
        usual_ms = whole.average_ms if whole.median_ms is None else whole.median_ms
        conditions |= {
            **before.conditions(),
            "after": after.conditions(),
            "waited_s": round(waited_s, 1),
            "delegated": whole.delegated,
            "samples": f"runs of invocations of {benchmark_model.RUNS_AN_INVOCATION}",
            "one_invocation": {
                "runs": whole.runs,
                "average_ms": whole.average_ms,
                "median_ms": whole.median_ms,
                "fastest_ms": whole.fastest_ms,
                "slowest_ms": whole.slowest_ms,
            },
            "init_ms": whole.init_ms,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        doubts = phone_state.doubts(before, after) + _doubts(samples, usual_ms)
        conditions["stable"] = not doubts
        if doubts:
            conditions["reason"] = "; ".join(doubts)
        return Timing(
            tuple(samples),
            conditions,
            Kind.MEASURED,
            memory_mb=detail.memory_mb if detail else None,
            per_op=(detail.operations or None) if detail else None,
            per_op_kind=Kind.MEASURED if detail and detail.operations else None,
        )

    def _invoke(
        self,
        phone: adb.Phone,
        place: str,
        cores: list[int] | None,
        warmup: int,
        runs: int,
        details: bool,
    ) -> tuple[benchmark_model.Report, list[float], benchmark_model.Report | None]:
        """One invocation of all runs as anybody would do it, the samples, and the operations."""
        first = max(1, warmup)
        whole = self._run(phone, place, cores, warmup=first, runs=runs)
        samples: list[float] = []
        while len(samples) < runs:
            some = min(benchmark_model.RUNS_AN_INVOCATION, runs - len(samples))
            report = self._run(phone, place, cores, warmup=min(first, 3), runs=some)
            samples += report.runs_ms
        detail = None
        if details:
            detail = self._run(phone, place, cores, warmup=1, runs=min(runs, 10), operations=True)
        return whole, samples, detail

    def _run(
        self, phone: adb.Phone, place: str, cores: list[int] | None, **options
    ) -> benchmark_model.Report:
        """One invocation of the tool, ended by `limit_s`."""
        command = [f"{place}/benchmark_model"] + benchmark_model.arguments(
            f"{place}/model.tflite",
            threads=self.threads,
            delegate=self.delegate,
            warmup_s=_WARMUP_S,
            limit_s=self.limit_s / 4,  # its warm-up and its runs have this each
            **options,
        )
        if cores is not None:
            command = ["taskset", f"{sum(1 << core for core in cores):x}", *command]
        try:
            status, output = phone.shell(
                f"{shlex.join(command)} < /dev/null & echo $! > {place}/pid; wait $!",
                self.limit_s,
            )
        except TimeoutError as error:
            raise TargetUnavailable(
                f"benchmark_model hangs on phone {phone.serial}: ended after {self.limit_s:g} s"
            ) from error
        if status:
            lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
            told = next((line for line in reversed(lines) if "ERROR" in line.upper()), lines[-1])
            raise ValueError(
                f"benchmark_model ended with status {status} on phone {phone.serial}: {told[:300]}"
                + (" (killed: is its memory full?)" if status == 137 else "")
            )
        report = benchmark_model.parse(output)
        if self.delegate != "cpu" and report.delegated not in ("completely", "partially"):
            raise ValueError(
                f"delegate={self.delegate}: phone {phone.serial} runs nothing of this network on "
                "it, all would run on the CPU: use delegate=cpu"
            )
        return report

    def _cooled(self, phone: adb.Phone) -> tuple[phone_state.State, float]:
        """The phone's state once it is cool, and the seconds waited for that."""
        started = time.monotonic()
        while True:
            state = phone_state.read(phone)
            hot = state.too_hot(self.max_temperature_c)
            waited_s = time.monotonic() - started
            if hot is None:
                return state, waited_s
            if waited_s >= self.cool_down_s:
                raise TargetUnavailable(
                    f"phone {phone.serial} is too hot to measure: {hot}, after waiting "
                    f"{waited_s:.0f} s; let it cool off the charger, or raise max_temperature_c"
                )
            time.sleep(min(5.0, self.cool_down_s / 10 + 0.1))

    def _tool(self, about: phone_state.About) -> Path:
        """benchmark_model for the best of the phone's ABIs that there is one for."""
        for abi in about.abis:
            with contextlib.suppress(TargetUnavailable):
                return benchmark_model.find(abi, self.benchmark)
        return benchmark_model.find(about.abis[0])  # raises, saying what to get

    def _conditions(self, about, tool: Path, state: phone_state.State) -> dict[str, Any]:
        cores = state.biggest(self.threads)
        if self.cores is not None:
            cores = None if self.cores == "all" else _cores(self.cores)
            unknown = sorted(set(cores or ()) - set(state.cores)) if state.cores else []
            if unknown:
                raise ValueError(
                    f"cores={self.cores}: the phone has no core {unknown[0]} (online: "
                    f"{', '.join(map(str, state.cores))})"
                )
        usable = len(state.cores if cores is None else cores)
        if usable and self.threads > usable:
            raise ValueError(f"threads={self.threads}: there are {usable} cores for them")
        digest = hashlib.sha256(tool.read_bytes()).hexdigest()[:12]
        return {
            "device": about.name,
            "build": about.build,
            "serial": about.serial,
            "runtime": f"LiteRT benchmark_model {digest}",
            "threads": self.threads,
            "delegate": self.delegate,
            "pinned_cores": cores,
        }


def _cores(text: str) -> list[int]:
    """The cores of "4-7", "7" or "4+6-7"; none of "all"."""
    if text == "all":
        return []
    cores: set[int] = set()
    for part in text.split("+"):
        found = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", part)
        if not found:
            raise ValueError(f"cores={text!r}: expected cores as 4-7 or 4+6, or all")
        cores |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    if not cores or max(cores) > 63:
        raise ValueError(f"cores={text!r}: expected cores as 4-7 or 4+6, or all")
    return sorted(cores)


def _checked_file(model: Any, folder: Path) -> Path:
    """The `.tflite` file of a model, which LiteRT here can load; `ValueError` where it cannot."""
    tflite = litert.file_of(model)
    if isinstance(tflite, bytes):
        file = folder / "model.tflite"
        file.write_bytes(tflite)
        tflite = file
    litert.load(tflite)
    return tflite


@contextlib.contextmanager
def _alone(serial: str) -> Iterator[Path]:
    """Waits until no other process measures on the phone; the folder of what is left on it."""
    # A serial may be HOST:PORT, or "..": never a path.
    folder = cache_directory() / "android" / hashlib.sha256(serial.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl  # noqa: PLC0415 (not on Windows)
    except ImportError:
        yield folder
        return
    with open(folder / "lock", "w") as lock:
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - started > _BUSY_S:
                    raise TargetUnavailable(
                        f"another process measures on phone {serial} since {_BUSY_S / 60:.0f} min"
                    ) from None
                time.sleep(0.2)
        yield folder


@contextlib.contextmanager
def _folder(phone: adb.Phone, records: Path) -> Iterator[str]:
    """A folder on the phone, removed afterwards with what is in it.

    It is recorded here before it is made, so that what could not be removed (the phone was
    unplugged, this process killed) is removed when the phone is used next.
    """
    name = f"nas-{secrets.token_hex(8)}"
    (records / name).touch()
    try:
        phone_state.ask(phone, f"mkdir {_PLACE}/{name}")
        yield f"{_PLACE}/{name}"
    finally:
        with contextlib.suppress(TargetUnavailable):
            _remove_left(phone, records)


def _remove_left(phone: adb.Phone, records: Path) -> None:
    """Removes from the phone all that is recorded as left on it; ends a tool that runs there."""
    names = [one.name for one in records.iterdir() if re.fullmatch(r"nas-[0-9a-f]{16}", one.name)]
    for name in names:
        place = f"{_PLACE}/{name}"
        phone_state.ask(
            phone,
            f"p=$(cat {place}/pid 2>/dev/null) && grep -q {name} /proc/$p/cmdline 2>/dev/null"
            f" && kill -9 $p; rm -rf {place}",
        )
        (records / name).unlink(missing_ok=True)


def _doubts(samples: list[float], usual_ms: float) -> list[str]:
    """Why the samples' median cannot be believed."""
    median = float(np.median(samples))
    low, high = np.quantile(samples, (0.25, 0.75))
    # Standard error of a median from the quartiles: 1.25 sigma / sqrt(n), sigma = (q3 - q1) / 1.35.
    error = 1.96 * 1.25 * (high - low) / 1.35 / len(samples) ** 0.5 / median
    found = []
    if error > _SPREAD:
        found.append(f"the median is uncertain by {error:.0%}: use more runs")
    if abs(usual_ms / median - 1) > _AGREE:
        found.append(f"one invocation of all runs gave {usual_ms:.4g} ms")
    return found

"""Android phones over adb: LiteRT's own benchmark_model on pinned cores, cool or not at all."""

import contextlib
import dataclasses
import functools
import hashlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from latency.benchmark_tool import benchmark_model, invocations
from latency.phones import adb, phone_state
from latency.roofline import of_tflite
from latency.roofline.explanation import Explanation
from latency.system.json_records import utc_now
from latency.target import FoundDevice, Kind, Latency, Target, TargetUnavailable, Timing

_PLACE = "/data/local/tmp"  # what the shell user may write and execute
_WARMUP_S = 0.2  # a governor raises the clock within some 20 ms; then caches


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
    runs_tflite: ClassVar[bool] = True
    serial: str | None = None
    threads: int = 1
    delegate: str = "cpu"
    cores: str | None = None
    max_temperature_c: float = 40.0  # skin and battery; phones begin to throttle about there
    cool_down_s: float = 120.0
    limit_s: float = 300.0
    benchmark: str | None = None

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        """Every phone that adb lists; what hinders those that cannot be used."""
        try:
            phones = adb.attached_phones()
        except TargetUnavailable as error:
            return [FoundDevice("android", "Android phones", Kind.MEASURED, str(error))]
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
            listed.append(FoundDevice(f"android:{phone.serial}", device, Kind.MEASURED, missing))
        nothing = "no phone is attached: plug one in and switch on USB debugging"
        return listed or [FoundDevice("android", "Android phones", Kind.MEASURED, nothing)]

    def __post_init__(self):
        if self.serial is not None:  # a spec makes numbers of digits
            if isinstance(self.serial, float):
                raise ValueError(f"serial={self.serial}: quote it, android:'SERIAL'")
            object.__setattr__(self, "serial", adb.checked(str(self.serial)))
        invocations.check_options(self)
        if self.delegate not in benchmark_model.DELEGATES:
            names = ", ".join(benchmark_model.DELEGATES)
            raise ValueError(f"delegate={self.delegate!r}: expected one of {names}")

    @property
    def device(self) -> str:
        return phone_state.about(adb.ready(self.serial)).name

    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement still holds."""
        phone = adb.ready(self.serial)
        about = phone_state.about(phone)
        return self._conditions(about, self._tool(about), phone_state.read(phone))

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        with self._ready(model, batch_size) as (phone, before, conditions, run):
            outcome = invocations.invoke(run, warmup, runs, details)
            after = phone_state.read(phone)
        conditions |= {
            "after": after.conditions(),
            "delegated": outcome.whole.delegated,
            **outcome.conditions(),
            "date": utc_now(),
        }
        reasons = phone_state.instabilities(before, after) + outcome.instabilities()
        return invocations.timing_of(outcome, conditions, reasons)

    def spells(self, model: Any, batch_size: int, seconds: float) -> Iterator[Timing]:
        """From a cool phone on; of each spell the tool gives one figure, its median."""
        with self._ready(model, batch_size) as (phone, _, conditions, run):

            def sample(runs: int) -> list[float]:
                return [invocations.usual_ms(run(warmup=1, runs=runs))]

            def state() -> dict[str, Any]:
                return phone_state.read(phone).conditions()

            yield from invocations.spells(sample, state, conditions, seconds)

    def explain(self, model: Any, latency: Latency) -> Explanation:
        return of_tflite.explain(self, model, latency)

    @contextlib.contextmanager
    def _ready(self, model: Any, batch_size: int) -> Iterator[tuple]:
        """The phone alone and cool, its state, the conditions, and what runs the tool on `model`.

        What was pushed is removed afterwards.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = invocations.checked_file(model, Path(folder), batch_size)
            phone = adb.ready(self.serial)
            about = phone_state.about(phone)
            tool = self._tool(about)
            with invocations.alone("android", about.hardware, f"phone {phone.serial}") as records:
                invocations.remove_left(records, functools.partial(_remove, phone))
                before, waited_s = self._cooled(phone)
                conditions = self._conditions(about, tool, before) | before.conditions()
                conditions["waited_s"] = round(waited_s, 1)
                with _folder(phone, records) as place:
                    phone.push(tool, f"{place}/benchmark_model")
                    phone.push(file, f"{place}/model.tflite")
                    phone_state.ask(phone, f"chmod 755 {place}/benchmark_model")
                    run = functools.partial(
                        self._run,
                        phone,
                        place,
                        conditions["pinned_cores"],
                        inputs=benchmark_model.integers(file),
                    )
                    yield phone, before, conditions, run

    def _run(
        self, phone: adb.Phone, place: str, cores: list[int] | None, **options: Any
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
            raise invocations.failure(status, output, f"phone {phone.serial}")
        report = benchmark_model.parse(output)
        if self.delegate != "cpu" and report.delegated not in ("completely", "partially"):
            raise ValueError(
                f"delegate={self.delegate}: phone {phone.serial} runs nothing of this network on "
                "it, all would run on the CPU: use delegate=cpu"
            )
        return report

    def _cooled(self, phone: adb.Phone) -> tuple[phone_state.State, float]:
        """The phone's state once it is cool, and the seconds waited for that."""
        return invocations.cooled(
            lambda: phone_state.read(phone),
            lambda state: state.too_hot(self.max_temperature_c),
            self.cool_down_s,
            f"phone {phone.serial}",
            "let it cool off the charger",
        )

    def _tool(self, about: phone_state.About) -> Path:
        """benchmark_model for the best of the phone's ABIs that there is one for."""
        for abi in about.abis:
            with contextlib.suppress(TargetUnavailable):
                return benchmark_model.find(abi, self.benchmark)
        return benchmark_model.find(about.abis[0])  # raises, saying what to get

    def _conditions(
        self, about: phone_state.About, tool: Path, state: phone_state.State
    ) -> dict[str, Any]:
        usual, online = state.biggest(self.threads), tuple(state.cores)
        cores = invocations.pinned(self.cores, self.threads, usual, online, "phone")
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


@contextlib.contextmanager
def _folder(phone: adb.Phone, records: Path) -> Iterator[str]:
    """A folder on the phone, removed afterwards with what is in it."""

    def make(name: str) -> str:
        phone_state.ask(phone, f"mkdir {_PLACE}/{name}")
        return f"{_PLACE}/{name}"

    with invocations.temporary_folder(records, make, functools.partial(_remove, phone)) as place:
        yield place


def _remove(phone: adb.Phone, name: str) -> None:
    """Removes a folder from the phone; ends a tool that runs there."""
    place = f"{_PLACE}/{name}"
    phone_state.ask(
        phone,
        f"p=$(cat {place}/pid 2>/dev/null) && grep -q {name} /proc/$p/cmdline 2>/dev/null"
        f" && kill -9 $p; rm -rf {place}",
    )

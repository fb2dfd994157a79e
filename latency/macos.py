"""This Mac through Core ML: CPU, GPU and Neural Engine; elsewhere it only converts."""

import dataclasses
import platform
from typing import Any, ClassVar

from latency.apple import coreml
from latency.system import device_lock
from latency.target import FoundDevice, Kind, Target, TargetUnavailable, Timing


@dataclasses.dataclass(frozen=True)
class MacOS(Target):
    """The Mac that this runs on.

    `units` is what may compute: all, cpu, cpu_gpu or cpu_ane (the Neural Engine). `precision` is
    float16 or float32. The converted network is kept at `save` (a name.mlpackage, or a folder),
    else in the user's cache. A measurement may take `limit_s`.

    >>> MacOS("cpu_ane").units
    'cpu_ane'
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.MEASURED})
    units: str = "all"
    precision: str = "float16"
    save: str | None = None
    limit_s: float = 600.0

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        target = cls()
        try:
            return [FoundDevice("macos", target.device, Kind.MEASURED, coreml.missing())]
        except TargetUnavailable as error:
            return [FoundDevice("macos", "Core ML on a Mac", Kind.MEASURED, str(error))]

    def __post_init__(self):
        coreml.check(self.units, self.precision, self.limit_s)

    @property
    def device(self) -> str:
        _must_be_macos()
        return f"{_chip()}, macOS {platform.mac_ver()[0]}"

    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement still holds."""
        if (missing_package := coreml.missing()) is not None:
            raise TargetUnavailable(missing_package)
        return {
            "device": self.device,
            "runtime": coreml.runtime(),
            "units": self.units,
            "precision": self.precision,
            "kind": str(Kind.MEASURED),
        }

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        package = coreml.convert(model, batch_size, self.precision, self.save)
        try:
            conditions = self.identity() | {"package": str(package), **_state()}
            request = {
                "operation": "time",
                "package": str(package),
                "units": coreml.UNITS[self.units],
                "warmup": warmup,
                "runs": runs,
            }
            with device_lock.alone("macos", "this Mac"):
                answer = coreml.ask(request, self.limit_s)
        except TargetUnavailable as error:
            raise coreml.with_location(error, package) from error
        conditions["after"] = _state()
        return coreml.timed(answer, conditions)


def _must_be_macos() -> None:
    if platform.system() != "Darwin":
        raise TargetUnavailable(
            f"Core ML runs a network on macOS only ({coreml.system()}): run the same command on "
            "a Mac"
        )


def _chip() -> str:
    name = coreml.output_of(["sysctl", "-n", "machdep.cpu.brand_string"], 10)
    return name or f"Mac ({platform.machine()})"


def _state() -> dict[str, Any]:
    """Power and heat, in the system's own words, where it reports them without root."""
    power = coreml.output_of(["pmset", "-g", "batt"], 10).splitlines()
    heat = coreml.output_of(["pmset", "-g", "therm"], 10)
    limits = [" ".join(line.split()) for line in heat.splitlines() if "_Limit" in line]
    return {"power": power[0] if power else None, "thermal_limits": limits or None}

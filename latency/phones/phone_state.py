"""What a phone reports: name and ABIs, battery, temperatures, throttling, clocks."""

import dataclasses
import re
from typing import Any

from latency.phones import adb
from latency.target import TargetUnavailable

# Fixed words: nothing here comes from a user. Each part may be missing on some phone.
_READ = """
echo nas-battery; dumpsys battery
echo nas-thermal; dumpsys thermalservice
echo nas-saver; settings get global low_power
echo nas-cores
for core in /sys/devices/system/cpu/cpu[0-9]*; do
  f=$core/cpufreq
  echo ${core##*/cpu} $(cat $f/cpuinfo_max_freq $f/scaling_max_freq $f/scaling_governor 2>/dev/null)
done
true"""
_BATTERY, _SKIN = 2, 3  # android.os.Temperature.TYPE_*
_CPU = 0


@dataclasses.dataclass(frozen=True)
class About:
    """What does not change while a phone runs."""

    serial: str
    hardware: str  # its serial number by whatever way it is reached, USB or network
    name: str
    build: str
    abis: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Core:
    """A core that is online: its highest clock and the highest allowed now, in MHz."""

    highest_mhz: int
    allowed_mhz: int
    governor: str


@dataclasses.dataclass(frozen=True)
class State:
    """What changes; None where the phone does not tell."""

    battery_c: float | None
    skin_c: float | None
    cpu_c: float | None
    throttling: int | None  # android.os.PowerManager.THERMAL_STATUS_*: 0 is none
    battery_percent: int | None
    charging: bool | None
    battery_saver: bool | None
    cores: dict[int, Core]

    def conditions(self) -> dict[str, Any]:
        """The fields as plain data, for a record."""
        fields = {name: value for name, value in vars(self).items() if name != "cores"}
        governors = sorted({core.governor for core in self.cores.values()})
        allowed = sorted({core.allowed_mhz for core in self.cores.values()})
        return fields | {"governor": "+".join(governors) or None, "allowed_mhz": allowed}

    def too_hot(self, limit_c: float) -> str | None:
        """Why a measurement now would be one of a hot phone."""
        for part, value in (("battery", self.battery_c), ("skin", self.skin_c)):
            if value is not None and value > limit_c:
                return f"its {part} has {value:.1f} C, the limit is {limit_c:g} C"
        if self.throttling:
            return f"it throttles (thermal status {self.throttling})"
        return None

    def biggest(self, threads: int) -> list[int] | None:
        """The cores of the fastest clusters, as many clusters as `threads` need."""
        chosen: list[int] = []
        for highest_mhz in sorted({core.highest_mhz for core in self.cores.values()}, reverse=True):
            if len(chosen) < threads:
                chosen += [n for n, core in self.cores.items() if core.highest_mhz == highest_mhz]
        return sorted(chosen) or None


def about(phone: adb.Phone) -> About:
    """The phone's name, build and ABIs, best first."""
    properties = dict(re.findall(r"^\[([^]]+)\]: \[([^]]*)\]", ask(phone, "getprop"), re.MULTILINE))

    def property_of(*names: str) -> str:
        return next((properties[name] for name in names if properties.get(name)), "")

    maker, model = property_of("ro.product.manufacturer"), property_of("ro.product.model")
    chip = property_of("ro.soc.model", "ro.board.platform", "ro.hardware") or "unknown chip"
    abis = property_of("ro.product.cpu.abilist", "ro.product.cpu.abi")
    if not abis:
        raise TargetUnavailable(f"phone {phone.serial} names no ABI in getprop: is it Android?")
    hardware = property_of("ro.serialno", "ro.boot.serialno")
    return About(
        serial=phone.serial,
        # All emulators have the same one.
        hardware=phone.serial if not hardware or hardware.startswith("EMULATOR") else hardware,
        name=f"{maker} {model}, {chip}, Android {property_of('ro.build.version.release')}".strip(),
        build=property_of("ro.build.fingerprint", "ro.build.id"),
        abis=tuple(abis.split(",")),
    )


def read(phone: adb.Phone) -> State:
    """The phone's state now."""
    parts = re.split(r"^nas-(\w+)\n", ask(phone, _READ), flags=re.MULTILINE)
    return parse(dict(zip(parts[1::2], parts[2::2], strict=True)))


def parse(parts: dict[str, str]) -> State:
    """The state in what `dumpsys` and the kernel print, by part: battery, thermal, saver, cores."""
    battery = dict(re.findall(r"^\s*([\w ]+): (-?\w+)\s*$", parts["battery"], re.MULTILINE))
    level, tenths = _number(battery.get("level")), _number(battery.get("temperature"))
    plugs = [value for key, value in battery.items() if key.endswith(" powered")]
    # Cached temperatures are those of the last change: stale.
    now = parts["thermal"].rpartition("Current temperatures from HAL:")[2]
    sensors: dict[int, list[float]] = {}
    for value, kind in re.findall(r"\bTemperature\{mValue=([-\d.]+), mType=(-?\d+),", now):
        sensors.setdefault(int(kind), []).append(float(value))
    hottest = {kind: max(values) for kind, values in sensors.items()}
    status = re.search(r"^\s*Thermal Status: (\d+)", parts["thermal"], re.MULTILINE)
    saver = parts["saver"].strip()
    cores = {}
    for words in map(str.split, parts["cores"].splitlines()):
        if len(words) == 4 and all(word.isdigit() for word in words[:3]):
            number, highest_khz, allowed_khz = map(int, words[:3])
            cores[number] = Core(highest_khz // 1000, allowed_khz // 1000, words[3])
    return State(
        battery_c=hottest.get(_BATTERY) if tenths is None else tenths / 10,
        skin_c=hottest.get(_SKIN),
        cpu_c=hottest.get(_CPU),
        throttling=int(status[1]) if status else None,
        battery_percent=level,
        charging="true" in plugs if plugs else None,
        battery_saver=saver == "1" if saver in ("0", "1") else None,
        cores=dict(sorted(cores.items())),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.removeprefix("-").isdecimal() else None


def instabilities(before: State, after: State) -> list[str]:
    """Why a measurement between these two states is not one of the phone at its ease."""
    found = []
    if after.throttling:
        found.append(f"the phone throttled meanwhile (thermal status {after.throttling})")
    capped = [
        number
        for number, core in after.cores.items()
        if number in before.cores and core.allowed_mhz < before.cores[number].allowed_mhz
    ]
    if capped:
        found.append(f"the clock of cores {capped} was lowered meanwhile")
    if before.battery_saver:
        found.append("battery saver is on")
    return found


def ask(phone: adb.Phone, script: str) -> str:
    """What a script of fixed words prints; `TargetUnavailable` where it fails or takes long."""
    try:
        status, output = phone.shell(script)
    except TimeoutError as error:
        raise TargetUnavailable(f"phone {phone.serial} does not answer: {error}") from error
    if status:
        last = (output.strip().splitlines() or ["it printed nothing"])[-1]
        raise TargetUnavailable(f"phone {phone.serial} refused a command: {last[:200]}")
    return output

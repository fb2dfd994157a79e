"""What a Linux board reports: name and system, clocks, temperature, throttling, load."""

import dataclasses
import re
import weakref
from typing import Any

from latency.boards.openssh import Board

# Fixed words: nothing here comes from a user. Each part may be missing on some board.
_ABOUT = """
echo nas-uname; uname -srm
echo nas-bits; getconf LONG_BIT 2>/dev/null
echo nas-id; cat /etc/machine-id 2>/dev/null; uname -n
echo nas-system; grep ^PRETTY_NAME= /etc/os-release 2>/dev/null
echo nas-board; tr -d "[:cntrl:]" 2>/dev/null < /proc/device-tree/model; echo
echo nas-cpu; grep -m 1 "^model name" /proc/cpuinfo || LC_ALL=C lscpu | grep -m 1 "^Model name"
true"""
_STATE = """exec 2> /dev/null
echo nas-load; cat /proc/loadavg
echo nas-uptime; cat /proc/uptime
echo nas-allowed; grep Cpus_allowed_list: /proc/self/status
echo nas-thermal
for zone in /sys/class/thermal/thermal_zone*; do
  temp= type=
  [ -r $zone/temp ] && read -r temp < $zone/temp
  [ -r $zone/type ] && read -r type < $zone/type
  echo $temp $type
done
echo nas-throttled; vcgencmd get_throttled 2>/dev/null
echo nas-cores
for core in /sys/devices/system/cpu/cpu[0-9]*; do
  line=${core##*/cpu}
  for file in online cpu_capacity cpufreq/cpuinfo_max_freq cpufreq/scaling_max_freq \
cpufreq/scaling_cur_freq cpufreq/scaling_governor; do
    value=
    [ -r $core/$file ] && read -r value < $core/$file
    line="$line ${value:--}"
  done
  echo $line
done
true"""
_OF_THE_CPU = re.compile(r"cpu|soc|pkg|core|big|little", re.IGNORECASE)
_FIXED = re.compile(r"pmic|battery|wifi|iwl|acpitz", re.IGNORECASE)  # e.g. a Jetson's PMIC: 100 C
# Raspberry Pi, `vcgencmd get_throttled`: now; the same 16 bits higher: since it started.
_UNDER_VOLTAGE, _CAPPED, _THROTTLED, _SOFT_LIMIT = 1, 2, 4, 8


@dataclasses.dataclass(frozen=True)
class About:
    """What does not change while a board runs."""

    name: str  # "Raspberry Pi 4 Model B Rev 1.4, Cortex-A72"
    system: str  # "Linux 6.1.0 aarch64, Debian GNU/Linux 12 (bookworm)"
    machine: str  # of its programs, as `uname -m` has it: armv7l under a 32-bit system
    identifier: str  # what tells it from other boards


@dataclasses.dataclass(frozen=True)
class Core:
    """A core that may be used; None where the board does not report it. Clocks in MHz."""

    highest_mhz: int | None
    allowed_mhz: int | None
    now_mhz: int | None
    governor: str | None
    capacity: int | None  # of 1024, the fastest core's


@dataclasses.dataclass(frozen=True)
class State:
    """What changes; None where the board does not report it."""

    temperature_c: float | None
    throttled: int | None  # the bits of a Raspberry Pi
    load_average: float | None  # of the last minute
    uptime_s: float | None
    cores: dict[int, Core]

    @property
    def governor(self) -> str | None:
        names = sorted({core.governor for core in self.cores.values() if core.governor})
        return "+".join(names) or None

    def conditions(self) -> dict[str, Any]:
        """The fields as plain data, for a record."""
        fields = {name: value for name, value in vars(self).items() if name != "cores"}
        return fields | {
            "throttled": None if self.throttled is None else hex(self.throttled),
            "allowed_mhz": sorted({c.allowed_mhz for c in self.cores.values() if c.allowed_mhz}),
            "now_mhz": [core.now_mhz for core in self.cores.values() if core.now_mhz],
        }

    def too_hot(self, limit_c: float) -> str | None:
        """Why a measurement now would be one of a hot board."""
        if self.temperature_c is not None and self.temperature_c > limit_c:
            return f"it has {self.temperature_c:.1f} C, the limit is {limit_c:g} C"
        if self.throttled and self.throttled & (_THROTTLED | _SOFT_LIMIT):
            return f"it throttles (vcgencmd get_throttled: {self.throttled:#x})"
        return None

    def fastest(self, count: int) -> list[int] | None:
        """The fastest cores, of equal ones the last: the first serves the interrupts."""

        def speed(number: int) -> tuple[int, int, int]:
            core = self.cores[number]
            return core.capacity or 0, core.highest_mhz or 0, number

        return sorted(sorted(self.cores, key=speed, reverse=True)[:count]) or None


def about(board: Board) -> About:
    """The board's name and system; asked once a connection, which a new start would end."""
    if board not in _abouts:
        _abouts[board] = _about(board)
    return _abouts[board]


def _about(board: Board) -> About:
    parts = _parts(board.ask(_ABOUT))
    kernel, release, machine = (parts["uname"].split() + 3 * ["unknown"])[:3]
    if parts["bits"].strip() == "32":  # a 64-bit kernel under 32-bit programs: Raspberry Pi OS
        machine = {"aarch64": "armv7l", "x86_64": "i686"}.get(machine, machine)
    system = parts["system"].partition("=")[2].strip().strip('"')
    cpu = parts["cpu"].partition(":")[2].strip()
    names = [" ".join(name.split()) for name in (parts["board"], cpu)]
    return About(
        name=", ".join(name for name in names if name) or f"a board ({machine})",
        system=f"{kernel} {release} {machine}, {system or 'unknown distribution'}",
        machine=machine,
        identifier=" ".join(parts["id"].split()),
    )


_abouts: weakref.WeakKeyDictionary[Board, About] = weakref.WeakKeyDictionary()


def read(board: Board) -> State:
    """The board's state now."""
    return parse(board.ask(_STATE))


def parse(output: str) -> State:
    """The state in what the kernel prints."""
    parts = _parts(output)
    allowed = _numbers(parts["allowed"].partition(":")[2].strip())
    cores = {}
    for words in map(str.split, parts["cores"].splitlines()):
        if len(words) == 7 and words[0].isdigit() and words[1] != "0":
            capacity, highest, most, now = map(_number, words[2:6])
            governor = None if words[6] == "-" else words[6]
            cores[int(words[0])] = Core(_mhz(highest), _mhz(most), _mhz(now), governor, capacity)
    unknown = Core(None, None, None, None, None)
    throttled = re.search(r"throttled=0x([0-9a-fA-F]+)", parts["throttled"])
    load, uptime = parts["load"].split(), parts["uptime"].split()
    return State(
        temperature_c=_temperature_c(parts["thermal"]),
        throttled=int(throttled[1], 16) if throttled else None,
        load_average=float(load[0]) if load else None,
        uptime_s=float(uptime[0]) if uptime else None,
        cores={number: cores.get(number, unknown) for number in allowed or sorted(cores)},
    )


def instabilities(before: State, after: State) -> list[str]:
    """Why a measurement between these two states is not one of the board at its ease."""
    found = []
    if after.throttled is not None:
        seen = after.throttled | (after.throttled & ~(before.throttled or 0)) >> 16
        if seen & (_THROTTLED | _SOFT_LIMIT):
            found.append(f"it throttled meanwhile (get_throttled: {after.throttled:#x})")
        if seen & _UNDER_VOLTAGE:
            found.append("its supply is too weak (under-voltage): its clock is lowered")
        elif seen & _CAPPED:
            found.append("its clock was capped meanwhile")
    lowered = [
        number
        for number, core in after.cores.items()
        if number in before.cores
        and (core.allowed_mhz or 0) < (before.cores[number].allowed_mhz or 0)
    ]
    if lowered:
        found.append(f"the highest clock of cores {lowered} was lowered meanwhile")
    return found


def _parts(output: str) -> dict[str, str]:
    parts = re.split(r"^nas-(\w+)\n", output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _number(word: str) -> int | None:
    return int(word) if word.isdigit() else None


def _mhz(khz: int | None) -> int | None:
    return None if khz is None else khz // 1000


def _numbers(text: str) -> list[int]:
    """The numbers of "0-3,6"."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _temperature_c(zones: str) -> float | None:
    """The hottest sensor of the CPU; of all that are no fixed or foreign ones where none is."""
    known = []
    for words in map(str.split, zones.splitlines()):
        if words and re.fullmatch(r"-?\d+", words[0]):
            value = int(words[0])
            # Thousandths of a degree; some old kernels report degrees.
            known.append((" ".join(words[1:]), value / 1000 if abs(value) > 200 else float(value)))
    of_the_cpu = [value for name, value in known if _OF_THE_CPU.search(name)]
    others = [value for name, value in known if not _FIXED.search(name)]
    return max(of_the_cpu or others, default=None)

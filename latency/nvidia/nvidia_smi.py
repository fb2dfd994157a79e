"""NVIDIA GPUs of this machine: what their driver tells, within seconds."""

import dataclasses
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

_LIMIT_S = 15.0
_PROC = Path("/proc/driver/nvidia")
_DEVICES = Path("/dev")
_FIELDS = {
    "name": "name",
    "uuid": "uuid",
    "driver": "driver_version",
    "memory_mb": "memory.total",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "utilization_percent": "utilization.gpu",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "state": "pstate",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """One GPU, and its state when it was asked; what the driver does not tell is missing."""

    name: str
    driver: str | None
    state: dict[str, Any]


def cards() -> list[Card]:
    """The GPUs of this machine, in the order of their bus; none where there is no driver.

    Asks nvidia-smi, else the driver's files (for instance in a container without the tool).
    """
    if shutil.which("nvidia-smi") is not None:
        query = ",".join(_FIELDS.values())
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired):
            done = None  # it hangs where a GPU has fallen off the bus
        if done is not None and done.returncode == 0:
            rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
            return [_card(row) for row in rows if len(row) == len(_FIELDS)]
    return _by_files()


def present() -> bool:
    """Whether the kernel has an NVIDIA GPU; looks at files only."""
    return any(_DEVICES.glob("nvidia[0-9]*")) or any(_PROC.glob("gpus/*/information"))


def used(card: Card) -> str:
    """What tells the GPU that CUDA uses first from all others, as far as the driver says.

    card: the one that it is where CUDA_VISIBLE_DEVICES does not name another.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first and not first.isdigit():  # a UUID, of which CUDA takes a beginning, too
        return next((uuid for one in cards() if (uuid := _uuid(one)).startswith(first)), first)
    if first:
        listed = cards()
        card = listed[int(first)] if int(first) < len(listed) else card
    return _uuid(card) or f"{card.name} of {platform.node()}"


def _uuid(card: Card) -> str:
    return str(card.state.get("uuid", ""))


def _card(row: list[str]) -> Card:
    properties = {
        name: text.strip()
        for name, text in zip(_FIELDS, row, strict=True)
        if "N/A" not in text and "Not Supported" not in text
    }
    name, driver = properties.pop("name", "NVIDIA GPU"), properties.pop("driver", None)
    return Card(name, driver, {key: _number(text) for key, text in properties.items()})


def _number(text: str) -> Any:
    if text.count(".") > 1 or not text.replace(".", "", 1).isdigit():
        return text
    return float(text) if "." in text else int(text)


def _by_files() -> list[Card]:
    driver = None
    try:
        words = (_PROC / "version").read_text().split()
        driver = next((word for word in words if word[0].isdigit() and "." in word), None)
    except OSError:
        pass
    found = []
    for path in sorted(_PROC.glob("gpus/*/information")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        name = next((line.split(":", 1)[1] for line in lines if line.startswith("Model:")), None)
        if name:
            found.append(Card(name.strip(), driver, {}))
    return found

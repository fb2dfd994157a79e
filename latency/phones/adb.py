"""Phones over the adb client: which are attached, commands and files to one, time-outs on all.

developer.android.com/tools/adb. What the user names reaches adb as arguments of a process; scripts
for the phone's shell are made of fixed words and numbers only.
"""

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

from latency.target import TargetUnavailable

_ANSWER_S = 20.0  # adb starts its server within seconds; a phone answers within milliseconds
_STATUS = re.compile(r"nas-status (\d+)\s*$")
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:%\[\]-]{0,127}")
_NETWORK = re.compile(r".+:\d{1,5}")
_PUSH_BYTES_S = 500_000  # the slowest link to wait for: a tenth of what USB 2 gives
_EXPLAINED = {
    "unauthorized": "has not authorized this computer: unlock it and accept 'Allow USB debugging'",
    "authorizing": "is asking to authorize this computer: unlock it and accept",
    "connecting": "is still connecting: try again in a moment",
    "offline": "is offline: unplug and plug it again, or run `adb reconnect offline`",
    "no permissions": "cannot be opened by this user: install Android's udev rules (Debian: "
    "android-sdk-platform-tools-common), join the group plugdev and plug it again",
}


@dataclasses.dataclass(frozen=True)
class Phone:
    """A phone as `adb devices -l` lists it; `state` is "device" where it can be used."""

    serial: str
    state: str = "device"
    about: str = ""

    def shell(self, script: str, timeout_s: float = _ANSWER_S) -> tuple[int, str]:
        """Runs a script of fixed words in the phone's shell: its exit status, and all it printed.

        Raises `TargetUnavailable` where the phone is lost meanwhile, `TimeoutError` after
        `timeout_s`.
        """
        # Old phones tell no exit status, and adb takes a broken connection for status 0.
        done = _adb(
            ["-s", self.serial, "shell", f"({script}\n) 2>&1; echo nas-status $?"], timeout_s
        )
        found = _STATUS.search(done.stdout)
        if not found:
            raise self._lost(done.stderr)
        return int(found[1]), done.stdout[: found.start()].replace("\r\n", "\n")

    def push(self, file: Path, destination: str) -> None:
        """Copies a file to a path of ours on the phone."""
        size = file.stat().st_size
        source = str(file.resolve())  # absolute: never read as an option
        try:
            limit_s = _ANSWER_S + size / _PUSH_BYTES_S
            done = _adb(["-s", self.serial, "push", source, destination], limit_s)
        except TimeoutError as error:
            raise TargetUnavailable(f"phone {self.serial}: {error}") from error
        if not done.returncode:
            return
        if "No space left" in done.stderr + done.stdout:
            raise TargetUnavailable(
                f"phone {self.serial} has no room for {size / 1e6:.1f} MB in its storage: free some"
            )
        raise self._lost(done.stderr)

    def _lost(self, output: str) -> TargetUnavailable:
        """Why an adb command broke off."""
        last = (output.strip().splitlines() or ["the connection broke"])[-1].removeprefix("adb: ")
        try:
            ready(self.serial)
        except TargetUnavailable as error:
            return TargetUnavailable(f"lost phone {self.serial}: {error}")
        return TargetUnavailable(f"lost phone {self.serial} for a moment: {last}; try again")


def ready(serial: str | None = None) -> Phone:
    """The phone `serial`, or the only one attached; `TargetUnavailable` says why there is none.

    A serial HOST:PORT that is not attached is connected to.
    """
    phones = attached_phones()
    if serial is None:
        usable = [phone for phone in phones if phone.state == "device"] or phones
        if not usable:
            raise TargetUnavailable(
                "no phone is attached: plug one in and switch on USB debugging (Settings, System, "
                "Developer options), or name one on the network, android:HOST:PORT"
            )
        if len(usable) > 1:
            names = ", ".join(phone.serial for phone in usable)
            raise TargetUnavailable(
                f"several phones are attached ({names}): name one, android:{usable[0].serial}"
            )
        return _usable(usable[0])
    if _NETWORK.fullmatch(serial) and serial not in {phone.serial for phone in phones}:
        try:
            _adb(["connect", serial])
        except TimeoutError as error:
            raise TargetUnavailable(f"{serial} does not answer: {error}") from error
        phones = attached_phones()
    for phone in phones:
        if phone.serial == serial:
            return _usable(phone)
    names = ", ".join(phone.serial for phone in phones) or "none"
    raise TargetUnavailable(
        f"phone {serial} is not attached (attached: {names}): plug it in, see `adb devices`"
    )


def attached_phones() -> list[Phone]:
    """All that adb sees, usable or not."""
    try:
        done = _adb(["devices", "-l"])
    except TimeoutError as error:
        raise TargetUnavailable(f"{error}; run `adb kill-server`") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TargetUnavailable(f"adb's server does not start: {last}")
    phones = []
    for line in done.stdout.splitlines():
        serial, _, rest = line.partition(" " if " " in line else "\t")
        state = "no permissions" if "no permissions" in rest else (rest.split() or [""])[0]
        if state and not line.startswith(("*", "List of devices")):
            phones.append(Phone(serial, state, rest.strip().removeprefix(state).strip()))
    return phones


def checked(serial: str) -> str:
    """A serial number or HOST:PORT that adb can be given; `ValueError` if it is none."""
    if not _SERIAL.fullmatch(serial):
        raise ValueError(f"serial={serial!r}: expected a serial number as `adb devices` prints it")
    return serial


def _usable(phone: Phone) -> Phone:
    if phone.state != "device":
        explained = _EXPLAINED.get(phone.state, f"is in state {phone.state!r}: start Android on it")
        raise TargetUnavailable(f"phone {phone.serial} {explained}")
    return phone


def _adb(words: list[str], timeout_s: float = _ANSWER_S) -> subprocess.CompletedProcess:
    """Runs adb with these arguments; `TimeoutError` after `timeout_s`."""
    home = os.environ.get("ANDROID_HOME") or os.environ.get("ANDROID_SDK_ROOT")
    adb = shutil.which("adb") or (home and shutil.which("adb", path=f"{home}/platform-tools"))
    if not adb:
        raise TargetUnavailable(
            "adb is not installed: `apt-get install adb`, `brew install android-platform-tools` or "
            "https://developer.android.com/tools/releases/platform-tools"
        )
    try:
        return subprocess.run(
            [adb, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        command = words[2] if words[0] == "-s" else words[0]
        raise TimeoutError(f"`adb {command}` did not end within {timeout_s:.0f} s") from error

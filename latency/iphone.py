"""iPhones through Core ML: coremltools' model runner app on a connected phone, from a Mac."""

import dataclasses
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from latency.apple import coreml
from latency.system import device_lock
from latency.target import FoundDevice, Kind, Target, TargetUnavailable, Timing

_LIST_S = 20.0


@dataclasses.dataclass(frozen=True)
class IPhone(Target):
    """A connected phone, by its name or UDID, or the only one.

    `units`, `precision` and `save` are those of `latency.macos`. The app that runs the network is
    built and signed by Xcode for `team` (the identifier of a development team), or with the
    `provisioning` profile (UUID) of the app `bundle`. Building, installing and measuring may take
    `limit_s`.

    >>> IPhone("Ann's iPhone", units="cpu_ane").phone
    "Ann's iPhone"
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.MEASURED})
    phone: str | None = None
    units: str = "all"
    precision: str = "float16"
    team: str = ""
    provisioning: str | None = None
    bundle: str | None = None
    save: str | None = None
    limit_s: float = 1800.0

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        """Every iPhone that devicectl lists; what hinders those that cannot be used."""
        try:
            phones = _phones()
        except TargetUnavailable as error:
            return [FoundDevice("iphone", "iPhones through Core ML", Kind.MEASURED, str(error))]
        nothing = "no iPhone is known to this Mac: attach one by cable and trust this computer"
        return [
            FoundDevice(
                f"iphone:{one.udid}", one.words, Kind.MEASURED, one.missing or coreml.missing()
            )
            for one in phones
        ] or [FoundDevice("iphone", "iPhones through Core ML", Kind.MEASURED, nothing)]

    def __post_init__(self):
        coreml.check(self.units, self.precision, self.limit_s)
        if isinstance(self.phone, float):
            raise ValueError(f"phone={self.phone}: quote it, iphone:'NAME-or-UDID'")
        if self.phone is not None:  # a spec makes numbers of digits
            object.__setattr__(self, "phone", str(self.phone))
        for name in ("team", "provisioning", "bundle"):  # they reach Xcode's command line
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[A-Za-z0-9.-]*", str(value)):
                raise ValueError(f"{name}={value!r}: expected letters, digits, points and hyphens")
            object.__setattr__(self, name, None if value is None else str(value))
        if self.provisioning is not None and self.bundle is None:
            raise ValueError(
                f"provisioning={self.provisioning}: give the bundle= that it is made for, too"
            )

    @property
    def device(self) -> str:
        return self._chosen().words

    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier measurement still holds."""
        if (missing_package := coreml.missing()) is not None:
            raise TargetUnavailable(missing_package)
        phone = self._chosen()
        return {
            "device": phone.words,
            "udid": phone.udid,
            "build": phone.build,
            "runtime": coreml.runtime(),
            "units": self.units,
            "precision": self.precision,
            "kind": str(Kind.MEASURED),
        }

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        package = coreml.convert(model, batch_size, self.precision, self.save)
        try:
            conditions = self.identity() | {"package": str(package)}
            request = {
                "operation": "time_on_phone",
                "package": str(package),
                "udid": conditions["udid"],
                "units": coreml.UNITS[self.units],
                "team": self.team,
                "provisioning": self.provisioning,
                "bundle": self.bundle,
                "warmup": warmup,
                "runs": runs,
                "details": details,
            }
            title = f"iPhone {conditions['udid']}"
            with device_lock.alone(f"iphone {conditions['udid']}", title, anywhere=True):
                answer = coreml.ask(request, self.limit_s)
        except TargetUnavailable as error:
            raise coreml.with_location(error, package) from error
        return coreml.timed(answer, conditions)

    def _chosen(self) -> "_Phone":
        """The phone to use, ready."""
        phones = _phones()
        if self.phone is None:
            ready = [one for one in phones if one.missing is None]
            if len(ready) > 1:
                names = ", ".join(f"iphone:{one.udid} ({one.name})" for one in ready)
                raise ValueError(f"{len(ready)} iPhones are connected: say which, {names}")
            candidates = ready or phones
        else:
            candidates = [one for one in phones if self.phone in (one.udid, one.name)]
        if not candidates:
            known = ", ".join(f"{one.name} ({one.udid})" for one in phones) or "none"
            raise TargetUnavailable(
                f"no iPhone {self.phone or ''} is known to this Mac (it knows: {known})".replace(
                    "  ", " "
                )
            )
        if candidates[0].missing is not None:
            raise TargetUnavailable(f"{candidates[0].words}: {candidates[0].missing}")
        return candidates[0]


@dataclasses.dataclass(frozen=True)
class _Phone:
    """A phone as devicectl lists it."""

    name: str
    udid: str
    words: str
    build: str
    missing: str | None


def _phones() -> list[_Phone]:
    """The iPhones that devicectl knows; `TargetUnavailable` where it is missing, fails or hangs."""
    if shutil.which("xcrun") is None:
        raise TargetUnavailable(
            f"iPhones need a Mac with Xcode 15 or later ({coreml.system()}, without xcrun): run "
            "the same command there"
        )
    with tempfile.TemporaryDirectory(prefix="nas_iphone_") as folder:
        file = Path(folder) / "devices.json"
        command = ["xcrun", "devicectl", "list", "devices", "-j", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIST_S)
        except subprocess.TimeoutExpired:
            raise TargetUnavailable(
                f"xcrun devicectl did not list the devices within {_LIST_S:.0f} s"
            ) from None
        except OSError as error:
            raise TargetUnavailable(f"xcrun cannot be started: {error}") from error
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
            raise TargetUnavailable(
                f"xcrun devicectl failed (does `xcode-select -p` name an Xcode 15 or later?): "
                f"{lines[-1][:300]}"
            )
        try:
            listed = json.loads(file.read_text())["result"]["devices"]
            described = [_described(one) for one in listed]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetUnavailable(
                f"xcrun devicectl listed the devices in a way that is not known: {error!r}"
            ) from error
    return [phone for phone in described if phone is not None]


def _described(listed: dict[str, Any]) -> _Phone | None:
    """One entry of devicectl's list, None where it is no iPhone."""
    hardware = listed.get("hardwareProperties", {})
    properties = listed.get("deviceProperties", {})
    connection = listed.get("connectionProperties", {})
    if str(hardware.get("deviceType", "")).lower() != "iphone" or not hardware.get("udid"):
        return None
    name = str(properties.get("name") or "iPhone")
    product = hardware.get("marketingName") or hardware.get("productType") or "iPhone"
    version = properties.get("osVersionNumber", "?")
    state = str(connection.get("tunnelState", "unknown")).lower()
    missing = None
    if str(properties.get("developerModeStatus", "enabled")).lower() == "disabled":
        missing = "switch on Settings > Privacy & Security > Developer Mode"
    elif str(connection.get("pairingState", "paired")).lower() == "unpaired":
        missing = "it is not paired: unlock it and trust this computer"
    elif state != "connected":
        udid = hardware["udid"]
        missing = (
            f"it is {state}: attach it by cable, unlock it, and wake the connection with "
            f"`xcrun devicectl device info details --device {udid}`"
        )
    return _Phone(
        name=name,
        udid=str(hardware["udid"]),
        words=f"{product} ({name}), iOS {version}",
        build=str(properties.get("osBuildUpdate", "")),
        missing=missing,
    )

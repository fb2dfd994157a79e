"""A device that `nas device add` has learned: its predictor answers for it."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any, ClassVar

from latency.prediction import operation_features, predictor
from latency.prediction.predictor import Predictor
from latency.target import FoundDevice, Kind, Target, TargetUnavailable, Timing, cache_directory

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def directory(name: str) -> Path:
    """Where the device `name` is kept; `ValueError` for what cannot be a name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"device name {name!r}: expected letters, digits, '_', '-' and '.', at most 64"
        )
    return cache_directory() / "devices" / name


def names() -> list[str]:
    """The devices that can be predicted."""
    folder = cache_directory() / "devices"
    return sorted(path.parent.name for path in folder.glob(f"*/{predictor.ARCHIVE}"))


@dataclasses.dataclass(frozen=True)
class Predicted(Target):
    """The device `name`, predicted from the operations of a network at batch 1.

    Raises `ValueError` on an operation that was in no probe network or is far larger; a network
    somewhat outside of them is "not stable", with the reason. The condition "error" is relative
    and calibrated on networks left out of the fit; for a network unlike all probes, or a device
    that told whole networks only, it can be too small.

    >>> Predicted("pixel7")
    Predicted(name='pixel7')
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.PREDICTED})
    name: str

    def __post_init__(self):
        object.__setattr__(self, "name", str(self.name))  # `predicted:3` arrives as a number
        directory(self.name)

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        entries = []
        for name in names():
            try:
                entries.append(FoundDevice(f"predicted:{name}", cls(name).device, Kind.PREDICTED))
            except (ValueError, TargetUnavailable) as error:
                missing = f"{error}; add it again"
                entries.append(
                    FoundDevice(f"predicted:{name}", "unreadable", Kind.PREDICTED, missing)
                )
        missing = "no device learned yet: nas device add NAME --target SPEC"
        return entries or [
            FoundDevice("predicted:NAME", "a learned device", Kind.PREDICTED, missing)
        ]

    @property
    def device(self) -> str:
        return f"{self._about['device']}, predicted"

    @property
    def learned_from(self) -> str | None:
        return self._about.get("spec")

    def identity(self) -> dict[str, Any]:
        """What holds an earlier prediction: the stored predictor itself."""
        return {"device": self.device, "predictor": predictor.digest(self._directory)}

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        if batch_size != 1:
            raise ValueError(f"batch_size={batch_size}: {self!r} was learned at batch 1")
        learned = self._predictor
        works, called = operation_features.read(model, batch_size)
        prediction = learned.predict(works)
        about = self._about
        conditions = {
            "device": about["device"],
            "runtime": about["runtime"],
            "learned_from": about["spec"],
            "probes": about["probes"],
            "probes_kind": about["kind"],
            "date": about["date"],
            "held_out": json.dumps(learned.held_out, sort_keys=True),
            "error": round(prediction.error, 4),
            "stable": prediction.reason is None,
        }
        if prediction.reason:
            conditions["reason"] = f"outside of the probes: {prediction.reason}"
        rows = None
        if details:
            times = learned.works(works)
            times = times * (prediction.ms / times.sum())
            rows = tuple(
                {"name": name, "type": type_, "ms": float(ms), "within": "graph"}
                for (type_, name), ms in zip(called, times, strict=True)
            )
        return Timing(
            (prediction.ms,),
            conditions,
            Kind.PREDICTED,
            per_op=rows,
            per_op_kind=Kind.PREDICTED if rows else None,
        )

    @property
    def _directory(self) -> Path:
        folder = directory(self.name)
        if not (folder / predictor.ARCHIVE).is_file():
            known = ", ".join(names()) or "none yet"
            raise TargetUnavailable(
                f"no device {self.name!r} was learned (there is: {known}): "
                f"nas device add {self.name} --target SPEC"
            )
        return folder

    @property
    def _predictor(self) -> Predictor:
        folder = self._directory
        return _loaded(folder, (folder / predictor.ARCHIVE).stat().st_mtime_ns)

    @property
    def _about(self) -> dict[str, Any]:
        return self._predictor.about


@functools.lru_cache(8)
def _loaded(folder: Path, _modified_ns: int) -> Predictor:
    return predictor.load(folder)

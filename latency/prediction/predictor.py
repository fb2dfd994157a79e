"""A device learned from probe networks: `fit`, `Predictor.predict`, `save` and `load`.

What is kept is data, a NumPy archive without pickles; to predict takes NumPy alone.
"""

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency.prediction import additive_gaussian_process, forest, per_operation_table
from latency.prediction.additive_gaussian_process import AdditiveGaussianProcess
from latency.prediction.operation_features import FEATURES, Work, matrix
from latency.prediction.per_operation_table import PerOperationTable
from latency.system.atomic_write import atomic_write

ARCHIVE = "predictor.npz"
LEAST = 4  # networks that a fit needs
_VERSION = 1
_NEAR = math.log(1.6)  # beyond the range of training by more: not trusted
_FAR = math.log(8.0)  # refused
_SMALL = math.log(1e5)  # of macs or elements
_SIZES = [FEATURES.index(name) for name in ("macs", "read", "written", "weights")]
_FREE = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")  # views: they cost nothing where not seen
_DOUBTFUL = 0.1  # median error from which on times of operations have to compete with totals
_HOLDS = 0.9  # the share of networks whose error is within the one that is told


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A time. `reason`: why it is not trusted; 90 % of networks left out were within `error`."""

    ms: float
    error: float
    reason: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A fitted device. `about` describes it, `held_out` its errors on networks left out."""

    about: dict[str, Any]
    low: dict[str, np.ndarray]  # the least of each feature, by kind
    high: dict[str, np.ndarray]
    totals: tuple[float, float]  # the range of whole-network times
    profiled: PerOperationTable | None
    sums: "Mixture"
    calibration: tuple[float, float]  # error = hypot(first, second x what the model says)
    held_out: dict[str, float]
    # What was asked before, for the same operations come again and again.
    memory: dict[Work, float] = dataclasses.field(default_factory=dict, repr=False)
    placed: dict[Work, tuple[float, str]] = dataclasses.field(default_factory=dict, repr=False)

    def predict(self, works: Sequence[Work]) -> Prediction:
        """The time of one network; `ValueError` naming an operation that is not known."""
        reason = self.outside(works)
        times_ms, errors = self.many([works])
        ms = float(times_ms[0])
        least, most = self.totals
        if reason is None and not least / 2 < ms < most * 2:
            reason = f"{ms:.3g} ms, the probes took {least:.3g} to {most:.3g} ms"
        return Prediction(ms, float(errors[0]), reason)

    def many(self, networks: Sequence[Sequence[Work]]) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds (n,) and relative errors (n,) of networks, wherever they lie."""
        works, counts = matrix(networks)
        if self.profiled:
            ms, unsure = self.profiled.networks(works, counts)
        else:
            ms, unsure = _mixed(self.sums, works, counts)
        base, times = self.calibration
        return ms, np.hypot(base, times * unsure)

    def works(self, works: Sequence[Work]) -> np.ndarray:
        """The milliseconds of each work; those of a network add up to about its time."""
        new = [work for work in dict.fromkeys(works) if work not in self.memory]
        if self.profiled:
            if new:
                times = self.profiled.works(new)[0].tolist()
                self.memory.update(zip(new, times, strict=True))
            new = []
        for work in new:
            # One by one: the last bits of a matrix product depend on what is multiplied beside it.
            ms = sum(
                w * float(one.works([work], _columns(known, [work]))[0])
                for w, known, one in self.sums
            )
            self.memory[work] = max(ms, 0.0)
        return np.array([self.memory[work] for work in works])

    def outside(self, works: Sequence[Work]) -> str | None:
        """Why a network lies outside of what was trained on; `ValueError` where far outside."""
        furthest, reason = max(map(self._beyond, dict.fromkeys(works)), default=(0.0, ""))
        if furthest > _FAR:
            raise ValueError(f"{reason}: nothing can be predicted; measure it on the device")
        return reason if furthest > _NEAR else None

    def _beyond(self, work: Work) -> tuple[float, str]:
        """The logarithm of how far a work lies beyond those of its kind, and in which size."""
        if work in self.placed:
            return self.placed[work]
        if work.kind not in self.low:
            if work.kind.split()[0] in _FREE:
                return 0.0, ""
            raise ValueError(
                f"operation {work.kind} was in no probe network of this device "
                f"(known: {', '.join(sorted(self.low))}): measure it on the device"
            )
        sizes = np.array([work.features[i] for i in _SIZES])
        low, high = self.low[work.kind][_SIZES], self.high[work.kind][_SIZES]
        # What is small costs little, however small.
        below = np.where(sizes < _SMALL, 0, low - sizes)
        beyond = np.maximum(sizes - high, below)
        worst = int(np.argmax(beyond))
        factor, size = math.exp(beyond[worst]), FEATURES[_SIZES[worst]]
        reason = f"{work.kind} lies a factor of {factor:.1f} beyond the probes in {size}"
        self.placed[work] = float(beyond[worst]), reason
        return self.placed[work]

    def bytes(self) -> bytes:
        """The archive: the same predictor gives the same bytes."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = _pack(self)
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    def save(self, directory: Path) -> None:
        """Writes the archive into `directory`; a reader sees the old one or the new one."""
        with atomic_write(directory / ARCHIVE) as partial:
            partial.write_bytes(self.bytes())


Mixture = tuple[
    tuple[float, Predictor | None, AdditiveGaussianProcess], ...
]  # weight, the device it begins from


@dataclasses.dataclass(frozen=True)
class _LeftOut:
    """What was predicted of networks by fits without them, and what they took."""

    predicted_ms: np.ndarray
    unsure: np.ndarray  # the predicted deviations, relative
    ms: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        return np.abs(self.predicted_ms / self.ms - 1)

    @property
    def median_error(self) -> float:
        return float(np.median(self.errors))

    def calibration(self) -> tuple[float, float]:
        """So that an error of hypot(base, times x unsure) holds for 90 % of them."""
        # A finite sample's quantile that holds for the next one (split conformal prediction).
        level = min(1.0, _HOLDS * (1 + 1 / len(self.ms)))
        base = self.median_error
        excess = np.sqrt(np.maximum(self.errors**2 - base**2, 0)) / np.maximum(self.unsure, 1e-4)
        return base, float(np.quantile(excess, level))

    def summary(self) -> dict[str, float]:
        """The figures that `nas device add` prints of a predictor."""
        return {
            "median_error": round(self.median_error, 4),
            "within_10_percent": round(float((self.errors < 0.1).mean()), 4),
            "spearman": round(_spearman(self.predicted_ms, self.ms), 4),
        }


def fit(
    networks: Sequence[Sequence[Work]],
    ms: Sequence[float],
    per_op: Sequence[np.ndarray | None] | None = None,
    known: Mapping[str, Predictor] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Predictor:
    """Learns a device from the times of networks: milliseconds (n,).

    `per_op` has the milliseconds of each work of each network where the device gives them (nan
    where not), `known` predictors of other devices that this one may be like. Of operations' times
    and of whole networks' alone that is taken which predicts better what is left out.
    """
    times = np.asarray(ms, float)
    positive = np.isfinite(times) & (times > 0)
    if len(networks) != len(times) or len(times) < LEAST or not positive.all():
        raise ValueError(
            f"{len(networks)} networks with {len(ms)} times: expected at least {LEAST} of each, "
            "the times positive"
        )
    works, counts = matrix(networks)
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    for work in works:
        features = np.array(work.features)
        low[work.kind] = np.minimum(low.get(work.kind, features), features)
        high[work.kind] = np.maximum(high.get(work.kind, features), features)
    operations: PerOperationTable | None = None
    mixture: Mixture = ()
    left_out: _LeftOut | None = None
    known_times = {i: rows for i, rows in enumerate(per_op or ()) if rows is not None}
    if len(known_times) >= max(LEAST, 0.8 * len(times)):
        some = times[list(known_times)]
        operations, predicted_ms, unsure = per_operation_table.fit(
            [networks[i] for i in known_times], some, list(known_times.values())
        )
        left_out = _LeftOut(predicted_ms, unsure, some)
    if left_out is None or left_out.median_error > _DOUBTFUL:
        of_totals, without = _mixture(works, counts, times, known or {})
        if left_out is None or without.median_error < left_out.median_error:
            operations, mixture, left_out = None, of_totals, without
    return Predictor(
        dict(about or {}),
        low,
        high,
        (float(times.min()), float(times.max())),
        operations,
        mixture,
        left_out.calibration(),
        left_out.summary(),
    )


def load(directory: Path) -> Predictor:
    """What `save` wrote; `ValueError` where it is not readable."""
    path = directory / ARCHIVE
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _unpack({name: archive[name] for name in archive.files})
    except Exception as error:  # whatever a damaged archive makes NumPy raise
        raise ValueError(f"{path}: not a predictor that can be read: {error}") from error


def digest(directory: Path) -> str:
    """What the stored predictor is, in 16 characters."""
    return hashlib.sha256((directory / ARCHIVE).read_bytes()).hexdigest()[:16]


def _columns(known: Predictor | None, works: Sequence[Work]) -> np.ndarray:
    """What the guess of a work is made of: counts, or the time on a known device and a call."""
    if known is None:
        return np.array([[work.macs / 1e6, work.elements / 1e6, 1.0] for work in works])
    return np.stack([known.works(works), np.full(len(works), known.totals[0] / 1e3)], axis=1)


def _mixture(
    works: Sequence[Work], counts: np.ndarray, ms: np.ndarray, known: Mapping[str, Predictor]
) -> tuple[Mixture, _LeftOut]:
    """Processes that begin from counts and from each known device, weighted by evidence."""
    fitted = []
    for start in (None, *known.values()):
        if start is not None:
            kinds = {work.kind for work in works}
            if not kinds <= set(start.low) | set(_FREE):
                continue  # it knows other operations
        one = additive_gaussian_process.fit(works, _columns(start, works), counts, ms)
        fitted.append((one.evidence * len(ms), start, one))
    best = max(evidence for evidence, _, _ in fitted)
    weights = np.exp([evidence - best for evidence, _, _ in fitted])
    weights = np.where(weights < 0.02, 0, weights) / weights[weights >= 0.02].sum()
    mixture = tuple(
        (float(weight), start, one)
        for weight, (_, start, one) in zip(weights, fitted, strict=True)
        if weight
    )
    errors = sum((weight * one.errors for weight, _, one in mixture), np.zeros(len(ms)))
    unsure = sum((weight * one.deviations for weight, _, one in mixture), np.zeros(len(ms)))
    return mixture, _LeftOut(ms * (1 - errors), unsure, ms)


def _mixed(
    mixture: Mixture, works: Sequence[Work], counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    parts = [one.networks(works, _columns(known, works), counts) for _, known, one in mixture]
    weights = np.array([weight for weight, _, _ in mixture])[:, None]
    ms = np.stack([ms for ms, _ in parts])
    mean = np.maximum((weights * ms).sum(axis=0), 1e-6)
    apart = ((ms - mean) / mean) ** 2
    variance = (weights * (np.stack([sd for _, sd in parts]) ** 2 + apart)).sum(axis=0)
    return mean, np.sqrt(variance)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy import stats

    return float(stats.spearmanr(a, b)[0]) if len(a) > 2 else float("nan")


def _pack(predictor: Predictor) -> dict[str, np.ndarray]:
    """The arrays of an archive; nested parts have a path as their name."""
    plain = {
        "version": _VERSION,
        "about": predictor.about,
        "totals": predictor.totals,
        "calibration": predictor.calibration,
        "held_out": predictor.held_out,
        "weights": [weight for weight, _, _ in predictor.sums],
    }
    kinds = sorted(predictor.low)
    arrays = {
        "plain": np.array(json.dumps(plain, sort_keys=True)),
        "kinds": np.array(kinds),
        "low": np.array([predictor.low[kind] for kind in kinds]),
        "high": np.array([predictor.high[kind] for kind in kinds]),
    }
    for number, (_, known, one) in enumerate(predictor.sums):
        arrays |= {f"sums{number}/{name}": np.asarray(v) for name, v in vars(one).items()}
        for name, value in (_pack(known) if known else {}).items():
            arrays[f"sums{number}/known/{name}"] = value
    if (profiled := predictor.profiled) is not None:
        arrays |= {
            "profiled/kinds": profiled.kinds,
            "profiled/rooflines": profiled.rooflines,
            "profiled/correction": profiled.correction,
            "profiled/table_kinds": np.array([work.kind for work in profiled.table]),
            "profiled/table_features": np.array([work.features for work in profiled.table]),
            "profiled/table_ms": np.array(list(profiled.table.values())),
        }
        arrays |= {f"profiled/trees/{name}": v for name, v in vars(profiled.trees).items()}
    return arrays


def _unpack(arrays: dict[str, np.ndarray]) -> Predictor:
    def part(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    plain = json.loads(str(arrays["plain"]))
    if plain["version"] != _VERSION:
        raise ValueError(f"version {plain['version']}, expected {_VERSION}: add the device again")
    kinds = [str(kind) for kind in arrays["kinds"]]
    mixture = []
    for number, weight in enumerate(plain["weights"]):
        fields = part(f"sums{number}/")
        known = part(f"sums{number}/known/")
        evidence = float(fields.pop("evidence"))
        own = {k: v for k, v in fields.items() if not k.startswith("known/")}
        sums = AdditiveGaussianProcess(evidence=evidence, **own)
        mixture.append((weight, _unpack(known) if known else None, sums))
    operations = None
    if "profiled/kinds" in arrays:
        rows = part("profiled/table_")
        works = [
            Work(str(kind), tuple(map(float, features)))
            for kind, features in zip(rows["kinds"], rows["features"], strict=True)
        ]
        operations = PerOperationTable(
            dict(zip(works, rows["ms"].tolist(), strict=True)),
            arrays["profiled/kinds"],
            arrays["profiled/rooflines"],
            forest.Forest(**part("profiled/trees/")),
            arrays["profiled/correction"],
        )
    return Predictor(
        plain["about"],
        dict(zip(kinds, arrays["low"], strict=True)),
        dict(zip(kinds, arrays["high"], strict=True)),
        tuple(plain["totals"]),
        operations,
        tuple(mixture),
        tuple(plain["calibration"]),
        plain["held_out"],
    )

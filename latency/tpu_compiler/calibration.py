"""Fitting compiled estimates to measurements: a few pairs of times for each chip, in JSON."""

import dataclasses
import json
import math
from pathlib import Path

from latency.system.json_records import write_json
from latency.target import cache_directory

_SPREAD = 4.0  # least ratio of the largest to the smallest estimate for an exponent to be fitted
_EXPONENTS = (0.5, 1.5)  # outside of these a fit of a few points fits noise


@dataclasses.dataclass(frozen=True)
class Calibration:
    """measured = factor * estimated ** exponent, both in milliseconds, fitted to `points` pairs."""

    factor: float = 1.0
    exponent: float = 1.0
    points: int = 0

    def apply(self, estimated_ms: float) -> float:
        return self.factor * estimated_ms**self.exponent


def default_path() -> Path:
    return cache_directory() / "tpu" / "calibration.json"


def fit(points: list[tuple[float, float]]) -> Calibration:
    """The calibration of (estimated, measured) milliseconds, least squares of the logarithms.

    A factor only where there are fewer than three points, or where they lie close together.

    >>> round(fit([(1.0, 2.0), (10.0, 20.0)]).apply(5.0), 3)
    10.0
    """
    if not points:
        return Calibration()
    for estimated, measured in points:
        if not (0 < estimated < math.inf and 0 < measured < math.inf):
            raise ValueError(f"({estimated}, {measured}): expected two positive times in ms")
    x = [math.log(estimated) for estimated, _ in points]
    y = [math.log(measured) for _, measured in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    exponent = 1.0
    if len(points) >= 3 and max(x) - min(x) >= math.log(_SPREAD):
        covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        exponent = covariance / sum((a - mean_x) ** 2 for a in x)
        exponent = min(max(exponent, _EXPONENTS[0]), _EXPONENTS[1])
    return Calibration(math.exp(mean_y - exponent * mean_x), exponent, len(points))


def read(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The points of each chip; none where there is no file. `ValueError` where it is malformed."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        return {
            chip: [(float(estimated), float(measured)) for estimated, measured in points]
            for chip, points in content.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: expected {{"v5e": [[estimated ms, measured ms], ...], ...}}: {error}'
        ) from None


def add(path: Path, chip: str, points: list[tuple[float, float]]) -> Calibration:
    """Appends points of a chip to a file; the calibration of all that it has now."""
    known = read(path)
    known[chip] = known.get(chip, []) + [(float(a), float(b)) for a, b in points]
    found = fit(known[chip])
    write_json(path, known)
    return found

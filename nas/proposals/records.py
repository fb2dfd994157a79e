"""What finished trials say, row by row, and when that is enough for new models.

The schedule bounds the work per trial: models are renewed after every evaluation at first, then
ever more rarely, their hyperparameters more rarely still. It is a function of the rows alone, so
that every process renews at the same trials.
"""

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

from nas.proposals.gaussian_process import Choices
from nas.proposals.history import Space

SOON, SELDOM = 40, 16  # one new evaluation in so many renews them, up to MANY and above
MANY = 200
RENEW_PROFILES = 16  # and so does one new profile in so many
REFIT_GROWTH, REFIT_SELDOM = 1.25, 2.0  # below and above MOST_FITTED networks
MOST_FITTED = 200  # networks from which hyperparameters are fitted
SPENT = 2  # see `spent_on`


@dataclasses.dataclass
class Records:
    """What the finished trials say: codes (d,), quality or NaN, costs (m,) or None, by number."""

    codes: list[np.ndarray] = dataclasses.field(default_factory=list)
    quality: list[float] = dataclasses.field(default_factory=list)
    costs: list[np.ndarray | None] = dataclasses.field(default_factory=list)
    evaluated: list[int] = dataclasses.field(default_factory=list)  # running count, one a row
    renewals: list[int] = dataclasses.field(default_factory=list)  # lengths at which models renew
    refits: list[int] = dataclasses.field(default_factory=list)
    spent: list[dict[bytes, int]] = dataclasses.field(default_factory=list)  # see `spent_on`
    total: Counter[bytes] = dataclasses.field(default_factory=Counter)  # sum of `spent`

    def cut(self, length: int) -> None:
        """Forget all rows from `length` on."""
        for spent in self.spent[length:]:
            self.total.subtract(spent)
        for rows in (self.codes, self.quality, self.costs, self.evaluated, self.spent):
            del rows[length:]
        for marks in (self.renewals, self.refits):
            while marks and marks[-1] > length:
                marks.pop()

    def add(
        self,
        codes: np.ndarray,
        quality: float,
        costs: Any,
        spent: dict[bytes, int],
        startup: int,
    ) -> None:
        """Append a row; marks where models renew, a function of the rows alone."""
        self.codes.append(codes)
        self.spent.append(spent)
        self.total.update(spent)
        self.quality.append(quality)
        self.costs.append(costs)
        count = (self.evaluated[-1] if self.evaluated else 0) + (not math.isnan(quality))
        self.evaluated.append(count)
        if count < startup:
            return
        length = len(self.codes)
        if self.renewals:
            last = self.renewals[-1]
            new = count - self.evaluated[last - 1]
            due = new >= max(1, count // (SOON if count <= MANY else SELDOM))
            if not due and length - last < max(16, length // RENEW_PROFILES):
                return
        self.renewals.append(length)
        growth = REFIT_GROWTH if count < MOST_FITTED else REFIT_SELDOM
        if not self.refits or count >= growth * self.evaluated[self.refits[-1] - 1]:
            self.refits.append(length)


def spent_on(proposed: np.ndarray, codes: np.ndarray, profiled_only: bool) -> dict[bytes, int]:
    """What a trial says against proposing a point again: SPENT is never.

    A network that was profiled but not trained may be proposed once more, to be trained.
    """
    if not profiled_only or (proposed != codes).any():
        return {proposed.tobytes(): SPENT, codes.tobytes(): 1 if profiled_only else SPENT}
    return {codes.tobytes(): 1}


def thinned(count: int, most: int) -> np.ndarray:
    """Rows that stand for `count`: all, or the newest half of `most` and an even sample before."""
    if count <= most:
        return np.arange(count)
    recent = most // 2
    earlier = np.linspace(0, count - recent - 1, most - recent).astype(int)
    return np.concatenate([earlier, np.arange(count - recent, count)])


def choices_of(space: Space) -> Choices:
    """The decisions of a space, as a model sees them."""
    groups: dict[Any, int] = {}
    positions = []
    for name, size in zip(space.names, space.sizes, strict=True):
        distribution: BaseDistribution = space.distributions[name]
        order: tuple[float, ...] | None = tuple(range(size))
        key: Any = name
        if isinstance(distribution, CategoricalDistribution):
            key = tuple(map(repr, distribution.choices))
            numbers = all(
                isinstance(c, int | float) and not isinstance(c, bool) for c in distribution.choices
            )
            order = tuple(distribution.choices) if numbers else None  # type: ignore[arg-type]
            if order is not None and np.ptp(order) == 0:
                order = None
        groups.setdefault(key, len(groups))
        positions.append((groups[key], order))
    return Choices(
        tuple(int(size) for size in space.sizes),
        tuple(group for group, _ in positions),
        tuple(order for _, order in positions),
    )

"""The network that comes nearest to limits and budgets which none meets."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial


@dataclasses.dataclass(frozen=True)
class Miss:
    """A network, what share of its worst limit or budget it takes, and that in words."""

    number: int
    share: float
    text: str

    def __str__(self) -> str:
        return f"trial {self.number}: {self.text} ({self.share:.2f} times as much)"


def miss_of(number: int, profile: Mapping[str, Any], budgets: Sequence[float]) -> Miss | None:
    """By how much a network misses; None where it fits, or nothing is known of it.

    >>> miss_of(3, {"costs": [3.0]}, [2.0])
    Miss(number=3, share=1.5, text='3 ms, over the budget of 2 ms')
    """
    if profile.get("excess"):
        share = max(profile.get("of_limits", {}).values(), default=math.inf)
        return Miss(number, share, profile["excess"])
    both = zip(profile.get("costs") or (), budgets, strict=False)
    share, cost, budget = max(((c / b, c, b) for c, b in both), default=(0.0, 0.0, 0.0))
    if share <= 1:
        return None
    return Miss(number, share, f"{cost:.3g} ms, over the budget of {budget:.3g} ms")


def nearest(trials: Iterable[FrozenTrial], budgets: Sequence[float]) -> Miss | None:
    """The least miss of all; None where there is none."""
    found = (miss_of(one.number, one.user_attrs.get("profile", {}), budgets) for one in trials)
    return min((one for one in found if one is not None), key=lambda one: one.share, default=None)

"""What a search is after: the values of its trials, and how far costs exceed their budgets."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from nas.searching.reward import Reward

# A network slower than this many budgets is not trained: rewards fall steeply beyond it.
FAR_OVER_BUDGET = 1.5
Direction = Literal["maximize", "minimize"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Values of trials: a scalar reward, or (quality, *costs) for a Pareto study.

    >>> Objective((2.0,)).values(0.9, [1.5])
    [0.9, 1.5]
    """

    budgets: tuple[float, ...]  # one a target, in its unit; math.inf: none
    reward: Reward | None = None  # None: multi-objective

    @property
    def directions(self) -> list[Direction]:
        """Of the study, one a value."""
        if self.reward:
            return ["maximize"]
        costs: list[Direction] = ["minimize"] * len(self.budgets)
        return ["maximize", *costs]

    def values(self, quality: float, costs: Iterable[float]) -> list[float]:
        """Values of a trial, in the order of `directions`."""
        if self.reward:
            return [float(self.reward(np.array([quality]), np.array([list(costs)]))[0])]
        return [float(quality), *(float(cost) for cost in costs)]

    def discounted(self, quality: Any, costs: Any) -> np.ndarray:
        """Qualities (n,), less what costs (n, m) of targets without a budget take off them."""
        if self.reward is None:
            return np.asarray(quality)
        return self.reward.discounted(quality, costs)

    def hopeless(self, record: Mapping[str, Any]) -> bool:
        """Whether a profiled network is over a limit, or too far over budget to be trained."""
        return not record["costs"] or (
            self.reward is not None
            and any(
                cost > FAR_OVER_BUDGET * budget
                for cost, budget in zip(record["costs"], self.budgets, strict=True)
            )
        )

    def constraints(self, record: Mapping[str, Any]) -> dict[str, float]:
        """By how much a profiled network exceeds each limit, and each budget, relative to it.

        For Optuna: above 0 is too much. None of a table, whose records have no limits.

        >>> goal = Objective((2.0,), Reward("absolute", (2.0,)))
        >>> goal.constraints({"of_limits": {"--max-bytes": 0.5}, "costs": [3.0]})
        {'--max-bytes': -0.5, 'budget 1': 0.5}
        """
        if "of_limits" not in record:
            return {}
        found = {name: share - 1 for name, share in record["of_limits"].items()}
        if self.reward is not None and record["costs"]:
            both = zip(record["costs"], self.budgets, strict=True)
            found |= {f"budget {n}": c / b - 1 for n, (c, b) in enumerate(both, 1)}
        return found

    def excess(self, costs: Sequence[float]) -> float:
        """By how much the worst cost exceeds its budget, relative to it; 0 within all budgets.

        >>> Objective((2.0, 1.0)).excess([3.0, 0.5])
        0.5
        """
        return max(
            0.0,
            *(cost / budget - 1 for cost, budget in zip(costs, self.budgets, strict=True)),
        )

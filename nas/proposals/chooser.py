"""The one thing that a controller may do beyond Optuna's samplers: choose what is trained."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial


@runtime_checkable
class Chooser(Protocol):
    """A sampler that chooses among profiled networks which one is trained."""

    def select(self, study: Study, trials: Sequence[FrozenTrial]) -> int:
        """The index of one of these running trials; their "profile" says what they cost."""


def chooser_of(sampler: BaseSampler) -> Chooser | None:
    """The sampler itself, where it is a `Chooser`; Optuna's own are not.

    >>> import optuna
    >>> chooser_of(optuna.samplers.RandomSampler()) is None
    True
    """
    return sampler if isinstance(sampler, Chooser) else None

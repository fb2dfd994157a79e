"""Samplers of Optuna's whose proposals follow from the seed and the history of the study alone."""

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas.proposals.blas import one_blas_thread
from nas.proposals.history import History, generator, sequence


class Reseeded:
    """Mix-in before one of Optuna's samplers: its random state follows from seed and history.

    Every sampling call starts its own stream, so nothing carries over from one trial to the next.
    """

    _history: History
    _rng: Any  # Optuna's

    def start(self, seed: int | None) -> None:
        """Call once, after Optuna's constructor."""
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._history = History()

    def reseed(self, study: Study, trial: FrozenTrial, *context: int | str) -> None:
        """Points every random state of the sampler at the stream of `trial` and `context`."""
        count = self._history.read(study, trial).count
        state = sequence(self._seed, count, *context).generate_state(4)
        for name in ("_random_sampler", "_independent_sampler"):
            if hasattr(self, name):
                getattr(self, name)._rng.rng.seed(state)
        self._rng.rng.seed(state)

    def reseed_rng(self) -> None:
        """Nothing to do: no two trials of a study share a stream."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Optuna's, from the stream of this trial."""
        self.reseed(study, trial)
        with one_blas_thread():
            params = super().sample_relative(study, trial, search_space)  # type: ignore[misc]
            return self._within_limits(params) if search_space else params

    def _within_limits(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters that probably keep to the limits of the search; the same where all do."""
        history = self._history
        if set(params) not in (set(), set(history.distributions)) or not history.distributions:
            return params
        space = history.encode(history.distributions)
        rng = generator(self._seed, history.count, "limits")
        codes = space.encode(params) if params else space.random(rng)
        kept = history.within_limits(codes, rng)
        return params if kept is codes else space.decode(kept, rng)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Optuna's, from the stream of this trial and parameter."""
        self.reseed(study, trial, param_name)
        return super().sample_independent(  # type: ignore[misc]
            study, trial, param_name, param_distribution
        )

"""NSGA-II (Deb et al. 2002): Optuna's, resumable at any trial."""

import warnings

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas.proposals.reseeded import Reseeded


class SameParents(Reseeded):
    """Mix-in before a genetic sampler of Optuna: a resumed search sees the same parents.

    Optuna returns a new population in order of selection and a stored one in order of number, and
    the one draws random numbers that the other does not: a resumed search would go another way.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        population: int = 50,
        crossover_prob: float = 0.9,
        mutation_prob: float | None = None,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # NSGA-III's
            super().__init__(  # type: ignore[call-arg]
                seed=seed,
                population_size=population,
                crossover_prob=crossover_prob,
                mutation_prob=mutation_prob,
            )
        self.start(seed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Optuna's; before any trial is complete, of those that exceeded a limit."""
        found = super().infer_relative_search_space(study, trial)  # type: ignore[misc]
        return found or dict(self._history.read(study, trial).distributions)

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Optuna's, by number, without use of the random stream of the asking trial."""
        before = self._rng.rng.get_state()
        self._rng.rng.seed([self._seed, generation])
        try:
            parents = super().get_parent_population(study, generation)  # type: ignore[misc]
        finally:
            self._rng.rng.set_state(before)
        return sorted(parents, key=lambda trial: trial.number)


class NSGAII(SameParents, NSGAIISampler):
    """Genetic search of the Pareto front: non-dominated rank, then crowding distance."""

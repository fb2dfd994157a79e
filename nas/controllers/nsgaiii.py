"""NSGA-III (Deb and Jain 2014): Optuna's, resumable at any trial."""

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIIISampler

from nas.controllers.nsgaii import SameParents


class NSGAIII(SameParents, NSGAIIISampler):
    """Genetic search of a front of many objectives: rank, then reference directions."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        population: int = 50,
        crossover_prob: float = 0.9,
        mutation_prob: float | None = None,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                seed=seed,
                population_size=population,
                crossover_prob=crossover_prob,
                mutation_prob=mutation_prob,
            )
        self.start(seed)

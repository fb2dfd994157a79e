"""NSGA-III (Deb and Jain 2014): Optuna's, resumable at any trial."""

from optuna.samplers import NSGAIIISampler

from nas.controllers.nsgaii import SameParents


class NSGAIII(SameParents, NSGAIIISampler):
    """Genetic search of a front of many objectives: rank, then reference directions."""

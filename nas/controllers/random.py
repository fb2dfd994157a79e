"""Random search: Optuna's, with proposals that follow from the seed and the history."""

from optuna.samplers import RandomSampler

from nas.proposals.reseeded import Reseeded


class Random(Reseeded, RandomSampler):
    """Every parameter uniform and independent; the baseline that a search must beat."""

    def __init__(self, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.start(seed)

"""Gaussian process with (hypervolume) expected improvement: Optuna's GPSampler; needs PyTorch."""

import importlib.util
import warnings
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import GPSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas.proposals.reseeded import Reseeded


class GP(Reseeded, GPSampler):
    """Matern 5/2 process over the choices; `startup` random trials first."""

    def __init__(self, *, seed: int | None = None, startup: int = 10) -> None:
        if importlib.util.find_spec("torch") is None:
            raise ValueError(
                "controller gp needs PyTorch, which is not installed. Install the CPU build: "
                "pip install torch --index-url https://download.pytorch.org/whl/cpu"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        self.start(seed)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Optuna's, fitted from the start each time: a warm start would be state of the process."""
        self._gprs_cache_list = None
        self._constraints_gprs_cache_list = None
        return super().sample_relative(study, trial, search_space)

"""Tree-structured Parzen estimator (Bergstra et al. 2011): Optuna's, multivariate by default.

Optuna models the parameters of a multi-objective study one by one by default; choices of
one network depend on each other, so this one is multivariate in both cases.
"""

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler

from nas.proposals.reseeded import Reseeded


class TPE(Reseeded, TPESampler):
    """Samples where good trials are dense and bad ones are not; one or several objectives.

    `startup` trials are random first; `ei_candidates` points are compared for a proposal. `group`
    models parameters that occur together: only of use in a space with conditional parameters.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        startup: int = 10,
        ei_candidates: int = 24,
        multivariate: bool = True,
        group: bool = False,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                seed=seed,
                n_startup_trials=startup,
                n_ei_candidates=ei_candidates,
                multivariate=multivariate,
                group=group,
            )
        self.start(seed)

"""Pyramids and heads of EfficientDet: width, depth and fusion of the BiFPN, depth of the heads.

Tan, Pang and Le, CVPR 2020 (arXiv 1911.09070), section 4: what compound scaling grows together is
chosen here one by one; backbone, levels and anchors are those of the base.
"""

import dataclasses

import optuna

from families.efficientdet import FUSIONS, VARIANTS, Config
from search_spaces.mnasnet import scale_filters

FILTERS = (0.5, 0.75, 1.0, 1.25, 1.5)
LAYERS = (-2, -1, 0, 1, 2)  # more or fewer than the base has
BASES = tuple(VARIANTS)


def sample(trial: optuna.trial.BaseTrial, base: str = "tiny") -> Config:
    """Choose pyramid and heads of `base` anew: 5 x 5 x 3 x 5 networks.

    >>> sample(optuna.create_study().ask(), base="d0").levels
    (3, 7)
    """
    config = baseline(base)
    width = trial.suggest_categorical("filters", FILTERS)
    cells = config.cells + trial.suggest_categorical("cells", LAYERS)
    fusion = trial.suggest_categorical("fusion", FUSIONS)
    repeats = config.head_repeats + trial.suggest_categorical("head_repeats", LAYERS)
    return dataclasses.replace(
        config,
        filters=scale_filters(config.filters, width),
        cells=max(1, cells),
        fusion=fusion,
        head_repeats=max(1, repeats),
    )


def baseline(base: str = "tiny") -> Config:
    """The network the space surrounds: a variant of the family."""
    if base not in VARIANTS:
        raise ValueError(f"efficientdet: unknown base {base!r}, expected one of {', '.join(BASES)}")
    return VARIANTS[base]

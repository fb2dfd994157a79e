"""Vision transformers with experts: width, depth, patch, experts and the layers that have them.

What Daxberger et al., "Mobile V-MoEs", arXiv 2309.04354, vary by hand (layers, width, experts, the
last layers that have them, experts used, routing by image or token); patch and hidden units beside.
"""

import dataclasses
import math
from typing import Any

import optuna

from families.mobile_vmoe import VARIANTS, Config

WIDTHS = (0.5, 0.75, 1.0, 1.25)  # of the width of the base; its heads keep their number
DEPTHS = (-1, 0, 1)  # in quarters of the layers of the base
HIDDEN = (1, 2, 3, 4)  # times the width, in the dense blocks and in each expert
EXPERT_HIDDEN = (0.5, 1, 2, 4)
EXPERTS = (1, 2, 4, 8, 10, 16)  # 1: none
TOP_K = (1, 2)
LAYERS = ("last1", "last2", "last3", "every2")
ROUTINGS = ("image", "token")


def sample(trial: optuna.trial.BaseTrial, base: str = "tiny") -> Config:
    """Choose the sizes and the experts of `base` anew; the result is canonical.

    >>> sample(optuna.create_study().ask(), base="ti16").classes
    1000
    """
    config = baseline(base)
    patch = trial.suggest_categorical("patch", patches(config))
    # A multiple of the heads, and of 8 where that is possible, as accelerators like it.
    unit = config.heads * (8 // config.heads if 8 % config.heads == 0 else 1)
    width = trial.suggest_categorical("width", WIDTHS)
    dim = max(unit, round(config.dim * width / unit) * unit)
    depth = trial.suggest_categorical("depth", DEPTHS)
    layers = max(1, config.layers + depth * max(1, config.layers // 4))
    hidden = dim * trial.suggest_categorical("hidden", HIDDEN)
    experts = trial.suggest_categorical("experts", EXPERTS)
    stem = config.stem[: round(math.log2(patch))]
    sizes: dict[str, Any] = {
        "patch": patch,
        "stem": stem,
        "dim": dim,
        "layers": layers,
        "hidden": hidden,
    }
    if experts == 1:
        return dataclasses.replace(config, **sizes, moe_blocks=(), experts=1, top_k=1)
    where = trial.suggest_categorical("moe_layers", LAYERS)
    routing = trial.suggest_categorical("routing", ROUTINGS)
    return dataclasses.replace(
        config,
        **sizes,
        experts=experts,
        top_k=trial.suggest_categorical("top_k", TOP_K),
        expert_hidden=round(dim * trial.suggest_categorical("expert_hidden", EXPERT_HIDDEN)),
        moe_blocks=blocks(layers, where),
        routing=routing,
        noise=1.0 if routing == "token" else 0.0,
        importance_weight=0.005,
        load_weight=0.005 if routing == "token" else 0.0,
        capacity=None,
    )


def baseline(base: str = "tiny") -> Config:
    """The network the space surrounds: a variant."""
    if base not in VARIANTS:
        raise ValueError(f"vmoe: unknown base {base!r}, expected one of {', '.join(VARIANTS)}")
    return VARIANTS[base]


def patches(config: Config) -> tuple[int, ...]:
    """Sides of patches that divide the image of `config` into 2 x 2 to 16 x 16 of them.

    With a stem: all of its convolutions, or one less.
    """
    if config.stem:
        return tuple(
            2**count for count in range(max(1, len(config.stem) - 1), len(config.stem) + 1)
        )
    height, width = config.input_shape[:2]
    sides = [side for side in range(2, min(height, width) // 2 + 1)]
    fitting = [side for side in sides if height % side == width % side == 0]
    return tuple(side for side in fitting if max(height, width) // side <= 16)


def blocks(layers: int, where: str) -> tuple[int, ...]:
    """Numbers of the blocks with experts: "every2", or "last1", "last2" and so on."""
    if where == "every2":
        return tuple(range(2, layers + 1, 2)) or (layers,)
    last = min(int(where.removeprefix("last")), layers)
    return tuple(range(layers - last + 1, layers + 1))

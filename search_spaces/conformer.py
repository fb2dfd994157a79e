"""Conformers around a base: depth, width, kernel, heads, and lower blocks of convolution only.

Botros et al., "Practical Conformer", arXiv 2304.00171: what made an on-device encoder fast was to
leave attention out of the lower blocks, smaller sizes and a limited context; the decoders are those
of arXiv 2109.07513.
"""

import dataclasses
from typing import Any

import optuna

from families.conformer import VARIANTS, Config

DEPTHS = (0.5, 0.75, 1.0, 1.25, 1.5)
WIDTHS = (0.5, 0.67, 0.83, 1.0, 1.17, 1.33)
KERNELS = (3, 5, 7, 15, 31)
HEADS = (2, 4, 8)
EXPANDS = (1, 2, 4)
CONV_ONLY = (0.0, 0.25, 0.5, 0.75, 1.0)
CONTEXTS = (0.5, 1.0, 2.0)
DECODERS = ("lstm", "embedding")


def sample(trial: optuna.trial.BaseTrial, base: str = "tiny") -> Config:
    """Choose the encoder of `base` anew, and its decoder if it has one; sizes are shares of base's.

    Every trial makes the same choices in the same order, whether or not they matter to it: heads
    are drawn for a network of convolutions, too, and such networks are equal.

    >>> sample(optuna.create_study().ask(), base="s").mels
    80
    """
    config = baseline(base)
    depth = max(1, round(config.depth * trial.suggest_categorical("depth", DEPTHS)))
    width = trial.suggest_categorical("width", WIDTHS)
    kernel = trial.suggest_categorical("kernel", KERNELS)
    heads = trial.suggest_categorical("heads", HEADS)
    expand = trial.suggest_categorical("expand", EXPANDS)
    conv_only = trial.suggest_categorical("conv_only", CONV_ONLY)
    chosen: dict[str, Any] = {
        "depth": depth,
        "width": max(8, round(config.width * width / 8) * 8),  # a multiple of all heads
        "kernel": kernel,
        "heads": heads,
        "expand": expand,
        "conv_only": round(conv_only * depth),
    }
    if config.left_context:
        context = trial.suggest_categorical("left_context", CONTEXTS)
        chosen["left_context"] = max(1, round(config.left_context * context))
    if config.objective == "transducer":
        chosen["decoder"] = trial.suggest_categorical("decoder", DECODERS)
    return dataclasses.replace(config, **chosen)


def baseline(base: str = "tiny") -> Config:
    """The network the space surrounds: a variant."""
    if base not in VARIANTS:
        raise ValueError(f"conformer: unknown base {base!r}, expected one of {', '.join(VARIANTS)}")
    return VARIANTS[base]

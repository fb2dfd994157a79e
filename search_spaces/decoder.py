"""Decoder language models: depth, width, what attention keeps, and experts, around a base network.

Choices of the networks themselves: heads that share keys (Ainslie et al., arXiv 2305.13245), a
window in some layers of four or two (arXiv 2506.15545), layers that share the keys of others
(Apple's 2025 model: 3 of 8), experts in every or every other layer (arXiv 2401.04088).
"""

import dataclasses

import optuna

from families.decoder import VARIANTS, Config
from families.layers import round_filters

LAYERS = (0.5, 0.75, 1.0, 1.25, 1.5)
WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5)
HIDDEN = (2.0, 2.75, 4.0)  # of dim
QUERIES = (1, 2, 4, 8)  # at most so many query heads for each head of keys and values
WINDOWS = (0, 0.125, 0.25, 0.5)  # of length; 0: every layer sees everything
LOCAL = (1, 3, 5)  # layers with a window for each without
SHARED = (0.0, 0.375)  # of the layers, the last, without keys and values of their own
EXPERTS = (0, 4, 8)
EXPERT_EVERY = (1, 2)


def sample(trial: optuna.trial.BaseTrial, base: str = "tiny") -> Config:
    """Choose the shape of `base` anew; vocabulary, length and the width of a head stay.

    >>> sample(optuna.create_study().ask(), base="tiny").head_width
    32
    """
    config = baseline(base)
    layers = max(1, round(config.layers * trial.suggest_categorical("layers", LAYERS)))
    heads = max(1, round(config.heads * trial.suggest_categorical("width", WIDTHS)))
    dim = round(config.dim * heads / config.heads)
    hidden = trial.suggest_categorical("hidden", HIDDEN)
    queries = trial.suggest_categorical("queries", QUERIES)
    window = trial.suggest_categorical("window", WINDOWS)
    local = trial.suggest_categorical("local", LOCAL) if window else 0
    shared = trial.suggest_categorical("shared", SHARED)
    experts = trial.suggest_categorical("experts", EXPERTS)
    every = trial.suggest_categorical("expert_every", EXPERT_EVERY) if experts else 0
    return dataclasses.replace(
        config,
        layers=layers,
        dim=dim,
        heads=heads,
        key_value_heads=_key_value_heads(heads, queries),
        hidden=round_filters(dim * hidden),
        window=round(config.length * window),
        local=local,
        global_rope=config.global_rope or not window,
        shared=min(layers - 1, round(layers * shared)),
        experts=experts,
        top_k=min(experts, 2),
        expert_every=min(layers, every),
    )


def baseline(base: str = "tiny") -> Config:
    """The network the space surrounds."""
    if base not in VARIANTS:
        raise ValueError(f"decoder: unknown base {base!r}, expected one of {', '.join(VARIANTS)}")
    return VARIANTS[base]


def _key_value_heads(heads: int, queries: int) -> int:
    """The fewest heads of keys and values that no more than `queries` query heads share."""
    return min(n for n in range(1, heads + 1) if heads % n == 0 and heads // n <= queries)

"""MnasNet's choices for every layer by itself: the space that factorizing makes small.

Tan et al., CVPR 2019 (arXiv 1807.11626), section 4.1, compare their factorized space (mnasnet.py:
the layers of a block are alike) with a flat one of this kind. Its networks are among those here.
"""

import dataclasses

import optuna

from families.mnasnet import Block, Config
from search_spaces import mnasnet
from search_spaces.mnasnet import FILTERS, KERNELS, LAYERS, OPS, SE_RATIOS, SKIPS, scale_filters


def sample(trial: optuna.trial.BaseTrial, base: str = "tiny") -> Config:
    """Choose every layer of `base` anew, and how many each of its blocks has.

    Every trial makes all choices, those of layers that it leaves out, too. Neighbours of a block
    that are alike are written as one Block, so a network that the factorized space has, too, is
    equal to that space's, and figures of it are recalled.

    >>> sample(optuna.create_study().ask(), base="tiny").classes
    10
    """
    config = baseline(base)
    blocks, inputs = [], config.stem_filters
    for number, block in enumerate(config.blocks, 1):
        layers = trial.suggest_categorical(f"block{number}_layers", LAYERS)
        chosen = [
            _layer(trial, block, f"block{number}_{place}")
            for place in range(1, block.repeats + max(LAYERS) + 1)
        ]
        chosen[0] = dataclasses.replace(chosen[0], stride=block.stride)
        blocks += _merged(chosen[: max(1, block.repeats + layers)], inputs)
        inputs = blocks[-1].filters
    return dataclasses.replace(config, blocks=tuple(blocks))


def baseline(base: str = "tiny") -> Config:
    """The network the space surrounds: as that of the factorized space."""
    return mnasnet.baseline(base)


def _layer(trial: optuna.trial.BaseTrial, block: Block, path: str) -> Block:
    """One layer in place of one of `block`, without its stride."""
    op, expand = OPS[trial.suggest_categorical(f"{path}_op", tuple(OPS))]
    kernel = trial.suggest_categorical(f"{path}_kernel", KERNELS)
    se_ratio = trial.suggest_categorical(f"{path}_se", SE_RATIOS)
    skip = trial.suggest_categorical(f"{path}_skip", SKIPS)
    width = trial.suggest_categorical(f"{path}_filters", FILTERS)
    return Block(
        op=op,
        kernel=kernel,
        stride=1,
        filters=scale_filters(block.filters, width),
        repeats=1,
        expand=expand,
        se_ratio=se_ratio,
        skip=skip,
    )


def _merged(layers: list[Block], inputs: int) -> list[Block]:
    """Layers, alike neighbours as one Block; the first of a Block may have a stride."""
    found: list[Block] = []
    for layer in layers:
        before = found[-1] if found else None
        if before is not None and _alike(before, layer, inputs):
            found[-1] = dataclasses.replace(layer, stride=before.stride, repeats=before.repeats + 1)
            continue
        if before is not None:
            inputs = before.filters
        found.append(layer)
    return found


def _alike(block: Block, layer: Block, inputs: int) -> bool:
    """Whether `layer` repeats the last one of `block`, which has so many input channels."""
    # A first layer that cannot add its input is the same with "identity" and with "none".
    either = block.repeats == 1 and (block.stride > 1 or block.filters != inputs)
    skip = layer.skip if either and "pool" not in (block.skip, layer.skip) else block.skip
    as_block = dataclasses.replace(layer, stride=block.stride, repeats=block.repeats)
    return as_block == dataclasses.replace(block, skip=skip)

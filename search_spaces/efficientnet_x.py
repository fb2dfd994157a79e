"""The space of EfficientNet-X: operations, layouts and activations that accelerators tell apart.

Li et al., CVPR 2021 (arXiv 2102.05610), section 3: per block a fused or depthwise convolution, its
kernel, expansion, squeeze-and-excitation and activation, space-to-depth or space-to-batch, width
and depth. The lists of the paper's search were not released: these hold all of EfficientNet-B0,
EfficientNet-X-B0 and EfficientNet-H-B0. Strides, stem and head are those of the base.
"""

import dataclasses

import optuna

from families import efficientnet, efficientnet_x
from families.efficientnet import Block, Config
from search_spaces.mnasnet import scale_filters

OPS = ("mbconv", "fused", "conv")
KERNELS = (3, 5, 7)
EXPANDS = (1, 3, 4, 6)
SE_RATIOS = (0.0, 0.25, 0.5, 1.0)
ACTIVATIONS = ("relu", "swish", "hard_swish")
LAYOUTS = ("none", "depth_learned", "depth_reshape", "batch_learned", "batch_reshape")
FILTERS = (0.75, 1.0, 1.25)
LAYERS = (-1, 0, 1)
BASES = {"tiny": efficientnet.VARIANTS["tiny"], "x-tiny": efficientnet_x.VARIANTS["tiny"]}
BASES |= {f"b{level}": efficientnet.VARIANTS[f"b{level}"] for level in range(8)}


def sample(trial: optuna.trial.BaseTrial, base: str = "tiny", layouts: bool = True) -> Config:
    """Choose every block of `base` anew; the result is canonical, so equal networks compare equal.

    Stem and head have an activation of their own choice. A plain convolution has no expansion, but
    every name is asked for in every trial: controllers need a fixed list. Without `layouts` no
    block is in space-to-depth or space-to-batch (a supernet has none).

    >>> sample(optuna.create_study().ask(), base="b0").blocks[0].stride
    1
    """
    config = baseline(base)
    blocks = []
    for number, block in enumerate(config.blocks, 1):
        path = f"block{number}"
        op = trial.suggest_categorical(f"{path}_op", OPS)
        kernel = trial.suggest_categorical(f"{path}_kernel", KERNELS)
        expand = trial.suggest_categorical(f"{path}_expand", EXPANDS)
        se_ratio = trial.suggest_categorical(f"{path}_se", SE_RATIOS)
        activation = trial.suggest_categorical(f"{path}_activation", ACTIVATIONS)
        layout = trial.suggest_categorical(f"{path}_layout", LAYOUTS) if layouts else "none"
        width = trial.suggest_categorical(f"{path}_filters", FILTERS)
        layers = trial.suggest_categorical(f"{path}_layers", LAYERS)
        blocks.append(
            Block(
                op=op,
                kernel=kernel,
                stride=block.stride,
                filters=scale_filters(block.filters, width),
                repeats=max(1, block.repeats + layers),
                expand=expand,
                se_ratio=se_ratio,
                activation=activation,
                layout=layout,
            )
        )
    activation = trial.suggest_categorical("activation", ACTIVATIONS)
    return dataclasses.replace(config, blocks=tuple(blocks), activation=activation)


def baseline(base: str = "tiny") -> Config:
    """The network the space surrounds: EfficientNet's "b0" to "b7", "tiny", or X's "x-tiny"."""
    if base not in BASES:
        raise ValueError(
            f"efficientnet_x: unknown base {base!r}, expected one of {', '.join(BASES)}"
        )
    return BASES[base]

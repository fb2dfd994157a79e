"""MnasNets as networks of a supernet."""

from families.mnasnet import Config
from nas.supernets.outline import Outline, Stage, divisor


def outline(config: Config) -> Outline:
    stages = [
        Stage(
            operation=block.op,
            kernel=block.kernel,
            stride=block.stride,
            filters=block.filters,
            repeats=block.repeats,
            expand=block.expand,
            squeeze=divisor(block.se_ratio),
            skip=block.skip,
        )
        for block in config.blocks
    ]
    return Outline(
        input_shape=config.input_shape,
        classes=config.classes,
        stem_filters=config.stem_filters,
        stem_stride=config.stem_stride,
        head_filters=config.head_filters,
        stages=tuple(stages),
    )

"""What a network is to a supernet, in the words of all families that have one."""

import dataclasses
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Stage:
    """`repeats` layers of one kind; the first has the stride.

    operation, skip, activation: of OPERATIONS, SKIPS and ACTIVATIONS in nas/supernets/layers.py.
    squeeze: the divisor of the input channels that gives the units of squeeze-and-excitation, 0 for
    none.
    """

    operation: str
    kernel: int
    stride: int
    filters: int
    repeats: int
    expand: int
    squeeze: int
    skip: str
    activation: str


@dataclasses.dataclass(frozen=True)
class Outline:
    """Stem, stages and head; sizes as in the Config of a family. activation: of stem and head."""

    input_shape: tuple[int, int, int]
    classes: int
    stem_filters: int
    stem_stride: int
    head_filters: int
    stages: tuple[Stage, ...]
    activation: str

    @property
    def outside(self) -> tuple:
        """What networks that share weights have in common."""
        strides = tuple(stage.stride for stage in self.stages)
        sizes = (self.stem_filters, self.stem_stride, strides, self.head_filters)
        return (self.input_shape, self.classes, *sizes)


def outlined(config: Any, stages: Iterable[Stage], activation: str = "relu") -> Outline:
    """The outline of a family's Config, whose blocks are `stages`."""
    return Outline(
        input_shape=config.input_shape,
        classes=config.classes,
        stem_filters=config.stem_filters,
        stem_stride=config.stem_stride,
        head_filters=config.head_filters,
        stages=tuple(stages),
        activation=activation,
    )


def staged(block: Any, operation: str, skip: str, activation: str = "relu") -> Stage:
    """The stage of a family's Block, in the words of a supernet."""
    return Stage(
        operation=operation,
        kernel=block.kernel,
        stride=block.stride,
        filters=block.filters,
        repeats=block.repeats,
        expand=block.expand,
        squeeze=round(1 / block.se_ratio) if block.se_ratio else 0,
        skip=skip,
        activation=activation,
    )

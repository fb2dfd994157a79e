"""What a network is to a supernet, in the words of all families that have one."""

import dataclasses


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
    activation: str = "relu"


@dataclasses.dataclass(frozen=True)
class Outline:
    """Stem, stages and head; sizes as in the Config of a family. activation: of stem and head."""

    input_shape: tuple[int, int, int]
    classes: int
    stem_filters: int
    stem_stride: int
    head_filters: int
    stages: tuple[Stage, ...]
    activation: str = "relu"

    @property
    def outside(self) -> tuple:
        """What networks that share weights have in common."""
        strides = tuple(stage.stride for stage in self.stages)
        sizes = (self.stem_filters, self.stem_stride, strides, self.head_filters)
        return (self.input_shape, self.classes, *sizes)


def divisor(ratio: float) -> int:
    """Of `Stage.squeeze`, for a ratio of squeeze-and-excitation."""
    return round(1 / ratio) if ratio else 0

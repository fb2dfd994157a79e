"""What the methods of a leaf are called with: the graphs of channels and of LiteRT operators."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np


class ChannelGraph(Protocol):
    """Channels of a network while it is read, each with a number, its label."""

    def fresh(self, shape: int | tuple[int, ...], maker: str) -> np.ndarray:
        """Labels of new channels, made by the layer of this name."""

    def kept(self, tensor: Any, reason: str) -> np.ndarray:
        """Labels of channels that stay, for the last axis of a tensor."""

    def keep(self, labels: np.ndarray, reason: str) -> None:
        """These channels stay, and the reason."""

    def stay(self, layer: Any, reason: str) -> None:
        """Why nothing is taken from the weights of a layer."""

    def tie(self, *labels: np.ndarray) -> None:
        """Channels in the same place of arrays of one size leave together."""

    def tie_within(self, labels: np.ndarray) -> None:
        """Channels of each row (rows, channels) leave together."""

    def slot(
        self,
        layer: Any,
        name: str,
        axes: int | tuple[int, ...],
        labels: np.ndarray,
        role: str,
        source: Any = None,
        multiplied: Callable[[Any], Any] | None = None,
    ) -> None:
        """Channels along one axis of the layer's weight `name`, or a table of them along two.

        role: "out", the weight makes these channels; "in", it multiplies them; "scale", a factor of
        each; "other". A weight that the layer does not have is passed over.
        source: the tensor whose last axis an "in" multiplies, None where it is within the layer.
        multiplied: source -> what is multiplied, (..., rows, channels) with the labels' shape but
        for the rows; None: the source itself.
        """

    def size(self, layer: Any, **options: Callable[[Callable[[np.ndarray], int]], int]) -> None:
        """Options of the layer's config, each from `count(labels)`: how many of them are left."""


class LiteRTGraph(Protocol):
    """A LiteRT graph that is being written; tensors are numbers."""

    shapes: list[tuple[int, ...]]

    def constant(self, value: Any, name: str, dtype: Any = np.float32) -> int:
        """A new constant tensor."""

    def add(
        self,
        name: str,
        inputs: Sequence[int],
        shape: tuple[int, ...],
        label: str,
        options: dict[str, Any] | None = None,
    ) -> int:
        """A new operator of that name in LiteRT's schema; its output tensor.

        label: the name of the layer; options: the fields of the operator's options, {} for their
        defaults, None where the operator has none.
        """


Labels = list[np.ndarray]
Kernels = dict[str, tuple[str, int, tuple[int, ...]]]

"""Examples that a method may look at: to score what can go, to choose ranges."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Tree = np.ndarray | dict[str, np.ndarray]  # arrays that share their first axis, the examples


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Examples as the network takes them (not pixels as bytes), and what is made of them.

    `loss(outputs, targets)` gives losses (batch,), in `keras.ops`; None, as `targets`, where only
    inputs are known: methods that need the loss say so by `NotApplicable`.

    >>> data = Data(np.zeros((100, 8), np.float32))
    >>> [len(inputs) for inputs, _ in data.batches()]
    [64, 36]
    """

    inputs: Tree
    targets: Tree | None = None
    loss: Callable[[Any, Any], Any] | None = None

    def __len__(self) -> int:
        return len(
            next(iter(self.inputs.values())) if isinstance(self.inputs, dict) else self.inputs
        )

    def measured_loss(self) -> Callable[[Any, Any], Any]:
        """`loss`; `ValueError` where only inputs are known."""
        if self.loss is None:
            raise ValueError("these examples have no loss; expected Data(inputs, targets, loss)")
        return self.loss

    def batches(self, size: int = 64) -> Iterator[tuple[Tree, Tree | None]]:
        """(inputs, targets) of all examples, in order."""
        for start in range(0, len(self), size):
            chosen = slice(start, start + size)
            yield taken(self.inputs, chosen), taken(self.targets, chosen)


def taken(tree: Any, chosen: slice | np.ndarray) -> Any:
    """Some of the examples of a tree; None of None.

    >>> taken({"x": np.arange(4)}, slice(1, 3))
    {'x': array([1, 2])}
    """
    if isinstance(tree, dict):
        return {name: array[chosen] for name, array in tree.items()}
    return None if tree is None else tree[chosen]

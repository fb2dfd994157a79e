"""Examples of a task that compression methods look at."""

from collections.abc import Iterator
from typing import Any

from compress.examples.choose import choose
from compress.examples.data import Data, taken
from nas import interruption
from nas.tasks.task import Task, Tree

EXAMPLES = 512  # that methods look at


class Interruptible(Data):
    """Examples between whose batches Ctrl-C ends what a method does."""

    def batches(self, size: int = 64) -> Iterator[tuple[Tree, Tree | None]]:
        """(inputs, targets) of all examples, in order."""
        for batch in super().batches(size):
            interruption.check()
            yield batch


def examples(task: Task | None, model: Any, count: int, seed: int) -> Data | None:
    """`count` examples of the training part as `model` takes them; None without a task.

    `compress.examples.choose.choose` says which.
    """
    if task is None:
        return None
    from nas.training.batches import labels, prepared

    inputs, targets = task.train
    chosen = choose(inputs, targets, count, seed)
    seen = prepared(model)(taken(inputs, chosen))
    if targets is None:
        return Interruptible(seen)
    return Interruptible(seen, labels(taken(targets, chosen)), task.loss)

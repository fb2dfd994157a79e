"""Examples of a task that compression methods look at."""

from typing import Any

from compress.examples.choose import choose
from compress.examples.data import Data, taken
from nas.tasks.task import Task

EXAMPLES = 512  # that methods look at


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
        return Data(seen)
    return Data(seen, labels(taken(targets, chosen)), task.loss)

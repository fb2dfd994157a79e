"""Examples of a task that compression methods look at."""

from typing import Any

EXAMPLES = 512  # that methods look at


def examples(task: Any, model: Any, count: int, seed: int) -> Any:
    """Examples of the training part for methods to look at: `compress.examples.data.Data`, or
    None."""
    if task is None:
        return None
    from compress.examples.choose import choose
    from compress.examples.data import Data, taken
    from nas.training.batches import labels, prepared

    inputs, targets = task.train
    chosen = choose(inputs, targets, count, seed)
    return Data(prepared(model)(taken(inputs, chosen)), labels(taken(targets, chosen)), task.loss)

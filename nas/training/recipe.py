"""How a network is trained: batch, optimizer, learning rates; a task may bring its own."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.tasks.task import Task

BATCH_SIZE = 64
LEARNING_RATE = 6e-3  # the best of 1.5e-3, 3e-3 and 6e-3 after 4 and 5 epochs
WARM_UP = 0.1  # share of all steps in which the rate rises from 0
COOL_DOWN = 0.2  # share of all steps, of "wsd": Haegele et al., arXiv 2405.18392, section 4
SCHEDULES = ("cosine", "linear", "constant", "wsd")
OPTIMIZERS = ("adam", "adamw", "sgd")


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained; what on and for how long are arguments beside it.

    schedule: how the rate falls after the warm-up: "cosine" or "linear" to 0, "constant", or "wsd",
        constant until the last fifth.
    warm_up: a share of all steps, or, from 1, a number of steps.
    weight_decay: decoupled (adamw); spares biases and norms. momentum: sgd's.
    clip: the largest global norm of the gradients.
    ema: the decay of an average of the weights that is judged and kept in their place.
    patience: after how many epochs without a lower validation loss training ends; the best epoch's
        weights are kept then.

    >>> Recipe(warm_up=0, schedule="linear", learning_rate=1e-2).rate(step=50, steps=100)
    0.005
    """

    batch_size: int = _field(BATCH_SIZE, "examples a step")
    learning_rate: float = _field(LEARNING_RATE, "the highest there is")
    schedule: str = _field("cosine", f"one of {', '.join(SCHEDULES)} (warm-up, stable, decay)")
    warm_up: float = _field(WARM_UP, "share of the steps in which the rate rises, or their number")
    optimizer: str = _field("adam", f"one of {', '.join(OPTIMIZERS)}")
    weight_decay: float = _field(0.0, "decoupled, not of biases and norms")
    momentum: float = _field(0.9, "of sgd")
    clip: float | None = _field(None, "largest global norm of the gradients, as 1")
    ema: float | None = _field(None, "keep an average of the weights, as 0.999")
    patience: int | None = _field(None, "epochs without a lower validation loss to stop")

    def __post_init__(self) -> None:
        expected = {
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "schedule": (self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            "warm_up": (0 <= self.warm_up < math.inf, "a share below 1 or a number of steps"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "momentum": (0 <= self.momentum < 1, "from 0 to below 1"),
            "clip": (self.clip is None or 0 < self.clip < math.inf, "above 0"),
            "ema": (self.ema is None or 0 < self.ema < 1, "between 0 and 1, such as 0.999"),
            "patience": (self.patience is None or self.patience >= 1, "at least 1 epoch"),
        }
        for name, (holds, text) in expected.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected {text}")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError("adam has no weight_decay; expected optimizer='adamw' with it")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step number `step`, counted from 0, of `steps`."""
        warm_up = self.warm_up * steps if self.warm_up < 1 else min(self.warm_up, steps)
        warm_up = max(1, round(warm_up)) if self.warm_up else 0
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        share = (step - warm_up) / max(steps - warm_up, 1)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "linear":
            return self.learning_rate * (1 - share)
        if self.schedule == "wsd":
            down = (step / steps - (1 - COOL_DOWN)) / COOL_DOWN
            return self.learning_rate * (1 - math.sqrt(max(down, 0.0)))
        return self.learning_rate


def recipe_of(task: "Task") -> Recipe:
    """The recipe of a task: the default one, but for the fields that `Task.training` gives.

    >>> from nas.tasks.task import Task
    >>> import numpy as np
    >>> pair = np.zeros((4, 2), "float32"), np.arange(4)
    >>> recipe_of(Task(pair, pair, training={"clip": 1.0, "epochs": 3})).clip
    1.0
    """
    return Recipe(**{name: value for name, value in task.training.items() if name != "epochs"})


def identity(task: "Task") -> str:
    """What a quality depends on besides the task's data, the network, the epochs and the seed."""
    recipe = recipe_of(task)
    if recipe == Recipe():
        return f"adam {LEARNING_RATE} cosine warm-up {WARM_UP} batch {BATCH_SIZE}, version 1"
    return f"{recipe!r}, version 1"

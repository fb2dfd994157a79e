"""What a training is between two steps, and what is known of each epoch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nas.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class TrainingBegins:
    """The event before the first step; `state()` gives figures of compression, for progress."""

    task: Task
    batch_size: int
    epochs: int | None
    minutes: float | None
    state: Callable[[], Mapping[str, float]] = dict


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What was seen up to the end of an epoch.

    `loss` is the mean training loss of the epoch, as the steps saw it; `step` and `seconds` are
    counted from the beginning of the training, evaluations included. `losses` and `rates` are the
    means of up to 50 equal parts of the epoch.
    """

    number: int
    step: int
    loss: float
    valid_loss: float
    quality: float
    seconds: float
    losses: tuple[float, ...]
    rates: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Now:
    """Where a training is after a step; `steps` is how many there will be, as far as known.

    `loss` is the step's own, a number of the backend: convert it only to show it. `judged` is the
    epoch that has just ended, else None.
    """

    epoch: int
    step: int
    steps: int
    loss: Any
    rate: float
    judged: Epoch | None = None


@dataclasses.dataclass
class State:
    """All that a training is between two steps; written to a checkpoint, and gone on from.

    The order of the examples and their augmentation follow from `step` and the seed; the state of
    dropout is among the `arrays`, which are the engine's.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[Any] = dataclasses.field(default_factory=list)  # of the steps of this epoch
    rates: list[float] = dataclasses.field(default_factory=list)
    history: list[Epoch] = dataclasses.field(default_factory=list)
    arrays: list[np.ndarray] = dataclasses.field(default_factory=list)
    best: list[np.ndarray] = dataclasses.field(default_factory=list)  # weights of the best epoch

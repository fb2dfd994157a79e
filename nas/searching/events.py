"""What a search says while it runs, beside `nas.events.Message`."""

import dataclasses
import math
from typing import Literal

from optuna.trial import FrozenTrial

from nas.searching.objective import Objective
from nas.training.state import Now


@dataclasses.dataclass(frozen=True)
class SearchBegins:
    """A search begins or goes on: the `TrialEvent`s that follow are its own.

    trials: networks to train. deadline: a `time.monotonic()`. label: before each of its lines.
    finished: the trials that an earlier run trained.
    """

    objective: Objective
    trials: int
    deadline: float = math.inf
    label: str = ""
    finished: tuple[FrozenTrial, ...] = ()


@dataclasses.dataclass(frozen=True)
class TrialEvent:
    """Something that happened to a trial, which is as stored after it.

    trained: the number of networks that this study has trained so far. "returned": its worker died,
    and its proposal is queued again. "waiting": the device is away, `message` says why.
    """

    kind: Literal["trained", "stopped", "pruned", "duplicate", "failed", "returned", "waiting"]
    trial: FrozenTrial
    trained: int
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of the training of one network: of the base network, a candidate or a finalist."""

    now: Now

"""Candidates that fail: whose fault it is, in which words, and when it is everybody's."""

import dataclasses
import math
import traceback

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from latency.target import TargetUnavailable
from nas.events import Listener, Message

MOST_IN_A_ROW = 5
_LONGEST = 300  # of a message that a trial keeps, in characters


class OtherKind(ValueError):
    """A device gives figures of another kind than those that a study began with."""


class EveryCandidateFails(ValueError):
    """So many candidates in a row failed that it is not their fault."""


def is_of_the_machine(error: Exception) -> bool:
    """Whether any candidate would meet an error: a full disk, a storage that is gone, a device.

    >>> is_of_the_machine(OSError(28, "No space left on device")), is_of_the_machine(KeyError(1))
    (True, False)
    """
    machine = (OSError, TargetUnavailable, StorageInternalError, UpdateFinishedTrialError)
    return isinstance(error, (*machine, OtherKind))


def described(error: Exception) -> tuple[str, str]:
    """The kind of an error and what it says, in one line.

    >>> described(ZeroDivisionError("division by zero"))
    ('ZeroDivisionError', 'ZeroDivisionError: division by zero')
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return "memory", "out of memory"
    kind, text = type(error).__name__, " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return kind, f"{kind}: {text}" if text else kind


def check_finite(what: str, *values: float) -> None:
    """`FloatingPointError` where a figure is no number."""
    for value in values:
        if not math.isfinite(value):
            raise FloatingPointError(f"its {what} is {value}")


@dataclasses.dataclass
class InARow:
    """Failures since the last success, of each thing that is done to candidates."""

    count: dict[str, int] = dataclasses.field(default_factory=dict)

    def note(self, done: str, error: Exception | None, on_event: Listener) -> None:
        """One more candidate was "timed" or "trained", or failed to be; all may have failed."""
        self.count[done] = 0 if error is None else self.count.get(done, 0) + 1
        if error is not None and self.count[done] >= MOST_IN_A_ROW:
            on_event(Message("".join(traceback.format_exception(error)).rstrip()))
            raise EveryCandidateFails(
                f"the last {MOST_IN_A_ROW} candidates in a row could not be {done}, the last of"
                f" them because of {described(error)[1]} (its traceback is above); mend that, then"
                " the same command goes on"
            ) from error

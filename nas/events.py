"""What a journey says while it runs: every one takes `on_event`, a function of one event.

`nas.Progress()` is the listener of the command line; a function of your own is another. Events are
plain objects: `Message`, those of a training (`nas.training.state.Now`) and of a search
(`nas.searching.events.TrialEvent`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Message:
    """One line for the user."""

    text: str

    def __str__(self) -> str:
        return self.text


Listener = Callable[[Any], None]


def ignore(event: Any) -> None:
    """The listener that says nothing."""

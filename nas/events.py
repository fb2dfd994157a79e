"""What a journey says while it runs: every one takes `on_event`, a function of one event.

The command line is one listener (nas/cli/listener.py), a notebook may be another. Events are plain
objects: `Message`, those of a training (`nas.training.loop.Now`) and of a search
(`nas.searching.loop.Event`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Message:
    """One line for the user."""

    text: str


Listener = Callable[[Any], None]


def ignore(event: Any) -> None:
    """The listener that says nothing."""

"""The listener of the command line: messages, and the progress of a training, on stderr."""

import sys
from typing import Any

from nas.cli.training_line import Line
from nas.events import Message
from nas.training.state import Now, TrainingBegins


class Terminal:
    """Call it with each event; a line that is being rewritten ends before a message."""

    def __init__(self) -> None:
        self._line: Line | None = None

    def __call__(self, event: Any) -> None:
        if isinstance(event, Message):
            if self._line is not None:
                self._line.end()
            print(event.text, file=sys.stderr, flush=True)
        elif isinstance(event, TrainingBegins):
            self._line = Line(event)
        elif isinstance(event, Now) and self._line is not None:
            self._line(event)

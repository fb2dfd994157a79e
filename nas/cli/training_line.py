"""The progress of a training on stderr: a line that is rewritten, and one for each epoch."""

import math
import shutil
import sys
import time

import numpy as np

from nas.training.batches import count
from nas.training.chance import beats_chance
from nas.training.state import Epoch, Now, TrainingBegins

EACH_S = 0.1  # between two states of the line on a terminal; showing the loss waits for the step
PLAIN_S = 30.0  # where there is no terminal
BAR = 20


class Line:
    """Call it with each `nas.training.loop.Now` of the training that `begins` describes."""

    def __init__(self, begins: TrainingBegins):
        task = begins.task
        self._state, self._metric, self._task = begins.state, task.metric, task
        self._epochs = begins.epochs
        self._unit, self._each = "examples", min(begins.batch_size, count(task.train))
        if "length" in task.fields:
            self._unit, self._each = "tokens", self._each * task.fields["length"]
        self._terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()
        self._before: int | None = None  # steps of an earlier run
        self._seconds = 0.0  # spent in steps, so that evaluation does not slow the rate shown
        self._last = self._began
        self._loss: float | None = None

    def __call__(self, now: Now) -> None:
        if self._before is None:
            self._before = now.step - 1
        moment = time.monotonic()
        if now.judged is not None:
            self._epoch(now.judged, now)
            self._last = time.monotonic()
            return
        self._seconds += moment - self._last
        self._last = moment
        if moment - self._shown >= (EACH_S if self._terminal else PLAIN_S):
            loss = float(np.asarray(now.loss))
            if self._terminal and self._loss is not None:
                loss = 0.9 * self._loss + 0.1 * loss
            self._loss = loss
            self._show(now)
            self._shown = time.monotonic()

    def end(self) -> None:
        """Erase the line that is being rewritten."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self, now: Now) -> None:
        done = now.step / now.steps if now.steps else 1.0
        filled = round(BAR * min(done, 1.0))
        epochs = "" if self._epochs is None else f"/{self._epochs}"
        text = (
            f"epoch {now.epoch}{epochs} {'━' * filled}{'─' * (BAR - filled)} "
            f"{now.step:,}/{now.steps:,}  loss {self._loss:.4f}  rate {now.rate:.2e}  "
            f"{self._states()}{self._speed(now)}  {self._left(now)} left"
        )
        if self._terminal:
            width = shutil.get_terminal_size().columns
            print(f"\r{text[: width - 1]}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _epoch(self, epoch: Epoch, now: Now) -> None:
        self.end()
        width = len(str(self._epochs or ""))
        epochs = "" if self._epochs is None else f"/{self._epochs}"
        known = beats_chance(self._task, epoch.quality)
        chance = "" if known else f" (a constant answer: {self._task.chance:.4f})"
        print(
            f"epoch {epoch.number:{width}}{epochs}  loss {epoch.loss:.4f}  valid "
            f"{epoch.valid_loss:.4f}  {self._metric} {epoch.quality:.4f}{chance}  "
            f"{self._states()}{self._speed(now)}  "
            f"{clock(epoch.seconds)}, {self._left(now)} left",
            file=sys.stderr,
            flush=True,
        )
        self._shown = time.monotonic()

    def _states(self) -> str:
        return "".join(f"{name} {value:.4g}  " for name, value in self._state().items())

    def _speed(self, now: Now) -> str:
        per_second = self._each * self._steps(now) / max(self._seconds, 1e-9)
        return f"{per_second:,.0f} {self._unit}/s"

    def _left(self, now: Now) -> str:
        elapsed = time.monotonic() - self._began
        left = elapsed / max(self._steps(now), 1) * max(now.steps - now.step, 0)
        return clock(left)

    def _steps(self, now: Now) -> int:
        """How many there were in this run."""
        return now.step - (self._before or 0)


class SearchLine:
    """The training of one network of a search: where it is, as long as there is no other line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._step, self._first = math.inf, 0
        self._began = self._shown = 0.0

    def __call__(self, now: Now) -> None:
        moment = time.monotonic()
        if now.step < self._step:  # another training
            self._began = self._shown = moment
            self._first = now.step
        self._step = now.step
        if moment - self._shown < (EACH_S if self._terminal else PLAIN_S):
            return
        self._shown = moment
        left = (
            (moment - self._began) / max(now.step - self._first, 1) * max(now.steps - now.step, 0)
        )
        filled = round(BAR * min(now.step / now.steps, 1.0))
        text = f"  training {'━' * filled}{'─' * (BAR - filled)} {now.step:,}/{now.steps:,} steps,"
        text += f" {clock(left)} left"
        start, end = ("\r", "\x1b[K") if self._terminal else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Erase the line that is being rewritten."""
        if self._terminal and self._shown > self._began:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3723), clock(123.4)
    ('1:02:03', '2:03')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

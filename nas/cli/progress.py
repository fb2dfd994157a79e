"""What the command line shows of a journey, and `nas.Progress()` in Python: lines on stderr."""

import dataclasses
import math
import sys
import time
from typing import Any

from nas.cli.listener import Terminal
from nas.cli.training_line import SearchLine
from nas.searching.events import SearchBegins, Step, TrialEvent
from nas.searching.nearest import Miss, miss_of

FEW = 4  # networks that are timed between two trainings


class Progress:
    """The `on_event` of any function of the door: a search has a line for each trained network."""

    def __init__(self) -> None:
        self._terminal = Terminal()
        self._training = SearchLine()
        self._search: _Search | None = None

    def __call__(self, event: Any) -> None:
        if isinstance(event, Step):
            self._training(event.now)
            return
        self._training.end()
        if isinstance(event, SearchBegins):
            self._search = _Search(event)
            for trial in event.finished:
                self._search.note(trial)
        elif isinstance(event, TrialEvent):
            if self._search is not None:
                self._search.show(event)
        else:
            self._terminal(event)


@dataclasses.dataclass
class _Search:
    """The lines of one search."""

    begins: SearchBegins
    started: float = dataclasses.field(default_factory=time.monotonic)
    first: int | None = None  # networks that were trained when it began
    timed: int = 0  # and not trained, since the last line
    best: tuple[float, str] = (-math.inf, "")
    nearest: Miss | None = None  # of those that fit no limit, since the last line
    said: bool = False

    def show(self, event: TrialEvent) -> None:
        """Print what there is to say about an event."""
        number = event.trial.number
        match event.kind:
            case "pruned" | "duplicate":
                self.timed += 1
                self._miss(event)
            case "failed" | "waiting":
                self._say(f"trial {number} {event.kind}: {event.message}")
            case "returned":
                self._say(f"trial {number} was not finished; it is done again")
            case "trained" | "stopped":
                self._line(event)

    def _miss(self, event: TrialEvent) -> None:
        """Say by how much all miss that were timed since a training, if they were not few."""
        profile = event.trial.user_attrs["profile"]
        miss = miss_of(event.trial.number, profile, self.begins.objective.budgets)
        if miss is not None and (self.nearest is None or miss.share < self.nearest.share):
            self.nearest, self.said = miss, False
        if self.nearest is not None and self.timed >= FEW and not self.said:
            self._say(f"none of the last {self.timed} fits, the nearest is {self.nearest}")
            self.said = True

    def note(self, trial: Any) -> None:
        """Take note of a trained network, which may be the best one."""
        costs = trial.user_attrs["profile"]["costs"]
        quality = trial.user_attrs["evaluation"]["quality"]
        if trial.values and not self.begins.objective.excess(costs):
            self.best = max(self.best, (quality, f"best {quality:.1%} @ {_costs(costs)}"))

    def _say(self, text: str) -> None:
        print(self.begins.label + text, file=sys.stderr, flush=True)

    def _line(self, event: TrialEvent) -> None:
        trial, trials = event.trial, self.begins.trials
        profile = trial.user_attrs["profile"]
        quality, costs = trial.user_attrs["evaluation"]["quality"], profile["costs"]
        self.note(trial)
        if self.first is None:
            self.first = event.trained - 1
        budgets = self.begins.objective.budgets
        share = max(cost / budget for cost, budget in zip(costs, budgets, strict=True))
        notes = f" ({share:4.0%} of budget)" if share else ""
        notes += "".join(f" {name}" for name in profile.get("methods", ()))
        if chance := trial.user_attrs["evaluation"].get("chance"):
            notes += f" no better than a constant answer ({chance:.1%})"
        notes += " stopped early" if event.kind == "stopped" else ""
        also = f" | {self.timed} more timed" if self.timed else ""
        self.timed, self.nearest, self.said = 0, None, False
        width = len(str(trials))
        self._say(
            f"{event.trained:{width}}/{trials}  trial {trial.number:<4} {quality:6.1%}"
            f"  {_costs(costs)}{notes} | {self.best[1] or 'none fits yet'}{also}"
            f" | {self._left(event.trained)} left"
        )

    def _left(self, trained: int) -> str:
        elapsed = time.monotonic() - self.started
        each = elapsed / max(trained - (self.first or 0), 1)
        seconds = each * max(self.begins.trials - trained, 0)
        seconds = min(seconds, max(self.begins.deadline - time.monotonic(), 0))
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _costs(costs: list[float]) -> str:
    # Of an accelerator they may be microseconds.
    return " / ".join(f"{cost:.3f} ms" if cost >= 0.1 else f"{cost:.3g} ms" for cost in costs)

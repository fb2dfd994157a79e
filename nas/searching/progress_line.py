"""What a search says while it runs: one line a trained network, on stderr."""

import math
import sys
import time

from nas.searching.loop import Event, Objective, excess


class Progress:
    """Prints events of the search; call it with each `nas.searching.loop.Event`."""

    def __init__(
        self, objective: Objective, trials: int, deadline: float = math.inf, prefix: str = ""
    ):
        self._objective = objective
        self._trials = trials
        self._deadline = deadline
        self._prefix = prefix
        self._started = time.monotonic()
        self._first: int | None = None
        self._timed = 0
        self._best = (-math.inf, "")

    def __call__(self, event: Event) -> None:
        if event.kind in ("pruned", "duplicate"):
            self._timed += 1
            return
        if event.kind in ("failed", "waiting"):
            self.say(f"trial {event.trial.number} {event.kind}: {event.message}")
        if event.kind == "returned":
            self.say(f"trial {event.trial.number} was not finished; it is done again")
        if event.kind in ("trained", "stopped"):
            self._line(event)

    def say(self, text: str) -> None:
        """Print one line."""
        print(self._prefix + text, file=sys.stderr, flush=True)

    def seed(self, trial) -> None:
        """Take note of a trial of an earlier run."""
        costs = trial.user_attrs["profile"]["costs"]
        quality = trial.user_attrs["evaluation"]["quality"]
        if trial.values and not excess(self._objective, costs):
            told = f"best {quality:.1%} @ {_costs(costs)}"
            self._best = max(self._best, (quality, told))

    def _line(self, event: Event) -> None:
        trial = event.trial
        quality = trial.user_attrs["evaluation"]["quality"]
        costs = trial.user_attrs["profile"]["costs"]
        self.seed(trial)
        if self._first is None:
            self._first = event.trained - 1
        share = max(c / b for c, b in zip(costs, self._objective.budgets, strict=True))
        budget = f" ({share:4.0%} of budget)" if share else ""
        told = "".join(f" {text}" for text in trial.user_attrs["profile"].get("methods", ()))
        told += " stopped early" if event.kind == "stopped" else ""
        also = f" | {self._timed} more timed" if self._timed else ""
        self._timed = 0
        width = len(str(self._trials))
        self.say(
            f"{event.trained:{width}}/{self._trials}  trial {trial.number:<4} {quality:6.1%}"
            f"  {_costs(costs)}{budget}{told} | {self._best[1] or 'none fits yet'}{also}"
            f" | {self._left(event.trained)} left"
        )

    def _left(self, trained: int) -> str:
        elapsed = time.monotonic() - self._started
        each = elapsed / max(trained - self._first, 1)
        seconds = each * max(self._trials - trained, 0)
        seconds = min(seconds, max(self._deadline - time.monotonic(), 0))
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _costs(costs: list[float]) -> str:
    # Of an accelerator they may be microseconds.
    return " / ".join(f"{cost:.3f} ms" if cost >= 0.1 else f"{cost:.3g} ms" for cost in costs)

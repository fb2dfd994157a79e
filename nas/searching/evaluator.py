"""The contract between a search and what it searches: candidates are counted, timed and judged."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from latency.target import Target, TargetUnavailable
from nas.events import Listener
from nas.searching.candidate import Candidate


@dataclasses.dataclass(frozen=True)
class Limits:
    """Hard limits on what a network, as it runs on a device, may hold; None: no limit.

    >>> limits = Limits(params=1e6)
    >>> limits.shares({"params": 1_500_000}), limits.exceeded({"params": 1_500_000})
    ({'--max-params': 1.5}, '1,500,000 params, over --max-params 1,000,000')
    """

    params: float | None = None
    macs: float | None = None
    file_bytes: float | None = None

    def shares(self, record: Mapping[str, Any]) -> dict[str, float]:
        """How much of each limit there is a profile record takes."""
        return {flag: record[name] / most for name, flag, most in self._limits()}

    def exceeded(self, record: Mapping[str, Any]) -> str | None:
        """Which limit a profile record exceeds, in words."""
        for name, flag, most in self._limits():
            if record[name] > most:
                unit = name.removeprefix("file_")
                return f"{record[name]:,.0f} {unit}, over {flag} {most:,.0f}"
        return None

    def _limits(self) -> list[tuple[str, str, float]]:
        named = {"params": "--max-params", "macs": "--max-macs", "file_bytes": "--max-bytes"}
        every = [(name, flag, getattr(self, name)) for name, flag in named.items()]
        return [one for one in every if one[2] is not None]


def no_device(name: str) -> Target:
    """Where nobody says how to find the device that a predictor stands for."""
    raise TargetUnavailable(f"there is no way here to find the device {name!r}")


# Makes the network that was just judged, so that its files can be written. One of which only the
# figures are known is trained again, and its record becomes that of this training.
MakeNetwork = Callable[[], Any]
Keep = Callable[[MakeNetwork, dict[str, Any]], None]
OnEpoch = Callable[[int, float], bool]


class Evaluator(Protocol):
    """Profiles and trains candidates; `Networks` (networks.py), `TableEvaluator` (of a table).

    `profile` and `train` return JSON records: the "profile" and the "evaluation" of a trial.
    """

    kinds: list[str | None]  # of the figures that the study began with, one a target
    epochs: float | None  # that a candidate is trained for; None where there are only figures
    watch: Listener | None  # is called after each step of a training, with its `Now`

    @property
    def targets(self) -> Sequence[Target]:
        """The devices; none of a table, which has only their figures."""

    @property
    def metric(self) -> str | None:
        """What the quality is, such as "accuracy"; None where that is not known."""

    @property
    def candidates(self) -> list[dict[str, Any]] | None:
        """The parameter sets that exist, where not all of the space do."""

    @property
    def limits(self) -> Limits:
        """Hard limits, which `profile` checks."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What the task adds to the files of a network: suffix -> content."""

    def prepare(self, minutes: float, on_event: Listener) -> None:
        """What must be done once before the first candidate; `minutes` are the whole search's."""

    def candidate(self, trial: Any) -> Candidate:
        """The candidate that an Optuna trial describes."""

    def key(self, candidate: Candidate) -> str:
        """The name of a candidate: equal candidates, equal keys."""

    def profile(self, candidate: Candidate, *, limited: bool = True) -> dict[str, Any]:
        """{"key", "costs" (milliseconds, one a target), ...}; no costs where a limit is exceeded.

        Raises `TargetUnavailable` while a device is away.
        """

    def score(self, name: str, candidate: Candidate) -> float:
        """A zero-cost score (zero_cost.py); `ValueError` where there are only figures."""

    def train(
        self,
        candidate: Candidate,
        *,
        epochs: float | None = None,
        on_epoch: OnEpoch | None = None,
        keep: Keep | None = None,
        final: bool = False,
    ) -> dict[str, Any]:
        """{"quality" (0..1), "curve" (of its epochs), "stopped", ...}.

        `epochs`: 0.3 are one epoch of so much of the examples. `on_epoch(epoch, quality)` ends the
        training where it returns True. `final`: as what is kept is trained, at the size it is
        deployed at. `keep(make_network, record)` is called with what was judged; "cached" in the
        result: its figures were known, and it was not trained.
        """

    def measure_again(self, network: Candidate | pathlib.Path, name: str) -> list[dict[str, Any]]:
        """Latency records of a candidate or of a file, measured afresh, one a target."""

    def untrained(self, candidate: Candidate) -> Any:
        """A network for `write` without a training of its own."""

    def save(self, network: Any, stem: pathlib.Path) -> None:
        """Keep a network for `write_saved`, should the search be interrupted."""

    def write(self, network: Any, stem: pathlib.Path) -> int:
        """Write `<stem>.keras`, `<stem>.tflite` and `<stem>.py`; the bytes of the .tflite."""

    def write_saved(self, saved: pathlib.Path, candidate: Candidate, stem: pathlib.Path) -> int:
        """`write` of what `save` kept."""

    def forget(self) -> None:
        """Free the networks of a round that is over."""

"""A tabular benchmark as the evaluator of a search: everything is looked up."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from latency.target import Target
from nas.events import Listener
from nas.searching.candidate import Candidate
from nas.searching.evaluator import Keep, Limits, OnEpoch
from nas.tasks.table import Table


@dataclasses.dataclass
class TableEvaluator:
    """Candidates are rows of `table`; their figures are all there is of them.

    >>> evaluator = TableEvaluator(load("nasbench_macro.npz"))  # doctest: +SKIP
    """

    table: Table
    kinds: list[str | None] = dataclasses.field(default_factory=list)
    epochs: float | None = None  # nothing is trained
    watch: Listener | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """None: costs are columns."""
        return ()

    @property
    def metric(self) -> None:
        """Not known."""

    @property
    def candidates(self) -> list[dict[str, Any]] | None:
        """The parameter sets in the table, where not all combinations are."""
        return self.table.candidates

    @property
    def limits(self) -> Limits:
        """None."""
        return Limits()

    @property
    def files(self) -> Mapping[str, bytes]:
        """None."""
        return {}

    def prepare(self, minutes: float, on_event: Listener) -> None:
        """Nothing to do."""

    def candidate(self, trial: Any) -> Candidate:
        """The row that a trial describes, or the nearest one."""
        return Candidate(self.table.sample(trial))

    def key(self, candidate: Candidate) -> str:
        """The name of the table and the number of the row."""
        return f"{self.table.name}/{candidate.config.row}"

    def profile(self, candidate: Candidate, *, limited: bool = True) -> dict[str, Any]:
        """The costs; "canonical": the parameters of what was looked up."""
        config = candidate.config
        return {
            "key": self.key(candidate),
            "costs": list(self.table.costs(config)),
            "canonical": dict(config.choices),
        }

    def score(self, name: str, candidate: Candidate) -> float:
        """Always `ValueError`."""
        raise self._no_network(f"the score {name}")

    def train(
        self,
        candidate: Candidate,
        *,
        epochs: float | None = None,
        on_epoch: OnEpoch | None = None,
        keep: Keep | None = None,
        final: bool = False,
    ) -> dict[str, Any]:
        """The quality of one training run, the same one at every call."""
        quality = self.table.observed_quality(candidate.config)
        return {"quality": quality, "curve": [], "stopped": False}

    def measure_again(self, network: Candidate | pathlib.Path, name: str) -> list[dict[str, Any]]:
        """Always `ValueError`."""
        raise self._no_network("a measurement")

    def untrained(self, candidate: Candidate) -> Any:
        """Always `ValueError`."""
        raise self._no_network("an export")

    def save(self, network: Any, stem: pathlib.Path) -> None:
        """Always `ValueError`."""
        raise self._no_network("a file")

    def write(self, network: Any, stem: pathlib.Path) -> int:
        """Always `ValueError`."""
        raise self._no_network("a file")

    def write_saved(self, saved: pathlib.Path, candidate: Candidate, stem: pathlib.Path) -> int:
        """Always `ValueError`."""
        raise self._no_network("a file")

    def forget(self) -> None:
        """Nothing is kept between rounds."""

    def _no_network(self, what: str) -> ValueError:
        return ValueError(f"the table {self.table.name} has figures only: no network for {what}")

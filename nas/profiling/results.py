"""What `nas profile` found: latencies with the names of their networks and targets."""

import dataclasses
import html
from collections.abc import Iterable, Mapping
from typing import Any

from latency.roofline.explanation import Explanation
from latency.target import Latency


@dataclasses.dataclass(frozen=True)
class Profile:
    """The latency of one network on one target."""

    model: str  # the name of the network
    target: str  # the name of the target
    latency: Latency
    explanation: Explanation | None = None

    def row(self) -> dict[str, Any]:
        """What the tables and plots of `nas.report` take."""
        return {"model": self.model, "spec": self.target, "latency": self.latency} | (
            {} if self.explanation is None else {"why": self.explanation}
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict: the names, all of the latency, the explanation where there is one."""
        content = {"model": self.model, "spec": self.target, **self.latency.to_json()}
        if self.explanation is not None:
            content["why"] = self.explanation.to_json()
        return content


@dataclasses.dataclass(frozen=True)
class Failure:
    """Networks that could not be timed, or explained, on a target."""

    models: tuple[str, ...]
    target: str
    error: Exception

    def __str__(self) -> str:
        return f"{', '.join(self.models)} on {self.target}: {' '.join(str(self.error).split())}"


class Profiles(list[Latency]):
    """Latencies by target, then batch size, then network; printed, they are a table.

    `profiles` has the same with names and explanations, `failures` what could not be timed.

    >>> from latency.target import Kind
    >>> latency = Latency("a board", "board 1", 1, (2.0, 2.1, 2.2), Kind.MEASURED)
    >>> found = Profiles([Profile("net", "board", latency)])
    >>> found[0].median_ms, found.profiles[0].model
    (2.1, 'net')
    >>> print(str(found).splitlines()[1].split())
    ['net', 'board', '1', '2.1', '2', 'to', '2.2', '2.02', '2.18', 'measured']
    """

    def __init__(self, profiles: Iterable[Profile], failures: Iterable[Failure] = ()):
        self.profiles, self.failures = tuple(profiles), tuple(failures)
        super().__init__(profile.latency for profile in self.profiles)

    def rows(self) -> list[Mapping[str, Any]]:
        """What the tables and plots of `nas.report` take."""
        return [profile.row() for profile in self.profiles]

    def explained(self) -> list[Mapping[str, Any]]:
        """The rows of those that have an explanation."""
        return [profile.row() for profile in self.profiles if profile.explanation is not None]

    def table(self) -> str:
        """Networks and targets compared, and the conditions of each figure."""
        from nas.report.tables import latency

        return latency.table(self.rows()) if self.profiles else ""

    def operations(self) -> str:
        """The operations that take longest, of each network on each target."""
        from nas.report.tables import latency

        return latency.operations(self.rows())

    def explanations(self) -> str:
        """What bounds each network on each target, as tables; "" where nothing was explained."""
        from nas.report.tables import explanation

        found = self.explained()
        return explanation.table(found) if found else ""

    def to_json(self) -> list[dict[str, Any]]:
        """A plain list of dicts, one a latency, with every sample."""
        return [profile.to_json() for profile in self.profiles]

    def __repr__(self) -> str:
        failures = [f"failed: {failure}" for failure in self.failures]
        return "\n".join([*filter(None, [self.table()]), *failures]) or "no latencies"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        table = f"<pre>{html.escape(repr(self))}</pre>"
        if not self.profiles:
            return table
        from nas.report.plots import figure, latency

        return figure.svg(latency.draw(self.rows())) + table

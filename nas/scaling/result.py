"""What `nas.scale` found, as objects: a `Family` and the network of each of its budgets."""

import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

from latency.system.json_records import write_json
from nas.files.hand_over.attach import SCRIPT
from nas.files.readers import config_file
from nas.scaling.budget_rung import STEMS, factors_of, name_of
from nas.scaling.compound_scaling import Factors

SUFFIXES = (".keras", ".tflite", ".py")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Member:
    """The network of one budget.

    budget_ms, ms: what it may take and what it takes. quality: 0..1, the mean over the seeds.
    factors: relative to the base. record: all that is known, as result.json holds it. stem: of its
    files, which end in .keras, .tflite and .py.
    """

    budget_ms: float
    ms: float
    quality: float
    factors: Factors
    record: dict[str, Any]
    stem: pathlib.Path

    @property
    def files(self) -> list[pathlib.Path]:
        """As trained, as deployed, and its Config."""
        return [self.stem.with_name(self.stem.name + suffix) for suffix in SUFFIXES]

    @functools.cached_property
    def model(self) -> Any:
        """The `keras.Model`."""
        from nas import backend
        from nas.files.open_network import open_network

        backend.load()
        return open_network(self.files[0]).model

    @functools.cached_property
    def config(self) -> Any:
        """Its Config."""
        from nas import backend

        backend.load()
        return config_file.read(self.files[2])

    def __repr__(self) -> str:
        return f"{self.budget_ms:g} ms: {self.ms:.4g} ms, quality {self.quality:.2%}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Family:
    """Networks of a base, one for each budget.

    folder: holds their files, family.py (their Configs) and ladder.png. content: what result.json
    holds. interrupted: whether budgets are left to do.
    """

    folder: pathlib.Path
    content: dict[str, Any]
    interrupted: bool = False

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Family":
        """The family in a folder; `ValueError` where there is none."""
        path = pathlib.Path(folder) / "result.json"
        try:
            content = json.loads(path.read_text())
            content["rungs"]
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise ValueError(
                f"no family in {folder}: expected a folder that nas.scale wrote"
            ) from error
        return cls(pathlib.Path(folder), content)

    @property
    def rungs(self) -> list[dict[str, Any]]:
        """The records of the budgets: "lacs" is the winner, "single" single-objective scaling."""
        return self.content["rungs"]

    @property
    def networks(self) -> list[Member]:
        """The winner of each budget."""
        return [self._member(rung, "lacs") for rung in self.rungs]

    @property
    def single_objective(self) -> list[Member]:
        """Single-objective scaling of each budget, to compare with."""
        return [self._member(rung, "single") for rung in self.rungs]

    def _member(self, rung: dict[str, Any], kind: str) -> Member:
        record, budget = rung[kind], rung["budget_ms"]
        return Member(
            budget,
            record["ms"],
            record["quality"],
            factors_of(record),
            record,
            self.folder / (name_of(budget) + STEMS[kind]),
        )

    def __repr__(self) -> str:
        from nas.report.tables import scaling

        return scaling.table(self.content, self.folder)

    def _repr_html_(self) -> str:
        import html

        from nas.report.plots import figure, scaling

        return f"{figure.svg(scaling.draw(self.content))}<pre>{html.escape(repr(self))}</pre>"

    def to_json(self) -> dict[str, Any]:
        """All that is known, as plain data: the content of result.json."""
        return self.content

    def write(self) -> None:
        """Write result.json and ladder.png."""
        from nas.report.plots import figure, scaling

        write_json(self.folder / "result.json", self.content)
        figure.save(self.folder / "ladder.png", scaling.draw(self.content))

    def save(self, folder: str | pathlib.Path) -> None:
        """Copy the networks and what is known of them to another folder."""
        target = pathlib.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        members = [*self.networks, *self.single_objective]
        paths = [path for member in members for path in member.files]
        paths += [self.folder / name for name in ("family.py", "result.json", "ladder.png", SCRIPT)]
        for path in paths:
            shutil.copyfile(path, target / path.name)

"""What a search found, as objects: a `Study`, its networks, and how one of them becomes files."""

import dataclasses
import functools
import json
import pathlib
import shutil
from types import ModuleType
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from latency.system.json_records import write_json
from latency.target import Latency
from nas.files.hand_over.attach import SCRIPT, card_in
from nas.files.readers import config_file
from nas.searching import finalists
from nas.searching import study as studies
from nas.searching.evaluator import Evaluator, MakeNetwork
from nas.searching.loop import trained
from nas.searching.parts import Parts
from nas.searching.result_json import summarize
from nas.searching.start import evaluator_of
from nas.searching.study import Settings


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Found:
    """A network that a search trained.

    number: of its trial. quality: 0..1. costs: milliseconds, one a target. methods: that it is
    compressed with. record: all that is known of it, as result.json holds it.
    """

    number: int
    quality: float
    costs: tuple[float, ...]
    methods: tuple[str, ...]
    record: dict[str, Any]
    folder: pathlib.Path

    @functools.cached_property
    def config(self) -> Any:
        """Its Config; of a table the text that describes it. Loads the family."""
        text, family = self.record["config"], _family(self.folder)
        return text if family is None else config_file.parse(text, family)

    @property
    def latencies(self) -> list[Latency]:
        """The last measurements, one a target; none where only the search's figures are left."""
        records = self.record.get("latency") or []
        return [Latency.from_json(one) for one in records if "samples_ms" in one]

    @property
    def latency(self) -> Latency | None:
        """The measurement on the first target."""
        return next(iter(self.latencies), None)

    def __repr__(self) -> str:
        costs = ", ".join(f"{cost:.4g} ms" for cost in self.costs)
        methods = "".join(f", {name}" for name in self.methods)
        return f"trial {self.number}: quality {self.quality:.2%}, {costs}{methods}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Winner(Found):
    """The best network of a search, which has files."""

    @property
    def files(self) -> list[pathlib.Path]:
        """best.keras (as trained), best.tflite (as deployed), config.py, and the task's."""
        names = sorted(self.folder.glob("best.*"))
        return [*names, *(path for path in [self.folder / "config.py"] if path.exists())]

    @functools.cached_property
    def model(self) -> Any:
        """The `keras.Model` of best.keras; `ValueError` where there is none, as of a table."""
        from nas import backend
        from nas.files.open_network import open_network

        path = self.folder / "best.keras"
        if not path.exists():
            raise ValueError(f"{self.folder} has no best.keras: nothing was trained in this search")
        backend.load()
        return open_network(path).model


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Exported:
    """A network of a trial, written by `Study.export`: quality (None: not trained), and files."""

    trial: int
    quality: float | None
    costs: list[float]
    files: list[str]

    def __repr__(self) -> str:
        quality = "untrained" if self.quality is None else f"quality {self.quality:.2%}"
        costs = ", ".join(f"{cost:.3f} ms" for cost in self.costs)
        return "\n".join([f"trial {self.trial}: {quality}, {costs}", *self.files])

    def to_json(self) -> dict[str, Any]:
        """All that is known, as plain data."""
        return dataclasses.asdict(self)


class Study:
    """A search in a folder, finished or not.

    >>> study = Study.load("runs/mine")  # doctest: +SKIP
    >>> study.winner.quality, study.winner.costs, study.winner.model  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: pathlib.Path,
        settings: Settings,
        study: optuna.Study,
        summary: dict[str, Any] | None = None,
        evaluator: Evaluator | None = None,
        interrupted: bool = False,
    ):
        self.folder = folder
        self.settings = settings
        self.interrupted = interrupted
        self._study, self._summary, self._evaluator = study, summary, evaluator

    @classmethod
    def load(cls, folder: str | pathlib.Path, parts: Parts | None = None) -> "Study":
        """The study in a folder; `ValueError` where there is none.

        parts: what it was made of, for `export`.
        """
        folder = pathlib.Path(folder)
        settings, study = studies.load(folder)
        evaluator = None if parts is None else evaluator_of(parts, settings, folder)[0]
        return cls(folder, settings, study, evaluator=evaluator)

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """What result.json holds: settings, budgets, winner, finalists, times, versions."""
        path = self.folder / "result.json"
        if self._summary is None and path.exists():
            return json.loads(path.read_text())
        found = summarize(self._study, self.settings, self._summary or {})
        if found["winner"] and (tflite := self.folder / "best.tflite").exists():
            found["card"] = card_in(tflite)
        return json.loads(json.dumps(found))

    @property
    def trials(self) -> list[FrozenTrial]:
        """Every trial, as Optuna keeps it; "profile" and "evaluation" are in its user_attrs."""
        return self._study.get_trials(deepcopy=False)

    @property
    def winner(self) -> Winner | None:
        """The best network, whose files are in the folder; None before there is one."""
        record = self.content.get("winner")
        if not record:
            return None
        return Winner(
            record["number"],
            record["quality"],
            tuple(record["costs"]),
            tuple(record.get("methods") or ()),
            record,
            self.folder,
        )

    @property
    def front(self) -> list[Found]:
        """The networks that no other one beats in quality and all costs, as searched, by cost."""
        from nas import pareto

        every = trained(self._study)
        if not every:
            return []
        found = []
        for trial in every:
            profile, evaluation = trial.user_attrs["profile"], trial.user_attrs["evaluation"]
            found.append(
                Found(
                    trial.number,
                    evaluation["quality"],
                    tuple(profile["costs"]),
                    tuple(profile.get("methods", ())),
                    profile,
                    self.folder,
                )
            )
        kept = pareto.front(pareto.losses([(one.quality, *one.costs) for one in found]))
        return sorted(
            (one for one, stays in zip(found, kept, strict=True) if stays),
            key=lambda one: one.costs,
        )

    def show(self) -> None:
        """Print the table."""
        print(repr(self))

    def __repr__(self) -> str:
        from nas.report.tables import search

        return search.table(self._study, self.content, folder=self.folder)

    def _repr_html_(self) -> str:
        import html

        from nas.report.plots import figure, pareto

        table = f"<pre>{html.escape(repr(self))}</pre>"
        if not trained(self._study):
            return table
        return figure.svg(pareto.draw(self._study, self.content)) + table

    def to_json(self) -> dict[str, Any]:
        """All that is known, as plain data: the content of result.json."""
        return self.content

    def write(self) -> None:
        """Write result.json, and, of networks that are trained, pareto.png and report.html."""
        from nas.report.html import page
        from nas.report.plots import figure, pareto

        write_json(self.folder / "result.json", self.content)
        if trained(self._study):
            figure.save(self.folder / "pareto.png", pareto.draw(self._study, self.content))
            page.write(self.folder / "report.html", self._study, self.content)

    def save(self, folder: str | pathlib.Path) -> None:
        """Copy what was found, not the study itself, to another folder."""
        target = pathlib.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        names = [*self.folder.glob("best.*"), self.folder / "config.py", self.folder / SCRIPT]
        names += [self.folder / name for name in ("result.json", "pareto.png", "report.html")]
        for path in names:
            if path.exists():
                shutil.copyfile(path, target / path.name)

    def export(
        self,
        trial: int | None = None,
        *,
        epochs: float | None = None,
        out: str | pathlib.Path | None = None,
    ) -> Exported:
        """Build the network of any trial again, train it, write its files.

        trial: its number; None: the best one's. epochs: None: as a finalist; 0: untrained.
        out: a folder; None: trial_N in the study's. `ValueError` of a table, of a trial that there
        is not, and of a study that was only loaded: its objects are not known here.
        """
        if self._evaluator is None:
            raise ValueError(
                f"{self.folder} was opened without what it was made of: call export of the study"
                " that nas.search(...) returns, with out= this folder, in the script that made it"
            )
        evaluator = self._evaluator
        if evaluator.epochs is None:
            raise ValueError(
                f"--task {self.settings.task} is a table: it has no networks to export"
            )
        found = self._trial(trial)
        number = found.number
        candidate = evaluator.candidate(found)
        target = pathlib.Path(out or self.folder / f"trial_{number}")
        target.mkdir(parents=True, exist_ok=True)
        stem = target / f"trial_{number}"
        if epochs is None:
            epochs = finalists.final_epochs_of(evaluator)
        quality = None
        if epochs == 0:
            evaluator.write(evaluator.untrained(candidate), stem)
        else:

            def keep(network: MakeNetwork, record: dict[str, Any]) -> None:
                evaluator.write(network(), stem)

            record = evaluator.train(candidate, epochs=epochs, keep=keep, final=True)
            quality = record["quality"]
        name = f"{self.folder.name}:{number}"
        latencies = evaluator.measure_again(stem.with_suffix(".tflite"), name)
        return Exported(
            number,
            quality,
            [one["median_ms"] for one in latencies],
            [str(stem.with_suffix(suffix)) for suffix in (".keras", ".tflite", ".py")],
        )

    def _trial(self, number: int | None) -> FrozenTrial:
        if number is None:
            objective = studies.objective(self._study, self.settings)
            ranking = finalists.ranked(self._study, objective)
            if not ranking:
                raise ValueError(f"{self.folder} has no trained network yet; name a --trial")
            return ranking[0]
        trials = {trial.number: trial for trial in self.trials if trial.params}
        if number not in trials:
            raise ValueError(f"{self.folder} has no trial {number}; it has {len(trials)}, from 0")
        return trials[number]


def _family(folder: pathlib.Path) -> ModuleType | None:
    """The family of the networks of a search, as its config.py tells; None of a table."""
    import sys

    from nas import backend

    if not (folder / "config.py").exists():
        return None
    backend.load()
    return sys.modules[type(config_file.read(folder)).__module__]

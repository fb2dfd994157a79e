"""The folder of a study, `runs/<study>`: settings, storage, what was derived once and kept."""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import re
from typing import Any

import optuna

from latency.system.json_records import write_json
from nas.searching import storage
from nas.searching.leases import Worker
from nas.searching.objective import Objective
from nas.searching.reward import Reward

FILTERS = ("synflow", "naswot", "flops", "params")  # of nas/searching/zero_cost.py
MINIMIZE = "min"  # the budget of a target that is to be as fast as possible


@dataclasses.dataclass(frozen=True)
class Settings:
    """What makes a study, by name: with any of it changed, it is another study.

    The names are those of the command line, so that a study can be resumed and exported by it; of
    objects that have none, `study.json` keeps what describes them, and `by_name` is False there.
    """

    space: str = "mnasnet"
    task: str = "digits"
    targets: tuple[str, ...] = ("cpu:threads=1",)
    budgets_ms: tuple[float | str, ...] | None = None  # "min": as fast as possible
    input: int | None = None
    max_params: float | None = None
    max_macs: float | None = None
    max_bytes: float | None = None
    controller: str = "surrogate"
    reward: str = "absolute"
    beta: float | str | None = None
    profiles: int | None = None
    epochs: int | None = None
    seed: int = 0
    methods: tuple[str, ...] = ()  # of compression, as "ptq:8|ptq:4|none": one choice each
    evaluator: str = "train"  # or "supernet[:EPOCHS]"
    filter: str | None = None  # zero-cost score that says which of the timed networks to train

    def __post_init__(self):
        for name in ("targets", "budgets_ms", "methods"):  # JSON knows no tuples
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        budgets = self.budgets_ms
        if budgets and len(budgets) != len(self.targets):
            raise ValueError(
                f"{len(budgets)} --budget-ms for {len(self.targets)} --target; give one for each,"
                " in the same order, or none"
            )
        for budget in budgets or ():
            good = budget == MINIMIZE if isinstance(budget, str) else budget > 0
            if not good:
                raise ValueError(f"--budget-ms must be above 0, or {MINIMIZE}, not {budget}")
        if self.filter not in (None, *FILTERS):
            raise ValueError(f"--filter {self.filter}: expected one of {', '.join(FILTERS)}")
        if self.beta is not None and self.reward == "pareto":
            raise ValueError("--beta weighs latency in a scalar reward; --reward pareto has none")

    def name(self) -> str:
        """A readable study name, the same for the same flags."""
        specs = (self.space, self.task, *self.targets)
        words = [pathlib.PurePath(re.split("[:,]", text)[0]).stem for text in specs]
        settings = dataclasses.asdict(self)
        # Studies of before there were any keep their names.
        for name in ("methods", "evaluator", "filter"):
            if getattr(self, name) == getattr(Settings, name):
                settings.pop(name)
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return "_".join([*words, digest[:6]])


def worker_of(folder: pathlib.Path, location: str | None) -> Worker:
    """This process as a worker of the study in a folder, whether that is created yet or not.

    location: see `create`. `ValueError` where it keeps another study, or one that has a worker
    already and can have only one.
    """
    location = location_of(folder, location)
    worker = Worker(storage.locks_of(location, folder), _name(folder))
    if not worker.alone():
        try:
            storage.refuse_more_than_one_worker(location)
        except ValueError:
            worker.leave()
            raise
    return worker


def location_of(folder: pathlib.Path, location: str | None) -> str | None:
    """Where the study of a folder is kept, with the password if one is given; None: a journal.

    `ValueError` where an earlier command named another place.
    """
    if not (folder / "study.json").exists():
        return location
    kept = _described(folder)["storage"]
    if location is None or location == kept:
        return kept
    if kept is None or storage.without_password(kept) != storage.without_password(location):
        raise ValueError(
            f"{folder} keeps its study in {kept and storage.without_password(kept) or 'a journal'},"
            f" not in --storage {storage.without_password(location)}; name another --study"
        )
    return location


def create(
    folder: pathlib.Path,
    settings: Settings,
    location: str | None,
    worker: Worker,
    by_name: bool = True,
) -> optuna.Study:
    """Create the study of a folder, or open it if it is there with the same settings.

    location: an Optuna RDB URL; None: a journal in the folder. by_name: whether the command line
    can find again, by their names, what the settings describe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.json"
    location = location_of(folder, location)
    with worker.lock("open"):
        if path.exists():
            _refuse_other(settings, read_settings(folder), f"{folder} holds another study")
        study = _open(folder, settings, location)
        if "settings" not in study.user_attrs:
            study.set_user_attr("settings", dataclasses.asdict(settings))
        elif location is not None:
            shared = Settings(**study.user_attrs["settings"])
            name = f"{storage.without_password(location)} holds another study {folder.name}"
            _refuse_other(settings, shared, name)
        if not path.exists():
            described: dict[str, Any] = {
                "study": folder.name,
                "settings": dataclasses.asdict(settings),
                "storage": location and storage.without_password(location),
            }
            if not by_name:
                described["by_name"] = False
            write_json(path, described)
        return study


def _refuse_other(settings: Settings, earlier: Settings, what: str) -> None:
    changed = [
        f"{field.name} was {getattr(earlier, field.name)}, now {getattr(settings, field.name)}"
        for field in dataclasses.fields(Settings)
        if getattr(earlier, field.name) != getattr(settings, field.name)
    ]
    if changed:
        raise ValueError(
            f"{what} ({'; '.join(changed)}); name a new --study, or repeat its flags to resume it"
        )


def load(folder: pathlib.Path, location: str | None = None) -> tuple[Settings, optuna.Study]:
    """Open the study of a folder.

    location: the URL of its database with the password, where there is one.
    """
    settings = read_settings(folder)
    return settings, _open(folder, settings, location_of(folder, location))


def read_settings(folder: pathlib.Path) -> Settings:
    """The settings a folder's study was made with."""
    return Settings(**_described(folder)["settings"])


def made_of_names(folder: pathlib.Path) -> bool:
    """Whether the command line can find again what the study was made of."""
    return _described(folder).get("by_name", True)


def _described(folder: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "study.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"no study in {folder}: expected a folder like runs/<study>") from None
    except ValueError as error:
        raise ValueError(f"cannot read {folder / 'study.json'}: {error}") from None


def _name(folder: pathlib.Path) -> str:
    """What the study of a folder is called in its storage, whatever the folder is called now."""
    if not (folder / "study.json").exists():
        return folder.name
    return _described(folder).get("study", folder.name)


def _open(folder: pathlib.Path, settings: Settings, location: str | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    budgets = (math.inf,) * len(settings.targets)
    reward = None if settings.reward == "pareto" else Reward(settings.reward, budgets)
    kept, name = storage.open_storage(location or folder), _name(folder)
    if location is None:
        # Of before the name was kept: a renamed folder has one study, of another name.
        names = [one.study_name for one in kept.get_all_studies()]
        if name not in names and len(names) == 1:
            (name,) = names
    with contextlib.suppress(KeyError):
        return optuna.load_study(study_name=name, storage=kept)
    return optuna.create_study(
        study_name=name,
        storage=kept,
        directions=Objective(budgets, reward).directions,
        load_if_exists=True,
    )


def objective(study: optuna.Study, settings: Settings) -> Objective:
    """The objective whose budgets and exponent `remember_objective` kept; ValueError before."""
    kept = study.user_attrs.get("objective")
    if kept is None:
        raise ValueError(f"study {study.study_name} has not begun yet: it has no budget")
    budgets = tuple(math.inf if budget is None else budget for budget in kept["budgets_ms"])
    reward = None
    if settings.reward != "pareto":
        scales = (kept["baseline"] or {}).get("costs")
        reward = Reward(settings.reward, budgets, kept["beta"], scales and tuple(scales))
    return Objective(budgets, reward)


def remember_objective(
    study: optuna.Study,
    budgets_ms: list[float | None],
    beta: float | None,
    baseline: dict[str, Any] | None,
) -> None:
    """Keep what was measured once for the whole study; None: no budget."""
    study.set_user_attr("objective", {"budgets_ms": budgets_ms, "beta": beta, "baseline": baseline})

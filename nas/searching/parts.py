"""The objects that a search is made of; `Settings` (study.py) are the names of the same things."""

import dataclasses
from collections.abc import Callable
from typing import Any

from optuna.samplers import BaseSampler

from latency.target import Target
from nas.searching.candidate import Alternatives
from nas.searching.evaluator import no_device
from nas.supernets.one_shot import OneShot
from nas.tasks.table import Table
from nas.tasks.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a search needs to know of the world: a table, or a space, a task and targets.

    controller: makes the sampler, of `seed`, `reward` and `candidates` as keywords.
    table: its own space, task and devices. task, sample, baseline: what networks are trained on, an
    Optuna trial -> Config, and the network to compare with, whose latencies give the budgets where
    there are none. task_at: the task at a size of its images, for `Settings.input`.
    targets: devices to time on, in the order of `Settings.targets`. device: finds what a predictor
    stands for. alternatives: for each compression choice, name -> method. one_shot: judge
    candidates in a supernet; None: train each.
    task_name: of the task on the command line; None: it has none.
    """

    controller: Callable[..., BaseSampler]
    table: Table | None = None
    task: Task | None = None
    sample: Callable[[Any], Any] | None = None
    baseline: Any = None
    task_at: Callable[[int], Task] | None = None
    targets: tuple[Target, ...] = ()
    device: Callable[[str], Target] = no_device
    alternatives: Alternatives = ()
    one_shot: OneShot | None = None
    task_name: str | None = None

    def __post_init__(self) -> None:
        if self.table is not None:
            if self.alternatives or self.one_shot is not None:
                what = "--method" if self.alternatives else "--evaluator supernet"
                raise ValueError(f"a table has figures only: there is no network for {what}")
            return
        if self.task is None or self.sample is None or not self.targets:
            raise ValueError("a search needs a space, a task and at least one target, or a table")
        for target in self.targets if self.alternatives else ():
            if not target.runs_tflite:
                raise ValueError(
                    f"{target!r} does not run the .tflite files that compression makes; expected a"
                    " target that runs them, such as cpu, android or ssh"
                )

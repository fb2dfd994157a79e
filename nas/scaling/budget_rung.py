"""One rung of a family: a study of the networks that land on one budget, and what came of it."""

import dataclasses
import json
import pathlib
import shutil
import textwrap
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from latency.system.atomic_write import atomic_write
from latency.system.json_records import write_json
from latency.target import Target, TargetUnavailable
from nas.events import Listener, Message
from nas.files.hand_over.attach import card_in, write_script
from nas.profiling import history
from nas.profiling.wait_for_device import wait_for_device
from nas.scaling.compound_scaling import SINGLE_OBJECTIVE, Factors
from nas.scaling.scaled_space import ScaledSpace, described
from nas.searching import finalists, leases
from nas.searching import study as studies
from nas.searching.candidate import Candidate
from nas.searching.evaluator import MakeNetwork
from nas.searching.events import SearchBegins
from nas.searching.loop import explore, trained
from nas.searching.networks import Networks
from nas.searching.objective import Objective
from nas.searching.start import sampler_of
from nas.searching.study import Settings
from nas.searching.weights import NewWeights

# The share of a rung's time after which nothing more is tried: the rest is for what is kept.
SEARCH_SHARE = 0.5
FINAL_RUNS = 4  # what is kept is timed with so many times the runs
MOST_OFF = 0.05  # of the budget, timed again, where another network is nearer to it


@dataclasses.dataclass
class Rung:
    """A budget: its folder holds a study, the winner's files, and single-objective scaling's.

    networks: what times and trains networks, without a space of their own. base: the Config that
    all are scaled from. controller: makes the sampler. settings: names, with the one budget.
    """

    folder: pathlib.Path
    settings: Settings
    networks: Networks
    base: Any
    controller: Callable[..., BaseSampler]
    on_event: Listener

    @property
    def budget(self) -> float:
        """In milliseconds."""
        (budget,) = self.settings.budgets_ms or ()
        return float(budget)

    def _say(self, text: str) -> None:
        self.on_event(Message(f"{self._label}{text}"))

    @property
    def _label(self) -> str:
        return f"{self.budget:g} ms  "

    def search(
        self,
        *,
        trials: int,
        seconds: float,
        most_finalists: int,
        seeds: list[int],
        earlier: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Search `trials` networks or for a time, train the best; the record of the rung.

        Whatever an earlier call finished is taken as it is. `earlier` is the rung below, whose
        winner is tried here too.
        """
        started = time.monotonic()
        worker = studies.worker_of(self.folder, None)
        try:
            study = studies.create(self.folder, self.settings, None, worker)
            space = ScaledSpace(self.networks, self.base, self.budget, self._say)
            single = self._begin(study, space, earlier)
            space.around = _factors(single["factors"])
            evaluator = dataclasses.replace(self.networks, sample=space.sample)
            objective = studies.objective(study, self.settings)
            study.sampler = sampler_of(self.controller, self.settings, objective, evaluator)
            deadline = started + SEARCH_SHARE * seconds
            done = tuple(trained(study))
            self.on_event(SearchBegins(objective, trials, deadline, self._label, done))
            explore(
                study,
                evaluator,
                objective,
                trials=trials,
                worker=worker,
                deadline=deadline,
                on_event=self.on_event,
                keep=finalists.BestSoFar(self.folder, objective, evaluator.save, self._say),
            )
            record = self._finish(study, objective, most_finalists, seeds, started + seconds)
            return record | {"failures": leases.failed(study.get_trials(deepcopy=False))}
        finally:
            worker.leave()

    def _begin(
        self, study: optuna.Study, space: ScaledSpace, earlier: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Single-objective scaling for this budget, which is where the search begins."""
        base = repr(self.base)
        if "single" not in study.user_attrs:
            phi, landing = space.lander().compound(SINGLE_OBJECTIVE, self.budget)
            if landing.cost > 1.5 * self.budget:
                raise ValueError(
                    f"--budget-ms {self.budget:g}: the smallest network that scaling makes of"
                    f" {self.settings.space.removeprefix('scaling:')} takes {landing.cost:.4g} ms"
                )
            self._say(f"single-objective scaling, phi {phi:.2f}: {described(landing, self.base)}")
            choices = [{"depth": 0, "resolution": 0}]
            if earlier is not None and earlier["choices"] not in choices:
                choices.append(earlier["choices"])
            for params in choices:
                study.enqueue_trial(params, skip_if_exists=True)
            studies.remember_objective(study, [self.budget], None, None)
            study.set_user_attr("metric", self.networks.metric)
            study.set_user_attr("base", base)
            study.set_user_attr(
                "single", {"phi": phi, "factors": dataclasses.asdict(landing.factors)}
            )
        if study.user_attrs["base"] != base:
            raise ValueError(
                f"{self.folder} holds a family of another base network,"
                f" {study.user_attrs['base']}; name another --out"
            )
        return study.user_attrs["single"]

    def _finish(
        self,
        study: optuna.Study,
        objective: Objective,
        most_finalists: int,
        seeds: list[int],
        end: float,
    ) -> dict[str, Any]:
        """Train single-objective scaling's network and the best others for longer; the record.

        The former is one of those that the search could choose, and the winner where no other is
        better over the seeds.
        """
        single = _factors(study.user_attrs["single"]["factors"])
        ranking = finalists.ranked(study, objective)
        if not ranking:
            raise ValueError(
                f"--budget-ms {self.budget:g}: no network was trained in the time there was; raise"
                " --minutes or --trials"
            )
        first = single.of(self.base)
        entries: dict[Any, tuple[Factors, dict[str, Any]]] = {
            first: (single, {"depth": 0, "resolution": 0})
        }
        qualities = {first: self._finals(first, seeds, "single-objective")}
        for trial in ranking:
            factors = _factors(trial.user_attrs["factors"])
            config = factors.of(self.base)
            enough = len(qualities) > most_finalists
            if enough or (len(qualities) > 1 and time.monotonic() > end):
                break
            if config not in qualities:
                entries[config] = (factors, trial.params)
                qualities[config] = self._finals(config, seeds, f"trial {trial.number}")
        keys = [self.networks.key(Candidate(one)) for one in entries]
        identity = {"seeds": seeds, "networks": keys}
        path = self.folder / "rung.json"
        if path.exists() and (record := json.loads(path.read_text()))["identity"] == identity:
            return record
        latencies = self._together({one: self._file(one, seeds[0]) for one in entries})

        def rank(config: Any) -> tuple[bool, float]:
            miss = abs(latencies[config]["median_ms"] / self.budget - 1)
            landed = miss <= MOST_OFF
            return not landed, miss if not landed else -float(np.mean(qualities[config]))

        winner = min(entries, key=rank)
        record = {
            "identity": identity,
            "budget_ms": self.budget,
            "choices": entries[winner][1],
            "same": winner == first,
            "single_phi": study.user_attrs["single"]["phi"],
        }
        for kind, config in (("lacs", winner), ("single", first)):
            record[kind] = self._described(
                config, entries[config][0], qualities[config], latencies[config]
            ) | {"seeds": seeds, "file": str(self._file(config, seeds[0]))}
            record[kind]["card"] = card_in(self._file(config, seeds[0]))
        write_json(path, record)
        return record

    def _described(
        self, config: Any, factors: Factors, qualities: list[float], latency: dict[str, Any]
    ) -> dict[str, Any]:
        """What is known of a network that was trained for long."""
        counted = self.networks.profile(Candidate(config))
        return {
            **dataclasses.asdict(factors),
            "pixels": config.input_shape[0],
            "phi": factors.phi,
            "ms": latency["median_ms"],
            "interval_ms": latency["interval_ms"],
            "kind": latency["kind"],
            "conditions": latency["conditions"],
            "miss": latency["median_ms"] / self.budget - 1,
            "quality": float(np.mean(qualities)),
            "qualities": qualities,
            "params": counted["params"],
            "macs": counted["macs"],
            "config": repr(config),
        }

    def _file(self, config: Any, seed: int) -> pathlib.Path:
        key = self.networks.key(Candidate(config))
        return self.folder / "finals" / f"{key}_{seed}.tflite"

    def _finals(self, config: Any, seeds: list[int], name: str) -> list[float]:
        """Qualities of a network trained for long with each seed; its files are left behind."""
        return [self._final(config, seed, name) for seed in seeds]

    def _final(self, config: Any, seed: int, name: str) -> float:
        stem = self._file(config, seed).with_suffix("")
        path = stem.with_suffix(".json")
        if not path.exists():
            stem.parent.mkdir(exist_ok=True)
            weights = NewWeights(seed, remember=False)
            seeded = dataclasses.replace(self.networks, seed=seed, weights=weights)

            def keep(network: MakeNetwork, evaluation: dict[str, Any]) -> None:
                seeded.write(network(), stem)

            epochs = finalists.final_epochs_of(self.networks)
            record = seeded.train(Candidate(config), epochs=epochs, keep=keep, final=True)
            write_json(path, record)
            self._say(f"{name}, trained {epochs} epochs, seed {seed}: {record['quality']:.2%}")
            seeded.forget()
        return json.loads(path.read_text())["quality"]

    def _together(self, files: dict[Any, pathlib.Path]) -> dict[Any, dict[str, Any]]:
        """Files timed in turns, on the device itself where the target only stands for one."""
        target = self.networks.targets[0]
        if target.learned_from is not None:
            try:
                return self._timed(self.networks.device(target.learned_from), files)
            except TargetUnavailable as error:
                self._say(f"{target!r} only, not the device itself: {error}")
        return wait_for_device(lambda: self._timed(target, files), self._say)

    def _timed(self, target: Target, files: dict[Any, pathlib.Path]) -> dict[Any, dict[str, Any]]:
        names = {f"{self.folder}:{path.stem}": path for path in files.values()}
        timed = history.profile(target, names, runs=FINAL_RUNS * self.networks.runs)
        return {config: one.to_json() for config, one in zip(files, timed, strict=True)}


STEMS = {"lacs": "", "single": "_single"}  # after the budget, in the names of files


def name_of(budget: float) -> str:
    """The folder of a rung, and the stem of its files."""
    return f"{budget:g}ms"


def factors_of(record: dict[str, Any]) -> Factors:
    """The factors in the record of a network."""
    return Factors(record["depth"], record["width"], record["resolution"])


def _factors(fields: dict[str, Any]) -> Factors:
    return Factors(**fields)


def publish(folder: pathlib.Path, records: list[dict[str, Any]]) -> None:
    """Copy the networks of all rungs to the family's folder; their Configs as one VARIANTS."""
    variants, imports = [], ""
    for record in records:
        for kind, end in STEMS.items():
            source = pathlib.Path(record[kind]["file"])
            stem = name_of(record["budget_ms"]) + end
            for suffix in (".keras", ".tflite", ".py"):
                with atomic_write(folder / (stem + suffix)) as partial:
                    shutil.copyfile(source.with_suffix(suffix), partial)
        text = (folder / f"{name_of(record['budget_ms'])}.py").read_text()
        imports, _, config = text.partition("\n\nconfig = ")
        config = textwrap.indent(config.strip(), "    ").strip()
        variants.append(f'    "{name_of(record["budget_ms"])}": {config},\n')
    write_script(folder)
    content = f"{imports}\n\nVARIANTS = {{\n{''.join(variants)}}}\n"
    (folder / "family.py").write_text(content)

"""One rung of a family: a study of the networks that land on one budget, and what came of it."""

import dataclasses
import json
import pathlib
import shutil
import textwrap
import time
from typing import Any

import numpy as np

from latency.system.atomic_write import atomic_write
from latency.target import TargetUnavailable
from nas import cache, registry
from nas.profiling import history
from nas.profiling.wait_for_device import wait_for_device
from nas.scaling.compound_scaling import SINGLE_OBJECTIVE, Factors
from nas.scaling.scaled_networks import ScaledNetworks, told
from nas.searching import finalists as handover
from nas.searching import journal
from nas.searching import study as studies
from nas.searching.loop import explore, trained
from nas.searching.progress_line import Progress
from nas.searching.start import controller_of, final_epochs_of
from nas.searching.study import Settings

# The share of a rung's time after which nothing more is tried: the rest is for what is kept.
SEARCH_SHARE = 0.5
FINAL_RUNS = 4  # what is kept is timed with so many times the runs
MOST_OFF = 0.05  # of the budget, timed again, where another network is nearer to it


@dataclasses.dataclass
class Rung:
    """A budget: its folder holds a study, the winner's files, and single-objective scaling's."""

    folder: pathlib.Path
    settings: Settings
    networks: ScaledNetworks

    @property
    def budget(self) -> float:
        return self.settings.budgets_ms[0]

    def climb(
        self,
        *,
        trials: int,
        seconds: float,
        finalists: int,
        seeds: list[int],
        earlier: dict | None,
    ) -> dict:
        """Search `trials` networks or for a time, train the best; the record of the rung.

        Whatever an earlier call finished is taken as it is. `earlier` is the rung below, whose
        winner is tried here too.
        """
        started = time.monotonic()
        say_all = self.networks.say
        study = studies.create(self.folder, self.settings, None)
        worker = journal.Worker(self.folder)
        prefix = f"{self.budget:g} ms  "

        def say(text: str) -> None:
            say_all(prefix + text)

        try:
            single = self._begin(study, earlier, say)
            self.networks = dataclasses.replace(
                self.networks, around=_factors(single["factors"]), say=say
            )
            objective = studies.objective(study, self.settings)
            study.sampler = controller_of(
                self.settings, self.settings.controller, objective, self.networks
            )
            deadline = started + SEARCH_SHARE * seconds
            progress = Progress(objective, trials, deadline, prefix)
            for trial in trained(study):
                progress.seed(trial)
            explore(
                study,
                self.networks,
                objective,
                trials=trials,
                worker=worker,
                deadline=deadline,
                on_event=progress,
                keep=handover.BestSoFar(self.folder, objective),
            )
            return self._finish(study, objective, finalists, seeds, started + seconds, say)
        finally:
            worker.leave()

    def _begin(self, study, earlier: dict | None, say) -> dict:
        """Single-objective scaling for this budget, which is where the search begins."""
        base = repr(self.networks.base)
        if "single" not in study.user_attrs:
            phi, landing = self.networks.lander().compound(SINGLE_OBJECTIVE, self.budget)
            if landing.cost > 1.5 * self.budget:
                raise ValueError(
                    f"--budget-ms {self.budget:g}: the smallest network that scaling makes of"
                    f" {self.settings.space.removeprefix('scaling:')} takes {landing.cost:.4g} ms"
                )
            say(f"single-objective scaling, phi {phi:.2f}: {told(landing, self.networks.base)}")
            choices = [{"depth": 0, "resolution": 0}]
            if earlier is not None and earlier["choices"] not in choices:
                choices.append(earlier["choices"])
            for params in choices:
                study.enqueue_trial(params, skip_if_exists=True)
            studies.remember_objective(study, [self.budget], None, None)
            study.set_user_attr("metric", self.networks.task.metric)
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

    def _finish(self, study, objective, finalists: int, seeds: list[int], end, say) -> dict:
        """Train single-objective scaling's network and the best others for longer; the record.

        The former is one of those that the search could choose, and the winner where no other is
        better over the seeds.
        """
        base, single = self.networks.base, _factors(study.user_attrs["single"]["factors"])
        ranking = handover.ranked(study, objective)
        if not ranking:
            raise ValueError(
                f"--budget-ms {self.budget:g}: no network was trained in the time there was; raise"
                " --minutes or --trials"
            )
        entries = {single.of(base): (single, {"depth": 0, "resolution": 0})}
        qualities = {single.of(base): self._finals(single.of(base), seeds, say, "single-objective")}
        for trial in ranking:
            factors = _factors(trial.user_attrs["factors"])
            config = factors.of(base)
            enough = len(qualities) > finalists
            if enough or (len(qualities) > 1 and time.monotonic() > end):
                break
            if config not in qualities:
                entries[config] = (factors, trial.params)
                qualities[config] = self._finals(config, seeds, say, f"trial {trial.number}")
        identity = {"seeds": seeds, "networks": [self.networks.key(one) for one in entries]}
        path = self.folder / "rung.json"
        if path.exists() and (record := json.loads(path.read_text()))["identity"] == identity:
            return record
        latencies = self._together({one: self._file(one, seeds[0]) for one in entries}, say)

        def rank(config: Any) -> tuple:
            miss = abs(latencies[config]["median_ms"] / self.budget - 1)
            landed = miss <= MOST_OFF
            return not landed, miss if not landed else -float(np.mean(qualities[config]))

        winner = min(entries, key=rank)
        record = {
            "identity": identity,
            "budget_ms": self.budget,
            "choices": entries[winner][1],
            "same": winner == single.of(base),
            "single_phi": study.user_attrs["single"]["phi"],
        }
        for kind, config in (("lacs", winner), ("single", single.of(base))):
            record[kind] = self._described(
                config, entries[config][0], qualities[config], latencies[config]
            ) | {"seeds": seeds, "file": str(self._file(config, seeds[0]))}
        cache.write_json(path, record)
        return record

    def _described(self, config: Any, factors: Factors, qualities: list[float], latency) -> dict:
        """What is known of a network that was trained for long."""
        counted = self.networks.profile(config)
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
        return self.folder / "finals" / f"{self.networks.key(config)}_{seed}.tflite"

    def _finals(self, config: Any, seeds: list[int], say, name: str) -> list[float]:
        """Qualities of a network trained for long with each seed; its files are left behind."""
        return [self._final(config, seed, say, name) for seed in seeds]

    def _final(self, config: Any, seed: int, say, name: str) -> float:
        stem = self._file(config, seed).with_suffix("")
        path = stem.with_suffix(".json")
        if not path.exists():
            stem.parent.mkdir(exist_ok=True)
            seeded = dataclasses.replace(self.networks, seed=seed)

            def keep(network, evaluation):
                seeded.write(network, config, stem)

            epochs = final_epochs_of(self.networks)
            record = seeded.train(config, epochs=epochs, keep=keep, final=True)
            cache.write_json(path, record)
            say(f"{name}, trained {epochs} epochs, seed {seed}: {record['quality']:.2%}")
            seeded.forget()
        return json.loads(path.read_text())["quality"]

    def _together(self, files: dict[Any, pathlib.Path], say) -> dict[Any, dict]:
        """Files timed in turns, on the device itself where the target only stands for one."""
        target = self.networks.targets[0]
        if target.learned_from is not None:
            try:
                return self._timed(registry.target(target.learned_from), files)
            except TargetUnavailable as error:
                say(f"{target!r} only, not the device itself: {error}")
        return wait_for_device(lambda: self._timed(target, files), say)

    def _timed(self, target, files: dict[Any, pathlib.Path]) -> dict[Any, dict]:
        names = {f"{self.folder}:{path.stem}": path for path in files.values()}
        timed = history.profile(target, names, runs=FINAL_RUNS * self.networks.runs)
        return {config: one.to_json() for config, one in zip(files, timed, strict=True)}


STEMS = {"lacs": "", "single": "_single"}  # after the budget, in the names of files


def name_of(budget: float) -> str:
    """The folder of a rung, and the stem of its files."""
    return f"{budget:g}ms"


def factors_of(record: dict) -> Factors:
    """The factors in the record of a network."""
    return Factors(record["depth"], record["width"], record["resolution"])


def _factors(fields: dict) -> Factors:
    return Factors(**fields)


def publish(folder: pathlib.Path, records: list[dict]) -> None:
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
    content = f"{imports}\n\nVARIANTS = {{\n{''.join(variants)}}}\n"
    (folder / "family.py").write_text(content)

"""What a network is worth: Config -> measured costs, then quality on the proxy task.

A Config here is the form that is trained. Families that have `deploy` run on a device in another
form with the same weights (a decoder's step with its cache, a stream's chunk): that one is counted,
timed and written as .tflite.

Both are remembered across studies (nas/cache.py) by the canonical network, the recipe of the task
and the conditions of the device.
"""

import dataclasses
import gc
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from latency.target import DoesNotFit, TargetUnavailable
from nas import cache, registry
from nas.networks.build import at_other_size, build, deploy, key, name_of, suited
from nas.profiling import history


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """What of a network runs on a device.

    model: the `keras.Model` that is counted. handed: what targets take: the model, or its file.
    network, name: what tells it apart where figures are kept, and what it is called there.
    config: its Config, where it is not that of the trained network.
    """

    model: Any
    handed: Any
    network: str
    name: str
    config: Any = None

    def file_bytes(self) -> int:
        """Of its `.tflite` file."""
        from latency.tflite import convert

        if isinstance(self.handed, pathlib.Path):
            return self.handed.stat().st_size
        return len(convert.file_of(self.handed))


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A network that was just trained, as it is kept and written, and how it went."""

    network: Any
    training: Any  # nas.training.loop.Training; its quality is the network's


@dataclasses.dataclass(frozen=True)
class Limits:
    """Hard limits on what a network, as it runs on a device, may hold; None: no limit."""

    params: float | None = None
    macs: float | None = None
    file_bytes: float | None = None

    def exceeded(self, record: dict) -> str | None:
        """Which limit a profile record exceeds, in words."""
        for field in dataclasses.fields(self):
            limit = getattr(self, field.name)
            if limit is not None and record[field.name] > limit:
                return f"{field.name} {record[field.name]:.3g} > {limit:.3g}"
        return None


@dataclasses.dataclass
class Networks:
    """Networks of a family: profiled on targets as deployed, trained on a task.

    `profile` and `train` return JSON records: the `profile` and `evaluation` of a trial. `fields`
    are what task and `--input` decide of a Config; an image task may train at another size.
    """

    sample: Callable  # optuna trial -> Config
    task: Any  # nas.tasks Task, at the size that candidates are trained at
    targets: list
    fields: dict[str, Any]  # of what is timed and handed over
    epochs: int
    final_task: Callable[[], Any]  # the same task, with these `fields`
    seed: int = 0
    limits: Limits = Limits()
    runs: int = 50
    kinds: list = dataclasses.field(default_factory=list)  # of the figures the study began with
    _built: dict = dataclasses.field(default_factory=dict)

    def config(self, trial) -> Any:
        """The canonical network a trial describes, as trained for its deployment."""
        return self.suited(self.sample(trial))

    def suited(self, config: Any) -> Any:
        """A Config with what task and `--input` decide; `ValueError` where it has no such field."""
        return suited(config, self.fields, self.task.name)

    def check(self, config: Any) -> None:
        """Refuses to train at one size for another where the weights depend on the size."""
        from families.layers import shapes_only

        module, small = sys.modules[type(config).__module__], self.as_trained(config, self.task)
        if small == config:
            return
        with shapes_only():
            large, little = module.build(config), module.build(small)
        for ours, theirs in zip(large.weights, little.weights, strict=True):
            if ours.shape != theirs.shape:
                raise ValueError(
                    f"weight {ours.path!r} depends on the size of images: {ours.shape} as timed,"
                    f" {theirs.shape} as trained; train at that size (--task NAME:size=N), or leave"
                    " out --input"
                )

    def as_trained(self, config: Any, task: Any) -> Any:
        """A Config as `task` trains it."""
        return dataclasses.replace(config, **task.fields)

    def key(self, config: Any) -> str:
        """Name of a network: equal networks, equal keys."""
        return key(config)

    def new(self, config: Any) -> Any:
        """A network to be counted and timed."""
        return build(config)

    def form(self, config: Any) -> Form:
        """What of a network is counted and timed."""
        form = deploy(config)
        model = self.new(form)
        if form == config:
            self._built[self.key(config)] = model
        return Form(model, model, key(form), name_of(form), None if form == config else form)

    def profile(self, config: Any) -> dict:
        """Count and time a network: {key, costs (ms per target), params, macs, latency, ...}.

        All of its deployed form, whose Config is "form" where that is another than the trained one.
        """
        from latency.networks.count import count

        started = time.perf_counter()
        form = self.form(config)
        cost = count(form.model)
        record = {
            "key": self.key(config),
            "params": cost.trainable_params,
            "macs": cost.macs,
            "build_s": time.perf_counter() - started,
        }
        if form.config is not None:
            record["form"] = repr(form.config)
        if self.limits.file_bytes is not None:
            record["file_bytes"] = form.file_bytes()
        excess = self.limits.exceeded(record)
        if excess:
            return record | {"excess": excess, "costs": []}
        started = time.perf_counter()
        try:
            latencies = [self.measure(target, form) for target in self.targets]
        except DoesNotFit as error:  # a limit of the device like the others
            return record | {"excess": str(error), "costs": []}
        self._refuse_other_kinds(latencies)
        return record | {
            "costs": [latency["median_ms"] for latency in latencies],
            "latency": latencies,
            "profile_s": time.perf_counter() - started,
        }

    def measure(self, target, form: Form) -> dict:
        """Time a network as deployed, or recall it; the samples stay in the cache."""
        identity = {"network": form.network, "target": repr(target), "on": target.identity()}
        identity["record"] = "with a kind"  # earlier records have none

        def compute() -> dict:
            (latency,) = history.profile(
                target, {form.name: form.handed}, networks=[form.network], runs=self.runs
            )
            return latency.to_json() | {"transient": not latency.conditions.get("stable", True)}

        record, known = cache.remember("latency", identity, compute)
        summary = {name: value for name, value in record.items() if name != "samples_ms"}
        return summary | {"cached": known}

    def _refuse_other_kinds(self, latencies: list[dict]) -> None:
        """A study never compares a measured figure with an estimate."""
        for target, latency, kind in zip(self.targets, latencies, self.kinds, strict=False):
            if kind is not None and latency["kind"] != kind:
                raise ValueError(
                    f"{target!r} gives {latency['kind']} figures now, this study began with "
                    f"{kind} ones: go on where the device is as it was, or name a new --study"
                )

    def measure_again(self, network: Any, name: str) -> list[dict]:
        """Time a Config as deployed, or a file, afresh; the records keep their samples.

        Where a target only stands for a device, the device itself is asked; if it cannot be
        reached, the prediction stays one, and "unchecked" says why.
        """
        form = deploy(network) if dataclasses.is_dataclass(network) else None
        models = {name: network if form is None else build(form)}
        known = None if form is None else [key(form)]

        def timed(target) -> dict:
            runs = 4 * self.runs
            return history.profile(target, models, networks=known, runs=runs)[0].to_json()

        records = []
        for target in self.targets:
            try:
                if target.learned_from is not None:
                    records.append(timed(registry.target(target.learned_from)))
                    continue
                unchecked = {}
            except TargetUnavailable as error:
                unchecked = {"unchecked": str(error)}
            records.append(timed(target) | unchecked)
        return records

    def score(self, name: str, config: Any) -> float:
        """A zero-cost score (nas/searching/zero_cost.py) of a network with new weights, as it is
        trained."""
        from nas.searching import zero_cost

        small = self.as_trained(config, self.task)
        return zero_cost.score(name, self._built.get(self.key(small)) or build(small), self.task)

    def train(
        self,
        config: Any,
        epochs: int | None = None,
        on_epoch: Callable[[int, float], bool] | None = None,
        keep: Callable[[Any, dict], None] | None = None,
        final: bool = False,
    ) -> dict:
        """Train a network and return {quality, curve, stopped, ...}, or recall it.

        `final` trains it at the size it is deployed at and recalls nothing. `keep(network, record)`
        receives what was trained, of `config`, for `save` and `write`; a recalled result has none.
        """
        from nas.training import loop

        epochs = epochs or self.epochs
        task = self.final_task() if final else self.task
        small = self.as_trained(config, task)
        identity = {
            "network": self.key(small),
            "task": task.recipe,
            "epochs": epochs,
            "seed": self.seed,
            "engine": loop.identity(task),
        }

        def compute() -> dict:
            fitted = self.fitted(small, task, epochs, on_epoch)
            done = fitted.training
            record = {
                "quality": done.quality,
                "curve": list(done.curve),
                "stopped": len(done.curve) < epochs,
                "transient": len(done.curve) < epochs,
                "train_s": done.seconds,
            }
            if keep is not None:
                keep(at_other_size(config, small, fitted.network), record)
            return record

        if final:
            return compute()
        record, known = cache.remember("quality", identity, compute)
        return record | {"cached": known}

    def fitted(self, config: Any, task: Any, epochs: int, on_epoch: Callable | None) -> Fitted:
        """Train a network, from new weights."""
        from nas.training import loop

        model = self._built.pop(self.key(config), None)
        self._built.clear()
        model = model or build(config)
        return Fitted(model, loop.fit(model, task, epochs, self.seed, on_epoch=on_epoch))

    def untrained(self, config: Any) -> Any:
        """A network for `write`, with new weights."""
        return build(config)

    def save(self, network: Any, stem: pathlib.Path) -> None:
        """Keep what was trained, for `write_saved`, should the search be interrupted."""
        from nas.files import network_files

        network_files.save_model(network, stem)

    def write(self, network: Any, config: Any, stem: pathlib.Path) -> int:
        """Write the files of a network (`nas.files.network_files.write_network`); the bytes of its
        .tflite."""
        from nas.files import network_files

        return network_files.write_network(network, config, stem, self.task.files)

    def write_saved(self, saved: pathlib.Path, config: Any, stem: pathlib.Path) -> int:
        """Write the files of a network that `save` kept; the bytes of its .tflite."""
        import keras

        model = keras.models.load_model(saved.with_suffix(".keras"), compile=False)
        return Networks.write(self, model, config, stem)

    def forget(self) -> None:
        """Free the networks of a round that is over."""
        import keras

        self._built.clear()
        keras.backend.clear_session()
        gc.collect()

"""What a network is worth: Config -> measured costs, then quality on the proxy task.

A Config here is the form that is trained. Families that have `deploy` run on a device in another
form with the same weights (a decoder's step with its cache, a stream's chunk): that one is counted,
timed and written as .tflite.

Both are remembered across studies (nas/cache.py) by the canonical network, the recipe of the task
and the conditions of the device.
"""

import dataclasses
import gc
import hashlib
import sys
import time
from collections.abc import Callable
from typing import Any

from latency.target import DoesNotFit, TargetUnavailable
from nas import cache, profile_store, spec


def key(config: Any) -> str:
    """Name of a network: equal configs, equal networks, equal keys."""
    text = f"{type(config).__module__}.{config!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(config: Any):
    """The `keras.Model` of a family's Config, weights drawn from a seed of its own."""
    import keras

    keras.utils.set_random_seed(int(key(config)[:7], 16))
    return sys.modules[type(config).__module__].build(config)


def deploy(config: Any) -> Any:
    """The Config of the form that runs on a device: by the family's `deploy`, else as it is."""
    family = sys.modules[type(config).__module__]
    return family.deploy(config) if hasattr(family, "deploy") else config


def deployed(model: Any, config: Any) -> Any:
    """The form of a trained network that runs on a device, with its weights."""
    form = deploy(config)
    if form == config:
        return model
    from families.layers import copy_weights

    built = build(form)
    copy_weights(model, built)
    return built


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


def suited(config: Any, fields: dict[str, Any], task: str) -> Any:
    """A Config with the fields that the data of a task decides; `ValueError` where it lacks one."""
    has = [field.name for field in dataclasses.fields(config)]
    lacking = sorted(fields.keys() - set(has))
    if lacking:
        family = type(config).__module__.rpartition(".")[2]
        raise ValueError(
            f"{family} networks cannot take task {task}: it decides {', '.join(sorted(fields))},"
            f" and their Config has no {', '.join(lacking)} (it has {', '.join(has)})"
        )
    return dataclasses.replace(config, **fields)


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

        module, small = sys.modules[type(config).__module__], self._trained(config, self.task)
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

    def _trained(self, config: Any, task: Any) -> Any:
        """A Config as `task` trains it."""
        return dataclasses.replace(config, **task.fields)

    def key(self, config: Any) -> str:
        return key(config)

    def profile(self, config: Any) -> dict:
        """Count and time a network: {key, costs (ms per target), params, macs, latency, ...}.

        All of its deployed form, whose Config is "form" where that is another than the trained one.
        """
        from latency.cost import count

        started = time.perf_counter()
        form = deploy(config)
        model = build(form)
        cost = count(model)
        record = {
            "key": key(config),
            "params": cost.trainable_params,
            "macs": cost.macs,
            "build_s": time.perf_counter() - started,
        }
        if form != config:
            record["form"] = repr(form)
        if self.limits.file_bytes is not None:
            from latency import litert

            record["file_bytes"] = len(litert.file_of(model))
        excess = self.limits.exceeded(record)
        if excess:
            return record | {"excess": excess, "costs": []}
        if form == config:
            self._built[record["key"]] = model
        started = time.perf_counter()
        try:
            latencies = [self.measure(target, form, model) for target in self.targets]
        except DoesNotFit as error:  # a limit of the device like the others
            return record | {"excess": str(error), "costs": []}
        self._refuse_other_kinds(latencies)
        return record | {
            "costs": [latency["median_ms"] for latency in latencies],
            "latency": latencies,
            "profile_s": time.perf_counter() - started,
        }

    def measure(self, target, config: Any, model) -> dict:
        """Time the network of a (deployed) Config, or recall it; the samples stay in the cache."""
        identity = {"network": key(config), "target": repr(target), "on": target.identity()}
        identity["record"] = "with a kind"  # earlier records have none

        def compute() -> dict:
            (latency,) = profile_store.profile(
                target, {_name(config): model}, networks=[key(config)], runs=self.runs
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
            return profile_store.profile(target, models, networks=known, runs=runs)[0].to_json()

        records = []
        for target in self.targets:
            try:
                if target.stands_for is not None:
                    records.append(timed(spec.target(target.stands_for)))
                    continue
                unchecked = {}
            except TargetUnavailable as error:
                unchecked = {"unchecked": str(error)}
            records.append(timed(target) | unchecked)
        return records

    def train(
        self,
        config: Any,
        epochs: int | None = None,
        on_epoch: Callable[[int, float], bool] | None = None,
        keep: Callable[[Any, dict], None] | None = None,
        final: bool = False,
    ) -> dict:
        """Train a network and return {quality, curve, stopped, ...}, or recall it.

        `final` trains it at the size it is deployed at and recalls nothing. `keep(model, record)`
        receives what was trained, of `config`; a recalled result has no model.
        """
        from nas import train

        epochs = epochs or self.epochs
        task = self.final_task() if final else self.task
        small = self._trained(config, task)
        identity = {
            "network": key(small),
            "task": task.recipe,
            "epochs": epochs,
            "seed": self.seed,
            "engine": train.identity(task),
        }

        def compute() -> dict:
            built = self._built.pop(key(config), None) if small == config else None
            self._built.clear()
            model = built or build(small)
            done = train.fit(model, task, epochs, self.seed, on_epoch=on_epoch)
            record = {
                "quality": done.quality,
                "curve": list(done.curve),
                "stopped": len(done.curve) < epochs,
                "transient": len(done.curve) < epochs,
                "train_s": done.seconds,
            }
            if keep is not None:
                keep(_at(config, small, model), record)
            return record

        if final:
            return compute()
        record, known = cache.remember("quality", identity, compute)
        return record | {"cached": known}

    def forget(self) -> None:
        """Free the networks of a round that is over."""
        import keras

        self._built.clear()
        keras.backend.clear_session()
        gc.collect()


def _name(config: Any) -> str:
    """What a network of a search is called where its figures are listed."""
    return f"{type(config).__module__.rpartition('.')[2]}:{key(config)}"


def _at(config: Any, trained_config: Any, model):
    """The trained network at the size it is deployed at, on which its weights do not depend."""
    if config == trained_config:
        return model
    from families.layers import copy_weights

    resized = build(config)
    copy_weights(model, resized)
    return resized

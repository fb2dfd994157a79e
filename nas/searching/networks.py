"""Networks of a family as candidates: counted and timed as deployed, judged on a task.

A Config here is the form that is trained. Families that have `deploy` run on a device in another
form with the same weights (a decoder's step with its cache, a stream's chunk): that one is counted,
timed and written as .tflite.

Costs and qualities are kept across studies (nas/cache.py) by the network, the recipe of the task
and the conditions of the device.
"""

import dataclasses
import functools
import gc
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from compress.method import NotApplicable
from latency.target import DoesNotFit, Target
from nas import cache
from nas.events import Listener
from nas.files import network_files
from nas.networks import build
from nas.profiling import history
from nas.searching import compression, handed_over
from nas.searching.candidate import Alternatives, Candidate
from nas.searching.compression import Product
from nas.searching.evaluator import Keep, Limits, OnEpoch, no_device
from nas.searching.form import Form
from nas.searching.latencies import latency_of, measured_again, refuse_other_kinds
from nas.searching.plan import shortened
from nas.searching.weights import NewWeights, Weights

SUFFIXES = (".keras", ".tflite", ".py")


@dataclasses.dataclass
class Networks:
    """The evaluator of a search over a family: a value for each decision, none of them subclassed.

    sample: Optuna trial -> Config. task: at the size that candidates are trained at.
    task_of(config, final): the task that a Config is trained on, finally or as a candidate.
    targets, runs: devices, and timed runs on each. fields: of the Config, that data and `--input`
    decide of what is timed. epochs, seed: of a candidate's training. limits: hard ones.
    weights: where weights come from. alternatives: the compression methods of each choice.
    task_name: of `task`, for the command that repeats what was found; None: it has none.
    device: the target that a predictor stands for, of its name.
    known: profile records by key, where what was profiled once is not profiled again.
    watch: is called after each step of a training. command: of the study, for its files.
    """

    sample: Callable[[Any], Any]
    task: Any
    task_of: Callable[[Any, bool], Any]
    targets: list[Target]
    fields: Mapping[str, Any]
    epochs: float | None
    seed: int = 0
    limits: Limits = Limits()
    runs: int = 50
    weights: Weights = dataclasses.field(default_factory=NewWeights)
    alternatives: Alternatives = ()
    task_name: str | None = None
    device: Callable[[str], Target] = no_device
    known: dict[str, dict[str, Any]] | None = None
    watch: Listener | None = None
    command: str = "nas search"
    kinds: list[str | None] = dataclasses.field(default_factory=list)
    _excess: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    _products: dict[str, Product] = dataclasses.field(default_factory=dict)  # of this round
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def __post_init__(self) -> None:
        if self.alternatives and dict(self.fields) != self.task.fields:
            raise ValueError(
                "with --method networks are trained at the size they are timed at: name it in"
                " --task NAME:size=N, and leave out --input"
            )

    @property
    def metric(self) -> str | None:
        """The task's."""
        return self.task.metric

    @property
    def candidates(self) -> None:
        """A space has all of its networks."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """The task's, such as a tokenizer."""
        return self.task.files

    def prepare(self, minutes: float, on_event: Listener) -> None:
        """Prepares the weights: a supernet is trained."""
        self.weights.prepare(minutes, on_event)

    def candidate(self, trial: Any) -> Candidate:
        """The network that a trial describes, as trained for its deployment, and its methods."""
        config = self.for_task(self.sample(trial))
        return Candidate(config, compression.choice(self.alternatives, trial))

    def for_task(self, config: Any) -> Any:
        """A Config with what data and `--input` decide; `ValueError` where it has no such field."""
        return build.for_task(config, self.fields, self.task.name)

    def check(self, config: Any) -> None:
        """`ValueError` of networks that cannot be searched.

        Their class cannot be imported again, they cannot have the weights, or are trained at one
        size for another on which their weights depend.
        """
        from families.layers import shapes_only

        build.check_importable(config)
        self.weights.check(config)
        module = sys.modules[type(config).__module__]
        small = self._as_trained(config, self.task_of(config, False))
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

    def _as_trained(self, config: Any, task: Any) -> Any:
        return dataclasses.replace(config, **task.fields)

    def key(self, candidate: Candidate) -> str:
        """Equal networks with equal methods, equal keys."""
        network = build.key(candidate.config)
        if not candidate.methods:
            return network
        return compression.key(network, self.alternatives, candidate.methods)

    # --- Costs ----------------------------------------------------------------------------------

    def form(self, candidate: Candidate) -> Form:
        """What is counted and timed; `NotApplicable` where a method has nothing to act on."""
        config = candidate.config
        form = build.deploy(config)
        other = None if form == config else form
        if not candidate.methods:
            model = self.weights.counted(form)
            return Form(model, model, build.key(form), build.name_of(form), other)
        path = self._temporary() / f"{self.key(candidate)}.tflite"
        model = compression.write_tflite(path, self.untrained(candidate))
        name = " ".join((build.name_of(config), *candidate.methods))
        return Form(model, path, history.digest(path), name, other)

    def _temporary(self) -> pathlib.Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="nas_search_")
        return pathlib.Path(self._folder.name)

    def profile(self, candidate: Candidate, *, limited: bool = True) -> dict[str, Any]:
        """Counts and times a network: {key, costs (ms, one a target), params, macs, latency, ...}.

        All of its deployed form, whose Config is "form" where that is another than the trained one.
        Where a method has nothing to act on, a limit is exceeded.
        """
        key = self.key(candidate)
        if key in self._excess:
            return self._excess[key]
        if self.known is not None and key in self.known:
            return self.known[key]
        try:
            record = self._profile(candidate, limited)
        except NotApplicable as error:
            record = {"key": key, "excess": str(error), "costs": []}
        if candidate.methods:
            record |= {"config": repr(candidate.config), "methods": list(candidate.methods)}
            if "excess" in record:  # not compressed again, to see the same
                self._excess[key] = record
        if self.known is not None:
            self.known[key] = record
        return record

    def _profile(self, candidate: Candidate, limited: bool) -> dict[str, Any]:
        from latency.networks.count import count

        started = time.perf_counter()
        form = self.form(candidate)
        cost = count(form.model)
        record: dict[str, Any] = {
            "key": self.key(candidate),
            "params": cost.trainable_params,
            "macs": cost.macs,
            "build_s": time.perf_counter() - started,
        }
        if form.config is not None:
            record["form"] = repr(form.config)
        if self.limits.file_bytes is not None:
            record["file_bytes"] = form.file_bytes(self._origin(candidate).card(form.model))
        record["of_limits"] = self.limits.shares(record)
        if limited and (excess := self.limits.exceeded(record)):
            return record | {"excess": excess, "costs": []}
        started = time.perf_counter()
        try:
            latencies = [latency_of(target, form, self.runs) for target in self.targets]
        except DoesNotFit as error:  # a limit of the device like the others
            shares = record["of_limits"] | {"the device": 2.0}  # how much too large is not known
            return record | {"excess": str(error), "costs": [], "of_limits": shares}
        refuse_other_kinds(self.targets, latencies, self.kinds)
        return record | {
            "costs": [latency["median_ms"] for latency in latencies],
            "latency": latencies,
            "profile_s": time.perf_counter() - started,
        }

    def measure_again(self, network: Candidate | pathlib.Path, name: str) -> list[dict[str, Any]]:
        """Latency records, with their samples, of a candidate as deployed, or of a file."""
        known = None
        artifact: Any = network
        if not isinstance(network, pathlib.Path):
            if network.methods:
                artifact = self.form(network).artifact
            else:
                form = build.deploy(network.config)
                artifact, known = build.build(form), [build.key(form)]
        return measured_again(
            self.targets, self.device, artifact, name, networks=known, runs=4 * self.runs
        )

    # --- Quality --------------------------------------------------------------------------------

    def score(self, name: str, candidate: Candidate) -> float:
        """A zero-cost score of a network with new weights, as it is trained, not compressed."""
        from nas.searching import zero_cost

        small = self._as_trained(candidate.config, self.task_of(candidate.config, False))
        return zero_cost.score(name, self.weights.untrained(small), self.task)

    def train(
        self,
        candidate: Candidate,
        *,
        epochs: float | None = None,
        on_epoch: OnEpoch | None = None,
        keep: Keep | None = None,
        final: bool = False,
    ) -> dict[str, Any]:
        """Judges a candidate: {quality, curve, stopped, ...}, of the cache where it is known.

        `final` trains it at the size it is deployed at and does not look into the cache, nor does
        it judge without a training.
        """
        from nas.training import loop
        from nas.training.chance import chance_of

        wanted = epochs or self.epochs
        assert wanted is not None  # of networks
        task, whole = shortened(self.task_of(candidate.config, final), wanted, self.seed)
        small = dataclasses.replace(candidate, config=self._as_trained(candidate.config, task))
        if not final and (judged := self._judged(small)) is not None:
            judged |= chance_of(task, judged["quality"])
            if keep is not None:
                keep(functools.partial(self.untrained, candidate), judged)
            return judged
        identity = {
            "network": self.key(small),
            "task": task.recipe,
            "epochs": whole,
            "seed": self.seed,
            "engine": loop.identity(task),
        }

        made: list[Product] = []

        def compute(stop: OnEpoch | None) -> dict[str, Any]:
            product, training = self._trained(small, task, whole, stop)
            made.append(product)
            return {
                "quality": training.quality,
                "curve": list(training.curve),
                "stopped": len(training.curve) < whole,
                "transient": len(training.curve) < whole,
                "train_s": training.seconds,
                "cached": False,
            }

        def network() -> Product:
            if not made:  # the cache has figures only
                record.update(compute(None))
            return _resized(candidate, made[0])

        if final:
            record = compute(on_epoch)
        else:
            record, known = cache.remember("quality", identity, lambda: compute(on_epoch))
            record["cached"] = known
        record |= chance_of(task, record["quality"])
        if keep is not None:
            keep(network, record)
        return record

    def _judged(self, small: Candidate) -> dict[str, Any] | None:
        """The record of a candidate that need not be trained for it; None: it must be."""
        started = time.perf_counter()
        compressed = (lambda: self.untrained(small).model) if small.methods else None
        quality = self.weights.quality(small.config, compressed)
        if quality is None:
            return None
        seconds = time.perf_counter() - started
        return {"quality": quality, "curve": [quality], "stopped": False, "train_s": seconds}

    def _trained(
        self, candidate: Candidate, task: Any, epochs: int, on_epoch: OnEpoch | None
    ) -> tuple[Product, Any]:
        """A network trained with its methods, and how it went (`nas.training.loop.Training`)."""
        from nas.training import loop
        from nas.training.recipe import recipe_of

        rate = self.weights.learning_rate * recipe_of(task).learning_rate
        options: dict[str, Any] = {"on_epoch": on_epoch, "learning_rate": rate}
        options["watch"] = self.watch
        if not candidate.methods:
            model = self.weights.initial(candidate.config)
            training = loop.fit(model, task, epochs, self.seed, **options)
            return Product(candidate, model, epochs=epochs), training
        trainings = []

        def fit(model: Any, update: compression.Update) -> None:
            trainings.append(loop.fit(model, task, epochs, self.seed, update=update, **options))

        product = self._compressed(candidate, task, epochs, fit)
        (training,) = trainings
        # Of what is written: rounding, for one, comes after the last epoch.
        quality = loop.evaluate(product.model, task)
        kept = dataclasses.replace(training.kept, quality=quality)
        return product, dataclasses.replace(training, kept=kept)

    def _compressed(
        self, candidate: Candidate, task: Any, epochs: int = 0, fit: compression.Fit | None = None
    ) -> Product:
        return compression.product(
            candidate,
            self.weights.untrained(candidate.config),
            [compression.method(self.alternatives, name) for name in candidate.methods],
            task,
            self.seed,
            epochs=epochs,
            fit=fit,
        )

    def untrained(self, candidate: Candidate) -> Product:
        """A network as it can be written without a training of its own."""
        if not candidate.methods:
            config = candidate.config
            small = self._as_trained(config, self.task_of(config, False))
            model = build.at_other_size(config, small, self.weights.untrained(small))
            return Product(candidate, model)
        key = self.key(candidate)
        if key not in self._products:
            product = self._compressed(candidate, self.task)
            self.weights.calibrate(product.model)
            self._products[key] = product
        return self._products[key]

    def save(self, network: Product, stem: pathlib.Path) -> None:
        """Keep a network for `write_saved`: of a compressed one all files."""
        if network.compressed is None:
            network_files.save_model(network.model, stem)
        else:
            self.write(network, stem)

    def write(self, network: Product, stem: pathlib.Path) -> int:
        """Write the files of a network; the bytes of its .tflite."""
        origin = self._origin(network.candidate)
        command = None if network.compressed is None else self._command(network)
        return handed_over.write(network, stem, dict(self.files), origin, command)

    def _origin(self, candidate: Candidate) -> Any:
        return handed_over.origin_of(candidate, self.task, self.command)

    def _command(self, product: Product) -> list[str] | None:
        from nas.training.recipe import recipe_of

        whole = self.epochs is None or self.epochs == int(self.epochs)
        if self.task_name is None or not self.weights.repeatable or not whole:
            return None
        rate = recipe_of(self.task).learning_rate
        return compression.command(product, self.task_name, self.seed, rate)

    def write_saved(self, saved: pathlib.Path, candidate: Candidate, stem: pathlib.Path) -> int:
        """Write the files of a network that `save` kept; the bytes of its .tflite."""
        import keras

        if not candidate.methods:
            model = keras.models.load_model(saved.with_suffix(".keras"), compile=False)
            return self.write(Product(candidate, model), stem)
        for suffix in (*SUFFIXES, *self.files):
            shutil.copyfile(
                saved.with_name(saved.name + suffix), stem.with_name(stem.name + suffix)
            )
        return stem.with_suffix(".tflite").stat().st_size

    def forget(self) -> None:
        """Free the networks of a round that is over."""
        self._products.clear()
        if self._folder is not None:
            for path in self._temporary().iterdir():
                path.unlink()
        self.weights.forget()
        gc.collect()


def _resized(candidate: Candidate, product: Product) -> Product:
    """A trained network at the size that its candidate is deployed at."""
    model = build.at_other_size(candidate.config, product.candidate.config, product.model)
    return dataclasses.replace(product, candidate=candidate, model=model)

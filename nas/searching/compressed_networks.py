"""Compression inside a search: each --method is one more choice, a candidate network and methods.

A candidate is timed and weighed as the `.tflite` file that it will be: of a network with untrained
weights, compressed at once. It is trained and compressed in one training.
"""

import dataclasses
import functools
import pathlib
import shlex
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from compress.examples.data import Data
from compress.method import Compressed, Method, NotApplicable, compress
from latency.system.atomic_write import atomic_write
from nas import registry
from nas.compression import examples, journey
from nas.files import network_files
from nas.networks import build
from nas.profiling import history
from nas.searching.networks import Fitted, Form, Networks
from nas.training import loop
from nas.training.recipe import recipe_of

NONE = "none"  # the alternative that leaves the network as it is
GLANCE = 4  # examples
SUFFIXES = (".keras", ".tflite", ".py")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A Config and the specs of the methods that it is compressed with, one at least."""

    network: Any
    methods: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """A candidate, compressed: after so many epochs, its methods having looked at `data`."""

    candidate: Candidate
    compressed: Compressed
    data: Data
    epochs: int


@dataclasses.dataclass
class CompressedNetworks(Networks):
    """Networks of a family, each with some of the methods; without any they are as `Networks`.

    alternatives: for each choice the specs of methods, and "none". task_spec: of `task`, for the
    command that repeats what was found.
    """

    alternatives: tuple[tuple[str, ...], ...] = ()
    task_spec: str = ""
    _excess: dict[str, dict] = dataclasses.field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory = dataclasses.field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="nas_search_")
    )

    def __post_init__(self):
        if self.fields != self.task.fields:
            raise ValueError(
                "with --method networks are trained at the size they are timed at: name it in"
                " --task NAME:size=N, and leave out --input"
            )
        for names in self.alternatives:
            for name in names:
                if name != NONE:
                    method_of(name)

    def config(self, trial) -> Any:
        network = super().config(trial)
        chosen = (
            trial.suggest_categorical(f"method{number}", names) if len(names) > 1 else names[0]
            for number, names in enumerate(self.alternatives, 1)
        )
        methods = tuple(name for name in chosen if name != NONE)
        return Candidate(network, methods) if methods else network

    def as_trained(self, config: Any, task: Any) -> Any:
        if not isinstance(config, Candidate):
            return super().as_trained(config, task)
        return dataclasses.replace(config, network=super().as_trained(config.network, task))

    def key(self, config: Any) -> str:
        if not isinstance(config, Candidate):
            return super().key(config)
        methods = [_identity(text) for text in config.methods]
        return build.digest(f"{super().key(config.network)} {methods}")

    def profile(self, config: Any) -> dict:
        """As of any network; where a method has nothing to act on, a limit is exceeded."""
        if not isinstance(config, Candidate):
            return super().profile(config)
        key = self.key(config)
        if key not in self._excess:
            try:
                record = super().profile(config)
            except NotApplicable as error:
                record = {"key": key, "excess": str(error), "costs": []}
            record |= {"config": repr(config.network), "methods": list(config.methods)}
            if "excess" not in record:
                return record
            self._excess[key] = record
        return self._excess[key]

    def form(self, config: Any) -> Form:
        if not isinstance(config, Candidate):
            return super().form(config)
        path = pathlib.Path(self._folder.name) / f"{self.key(config)}.tflite"
        model = write(path, self.untrained(config))
        deployed = build.deploy(config.network)
        return Form(
            model,
            path,
            history.digest(path),
            " ".join((build.name_of(config.network), *config.methods)),
            None if deployed == config.network else deployed,
        )

    def score(self, name: str, config: Any) -> float:
        """Of the network before compression."""
        return super().score(name, config.network if isinstance(config, Candidate) else config)

    def measure_again(self, network: Any, name: str) -> list[dict]:
        if isinstance(network, Candidate):
            network = self.form(network).handed
        return super().measure_again(network, name)

    def fitted(self, config: Any, task: Any, epochs: int, on_epoch: Callable | None) -> Fitted:
        if not isinstance(config, Candidate):
            return super().fitted(config, task, epochs, on_epoch)
        trainings = []

        def fit(model, update) -> None:
            trainings.append(
                loop.fit(model, task, epochs, self.seed, on_epoch=on_epoch, update=update)
            )

        finished = self._finished(config, task, epochs, fit)
        (training,) = trainings
        # Of what is written: rounding, for one, comes after the last epoch.
        quality = loop.evaluate(finished.compressed.model, task)
        kept = dataclasses.replace(training.kept, quality=quality)
        return Fitted(finished, dataclasses.replace(training, kept=kept))

    def untrained(self, config: Any) -> Any:
        if not isinstance(config, Candidate):
            return super().untrained(config)
        return self._finished(config, self.task, 0, None)

    def _finished(
        self, config: Candidate, task: Any, epochs: int, fit: Callable | None
    ) -> Finished:
        """A network after its methods, as `nas compress` makes it."""
        import keras

        model = build.build(config.network)
        data = examples.examples(task, model, examples.EXAMPLES, self.seed)
        methods = [method_of(text) for text in config.methods]
        keras.utils.set_random_seed(self.seed)
        fit = fit or functools.partial(_glance, data)
        return Finished(config, compress(model, methods, fit, data), data, epochs)

    def save(self, network: Any, stem: pathlib.Path) -> None:
        if not isinstance(network, Finished):
            return super().save(network, stem)
        self.write(network, network.candidate, stem)

    def write(self, network: Any, config: Any, stem: pathlib.Path) -> int:
        if not isinstance(network, Finished):
            return super().write(network, config, stem)
        network_files.save_model(network.compressed.model, stem)
        tflite = stem.with_suffix(".tflite")
        write(tflite, network)
        stem.with_suffix(".py").write_text(self._as_python(network))
        network_files.write_files(self.task.files, stem)
        return tflite.stat().st_size

    def write_saved(self, saved: pathlib.Path, config: Any, stem: pathlib.Path) -> int:
        if not isinstance(config, Candidate):
            return super().write_saved(saved, config, stem)
        for suffix in (*SUFFIXES, *self.task.files):
            shutil.copyfile(
                saved.with_name(saved.name + suffix), stem.with_name(stem.name + suffix)
            )
        return stem.with_suffix(".tflite").stat().st_size

    def _as_python(self, network: Finished) -> str:
        """The Config, the methods, and the command that does the same once it is in VARIANTS."""
        candidate, epochs = network.candidate, network.epochs
        family = type(candidate.network).__module__.rpartition(".")[2]
        words = ["nas", "compress", f"{family}:found", "--task", self.task_spec]
        if epochs:
            rate = recipe_of(self.task).learning_rate
            words += ["--epochs", str(epochs), "--learning-rate", str(rate)]
        words += ["--seed", str(self.seed)]
        for text in candidate.methods:
            words += ["--method", text]
        words += ["--out", "found.tflite"]
        return (
            f"{network_files.as_python(candidate.network)}methods = {candidate.methods!r}\n\n"
            '# With VARIANTS["found"] = config in its family, this makes it again:\n'
            f"# {shlex.join(words)}\n"
        )

    def forget(self) -> None:
        for path in pathlib.Path(self._folder.name).iterdir():
            path.unlink()
        super().forget()


def write(path: pathlib.Path, network: Finished) -> Any:
    """Write the `.tflite` file of a network as it is deployed; the `keras.Model` that is in it.

    Raises `NotApplicable` where there can be no such file.
    """
    from nas.files.writers import litert

    model, methods = network.compressed.model, " ".join(network.candidate.methods)
    try:
        form = build.deployed(model, network.candidate.network)
    except ValueError as error:  # of other widths, or fewer experts, than the Config says
        raise NotApplicable(f"{methods}: the deployed form cannot follow: {error}") from error
    # The examples are inputs of the trained form.
    data = network.data if form is model else None
    try:
        with atomic_write(path) as partial:
            litert.write(partial, form, network.compressed.record, data)
    except ValueError as error:  # what such a file cannot hold
        raise NotApplicable(f"{methods}: {error}") from error
    return form


@functools.cache
def method_of(text: str) -> Method:
    """The method of a spec; a teacher in a file is read."""
    return journey.method_of(text)


def _identity(text: str) -> str:
    """What a spec stands for: equal methods, equal texts, other files, other texts."""
    named = registry.parse(text)
    values = [named.value, *(value for _, value in named.options)]
    files = [value for value in values if isinstance(value, str) and pathlib.Path(value).is_file()]
    return " ".join([repr(method_of(text)), *map(history.digest, files)])


def _glance(data: Data, model: Any, update: Callable[[int, int], bool]) -> None:
    """A training of one step in which nothing is learned: some methods need to have seen one."""
    update(0, 1)
    inputs, _ = next(data.batches(GLANCE))
    model(inputs, training=True)

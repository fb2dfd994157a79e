"""The door: functions that take objects and return results; `import nas` offers them lazily."""

import functools
import inspect
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from nas import backend, registry


def open(source: Any) -> Any:
    """The network that something is or holds, as every function here takes it.

    source: a `keras.Model` (Functional, Sequential, nested); the path of a .keras, .h5, .tflite,
        .safetensors or .bin (llama2.c) file, of a SavedModel, of a Hugging Face folder or of the
        folder of a search; or a name of the catalog, `family[:variant][,field=value...]`, with
        `weights=FILE` for trained ones.

    Returns a `nas.Network`: `.model` is the flat `keras.Model`, `.config` its Config where that is
    known. Raises `ValueError`, one line, where there is no network to be read.

    >>> open("mnasnet:tiny").model.count_params()
    127530
    """
    from nas.files.open_network import from_config, open_network

    if _is_name(source):
        return from_config(*_config_and_weights(source))
    backend.load()
    return open_network(source)


def _is_name(source: Any) -> bool:
    """Whether this is a name of the catalog rather than a network or the path of one."""
    return isinstance(source, str) and not pathlib.Path(source).expanduser().exists()


def _config_and_weights(text: str) -> tuple[Any, Any]:
    """The Config of `family[:variant][,field=value...]`, and the file that `weights` names."""
    from nas.files.open_network import open_network

    named = registry.parse(text)
    names = registry.listing("family")
    if named.name not in names and (pathlib.Path(text).suffix or "/" in text) and ".py" not in text:
        open_network(text)  # which says that there is no such file
    registry.known("family", named.name)
    backend.load()
    options = dict(named.options)
    weights = options.pop("weights", None)
    bare = registry.Spec(named.name, named.value, tuple(options.items()), named.attribute)
    return registry.network(str(bare))[1], weights


def train(network: Any, task: Any, **options: Any) -> Any:
    """Train a network on a task: a `nas.Trained`.

    network: the Config of a family or its name, such as "mnasnet:tiny" (a new network, of the
        task's input shape and classes), a `keras.Model` (trained in place), the path of one, or an
        opened `nas.Network`.
    task: a `nas.Task`, or arrays (x, y) as `nas.compress` takes them.
    options: epochs, minutes, recipe (a `nas.Recipe`), seed, start, mixed_precision, out,
        on_event; see `nas.training.journey.train`.

    >>> from families import mnasnet
    >>> from nas.tasks import digits
    >>> trained = train(mnasnet.VARIANTS["tiny"], digits.load(size=16), epochs=1)
    >>> trained.record["metric"], len(trained.history)
    ('accuracy', 1)
    """
    backend.load()
    from nas.data import task_of
    from nas.training import journey

    if _is_name(network):
        config, weights = _config_and_weights(network)
        network = config if weights is None else open(network)
    elif isinstance(network, (str, pathlib.Path)):
        network = open(network)
    return journey.train(network, task_of(task), **options)


def compress(
    network: Any, methods: Any, data: Any = None, *, valid: Any = None, **options: Any
) -> Any:
    """Compress a network with one or several methods: a `nas.Compressed`.

    network: a `keras.Model`, the path of one, or an opened `nas.Network`; it is not changed.
    methods: objects such as `compress.qat.QAT(bits=4)`.
    data: what to train, calibrate and judge on: a `nas.Task`, arrays x or (x, y), a
        `tf.data.Dataset`, a `keras.utils.PyDataset` or batches; without labels it calibrates only.
        valid: the same to judge on; None: a fifth of `data`.
    options: out (files to write), targets (to time on), epochs, recipe, seed, prefer, by_layer,
        examples_count, on_event; see `nas.compression.journey.compress`.

    >>> import keras
    >>> from compress.ptq import PTQ
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64)])
    >>> small = compress(model, [PTQ(bits=8)])
    >>> small.before["params"], small.after["params"]
    (576, 576)
    """
    backend.load()
    from nas.compression import journey
    from nas.data import task_of

    if isinstance(network, (str, pathlib.Path)):
        network = open(network)
    methods = list(methods) if isinstance(methods, Sequence) else [methods]
    out = options.pop("out", ())
    out = [out] if isinstance(out, (str, pathlib.Path)) else out
    targets = [(repr(target), target) for target in options.pop("targets", ())]
    task = None if data is None else task_of(data, valid)
    return journey.compress(network, methods, task, out=out, targets=targets, **options)


def profile(networks: Any, targets: Any, **options: Any) -> Any:
    """The latency of each network on each target: `nas.Profiles`, a list of `nas.Latency`.

    networks: one or several of what `nas.open` takes, or a dict of them by name.
    targets: one or several objects such as `latency.cpu.CPU(threads=1)`, or a dict by name.
    options: runs, warmup, batch_sizes, operations, explain, skip_failures, on_event; see
        `nas.profiling.journey.profile`.

    >>> import keras
    >>> from latency.cpu import CPU
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> [latency] = profile(model, CPU(threads=1), runs=10)
    >>> latency.measured
    True
    """
    backend.load()
    from nas.profiling import journey
    from nas.profiling.results import Profiles

    opened = {name: open(network) for name, network in journey.named(networks).items()}
    found, failures = [], []
    for name, target in journey.named(targets).items():
        models = {each: network.for_target(target) for each, network in opened.items()}
        timed = journey.profile(models, {name: target}, **options)
        found += timed.profiles
        failures += timed.failures
    return Profiles(found, failures)


def search(
    space: Any,
    task: Any = None,
    target: Any = None,
    *,
    budget_ms: Any = None,
    trials: int | None = None,
    minutes: float | None = None,
    out: str | pathlib.Path | None = None,
    baseline: Any = None,
    methods: Sequence[Sequence[Any]] = (),
    controller: Any = None,
    evaluator: Any = None,
    finalists: int = 3,
    storage: str | None = None,
    prove: bool = False,
    on_event: Any = None,
    **settings: Any,
) -> Any:
    """Find a network that is as good as it can be within a latency budget: a `nas.Study`.

    space: a function of an Optuna trial that returns the Config of a family; or a table
        (`nas.tasks.table.load`), which is its own space, task and target.
    task: a `nas.Task`, or arrays (x, y), of which a fifth judges.
    target: a target such as `latency.cpu.CPU(threads=1)`, or several.
    budget_ms: milliseconds, one for each target, "min" for as fast as possible; None: 0.8 of what
        `baseline`, a Config, takes.
    trials: networks to train (16). minutes: for all of it (4 unless there are trials).
    out: the folder of the study; the same call again resumes it. None: one below runs/.
    methods: for each compression choice the methods to choose from, None for none of them:
        [[PTQ(bits=8), None], [PruneChannels(0.25), None]].
    controller: an Optuna sampler or its class; None: `nas.controllers.surrogate.Surrogate`.
    evaluator: `nas.supernets.one_shot.OneShot()` judges candidates with shared weights; None trains
        each. finalists: how many of the best are trained for longer.
    settings: fields of `nas.searching.study.Settings`: reward, beta, epochs, seed, max_params,
        max_macs, max_bytes, profiles, filter.

    Raises `ValueError` where the parts do not fit. Ctrl-C hands over the best network so far.

    >>> from nas.tasks import table
    >>> study = search(table.load("nasbench201_cifar100.npz"), budget_ms=5)  # doctest: +SKIP
    >>> study.winner.quality, study.front  # doctest: +SKIP
    """
    backend.load()
    from nas.data import task_of
    from nas.events import ignore
    from nas.profiling.journey import named
    from nas.searching import journey
    from nas.searching.candidate import NONE
    from nas.searching.parts import Parts
    from nas.searching.study import Settings
    from nas.tasks.table import Table

    controller, controller_name = _controller(controller)
    if isinstance(space, Table):
        parts = Parts(table=space, controller=controller)
        names = {"space": "table", "task": f"table {space.name}", "targets": space.cost_names}
    else:
        task, targets = task_of(task), named(target)
        alternatives = tuple(
            {NONE if method is None else repr(method): method for method in choice}
            for choice in methods
        )
        parts = Parts(
            controller=controller,
            task=task,
            sample=space,
            baseline=baseline,
            targets=tuple(targets.values()),
            device=registry.target,
            alternatives=alternatives,
            one_shot=evaluator,
        )
        names = {
            "space": _name(space),
            "task": task.recipe,
            "targets": tuple(targets),
            "methods": tuple("|".join(choice) for choice in alternatives),
            "evaluator": "train" if evaluator is None else repr(evaluator),
        }
    budgets = (
        budget_ms if budget_ms is None or isinstance(budget_ms, (list, tuple)) else [budget_ms]
    )
    described = Settings(**names, budgets_ms=budgets, controller=controller_name, **settings)
    folder = (
        pathlib.Path("runs", re.sub(r"[^\w.-]+", "_", described.name())) if out is None else out
    )
    return journey.search(
        parts,
        described,
        pathlib.Path(folder),
        trials=trials,
        minutes=minutes,
        most_finalists=finalists,
        storage=storage,
        by_name=False,
        prove=prove,
        on_event=on_event or ignore,
    )


def scale(
    base: Any,
    budgets_ms: Sequence[float],
    task: Any,
    target: Any,
    *,
    out: str | pathlib.Path = "family",
    controller: Any = None,
    epochs: int | None = None,
    seed: int = 0,
    on_event: Any = None,
    **options: Any,
) -> Any:
    """From one network to a family that lands on latency budgets: a `nas.Family`.

    base: the Config of a family that can be scaled, such as `study.winner.config`.
    budgets_ms: milliseconds of `target`, a network for each.
    task: a `nas.Task` of images, which are resized; or a function of the size in pixels that loads
        one, such as `nas.tasks.digits.load`.
    out: the folder of the family; the same call again resumes it.
    options: pixels, trials, minutes, most_finalists, seeds; see `nas.scaling.journey.scale`.

    Raises `ValueError` where the base cannot be scaled or the task has no images.
    """
    backend.load()
    from nas.events import ignore
    from nas.scaling import journey
    from nas.searching.study import Settings
    from nas.tasks.task import resized

    task_at = task if callable(task) else functools.partial(resized, task)
    pixels = options.pop("pixels", None) or base.input_shape[0]
    task = task_at(pixels) if callable(task) else task
    controller, controller_name = _controller(controller)
    settings = Settings(
        space=f"scaling:{base!r}",
        task=task.recipe,
        targets=(repr(target),),
        budgets_ms=(min(budgets_ms),),
        controller=controller_name,
        epochs=epochs,
        seed=seed,
    )
    return journey.scale(
        base,
        task,
        target,
        budgets_ms,
        pathlib.Path(out),
        settings=settings,
        task_at=task_at,
        controller=controller,
        pixels=pixels,
        device=registry.target,
        on_event=on_event or ignore,
        **options,
    )


def _controller(controller: Any) -> tuple[Any, str]:
    """A function that makes the sampler of what it is told, and its name."""
    if controller is None:
        from nas.controllers.surrogate import Surrogate

        controller = Surrogate
    if not isinstance(controller, type):
        return lambda **_: controller, type(controller).__name__.lower()
    accepted = inspect.signature(controller).parameters

    def make(**told: Any) -> Any:
        return controller(**{name: value for name, value in told.items() if name in accepted})

    return make, controller.__name__.lower()


def _name(function: Any) -> str:
    """What a function of the user's is called in the records of a study."""
    if isinstance(function, functools.partial):
        options = [*map(repr, function.args), *(f"{k}={v!r}" for k, v in function.keywords.items())]
        return f"{_name(function.func)}({', '.join(options)})"
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"

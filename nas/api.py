"""The door: functions that take objects and return results; `import nas` offers them lazily."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nas import backend, catalog, registry
from nas.events import Listener, ignore

if TYPE_CHECKING:  # heavy
    import keras

    from compress.method import Method
    from latency.target import Target
    from nas.compression.goals.goal import Goal
    from nas.compression.journey import Compressed
    from nas.files.given_shapes import Shapes
    from nas.files.open_network import Network
    from nas.profiling.results import Profiles
    from nas.training.journey import Trained
    from nas.training.recipe import Recipe

Path = str | pathlib.Path


def open(
    source: keras.Model | Network | Path, *, shapes: Shapes = (), signature: str | None = None
) -> Network:
    """The network that something is or holds, as every function here takes it.

    source: a `keras.Model` (Functional, Sequential, nested); the path of a .keras, .h5, .tflite,
        .safetensors or .bin (llama2.c) file, of a SavedModel, of a Hugging Face folder or of the
        folder of a search; or a name of the catalog, `family[:variant][,field=value...]`, with
        `weights=FILE` for trained ones.
    shapes: sizes for open ones, as {"image": (1, 224, 224, 3)}, or a tuple for the only input; a
        batch of 1 stays open. signature: of a .tflite file with several, that which is to run.

    `.model` of the result is the flat `keras.Model`, `.config` its Config where that is known.
    Raises `ValueError`, one line, where there is no network to be read.

    >>> open("mnasnet:tiny").model.count_params()
    133068
    """
    from nas.files.open_network import from_config, open_network

    if catalog.is_name(source):
        source = from_config(*catalog.config_and_weights(str(source)))
    backend.load()
    return open_network(source, shapes, signature)


def train(
    network: Any,
    task: Any,
    *,
    valid: Any = None,
    epochs: int | None = None,
    minutes: float | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    start: Path | None = None,
    mixed_precision: bool = False,
    out: Path | None = None,
    loss: Any = None,
    metric: Any = None,
    target_is_input: bool = False,
    on_event: Listener = ignore,
) -> Trained:
    """Train a network on a task: a `nas.Trained`.

    network: the Config of a family or its name, such as "mnasnet:tiny" (a new network, of the
        task's input shape and classes), a `keras.Model` (trained in place), the path of one, or an
        opened `nas.Network`. A classification may end in logits or in softmax.
    task: a `nas.Task`, or examples (x, y) as `nas.compress` takes them. valid: the same to judge
        on; None: a fifth of `task`.
    epochs: times through the data (the task's, or 10). minutes: train for this long at most.
    recipe: how to train; the task's unless given. seed: of weights, order of examples, dropout.
    start: a .keras file whose weights of equal path and shape are taken over. mixed_precision:
        compute in bfloat16; for a Config only.
    out: the .keras file to write. With it there are checkpoints: the same call goes on after Ctrl-C
        or a kill, and a finished training is read, not repeated.
    loss, metric: of Keras, by name, as objects or as functions (targets, outputs), or dicts of them
        by output; else those the network is compiled with, else what outputs and targets say.
    target_is_input: the inputs are the targets, as of an autoencoder.
    on_event: is called with `nas.Message`s and, after each step, `nas.training.state.Now`.

    Raises `ValueError` where network, data and options do not fit; KeyboardInterrupt on Ctrl-C.

    >>> from families import mnasnet
    >>> from nas.tasks import digits
    >>> losses = []
    >>> def listen(event):
    ...     if getattr(event, "judged", None):
    ...         losses.append(event.judged.valid_loss)
    >>> trained = train(mnasnet.VARIANTS["tiny"], digits.load(size=16), epochs=1, on_event=listen)
    >>> trained.record["metric"], len(trained.history), len(losses)
    ('accuracy', 1, 1)
    """
    backend.load()
    from nas.data import task_of
    from nas.training import journey

    if catalog.is_name(network):
        config, weights = catalog.config_and_weights(network)
        network = config if weights is None else open(network)
    elif isinstance(network, (str, pathlib.Path)):
        network = open(network)
    return journey.train(
        network,
        task_of(task, valid),
        epochs=epochs,
        minutes=minutes,
        recipe=recipe,
        seed=seed,
        start=start,
        mixed_precision=mixed_precision,
        out=out,
        loss=loss,
        metric=metric,
        target_is_input=target_is_input,
        on_event=on_event,
    )


def compress(
    network: keras.Model | Network | Path,
    methods: Method | Sequence[Method] | Goal,
    data: Any = None,
    *,
    valid: Any = None,
    out: Path | Sequence[Path] = (),
    front: Path | None = None,
    targets: Target | Sequence[Target] | Mapping[str, Target] = (),
    epochs: int | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    prefer: str = "size",
    by_layer: bool = True,
    examples_count: int | None = None,
    loss: Any = None,
    metric: Any = None,
    target_is_input: bool = False,
    shapes: Shapes = (),
    on_event: Listener = ignore,
) -> Compressed:
    """Compress a network with one or several methods: a `nas.Compressed`.

    network: a `keras.Model`, the path of one, or an opened `nas.Network`; it is not changed. A
        classification may end in logits or in softmax.
    methods: objects such as `compress.qat.QAT(bits=4)`, in any order; or a `nas.Goal`, such as
        `Goal(max_drop=1)`, which finds them: files are made, judged and, where it counts, timed.
    data: what to train, calibrate and judge on: a `nas.Task`; arrays x or (x, y), x a dict where
        there are several inputs; a `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterable of
        batches. Without labels it serves to calibrate only.
    valid: the same to judge on; None: a fifth of `data`.
    out: files to write: .keras, .tflite, .mlpackage, .safetensors. With them there are checkpoints:
        the same call goes on after Ctrl-C or a kill. front: of a goal, a folder for the files of
        which no other is better.
    targets: one or several objects such as `latency.cpu.CPU(threads=1)`, or a dict by name, to time
        before and after.
    epochs: times through the data (the task's, or 10, where a method trains; else 0).
    recipe: how to train; the task's at a quarter of its learning rate unless given.
    prefer: "size", or "speed" where LiteRT runs wider integers faster than narrow ones.
    by_layer: whether to measure which layers bear the methods least.
    examples_count: of the training part, that methods look at (512).
    loss, metric, target_is_input, on_event: as of `train`. shapes: as of `open`.

    Raises `ValueError` where the parts do not fit, also `nas.NotApplicable` (nothing to act on).

    >>> import keras
    >>> from compress.ptq import PTQ
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64)])
    >>> small = compress(model, [PTQ(bits=8)])
    >>> small.before["params"], small.after["params"]
    (576, 576)
    """
    backend.load()
    from nas.compression import journey
    from nas.compression.examples import EXAMPLES
    from nas.compression.goals.goal import Goal
    from nas.compression.goals.journey import towards
    from nas.data import task_of
    from nas.profiling.journey import targets_by_name

    if isinstance(network, (str, pathlib.Path)):
        network = open(network)
    options: dict[str, Any] = dict(
        out=[out] if isinstance(out, (str, pathlib.Path)) else list(out),
        targets=list(targets_by_name(targets).items()),
        epochs=epochs,
        recipe=recipe,
        seed=seed,
        prefer=prefer,
        by_layer=by_layer,
        examples_count=EXAMPLES if examples_count is None else examples_count,
        loss=loss,
        metric=metric,
        target_is_input=target_is_input,
        shapes=shapes,
        on_event=on_event,
    )
    task = None if data is None else task_of(data, valid)
    if isinstance(methods, Goal):
        return towards(network, methods, task, front=front, **options)
    if front is not None:
        raise ValueError("front: files of which none is better come of a goal, nas.Goal")
    given = list(methods) if isinstance(methods, Sequence) else [methods]
    return journey.compress(network, given, task, **options)


def profile(
    networks: Any,
    targets: Target | Sequence[Target] | Mapping[str, Target],
    *,
    shapes: Shapes = (),
    signature: str | None = None,
    runs: int = 50,
    warmup: int = 10,
    batch_sizes: Sequence[int] = (1,),
    operations: bool = False,
    explain: bool = False,
    skip_failures: bool = False,
    on_event: Listener = ignore,
) -> Profiles:
    """The latency of each network on each target: `nas.Profiles`, a list of `nas.Latency`.

    networks: one or several of what `nas.open` takes, or a dict of them by name; shapes and
        signature as of `open`, for all of them.
    targets: one or several objects such as `latency.cpu.CPU(threads=1)`, or a dict by name.
    runs: timed runs. warmup: runs before them that do not count.
    batch_sizes: examples a run, one after the other. operations: measure memory and the time of
        each operation, too. explain: find what bounds each operation, too.
    skip_failures: note what cannot be timed in the result's `failures`; otherwise the first error
        is raised, a `ValueError` or `nas.TargetUnavailable`.
    on_event: is called with a `nas.Message` before each measurement.

    >>> import keras
    >>> from latency.cpu import CPU
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> [latency] = profile(model, CPU(threads=1), runs=10)
    >>> latency.measured
    True
    """
    backend.load()
    from nas.profiling import journey

    named = journey.named(networks).items()
    return journey.profile(
        {name: open(one, shapes=shapes, signature=signature) for name, one in named},
        targets,
        runs=runs,
        warmup=warmup,
        batch_sizes=batch_sizes,
        operations=operations,
        explain=explain,
        skip_failures=skip_failures,
        on_event=on_event,
    )


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
    from nas.profiling.journey import targets_by_name
    from nas.searching import journey, names
    from nas.searching.candidate import NONE
    from nas.searching.parts import Parts
    from nas.searching.study import Settings
    from nas.tasks.table import Table

    controller, controller_name = names.sampler_maker(controller, registry.controller)
    described: dict[str, Any]
    if isinstance(space, Table):
        parts = Parts(table=space, controller=controller)
        described = {"space": "table", "task": f"table {space.name}", "targets": space.cost_names}
    else:
        task, targets = task_of(task), targets_by_name(target)
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
        described = {
            "space": names.of_function(space),
            "task": task.recipe,
            "targets": tuple(targets),
            "methods": tuple("|".join(choice) for choice in alternatives),
            "evaluator": "train" if evaluator is None else repr(evaluator),
        }
    several = budget_ms if isinstance(budget_ms, (list, tuple)) else [budget_ms]
    budgets = None if budget_ms is None else tuple(several)
    described |= {"budgets_ms": budgets, "controller": controller_name, **settings}
    named_settings = Settings(**described)
    own_name = re.sub(r"[^\w.-]+", "_", named_settings.name())
    return journey.search(
        parts,
        named_settings,
        pathlib.Path("runs", own_name) if out is None else pathlib.Path(out),
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
    from nas.scaling import journey
    from nas.searching import names
    from nas.searching.study import Settings
    from nas.tasks.task import resized

    task_at = task if callable(task) else functools.partial(resized, task)
    pixels = options.pop("pixels", None) or base.input_shape[0]
    task = task_at(pixels) if callable(task) else task
    controller, controller_name = names.sampler_maker(controller, registry.controller)
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

"""The door: functions that take objects and return results; `import nas` offers them lazily."""

import pathlib
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

    if not isinstance(source, str) or pathlib.Path(source).expanduser().exists():
        backend.load()
        return open_network(source)
    named = registry.parse(source)
    path = pathlib.Path(source)
    names = registry.listing("family")
    if named.name not in names and (path.suffix or "/" in source) and ".py" not in source:
        return open_network(source)  # which says that there is no such file
    registry.known("family", named.name)
    backend.load()
    options = dict(named.options)
    weights = options.pop("weights", None)
    bare = registry.Spec(named.name, named.value, tuple(options.items()), named.attribute)
    _, config = registry.network(str(bare))
    return from_config(config, weights)


def train(network: Any, task: Any, **options: Any) -> Any:
    """Train a network on a task: a `nas.Trained`.

    network: the Config of a family (a new network), a `keras.Model` (trained in place), the path
        of one, or an opened `nas.Network`.
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

    if isinstance(network, (str, pathlib.Path)):
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

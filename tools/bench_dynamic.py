"""What levels of sparsity in one file are worth, and feed-forward layers that are used in part.

    NAS_DATA=... python tools/bench_dynamic.py levels [--task fashion_mnist] [--seeds 0 1 2]
        [--epochs 10] [--hidden 256 256] [--pattern blocks]
    python tools/bench_dynamic.py file [--width 1024] [--hidden 4096]
    python tools/bench_dynamic.py ifp [--width 1024] [--hidden 4096]
    NAS_DATA=... python tools/bench_dynamic.py train_ifp [--network vit:tiny] [--seeds 0 1 2]

`levels`: accuracy of each level of one MLP on validation images, against a network of the same form
trained for that level alone as long, by the same recipe. `file`: one .tflite file of all levels of
a feed-forward network against that of the dense one, times in turns from one interpreter. `ifp`: a
feed-forward layer with 1/4 of its blocks used, in LiteRT. `train_ifp`: a network with masks of the
input, against the network without, and one of as few hidden units.
"""

import argparse
import dataclasses
import pathlib
import statistics
import tempfile
import time

import numpy as np

from nas import backend

keras = backend.load()

from compress.channels.hidden_units import bundles  # noqa: E402
from compress.channels.unit_blocks import kept_units  # noqa: E402
from compress.dynamic_sparsity import DynamicSparsity  # noqa: E402
from compress.instruction_pruning import InstructionPruning  # noqa: E402
from compress.method import compress  # noqa: E402
from compress.rewriting.record import Record  # noqa: E402
from families.layers.instruction_mask import MaskedFeedForward  # noqa: E402
from latency.tflite import convert  # noqa: E402
from nas import registry  # noqa: E402
from nas.files.writers.litert import write  # noqa: E402
from nas.training.loop import evaluate, fit  # noqa: E402

LEVELS = (0.0, 0.5, 0.75, 0.9)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("levels")
    command.add_argument("--task", default="fashion_mnist")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--epochs", type=int, default=10)
    command.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    command.add_argument("--pattern", default="blocks")
    command.set_defaults(run=levels)
    for name, run in (("file", file), ("ifp", ifp)):
        command = commands.add_parser(name)
        command.add_argument("--width", type=int, default=1024)
        command.add_argument("--hidden", type=int, default=4096)
        command.add_argument("--rounds", type=int, default=200)
        command.set_defaults(run=run)
    command = commands.add_parser("train_ifp")
    command.add_argument("--network", default="vit:tiny")
    command.add_argument("--task", default="fashion_mnist")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--epochs", type=int, default=5)
    command.set_defaults(run=train_ifp)
    arguments = parser.parse_args()
    arguments.run(arguments)


def mlp(task, hidden, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(task.input_shape)
    x = keras.layers.Flatten()(inputs)
    for number, units in enumerate(hidden, 1):
        x = keras.layers.Dense(units, "relu", name=f"hidden{number}")(x)
    return keras.Model(inputs, keras.layers.Dense(task.classes, name="logits")(x))


def levels(arguments) -> None:
    task = registry.task(arguments.task)
    method = DynamicSparsity(LEVELS, pattern=arguments.pattern)
    model = mlp(task, arguments.hidden, 0)
    counts = kept_units(model, bundles(model), LEVELS[1:])
    forms = [arguments.hidden, *zip(*counts, strict=True)]
    names = [f"{100 * level:g}%" for level in LEVELS]
    ours, alone = {name: [] for name in names}, {name: [] for name in names}
    for seed in arguments.seeds:
        started = time.perf_counter()

        def train(model, update=None, seed=seed):
            fit(model, task, arguments.epochs, seed, update=update)

        found = compress(mlp(task, arguments.hidden, seed), [method], train)
        ours_s = time.perf_counter() - started
        for name, network in found.record.variants.items():
            ours[name].append(evaluate(network, task))
        for name, hidden, level in zip(names, forms, LEVELS, strict=True):
            if arguments.pattern == "blocks" or not level:
                network = mlp(task, hidden, seed)
                train(network)
            else:  # one sparse level alone: by the same masks, whose smallest network it is
                one = dataclasses.replace(method, levels=(0.0, level))
                found = compress(mlp(task, arguments.hidden, seed), [one], train)
                network = found.record.variants[name]
            alone[name].append(evaluate(network, task))
        print(
            f"seed {seed}: levels {ours_s:.0f} s of {time.perf_counter() - started:.0f} s",
            *(f"{name} {ours[name][-1]:.4f} alone {alone[name][-1]:.4f}" for name in names),
            sep="; ",
            flush=True,
        )
    print(f"{'level':8}{'units':>12}{'levels %':>10}{'alone %':>10}{'difference':>12}")
    for name, hidden in zip(names, forms, strict=True):
        a, b = (100 * statistics.mean(found[name]) for found in (ours, alone))
        units = "-".join(map(str, hidden)) if arguments.pattern == "blocks" else ""
        print(f"{name:8}{units:>12}{a:10.2f}{b:10.2f}{a - b:12.2f}")


def feed_forward(width: int, hidden: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((width,), name="x")
    x = keras.layers.Dense(hidden, "relu", name="expand")(inputs)
    return keras.Model(inputs, keras.layers.Dense(width, name="project")(x))


def file(arguments) -> None:
    model = feed_forward(arguments.width, arguments.hidden)
    done = compress(model, [DynamicSparsity(LEVELS)])
    folder = pathlib.Path(tempfile.mkdtemp())
    dense = write(folder / "dense.tflite", model, Record())
    whole = write(folder / "levels.tflite", done.model, done.record)
    share = whole.bytes / dense.bytes
    print(f"dense {dense.bytes:,} bytes; {len(LEVELS)} levels {whole.bytes:,}: {share:.4f} of it")
    interpreter = convert.load(whole.path)
    runs = {"dense file": convert.load(dense.path).get_signature_runner()}
    runs |= {name: interpreter.get_signature_runner(name) for name in done.record.variants}
    x = np.random.default_rng(0).normal(size=(1, arguments.width)).astype(np.float32)
    first = {name: timed(lambda run=run: run(x=x)) for name, run in runs.items()}
    medians = in_turns({n: lambda run=run: run(x=x) for n, run in runs.items()}, arguments.rounds)
    for name, median in medians.items():
        ratio = medians["dense file"] / median
        print(f"{name:12} {median:8.1f} us, {ratio:5.2f}x; first call {first[name]:8.1f} us")


def ifp(arguments) -> None:
    width, hidden, blocks = arguments.width, arguments.hidden, 8
    plain = feed_forward(width, hidden)
    inputs = keras.Input((width,), name="x")
    masks = keras.Input((1, blocks), name="masks")
    layer = MaskedFeedForward(hidden, width, blocks, name="feed")
    masked = keras.Model({"x": inputs, "masks": masks}, layer(inputs, masks))
    layer.set_weights(plain.get_weights())
    files = {"dense": convert.convert(plain), "masked": convert.convert(masked)}
    print({name: f"{len(content):,} bytes" for name, content in files.items()})
    x = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32)
    sessions = {name: convert.Session(content) for name, content in files.items()}
    runs = {"dense": lambda: sessions["dense"]({"x": x})}
    for active in (1, 2, 4, 8):
        mask = (np.arange(blocks) < active).astype(np.float32)[None, None]
        runs[f"{active}/{blocks}"] = lambda mask=mask: sessions["masked"]({"x": x, "masks": mask})
        expected = np.asarray(masked({"x": x, "masks": mask}))
        error = np.abs(next(iter(runs[f"{active}/{blocks}"]().values())) - expected).max()
        print(f"{active}/{blocks} blocks: differs from Keras by {error:.1g}")
    medians = in_turns(runs, arguments.rounds)
    for name, median in medians.items():
        print(f"{name:8} {median:8.1f} us, {100 * median / medians['dense']:6.1f} % of dense")


def train_ifp(arguments) -> None:
    """Accuracy of a network as it is, with masks of its input, and with as few hidden units."""
    task = registry.task(arguments.task)
    family, config = registry.network(arguments.network)
    config = dataclasses.replace(config, **task.fields)
    method = InstructionPruning()
    few = dataclasses.replace(config, hidden=round(config.hidden * method.active))
    scores = {"dense": [], "masked": [], "as few units": []}
    for seed in arguments.seeds:

        def train(model, update=None, seed=seed):
            fit(model, task, arguments.epochs, seed, update=update)

        for name, form in (("dense", config), ("masked", config), ("as few units", few)):
            keras.utils.set_random_seed(seed)
            model = family.build(form)
            if name == "masked":
                model = compress(model, [method], train).model
            else:
                train(model)
            scores[name].append(evaluate(model, task))
            print(f"seed {seed}: {name} {scores[name][-1]:.4f}", flush=True)
    for name, found in scores.items():
        print(f"{name:14} {100 * statistics.mean(found):.2f} %")


def timed(run) -> float:
    """Microseconds of one call."""
    started = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - started)


def in_turns(runs: dict, rounds: int) -> dict[str, float]:
    """Medians, in microseconds; each runs 5 times, the first of which only fills caches."""
    times = {name: [] for name in runs}
    for _ in range(rounds // 4):
        for name, run in runs.items():
            run()
            times[name] += [timed(run) for _ in range(4)]
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()

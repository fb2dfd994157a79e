"""What a proxy training costs: build, trace, train, evaluate, and the same with stock `fit`.

    python tools/bench_training.py --networks 3 --epochs 2
    python tools/bench_training.py --network decoder:tiny --task text:shakespeare.txt --steps 40

With --network, the steps of one network of the catalog: ours, ours in bfloat16, and stock `fit`.
Both engines train the same networks in turns in one process. Shares of the wall clock are reported
with the process' CPU seconds, which are what to compare on a machine that others use.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np

from nas import backend
from nas.tasks import digits
from nas.training import loop, recipe


def main() -> None:
    """Print one line per network and engine, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=3, help="sampled networks (default: 3)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="resolution (default: 32)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--leak", type=int, default=0, help="train that many networks, print memory"
    )
    parser.add_argument("--network", help="time the steps of this one: family:variant")
    parser.add_argument("--task", default="digits", help="what --network trains on")
    parser.add_argument("--steps", type=int, default=40, help="of --network, timed in each round")
    parser.add_argument("--rounds", type=int, default=3, help="of --network, all engines in turns")
    arguments = parser.parse_args()
    backend.threads(arguments.threads)
    keras = backend.load()
    print(f"{keras.config.backend()}, {arguments.threads} thread(s), load {os.getloadavg()[0]:.1f}")
    if arguments.network:
        steps(keras, arguments)
        return
    import optuna

    from search_spaces import mnasnet

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    task = digits.load(size=arguments.size)
    if arguments.leak:
        leak(arguments.leak, mnasnet, study, task)
        return
    images = arguments.epochs * len(task.train[1])
    ours, stock = [], []
    for number in range(arguments.networks):
        config = sampled(mnasnet, study, task)
        for engine, results in ((engine_nas, ours), (engine_fit, stock)):
            keras.utils.set_random_seed(number)
            model, build = timed(lambda config=config: builder(config)(config))
            results.append(engine(keras, model, task, arguments.epochs) | {"build": build})
            report(engine.__name__, model, results[-1], images)
            del model
            keras.backend.clear_session()
            gc.collect()
    for clock, name in ((0, "wall"), (1, "cpu")):
        totals = [median(total(result, clock) for result in part) for part in (ours, stock)]
        print(
            f"median {name} seconds: {totals[0]:.2f} against {totals[1]:.2f} of stock fit: ", end=""
        )
        print(f"{totals[1] / totals[0]:.2f}x")


def steps(keras, arguments) -> None:
    """Milliseconds (wall, cpu) of a step: ours, ours in mixed precision, stock `fit`."""
    from compress.examples.data import taken
    from nas import registry
    from nas.networks import build
    from nas.training.batches import labels, prepared
    from nas.training.engines import engine

    task = registry.task(arguments.task)
    family, config = registry.network(arguments.network)
    config, chosen = build.for_task(config, task.fields, task.name), recipe.recipe_of(task)
    rows = [slice(n * chosen.batch_size, (n + 1) * chosen.batch_size) for n in range(4)]
    found = {name: [] for name in ("nas", "nas bfloat16", "fit", "fit bfloat16")}
    with contextlib.ExitStack() as stack:
        run = {}
        for name in found:
            keras.config.set_dtype_policy("mixed_bfloat16" if "16" in name else "float32")
            keras.utils.set_random_seed(0)
            model = family.build(config)
            if "nas" in name:
                step = stack.enter_context(engine(model, task, chosen, chosen.batch_size))

                def ours(step=step):
                    for number in range(arguments.steps):
                        inputs, targets = (taken(part, rows[number % 4]) for part in task.train)
                        loss = step.step(inputs, targets, 1e-3)
                    return float(np.asarray(loss))

                run[name] = ours
                continue
            model.compile(
                keras.optimizers.Adam(1e-3, global_clipnorm=chosen.clip),
                lambda targets, outputs: task.loss(outputs, targets),
            )
            many = np.concatenate([np.r_[rows[n % 4]] for n in range(arguments.steps)])
            data = prepared(model)(taken(task.train[0], many)), labels(taken(task.train[1], many))
            run[name] = lambda model=model, data=data: model.fit(
                *data, chosen.batch_size, shuffle=False, verbose=0
            )
        for round_ in range(arguments.rounds + 1):  # the first one traces
            for name, work in run.items():
                _, spent = timed(work)
                if round_:
                    found[name].append([1000 * clock / arguments.steps for clock in spent])
    for name, rounds in found.items():
        wall, cpu = (median(round_[clock] for round_ in rounds) for clock in (0, 1))
        print(
            f"{arguments.network} {name:13} {wall:7.1f} ({cpu:.1f} cpu) ms a step of "
            f"{chosen.batch_size}, {1000 * chosen.batch_size / cpu:,.0f} examples a cpu second"
        )


def sampled(space, study, task):
    """A random network of the space, for the task."""
    import dataclasses

    return dataclasses.replace(space.sample(study.ask()), input_shape=task.input_shape)


def builder(config):
    """The `build` beside a Config."""
    return sys.modules[type(config).__module__].build


def engine_nas(keras, model, task, epochs: int) -> dict:
    """Seconds (wall, cpu) of the phases of `nas.training.loop.fit`."""
    result, spent = timed(lambda: loop.fit(model, task, epochs, 0))
    share = spent[1] / spent[0]
    phases = {name: (wall, wall * share) for name, wall in result.phases.items()}
    return phases | {"quality": result.quality}


def engine_fit(keras, model, task, epochs: int) -> dict:
    """Seconds (wall, cpu) of stock `fit` and `evaluate`; "trace" is what the first step costs."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(recipe.LEARNING_RATE), loss, metrics=["accuracy"])
    size = recipe.BATCH_SIZE
    images, labels = task.train
    first, trace = timed(lambda: model.fit(images[:size], labels[:size], size, verbose=0))
    count = len(labels) // size * size  # the engine of nas trains on whole batches
    _, steps = timed(lambda: model.fit(images[:count], labels[:count], size, epochs, verbose=0))
    scores, evaluate = timed(
        lambda: [model.evaluate(*task.valid, 4 * size, verbose=0) for _ in range(epochs)]
    )
    return {"trace": trace, "train": steps, "evaluate": evaluate, "quality": scores[-1][1]}


def timed(work) -> tuple:
    """Result of `work()` and its seconds (wall, cpu)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def total(result: dict, clock: int) -> float:
    """Seconds of all phases; clock 0 is the wall, 1 the CPU."""
    return sum(value[clock] for name, value in result.items() if name != "quality")


def report(name: str, model, result: dict, images: int) -> None:
    """One line: phases in wall (cpu) seconds and images per second."""
    phases = ("build", "trace", "train", "evaluate")
    text = ", ".join(f"{p} {result[p][0]:.2f} ({result[p][1]:.2f})" for p in phases)
    rate = images / result["train"][0], images / result["train"][1]
    print(
        f"{name:10s} {model.count_params():7d} params: {text} s; "
        f"{rate[0]:.0f} ({rate[1]:.0f}) images/s, accuracy {result['quality']:.3f}",
        flush=True,
    )


def leak(count: int, space, study, task) -> None:
    """Train `count` sampled networks on two batches each and print the resident memory."""
    import dataclasses

    import keras

    size = recipe.BATCH_SIZE
    few = dataclasses.replace(task, train=tuple(part[: 2 * size] for part in task.train))
    for number in range(count):
        config = sampled(space, study, task)
        loop.fit(builder(config)(config), few, 1, 0)
        keras.backend.clear_session()
        gc.collect()
        if number % 10 == 9:
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            print(number + 1, f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f} MB", flush=True)


def median(values) -> float:
    """The middle value."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


if __name__ == "__main__":
    main()

"""How well cheap evaluators rank networks as full training does, and how many a minute they judge.

    python tools/bench_proxies.py truth --jsonl proxies.jsonl     # full training, the longest part
    python tools/bench_proxies.py judge --jsonl proxies.jsonl     # every other evaluator
    python tools/bench_proxies.py report --jsonl proxies.jsonl

A fixed sample of a space (`--networks` distinct ones that a random sampler with seed 0 proposes in
`--space`, such as mnasnet:tiny or efficientnet_x:tiny,layouts=false) on Fashion-MNIST, `--size`
pixels wide. Each space has a file of its own. truth: `--epochs` on
all training images with the task's recipe, judged on the validation images and, if the file has
them, on the test images: 8,330 images instead of 3,330, for networks differ by little. So does one
network from one training to the next: the truth is the mean of `--seeds`, and the report says how
far one of them agrees with another. judge: what costs less,

    train:E,N       E epochs on N training images (the search's own evaluator), judged as a search
    supernet:E      shared weights of the whole space, trained for E epochs once (nas/supernets)
    synflow, naswot zero-cost scores (nas/searching/zero_cost.py) of untrained networks
    flops, params   counts, the baselines

Every row is appended as soon as it is known, and what is there is not done again: the same command
goes on. Times are those of this process' CPU, building and compiling included: on a busy machine
the clock says nothing. What is done once for all networks is listed apart. Prints a Markdown table.
"""

import argparse
import dataclasses
import functools
import gc
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import fashion
import numpy as np
import optuna
from rows import append, read

from nas import registry
from nas.networks import build

EVALUATORS = (
    *("train:1,2000", "train:1,4000", "train:1,16000", "train:4,16000"),
    *("synflow", "naswot", "flops", "params", "supernet:24"),
)
RESAMPLES = 2000  # of the networks, for the spread of a correlation


def sample(count: int, space: str, size: int) -> list:
    """Distinct networks (Configs) of a space, the same ones at every call."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    proposed, _ = registry.space(space)
    found = {}
    while len(found) < count:
        config = dataclasses.replace(proposed(study.ask()), input_shape=(size, size, 1), classes=10)
        found.setdefault(build.key(config), config)
    return list(found.values())


def train(config, task, epochs: int, seed: int = 0) -> dict:
    """Accuracy and loss after training; of seed 0 with weights and order as in a search."""
    from nas.training.loop import fit

    kept = fit(build.build(config, seed or None), task, epochs, seed).kept
    return {"quality": kept.quality, "loss": kept.valid_loss}


@functools.cache
def task_of(size: int):
    """With new images in every epoch: without, large networks learn these by heart."""
    return registry.task("fashion_mnist", size=size, augmented=True)


def truth(config, epochs: int, seed: int) -> dict:
    """Full training, judged on everything it did not see."""
    task = task_of(config.input_shape[0])
    if fashion.DATA.exists():
        images, labels = fashion.test(config.input_shape[0])
        valid = (np.concatenate([task.valid[0], images]), np.concatenate([task.valid[1], labels]))
        task = dataclasses.replace(task, valid=valid)
    found = train(config, task, epochs, seed)
    return found | {"epochs": epochs, "images": len(task.valid[0]), "seed": seed}


def judge(config, evaluator: str) -> dict:
    """What an evaluator thinks of a network: {quality}, higher is better."""
    if evaluator.startswith("train:"):
        epochs, images = map(int, evaluator.removeprefix("train:").split(","))
        task = task_of(config.input_shape[0])
        inputs, labels = task.train
        chosen = np.random.default_rng(0).permutation(len(labels))[:images]
        task = dataclasses.replace(task, train=(inputs[chosen], labels[chosen]))
        return train(config, task, epochs)
    from nas.searching import zero_cost

    task = task_of(config.input_shape[0])
    return {"quality": zero_cost.score(evaluator, build.build(config), task)}


def supernet(path: pathlib.Path, name: str, space: str, size: int):
    """The supernet `name` ("supernet:EPOCHS") of a space: trained once, then read.

    Each epoch has a row with its time; killed, it goes on from its checkpoint.
    """
    from nas.supernets import supernet as shared
    from nas.training.checkpoint import Checkpoint

    epochs = int(name.removeprefix("supernet:"))
    task = task_of(size)
    sample, _ = registry.space(space)
    weights = path.with_suffix(f".{name.replace(':', '_')}.weights.h5")
    if weights.exists():
        found = shared.Supernet(sample, task)
        found.load(weights)
        return found
    since = time.process_time()

    def watch(now) -> None:
        nonlocal since
        if now.judged is None:
            return
        spent, since = time.process_time() - since, time.process_time()
        append(path, {"evaluator": name, "epoch": now.epoch, "cpu_s": spent})
        quality = now.judged.quality
        print(f"{name}, epoch {now.epoch}: {quality:.4f}, {spent:.0f} s", file=sys.stderr)

    checkpoint = Checkpoint(weights.with_suffix(".checkpoint.npz"), {"space": space, "name": name})
    found = shared.train(sample, task, epochs=epochs, checkpoint=checkpoint, watch=watch)
    found.save(weights)
    checkpoint.delete()
    return found


def fill(path: pathlib.Path, configs: list, name: str, work: Callable, seed: int = 0) -> None:
    """Append what `work(config)` gives for each network that has no row of this name yet."""
    import keras

    rows = [r for r in read(path) if (r["evaluator"], r.get("seed", 0)) == (name, seed)]
    done = {row["network"] for row in rows if "network" in row}
    for number, config in enumerate(configs):
        if (network := build.key(config)) in done:
            continue
        cpu, wall = time.process_time(), time.monotonic()
        row = {"evaluator": name, "network": network, "number": number} | work(config)
        row |= {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - wall}
        append(path, row)
        print(
            f"{name} {number + 1}/{len(configs)}: {row['quality']:.4f},"
            f" {row['cpu_s']:.1f} s of CPU, {row['wall_s']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        if not name.startswith("supernet"):
            keras.backend.clear_session()
        gc.collect()


def report(rows: list[dict]) -> None:
    """Rank correlations with the truth, with 90 % intervals over resampled networks."""
    from scipy import stats

    columns: dict[str, dict[str, dict]] = {}
    once: dict[str, dict[int, float]] = {}
    trainings: dict[str, dict[int, dict]] = {}
    for row in rows:
        if row["evaluator"] == "truth":
            trainings.setdefault(row["network"], {})[row["seed"]] = row
        elif "epoch" in row:
            once.setdefault(row["evaluator"], {})[row["epoch"]] = row["cpu_s"]
        else:
            columns.setdefault(row["evaluator"], {})[row["network"]] = row
    seeds = sorted(set.intersection(*(set(one) for one in trainings.values())) if trainings else ())
    if len(trainings) < 3 or not seeds:
        raise SystemExit(f"the truth has {len(trainings)} networks; run `truth` first")
    every = np.array([[one[seed]["quality"] for seed in seeds] for one in trainings.values()])
    real = dict(zip(trainings, every.mean(1), strict=True))
    first = next(iter(trainings.values()))[seeds[0]]
    spent = [one[seed]["cpu_s"] for one in trainings.values() for seed in seeds]
    print(
        f"truth: {len(real)} networks, {first['epochs']} epochs, mean of {len(seeds)} trainings,"
        f" judged on {first['images']} images: {min(real.values()):.2%} to"
        f" {max(real.values()):.2%}; {60 / np.mean(spent):.2f} a minute of one core"
    )
    for a, b in itertools.combinations(range(len(seeds)), 2):
        agreed = stats.spearmanr(every[:, a], every[:, b]).statistic
        print(f"seeds {seeds[a]} and {seeds[b]} of it agree: Spearman {agreed:.2f}")
    print("\n| evaluator | networks | Spearman | 90 % | Kendall | a core's minute | once, min |")
    print("|---|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    for name, found in columns.items():
        both = sorted(real.keys() & found.keys())
        if len(both) < 3:
            continue
        a = np.array([found[key]["quality"] for key in both])
        b = np.array([real[key] for key in both])
        draws = [generator.integers(len(both), size=len(both)) for _ in range(RESAMPLES)]
        spread = [stats.spearmanr(a[d], b[d]).statistic for d in draws if len(set(d)) > 2]
        low, high = np.nanquantile(spread, (0.05, 0.95))
        seconds = np.mean([found[key]["cpu_s"] for key in both])
        print(
            f"| {name} | {len(both)} | {stats.spearmanr(a, b).statistic:.2f} |"
            f" {low:.2f} to {high:.2f} | {stats.kendalltau(a, b).statistic:.2f} |"
            f" {60 / seconds:.1f} | {sum(once.get(name, {}).values()) / 60:.1f} |"
        )


def main() -> None:
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", choices=["truth", "judge", "report"])
    parser.add_argument("--jsonl", type=pathlib.Path, required=True, help="rows are appended to it")
    parser.add_argument("--networks", type=int, default=18)
    parser.add_argument("--space", default="mnasnet:tiny")
    parser.add_argument("--size", type=int, default=16, help="side of the images")
    parser.add_argument("--epochs", type=int, default=8, help="of the truth")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the truth")
    parser.add_argument("--evaluators", nargs="+", default=list(EVALUATORS))
    options = parser.parse_args()
    if options.section == "report":
        return report(read(options.jsonl))
    options.jsonl.parent.mkdir(parents=True, exist_ok=True)
    configs = sample(options.networks, options.space, options.size)
    if options.section == "truth":
        for seed in options.seeds:
            work = functools.partial(truth, epochs=options.epochs, seed=seed)
            fill(options.jsonl, configs, "truth", work, seed)
        return None
    for name in options.evaluators:
        if name.startswith("supernet:"):
            found = supernet(options.jsonl, name, options.space, options.size)
            fill(options.jsonl, configs, name, lambda one, f=found: {"quality": f.quality(one)})
            continue
        fill(options.jsonl, configs, name, lambda one, name=name: judge(one, name))


if __name__ == "__main__":
    main()

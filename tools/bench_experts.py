"""Half of the experts dropped and what it costs: MC-Suite's EAN against chance, usage and REAP.

    NAS_DATA=... python tools/bench_experts.py [--networks images text] [--seeds 0 1 2]
        [--criteria EAN random EUF REAP] [--fraction 0.5] [--rounds 4] [--folder FOLDER]

`images`: a vision transformer with experts for every token, on Fashion-MNIST, judged on the test
images; `text`: a decoder with experts on tiny Shakespeare, judged by the share of right next
characters in the part held out. Each is trained once a seed; then every criterion drops the same
number of experts and fine-tunes for as long, round by round (lottery). "none" fine-tunes the whole
network as long. Networks and rows are kept in FOLDER: the same command goes on where it stopped.
Asked for: EAN costs at most 1.5 points, and less than the three others, on the mean of the seeds.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile
import time

import fashion
import numpy as np

from nas import backend

keras = backend.load()

from compress.drop_experts import DropExperts  # noqa: E402
from compress.examples.data import Data  # noqa: E402
from compress.experts.criteria import CRITERIA  # noqa: E402
from compress.method import compress  # noqa: E402
from families import decoder, mobile_vmoe  # noqa: E402
from latency.system.json_records import write_json  # noqa: E402
from nas import registry  # noqa: E402
from nas.tasks.task import pixels  # noqa: E402
from nas.training.batches import labels, prepared  # noqa: E402
from nas.training.loop import fit  # noqa: E402
from nas.training.recipe import Recipe  # noqa: E402

OTHERS = ("random", "EUF", "REAP")
MOST = 1.5  # points that half of the experts may cost
EXAMPLES = {"images": 512, "text": 128}  # that scores are taken of
EPOCHS = {"images": (12, 3), "text": (2, 1)}  # of the first training, of the fine-tuning
RECIPES = {
    "images": Recipe(learning_rate=3e-3, optimizer="adamw", weight_decay=0.05),
    "text": Recipe(batch_size=32, learning_rate=3e-3, clip=1.0),
}
FINE = 0.25  # of the learning rate, for what is trained already (as `nas compress` has it)
IMAGES = mobile_vmoe.Config(
    (28, 28, 1),
    10,
    patch=7,
    layers=2,
    dim=32,
    heads=2,
    hidden=64,
    moe_blocks=(1, 2),
    experts=8,
    top_k=2,
    expert_hidden=48,
    importance_weight=0.01,
)
TEXT = decoder.Config(
    vocabulary=65,
    length=64,
    dim=64,
    layers=2,
    heads=2,
    key_value_heads=1,
    hidden=96,
    experts=8,
    top_k=2,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    criteria = ["none", *CRITERIA]
    parser.add_argument("--criteria", nargs="+", choices=criteria, default=["none", "EAN", *OTHERS])
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, help="of fine-tuning; 0: dropped at once, not tuned")
    default = pathlib.Path(tempfile.gettempdir()) / "nas_bench_experts"
    parser.add_argument("--folder", type=pathlib.Path, default=default)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for network in arguments.networks:
        compare(network, arguments)


def compare(network: str, arguments) -> None:
    """All rows of one network, and what the means say."""
    task, test = TASKS[network]()
    epochs = EPOCHS[network][1] if arguments.epochs is None else arguments.epochs
    fraction, rounds = arguments.fraction, arguments.rounds
    print(
        f"{network}: {task.recipe}\n{RECIPES[network]}, {EPOCHS[network][0]} epochs; "
        f"{100 * fraction:g} % of the experts dropped in {rounds} rounds, {epochs} epochs at "
        f"{FINE} of the rate"
    )
    file = arguments.folder / "rows.json"
    lost: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for criterion in arguments.criteria:
            key = f"{network} seed={seed} {criterion} {fraction:g} rounds={rounds} epochs={epochs}"
            rows = json.loads(file.read_text()) if file.exists() else {}
            if key not in rows:
                model = trained(network, task, seed, arguments.folder)
                method = None
                if criterion != "none":
                    method = DropExperts(fraction, criterion, rounds=rounds, seed=seed)
                rows[key] = row(network, model, method, task, test, epochs, seed)
                write_json(file, rows)
            found = rows[key]
            lost.setdefault(criterion, []).append(100 * (found["before"] - found["after"]))
            print(
                f"  seed {seed} {criterion:7} {100 * found['before']:.2f} % -> "
                f"{100 * found['after']:.2f} %, {found['params_before']:,} -> "
                f"{found['params']:,} parameters, {found['seconds']:.0f} s",
                flush=True,
            )
    for criterion, points in lost.items():
        each = ", ".join(f"{one:+.2f}" for one in points)
        print(f"  {criterion:7} costs {np.mean(points):+.2f} points on average ({each})")
    judge(lost)


def judge(lost: dict[str, list[float]]) -> None:
    if "EAN" not in lost or not all(other in lost for other in OTHERS):
        return
    mean = {name: float(np.mean(points)) for name, points in lost.items()}
    better = [other for other in OTHERS if mean["EAN"] < mean[other]]
    print(
        f"  at most {MOST} points: {'HOLDS' if mean['EAN'] <= MOST else 'FAILS'}; better than "
        f"{', '.join(OTHERS)}: {'HOLDS' if len(better) == len(OTHERS) else 'FAILS'} "
        f"(than {', '.join(better) or 'none'})"
    )


def fashion_mnist():
    images, right = fashion.test()
    return registry.task(f"fashion_mnist:path={fashion.DATA}"), (pixels(images), right)


def shakespeare():
    data = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data"))
    task = registry.task(f"text:{data}/text/tinyshakespeare.txt,length={TEXT.length}")
    return task, task.valid


TASKS = {"images": fashion_mnist, "text": shakespeare}


def trained(network: str, task, seed: int, folder: pathlib.Path) -> keras.Model:
    """The network after its first training; kept in `folder`."""
    file = folder / f"{network}_{seed}.keras"
    if file.exists():
        return keras.saving.load_model(file)
    keras.utils.set_random_seed(seed)
    if network == "images":
        model = mobile_vmoe.build(IMAGES)
    else:
        model = decoder.build(dataclasses.replace(TEXT, **task.fields))
    started = time.perf_counter()
    fit(model, task, EPOCHS[network][0], seed, recipe=RECIPES[network])
    model.save(file)
    print(f"  seed {seed} trained in {time.perf_counter() - started:.0f} s", flush=True)
    return model


def row(network, model, method, task, test, epochs: int, seed: int) -> dict:
    """What one criterion makes of a network."""
    started = time.perf_counter()
    recipe = RECIPES[network]
    recipe = dataclasses.replace(recipe, learning_rate=FINE * recipe.learning_rate)

    def tune(prepared_model, update) -> None:
        fit(prepared_model, task, epochs, seed, recipe=recipe, update=update)

    inputs, targets = task.train
    before = accuracy(model, test), model.count_params()
    chosen = np.random.default_rng(seed).permutation(len(targets))[: EXAMPLES[network]]
    data = Data(prepared(model)(inputs[chosen]), labels(targets[chosen]), task.loss)
    methods = [] if method is None else [method]
    done = compress(model, methods, tune if epochs else None, data)
    return {
        "before": before[0],
        "after": accuracy(done.model, test),
        "params_before": before[1],
        "params": done.model.count_params(),
        "told": done.record.details,
        "seconds": time.perf_counter() - started,
    }


def accuracy(model, test, batch: int = 500) -> float:
    """The share of right classes, or of right next characters."""
    inputs, right = test
    found = [
        np.argmax(keras.ops.convert_to_numpy(model(inputs[i : i + batch], training=False)), -1)
        for i in range(0, len(inputs), batch)
    ]
    return float((np.concatenate(found) == right).mean())


if __name__ == "__main__":
    main()

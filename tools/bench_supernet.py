"""What each evaluator hands over after the same time: shared weights against one by one.

    NAS_DATA=... python tools/bench_supernet.py --jsonl supernet.jsonl     # 6 searches, an hour

`nas search` on Fashion-MNIST with `--evaluator train` and with `--evaluator supernet`, all else
being equal: space, controller, budget, minutes of the whole search with its final trainings, seeds.
Each has a cache of its own, so neither recalls what another measured or trained. What is handed
over is judged on the test images, which no search has seen. Each search has a row in the file; the
same command goes on. Times are of the clock: run it on a machine that does nothing else.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import fashion
import numpy as np
from rows import append, read

EVALUATORS = ("train", "supernet")


def search(evaluator: str, seed: int, options) -> dict:
    """One search from its beginning to its end; the row of what it found."""
    study = f"{evaluator}-{seed}"
    folder = options.out / study
    task = f"fashion_mnist:path={fashion.DATA},size={options.size}"
    command = [sys.executable, "-m", "nas", "search", "--space", options.space, "--task", task]
    command += ["--evaluator", evaluator, "--seed", str(seed), "--minutes", str(options.minutes)]
    command += ["--target", options.target, "--budget-ms", str(options.budget_ms), "--json"]
    command += ["--out", str(options.out), "--study", study]
    if evaluator == "train" and options.epochs:
        command += ["--epochs", str(options.epochs)]
    environment = os.environ | {"NAS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    content = json.loads(done.stdout)
    winner = content["winner"]
    return {
        "evaluator": evaluator,
        "seed": seed,
        "minutes": options.minutes,
        "trained": content["counts"].get("complete", 0),
        "ms": winner["costs"][0],
        "valid": winner["quality"],
        "test": fashion.accuracy(folder / "best.keras"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jsonl", type=pathlib.Path, default=pathlib.Path("supernet.jsonl"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/bench_supernet"))
    parser.add_argument("--space", default="mnasnet:tiny")
    parser.add_argument("--size", type=int, default=16, help="side of the images")
    parser.add_argument("--target", default="cpu:threads=1")
    parser.add_argument("--budget-ms", type=float, required=True)
    parser.add_argument("--minutes", type=float, default=10, help="of each search")
    parser.add_argument("--epochs", type=int, help="of --evaluator train (its default)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluators", nargs="+", default=EVALUATORS, choices=EVALUATORS)
    options = parser.parse_args()
    done = {(row["evaluator"], row["seed"]) for row in read(options.jsonl)}
    for seed in range(options.seeds):
        for evaluator in options.evaluators:
            if (evaluator, seed) not in done:
                append(options.jsonl, search(evaluator, seed, options))
    print("| evaluator | networks judged | ms | validation % | test % | mean |")
    print("|---|---|---|---|---|---|")
    means = {}
    for evaluator in options.evaluators:
        rows = [row for row in read(options.jsonl) if row["evaluator"] == evaluator]
        means[evaluator] = np.mean([row["test"] for row in rows])
        columns = [
            " ".join(f"{row['trained']}" for row in rows),
            " ".join(f"{row['ms']:.4f}" for row in rows),
            *(" ".join(f"{100 * row[name]:.2f}" for row in rows) for name in ("valid", "test")),
        ]
        print(f"| {evaluator} | {' | '.join(columns)} | {100 * means[evaluator]:.2f} |")
    return int(min(means.values()) < means.get("train", 0))


if __name__ == "__main__":
    sys.exit(main())

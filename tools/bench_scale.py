"""LACS beside single-objective scaling on this machine's CPU: the gate of `nas scale`.

    NAS_DATA=... python tools/bench_scale.py                     # 3 seeds, 4 budgets
    NAS_DATA=... python tools/bench_scale.py --seeds 0 --budget-ms 0.04,0.06

It runs `nas scale` on Fashion-MNIST, which goes on where an earlier call ended, and judges what
both methods made, for every seed, on the test images, which no search and no training has seen: the
validation images chose the winners. Exit 1 unless, on every budget, both networks take what they
may within 5 % and LACS' is at least as good, and on at least 2 it is better.
"""

import argparse
import json
import pathlib
import sys

import fashion
import numpy as np

from latency.system.json_records import write_json
from nas.cli.command_line import main as nas

BASE, PIXELS = "mnasnet:tiny", 16
BUDGETS = "0.04,0.06,0.09,0.13"
OFF = 0.05  # of the budget


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--input", type=int, default=PIXELS)
    parser.add_argument("--budget-ms", default=BUDGETS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--trials", default="6")
    parser.add_argument("--epochs", default="1", help="of a trial; what is kept gets three times")
    parser.add_argument("--limit", type=int, help="images of the training part (all there are)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/bench_scale"))
    arguments = parser.parse_args()
    task = f"fashion_mnist:path={fashion.DATA}"
    task += f",limit={arguments.limit}" if arguments.limit else ""
    flags = ["--budget-ms", arguments.budget_ms, "--input", str(arguments.input)]
    flags += ["--trials", arguments.trials, "--epochs", arguments.epochs]
    flags += ["--seeds", arguments.seeds, "--out", str(arguments.out)]
    code = nas(["scale", arguments.base, "--task", task, *flags])
    if code:
        return code
    content = json.loads((arguments.out / "result.json").read_text())
    held = judged(content)
    print(f"\non test images, {content['device']}, {content['rungs'][0]['lacs']['kind']}")
    better, fair = 0, True
    for rung in content["rungs"]:
        gains = np.subtract(held[rung["lacs"]["file"]], held[rung["single"]["file"]])
        told = [
            f"{kind} {100 * np.mean(held[rung[kind]['file']]):.2f} % at {rung[kind]['ms']:.4g} ms"
            for kind in ("lacs", "single")
        ]
        ends = f"LACS {100 * gains.mean():+.2f} points (seeds {(100 * gains).round(2).tolist()})"
        print(f"{rung['budget_ms']:g} ms: {', '.join(told)}: {ends}")
        better += gains.mean() > 0
        fair &= all(abs(rung[kind]["miss"]) <= OFF for kind in ("lacs", "single"))
        fair &= bool(gains.mean() >= 0)
    passed = fair and better >= 2
    print(
        f"better on {better} of {len(content['rungs'])}: {'holds' if passed else 'DOES NOT HOLD'}"
    )
    return 0 if passed else 1


def judged(content: dict) -> dict[str, list[float]]:
    """Accuracy on the test images of every network, by the file of its first seed."""
    found: dict[str, list[float]] = {}
    for one in (rung[kind] for rung in content["rungs"] for kind in ("lacs", "single")):
        if one["file"] in found:
            continue
        first = pathlib.Path(one["file"])
        for seed in one["seeds"]:
            file = first.with_name(f"{first.stem.rpartition('_')[0]}_{seed}.keras")
            path = file.with_suffix(".test.json")
            if not path.exists():
                write_json(path, {"accuracy": fashion.accuracy(file)})
            found.setdefault(one["file"], []).append(json.loads(path.read_text())["accuracy"])
    return found


if __name__ == "__main__":
    sys.exit(main())

"""What factorizing a space buys: one choice for all layers of a block, against one for each layer.

    python tools/bench_factorized.py tables --jsonl factorized.jsonl     # minutes
    python tools/bench_factorized.py fashion --jsonl factorized.jsonl    # hours, see below
    python tools/bench_factorized.py report --jsonl factorized.jsonl

Every search is the real loop (nas/searching/loop.py) with the real controllers; a sample is one
network trained, and no network is trained twice. Rows are appended as they are known, and what is
there is not done again.

tables: NAS-Bench-Macro, the one table with a choice for every layer (8 layers, 3 choices each, all
    6,561 networks). Its factorized view: the stages of 2, 3 and 3 layers choose an operation and
    how many layers have it, the others being the identity, as in MnasNet: 245 networks. regret:
    reward is the quality of one training run, the figure is the mean quality of the table's best
    network less that of the best one found, in points. hypervolume: of (mean quality, FLOPs), a
    share of the whole table's; the reference is the table's worst of both. In Accel-NASBench layers
    of a block are alike already, the cells of NAS-Bench-201 have no blocks, and the networks of
    HELP's FBNet table have no quality: there is nothing to compare in these.
fashion: the spaces `mnasnet` and `flat` around mnasnet:tiny on Fashion-MNIST. Quality after
    `--epochs` on `--images` training images, cost in multiply-adds, objectives both (random,
    surrogate). The reference is the worst of both among all networks of all searches; regret
    is to the best of all. About 3 s of CPU a network, and --seeds x 2 x --samples of them.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import math
import os
import pathlib
import sys
import tempfile
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import optuna
from rows import append, read

from nas import pareto, registry
from nas.locks import Flock
from nas.networks import build
from nas.searching import loop
from nas.searching.candidate import Candidate
from nas.searching.leases import Worker
from nas.searching.objective import Objective
from nas.searching.reward import Reward
from nas.searching.table_evaluator import TableEvaluator
from nas.tasks.table import Table, load

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGES = ((0, 1), (2, 3, 4), (5, 6, 7))  # layers of NAS-Bench-Macro of one width
IDENTITY, OPERATIONS = 0, (1, 2)
CONTROLLERS = ("random", "evolution", "surrogate")


class Stagewise(TableEvaluator):
    """NAS-Bench-Macro, of which a search may say one operation and a depth for each stage."""

    def candidate(self, trial):
        codes = np.zeros(sum(map(len, STAGES)), np.int64)
        for number, layers in enumerate(STAGES, 1):
            operation = trial.suggest_categorical(f"stage{number}_op", OPERATIONS)
            depth = trial.suggest_categorical(
                f"stage{number}_layers", tuple(range(len(layers) + 1))
            )
            codes[list(layers[:depth])] = operation
        return Candidate(self.table.config_of(row_of(self.table, codes)))

    def profile(self, candidate, *, limited=True):
        record = super().profile(candidate)
        return {name: record[name] for name in ("key", "costs")}


def row_of(table: Table, codes) -> int:
    (row,) = np.flatnonzero((table.codes == codes).all(axis=1))
    return int(row)


def trained_row(trial) -> int:
    return int(trial.user_attrs["profile"]["key"].rpartition("/")[2])


def factorized_rows(table: Table) -> np.ndarray:
    """Rows of the networks that the factorized view has."""
    stages = [
        {tuple([op] * depth + [IDENTITY] * (len(layers) - depth)) for op in OPERATIONS
         for depth in range(len(layers) + 1)}
        for layers in STAGES
    ]  # fmt: skip
    return np.array(
        [row_of(table, list(itertools.chain(*one))) for one in itertools.product(*stages)]
    )


def explore(evaluator, objective: Objective, controller: str, seed: int, samples: int, note):
    """One search; `note(trial)` of each network trained."""
    sampler = registry.controller(controller, seed=seed, reward=objective.reward)
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Flock(folder), "bench")

        def tell(event):
            if event.kind == "trained":
                note(event.trial)

        loop.explore(study, evaluator, objective, trials=samples, worker=worker, on_event=tell)
        worker.leave()


def tables(options, path: pathlib.Path) -> None:
    """Searches of NAS-Bench-Macro, with and without its factorized view."""
    folder = pathlib.Path(os.environ.get("NAS_DATA", ROOT.parent / "shared" / "data"))
    jobs = itertools.product(
        range(options.seeds), ("regret", "hypervolume"), ("factorized", "flat"), CONTROLLERS
    )
    done = {(r["figure"], r["space"], r["controller"], r["seed"]) for r in read(path)}
    known = {}
    for seed, figure, space, controller in jobs:
        if (figure, space, controller, seed) in done:
            continue
        table = load(folder / "nas" / "nasbench_macro.npz", cost="flops", seed=seed)
        evaluator = Stagewise(table) if space == "factorized" else TableEvaluator(table)
        # All are within this budget: with none the reward would also be for few FLOPs.
        budgets = (2 * table.known_costs.max(),)
        reward = Reward("relu", budgets) if figure == "regret" else None
        rows: list[int] = []
        explore(
            evaluator,
            Objective(budgets, reward),
            controller,
            seed,
            max(options.samples),
            lambda trial, rows=rows: rows.append(trained_row(trial)),
        )
        quality, costs = table.observed.mean(axis=1), table.known_costs[:, 0]
        losses = np.column_stack([-quality, costs])
        if not known:
            inside = factorized_rows(table)
            whole = pareto.hypervolume(losses, losses.max(axis=0))
            part = pareto.hypervolume(losses[inside], losses.max(axis=0))
            known = {"whole": whole, "inside": len(inside), "best_inside": quality[inside].max()}
            print(
                f"factorized: {len(inside)} of {len(quality)} networks; its best is"
                f" {100 * (quality.max() - quality[inside].max()):.2f} points below the table's,"
                f" its front has {part / whole:.1%} of the table's hypervolume",
                file=sys.stderr,
            )
        values = {}
        for count in options.samples:
            found = np.array(rows[:count])
            if figure == "regret":
                values[count] = 100 * (quality.max() - quality[found].max())
            else:
                share = pareto.hypervolume(losses[found], losses.max(axis=0))
                values[count] = 100 * share / known["whole"]
        job = {"figure": figure, "space": space, "controller": controller, "seed": seed}
        tell(path, job | {"values": values, "trained": len(rows)})


def fashion(options, path: pathlib.Path) -> None:
    """Searches of both spaces on Fashion-MNIST; one row a network trained."""
    import keras

    from latency.networks.count import count
    from nas.training.loop import fit

    task = registry.task("fashion_mnist")
    chosen = np.random.default_rng(0).permutation(len(task.train[1]))[: options.images]
    task = dataclasses.replace(task, train=tuple(part[chosen] for part in task.train))
    rows = [row for row in read(path) if row["figure"] == "fashion"]
    known = {row["network"]: row for row in rows}

    @dataclasses.dataclass(frozen=True)
    class Counted:
        """Networks of a space with multiply-adds for a cost, recalled from the rows."""

        space: object

        def candidate(self, trial):
            return Candidate(dataclasses.replace(self.space.sample(trial), **task.fields))

        def key(self, candidate):
            return build.key(candidate.config)

        def profile(self, candidate):
            key = self.key(candidate)
            macs = known[key]["macs"] if key in known else count(build.build(candidate.config)).macs
            return {"key": key, "costs": [macs / 1e6]}

        def train(self, candidate, **_):
            key = self.key(candidate)
            if key not in known:
                started = time.process_time()
                model = build.build(candidate.config)
                quality = fit(model, task, options.epochs, 0).quality
                spent = time.process_time() - started
                known[key] = {"macs": count(model).macs, "quality": quality, "cpu_s": spent}
            return {"quality": known[key]["quality"], "curve": [], "stopped": False}

        def forget(self):
            keras.backend.clear_session()

    from search_spaces import flat, mnasnet

    spaces = {"factorized": mnasnet, "flat": flat}
    for seed, controller, space in itertools.product(
        range(options.seeds), options.controllers, spaces
    ):
        job = {"figure": "fashion", "space": space, "controller": controller, "seed": seed}
        have = sum(all(row[name] == job[name] for name in job) for row in rows)
        place = itertools.count(1)

        def note(trial, job=job, have=have, place=place):
            key = trial.user_attrs["profile"]["key"]
            number = next(place)
            if number > have:
                tell(path, job | {"network": key, "place": number} | known[key])

        # Trained before an interruption: the same search again, its networks recalled.
        if have < max(options.samples):
            evaluator = Counted(spaces[space])
            explore(evaluator, Objective((math.inf,)), controller, seed, max(options.samples), note)


def tell(path: pathlib.Path, row: dict) -> None:
    append(path, row)
    print(json.dumps(row)[:150], file=sys.stderr, flush=True)


def report(options, path: pathlib.Path) -> None:
    """Means over the seeds, both spaces side by side."""
    rows = read(path)
    for figure, title in (
        ("regret", "NAS-Bench-Macro: regret, points"),
        ("hypervolume", "NAS-Bench-Macro: hypervolume, % of the table's"),
    ):
        found = collections.defaultdict(list)
        for row in rows:
            if row["figure"] == figure:
                found[row["controller"], row["space"]].append(row)
        if found:
            counts = list(next(iter(found.values()))[0]["values"])
            table_of(title, counts, {
                key: ([np.mean([r["values"][c] for r in part]) for c in counts], len(part))
                for key, part in found.items()
            })  # fmt: skip
    rows = [row for row in rows if row["figure"] == "fashion"]
    if not rows:
        return
    points = np.array([[-row["quality"], row["macs"]] for row in rows])
    reference, best = points.max(axis=0), -points[:, 0].min()
    whole = pareto.hypervolume(points, reference)
    shares, regrets, searches = (collections.defaultdict(list) for _ in range(3))
    for row, point in zip(rows, points, strict=True):
        searches[row["controller"], row["space"], row["seed"]].append(point)
    counts = [str(count) for count in options.samples]
    for (controller, space, _), found in searches.items():
        key, found = (controller, space), np.array(found)
        parts = [found[: int(count)] if len(found) >= int(count) else None for count in counts]
        shares[key].append(
            [np.nan if p is None else 100 * pareto.hypervolume(p, reference) / whole for p in parts]
        )
        regrets[key].append([np.nan if p is None else 100 * (best + p[:, 0].min()) for p in parts])
    for title, found in (
        ("Fashion-MNIST: hypervolume, % of all networks'", shares),
        ("Fashion-MNIST: regret, points", regrets),
    ):
        table_of(title, counts, {k: (np.array(v).mean(axis=0), len(v)) for k, v in found.items()})
    seconds = np.mean([row["cpu_s"] for row in rows])
    print(f"\n{len(rows)} networks, {seconds:.1f} s of CPU each")


def table_of(title: str, counts, found) -> None:
    print(f"\n### {title}, at samples\n\n| controller | space | {' | '.join(counts)} | seeds |")
    print("|---|---|" + "---|" * (len(counts) + 1))
    for (controller, space), (values, seeds) in sorted(found.items()):
        cells = " | ".join("" if np.isnan(value) else f"{value:.2f}" for value in values)
        print(f"| {controller} | {space} | {cells} | {seeds} |")


def main() -> None:
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", choices=["tables", "fashion", "report"])
    parser.add_argument("--jsonl", type=pathlib.Path, required=True, help="rows are appended to it")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samples", type=int, nargs="+", default=[25, 50, 100, 200, 300])
    parser.add_argument("--controllers", nargs="+", default=["surrogate"], help="of fashion")
    parser.add_argument("--epochs", type=int, default=1, help="of fashion")
    parser.add_argument("--images", type=int, default=2000, help="of fashion")
    options = parser.parse_args()
    options.samples.sort()
    options.jsonl.parent.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    {"tables": tables, "fashion": fashion, "report": report}[options.section](
        options, options.jsonl
    )


if __name__ == "__main__":
    main()

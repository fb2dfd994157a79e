"""Compare the controllers on tabular benchmarks: front, budget, landing, milliseconds.

    python tools/bench_controllers.py                       # all of it, 10 seeds
    python tools/bench_controllers.py --sections front --controllers surrogate tpe --seeds 3
    python tools/bench_controllers.py --tables accel --samples 50 100 200 500

Every search is the real loop (nas/searching/loop.py) on a study in memory. A sample is one network
trained; what is only profiled is not counted, and no network is trained twice. Sections:

front: several objectives (quality, latency). Hypervolume of the networks trained, as a share of
    that of the whole table; linear axes, the reference is the table's worst quality and cost.
    `surrogate x10` profiles 10 networks for each one it trains.
budget: one objective, reward absolute with the budget in the (geometric) middle of the true front.
    Constrained regret: best true quality within the budget, less the best one found, in points.
    NAS-Bench-Macro has no budget; one of its three training runs is observed of each network, so of
    n samples min(n / 5, 20) train finalists again (those observed best, from other seeds) and the
    regret is that of the network with the best mean.
landing: reward absolute, one search of `--landing-samples` networks trained, `--landing-profiles`
    profiled for each of them, for each of `--targets`: latencies of networks spread evenly along
    the true front, without its ends (a network of the front, so that landing is possible). The
    network picked (nas.pareto.winner) lands if its cost is within 3 % of the target and its quality
    at most 0.3 points below the best of the table within the target.
time: CPU milliseconds an ask + tell on a study that holds 1,000 and 10,000 trials (28 decisions),
    in memory and in a journal file, mean of 300 in turns with Optuna's random sampler.

Prints Markdown tables; writes the figures of every seed to --json (tools/results/).
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import sys
import tempfile
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from nas import pareto, registry
from nas.locks import Flock
from nas.searching import loop
from nas.searching.candidate import Candidate
from nas.searching.leases import Worker
from nas.searching.objective import Objective
from nas.searching.reward import Reward
from nas.searching.storage import open_storage
from nas.searching.table_evaluator import TableEvaluator
from nas.tasks.table import Table, load

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLES = {
    "macro": ("nasbench_macro.npz", "flops"),
    **{
        f"201/{device}": ("nasbench201_cifar100.npz", device)
        for device in ("raspi4", "gold_6226", "2080ti_32", "samsung_a50", "1080ti_1")
    },
    **{f"accel/{device}": ("accel_nasbench_dev.npz", device) for device in ("a100", "tpuv3")},
}
SCALAR_ONLY = {"ppo", "reinforce"}  # learn from one reward: not in `front`
FINALISTS = 20
TOLERANCE = 0.03
POINTS = 0.3
TIMED = 300


@dataclasses.dataclass(frozen=True)
class Job:
    """One search: what a process is asked to do."""

    section: str
    table: str
    controller: str
    seed: int
    samples: tuple[int, ...]
    profiles: int = 1
    target: float = math.inf

    @property
    def label(self) -> str:
        return self.controller + (f" x{self.profiles}" if self.profiles > 1 else "")


def read_table(name: str, seed: int = 0) -> Table:
    """A table by its short name."""
    file, cost = TABLES[name]
    folder = pathlib.Path(os.environ.get("NAS_DATA", ROOT.parent / "shared" / "data"))
    return load(folder / "nas" / file, cost=cost, seed=seed)


def explore(job: Job, table: Table) -> list[int]:
    """Rows of the networks that one search trains, in order."""
    budget = Reward("absolute", (job.target,)) if job.section != "front" else None
    objective = Objective((job.target,), budget)
    sampler = registry.controller(
        job.controller, seed=job.seed, reward=objective.reward, candidates=table.candidates
    )
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    rows = []

    def note(event) -> None:
        if event.kind == "trained":
            rows.append(int(event.trial.user_attrs["profile"]["key"].rpartition("/")[2]))

    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Flock(folder), "bench")
        loop.explore(
            study,
            TableEvaluator(table),
            objective,
            trials=max(job.samples),
            worker=worker,
            profiles=job.profiles,
            on_event=note,
        )
        worker.leave()
    return rows


def true_front(table: Table) -> np.ndarray:
    """Sorted costs of the networks on the table's front."""
    quality, costs = table.observed.mean(axis=1), table.known_costs[:, 0]
    return np.sort(costs[pareto.front(np.column_stack([-quality, costs]))])


def targets(table: Table, count: int) -> np.ndarray:
    """Costs of `count` networks of the front, evenly spread along it."""
    costs = true_front(table)
    return costs[np.linspace(0, len(costs) - 1, count + 2).round().astype(int)[1:-1]]


def run(job: Job) -> dict:
    """Do one job; the figures of every number of samples."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = time.process_time()
    if job.section == "time":
        return {**dataclasses.asdict(job), "figures": milliseconds(job)}
    table = read_table(job.table, job.seed)
    quality, costs = table.observed.mean(axis=1), table.known_costs[:, 0]
    if job.section == "budget" and job.table != "macro":
        front = true_front(table)
        job = dataclasses.replace(job, target=float(np.sqrt(front[0] * front[-1])))
    rows = np.array(explore(job, table))
    figures = {}
    for count in job.samples:
        found = rows[:count]
        if job.section == "front":
            losses = np.column_stack([-quality, costs])
            reference = losses.max(axis=0)
            whole = pareto.hypervolume(losses, reference)
            figures[count] = 100 * pareto.hypervolume(losses[found], reference) / whole
        elif job.section == "budget" and table.observed.shape[1] > 1:
            figures[count] = 100 * (quality.max() - quality[with_finalists(table, rows, count)])
        elif job.section == "budget":
            within = found[costs[found] <= job.target]
            best = quality[costs <= job.target].max()
            # Nothing within the budget: as bad as the worst network.
            found_best = quality[within].max() if len(within) else quality.min()
            figures[count] = 100 * (best - found_best)
        else:
            picked = found[pareto.winner(quality[found], costs[found][:, None], [job.target])]
            gap = 100 * (quality[costs <= job.target].max() - quality[picked])
            ratio = costs[picked] / job.target
            landed = abs(ratio - 1) <= TOLERANCE and gap <= POINTS
            figures[count] = {"ratio": ratio, "points_below": gap, "landed": bool(landed)}
    seconds = time.process_time() - started
    return {**dataclasses.asdict(job), "figures": figures, "seconds": seconds}


def with_finalists(table: Table, rows: np.ndarray, count: int) -> int:
    """The row picked with `count` training runs, of which the last ones repeat the finalists."""
    again = min(count // 5, FINALISTS)
    rows = rows[: count - again]
    runs = {int(row): [table.observed_quality(table.config_of(row))] for row in rows}
    others = {row: [q for q in table.observed[row]] for row in runs}
    for row, first in runs.items():
        others[row].remove(first[0])
    by_first = sorted(runs, key=lambda row: -runs[row][0])[: (again + 1) // 2]
    for row in by_first:
        runs[row].append(others[row].pop())
    by_two = sorted(by_first, key=lambda row: -np.mean(runs[row]))
    for row in by_two[: again - len(by_first)]:
        runs[row].append(others[row].pop())
    return max(by_first, key=lambda row: np.mean(runs[row]))


def milliseconds(job: Job) -> dict:
    """Mean CPU time of ask + tell, in turns with random on a study of its own; the first ask."""
    table = read_table("accel/a100")
    multi = job.controller not in SCALAR_ONLY
    rng = np.random.default_rng(0)
    past = []
    for _ in range(max(job.samples)):
        params = {n: p[rng.integers(len(p))] for n, p in table.choices.items()}
        past.append(_past(table, params, multi))
    found = {}
    for kind in ("memory", "journal"):
        for size in job.samples:
            with tempfile.TemporaryDirectory() as folder:
                studies = [
                    optuna.create_study(
                        study_name=name,
                        storage=open_storage(f"{folder}/{name}") if kind == "journal" else None,
                        directions=["maximize", "minimize"] if multi else ["maximize"],
                        sampler=registry.controller(name, seed=job.seed),
                    )
                    for name in (job.controller, "random")
                ]
                spent, first = np.zeros(2), np.zeros(2)
                for index, study in enumerate(studies):
                    study.add_trials(past[:size])
                    first[index] = _step(study, table, multi)
                for _ in range(TIMED):
                    for index, study in enumerate(studies):
                        spent[index] += _step(study, table, multi)
                ours, random = 1e3 * spent / TIMED
                found[f"{kind} {size}"] = {"ms": ours, "random_ms": random, "first_s": first[0]}
    return found


def _past(table: Table, params: dict, multi: bool):
    distributions = {n: CategoricalDistribution(p) for n, p in table.choices.items()}
    config = table.sample(optuna.trial.FixedTrial(params))
    quality, costs = table.quality(config), table.costs(config)
    return optuna.trial.create_trial(
        params=params,
        distributions=distributions,
        values=[quality, *costs] if multi else [quality],
        user_attrs=_records(table, config),
    )


def _records(table: Table, config) -> dict:
    evaluator, candidate = TableEvaluator(table), Candidate(config)
    return {"profile": evaluator.profile(candidate), "evaluation": evaluator.train(candidate)}


def _step(study: optuna.Study, table: Table, multi: bool) -> float:
    """One ask + tell; CPU seconds."""
    started = time.process_time()
    trial = study.ask()
    config = table.sample(trial)
    for name, record in _records(table, config).items():
        trial.set_user_attr(name, record)
    values = [table.quality(config), *table.costs(config)]
    study.tell(trial, values if multi else values[0])
    return time.process_time() - started


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All searches, the longest first."""
    samples, found = tuple(sorted(options.samples)), []
    for name in options.controllers:
        if "time" in options.sections:
            found.append(Job("time", "accel/a100", name, 0, tuple(options.sizes)))
        for table in options.tables:
            for seed in range(options.seeds):
                if "front" in options.sections and table != "macro" and name not in SCALAR_ONLY:
                    found.append(Job("front", table, name, seed, samples))
                    if name == "surrogate":
                        short = tuple(s for s in samples if s <= 200)
                        found.append(Job("front", table, name, seed, short, profiles=10))
                if "budget" in options.sections:
                    found.append(Job("budget", table, name, seed, samples))
            if "landing" in options.sections and name in options.landing and table != "macro":
                for target in targets(read_table(table), options.targets):
                    found.append(
                        Job(
                            "landing",
                            table,
                            name,
                            0,
                            (options.landing_samples,),
                            options.landing_profiles,
                            float(target),
                        )
                    )
    slow = {"tpe": 3, "surrogate": 2}
    return sorted(found, key=lambda job: -slow.get(job.controller, 1))


def print_section(section: str, results: list[dict]) -> None:
    """A Markdown table of a section."""
    found = [r for r in results if r["section"] == section]
    if not found:
        return
    if section == "time":
        return print_time(found)
    keys = sorted({key for r in found for key in r["figures"]})
    titles = {
        "front": "hypervolume share, %, at samples",
        "budget": "constrained regret, points, at samples",
        "landing": "targets landed on",
    }
    print(
        f"\n### {titles[section]}\n\n| table | controller | {' | '.join(map(str, keys))} | seeds |"
    )
    print("|---|---|" + "---|" * (len(keys) + 1))
    labels = list(dict.fromkeys((r["controller"], r["profiles"]) for r in found))
    families = list(dict.fromkeys(r["table"] for r in found))
    groups = [(name, [name]) for name in sorted(families)]
    groups += [
        (f"mean of {prefix}", [f for f in families if f.startswith(prefix)])
        for prefix in ("201", "accel")
        if sum(f.startswith(prefix) for f in families) > 1
    ]
    for title, members in groups:
        for name, profiles in sorted(labels):
            rows = [
                r
                for r in found
                if r["table"] in members and (r["controller"], r["profiles"]) == (name, profiles)
            ]
            cells = []
            for key in keys:
                values = [r["figures"][key] for r in rows if key in r["figures"]]
                if section == "landing":
                    landed = sum(v["landed"] for v in values)
                    cells.append(f"{landed}/{len(values)}")
                else:
                    mean = np.mean(values) if values else np.nan
                    cells.append(f"{mean:.2f}" if section == "front" else f"{mean:.3f}")
            label = name + (f" x{profiles}" if profiles > 1 else "")
            count = len({r["seed"] for r in rows})
            if rows:
                print(f"| {title} | {label} | {' | '.join(cells)} | {count} |")


def print_time(found: list[dict]) -> None:
    """Milliseconds more than random's, and all of it."""
    keys = list(found[0]["figures"])
    print(
        f"\n### CPU ms an ask + tell beyond random's (all)\n\n| controller | {' | '.join(keys)} |"
    )
    print("|---|" + "---|" * len(keys))
    for r in found:
        cells = [f"{v['ms'] - v['random_ms']:.2f} ({v['ms']:.2f})" for v in r["figures"].values()]
        print(f"| {r['controller']} | {' | '.join(cells)} |")


def main() -> None:
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(registry.listing("controller"))
    sections = ["front", "budget", "landing", "time"]
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    parser.add_argument("--controllers", nargs="+", choices=known, default=None)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), help="names or their prefixes")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samples", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--landing", nargs="+", choices=known, default=["surrogate"])
    parser.add_argument("--landing-samples", type=int, default=300)
    parser.add_argument("--targets", type=int, default=20, help="a table, for landing (20)")
    parser.add_argument("--landing-profiles", type=int, default=4, help="as `nas search` (4)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=pathlib.Path, default=None)
    options = parser.parse_args()
    if options.controllers is None:
        options.controllers = [name for name in known if name not in ("gp", "nsgaiii")]
    options.tables = [t for t in TABLES if any(t.startswith(p) for p in options.tables)]
    todo, results, started = jobs_of(options), [], time.monotonic()
    timed = [job for job in todo if job.section == "time"]
    searches = [job for job in todo if job.section != "time"]
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(run, job) for job in searches]
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            results.append(future.result())
            passed = time.monotonic() - started
            left = passed / done * (len(futures) - done)
            print(
                f"\r{done}/{len(futures)} searches, {left / 60:.0f} min left ",
                end="",
                file=sys.stderr,
            )
    print(file=sys.stderr)
    results += [run(job) for job in timed]  # alone: nothing else disturbs the clock
    results.sort(key=lambda r: (r["section"], r["table"], r["controller"], r["seed"], r["target"]))
    for section in sections:
        print_section(section, results)
    print(f"\n{time.monotonic() - started:.0f} s, {options.jobs} processes")
    path = options.json or ROOT / "tools" / "results" / "controllers.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

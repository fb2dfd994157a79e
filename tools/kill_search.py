"""SIGKILLs running searches at random moments and counts what is lost: it must be nothing.

    python tools/kill_search.py                   # 110 kills of 1 worker, 60 of 2, 30 training
    python tools/kill_search.py --kills 20 0 0    # a quick one

Three searches are killed again and again and started again with the same command: one worker and
two workers on a table (thousands of quick trials), and one worker that really times and trains
networks. After every kill the journal is read: each trial that was finished before must still be
there, unchanged. In the end no network was evaluated twice; and for one worker, an uninterrupted
run (that recalls the killed run's measurements, since a second timing would differ) has proposed
the same networks in the same order. Exit 1 if anything was lost.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter

import optuna
from optuna.trial import TrialState

from nas.searching import journal

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def command(out: pathlib.Path, flags: list[str]) -> list[str]:
    return [sys.executable, "-m", "nas", "search", "--out", str(out), "--study", "s", *flags]


def finished(out: pathlib.Path) -> list[optuna.trial.FrozenTrial]:
    """Finished trials of the study, by number; none before it exists."""
    folder = out / "s"
    if not (folder / journal.JOURNAL).exists():
        return []
    try:
        study = optuna.load_study(study_name="s", storage=journal.open_storage(folder))
    except KeyError:
        return []
    return study.get_trials(states=FINISHED)


def evaluations(trials) -> Counter:
    """How often each network was evaluated: trials with a result of their own, not a copy."""
    return Counter(
        trial.user_attrs["profile"]["key"]
        for trial in trials
        if "evaluation" in trial.user_attrs
        and "duplicate_of" not in trial.user_attrs["profile"]
        and not trial.user_attrs["evaluation"].get("cached")
    )


def torture(name: str, flags: list[str], kills: int, longest_s: float, seed: int) -> bool:
    """Kill a search `kills` times and report; whether nothing was lost."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "killed"
        environment = os.environ | {"NAS_CACHE": str(pathlib.Path(scratch) / "cache")}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": environment}
        known, lost, killed, grown = {}, 0, 0, 0
        while killed < kills:
            process = subprocess.Popen(command(out, flags), start_new_session=True, **quiet)
            try:
                process.wait(chance.uniform(0.3, longest_s))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            errors = process.stderr.read().decode()
            code = process.wait()
            if code not in (0, -signal.SIGKILL):
                print(f"\n{name}: exit {code}: {errors}")
                return False
            now = {t.number: (t.params, t.state, t.values) for t in finished(out)}
            lost += sum(now.get(number) != trial for number, trial in known.items())
            grown += len(now) > len(known)
            known = now
            print(f"\r{name}: {killed}/{kills} kills, {len(known)} finished trials", end="")
            if code == 0:  # it ended before its turn came: go on with a longer search
                flags = [*flags[:-1], str(int(flags[-1]) * 2)]
        subprocess.run(command(out, flags), check=True, start_new_session=True, **quiet)
        trials = finished(out)
        twice = sum(count > 1 for count in evaluations(trials).values())
        same = None
        if "--workers" not in flags:
            calm = pathlib.Path(scratch) / "calm"
            subprocess.run(command(calm, flags), check=True, **quiet)
            want = [(t.params, t.state) for t in finished(calm)]
            same = want == [(t.params, t.state) for t in trials]
        print(
            f"\r{name}: {killed} kills (progress between {grown} of them), {len(trials)} finished"
            f" trials, {lost} lost, {twice} networks evaluated twice"
            + ("" if same is None else f", proposals equal to an uninterrupted run: {same}")
        )
        return lost == 0 and twice == 0 and same is not False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, nargs=3, default=(110, 60, 30))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=pathlib.Path, help="a table of NAS_DATA, nasbench_macro")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    root = pathlib.Path(__file__).parent.parent
    data = pathlib.Path(os.environ.get("NAS_DATA", root.parent / "shared" / "data"))
    table = arguments.table or data / "nas" / "nasbench_macro.npz"
    started = time.monotonic()
    on_table = ["--task", f"table:{table}", "--budget-ms", "6e7", "--trials"]
    on_digits = ["--epochs", "1", "--profiles", "1", "--trials", "16"]
    two = ["--workers", "2"]
    single, double, real = arguments.kills
    searches = [
        ("table, 1 worker", [*on_table, "400"], single, 4.0),
        ("table, 2 workers", [*two, *on_table, "400"], double, 5.0),
        ("digits, 1 worker", on_digits, real, 25.0),
    ]
    held = [torture(*search, arguments.seed) for search in searches if search[2]]
    print(f"{sum(arguments.kills)} kills in {time.monotonic() - started:.0f} s")
    if arguments.json:
        print(json.dumps({"kills": sum(arguments.kills), "held": held}))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

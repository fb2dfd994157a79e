"""How large a study gets: many workers on one storage, and a study of very many trials.

    python tools/bench_study.py workers --count 64 --storage postgresql
    python tools/bench_study.py workers --count 16 --storage journal
    python tools/bench_study.py long --trials 100000

`workers`: processes that search a table of 16,384 networks at random for some seconds, each as a
worker of `nas search` does; they are forked of one that has imported all, so that they fit in the
memory. Trials a second, milliseconds of a claim (waiting for the lock included), memory that is not
shared. `long`: a journal of so many trials, as 200 of them repeated; CPU seconds to open it without
and with its snapshot, of `nas show`, and from Ctrl-C to the end of a search that goes on with it.
"""

import argparse
import contextlib
import csv
import functools
import itertools
import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "support"))

NAMES = [f"d{number}" for number in range(7)]


def table(folder: pathlib.Path) -> pathlib.Path:
    draw = random.Random(0)
    path = folder / "t.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*NAMES, "quality", "latency_ms"])
        for row in itertools.product(range(4), repeat=len(NAMES)):
            rows.writerow([*row, round(draw.uniform(0.5, 0.9), 4), 1 + sum(row)])
    return path


def search(
    folder: pathlib.Path, where: str | None, trials: int, minutes: float, seed: int = 0
) -> None:
    """One worker, as the command line starts it."""
    from nas import registry
    from nas.searching import journey
    from nas.searching.parts import Parts
    from nas.searching.study import Settings

    task = f"table:{folder.parent / 't.csv'}"
    settings = Settings(
        space="table", task=task, targets=("cost",), budgets_ms=(12.0,), controller="random"
    )
    controller = functools.partial(registry.controller, "random")
    parts = Parts(table=registry.task(task), controller=controller)
    journey.search(
        parts, settings, folder, trials=trials, minutes=minutes, storage=where, child=True
    )


def workers(count: int, kind: str, seconds: float) -> dict:
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        table(folder)
        where = None
        if kind == "postgresql":
            import postgresql

            where = stack.enter_context(postgresql.running()).url
        import nas.controllers.random
        import nas.searching.journey  # noqa: F401 (before the fork)

        run = folder / "study"
        if os.fork() == 0:  # begins the study; a connection is nobody's to share
            search(run, where, 1, 1.0)
            os._exit(0)
        os.wait()
        begun, children = time.monotonic(), {}
        for number in range(count):
            reads, writes = os.pipe()
            pid = os.fork()
            if pid == 0:
                work(run, where, seconds, writes)
            os.close(writes)
            children[pid] = (number, reads)
        time.sleep(seconds)
        memory = [memory_mb(pid) for pid in children]
        codes, claims = [], []
        for _, (_, reads) in children.items():
            with open(reads) as file:
                claims += json.loads(file.read() or "[]")
        for pid in children:
            codes.append(os.waitpid(pid, 0)[1])
        took = time.monotonic() - begun
        return row_of(run, where) | {
            "workers": count,
            "storage": kind,
            "seconds": round(took, 1),
            "claims_a_second": round(len(claims) / took, 1),
            "claim_ms_median": round(sorted(claims)[len(claims) // 2], 1) if claims else None,
            "claim_ms_p95": round(sorted(claims)[int(len(claims) * 0.95)], 1) if claims else None,
            "exits": {str(code): codes.count(code) for code in set(codes)},
            "mb_each": round(sum(memory) / len(memory), 1),
        }


def work(run: pathlib.Path, where: str | None, seconds: float, writes: int) -> None:
    """In a child: search, and say how long each claim took."""
    from nas.searching import leases
    from nas.searching.plan import SEARCH_SHARE

    claims: list[float] = []
    take: Callable = leases.take
    lock = leases.Worker.lock
    asked = [0.0]

    def timed_lock(self, name):
        asked[0] = time.monotonic()
        return lock(self, name)

    def timed_take(*arguments):
        found = take(*arguments)
        claims.append(1e3 * (time.monotonic() - asked[0]))
        return found

    leases.Worker.lock, leases.take = timed_lock, timed_take
    code = 1
    try:
        search(run, where, 10**6, seconds / 60 / SEARCH_SHARE)
        code = 0
    finally:
        with open(writes, "w") as file:
            json.dump(claims, file)
        os._exit(code)


def row_of(run: pathlib.Path, where: str | None) -> dict:
    """What the study holds in the end."""
    from optuna.trial import TrialState

    from nas.searching import study as studies

    trials = studies.load(run, where)[1].get_trials(deepcopy=False)
    begin = min(one.datetime_start for one in trials[1:])
    end = max(one.datetime_complete for one in trials if one.datetime_complete)
    done = [one for one in trials if "evaluation" in one.user_attrs]
    keys = [
        one.user_attrs["profile"]["key"]
        for one in done
        if "duplicate_of" not in one.user_attrs["profile"]
    ]
    return {
        "trials": len(trials),
        "trials_a_second": round(len(trials) / (end - begin).total_seconds(), 1),
        "trained_twice": len(keys) - len(set(keys)),
        "left_running": sum(one.state == TrialState.RUNNING for one in trials),
    }


def memory_mb(pid: int) -> float:
    """What a process has for itself, and its share of what it shares."""
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) / 1024


def long(count: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        table(folder)
        search(folder / "study", None, 200, 5.0)
        repeat(folder / "study" / "journal.log", count)
        row = {"trials": count}
        for kind in ("without", "with"):
            row |= {f"open_{kind}_snapshot_{k}": v for k, v in opened(folder / "study").items()}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        show = [sys.executable, "-m", "nas", "show", str(folder / "study")]
        begun = time.monotonic()
        subprocess.run(show, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        row |= {"show_cpu_s": round(cpu_s, 2), "show_s": round(time.monotonic() - begun, 2)}
        files = (folder / "study").glob("journal.log*")
        row["mb"] = {one.name: round(one.stat().st_size / 1e6, 1) for one in files}
        return row | interrupted(folder, count)


def repeat(journal: pathlib.Path, count: int) -> None:
    """So many trials, of which each has a network of its own."""
    logs = [json.loads(line) for line in journal.read_text().splitlines()]
    heads = [log for log in logs if log["op_code"] < 4]
    trials: list[list[dict]] = []
    for log in logs:
        if log["op_code"] == 4:
            trials.append([])
        if log["op_code"] >= 4:
            (trials[-1] if log["op_code"] == 4 else trials[log["trial_id"]]).append(log)
    for one in journal.parent.glob("journal.log.snapshot*"):
        one.unlink()
    with open(journal, "w") as file:
        for log in heads:
            print(json.dumps(log), file=file)
        for number in range(count):
            for log in trials[number % len(trials)]:
                changed = dict(log)
                if "trial_id" in log:
                    changed["trial_id"] = number
                if "profile" in log.get("user_attr", {}):
                    profile = log["user_attr"]["profile"] | {"key": f"table/{number}"}
                    changed["user_attr"] = {"profile": profile}
                print(json.dumps(changed, separators=(",", ":")), file=file)


def opened(folder: pathlib.Path) -> dict:
    """CPU and wall seconds to open a study in a new process, its imports left out."""
    code = (
        "import json, pathlib, sys, time\nfrom nas.searching import study\n"
        "cpu, wall = time.process_time(), time.monotonic()\n"
        "_, kept = study.load(pathlib.Path(sys.argv[1]))\n"
        "count = len(kept.get_trials(deepcopy=False))\n"
        "print(json.dumps({'cpu_s': round(time.process_time() - cpu, 2),\n"
        "    's': round(time.monotonic() - wall, 2), 'trials': count}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def interrupted(folder: pathlib.Path, count: int) -> dict:
    """Seconds from Ctrl-C to the end of a search that goes on with the study."""
    command = [sys.executable, "-m", "nas", "search", "--task", f"table:{folder}/t.csv"]
    command += ["--controller", "random", "--budget-ms", "12", "--trials", str(10 * count)]
    command += ["--study", "study", "--out", str(folder)]
    journal = folder / "study" / "journal.log"
    size = journal.stat().st_size
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        begun = time.monotonic()
        while journal.stat().st_size < size + 20_000 and process.poll() is None:
            time.sleep(0.05)
        first = time.monotonic() - begun
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = process.wait(300)
    ended = time.monotonic() - begun
    return {"resumed_s": round(first, 1), "ctrl_c_s": round(ended, 1), "ctrl_c_exit": code}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="add the row to this file")
    kinds = parser.add_subparsers(dest="kind", required=True)
    many = kinds.add_parser("workers")
    many.add_argument("--count", type=int, default=16)
    many.add_argument("--storage", choices=["postgresql", "journal"], default="journal")
    many.add_argument("--seconds", type=float, default=60.0)
    one = kinds.add_parser("long")
    one.add_argument("--trials", type=int, default=100_000)
    arguments = parser.parse_args()
    row = (
        long(arguments.trials)
        if arguments.kind == "long"
        else workers(arguments.count, arguments.storage, arguments.seconds)
    )
    row = {"kind": arguments.kind, **row, "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(row))
    if arguments.out:
        with open(arguments.out, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

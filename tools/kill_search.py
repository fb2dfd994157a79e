"""SIGKILLs running searches at random moments and counts what is lost: it must be nothing.

    python tools/kill_search.py                   # 110 kills of 1 worker, 60 of 2, 30 training
    python tools/kill_search.py --kills 20 0 0    # a quick one
    python tools/kill_search.py --kills 0 0 0 --machines 300 --hammer 60    # on a PostgreSQL

Three searches are killed again and again and started again with the same command: one worker and
two workers on a table (thousands of quick trials), and one worker that really times and trains
networks. After every kill the journal is read: each trial that was finished before must still be
there, unchanged. In the end no network was evaluated twice; and for one worker, an uninterrupted
run (that recalls the killed run's measurements, since a second timing would differ) has proposed
the same networks in the same order.

--machines SECONDS: two machines, `gpu` and `gpu-2`, each with runs and a cache of its own, share a
study on a PostgreSQL (a private one, which is restarted in the middle as well), and every 2 s one
of them is killed. --hammer SECONDS: processes take and leave the same locks, and are killed, on
files and on the PostgreSQL: none may overlap. --poison: of real networks some cannot be converted,
have a quality that is no number, meet floating-point errors, or kill their process.
Exit 1 if anything was lost.
"""

import argparse
import json
import math
import multiprocessing
import os
import pathlib
import random
import signal
import socket
import sys
import tempfile
import time
import zlib
from collections import Counter

import optuna
from optuna.trial import TrialState

from nas.cli.command_line import main as main_of_nas
from nas.searching import journal, journey, leases, storage  # noqa: F401 (for what is forked)

ROOT = pathlib.Path(__file__).resolve().parent.parent
FORK = multiprocessing.get_context("fork")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def words(out: pathlib.Path, flags: list[str]) -> list[str]:
    """The arguments of a search."""
    return ["search", "--out", str(out), "--study", "s", *flags]


def search(out: pathlib.Path, cache: pathlib.Path, flags: list[str], host: str) -> None:
    """The command line as the machine `host` runs it, in a process forked for that."""
    os.setsid()
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ["NAS_CACHE"] = str(cache)
    socket.gethostname = lambda: host
    sys.exit(main_of_nas(words(out, flags)))


class Search:
    """A search in a process of its own; forked, so that kills meet work and not imports."""

    def __init__(self, out: pathlib.Path, cache: pathlib.Path, flags: list[str], host="here"):
        self.log = pathlib.Path(f"{out}.log")
        self._process = FORK.Process(target=search, args=(out, cache, flags, host))
        self._process.start()

    def code(self, timeout_s: float | None = None) -> int | None:
        """Its exit status, waited for."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL, to its workers, too."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            self._process.kill()


def finished(location: pathlib.Path | str) -> list[optuna.trial.FrozenTrial]:
    """Finished trials of a study "s", by number; none before it exists."""
    if isinstance(location, pathlib.Path) and not (location / journal.JOURNAL).exists():
        return []
    try:
        study = optuna.load_study(study_name="s", storage=storage.open_storage(location))
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


def at_risk(folder: pathlib.Path) -> bool:
    """Whether the next kill would be the third that one candidate has to answer for."""
    if not (folder / journal.JOURNAL).exists():
        return False
    study = optuna.load_study(study_name="s", storage=storage.open_storage(folder))
    states = (TrialState.RUNNING, TrialState.WAITING)
    tries = [trial.user_attrs.get("tries", 1) for trial in study.get_trials(states=states)]
    return max(tries, default=1) >= leases.MOST_TRIES - 1


def torture(name: str, flags: list[str], kills: int, longest_s: float, seed: int) -> bool:
    """Kill a search `kills` times and report; whether nothing was lost."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        out, cache = pathlib.Path(scratch) / "killed", pathlib.Path(scratch) / "cache"
        known, lost, killed, grown = {}, 0, 0, 0
        while killed < kills:
            process = Search(out, cache, flags)
            patience = 4 * longest_s if at_risk(out / "s") else 0.3
            if process.code(chance.uniform(patience, max(patience, longest_s))) is None:
                process.kill()
                killed += 1
            code = process.code()
            if code not in (0, -signal.SIGKILL):
                print(f"\n{name}: exit {code}: {process.log.read_text()}")
                return False
            now = {t.number: (t.params, t.state, t.values) for t in finished(out / "s")}
            lost += sum(now.get(number) != trial for number, trial in known.items())
            grown += len(now) > len(known)
            known = now
            print(f"\r{name}: {killed}/{kills} kills, {len(known)} finished trials", end="")
            if code == 0:  # it ended before its turn came: go on with a longer search
                flags = [*flags[:-1], str(int(flags[-1]) * 2)]
        assert Search(out, cache, flags).code() == 0
        trials = finished(out / "s")
        twice = sum(count > 1 for count in evaluations(trials).values())
        same = None
        if "--workers" not in flags:
            calm = pathlib.Path(scratch) / "calm"
            assert Search(calm, cache, flags).code() == 0
            want = [(t.params, t.state) for t in finished(calm / "s")]
            same = want == [(t.params, t.state) for t in trials]
        print(
            f"\r{name}: {killed} kills (progress between {grown} of them), {len(trials)} finished"
            f" trials, {lost} lost, {twice} networks evaluated twice"
            + ("" if same is None else f", proposals equal to an uninterrupted run: {same}")
        )
        return lost == 0 and twice == 0 and same is not False


def torture_machines(server, flags: list[str], seconds: float, seed: int) -> bool:
    """Two machines on one PostgreSQL, one killed every 2 s; whether nothing was lost or left."""
    chance, asked = random.Random(seed), int(flags[-1])
    with tempfile.TemporaryDirectory() as scratch:
        hosts, folder = ("gpu", "gpu-2"), pathlib.Path(scratch)

        def start(host: str) -> Search:
            storing = ["--storage", server.url, *flags]
            return Search(folder / host, folder / f"cache-{host}", storing, host)

        running = {host: start(host) for host in hosts}
        known, lost, killed, restarted = {}, 0, 0, False
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            time.sleep(2)
            host = chance.choice(hosts)
            if running[host].code(0) is None:
                running[host].kill()
                killed += 1
            code = running[host].code()
            if code not in (0, -signal.SIGKILL):
                print(f"\nmachines: exit {code}: {running[host].log.read_text()}")
                return False
            if elapsed > seconds / 2 and not restarted:  # under the other one
                server.stop()
                server.start()
                restarted = True
            running[host] = start(host)
            now = {t.number: (t.params, t.state, t.values) for t in finished(server.url)}
            lost += sum(now.get(number) != trial for number, trial in known.items())
            known = now
            print(f"\rmachines: {killed} kills, {len(known)} finished trials", end="", flush=True)
        codes = [process.code() for process in running.values()]
        codes += [start(host).code() for host in hosts]
        study = optuna.load_study(study_name="s", storage=storage.open_storage(server.url))
        trials = study.get_trials(states=FINISHED)
        counted = evaluations(trials)
        twice = sum(count > 1 for count in counted.values())
        left = sum(not trial.state.is_finished() for trial in study.trials)
        owners = Counter(trial.user_attrs.get("host") for trial in trials)
        print(
            f"\rmachines: {killed} kills in {seconds:.0f} s, PostgreSQL restarted once,"
            f" {len(trials)} finished trials ({dict(owners)}), {lost} lost, {twice} networks"
            f" evaluated twice, {left} left open, {len(counted)} of {asked} networks, exits {codes}"
        )
        return not (lost or twice or left or any(codes)) and len(counted) == asked


def torture_locks(server, seconds: float) -> bool:
    """Both kinds of locks hammered; whether none overlapped."""
    from lock_hammer import hammered

    from nas.locks import Flock

    for name in ("files", "PostgreSQL"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)

            def make(name=name, folder=folder):
                if name == "files":
                    return Flock(folder / "locks")
                return storage.locks_of(server.url, folder)

            make().close()  # a new server has settled
            taken = hammered(make, folder, seconds, workers=8)
            print(f"locks of {name}: taken {taken} times in {seconds:.0f} s, 0 overlaps")
    return True


def be_poisoned(scratch: pathlib.Path, flags: list[str]) -> None:
    """A search of real networks, most of which fail in one of four ways, in a forked process."""
    os.environ["NAS_CACHE"] = str(scratch / "cache")
    from nas.searching.networks import Networks

    profile, train, spared = Networks.profile, Networks.train, set()

    def poison(networks, candidate) -> str:
        key = networks.key(candidate)
        kinds = ("", "convert", "nan", "", "float", "kill", "")
        return "" if key in spared else kinds[zlib.crc32(key.encode()) % len(kinds)]

    def poisoned_profile(networks, candidate, *, limited=True):
        if not limited:  # the base network
            spared.add(networks.key(candidate))
        if poison(networks, candidate) == "convert":
            raise ValueError("this operator cannot be converted")
        return profile(networks, candidate, limited=limited)

    def poisoned_train(networks, candidate, **options):
        kind = poison(networks, candidate)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "float":
            raise FloatingPointError("overflow in a step")
        record = train(networks, candidate, **options)
        return record | {"quality": math.nan} if kind == "nan" else record

    Networks.profile, Networks.train = poisoned_profile, poisoned_train
    sys.exit(main_of_nas(words(scratch, flags)))


def torture_poison(flags: list[str]) -> bool:
    """Start a search again until it ends; whether it hands over a network and says what failed."""
    with tempfile.TemporaryDirectory() as folder:
        scratch, deaths = pathlib.Path(folder), 0
        while True:
            process = FORK.Process(target=be_poisoned, args=(scratch, flags))
            process.start()
            process.join()
            if process.exitcode != -signal.SIGKILL or deaths == 50:
                break
            deaths += 1
        result = json.loads((scratch / "s" / "result.json").read_text())
        kinds = Counter(failure["kind"] for failure in result["failures"])
        handed = all((scratch / "s" / name).exists() for name in ("best.keras", "best.tflite"))
        print(
            f"poison: exit {process.exitcode} after {deaths} deaths, failures {dict(kinds)},"
            f" winner trial {(result['winner'] or {}).get('number')}, its files there: {handed}"
        )
        said = {"ValueError", "FloatingPointError", "died"} <= kinds.keys()
        return process.exitcode == 0 and handed and said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, nargs=3, default=(110, 60, 30))
    parser.add_argument("--machines", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--hammer", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--poison", action="store_true")
    parser.add_argument("--trials", type=int, default=60, help="of --machines (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=pathlib.Path, help="a table of NAS_DATA, nasbench_macro")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = pathlib.Path(os.environ.get("NAS_DATA", ROOT.parent / "shared" / "data"))
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
    if arguments.hammer or arguments.machines:
        sys.path.insert(0, str(ROOT / "tests" / "support"))
        import postgresql

        with postgresql.running() as server:
            if arguments.hammer:
                held.append(torture_locks(server, arguments.hammer))
            if arguments.machines:
                flags = [*on_table, str(arguments.trials)]
                held.append(torture_machines(server, flags, arguments.machines, arguments.seed))
    if arguments.poison:
        held.append(torture_poison([*on_digits[:-1], "12", "--finalists", "1", "--budget-ms", "9"]))
    print(f"{sum(arguments.kills)} kills in {time.monotonic() - started:.0f} s")
    if arguments.json:
        print(json.dumps({"kills": sum(arguments.kills), "held": held}))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A study of several machines: processes on a PostgreSQL, both killed and started again."""

import json
import os
import pathlib
import random
import signal
import socket
import threading
import time
from collections import Counter

import optuna
import postgresql
import pytest
from lock_hammer import FORK, hammered
from number_line import Line
from optuna.trial import TrialState

from nas import registry
from nas.locks import Advisory, Locks
from nas.searching import leases, storage
from nas.searching import study as studies
from nas.searching.loop import explore, trained
from nas.searching.objective import Objective
from nas.searching.study import Settings

pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(postgresql.INITDB is None, reason="there is no PostgreSQL here")
optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def server():
    with postgresql.running() as one:
        locks_of(one).close()  # waits until the new server has settled
        yield one


def locks_of(server) -> Locks:
    return storage.locks_of(server.url, pathlib.Path())


def test_advisory_locks_are_nobody_elses_and_die_with_their_holder(server, tmp_path):
    url = server.url.replace("postgresql", "postgresql+psycopg")
    assert hammered(lambda: Advisory(url), tmp_path, 3.0, workers=6) > 10
    ours, theirs = locks_of(server), locks_of(server)
    with ours.lock("a"), ours.try_lock("a") as again, theirs.try_lock("a") as second:
        assert not again and not second and ours.held("a") and theirs.held("a")
    assert not theirs.held("a")
    ours.close()
    theirs.close()


def test_whoever_held_a_lock_holds_it_after_a_restart(server):
    ours, theirs = locks_of(server), locks_of(server)
    with ours.lock("a"):
        server.stop()
        server.start()
        with theirs.try_lock("a") as second:  # ours asks for nothing meanwhile: it trains
            assert not second
        assert theirs.held("a")
    assert not theirs.held("a")
    ours.close()
    theirs.close()


def search(server, name: str, out: pathlib.Path, host: str, trials: int, seconds: float = 0.0):
    """One process of a machine `host` whose runs are in `out`."""
    socket.gethostname = lambda: host
    settings, objective = Settings(controller="random", reward="pareto"), Objective((2.0,))
    worker = studies.worker_of(out / name, server.url)
    study = studies.create(out / name, settings, server.url, worker)
    study.sampler = registry.controller("random", seed=0)
    try:
        evaluator = Line(out, seconds=seconds)
        explore(study, evaluator, objective, trials=trials, worker=worker, profiles=2)
    finally:
        worker.leave()
    return study


def settled(study: optuna.Study) -> Counter:
    """How often the trials' networks were evaluated; nothing may be left open."""
    assert not [trial for trial in study.trials if not trial.state.is_finished()]
    return Counter(
        trial.user_attrs["profile"]["key"]
        for trial in study.get_trials(states=leases.FINISHED)
        if "evaluation" in trial.user_attrs and "duplicate_of" not in trial.user_attrs["profile"]
    )


@pytest.mark.slow
def test_two_machines_killed_again_and_again_lose_nothing(server, tmp_path):
    """Host `gpu` is no longer a prefix of `gpu-2`; whoever dies, the living one goes on."""
    chance, trials = random.Random(0), 30
    machines = {host: tmp_path / host for host in ("gpu", "gpu-2")}
    for out in machines.values():
        out.mkdir()

    def started(host: str):
        arguments = (server, "killed", machines[host], host, trials, 0.4)
        process = FORK.Process(target=search, args=arguments)
        process.start()
        return process

    running, known, kills = {host: started(host) for host in machines}, {}, 0
    storage_of = storage.open_storage(server.url)
    until = time.monotonic() + 25
    while time.monotonic() < until:
        time.sleep(2)
        victim = chance.choice(list(machines))
        if running[victim].exitcode is None:
            os.kill(running[victim].pid, signal.SIGKILL)
            kills += 1
        running[victim].join()
        assert running[victim].exitcode in (0, -signal.SIGKILL)
        study = optuna.load_study(study_name="killed", storage=storage_of)
        now = {t.number: (t.params, t.state) for t in study.trials if t.state in leases.FINISHED}
        assert all(now.get(number) == trial for number, trial in known.items())
        known = now
        running[victim] = started(victim)
    for process in running.values():
        process.join(120)
        assert process.exitcode == 0
    study = search(server, "killed", machines["gpu"], "gpu", trials)
    assert kills >= 3 and len(trained(study)) == trials
    assert set(settled(study).values()) == {1}
    assert {trial.user_attrs["host"] for trial in trained(study)} == set(machines)


def test_a_restart_of_the_server_in_mid_study_costs_nothing(server, tmp_path):
    tmp_path.joinpath("a").mkdir()

    def restart():
        while not (tmp_path / "a" / "log").exists():
            time.sleep(0.05)
        server.stop()
        time.sleep(0.5)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    study = search(server, "restarted", tmp_path / "a", "gpu", 8, seconds=0.3)
    thread.join()
    assert len(trained(study)) == 8 and set(settled(study).values()) == {1}
    assert set(Counter((tmp_path / "a" / "log").read_text().split()).values()) == {1}


def test_a_machine_of_other_flags_is_refused_and_no_password_is_kept(server, tmp_path):
    for out in ("a", "b"):
        (tmp_path / out).mkdir()
    search(server, "flags", tmp_path / "a", "gpu", 2)
    kept = (tmp_path / "a" / "flags" / "study.json").read_text()
    assert json.loads(kept)["storage"] == server.url.replace(":" + postgresql.PASSWORD, "")
    folder = tmp_path / "b" / "flags"
    worker = studies.worker_of(folder, server.url)
    with pytest.raises(ValueError, match=r"another study flags \(seed was 0, now 1\)") as error:
        other = Settings(controller="random", reward="pareto", seed=1)
        studies.create(folder, other, server.url, worker)
    worker.leave()
    assert postgresql.PASSWORD not in kept + str(error.value)
    search(server, "flags", tmp_path / "b", "gpu-2", 3)  # which left nothing behind


def test_what_the_driver_says_is_one_line(server):
    for url, remedy in (
        (server.url.replace(postgresql.PASSWORD, "wrong"), "in PGPASSWORD or in ~/.pgpass"),
        (server.url.replace("/postgres", "/none"), "createdb"),
    ):
        for opens in (storage.open_storage, lambda url: storage.locks_of(url, pathlib.Path())):
            with pytest.raises(ValueError, match=remedy) as error:
                opens(url)
            assert "\n" not in str(error.value) and "wrong" not in str(error.value)


def test_a_dead_worker_of_another_machine_gives_back(server, tmp_path):
    def die():
        worker = leases.Worker(locks_of(server), "dead")
        study = optuna.create_study(study_name="dead", storage=storage.open_storage(server.url))
        with worker.lock(leases.ASK):
            trial = optuna.Trial(study, leases.take(study, worker))
        trial.suggest_int("x", 0, 9)
        trial.set_user_attr("round", f"{worker.id}/0")
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=die)
    process.start()
    process.join(60)
    study = optuna.load_study(study_name="dead", storage=storage.open_storage(server.url))
    ours = leases.Worker(locks_of(server), "dead")
    (lost,) = leases.give_back(study, ours)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.trials[1].user_attrs["retry_of"] == lost.number
    assert study.trials[1].user_attrs["tries"] == 2
    ours.leave()

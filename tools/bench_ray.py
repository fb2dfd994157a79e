"""What a search in a Ray cluster does when parts of it are killed; a farm of phones; gangs.

    python tools/bench_ray.py --out tools/results/ray.jsonl

Two real nodes of Ray, a real PostgreSQL and the real adb client, all on this machine. The phones
are those of tests/support/adbd.py, whose tool sleeps: they show who waits for whom, no latency. A
row for each line of the failure table and each figure; `python tools/bench_ray.py worker farm` are
only these. Needs the extras [ray] and [postgresql], adb and PostgreSQL's programs.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import optuna

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "support"))

import postgresql  # noqa: E402
from adbd import Adbd, install_tool  # noqa: E402
from ray_nodes import RayNodes  # noqa: E402

TRIALS, WORKERS, PROCESSES = 24, 3, 6
PATIENCE_S = 300  # of a busy machine
ENDED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
SLOW = '''"""Random search that thinks for a while: there is time to kill it in."""

import os
import time

import optuna


class Slow(optuna.samplers.RandomSampler):
    """Random, 0.8 s a network; no seed, for each worker makes one."""

    def __init__(self):
        super().__init__()

    def sample_independent(self, study, trial, name, distribution):
        if name == "d0":
            study._storage.set_trial_user_attr(trial._trial_id, "pid", os.getpid())
            time.sleep(0.8)
        return super().sample_independent(study, trial, name, distribution)
'''
# Takes a third of a second, says when it ran, and prints what benchmark_model prints.
TOOL = f"""#!{sys.executable}
import pathlib, sys, time
begin = time.monotonic()
time.sleep(0.3)
with open(pathlib.Path(sys.path[0]).parents[3] / "spans", "a") as spans:
    print(begin, time.monotonic(), file=spans)
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
runs = int(options["num_runs"])
first = "count=1 curr=5000"
print("STARTING!")
print(first)
print(f"count={{runs}} first=5000 curr=5001 min=5000 max=5002 avg=5001 std=1")
print("Inference timings in us: Init: 100, First inference: 5000, Warmup (avg): 5000, "
      "Inference (avg): 5001")
"""
# A worker of the farm: times one network again and again, and prints when it has.
CLIENT = """
import sys, time
from nas import registry
target = registry.target(sys.argv[1])
target.identity()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    latency = target.profile(sys.argv[2], warmup=1, runs=3)
    print(latency.conditions.get("ray_resource"), latency.conditions.get("queue_s"), flush=True)
"""


class Scene:
    """A cluster of two nodes, a database, a table to search in, in a folder."""

    def __init__(self, folder: pathlib.Path, database: str):
        self.folder, self.database = folder, database
        names = [f"d{number}" for number in range(5)]
        draw = random.Random(0)
        with open(folder / "t.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*names, "quality", "latency_ms"])
            for row in itertools.product(range(4), repeat=5):
                rows.writerow([*row, round(draw.uniform(0.5, 0.9), 4), 1 + sum(row)])
        (folder / "slow_search.py").write_text(SLOW)
        self.nodes = RayNodes(cpus=2)
        self.nodes.add("other", WORKERS, {"other": 100, "cpu_timing": 1})

    def search(self, study: str, *more: str) -> subprocess.Popen:
        """The command of a user, in three workers on the other node."""
        command = [sys.executable, "-m", "nas", "search", "--task", "table:t.csv"]
        command += ["--controller", "./slow_search.py", "--budget-ms", "12", "--finalists", "0"]
        command += ["--trials", str(TRIALS), "--study", study, "--storage", self.database]
        command += ["--ray", self.nodes.address, "--workers", str(WORKERS)]
        command += ["--worker-resources", "cpu=1,other=1", *more]
        with open(self.folder / f"{study}.log", "ab") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def study(self, name: str) -> optuna.Study:
        from nas.searching.storage import open_storage

        return optuna.load_study(study_name=name, storage=open_storage(self.database))

    def after(self, name: str, count: int) -> optuna.Study:
        """The study once so many networks are trained."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            with contextlib.suppress(KeyError):
                study = self.study(name)
                if len(finished(study)) >= count:
                    return study
            time.sleep(0.1)
        raise TimeoutError((self.folder / f"{name}.log").read_text())

    def workers(self, name: str) -> list[int]:
        """The processes of the workers of a study."""
        found = []
        for place in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (place / "cmdline").read_bytes().split(b"\0")
                if b"--child" in words and name.encode() in words:
                    found.append(int(place.name))
        return found

    def judged(self, name: str, process: subprocess.Popen) -> dict:
        """The end of a study, as a row tells it."""
        code = process.wait(PATIENCE_S)
        trials = self.study(name).trials
        keys = [one.user_attrs["profile"]["key"] for one in finished(self.study(name))]
        return {
            "exit": code,
            "trained": len(keys),
            "distinct": len(set(keys)),
            "given_back": sum(one.state == optuna.trial.TrialState.FAIL for one in trials),
            "left_running": sum(one.state == optuna.trial.TrialState.RUNNING for one in trials),
            "workers_left": len(self.workers(name)),
        }


def finished(study: optuna.Study) -> list:
    """The trials that trained a network: what others knew already is left out."""
    return [
        one
        for one in study.get_trials(deepcopy=False, states=ENDED)
        if "evaluation" in one.user_attrs and "duplicate_of" not in one.user_attrs["profile"]
    ]


def returned_s(study: optuna.Study, numbers: set[int]) -> float:
    """Seconds until these trials, some of which have lost their workers, have all ended."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE_S:
        if not numbers & running(study):
            return round(time.monotonic() - started, 2)
        time.sleep(0.05)
    raise TimeoutError(f"trials {numbers} are left")


def running(study: optuna.Study) -> set[int]:
    states = (optuna.trial.TrialState.RUNNING,)
    return {one.number for one in study.get_trials(deepcopy=False, states=states)}


def kill_worker(scene: Scene) -> dict:
    """A worker killed in a trial: the others give it back, and Ray's task starts another."""
    process = scene.search("worker")
    study = scene.after("worker", 5)
    lost: set[int] = set()
    while not lost:
        states = (optuna.trial.TrialState.RUNNING,)
        for one in study.get_trials(deepcopy=False, states=states):
            if not lost and "pid" in one.user_attrs:
                os.kill(one.user_attrs["pid"], signal.SIGKILL)
                lost = {one.number} & running(study)  # else it was just told
    seconds = returned_s(study, lost)
    return {"returned_s": seconds, **scene.judged("worker", process)}


def kill_driver(scene: Scene) -> dict:
    """The driver killed: all workers end with it, and the same command finishes."""
    process = scene.search("driver")
    scene.after("driver", 5)
    process.kill()
    process.wait()
    begun = time.monotonic()
    while scene.workers("driver"):
        assert time.monotonic() - begun < 60, "workers outlive their driver"
        time.sleep(0.1)
    ended_s = round(time.monotonic() - begun, 2)
    return {"workers_end_s": ended_s, **scene.judged("driver", scene.search("driver"))}


def interrupt(scene: Scene) -> dict:
    """Ctrl-C at the driver: each worker gives back what it has, and the same command finishes."""
    process = scene.search("ctrl_c")
    study = scene.after("ctrl_c", 5)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = process.wait(PATIENCE_S)
    ended_s = round(time.monotonic() - begun, 2)
    left = len(running(study))
    row = scene.judged("ctrl_c", scene.search("ctrl_c"))
    return {"interrupted_exit": code, "ended_s": ended_s, "running_after": left, **row}


def kill_node(scene: Scene) -> dict:
    """The workers' node killed: Ray places them on the one that comes in its place.

    Seconds from the kill, the start of the other node included.
    """
    process = scene.search("node")
    study = scene.after("node", 5)
    lost = running(study)
    killed = time.monotonic()
    scene.nodes.kill("other")
    scene.nodes.add("other", WORKERS, {"other": 100})
    returned_s(study, lost)  # nobody does it until the node is there
    seconds = round(time.monotonic() - killed, 1)
    return {"returned_s": seconds, **scene.judged("node", process)}


def infeasible(scene: Scene) -> dict:
    """More than the cluster has is refused at once."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "nas", "search", "--task", "table:t.csv", "--trials", "2"]
    command += ["--study", "none", "--storage", scene.database, "--ray", scene.nodes.address]
    command += ["--budget-ms", "12", "--worker-resources", "gpu=1"]
    done = subprocess.run(command, cwd=scene.folder, capture_output=True, text=True, timeout=120)
    seconds = round(time.monotonic() - begun, 1)
    return {"exit": done.returncode, "says": done.stderr.splitlines()[-1], "seconds": seconds}


def gangs(scene: Scene, count: int = 12) -> dict:
    """Gangs of two of three slots, all asked for at once, and two that share one of three."""
    from latency.ray_cluster import cluster
    from nas.ray_cluster.gangs import gang

    ray = cluster.connect(scene.nodes.address)
    scene.nodes.add("slots", 0, {"slot": 3, "A": 1, "B": 1, "C": 1})
    while ray.cluster_resources().get("slot") != 3:
        time.sleep(0.1)
    spans: dict[str, list] = {"slot": [], "named": []}

    def hold(kind: str, bundles: list) -> None:
        with gang(ray, bundles) as group:
            ray.get(group.ready(), timeout=120)
            begin = time.monotonic()
            time.sleep(0.2)
            spans[kind].append((begin, time.monotonic()))

    def all_of(kind: str, every: list) -> float:
        begun = time.monotonic()
        threads = [threading.Thread(target=hold, args=(kind, one), daemon=True) for one in every]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return round(time.monotonic() - begun, 1)

    seconds = all_of("slot", [[{"slot": 1}, {"slot": 1}]] * count)
    named = all_of("named", [[{"A": 1}, {"B": 1}], [{"B": 1}, {"C": 1}]] * 3)
    refused = ""
    try:
        hold("slot", [{"slot": 2}, {"slot": 2}])
    except ValueError as error:
        refused = str(error)
    scene.nodes.kill("slots")
    return {
        "gangs": count,
        "ended": len(spans["slot"]),
        "seconds": seconds,
        "overlaps": overlaps(spans["slot"]),
        "sharing_one_ended": len(spans["named"]),
        "sharing_one_overlaps": overlaps(spans["named"]),
        "sharing_one_seconds": named,
        "refused": refused,
    }


def overlaps(spans: list) -> int:
    ordered = sorted(spans)
    return sum(after[0] < before[1] for before, after in zip(ordered, ordered[1:], strict=False))


class Phones:
    """Three phones on a node of their own, and an adb server of it."""

    def __init__(self, scene: Scene):
        self.scene, self.folder = scene, pathlib.Path(tempfile.mkdtemp(dir=scene.folder))
        self.all = [Adbd(self.folder / f"phone{number}") for number in range(3)]
        self.tool = install_tool(self.folder / "tool/benchmark_model", TOOL)
        with socket.create_server(("127.0.0.1", 0)) as free:
            adb_port = free.getsockname()[1]
        self.settings = {
            "HOME": str(self.folder),
            "ANDROID_ADB_SERVER_PORT": str(adb_port),
            "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553",
            "NAS_CACHE": str(self.folder / "cache"),
        }
        self.model = self.folder / "model.tflite"
        from latency.measuring import reference_networks

        self.model.write_bytes(reference_networks.network("small"))

    @property
    def spec(self) -> str:
        phones = "+".join(one.serial for one in self.all)
        return f"ray:android:{phones},cool_down_s=0,benchmark={self.tool}"

    def plug(self) -> None:
        """The node that they hang on."""
        resources = {f"phone:{one.serial}": 1 for one in self.all}
        self.scene.nodes.add("phones", 0, resources, **self.settings)

    def clients(self, count: int, each: int, **environment: str) -> list[subprocess.Popen]:
        command = [sys.executable, "-c", CLIENT, self.spec, str(self.model), str(each)]
        settings = os.environ | {"RAY_ADDRESS": self.scene.nodes.address} | environment
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        found = [subprocess.Popen(command, env=settings, **pipes) for _ in range(count)]
        for one in found:
            assert one.stdout.readline() == "ready\n"
        return found

    def stop(self) -> None:
        subprocess.run(
            [shutil.which("adb"), "kill-server"], env=os.environ | self.settings, timeout=20
        )
        for one in self.all:
            one.stop()


def farm(scene: Scene, each: int = 8) -> dict:
    """Three phones, six workers: utilisation, overlapping uses; one phone away for a while."""
    from latency.ray_cluster import cluster
    from latency.ray_cluster import farm as devices
    from nas import registry

    phones = Phones(scene)
    try:
        phones.plug()
        ray = cluster.connect(scene.nodes.address)
        shared = devices.of(registry.target(phones.spec).targets)
        clients = phones.clients(PROCESSES, each)
        begun = time.monotonic()
        for one in clients:
            one.stdin.write("\n")
            one.stdin.flush()
        away = phones.all[0]
        time.sleep(4)
        away.unplug()
        time.sleep(4)
        away.plug()
        lines = [
            line.split() for one in clients for line in one.communicate(timeout=300)[0].splitlines()
        ]
        seconds = time.monotonic() - begun
        spans = [read_spans(one) for one in phones.all]
        lent = ray.get(shared.status.remote())["devices"]
        return {
            "measurements": len(lines),
            "asked": PROCESSES * each,
            "seconds": round(seconds, 1),
            "lent": {name: round(one["busy_s"] / seconds, 3) for name, one in lent.items()},
            "measured": {name: one["measured"] for name, one in lent.items()},
            "tool_runs": round(sum(b - a for one in spans for a, b in one) / seconds / 3, 3),
            "overlaps": sum(map(overlaps, spans)),
            "invocations": [len(one) for one in spans],
            "queue_s_mean": round(sum(float(line[1]) for line in lines) / max(1, len(lines)), 2),
        }
    finally:
        scene.nodes.kill("phones")
        phones.stop()


def gang_search(scene: Scene) -> dict:
    """A search whose workers are gangs, and what one of these measures on a phone that it holds."""
    from latency.ray_cluster import cluster
    from nas.ray_cluster.gangs import gang

    process = scene.search("gangs", "--worker-resources", "other=1")
    row = scene.judged("gangs", process)
    phones = Phones(scene)
    try:
        phones.plug()
        ray = cluster.connect(scene.nodes.address)
        while f"phone:{phones.all[0].serial}" not in ray.cluster_resources():
            time.sleep(0.1)
        with gang(ray, [{f"phone:{one.serial}": 1} for one in phones.all]) as group:
            name = ray.util.placement_group_table(group)["name"]
            (client,) = phones.clients(1, 2, **{cluster.GROUP: name})
            told = client.communicate("\n", timeout=120)[0].splitlines()
        return row | {"measured_in_a_gang": len(told)}
    finally:
        scene.nodes.kill("phones")
        phones.stop()


def phones_node(scene: Scene) -> dict:
    """The phones' node killed in a measurement: unavailable in seconds, fine when it is back."""
    phones = Phones(scene)
    code = (
        "import sys, time\nfrom nas import registry\nfrom latency.target import TargetUnavailable\n"
        "target = registry.target(sys.argv[1]); target.identity(); print('ready', flush=True)\n"
        "while True:\n"
        "    try:\n        target.profile(sys.argv[2], warmup=1, runs=3)\n"
        "        print('timed', time.monotonic(), flush=True)\n"
        "    except TargetUnavailable as error:\n"
        "        print('away', time.monotonic(), error, flush=True)\n        time.sleep(0.5)\n"
    )
    try:
        phones.plug()
        command = [sys.executable, "-c", code, phones.spec, str(phones.model)]
        settings = os.environ | {"RAY_ADDRESS": scene.nodes.address}
        with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as client:
            try:
                said(client, "timed")
                time.sleep(0.3)  # in the next one
                killed = time.monotonic()
                scene.nodes.kill("phones")
                _, at, says = said(client, "away").split(" ", 2)
                phones.plug()
                back = time.monotonic()
                again = float(said(client, "timed").split()[1])
            finally:
                client.kill()
        return {
            "unavailable_after_s": round(float(at) - killed, 1),
            "says": says.strip()[:200],
            "timed_again_after_s": round(again - back, 1),
        }
    finally:
        scene.nodes.kill("phones")
        phones.stop()


def said(client: subprocess.Popen, word: str) -> str:
    """The next line of a process that begins with a word."""
    for line in client.stdout:
        if line.startswith(word):
            return line
    raise RuntimeError(f"the process ended before it said {word}")


def read_spans(phone: Adbd) -> list:
    path = phone.root / "spans"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(float, line.split())) for line in lines]


SCENES = {
    "worker": kill_worker,
    "driver": kill_driver,
    "ctrl_c": interrupt,
    "node": kill_node,
    "infeasible": infeasible,
    "phones_node": phones_node,
    "farm": farm,
    "gangs": gangs,
    "gang_search": gang_search,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", nargs="*", help=f"of {', '.join(SCENES)} (all)")
    parser.add_argument("--out", type=pathlib.Path, help="add the rows to this file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no node is left
    with tempfile.TemporaryDirectory() as folder, postgresql.running() as server:
        scene = Scene(pathlib.Path(folder), server.url)
        try:
            for name in arguments.scenes or SCENES:
                row = {"scene": name, **SCENES[name](scene), "load": round(os.getloadavg()[0], 1)}
                print(json.dumps(row), flush=True)
                if arguments.out:
                    with open(arguments.out, "a") as file:
                        file.write(json.dumps(row) + "\n")
        finally:
            scene.nodes.stop()


if __name__ == "__main__":
    main()

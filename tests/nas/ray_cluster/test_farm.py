"""Who is next on which phone, what fits a cluster, what is refused: without a cluster."""

import asyncio
import json
import types

import pytest

from latency.android import Android
from latency.cpu import CPU
from latency.ray_cluster import cluster, farm
from latency.target import DoesNotFit, Kind, TargetUnavailable, Timing
from nas import registry
from nas.cli import command_line
from nas.ray_cluster import gangs, workers

PHONES = (Android("A"), Android("B"), Android("C"))


class Bench(farm.Farm):
    """A farm whose phones take a while, are away or hot, or lose their process."""

    def __init__(self, targets):
        super().__init__(targets)
        self.away: set[str] = set()
        self.killed: list[str] = []
        self.uses: list[tuple[str, str]] = []
        self.most_waiting = 0

    async def _run(self, device, models, options):
        name = device.target.serial
        self.uses.append((name, "begin"))
        self.most_waiting = max(self.most_waiting, self._waiting)
        await asyncio.sleep(0.01)
        self.uses.append((name, "end"))
        if name in self.away:
            return TargetUnavailable(f"phone {name} is away")
        if name in self.killed:
            self.killed.remove(name)
            return None
        if options.get("bad"):
            return ValueError("no such operation")
        conditions = {"serial": name, "after": {"battery_percent": 81, "skin_c": 31.5}}
        return [Timing((5.0,), conditions, Kind.MEASURED) for _ in models]


def measured(bench, count, **options):
    async def all_of():
        return await asyncio.gather(*(bench.measure([b""], options) for _ in range(count)))

    return asyncio.run(all_of())


def test_six_share_three_phones_and_each_is_one_s_alone():
    bench = Bench(PHONES)
    outcomes = measured(bench, 6)
    used = [one[0].conditions["ray_resource"] for one in outcomes]
    assert sorted(used) == ["phone:A", "phone:A", "phone:B", "phone:B", "phone:C", "phone:C"]
    for name in "ABC":
        events = [what for phone, what in bench.uses if phone == name]
        assert events == ["begin", "end"] * 2
    assert bench.most_waiting >= 2
    status = asyncio.run(bench.status())
    assert status["waiting"] == 0
    assert status["devices"]["phone:A"]["health"] == {"battery_percent": 81, "skin_c": 31.5}
    assert all(one["state"] == "free" for one in status["devices"].values())
    json.dumps(status)


def test_a_phone_that_is_away_rests_and_its_work_goes_to_others():
    bench = Bench(PHONES)
    bench.away = {"A"}
    outcomes = measured(bench, 6)
    assert {one[0].conditions["serial"] for one in outcomes} == {"B", "C"}
    assert [name for name, what in bench.uses if what == "begin"].count("A") == 1
    assert asyncio.run(bench.status())["devices"]["phone:A"]["state"] == "away"
    bench.away = {"A", "B", "C"}
    (outcome,) = measured(bench, 1)
    assert isinstance(outcome, TargetUnavailable) and "phone B is away" in str(outcome)
    (outcome,) = measured(bench, 1)  # at once: all of them rest
    assert isinstance(outcome, TargetUnavailable)
    bench.away = set()
    for device in bench._devices:
        device.rests_until = 0.0
    assert measured(bench, 3)[0][0].samples_ms == (5.0,)


def test_a_killed_measurement_is_done_again_and_a_refused_one_is_not():
    bench = Bench(PHONES[:1])
    bench.killed = ["A", "A"]
    assert measured(bench, 1)[0][0].samples_ms == (5.0,)
    bench.killed = ["A"] * 5
    assert "was killed 3 times" in str(measured(bench, 1)[0])
    (outcome,) = measured(bench, 1, bad=True)
    assert isinstance(outcome, ValueError) and not bench._devices[0].busy


def test_what_does_not_fit_comes_back_from_another_process_as_it_was():
    import pickle

    error = pickle.loads(pickle.dumps(DoesNotFit("too big", 12.0, 8.0)))
    assert (str(error), error.needed_mb, error.available_mb) == ("too big", 12.0, 8.0)


def nodes(*resources):
    listed = [
        {"Alive": True, "NodeID": str(n), "NodeManagerHostname": f"host{n}", "Resources": one}
        for n, one in enumerate(resources)
    ]
    total: dict[str, float] = {}
    for one in resources:
        for name, amount in one.items():
            total[name] = total.get(name, 0) + amount
    return types.SimpleNamespace(nodes=lambda: listed, cluster_resources=lambda: total)


def test_what_fits_a_cluster():
    two = nodes({"CPU": 4, "GPU": 1}, {"CPU": 2, "phone:A": 1})
    assert gangs.fitting(two, [{"CPU": 2}], 9) == 3
    assert gangs.fitting(two, [{"CPU": 3}], 9) == 1
    assert gangs.fitting(two, [{"phone:A": 1}, {"GPU": 1}], 9) == 1  # of different nodes
    gangs.check(two, [{"CPU": 2, "phone:A": 1}, {"CPU": 4, "GPU": 1}])
    with pytest.raises(ValueError, match="no room for CPU=5 at once: it has CPU=6, GPU=1, phone"):
        gangs.check(two, [{"CPU": 5}])  # six in all, but not on one node
    with pytest.raises(ValueError, match="no room for phone:A=1; phone:A=1"):
        gangs.check(two, [{"phone:A": 1}, {"phone:A": 1}])


def test_a_device_hangs_on_one_node():
    one = nodes({"phone:A": 1}, {"cpu_timing": 1}, {"cpu_timing": 1})
    assert cluster.node_of(one, "phone:A") == "0"
    with pytest.raises(TargetUnavailable, match="no node of the Ray cluster has phone:B"):
        cluster.node_of(one, "phone:B")
    with pytest.raises(TargetUnavailable, match=r"2 nodes .* cpu_timing \(host1, host2\)"):
        cluster.node_of(one, "cpu_timing")


def test_names_of_targets_in_a_cluster():
    both = registry.target("ray:android:127.0.0.1:5555+0A1B,threads=2")
    assert both.targets == (Android("127.0.0.1:5555", threads=2), Android("0A1B", threads=2))
    assert registry.target("ray:cpu:threads=1").targets == (CPU(threads=1),)
    for text, message in (
        ("ray", "expected what is timed there"),
        ("ray:gpu:h100", "times no .tflite files"),
        ("ray:android", "expected one, as android:SERIAL"),
        ("ray:android:A+A", "each device once"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.target(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ray", "host:1"], "expected --storage postgresql://"),
        (["--worker-resources", "gpu=1"], "name it, --ray HOST:PORT"),
    ],
)
def test_flags_that_lack_another(flags, message, capsys):
    assert command_line.main(["search", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "cpu", "cpu=x", "=1", "cpu=-1", "cpu=nan"])
def test_resources_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="expected NAME=AMOUNT"):
        workers.bundle(text)


def test_no_cluster_is_told_in_one_line(monkeypatch):
    pytest.importorskip("ray")
    with pytest.raises(TargetUnavailable, match="no Ray cluster answers at 127.0.0.1:9.*ray start"):
        cluster.connect("127.0.0.1:9")
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        cluster.connect("nowhere")

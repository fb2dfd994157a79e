"""The contract of latency targets and the CPU target, timed on this machine with real LiteRT."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
import pytest

from families import mnasnet
from latency import cpu
from latency.cpu import CPU
from latency.measuring import reference_networks, stopwatch
from latency.target import Kind, Latency, Target, Timing
from latency.tflite import convert


def latency(samples, **fields):
    return Latency("cpu", "this", 1, tuple(samples), Kind.MEASURED, **fields)


def test_statistics():
    one = latency(np.arange(101) / 10, conditions={"threads": 1})
    assert one.median_ms == 5.0
    assert (one.p10_ms, one.p90_ms) == (pytest.approx(1.0), pytest.approx(9.0))
    # Order statistics 41 and 61 of 101: the binomial table's 95 % interval of a median.
    assert one.interval_ms == (pytest.approx(4.0), pytest.approx(6.0))


def test_the_interval_covers_the_median_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = latency(generator.lognormal(0, 0.5, 30)).interval_ms
        covered += low <= 1.0 <= high
    assert 0.93 <= covered / 400 <= 0.995


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_give_the_widest_interval(count):
    one = latency(range(count))
    assert one.interval_ms == (0, count - 1)


def test_json_round_trip():
    one = latency(
        [1.0, 2.5],
        memory_mb=3.0,
        per_op=({"name": "conv", "ms": 1.0, "fastest_ms": 0.9},),
        per_op_kind=Kind.MEASURED,
        conditions={"a": 1},
    )
    assert one.op_min_ms == 0.9
    assert dataclasses.replace(one, per_op_kind=Kind.PREDICTED).op_min_ms is None
    record = json.loads(json.dumps(one.to_json()))
    assert record["median_ms"] == 1.75
    assert Latency.from_json(record) == one


def test_a_target_checks_what_it_is_asked(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Counting(Target):
        kinds: ClassVar = frozenset({Kind.PREDICTED})
        kind: Kind = Kind.PREDICTED
        device = "counter"

        def identity(self):
            return {}

        def measure(self, model, batch_size, warmup, runs, details):
            samples = tuple(float(run) for run in range(runs))
            return Timing(samples, {"warmup": warmup}, self.kind)

    target = Counting()
    profile = target.profile(object(), batch_size=2, warmup=3, runs=4)
    assert (profile.batch_size, profile.samples_ms) == (2, (0.0, 1.0, 2.0, 3.0))
    assert not profile.measured and profile.conditions == {"warmup": 3}
    assert target.time(object(), runs=2) == [0.0, 1.0]
    assert [one.kind for one in target.compare([object(), object()])] == [Kind.PREDICTED] * 2
    with pytest.raises(TypeError, match="gave a measured figure"):
        Counting(Kind.MEASURED).profile(object())
    with pytest.raises(ValueError, match="runs=0"):
        target.profile(object(), runs=0)
    with pytest.raises(ValueError, match=r"gone\.tflite"):
        target.profile(tmp_path / "gone.tflite")


@pytest.fixture(scope="module")
def network():
    return mnasnet.build(mnasnet.VARIANTS["tiny"])


def test_a_network_is_timed_in_either_form(network, tmp_path):
    target = CPU(threads=1)
    identity = target.identity()
    file = tmp_path / "network.tflite"
    file.write_bytes(convert.assemble(network))
    medians = []
    for model in (network, str(file)):
        profile = target.profile(model, runs=40)
        conditions = profile.conditions
        assert profile.measured and len(profile.samples_ms) == 40
        assert conditions["threads"] == 1 and conditions["runtime"].startswith("LiteRT 2")
        assert conditions["raw_median_ms"] > 0 and 0 < conditions["contention"] <= 1
        assert (
            conditions["stable"] in (True, False)
            and ("reason" in conditions) != conditions["stable"]
        )
        json.dumps(profile.to_json())
        medians.append(profile.median_ms)
    assert max(medians) < 1.15 * min(medians), medians
    assert target.identity() == identity, "the nominal times are read back, not taken anew"


@pytest.mark.slow
def test_a_keras_file_is_the_network(network, tmp_path):
    """It is loaded by another process, which imports Keras: 10 s."""
    kept = tmp_path / "network.keras"
    network.save(kept)
    started = time.monotonic()
    assert convert.file_of(kept) == convert.assemble(network)
    first_s = time.monotonic() - started
    started = time.monotonic()
    assert CPU().profile(kept, runs=10).median_ms > 0
    assert time.monotonic() - started < first_s + 10, "it is converted once"


def test_time_follows_work(tmp_path):
    """The larger reference costs about six times the smaller by the clock of any CPU."""
    medians = {}
    for name in reference_networks.NAMES:
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(reference_networks.network(name))
        medians[name] = CPU().profile(path, runs=30).median_ms
    assert 4 < medians["large"] / medians["small"] < 12, medians


def test_the_reference_reproduces_its_nominal_time(tmp_path):
    """The reference timed as a candidate comes out at its nominal time, however busy it is."""
    target = CPU()
    nominal = target.identity()["nominal_ms"]["small"]
    path = tmp_path / "small.tflite"
    path.write_bytes(reference_networks.network("small"))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        profile = target.profile(path, runs=60)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert profile.median_ms == pytest.approx(nominal, rel=0.08)


def test_networks_take_turns(tmp_path, monkeypatch):
    """Every candidate's block stands between two blocks of a reference; nobody is always first."""
    order = []

    class Recorded:
        def __init__(self, name):
            self.name = name

        def block(self):
            order.append(self.name)

    turns = cpu._take_turns([Recorded(0), Recorded(1), Recorded(2)], [Recorded("r")], 3)
    assert turns.tolist() == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert order[::2] == ["r"] * 10 and order[1::2] == turns.tolist()

    paths = []
    for name in reference_networks.NAMES:
        paths.append(tmp_path / f"{name}.tflite")
        paths[-1].write_bytes(reference_networks.network(name))
    small, large = CPU().compare(paths, runs=30)
    assert len(small.samples_ms) == len(large.samples_ms) == 30
    assert small.conditions["taken_in_turns_with"] == 1
    nominal = CPU().identity()["nominal_ms"]
    ratio = large.median_ms / small.median_ms
    assert ratio == pytest.approx(nominal["large"] / nominal["small"], rel=0.15)


def test_warming_up_ends_when_it_gets_no_faster():
    """A network that is slow at first is not timed before it is at its speed."""
    delays = [0.004] * 4 + [0.002] * 4 + [0.0005] * 10_000
    calls = iter(delays)
    watch = stopwatch.Stopwatch(lambda: time.sleep(next(calls)), 1, warmup=1)
    assert watch.run_ns < 1.5e6


def test_affinity_priority_and_garbage_collection_are_restored():
    import gc

    before = stopwatch.allowed_cores(), os.getpriority(os.PRIO_PROCESS, 0)
    with pytest.raises(KeyError), stopwatch.exclusive_cores(1) as cores:
        assert len(cores) == 1 and stopwatch.allowed_cores() == cores and not gc.isenabled()
        raise KeyError
    assert (stopwatch.allowed_cores(), os.getpriority(os.PRIO_PROCESS, 0)) == before
    assert gc.isenabled()


def test_two_measurements_do_not_share_a_core():
    if len(stopwatch.allowed_cores()) < 2:
        pytest.skip("needs two cores")
    code = (
        "from latency.measuring import stopwatch\n"
        "with stopwatch.exclusive_cores(1) as cores: print(*cores)\n"
    )
    with stopwatch.exclusive_cores(1) as mine:
        pass
    with stopwatch.exclusive_cores(1) as mine:
        os.sched_setaffinity(0, before := set(range(os.cpu_count() or 1)))
        other = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    os.sched_setaffinity(0, before)
    assert other.stdout.split() and int(other.stdout.split()[0]) not in mine


def test_a_faster_machine_lowers_the_nominal_time(tmp_path):
    target = CPU()
    nominal = target.identity()["nominal_ms"]
    target._store({name: 2 * value for name, value in nominal.items()})
    path = tmp_path / "small.tflite"
    path.write_bytes(reference_networks.network("small"))
    profile = target.profile(path, runs=30)
    assert profile.conditions["drift"] < 0.8
    assert target.identity()["nominal_ms"]["small"] < 1.8 * nominal["small"]


@pytest.mark.parametrize("threads", [0, 10_000, "1"])
def test_impossible_threads_are_refused(threads):
    with pytest.raises(ValueError, match="threads="):
        CPU(threads=threads)


def test_what_cannot_be_timed_is_refused(tmp_path):
    for name in ("network.txt", "network.tflite"):
        path = tmp_path / name
        path.write_bytes(b"text")
        with pytest.raises(ValueError, match=name):
            CPU().profile(path)


def test_two_threads(network):
    if len(stopwatch.allowed_cores()) < 2:
        pytest.skip("needs two cores")
    profile = CPU(threads=2).profile(network, runs=10)
    assert profile.conditions["threads"] == 2
    assert profile.conditions["pinned_cores"] in (None, list(stopwatch.allowed_cores())[:2])
    assert profile.median_ms > 0


class Clock:
    """The clocks of a machine on which the n-th run takes 1 + n / 1000 ms, and has half a core."""

    def __init__(self):
        self.runs, self.now_s = 0, 100.0

    def run(self):
        self.now_s += (1 + self.runs / 1000) / 1000
        self.runs += 1

    def perf_counter(self):
        return self.now_s

    monotonic = perf_counter

    def process_time(self):
        return self.now_s / 2


def test_running_without_pause_tells_what_the_clock_on_the_wall_says(tmp_path, monkeypatch):
    """No drift is taken out: a machine that gets slower is to be seen as that."""
    clock = Clock()
    monkeypatch.setattr(cpu, "time", clock)
    monkeypatch.setattr(cpu.convert, "runner", lambda file, threads: clock.run)
    file = tmp_path / "small.tflite"
    file.write_bytes(reference_networks.network("small"))
    spells = list(CPU().sustain(file, seconds=2.5))
    assert len(spells) == 3 and all(spell.measured for spell in spells)
    first = 0
    for spell in spells:
        assert "drift" not in spell.conditions and spell.conditions["contention"] == 0.5
        last = first + spell.conditions["runs"] - 1
        shortest, longest = 1 + first / 1000, 1 + last / 1000
        assert spell.samples_ms[0] == pytest.approx(shortest)
        assert spell.samples_ms[-1] == pytest.approx(longest)
        assert spell.median_ms == pytest.approx((shortest + longest) / 2)
        assert 1000 <= spell.conditions["runs"] * spell.median_ms < 1000 + 2 * longest
        first = last + 1
    assert first == clock.runs
    assert [spell.conditions["at_s"] for spell in spells] == pytest.approx([0, 1, 2], abs=0.06)


def test_running_without_pause(tmp_path):
    file = tmp_path / "small.tflite"
    file.write_bytes(reference_networks.network("small"))
    spells = list(CPU().sustain(file, seconds=1.5))
    assert 1 <= len(spells) <= 2 and all(spell.median_ms > 0 for spell in spells)

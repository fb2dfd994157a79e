"""`nas.profiling.journey` with objects: names, failures, explanations, the result as a table."""

import dataclasses
import json
from typing import Any, ClassVar

import pytest

from latency.target import Kind, Target, TargetUnavailable, Timing
from nas.profiling import history, journey
from nas.profiling.results import Profiles


@dataclasses.dataclass(frozen=True)
class Scripted(Target):
    """Takes as long as it is told, for files that are not called "away": no device."""

    kinds: ClassVar = frozenset({Kind.MEASURED})
    device: ClassVar[str] = "none"
    ms: float = 2.0

    def identity(self) -> dict[str, Any]:
        return {}

    def measure(self, model, batch_size, warmup, runs, details):
        if "away" in str(model):
            raise TargetUnavailable("it was unplugged")
        if "bad" in str(model):
            raise ValueError(f"{model}: no network")
        memory_mb = 1.5 if details else None
        samples = (self.ms * batch_size,) * runs
        return Timing(samples, {"warmup": warmup}, Kind.MEASURED, memory_mb=memory_mb)

    def spells(self, model, batch_size, seconds):
        for at_s in range(int(seconds)):
            yield Timing((self.ms + at_s,), {"at_s": at_s}, Kind.MEASURED)


@pytest.fixture
def files(tmp_path):
    paths = {name: tmp_path / f"{name}.tflite" for name in ("good", "bad", "away")}
    for path in paths.values():
        path.write_bytes(b"")
    return paths


def test_objects_go_in_and_latencies_come_out(files):
    events = []
    targets = {"slow": Scripted(4.0), "fast": Scripted()}
    options = {"runs": 3, "warmup": 7, "batch_sizes": (1, 2), "on_event": events.append}
    found = journey.profile(files["good"], targets, **options)
    assert [one.median_ms for one in found] == [4.0, 8.0, 2.0, 4.0]
    assert [(one.target, one.latency.batch_size) for one in found.profiles] == [
        ("slow", 1), ("slow", 2), ("fast", 1), ("fast", 2)
    ]  # fmt: skip
    assert all(one.model == str(files["good"]) for one in found.profiles)
    assert len(found[0].samples_ms) == 3 and found[0].conditions == {"warmup": 7}
    assert found[0].memory_mb is None
    (detailed,) = journey.profile(files["good"], Scripted(), operations=True)
    assert detailed.memory_mb == 1.5
    assert [event.text.split(" on ")[1] for event in events] == [
        "slow, batch 1", "slow, batch 2", "fast, batch 1", "fast, batch 2"
    ]  # fmt: skip
    assert len(history.rows()) == 5


def test_a_result_is_a_list_a_table_and_json(files):
    found = journey.profile({"<net>": files["good"]}, Scripted(), runs=3)
    assert "<net>" in repr(found) and "Scripted(ms=2.0)" in repr(found)
    assert "&lt;net&gt;" in found._repr_html_() and "<net>" not in found._repr_html_()
    (row,) = json.loads(json.dumps(found.to_json()))
    assert (row["model"], row["spec"], row["median_ms"]) == ("<net>", "Scripted(ms=2.0)", 2.0)
    assert "why" not in row and found.explanations() == ""
    assert repr(Profiles([])) == "no latencies"


def test_a_failure_is_raised_unless_it_is_to_be_noted(files):
    models = list(files.values())
    with pytest.raises(ValueError, match="no network"):
        journey.profile(models[:2], Scripted())
    with pytest.raises(TargetUnavailable, match="unplugged"):
        journey.profile(models[2], Scripted())
    with pytest.raises(ValueError, match="what it can do at most is not known"):
        journey.profile(models[0], Scripted(), explain=True)
    found = journey.profile(models[:2], Scripted(), skip_failures=True, explain=True)
    assert [one.model for one in found.profiles] == [str(files["good"])]
    timing, explaining = found.failures
    assert timing.models == (str(files["bad"]),) and isinstance(timing.error, ValueError)
    assert "Scripted(ms=2.0): " in str(explaining) and "is not known" in str(explaining)
    assert f"failed: {timing}" in repr(found)


def test_a_device_that_is_away_is_not_asked_again_for_each_network(files):
    found = journey.profile([files["away"], files["good"]], Scripted(), skip_failures=True)
    assert not found and [one.models for one in found.failures] == [
        (str(files["away"]), str(files["good"]))
    ]


def test_without_pause(files):
    spells = list(journey.sustain(files["good"], [Scripted(), Scripted(5.0)], seconds=3))
    assert [one.latency.median_ms for one in spells] == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert {one.target for one in spells} == {"Scripted(ms=2.0)", "Scripted(ms=5.0)"}
    assert len(history.rows()) == 6

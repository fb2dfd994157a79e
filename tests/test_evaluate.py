"""Figures in a search: estimates and measurements are never mixed, winners meet the real device."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest

from families import mnasnet
from latency.target import DoesNotFit, Kind, Target, TargetUnavailable, Timing
from nas import profile_store, spec
from nas.evaluate import Networks


@dataclasses.dataclass(frozen=True)
class Changing(Target):
    """Says what it is told, of the kind that it is told: no device."""

    kinds: ClassVar = frozenset(Kind)
    device: ClassVar[str] = "none"
    figure_ms: float = 1.0
    kind: Kind = Kind.PREDICTED
    real: str | None = None

    @property
    def stands_for(self):
        return self.real

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def measure(self, model, batch_size, warmup, runs, details):
        if self.figure_ms > 1000:
            raise DoesNotFit("it needs 9 MB of 8", 9.0, 8.0)
        if self.figure_ms < 0:
            raise TargetUnavailable("it was unplugged")
        return Timing((self.figure_ms,) * 2, {}, self.kind)


class Task:
    recipe = "none"
    classes = 10


@pytest.fixture
def networks(monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))

    def of(target):
        return Networks(lambda trial: None, Task(), [target], (32, 32, 3), 1, lambda: Task())

    return of


def test_a_study_does_not_mix_kinds(networks):
    evaluator = networks(Changing())
    config = evaluator.deployed(mnasnet.VARIANTS["tiny"])
    record = evaluator.profile(config)
    assert record["latency"][0]["kind"] == "predicted"
    evaluator.kinds = ["predicted"]
    assert evaluator.profile(config)["latency"][0]["cached"]
    evaluator.targets = [Changing(kind=Kind.MEASURED)]
    with pytest.raises(ValueError, match="measured figures now, this study began with predicted"):
        evaluator.profile(config)


def test_what_does_not_fit_into_the_device_exceeds_a_limit(networks):
    evaluator = networks(Changing(1001.0))
    record = evaluator.profile(evaluator.deployed(mnasnet.VARIANTS["tiny"]))
    assert record["costs"] == [] and record["excess"] == "it needs 9 MB of 8"


def test_a_finalist_is_measured_on_the_device_itself(networks, monkeypatch):
    real = {"phone": Changing(3.0, Kind.MEASURED), "away": Changing(-1.0, Kind.MEASURED)}
    monkeypatch.setattr(spec, "target", real.__getitem__)
    config = networks(Changing()).deployed(mnasnet.VARIANTS["tiny"])
    (there,) = networks(Changing(real="phone")).measure_again(config, "s:1")
    assert (there["kind"], there["median_ms"]) == ("measured", 3.0) and "unchecked" not in there
    (away,) = networks(Changing(real="away")).measure_again(config, "s:1")
    assert (away["kind"], away["median_ms"]) == ("predicted", 1.0)
    assert away["unchecked"] == "it was unplugged"
    names = {(row.name, row.kind) for row in profile_store.rows()}
    assert names == {("s:1", "measured"), ("s:1", "predicted")}
    assert np.isclose(profile_store.rows()[0].median_ms, 3.0)

"""The store of figures: what is written comes back as it was, from several processes at once."""

import dataclasses
import json
import subprocess
import sys
from typing import Any, ClassVar

import pytest

from latency.target import Kind, Target, Timing
from nas.profiling import devices, history


@dataclasses.dataclass(frozen=True)
class Scripted(Target):
    """Gives the figures that it is told: no device."""

    kinds: ClassVar = frozenset(Kind)
    figures: tuple[float, ...] = (1.0, 2.0)
    kind: Kind = Kind.MEASURED
    date: str = "2026-01-01T00:00:00+00:00"

    device: ClassVar[str] = "none"

    def identity(self) -> dict[str, Any]:
        return {}

    def measure(self, model, batch_size, warmup, runs, details):
        return Timing(self.figures, {"date": self.date, "runtime": "r1"}, self.kind)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"network")
    return path


def test_what_is_written_comes_back(model, monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_PROFILES", f"sqlite:///{tmp_path / 'new' / 'p.sqlite'}")
    (measured,) = history.profile(Scripted(), {"a": model})
    history.profile(Scripted(kind=Kind.PREDICTED), {"a": model})
    rows = history.rows()
    assert [(row.name, row.kind) for row in rows] == [("a", "measured"), ("a", "predicted")]
    assert rows[0].latency == measured and rows[0].network == history.digest(model)
    assert [row.kind for row in history.rows(Kind.MEASURED)] == ["measured"]
    assert json.loads(json.dumps(rows[1].latency.to_json()))["measured"] is False


def test_a_figure_is_not_lost_where_it_cannot_be_kept(model, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAS_PROFILES", f"sqlite:///{tmp_path}/file/p.sqlite")
    (latency,) = history.profile(Scripted(), {"a": model})
    assert latency.median_ms == 1.5
    assert "not recorded" in capsys.readouterr().err
    monkeypatch.setenv("NAS_PROFILES", "no url")
    with pytest.raises(ValueError, match="NAS_PROFILES=no url"):
        history.rows()


WRITER = """
import sys
sys.path[:0] = sys.argv[1:3]
from tests.nas.profiling.test_profile_store import Scripted
from nas.profiling import history
latency = Scripted().profile(sys.argv[3])
for _ in range(20):
    history.add(latency, "a", "n")
"""


def test_several_processes_write_at_once(model, monkeypatch, tmp_path, pytestconfig):
    monkeypatch.setenv("NAS_PROFILES", f"sqlite:///{tmp_path / 'p.sqlite'}")
    root = str(pytestconfig.rootpath)
    command = [sys.executable, "-c", WRITER, root, root, str(model)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [writer.communicate(timeout=120)[1] for writer in writers] == ["", "", ""]
    assert len(history.rows()) == 60


def test_drift_compares_a_network_with_its_own_first_time(model, monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_PROFILES", f"sqlite:///{tmp_path / 'p.sqlite'}")
    other = tmp_path / "b.tflite"
    other.write_bytes(b"other")
    first, second = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"
    history.profile(Scripted((2.0,), date=first), {"a": model})
    history.profile(Scripted((50.0,), date=first), {"b": other})
    latency = Scripted((2.2,), date=second).profile(model)
    again = dataclasses.replace(latency, target=repr(Scripted((2.0,), date=first)))
    history.add(again, "a", history.digest(model))
    found = {one["target"]: one["days"] for one in devices.drift(history.rows())}
    days = found[repr(Scripted((2.0,), date=first))]
    assert [day["ratio"] for day in days] == [None, pytest.approx(1.1)]
    assert days[1]["date"] == "2026-02-01" and days[1]["runtimes"] == ["r1"]

"""`nas profile` and `nas devices` as a user runs them: comparison, failures, the way to warm."""

import dataclasses
import json
import re
from typing import Any, ClassVar

import pytest

from latency.measuring import reference_networks
from latency.target import Kind, Latency, Target, TargetUnavailable, Timing
from nas import registry
from nas.cli import command_line
from nas.profiling import devices, history
from nas.report.tables import latency, sustained


@dataclasses.dataclass(frozen=True)
class Warming(Target):
    """Runs nothing; gets slower as it is told: no device."""

    kinds: ClassVar = frozenset({Kind.MEASURED})
    device: ClassVar[str] = "none"

    def identity(self) -> dict[str, Any]:
        return {}

    def measure(self, model, batch_size, warmup, runs, details):
        if "away" in str(model):
            raise TargetUnavailable("it was unplugged")
        if batch_size > 1:
            raise ValueError(f"batch_size={batch_size}: only 1")
        rows = ({"name": "c1", "type": "CONV_2D", "ms": 1.5, "fastest_ms": 1.4},)
        rows += ({"name": "fc", "type": "FULLY_CONNECTED", "ms": 0.5, "fastest_ms": 0.4},)
        ops = {"per_op": rows, "per_op_kind": Kind.MEASURED} if details else {}
        return Timing((2.0, 2.1, 2.2), {"threads": 1}, Kind.MEASURED, **ops)

    def spells(self, model, batch_size, seconds):
        for at in range(30):
            sample = 10.0 * (1 + at / 29)
            conditions = {"at_s": at * seconds / 30, "temperature_c": 30.0 + at}
            yield Timing((sample, sample), conditions, Kind.MEASURED)
            if "stop" in str(model) and at == 9:
                raise KeyboardInterrupt


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.tflite"
    path.write_bytes(reference_networks.network("small"))
    return path


@pytest.fixture
def warming(monkeypatch):
    real = registry.target
    monkeypatch.setattr(
        registry, "target", lambda text: Warming() if text == "warming" else real(text)
    )


def test_networks_and_targets_are_compared(model, warming, tmp_path, capsys):
    other = tmp_path / "other.tflite"
    other.write_bytes(reference_networks.network("large"))
    words = ["profile", str(model), str(other), "--runs", "10", "--ops"]
    assert command_line.main([*words, "--target", "cpu:threads=1", "--target", "warming"]) == 0
    out = capsys.readouterr().out
    first, second = (line for line in out.splitlines() if "other.tflite  cpu" in line
                     or "small.tflite  cpu" in line)  # fmt: skip
    times = float(re.search(r"x([\d.]+)", second)[1])
    assert "x" not in first.split("cpu:threads=1")[1] and times > 2
    assert "cpu:threads=1 is" in out and "runtime LiteRT" in out
    assert re.search(r"CONV_2D +1 +1\.5 +75\.0%", out)
    assert {row.name for row in history.rows()} == {str(model), str(other)}


def test_the_others_stay_where_one_fails(model, warming, tmp_path, capsys):
    away = tmp_path / "away.tflite"
    away.write_bytes(b"")
    assert command_line.main(["profile", str(model), "--target", "warming", "--batch", "1,8"]) == 2
    out, err = capsys.readouterr()
    assert "2.1" in out and "nas: " in err and "batch_size=8: only 1" in err
    assert command_line.main(["profile", str(away), "--target", "warming", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == [] and "it was unplugged" in err


def test_bad_words_are_told(model, capsys):
    for words, told in (
        (["--batch", "0"], "--batch 0: expected whole numbers"),
        (["--sustained", "soon"], "--sustained soon: expected a duration"),
        (["--target", "toaster"], "no target 'toaster'"),
    ):
        assert command_line.main(["profile", str(model), *words]) == 2
        assert told in capsys.readouterr().err
    assert command_line.main(["profile", "nothing.tflite"]) == 2
    assert capsys.readouterr().err == "nas: no file nothing.tflite\n"


def test_from_cold_to_warm(model, warming, tmp_path, capsys):
    plot = tmp_path / "warm.png"
    words = ["profile", str(model), "--target", "warming", "--sustained", "1m", "--out", str(plot)]
    assert command_line.main(words) == 0
    out = capsys.readouterr().out
    # The medians of the first and last three of thirty spells from 10 to 20 ms.
    assert "cold 10.34 ms, warm 19.66 ms: 90% slower" in out
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(history.rows()) == 30
    assert command_line.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["runs"][0]["spells"]) == 30 and told["plot"] == str(plot)


def test_interrupted_it_tells_what_it_has(warming, tmp_path, capsys):
    stop = tmp_path / "stop.tflite"
    stop.write_bytes(b"")
    plot = tmp_path / "warm.png"
    words = ["profile", str(stop), "--target", "warming", "--sustained", "60"]
    assert command_line.main([*words, "--out", str(plot)]) == 130
    assert "cold" in capsys.readouterr().out and plot.exists()


def test_an_estimate_is_written_large():
    estimate = Latency("t", "d", 1, (2.0,), Kind.COMPILED, conditions={"stable": True})
    text = latency.table([{"model": "m", "spec": "tpu:v5e", "latency": estimate}])
    assert "COMPILED" in text and "measured" not in text and "interval" not in text
    assert sustained.table([]) == ""


def test_devices(capsys):
    assert command_line.main(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["missing"] is None and any(one["spec"] == "cpu:threads=1" for one in found)
    assert all(one["kind"] in set(Kind) for one in found)
    assert command_line.main(["devices"]) == 0
    assert "cpu:threads=1" in capsys.readouterr().out


def test_the_history_of_a_device(model, warming, capsys):
    for _ in range(2):
        assert command_line.main(["profile", str(model), "--target", "warming"]) == 0
    capsys.readouterr()
    assert command_line.main(["devices", "--history", "--target", "warming"]) == 0
    out = capsys.readouterr().out
    assert "Warming()" in out and "x1.000" in out
    assert devices.drift([]) == []

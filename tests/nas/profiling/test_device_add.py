"""`nas device add` as a journey: chosen probes, resumption, lost devices, refusals."""

import dataclasses
import functools
import json
from typing import ClassVar

import numpy as np
import pytest

from latency import predicted
from latency.prediction import forest, operation_features, predictor, probe_networks
from latency.target import Kind, Target, TargetUnavailable, Timing
from nas.cli import command_line
from nas.profiling import learn_device, wait_for_device
from search_spaces import mnasnet


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few candidates and few trees; probes are written once."""
    monkeypatch.setattr(learn_device, "_GENERIC", 6)
    monkeypatch.setattr(learn_device, "_FIRST", 5)
    monkeypatch.setattr(forest, "TREES", 8)
    monkeypatch.setattr(probe_networks, "network", _network)


_network = functools.cache(probe_networks.network)


@dataclasses.dataclass(frozen=True)
class Board(Target):
    """A board that is computed: its operations take time by their size, its runtime some more."""

    kinds: ClassVar = frozenset({Kind.MEASURED, Kind.COMPILED})
    kind: Kind = Kind.MEASURED
    tells: bool = True
    failing: str = ""  # "away": once; "refuses": always; "killed": at the third probe
    calls: list = dataclasses.field(default_factory=list, compare=False, repr=False)

    @property
    def device(self) -> str:
        return "a board"

    def identity(self):
        return {"device": self.device}

    def measure(self, model, batch_size, warmup, runs, details) -> Timing:
        self.calls.append(model)
        if self.failing == "away" and len(self.calls) == 2:
            raise TargetUnavailable("the board is unplugged")
        if self.failing == "killed" and len(self.calls) == 3:
            raise KeyboardInterrupt
        if self.failing == "refuses":
            raise ValueError("the runtime has no such operation")
        works, called = operation_features.read(model)
        times = np.array([0.005 + w.macs / 2e7 + w.elements / 4e6 for w in works])
        rows = [
            {"name": name, "type": type_, "ms": ms, "fastest_ms": ms, "within": "graph"}
            for (type_, name), ms in zip(called, times.tolist(), strict=True)
        ]
        conditions = {"runtime": "none 1.0", "date": "2026-11-23T00:00:00+00:00"}
        per_op = tuple(rows) if self.tells else None
        samples = (float(times.sum()) * 1.03 + 0.05,)
        kind = self.kind if self.tells else None
        return Timing(samples, conditions, self.kind, per_op=per_op, per_op_kind=kind)


def add(board, probes=6, name="board", **options):
    options = {"spaces": {}} | options
    return learn_device.learn(name, board, spec="board:1", probes=probes, **options)


def test_a_board_is_learned_and_answers():
    said = []
    report = add(Board(), probes=10, on_event=said.append)
    assert report.probes == 10 and report.finished and report.kind is Kind.MEASURED
    assert len(report.foretold) == 5  # those after the first fit, before their timing
    assert np.median(report.foretold) < 0.5
    last = said[-1].text
    assert "10/10" in last and "predicted" in last and "0:00 left" in last
    assert "predicted:board" in str(report) and "Spearman" in str(report)
    target = predicted.Predicted("board")
    assert target.learned_from == "board:1"
    about = predictor.load(report.directory).about
    assert (about["probes"], about["kind"], about["runtime"]) == (10, "measured", "none 1.0")
    assert about["sources"] == {"probe": 10}


def test_the_first_probes_lie_apart(monkeypatch):
    """What is chosen spreads wider than as many probes in their order."""
    add(Board(), probes=5)
    rows = [json.loads(line) for line in _probes().read_text().splitlines()]
    assert len({row["key"] for row in rows}) == 5
    assert [row["key"] for row in rows] != [f"probe:{number}" for number in range(5)]
    chosen = np.std([np.log(row["ms"]) for row in rows])
    monkeypatch.setattr(learn_device, "_GENERIC", 1)  # no choice
    add(Board(), probes=5, name="unchosen")
    rows = [json.loads(line) for line in _probes("unchosen").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"probe:{number}" for number in range(5)]
    assert chosen > np.std([np.log(row["ms"]) for row in rows])


def test_a_kill_costs_one_probe():
    with pytest.raises(KeyboardInterrupt):
        add(Board(failing="killed"))
    path = _probes()
    assert len(path.read_text().splitlines()) == 2
    with open(path, "a") as file:
        file.write('{"key": "probe:9", "ms": 1')  # cut off
    path.write_text(path.read_text().replace("failing='killed'", "failing=''"))
    said, board = [], Board()
    report = add(board, probes=6, on_event=said.append)
    assert said[0].text == "2 probes are timed already"
    assert len(board.calls) == 4 and report.probes == 6
    again = Board()
    assert add(again, probes=6).probes == 6 and not again.calls


def test_a_board_that_is_away_is_waited_for(monkeypatch):
    monkeypatch.setattr(wait_for_device, "WAIT_FOR_DEVICE_S", 0.01)
    said = []
    assert add(Board(failing="away"), on_event=said.append).finished
    assert "the board is unplugged" in [event.text for event in said]


def test_it_ends_with_what_it_has_when_told_to():
    board = Board()
    report = add(board, probes=40, stop=lambda: len(board.calls) >= 5)
    assert report.probes == 5 and not report.finished
    assert "the same command continues" in str(report)


def test_compiled_figures_are_said_to_be(monkeypatch):
    report = add(Board(kind=Kind.COMPILED, tells=False))
    assert report.kind is Kind.COMPILED
    assert predictor.load(report.directory).about["kind"] == "compiled"
    rows = [json.loads(line) for line in _probes().read_text().splitlines()]
    assert all(row["per_op"] is None for row in rows)


def test_refusals():
    add(Board())
    with pytest.raises(ValueError, match="take another name"):
        add(Board(tells=False), probes=8)
    with pytest.raises(ValueError, match="predicted itself"):
        add(predicted.Predicted("board"), name="copy")
    with pytest.raises(ValueError, match="at least 4"):
        add(Board(), probes=3, name="few")
    with pytest.raises(ValueError, match="no such operation"):
        add(Board(failing="refuses"), name="none")
    failed = [json.loads(line) for line in _probes("none").read_text().splitlines()]
    assert len({row["key"] for row in failed}) == 5 and all("failed" in row for row in failed)
    with pytest.raises(ValueError, match="device name"):
        add(Board(), name="a/b")


def test_a_space_that_there_is_not_is_refused_at_once(capsys):
    words = ["device", "add", "new", "--target", "cpu:threads=1", "--space", "nowhere"]
    assert command_line.main(words) == 2
    assert "no space 'nowhere'" in capsys.readouterr().err
    assert not predicted.directory("new").exists()


@pytest.mark.slow  # Keras builds the candidates: about a second each
def test_half_of_the_probes_are_of_the_space(monkeypatch):
    monkeypatch.setattr(learn_device, "_SPACE", 2)
    report = add(Board(), probes=4, spaces={"mnasnet": mnasnet})
    assert predictor.load(report.directory).about["sources"] == {"probe": 2, "mnasnet": 2}


def _probes(name="board"):
    return predicted.directory(name) / "probes.jsonl"

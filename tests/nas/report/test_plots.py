"""Plots say what they are drawn from, as PNG and as SVG; tables are as wide as they must be."""

import xml.etree.ElementTree as ElementTree

import pytest

from latency.target import Kind, Latency
from nas.report.html import charts
from nas.report.plots import compression, figure, latency, scaling, sensitivity, sustained, training
from nas.report.tables.columns import columns

SENSITIVITY = [{"layer": None, "loss": 0.5}, {"layer": "stem", "loss": 0.7}]
SENSITIVITY += [{"layer": "head", "loss": 0.55}]
COMPRESSION = {
    "model": "net",
    "methods": ["PTQ(bits=4)"],
    "metric": "accuracy",
    "before": {"quality": 0.95, "params": 1000, "nonzeros": 900},
    "after": {"quality": 0.94, "params": 1000, "nonzeros": 450},
    "files": [{"path": "a.tflite", "before": {"bytes": 4000}, "after": {"bytes": 1000}}],
    "sensitivity": SENSITIVITY,
}


def _history(epochs=3):
    return [
        {
            "number": n, "step": 10 * n, "losses": [1.0 / n, 0.9 / n], "loss": 0.95 / n,
            "valid_loss": 1.0 / n, "quality": 1 - 0.3 / n, "rates": [1e-3, 5e-4],
            "seconds": 2.0 * n,
        }
        for n in range(1, epochs + 1)
    ]  # fmt: skip


def _rung(budget_ms):
    one = {"ms": 0.97 * budget_ms, "quality": 0.8, "qualities": [0.79, 0.81], "depth": 1.0}
    one |= {"width": 1.2, "pixels": 32, "miss": -0.03, "params": 10, "macs": 1e6}
    return {"budget_ms": budget_ms, "same": False, "lacs": one, "single": one | {"quality": 0.7}}


TRAINING = {"history": _history(), "epoch": 2, "metric": "accuracy", "network": "net"}
TRAINING |= {"task": "npz:/a/b/data.npz", "params": 123}
FAMILY = {"rungs": [_rung(2.0), _rung(4.0)], "base": "net", "task": "digits", "kind": "measured"}
FAMILY |= {"target": "cpu", "device": "a $5 board $"}
TIMED = Latency("cpu", "a CPU", 1, (2.0, 2.1, 2.2), Kind.MEASURED, conditions={"at_s": 1.0})
ROWS = [{"model": "net", "spec": "cpu", "latency": TIMED}]
RUNS = [{"label": "net on cpu", "spells": [TIMED, TIMED]}]
PLOTS = {
    "compression": (
        compression,
        COMPRESSION,
        ["94.00 % after 95.00 %", "4.00k to 1.00k"],
    ),
    "family": (scaling, FAMILY, ["LACS better on 2 of 2 budgets", "a $5 board $", "w 1.20"]),
    "latency": (latency, ROWS, ["net on cpu", "2.10"]),
    "sensitivity": (sensitivity, COMPRESSION, ["PTQ(bits=4)", "stem", "head"]),
    "sustained": (sustained, RUNS, ["No change from cold to warm", "a CPU"]),
    "training": (training, TRAINING, ["net on npz:data.npz", "85.00 %", "epoch 2 of 3", "6.0 s"]),
}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_says_what_it_is_drawn_from(name, tmp_path):
    module, record, facts = PLOTS[name]
    drawing = module.draw(record)
    element = figure.svg(drawing)
    text = "\n".join(ElementTree.fromstring(element).itertext())
    assert element.startswith("<svg") and all(fact in text for fact in facts), text
    path = figure.save(tmp_path / "new" / "plot.png", module.draw(record))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]


def test_a_picture_that_cannot_be_written_leaves_the_one_of_before(tmp_path, monkeypatch):
    path = figure.save(tmp_path / "plot.png", latency.draw(ROWS))
    before = path.read_bytes()

    class Broken:
        def savefig(self, file, format):
            file.write_bytes(b"half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        figure.save(path, Broken())
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_marks_of_trials_get_their_numbers_and_colours_their_names():
    drawing = figure.frame(width=4, height=3)
    axes = drawing.subplots()
    axes.scatter([1, 2, 3], [1, 2, 3], c=[figure.FRONT, figure.WINNER, "#123456"], gid="n:4,7,11")
    axes.plot([2], [1], "*", color=figure.BUDGET, gid="n:9")
    element = charts.inline(drawing, 'a "chart"')
    root = ElementTree.fromstring(element.replace("xlink:", ""))
    marks = {mark.get("data-n"): mark.get("style") for mark in root.iter() if mark.get("data-n")}
    assert list(marks) == ["4", "7", "11", "9"]
    for number, color in (("4", "var(--front)"), ("7", "var(--winner)"), ("11", "#123456")):
        assert color in marks[number]
    assert root.get("aria-label") == 'a "chart"' and root.get("width") is None
    assert "http" not in element and "metadata" not in element


def test_tables_keep_numbers_whole_and_drop_empty_columns():
    cells = [["network", "ms", "MB", "note"], ["x" * 150, "1.5", "", "[bold]as it is[/]"]]
    cells.append(["b", "12", "-", "one two three four five six"])
    head, wide, narrow = columns(cells)
    assert head.split() == ["network", "ms", "note"] and "x" * 150 in wide
    assert wide.endswith("[bold]as it is[/]") and narrow.split()[:2] == ["b", "12"]
    assert wide.index("1.5") + 3 == narrow.index("12") + 2  # numbers to the right
    folded = columns([["a", "note"], ["1", "one two three four five six"]], width=20)
    assert len(folded) > 2 and max(map(len, folded)) <= 20
    styled = columns(cells, styles=["dim", "bold green", ""], color=True)
    assert "\033[1;32m" in styled[1] and not any("\033" in line for line in columns(cells))

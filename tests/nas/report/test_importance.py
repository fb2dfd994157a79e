"""The claims of the report: main effects against truth, and how figures and configs are written."""

import re

import numpy as np
import pytest

from nas.report import format, scales
from nas.report.html import architecture, importance

BLOCKS = 8


def test_effects_find_what_was_put_in_as_often_as_they_claim():
    worth = {"op": {"a": -2.0, "b": 0.0, "c": 2.0}, "kernel": {3: 0.0, 5: 1.0}}
    worth["noise"] = {1: 0.0, 2: 0.0}
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        choices = [{k: list(v)[rng.integers(len(v))] for k, v in worth.items()} for _ in range(100)]
        values = [sum(worth[k][v] for k, v in c.items()) + rng.normal(0, 0.5) for c in choices]
        found = importance.effects(choices, values)
        assert not found.refusal and found.trials == 100 and found.explained > 0.8
        assert [decision.name for decision in found.decisions] == ["op", "kernel", "noise"]
        for decision in found.decisions:
            true = worth[decision.name]
            mean = np.mean([true[c[decision.name]] for c in choices])
            for level in decision.levels:
                assert level.effect == pytest.approx(true[level.choice] - mean, abs=0.35)
                covered.append(level.low <= true[level.choice] - mean <= level.high)
    assert 0.9 < np.mean(covered) < 0.99  # of intervals that say 95 %


def test_leave_one_out_is_what_leaving_one_out_gives():
    """The closed form against 30 fits with the same ridge, recovered from the posterior mean."""
    rng = np.random.default_rng(1)
    choices = [{"a": int(rng.integers(3)), "b": int(rng.integers(2))} for _ in range(30)]
    y = np.array([c["a"] + 0.5 * c["b"] + rng.normal(0, 0.3) for c in choices])
    groups = importance._groups(choices)
    hot = np.concatenate([g[2] for g in groups], axis=1).astype(float)
    fit = importance._Fit(hot, y)

    def predict(x, target, at, ridge):
        center = x.mean(axis=0)
        gram = (x - center).T @ (x - center) + ridge * np.eye(x.shape[1])
        weight = np.linalg.solve(gram, (x - center).T @ (target - target.mean()))
        return target.mean() + (at - center) @ weight, weight

    ridge = min(
        np.logspace(-4, 5, 91), key=lambda r: np.abs(predict(hot, y, hot[0], r)[1] - fit.mean).max()
    )
    rest = [np.arange(30) != i for i in range(30)]
    error = [y[i] - predict(hot[k], y[k], hot[i], ridge)[0] for i, k in enumerate(rest)]
    alone = [y[i] - y[k].mean() for i, k in enumerate(rest)]
    expected = 1 - np.square(error).sum() / np.square(alone).sum()
    assert fit.explained == pytest.approx(expected, abs=1e-3)


def test_nothing_is_claimed_from_little_or_from_noise():
    rng = np.random.default_rng(0)
    choices = [{"op": str(rng.integers(3)), "kernel": int(rng.integers(2))} for _ in range(200)]
    few = importance.effects(choices[:10], rng.normal(size=10))
    assert "needs 20 networks, there are 10" in few.refusal and not few.decisions
    assert "too little" in importance.effects(choices, rng.normal(size=200)).refusal
    assert "same value" in importance.effects(choices, [0.5] * 200).refusal
    assert "more than one choice" in importance.effects([{"op": 1}] * 30, range(30)).refusal


def test_effects_of_the_real_table_are_those_of_its_average(shared_data):
    """NAS-Bench-Macro is complete, so the true main effects are plain averages."""
    table = np.load(shared_data / "nas" / "nasbench_macro.npz")
    arch, quality = table["arch"], table["mean_acc"].astype(float)
    some = np.random.default_rng(0).permutation(len(arch))[:500]
    choices = [{f"block{b}": int(arch[i][b]) for b in range(BLOCKS)} for i in some]
    found = importance.effects(choices, quality[some])
    inside = total = 0
    for decision in found.decisions:
        column = arch[:, int(decision.name[-1])]
        sample = column[some]
        means = np.array([quality[column == option].mean() for option in range(3)])
        average = means @ np.array([(sample == option).mean() for option in range(3)])
        for level in decision.levels:
            total += 1
            inside += level.low <= means[level.choice] - average <= level.high
    assert not found.refusal and inside >= 0.8 * total


def test_architecture_is_read_and_never_run(tmp_path):
    mark = tmp_path / "ran"
    config = (
        f"Config(classes=10, blocks=(Block(op=open({str(mark)!r}, 'w'), kernel=3), Block(op='b')))"
    )
    plain, tables = architecture.read(config)
    assert plain == {"classes": "10"}
    assert tables[0].columns == ("op", "kernel") and tables[0].rows[0]["kernel"] == 3
    assert not mark.exists()
    assert architecture.read("not python (") == ({}, [])
    marked = architecture.html("C(b=(B(k=5, f=1), B(k=3, f=2)))", "C(b=(B(k=3, f=1), B(k=3, f=2)))")
    assert marked.count("changed") == 1 and 'title="baseline: 3"' in marked


def test_config_is_laid_out_without_changing_it():
    config = "Config(classes=10, blocks=(" + "Block(op='mbconv', kernel=5, filters=24), " * 9 + "))"
    shaped = architecture.python(config)
    assert max(map(len, shaped.splitlines())) <= 100 and len(shaped.splitlines()) > 9
    assert re.sub(r"\s|,(?=\s*\))", "", shaped) == re.sub(r"\s|,(?=\s*\))", "", config)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0001234, "0.000123"), (0.1, "0.100"), (0.9999, "1.00"), (1.005, "1.00"), (99.96, "100"),
     (1234.5, "1,234"), (0, "0"), (None, "-"), (-0.5, "-0.500")],
)  # fmt: skip
def test_figures_have_three_digits(value, text):
    assert format.figure(value) == text


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.3, 40, True), (1.1, 1.2, False), (0, 7e4, False)]
)
def test_ticks_are_round_and_inside(low, high, log):
    found = scales.ticks(low, high, log=log)
    assert 3 <= len(found) <= 9 and all(low <= tick <= high for tick in found)
    assert all(len(f"{tick:.10g}".strip("0.").replace(".", "")) <= 5 for tick in found)

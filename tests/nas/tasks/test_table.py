"""Tabular benchmarks: reading, sampling, looking up, and the real loop over them."""

import json

import numpy as np
import optuna
import pytest

from nas import pareto, registry
from nas.cli.command_line import main
from nas.locks import Flock
from nas.searching import loop
from nas.searching.leases import Worker
from nas.searching.objective import Objective
from nas.searching.result import Study
from nas.searching.table_evaluator import TableEvaluator
from nas.tasks.table import load

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_nasbench201(shared_data):
    table = load(shared_data / "nas" / "nasbench201_cifar100.npz", cost="raspi4+mflops_cifar100")
    assert table.complete and table.candidates is None
    assert table.cost_names == ("raspi4", "mflops_cifar100")
    assert len(table.codes) == 5**6 and table.observed.max() == pytest.approx(0.7351, abs=1e-4)
    best = table.config_of(int(table.observed[:, 0].argmax()))
    trial = optuna.trial.FixedTrial(dict(best.choices))
    assert table.sample(trial) == best
    assert table.quality(best) == pytest.approx(0.7351, abs=1e-4)
    assert len(table.costs(best)) == 2
    candidate = TableEvaluator(table).candidate(trial)
    record = TableEvaluator(table).profile(candidate)
    assert candidate.config == best and record["costs"] == list(table.costs(best))
    assert dict(best.choices)["edge_0_1"] == "nor_conv_3x3"


def test_macro_observes_one_of_three_runs(shared_data):
    path = shared_data / "nas" / "nasbench_macro.npz"
    tables = [load(path, seed=seed) for seed in range(20)]
    config = tables[0].config_of(5000)
    seen = {table.observed_quality(config) for table in tables}
    assert seen == set(tables[0].observed[5000])  # over seeds, every run; in one table, always one
    assert tables[3].observed_quality(config) == tables[3].observed_quality(config)
    assert tables[0].quality(config) == pytest.approx(np.mean(sorted(seen)), abs=0.002)
    assert tables[0].quality(config, 1) in seen


def test_accel_snaps_to_the_nearest_row(shared_data):
    table = load(shared_data / "nas" / "accel_nasbench_dev.npz", cost="tpuv3")
    assert not table.complete and len(table.candidates) == len(table.codes)
    assert np.isfinite(table.known_costs).all() and (table.known_costs > 0).all()
    config = table.config_of(7)
    assert table.sample(optuna.trial.FixedTrial(table.candidates[7])) == config
    rng = np.random.default_rng(0)
    for _ in range(5):
        params = {name: rng.choice(places).item() for name, places in table.choices.items()}
        candidate = TableEvaluator(table).candidate(optuna.trial.FixedTrial(params))
        snapped = candidate.config
        differ = [
            sum(params[n] != value for n, value in table.config_of(row).choices)
            for row in range(len(table.codes))
        ]
        assert snapped.row == int(np.argmin(differ))
        record = TableEvaluator(table).profile(candidate)
        assert record["canonical"] == dict(snapped.choices)


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "mine.csv"
    rows = [f"{k},{e},{50 + 5 * (k == 5) + e},{k * e}.5,{e}" for k in (3, 5) for e in (1, 4, 6)]
    path.write_text("kernel,expand,quality,pixel_ms,cost_mb\n" + "\n".join([*rows, ""]))
    return path


def test_a_table_of_ones_own(csv_file, tmp_path):
    table = load(csv_file)
    assert dict(table.choices) == {"kernel": (3, 5), "expand": (1, 4, 6)}
    assert table.cost_names == ("pixel_ms", "cost_mb") and table.complete
    config = table.sample(optuna.trial.FixedTrial({"kernel": 5, "expand": 4}))
    assert table.quality(config) == pytest.approx(0.59)  # percent become shares
    assert table.costs(config) == (20.5, 4.0)
    columns = {name: np.array([row[i] for row in rows(csv_file)]) for i, name in enumerate(header)}
    np.savez(tmp_path / "mine.npz", **columns)
    same = load(tmp_path / "mine.npz", cost="pixel_ms")
    assert same.cost_names == ("pixel_ms",)
    np.testing.assert_array_equal(same.observed, table.observed)


header = ("kernel", "expand", "quality", "pixel_ms", "cost_mb")


def rows(path):
    return [[float(v) for v in line.split(",")] for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,quality\n1,0.5\n", {}, "no cost column"),
        ("a,cost\n1,0.5\n", {}, "no quality 'quality'"),
        ("a,quality,cost\n1,0.5,2\n", {"cost": "energy"}, "no cost 'energy'"),
        ("a,quality,cost\n1,0.5\n", {}, "row 2 has 2 values"),
        ("a,quality,cost\n1,nan,3\n", {}, "no row with both"),
        ("a,quality,cost\n", {}, "no rows"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, text, options, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(path, **options)
    with pytest.raises(ValueError, match="cannot read"):
        load(tmp_path / "absent.npz")


@pytest.mark.parametrize("controller", ["random", "surrogate"])
def test_the_search_loop_trains_no_network_twice(csv_file, tmp_path, controller):
    table = registry.task(f"table:{csv_file},cost=pixel_ms")
    objective = Objective((np.inf,))
    study = optuna.create_study(
        directions=objective.directions, sampler=registry.controller(controller, seed=0)
    )
    trained = []
    worker = Worker(Flock(tmp_path), "s")
    loop.explore(
        study,
        TableEvaluator(table),
        objective,
        trials=6,
        worker=worker,
        on_event=lambda e: e.kind == "trained" and trained.append(e.trial.user_attrs["profile"]),
    )
    worker.leave()
    assert sorted(record["key"] for record in trained) == sorted({r["key"] for r in trained})
    assert len(trained) == 6
    losses = np.column_stack([-table.observed[:, 0], table.known_costs[:, 0]])
    best = {tuple(trial.values) for trial in study.best_trials}  # copies of a network count once
    assert pareto.front(losses).sum() == len(best)


def test_a_search_over_several_columns_needs_no_flag(csv_file, tmp_path, capsys):
    """Budgets, objectives and the report follow the columns of the table."""
    flags = ["search", "--task", f"table:{csv_file}", "--reward", "pareto", "--trials", "4"]
    assert main([*flags, "--out", str(tmp_path), "--study", "s", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [target["spec"] for target in content["targets"]] == ["pixel_ms", "cost_mb"]
    assert len(content["winner"]["costs"]) == 2
    assert main(["show", str(tmp_path / "s")]) == 0
    assert "pixel_ms" in capsys.readouterr().out
    budgets = ["--budget-ms", "20", "--budget-ms", "min"]
    assert main([*flags[:3], *budgets, "--trials", "3", "--out", str(tmp_path)]) == 0
    assert main([*flags, "--out", str(tmp_path), "--study", "s", "--target", "cpu"]) == 2


def test_named_columns_of_a_benchmark(shared_data, tmp_path, capsys):
    table = shared_data / "nas" / "nasbench201_cifar100.npz"
    flags = ["search", "--task", f"table:{table},cost=raspi4+1080ti_1", "--reward", "pareto"]
    assert main([*flags, "--trials", "5", "--out", str(tmp_path), "--study", "s", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [target["spec"] for target in content["targets"]] == ["raspi4", "1080ti_1"]
    found = Study.load(tmp_path / "s")
    costs = [one.costs for one in found.front]
    assert costs == sorted(costs) and all(len(one) == 2 for one in costs)
    assert found.winner.number == content["winner"]["number"]
    with pytest.raises(ValueError, match="no best.keras"):
        found.winner.model  # noqa: B018
    assert main(["export", str(tmp_path / "s")]) == 2
    assert "no networks to export" in capsys.readouterr().err

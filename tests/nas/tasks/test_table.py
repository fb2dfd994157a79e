"""Tabular benchmarks: reading, sampling, looking up, and the real loop over them."""

import numpy as np
import optuna
import pytest

from nas import pareto, registry
from nas.searching import loop
from nas.searching.journal import Worker
from nas.searching.loop import Objective
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
    assert len(table.costs(best)) == 2 and table.profile(best)["costs"] == list(table.costs(best))
    assert dict(best.choices)["edge_0_1"] == "nor_conv_3x3"


def test_macro_observes_one_of_three_runs(shared_data):
    path = shared_data / "nas" / "nasbench_macro.npz"
    tables = [load(path, seed=seed) for seed in range(20)]
    config = tables[0].config_of(5000)
    seen = {table.train(config)["quality"] for table in tables}
    assert seen == set(tables[0].observed[5000])  # over seeds, every run; in one table, always one
    assert tables[3].train(config) == tables[3].train(config)
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
        snapped = table.sample(optuna.trial.FixedTrial(params))
        differ = [
            sum(params[n] != value for n, value in table.config_of(row).choices)
            for row in range(len(table.codes))
        ]
        assert snapped.row == int(np.argmin(differ))
        assert table.profile(snapped)["canonical"] == dict(snapped.choices)


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
    worker = Worker(tmp_path)
    loop.explore(
        study,
        table,
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

"""Families of scaled networks: published laws, landing on budgets, the command, resuming."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import keras
import optuna
import pytest

from families import efficientnet, efficientnet_x, mnasnet
from families.layers import shapes_only
from latency.networks.count import count
from nas.cli.command_line import main
from nas.cli.scale import base_of
from nas.files.readers import config_file
from nas.files.writers.config_file import as_python
from nas.scaling import scaled_space
from nas.scaling.compound_scaling import (
    LACS_GPU,
    LACS_TPU,
    SINGLE_OBJECTIVE,
    Factors,
    fitted,
    scaling_of,
)
from nas.scaling.width_search import LANDED, Lander, solve
from nas.searching import journal
from nas.searching.storage import open_storage

TINY = dataclasses.replace(mnasnet.VARIANTS["tiny"], input_shape=(32, 32, 1))
LEVELS = [f"b{level}" for level in range(1, 8)]
BASE_PIXELS = 224
PUBLISHED = {
    name: {
        level: Factors(depth, width, pixels / BASE_PIXELS)
        for level, (width, depth, pixels) in ((level, table[key(level)][:3]) for level in LEVELS)
    }
    for name, table, key in (
        ("efficientnet", efficientnet.SCALES, str),
        ("tpu", efficientnet_x.LACS, "tpu-{}".format),
        ("gpu", efficientnet_x.LACS, "gpu-{}".format),
    )
}
SMALL = mnasnet.Config(  # what a search may have found: of few layers, for quick tests
    input_shape=(16, 16, 1),
    classes=10,
    stem_filters=16,
    stem_stride=2,
    blocks=(
        mnasnet.Block("depthwise", kernel=3, stride=1, filters=16, repeats=1),
        mnasnet.Block("mbconv", kernel=3, stride=2, filters=32, repeats=1, expand=3),
    ),
    head_filters=32,
    dropout=0.0,
    norm_momentum=0.9,
)


def macs(config: mnasnet.Config) -> float:
    """Multiply-adds: the cost of a target that is exact and needs no network built."""
    side, _, channels = config.input_shape
    side, total = -(-side // config.stem_stride), 0
    total += side**2 * 9 * channels * config.stem_filters
    channels = config.stem_filters
    for block in config.blocks:
        for repeat in range(block.repeats):
            wide, before = channels * block.expand, side
            side = side if repeat else -(-side // block.stride)
            total += before**2 * channels * wide if block.expand > 1 else 0
            total += side**2 * wide * (block.kernel**2 + block.filters)
            total += 2 * wide * max(1, int(channels * 0.25)) if block.se_ratio else 0
            channels = block.filters
    total += side**2 * channels * config.head_filters
    return float(total + config.head_filters * config.classes)


def test_the_cost_of_these_tests_is_that_of_the_networks():
    for factors in (Factors(), Factors(1.3, 1.6, 0.8)):
        with shapes_only():
            assert macs(factors.of(TINY)) == count(mnasnet.build(factors.of(TINY))).macs


@pytest.mark.parametrize(("name", "law", "levels"), [("gpu", LACS_GPU, 7), ("tpu", LACS_TPU, 4)])
def test_the_power_law_gives_the_rows_that_follow_it(name, law, levels):
    for level in LEVELS[:levels]:
        row, found = PUBLISHED[name][level], law(PUBLISHED["efficientnet"][level].phi)
        assert abs(found.depth - row.depth) <= 0.05, level
        assert abs(found.width - row.width) <= 0.05, level
        pixels = round(BASE_PIXELS * found.resolution) - round(BASE_PIXELS * row.resolution)
        assert abs(pixels) <= 2, level


def test_the_larger_tpu_networks_leave_the_law():
    for level in LEVELS[4:]:
        row, found = PUBLISHED["tpu"][level], LACS_TPU(PUBLISHED["efficientnet"][level].phi)
        assert row.width > found.width + 0.05 and row.depth < found.depth - 0.05
        smaller = BASE_PIXELS * (found.resolution - row.resolution)
        assert smaller > 2 or level == "b5"


@pytest.mark.parametrize(("name", "law", "levels"), [("gpu", LACS_GPU, 7), ("tpu", LACS_TPU, 4)])
def test_a_law_is_fitted_to_rows(name, law, levels):
    phis = [PUBLISHED["efficientnet"][level].phi for level in LEVELS[:levels]]
    found = fitted(zip(phis, PUBLISHED[name].values(), strict=False))
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(law), abs=0.005)
    exact = fitted((phi, SINGLE_OBJECTIVE(phi)) for phi in phis)
    assert dataclasses.astuple(exact) == pytest.approx((1.2, 1.1, 1.15))
    with pytest.raises(ValueError, match="larger or smaller"):
        fitted([(0.0, Factors())])


def test_mnasnet_scales():
    for name, config in mnasnet.VARIANTS.items():
        assert mnasnet.scaled(config) == config, name
    assert mnasnet.scaled(mnasnet.VARIANTS["a1"], width=1.4) == mnasnet.VARIANTS["a1_x1.4"]
    larger = mnasnet.scaled(TINY, depth=1.2, width=1.5, resolution=40)
    assert larger.input_shape == (40, 40, 1) and larger.stem_filters == 24
    assert [block.repeats for block in larger.blocks] == [2, 3, 3, 3, 2]
    assert [block.filters for block in larger.blocks] == [24, 40, 48, 72, 96]
    assert larger.blocks[-1].skip == "identity"  # its second layer can have one
    with pytest.raises(ValueError, match="width factor"):
        mnasnet.scaled(TINY, width=0.0)


def test_multiples_of_four_stay_possible():
    blocks = (dataclasses.replace(TINY.blocks[0], filters=12), *TINY.blocks[1:])
    fine = dataclasses.replace(TINY, blocks=blocks)
    assert mnasnet.scaled(fine) == fine
    assert mnasnet.scaled(fine, width=1.4).blocks[0].filters == 16


def test_efficientnet_scales_as_finely():
    from families import efficientnet

    b0 = efficientnet.VARIANTS["b0"]
    assert Factors().of(b0) == b0
    fine = efficientnet.scaled(b0, width=1.2, divisor=4)
    assert fine.blocks[0].filters == 20 != efficientnet.scaled(b0, width=1.2).blocks[0].filters
    assert Factors(1.2, 1.1, 260 / 224).of(b0).blocks == efficientnet.VARIANTS["b2"].blocks
    tiny = efficientnet.VARIANTS["tiny"]
    assert Factors(2.0, 1.5, 0.5).of(tiny).input_shape[0] == round(tiny.input_shape[0] / 2)


def test_a_family_without_scaling_says_so():
    from families import vit

    with pytest.raises(ValueError, match="vit networks cannot be scaled"):
        scaling_of(vit.VARIANTS["tiny"])


@pytest.mark.parametrize("times", [0.5, 1.3, 2.0, 5.0])
def test_widths_land(times):
    budget = times * macs(TINY)
    for depth, resolution in ((1.0, 1.0), (2.0, 0.75), (0.5, 1.25)):
        landing = Lander(TINY, macs).width(depth, resolution, budget)
        assert landing.cost == macs(landing.config) <= budget
        assert landing.landed(budget), landing.cost / budget
        assert landing.config == landing.factors.of(TINY)
        assert landing.factors.depth == depth
        assert abs(landing.config.input_shape[0] - 32 * resolution) <= 1


@pytest.mark.parametrize("times", [0.7, 1.0, 2.0, 3.0, 8.0])
def test_single_objective_scaling_lands(times):
    budget = times * macs(TINY)
    phi, landing = Lander(TINY, macs).compound(SINGLE_OBJECTIVE, budget)
    assert landing.landed(budget), landing.cost / budget
    # The depth of phi, and its resolution to the whole pixels that there are.
    assert landing.factors.depth == pytest.approx(SINGLE_OBJECTIVE(phi).depth)
    assert landing.config.input_shape[0] == pytest.approx(
        32 * SINGLE_OBJECTIVE(phi).resolution, abs=1.5
    )


def test_landing_measures_few_networks():
    asked = []

    def cost(config):
        asked.append(config)
        return macs(config)

    Lander(TINY, cost).width(1.0, 1.0, 2.0 * macs(TINY))
    assert len(set(asked)) <= 8


def test_out_of_reach_is_the_nearest():
    landing = Lander(TINY, macs).width(1.0, 1.0, 1.0)  # one multiply-add
    assert landing.cost > 1.0 and not landing.landed(1.0)
    assert landing.factors.width < 0.1


def test_steps_larger_than_the_budget_end_below_it():
    def line(place: float):
        return Lander(TINY, macs).at(Factors(depth=2.0 if place > 1 else 1.0))

    budget = 1.2 * macs(TINY)
    landing = solve(line, budget, 0.0, (-2, 3), slope=1.0)
    assert landing.config == TINY and landing.cost < LANDED[0] * budget


def test_a_found_network_is_read_back_and_not_run(tmp_path):
    config = dataclasses.replace(TINY, classes=7)
    (tmp_path / "config.py").write_text(as_python(config))
    assert config_file.read(tmp_path) == config
    assert base_of(str(tmp_path)) == config
    for text in (
        "import os\nconfig = os.system('touch x')",
        "from families.mnasnet import Config\n\nconfig = Config.__init__(1)",
        "from families.mnasnet import Config\n\nconfig = print(1)",
        "from families.mnasnet import Block\n\nconfig = 3",
        "from families.mnasnet import Config\n\nconfig = Config(classes=1)",
        "from os import path\n\nconfig = path()",
        "config = (",
    ):
        (tmp_path / "config.py").write_text(text)
        with pytest.raises(ValueError, match=str(tmp_path)):
            config_file.read(tmp_path)
    with pytest.raises(ValueError, match="has no config.py"):
        config_file.read(tmp_path.parent)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--budget-ms", "2,x"], "--budget-ms 2,x"),
        (["--budget-ms", "0"], "--budget-ms 0"),
        (["--seeds", "a"], "--seeds a"),
        (["--trials", "0"], "--trials 0"),
        (["--minutes", "0"], "--minutes 0"),
        (["--target", "cpo"], "no target 'cpo'"),
        (["--task", "digit"], "no task 'digit'"),
    ],
)
def test_bad_flags_are_one_line(capsys, tmp_path, flags, expected):
    command = ["scale", "mnasnet:tiny", "--budget-ms", "1", "--task", "digits"]
    assert main([*command, "--out", str(tmp_path / "family"), *flags]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not (tmp_path / "family").exists()


@pytest.mark.parametrize("base", ["vit:tiny", "mnasnet:huge", "none/config.py"])
def test_bases_that_cannot_be_scaled_are_one_line(capsys, tmp_path, base):
    command = ["scale", base, "--budget-ms", "1", "--task", "digits"]
    assert main([*command, "--out", str(tmp_path / "family")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "family").exists()


BUDGETS = (0.008, 0.016)


def command(folder, *flags) -> list[str]:
    """Two rungs above a network that a search left in a folder."""
    found = folder.parent / "found"
    found.mkdir(exist_ok=True)
    (found / "config.py").write_text(as_python(SMALL))
    return ["scale", str(found), "--budget-ms", ",".join(map(str, BUDGETS)), "--task", "digits",
            "--out", str(folder), "--trials", "2", "--epochs", "1", *flags]  # fmt: skip


def finished(folder) -> dict[int, dict]:
    """Networks that a rung trained: number of the trial -> its parameters and quality."""
    if not (folder / journal.JOURNAL).exists():
        return {}
    try:
        study = optuna.load_study(study_name=folder.name, storage=open_storage(folder))
    except KeyError:
        return {}
    return {
        trial.number: {"params": trial.params, **trial.user_attrs["evaluation"]}
        for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    }


@pytest.mark.slow
def test_a_family_from_the_command_line(tmp_path, capsys, monkeypatch):
    family = tmp_path / "family"
    monkeypatch.setattr(scaled_space, "SILENCE", 0.0)
    assert main(command(family, "--json", "--seeds", "3")) == 0
    printed = capsys.readouterr()
    assert "timed 2 networks, the last takes" in printed.err
    content = json.loads(printed.out)
    assert content == json.loads((family / "result.json").read_text())
    assert [rung["budget_ms"] for rung in content["rungs"]] == [*BUDGETS]
    assert content["kind"] == "measured"
    from latency.tflite import convert

    for rung in content["rungs"]:
        assert len(finished(family / f"{rung['budget_ms']:g}ms")) >= 1
        for kind, stem in (("lacs", ""), ("single", "_single")):
            one, files = rung[kind], family / f"{rung['budget_ms']:g}ms{stem}"
            assert one["kind"] == "measured" and one["seeds"] == [3]
            config = config_file.read(files.with_name(files.name + ".py"))
            assert repr(config) == one["config"]
            assert config == Factors(one["depth"], one["width"], one["resolution"]).of(SMALL)
            model = keras.models.load_model(f"{files}.keras", compile=False)
            assert model.input_shape[1:] == config.input_shape
            assert count(model).trainable_params == one["params"]
            session = convert.load(f"{files}.tflite")
            assert tuple(session.get_input_details()[0]["shape"][1:]) == config.input_shape
        assert rung["lacs"]["quality"] >= rung["single"]["quality"]
    assert (family / "ladder.png").stat().st_size > 10_000
    names = {}
    exec((family / "family.py").read_text(), names)
    assert list(names["VARIANTS"]) == ["0.008ms", "0.016ms"]
    assert repr(names["VARIANTS"]["0.016ms"]) == content["rungs"][1]["lacs"]["config"]
    # The same again does nothing anew, and prints the table.
    before = {path: path.stat().st_mtime_ns for path in family.rglob("finals/*")}
    assert main(command(family, "--seeds", "3")) == 0
    assert {path: path.stat().st_mtime_ns for path in family.rglob("finals/*")} == before
    table = capsys.readouterr().out
    assert "single-objective" in table and "LACS" in table
    assert main(["export", str(family / "0.008ms")]) == 2
    assert f"whose networks are all in {family}" in capsys.readouterr().err
    # What would be another family is refused.
    assert main([*command(family), "--input", "20"]) == 2
    assert "holds another study" in capsys.readouterr().err
    found = tmp_path / "found" / "config.py"
    flags = command(family)
    found.write_text(as_python(dataclasses.replace(SMALL, head_filters=48)))
    assert main(flags) == 2
    assert "another base network" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_it_goes_on(tmp_path):
    family = tmp_path / "family"
    arguments = [sys.executable, "-m", "nas", *command(family, "--budget-ms", "0.008")]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(arguments, **silent, env=dict(os.environ))
    while not finished(family / "0.008ms"):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(family / "0.008ms")
    again = subprocess.run(arguments, capture_output=True, text=True, env=dict(os.environ))
    assert again.returncode == 0, again.stderr[-2000:]
    after = finished(family / "0.008ms")
    assert before.items() <= after.items()
    rungs = json.loads((family / "result.json").read_text())["rungs"]
    assert [rung["budget_ms"] for rung in rungs] == [0.008] and len(after) == 2

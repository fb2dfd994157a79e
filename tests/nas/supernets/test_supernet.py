"""Shared weights: a network taken out of the supernet is the one that was judged in it."""

import dataclasses
import functools
import json
import signal
import time

import numpy as np
import pytest

from families.mnasnet import Block, Config
from nas import backend, interruption, registry
from nas.cli.command_line import main
from nas.cli.search import _one_shot
from nas.events import ignore
from nas.files.writers.litert import read_codes
from nas.tasks import digits

keras = backend.load()

from shared_weights import alone, choices, outputs, varied, with_weights  # noqa: E402

from nas.locks import Flock  # noqa: E402
from nas.networks import build  # noqa: E402
from nas.searching import study  # noqa: E402
from nas.searching.candidate import Candidate  # noqa: E402
from nas.searching.leases import Worker  # noqa: E402
from nas.searching.networks import Networks  # noqa: E402
from nas.searching.study import Settings  # noqa: E402
from nas.supernets import layers, masks, network, one_shot, supernet  # noqa: E402
from nas.supernets.one_shot import NotReady, OneShot  # noqa: E402
from nas.supernets.shared_weights import SharedWeights  # noqa: E402
from nas.training import loop  # noqa: E402
from nas.training.batches import count  # noqa: E402
from nas.training.checkpoint import Checkpoint  # noqa: E402
from nas.training.state import Now  # noqa: E402
from search_spaces import mnasnet as space  # noqa: E402

OPS = {"conv": ("conv", 1), "depthwise": ("depthwise", 1), "mbconv": ("mbconv", 3)}


def sample(trial) -> Config:
    """All that MnasNet's space has to choose from, in two blocks of at most two layers."""
    blocks = []
    for path, stride, filters in (("a", 1, (4, 6)), ("b", 2, (6, 8))):
        op, expand = OPS[trial.suggest_categorical(f"{path}_op", tuple(OPS))]
        blocks.append(
            Block(
                op=op,
                kernel=trial.suggest_categorical(f"{path}_kernel", (3, 5)),
                stride=stride,
                filters=trial.suggest_categorical(f"{path}_filters", filters),
                repeats=trial.suggest_int(f"{path}_repeats", 1, 2),
                expand=expand * trial.suggest_int(f"{path}_double", 1, 2 if expand > 1 else 1),
                se_ratio=trial.suggest_categorical(f"{path}_se", (0.0, 0.25)),
                skip=trial.suggest_categorical(f"{path}_skip", ("pool", "identity", "none")),
            )
        )
    return Config((8, 8, 1), 10, 6, 1, tuple(blocks), head_filters=12, dropout=0.0)


@pytest.fixture(scope="module")
def task():
    return digits.load(size=8)


@pytest.fixture(scope="module")
def shared():
    return with_weights(sample)


@pytest.mark.parametrize("number", range(12))
def test_an_inherited_network_has_the_outputs_of_the_supernet(shared, number):
    config = supernet.drawn(shared.sample, 7, number)
    found = outputs(shared, shared.rows(config))
    assert np.ptp(found) > 0.1
    np.testing.assert_allclose(found, alone(shared, config), atol=2e-5)


def test_the_space_of_a_search_fits_into_its_supernet():
    """MnasNet's own, its blocks of up to 3 layers: the widest, and what is drawn."""
    task = registry.task("digits:size=8")
    found = supernet.Supernet(functools.partial(space.sample, base="tiny"), task)
    for number in range(2):
        config = dataclasses.replace(supernet.drawn(found.sample, 3, number), dropout=0.0)
        difference = outputs(found, found.rows(config)) - alone(found, config)
        assert np.abs(difference).max() < 2e-4


def test_masks_and_slices_are_the_same_network(shared, monkeypatch):
    drawn = choices(shared)
    sliced = [outputs(shared, rows) for rows in drawn]
    monkeypatch.setattr(layers, "part", lambda: masks)
    for rows, expected in zip(drawn, sliced, strict=True):
        np.testing.assert_allclose(outputs(shared, rows), expected, atol=2e-5)


def test_every_choice_acts(shared):
    """Each option of each block, alone changed, is another network with other outputs."""
    start = supernet.drawn(shared.sample, 0, 0)
    first = dataclasses.replace(
        start.blocks[0], op="mbconv", expand=3, filters=4, repeats=2, skip="pool", se_ratio=0.25
    )
    second = dataclasses.replace(first, stride=2, filters=6)
    start = dataclasses.replace(start, blocks=(first, second))
    before = outputs(shared, shared.rows(start))
    options = {
        "op": ("conv", "depthwise"),
        "kernel": (8 - first.kernel,),
        "expand": (6,),
        "repeats": (1,),
        "se_ratio": (0.0,),
        "skip": ("identity", "none"),
    }
    for changed in varied(start, options):
        assert changed != start
        after = outputs(shared, shared.rows(changed))
        assert np.abs(after - before).max() > 1e-3, changed


def test_warm_up_has_everything_on(shared):
    rows = network.together(shared.model, shared.rows(supernet.drawn(shared.sample, 0, 0)))
    assert (rows[:, :3] == 1).all()
    rows = network.widest(shared.model, rows)
    assert rows[:, layers.FILTERS].tolist() == [6, 8] and rows[:, layers.EXPAND].min() == 6
    assert np.ptp(outputs(shared, rows)) > 0.1


def test_the_warm_up_ends_and_epochs_end_with_the_largest(shared):
    update, on, largest = shared.choices(10), [], []
    for step in range(100):
        update(step, 100)
        rows = keras.ops.convert_to_numpy(shared._choice)
        on.append(rows[:, :3].sum())
        if (rows == shared.largest).all():
            largest.append(step)
    assert set(range(9, 100, 10)) <= set(largest)
    assert max(on[:10]) == 6 and max(on[25:]) == 2 and np.mean(on[:8]) > np.mean(on[16:24])


def test_one_graph_judges_all_networks(task, shared, monkeypatch):
    traced = []
    call = layers.Choice.call
    monkeypatch.setattr(layers.Choice, "call", lambda *given: traced.append(0) or call(*given))
    qualities = {
        shared.quality(supernet.drawn(shared.sample, 5, number), examples=200)
        for number in range(6)
    }
    assert len(traced) == shared.traces == 1 and len(qualities) > 1


def one_block(trial) -> Config:
    config = sample(trial)
    return dataclasses.replace(config, blocks=config.blocks[:1])


def trained(task, **options):
    return supernet.train(one_block, task, epochs=2, seed=3, **options)


def test_one_graph_trains_all_networks(task, tmp_path, monkeypatch):
    """And a training that was interrupted ends with the same bits."""
    traced = []
    call = layers.Choice.call
    monkeypatch.setattr(layers.Choice, "call", lambda *given: traced.append(0) or call(*given))
    whole = trained(task)
    assert len(traced) <= 3  # building, a step, judging
    per_epoch = count(task.train) // 64
    checkpoint = Checkpoint(tmp_path / "a.npz", {})

    def interrupt(now):
        if now.step == per_epoch + 5:
            signal.raise_signal(signal.SIGTERM)

    with (
        interruption.command(),
        interruption.interruptible(),
        pytest.raises(interruption.Interrupted),
    ):
        trained(task, checkpoint=checkpoint, watch=interrupt)
    again = trained(task, checkpoint=Checkpoint(tmp_path / "a.npz", {}))
    for ours, theirs in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def learned(task):
    return supernet.train(one_block, task, epochs=12, seed=0, learning_rate=1e-2)


def test_it_learns_and_what_is_inherited_is_as_good(learned, task):
    for number in range(3):
        config = supernet.drawn(learned.sample, 21, number)
        quality = learned.quality(config)
        print(quality)
        model = learned.inherited(config)
        learned.calibrate(model)
        assert quality > 0.4  # chance: 0.1
        assert loop.evaluate(model, task) == pytest.approx(quality, abs=0.08)


def test_weights_are_kept(learned, task, tmp_path):
    learned.save(tmp_path / "s.weights.h5")
    other = supernet.Supernet(one_block, task, seed=5)
    config = supernet.drawn(learned.sample, 22, 0)
    other.load(tmp_path / "s.weights.h5")
    assert other.quality(config, 200) == learned.quality(config, 200)
    wider = supernet.Supernet(sample, task)
    with pytest.raises(ValueError, match="s.weights.h5 holds no weights of this supernet"):
        wider.load(tmp_path / "s.weights.h5")


def networks(task, folder, alternatives=()):
    return Networks(
        one_block,
        task,
        lambda config, final: task,
        [],
        task.fields,
        1,
        weights=SharedWeights(one_block, task, folder, OneShot(epochs=1)),
        alternatives=alternatives,
    )


def test_finalists_inherit(learned, task, tmp_path):
    evaluator = networks(task, tmp_path)
    config = evaluator.for_task(supernet.drawn(learned.sample, 23, 0))
    candidate = Candidate(config)
    with pytest.raises(ValueError, match="supernet of this study is not trained"):
        evaluator.train(candidate)
    learned.save(tmp_path / "supernet.weights.h5")
    kept = []
    record = evaluator.train(candidate, keep=lambda network, record: kept.append(network()))
    assert record["quality"] == learned.quality(config) and record["curve"] == [record["quality"]]
    evaluator.save(kept[0], tmp_path / "so_far")
    model = keras.models.load_model(tmp_path / "so_far.keras", compile=False)
    assert loop.evaluate(model, task) == pytest.approx(record["quality"], abs=0.08)
    final = evaluator.train(candidate, epochs=1, final=True)["quality"]
    scratch = loop.fit(build.build(config), task, 1, 0).quality
    assert final > scratch + 0.1


def test_a_compressed_candidate_is_judged_with_inherited_weights(learned, task, tmp_path):
    """Compressed at once; its norms see what is left; the finalist is trained with its methods."""
    learned.save(tmp_path / "supernet.weights.h5")
    names = ("qat:4", "prune_channels:0.5", "prune:0.99")
    evaluator = networks(task, tmp_path, [{name: registry.method(name)} for name in names])
    config = evaluator.for_task(supernet.drawn(learned.sample, 23, 0))
    plain = evaluator.train(Candidate(config))["quality"]
    quality = {n: evaluator.train(Candidate(config, (n,)))["quality"] for n in names}
    assert quality["qat:4"] == pytest.approx(plain, abs=0.1)
    assert plain + 0.1 > quality["qat:4"] > quality["prune:0.99"]
    candidate, kept = Candidate(config, ("qat:4",)), []
    record = evaluator.train(candidate, keep=lambda network, record: kept.append(network()))
    (product,) = kept
    assert loop.evaluate(product.model, task) == pytest.approx(record["quality"], abs=1e-6)
    evaluator.save(product, tmp_path / "so_far")
    assert "int4" in {one.kind for one in read_codes(tmp_path / "so_far.tflite").values()}
    assert "nas compress" not in (tmp_path / "so_far.py").read_text()  # new weights would differ
    final = evaluator.train(candidate, epochs=1, final=True)
    assert final["quality"] > quality["qat:4"] - 0.05 and len(final["curve"]) == 1
    evaluator.forget()


def test_bad_options_and_families():
    with pytest.raises(ValueError, match="epochs='many'; expected a whole number"):
        _one_shot("supernet:many")
    with pytest.raises(ValueError, match="no option 'minutes'"):
        _one_shot("supernet:minutes=3")
    assert _one_shot("supernet:5,examples=7") == OneShot(5, 7) and _one_shot("train") is None
    from families import vit

    with pytest.raises(ValueError, match="no supernet of vit networks .there is: eff.*mnasnet"):
        supernet.outline(vit.VARIANTS["tiny"])


def refused(capsys, *flags) -> str:
    assert main(["search", "--space", "mnasnet:tiny", *flags]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_is_said_in_a_line(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert "expected train, or supernet" in refused(capsys, *out, "--evaluator", "one-shot")
    one_shot = ["--evaluator", "supernet"]
    said = refused(capsys, *out, *one_shot, "--method", "ptq:8|none", "--target", "tpu:v5e")
    assert "target that runs them, such as cpu" in said
    said = refused(capsys, *out, *one_shot, "--filter", "synflow")
    assert "--evaluator supernet has none: leave it out" in said
    worker = Worker(Flock(tmp_path / "locks"), "a")
    study.create(tmp_path / "a", Settings(space="mnasnet:tiny", evaluator="supernet"), None, worker)
    said = refused(capsys, *out, "--study", "a", "--method", "ptq:8")
    assert "evaluator was supernet, now train" in said
    worker.leave()


@pytest.mark.slow
def test_a_search_from_end_to_end(tmp_path, capsys):
    flags = ["search", "--space", "mnasnet:tiny", "--task", "digits:size=16", "--trials", "3"]
    flags += ["--evaluator", "supernet:2", "--epochs", "1", "--finalists", "1", "--json"]
    flags += ["--out", str(tmp_path), "--study", "s"]
    assert main(flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["winner"]["retrained"] and (tmp_path / "s" / "best.tflite").exists()
    weights = (tmp_path / "s" / "supernet.weights.h5").stat().st_mtime
    flags[flags.index("3")] = "4"
    assert main(flags) == 0
    assert (tmp_path / "s" / "supernet.weights.h5").stat().st_mtime == weights
    assert not (tmp_path / "s" / "supernet.checkpoint.npz").exists()


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() == "jax", reason="it starts this")
def test_on_jax(passes_on_jax):
    passes_on_jax(__file__, "warm_up_has or (inherited_network and 11)")


def test_a_supernet_that_there_is_no_time_for_says_what_it_needs_and_steps_aside(tmp_path):
    """Digits in 2 of its 90 minutes: it would judge networks by chance."""
    weights = SharedWeights(None, None, tmp_path)
    weights._first = (1, time.monotonic() - 40)
    now = Now(epoch=1, step=41, steps=120, loss=0.5, rate=1e-3)
    with pytest.raises(NotReady, match=r"120 of 6,000 steps in its 2 minutes.*--minutes 25\d for"):
        weights._look(ignore, 6000, 2.0, now)
    weights._look(ignore, 6000, 2.0, dataclasses.replace(now, steps=1500))
    weights._look(ignore, 6000, None, now)
    weights._look(ignore, 6000, 2.0, dataclasses.replace(now, step=2))  # too few to say
    last = dataclasses.replace(now, step=2, steps=2, judged=object())
    with pytest.raises(NotReady, match="2 of 6,000 steps"):
        weights._look(ignore, 6000, 2.0, last)
    SharedWeights(None, None, tmp_path, OneShot(epochs=1))._look(ignore, 6000, 2.0, now)
    one_shot.aside(tmp_path).write_text("too little time")
    with pytest.raises(NotReady, match="too little time"):
        weights.prepare(5, ignore)

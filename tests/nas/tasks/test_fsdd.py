"""Spoken digits: what the task holds, how it scores, and that a stream says what the whole says."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from families import conformer
from families.layers import copy_weights, log_mel
from families.objectives import decoding, streaming
from families.objectives.transducer import transducer_loss
from nas.tasks import fsdd


@pytest.fixture(scope="module")
def file(shared_data):
    """All of the data: reading it takes a moment."""
    path = shared_data / "speech" / "fsdd.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return str(path)


@pytest.fixture(scope="module")
def clips(file):
    with np.load(file) as data:
        return {name: data[name] for name in data.files}


@pytest.fixture(scope="module")
def task(file):
    return fsdd.load(path=file)


@pytest.fixture(scope="module")
def config(task):
    return dataclasses.replace(conformer.VARIANTS["tiny"], **task.fields)


@pytest.fixture(scope="module")
def model(config):
    """Random weights, but for the blank, which is made likelier: texts of a few labels."""
    keras.utils.set_random_seed(2)
    model = conformer.build(config)
    kernel = model.get_layer("joint_logits").kernel
    kernel.assign(8 * kernel)
    bias = np.zeros(config.vocabulary, np.float32)
    bias[0] = 2.5
    model.get_layer("joint_logits").bias.assign(bias)
    return model


def said(task, part: str) -> list[str]:
    return [fsdd.text(labels) for labels in getattr(task, part)[1]["labels"]]


def test_takes_are_split_as_usual(task, clips):
    held = clips["take"] < 5
    assert held.sum() == 300
    assert said(task, "valid") == [str(digit) for digit in clips["digit"][held]]
    assert said(task, "train") == [str(digit) for digit in clips["digit"][~held]]
    inputs, targets = task.valid
    assert inputs["features"].shape == (300, task.fields["frames"], task.fields["mels"])
    assert inputs["features"].dtype == np.float32 and inputs["frames"].dtype == np.int32
    np.testing.assert_array_equal(inputs["labels"], targets["labels"])
    samples = np.diff(np.r_[0, clips["end"]])[held]
    frames = np.minimum(-(-samples // 80), 96) + fsdd.SILENT
    np.testing.assert_array_equal(inputs["frames"], frames)


def test_features_are_normalized_log_energies_of_the_clip(task, clips):
    """By NumPy's Fourier transform; silence is the floor."""
    start, end = np.r_[0, clips["end"]][[7, 8]]  # take 15 of zero
    audio = clips["audio"][start:end] / 32768
    row = int((np.flatnonzero(clips["take"] >= 5) == 7).argmax())
    assert clips["take"][7] >= 5
    features = task.train[0]["features"][row].astype(np.float64)
    energies = features * task.fields["feature_deviation"] + task.fields["feature_mean"]
    windows = [audio[(frame + 1) * 80 - 200 : (frame + 1) * 80] for frame in range(2, 30)]
    power = np.abs(np.fft.rfft(windows * np.hanning(201)[:-1], 256)) ** 2
    expected = np.log(np.maximum(power @ log_mel.triangles(8000, 40, 129), log_mel.FLOOR))
    np.testing.assert_allclose(energies[2:30], expected, atol=1e-2)
    np.testing.assert_allclose(energies[-1], np.log(1e-6), atol=1e-3)
    assert energies[2:30].std() > 1


@pytest.fixture(scope="module")
def letters(file):
    return fsdd.load(units="letters", objective="ctc", path=file)


def test_letters_spell_the_digits(letters):
    task = letters
    words = {fsdd.text(row, "letters") for row in task.valid[1]["labels"]}
    assert words == set(fsdd.WORDS)
    assert task.fields["labels"] == 5 and task.fields["vocabulary"] == 16
    assert "labels" not in task.valid[0]


def test_strings_are_of_one_speaker_and_use_every_clip_once(file, clips):
    task = fsdd.load(strings=3, frames=128, path=file)
    lengths = task.valid[1]["label_lengths"]
    assert set(lengths) == {1, 2, 3} and lengths.sum() == 300
    assert task.train[1]["label_lengths"].sum() == 2700
    counted = np.bincount(task.valid[1]["labels"][task.valid[1]["labels"] > 0])[1:]
    np.testing.assert_array_equal(counted, [30] * 10)
    groups = fsdd._groups(clips["speaker"], np.flatnonzero(clips["take"] < 5), 3, 0)
    assert all(len(set(clips["speaker"][group])) == 1 for group in groups)
    other = fsdd._groups(clips["speaker"], np.flatnonzero(clips["take"] < 5), 3, 1)
    assert any(list(a) != list(b) for a, b in zip(groups, other, strict=True))


def test_augmented_features_are_others_of_the_same_digits(task):
    inputs = {name: array[:64] for name, array in task.train[0].items()}
    kept = {name: array.copy() for name, array in inputs.items()}
    first = task.augment(inputs, {}, np.random.default_rng(1))[0]
    again = task.augment(inputs, {}, np.random.default_rng(1))[0]
    other = task.augment(inputs, {}, np.random.default_rng(2))[0]
    for name, array in kept.items():
        np.testing.assert_array_equal(inputs[name], array)
        np.testing.assert_array_equal(first[name], again[name])
    assert first.keys() == inputs.keys() and first["features"].dtype == np.float32
    assert np.all(np.isfinite(first["features"]))
    assert np.abs(first["features"] - other["features"]).mean() > 0.1
    # The same words still: energy over time, moved by at most the silence, correlates.
    similar = []
    for old, new in zip(kept["features"].mean(2), first["features"].mean(2), strict=True):
        shifted = [np.corrcoef(old[: 112 - s], new[s:])[0, 1] for s in range(fsdd.SILENT + 8)]
        similar.append(max(shifted))
    assert np.median(similar) > 0.8


def test_loss_is_that_of_the_real_frames(task):
    """Lengths of features become lengths of encoded frames, rounded up."""
    targets = {name: array[:6] for name, array in task.valid[1].items()}
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(6, 28, 2, 11)).astype(np.float32)
    frames = [-(-int(count) // 4) for count in targets["frames"]]
    assert len(set(frames)) > 1
    expected = transducer_loss(logits, targets["labels"], np.array(frames), np.ones(6, int))
    np.testing.assert_allclose(task.loss(logits, targets), expected, rtol=1e-6)


def test_ctc_loss_and_score(letters):
    inputs, targets = ({k: v[[0, 40, 80, 120]] for k, v in x.items()} for x in letters.valid)
    right = np.full((4, 28, 16), -9.0, np.float32)
    right[:, :, 0] = 0
    for row, labels in enumerate(targets["labels"]):
        for place, label in enumerate(labels[labels > 0]):
            right[row, 2 * place, label] = 9  # every second frame: "ee" is two
    wrong = np.roll(right, 1, axis=-1)
    losses = [np.asarray(letters.loss(logits, targets)) for logits in (right, wrong)]
    assert np.all(losses[0] < 0.1) and np.all(losses[1] > 10)
    right[2] = wrong[2]
    scores = letters.scorer(None, lambda inputs: right)(inputs, targets)
    assert scores.tolist() == [1, 1, 0, 1]


def test_scores_of_strings_are_shares():
    assert fsdd.score("7", "7") == 1 and fsdd.score("77", "7") == 0 and fsdd.score("", "7") == 0
    assert fsdd.score("123", "123", strings=3) == 1
    assert fsdd.score("13", "123", strings=3) == pytest.approx(2 / 3)
    assert fsdd.score("threetwo", "threeone", strings=2) == 0.5
    assert fsdd.score("999999", "1", strings=2) == 0


def forms(config, model, **fields):
    form = conformer.build(dataclasses.replace(config, **fields))
    copy_weights(model, form)
    return streaming.of_keras(form, lambda run: tf.function(run, autograph=False))


@pytest.fixture(scope="module")
def encoder(config, model):
    return forms(config, model, part="encoder")


@pytest.fixture(scope="module")
def parts(config, model):
    return streaming.parts_of(
        forms(config, model, part="prediction"), forms(config, model, part="joint")
    )


def test_the_scorer_finds_what_the_parts_find(task, config, model, encoder, parts):
    """The training network, which is run once per label, against one step at a time."""
    inputs = {name: array[:40] for name, array in task.valid[0].items()}
    wide = dataclasses.replace(config, labels=6)
    network = conformer.build(wide)
    copy_weights(model, network)
    labels = np.zeros((40, 6), np.int32)
    lengths = -(-inputs["frames"] // 4)

    def logits_of(labels):
        return network(inputs | {"labels": labels}, training=False)

    found = decoding.greedy_lattice(logits_of, lambda frames: lengths, labels.shape)
    encoded = encoder.run({name: inputs[name] for name in ("features", "frames")})["encoded"]
    expected = decoding.greedy(encoded, lengths, parts).labels
    assert found == [row[:7] for row in expected]
    assert len({tuple(row) for row in expected}) > 3, expected


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_stream_says_what_the_whole_says(task, config, model, encoder, parts, chunk):
    inputs = {name: array[:60] for name, array in task.valid[0].items()}
    encoded = encoder.run({name: inputs[name] for name in ("features", "frames")})["encoded"]
    whole = decoding.greedy(encoded, -(-inputs["frames"] // 4), parts)
    chunks = forms(config, model, part="encoder", chunk=chunk)
    steps = list(streaming.stream(chunks, parts, inputs["features"], inputs["frames"]))
    assert len(steps) == -(-int(inputs["frames"].max()) // (4 * chunk))
    assert steps[-1].labels == whole.labels and steps[-1].frames == whole.frames
    for earlier, later in zip(steps, steps[1:], strict=False):
        for before, after in zip(earlier.labels, later.labels, strict=True):
            assert after[: len(before)] == before
    assert sum(map(len, steps[1].labels)) > 0
    assert len({tuple(row) for row in whole.labels}) > 3


def test_missing_data_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv("NAS_DATA", raising=False)
    with pytest.raises(ValueError, match="NAS_DATA.*free-spoken-digit-dataset"):
        fsdd.load()
    monkeypatch.setenv("NAS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="no file .*fsdd.npz"):
        fsdd.load()
    (tmp_path / "damaged.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(ValueError, match="cannot read"):
        fsdd.load(path=str(tmp_path / "damaged.npz"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "rnn"}, "objective='rnn'; expected one of transducer, ctc"),
        ({"units": "words"}, "units='words'; expected one of digits, letters"),
        ({"strings": 0}, "strings=0"),
        ({"frames": 16}, "frames=16; expected a whole number >= 32"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fsdd.load(**options)


@pytest.mark.slow
def test_a_short_training_understands_most_digits(shared_data):
    """With CTC, which learns from the first epoch; a transducer begins with a plateau."""
    from nas.training.loop import fit

    task = fsdd.load(objective="ctc", path=shared_data / "speech" / "fsdd.npz")
    config = dataclasses.replace(conformer.VARIANTS["tiny"], **task.fields)
    plain = dataclasses.replace(task, augment=None)  # learned sooner
    keras.utils.set_random_seed(0)
    done = fit(conformer.build(config), plain, 4, 0, learning_rate=1e-3)
    assert done.quality > 0.8, done.curve

"""Conformer: published counts, what a frame may see, streams, parts, and what is exported."""

import dataclasses

import keras
import numpy as np
import optuna
import pytest

from families import conformer
from families.conformer import VARIANTS, build, deploy
from families.layers import (
    LSTM,
    FrameAttention,
    LabelContext,
    RelativeAttention,
    copy_weights,
    shapes_only,
)
from families.layers.relative_attention import shift, sinusoids
from families.objectives.transducer import transducer_loss
from latency.networks.count import count
from latency.tflite import convert
from search_spaces.conformer import DEPTHS, baseline, sample

TINY = dataclasses.replace(VARIANTS["tiny"], depth=2, left_context=5)
FULL = dataclasses.replace(TINY, causal=False, left_context=0, part="encoder")


def randomized(config, seed: int = 0) -> keras.Model:
    """A network in which nothing is 0 or 1 by initialization: biases and averages have values."""
    model = build(config)
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) > 1:
            continue
        values = generator.normal(size=weight.shape) * 0.3
        weight.assign(np.exp(values) if weight.name in ("gamma", "moving_variance") else values)
    return model


def form(source: keras.Model, config) -> keras.Model:
    """Another form of `source`, with its weights."""
    target = build(config)
    copy_weights(source, target)
    return target


def arrays(outputs) -> dict:
    return {name: np.asarray(value) for name, value in outputs.items()}


def streamed(model, sequence: np.ndarray, name: str, size: int, output: str) -> np.ndarray:
    """`sequence` (batch, time, ...) through a model with state, `size` at a time."""
    state = {
        key: np.zeros((len(sequence), *tensor.shape[1:]), tensor.dtype)
        for key, tensor in model.input.items()
        if key != name
    }
    pieces = []
    for start in range(0, sequence.shape[1], size):
        result = arrays(model({name: sequence[:, start : start + size]} | state, training=False))
        pieces.append(result.pop(output))
        assert result.keys() == state.keys()
        state = result
    return np.stack(pieces, 1) if pieces[0].ndim == 2 else np.concatenate(pieces, 1)


@pytest.fixture(scope="module")
def speech():
    return np.random.default_rng(1).normal(size=(2, 100, 40)).astype("float32")


@pytest.fixture(scope="module")
def whole():
    return randomized(TINY)


@pytest.fixture(scope="module")
def encoder(whole):
    return form(whole, dataclasses.replace(TINY, part="encoder"))


@pytest.fixture(scope="module")
def full():
    return randomized(FULL)


def encode(model, features, frames=None) -> np.ndarray:
    frames = np.full(len(features), features.shape[1]) if frames is None else np.asarray(frames)
    inputs = {"features": features, "frames": frames.astype("int32")}
    return np.asarray(model(inputs, training=False)["encoded"])


@pytest.mark.parametrize(
    ("variant", "params", "encoder_params", "encoder_macs"),
    [
        ("s", 10_370_624, 8_710_848, 3_503_808_000),
        ("m", 30_657_664, 27_327_488, 10_415_104_000),
        ("l", 118_605_440, 115_111_424, 41_639_680_000),
    ],
)
def test_published_counts(variant, params, encoder_params, encoder_macs):
    config = VARIANTS[variant]
    with shapes_only():
        found = count(build(config))
        encoder = count(build(dataclasses.replace(config, part="encoder")))
    assert (found.trainable_params, found.uncounted) == (params, ())
    assert encoder.trainable_params == encoder_params
    assert encoder.macs == encoder_macs  # of 10 seconds


def test_counts_of_the_large_ones():
    # XXL and G are XL of other depth and width.
    config = VARIANTS["xl"]
    with shapes_only():
        whole = count(build(config)).trainable_params
        encoder = count(build(dataclasses.replace(config, part="encoder"))).trainable_params
    assert encoder == 610_070_528
    assert whole == pytest.approx(encoder + 8_934_400, rel=1e-5)


def test_count_of_the_endpointer():
    assert count(build(VARIANTS["endpointer"])).trainable_params == 448_652


def test_count_of_the_multilingual_decoder():
    # 33M as published: two LSTMs 2048 projected to 640, 16,384 word pieces.
    config = dataclasses.replace(
        VARIANTS["tiny"],
        width=640,
        vocabulary=16384,
        embed=128,
        units=2048,
        decoder_depth=2,
        projection=640,
        joint=640,
    )
    with shapes_only():
        parts = (build(dataclasses.replace(config, part=part)) for part in ("prediction", "joint"))
        assert sum(part.count_params() for part in parts) == 32_834_176


def test_feed_forward_layers_count_half(whole, speech):
    names = ("subsample_dropout", "block1_feed_1_project", "block1_feed_1_add")
    layers = [whole.get_layer(name).output for name in names]
    inner = keras.Model({k: whole.input[k] for k in ("features", "frames")}, layers)
    inputs = {"features": speech, "frames": np.array([100, 100], "int32")}
    before, project, after = (np.asarray(x) for x in inner(inputs, training=False))
    assert np.abs(project).max() > 0.1
    np.testing.assert_allclose(after - before, project / 2, atol=1e-5)


@pytest.mark.parametrize("frame", [3, 10, 23])
def test_causal_frames_do_not_see_the_future(encoder, full, speech, frame):
    changed = speech.copy()
    changed[:, 4 * (frame + 1) :] += 1
    before, after = encode(encoder, speech), encode(encoder, changed)
    np.testing.assert_array_equal(before[:, : frame + 1], after[:, : frame + 1])
    assert np.abs(before - after)[:, frame + 1].max() > 1e-3
    before, after = encode(full, speech), encode(full, changed)
    assert (np.abs(before - after).max(-1) > 1e-6).all(), "full context sees all"


def test_causal_frames_see_as_far_back_as_they_may(encoder, speech):
    # Of 25 frames: two blocks, each 5 (attention) and 6 (convolution) back, and subsampling one.
    changed = speech.copy()
    changed[:, :4] += 1
    reach = 2 * (5 + 6) + 1
    difference = np.abs(encode(encoder, speech) - encode(encoder, changed)).max((0, 2))
    assert (difference[reach + 1 :] == 0).all() and (difference[:reach] > 0).all()


@pytest.mark.parametrize("chunk", [1, 2, 5, 25])
def test_streaming_equals_offline(encoder, speech, chunk):
    config = dataclasses.replace(TINY, part="encoder", chunk=chunk)
    stream = form(encoder, config)
    length = -(-100 // (4 * chunk)) * 4 * chunk
    features = np.pad(speech, [(0, 0), (0, length - 100), (0, 0)])
    found = streamed(stream, features, "features", 4 * chunk, "encoded")[:, :25]
    np.testing.assert_allclose(found, encode(encoder, speech), atol=1e-5)


def test_a_stream_goes_on_for_longer_than_its_context(encoder):
    features = np.random.default_rng(2).normal(size=(1, 400, 40)).astype("float32")
    stream = form(encoder, dataclasses.replace(TINY, part="encoder", chunk=10))
    offline = form(encoder, dataclasses.replace(TINY, part="encoder", frames=400))
    found = streamed(stream, features, "features", 40, "encoded")
    np.testing.assert_allclose(found, encode(offline, features), atol=1e-5)


def test_streaming_from_raw_audio_with_ctc():
    config = dataclasses.replace(
        TINY, objective="ctc", audio_rate=8000, feature_mean=-4.0, feature_deviation=3.0
    )
    model = randomized(config)
    audio = np.random.default_rng(3).uniform(-0.3, 0.3, (2, 8000)).astype("float32")
    offline = np.asarray(
        model({"audio": audio, "frames": np.array([100, 100], "int32")}, training=False)
    )
    assert offline.shape == (2, 25, 11)
    stream = form(model, dataclasses.replace(config, chunk=5))
    found = streamed(stream, audio, "audio", 5 * 4 * 80, "logits")
    np.testing.assert_allclose(found, offline, atol=2e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 8), (1, 5)])
def test_shift_equals_gather(causal, queries, keys):
    distances = keys if causal else keys + queries - 1
    scores = np.random.default_rng(0).normal(size=(2, 3, queries, distances)).astype("float32")
    found = np.asarray(shift(keras.ops.convert_to_tensor(scores), keys))
    query, key = np.arange(keys - queries, keys)[:, None], np.arange(keys)
    column = keys - 1 - (query - key)  # the first column is the distance keys - 1
    seen = np.broadcast_to(query >= key if causal else True, column.shape)
    expected = scores[:, :, np.arange(queries)[:, None], np.where(seen, column, 0)]
    np.testing.assert_array_equal(found[:, :, seen], expected[:, :, seen])


@pytest.mark.parametrize("causal", [True, False])
def test_relative_attention_equals_its_formula(causal):
    layer = RelativeAttention(2, causal=causal, left=3 if causal else None)
    generator = np.random.default_rng(0)
    query = generator.normal(size=(2, 4, 6)).astype("float32")
    key, value = generator.normal(size=(2, 2, 6, 6)).astype("float32")
    valid = np.array([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]], "float32")
    layer(query, key, value)
    for weight in layer.weights:
        weight.assign(generator.normal(size=weight.shape))
    kernel, u, v = (np.asarray(weight) for weight in layer.weights)
    expected = np.zeros((2, 4, 6))
    for batch, head, i in np.ndindex(2, 2, 4):
        part = slice(3 * head, 3 * head + 3)
        scores = np.full(6, -np.inf)
        for j in range(6):
            distance = i + 2 - j
            if valid[batch, j] and not (causal and not 0 <= distance <= 3):
                position = (sinusoids(np.array([distance]), 6) @ kernel)[0, part]
                q = query[batch, i, part]
                scores[j] = (
                    (q + u[part]) @ key[batch, j, part] + (q + v[part]) @ position
                ) / 3**0.5
        weights = np.exp(scores - scores.max())
        expected[batch, i, part] = weights / weights.sum() @ value[batch, :, part]
    np.testing.assert_allclose(layer(query, key, value, valid), expected, atol=1e-5)


def test_attention_without_positions_forgets_order():
    layer = FrameAttention(2)
    query, key = np.random.default_rng(0).normal(size=(2, 1, 5, 6)).astype("float32")
    order = [3, 1, 0, 4, 2]
    np.testing.assert_allclose(
        layer(query, key, key), layer(query, key[:, order], key[:, order]), atol=1e-6
    )


@pytest.mark.parametrize("config", [FULL, dataclasses.replace(TINY, part="encoder")])
def test_padding_changes_no_frame(config, speech):
    model = randomized(config)
    short = form(model, dataclasses.replace(config, frames=60))
    expected = encode(short, speech[:, :60], [60, 50])
    found = encode(model, speech, [60, 50])
    np.testing.assert_allclose(found[0, :15], expected[0, :15], atol=1e-5)
    np.testing.assert_allclose(found[1, :13], expected[1, :13], atol=1e-5)
    assert (found[0, 15:] == 0).all() and (found[1, 13:] == 0).all()


@pytest.mark.parametrize("config", [FULL, dataclasses.replace(TINY, part="encoder")])
def test_padding_does_not_enter_the_statistics(config, speech):
    config = dataclasses.replace(config, dropout=0.0)
    frames = np.array([60, 36], "int32")
    model = randomized(config)
    short = form(model, dataclasses.replace(config, frames=60))
    short({"features": speech[:, :60], "frames": frames}, training=True)
    model({"features": speech, "frames": frames}, training=True)
    for long, expected in zip(model.weights, short.weights, strict=True):
        np.testing.assert_allclose(long, expected, atol=1e-6, err_msg=long.path)


def lattice_by_parts(source, config, features, labels) -> np.ndarray:
    """Logits of all frames and labels from the three parts, one label at a time."""
    encoded = encode(form(source, dataclasses.replace(config, part="encoder")), features)
    prediction = form(source, dataclasses.replace(config, part="prediction"))
    joint = form(source, dataclasses.replace(config, part="joint"))
    labels = np.pad(labels, [(0, 0), (1, 0)])
    predicted = streamed(prediction, labels, "label", 1, "predicted")
    logits = [
        np.asarray(joint({"encoded": encoded[:, t], "predicted": predicted[:, u]})["logits"])
        for t in range(0, encoded.shape[1], 6)
        for u in range(predicted.shape[1])
    ]
    return np.stack(logits, 1).reshape(len(features), -1, predicted.shape[1], config.vocabulary)


@pytest.mark.parametrize(
    "fields",
    [{}, {"decoder_depth": 2, "projection": 24}, {"decoder": "embedding", "context": 3}],
    ids=["lstm", "projected", "embedding"],
)
def test_parts_reproduce_the_lattice(fields, speech):
    config = dataclasses.replace(TINY, depth=1, **fields)
    model = randomized(config)
    labels = np.random.default_rng(5).integers(1, 11, (2, 4)).astype("int32")
    frames = np.array([100, 100], "int32")
    logits = np.asarray(model({"features": speech, "frames": frames, "labels": labels}))
    assert logits.shape == (2, 25, 5, 11)
    found = lattice_by_parts(model, config, speech, labels)
    np.testing.assert_allclose(found, logits[:, ::6], atol=1e-5)


def test_embedding_decoder_knows_the_last_labels_only():
    config = dataclasses.replace(TINY, depth=1, decoder="embedding", context=2)
    model = randomized(config)
    inner = keras.Model(model.input["labels"], model.get_layer("prediction_norm").output)
    labels = np.array([[1, 2, 3, 4], [9, 2, 3, 4], [1, 9, 3, 4]], "int32")
    first, second, third = np.asarray(inner(labels))
    np.testing.assert_allclose(first[3:], second[3:], atol=1e-5)
    assert np.abs(first - second)[[1, 2]].max(-1).min() > 0.1
    assert np.abs(first - third)[[2, 3]].max(-1).min() > 0.1


def test_label_context_equals_its_formula():
    layer = LabelContext(3, context=2)
    inputs = np.random.default_rng(0).normal(size=(1, 5, 4)).astype("float32")
    found = np.asarray(layer(inputs))
    vectors = np.asarray(layer.position)
    for step in range(4):
        labels = inputs[0, step : step + 2]
        weighted = np.einsum("nd,hnd->hn", labels, vectors)[..., None] * labels
        np.testing.assert_allclose(found[0, step], np.mean(weighted, (0, 1)), atol=1e-6)


@pytest.mark.parametrize("steps", [3, 12])
def test_lstm_is_that_of_keras(steps):
    ours, theirs = LSTM(5), keras.layers.LSTM(5, return_sequences=True, return_state=True)
    inputs = np.random.default_rng(0).normal(size=(2, steps, 3)).astype("float32")
    ours(inputs), theirs(inputs)
    theirs.set_weights(ours.get_weights())
    for found, expected in zip(ours(inputs), theirs(inputs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_weight_learns(speech):
    """Through the loop over labels, too: 12 labels are more than are unrolled."""
    config = dataclasses.replace(TINY, labels=12, dropout=0.0)
    model = build(config)
    lengths = np.array([12, 9], "int32")
    labels = np.random.default_rng(0).integers(1, 11, (2, 12)).astype("int32")
    inputs = {"features": speech, "frames": np.array([100, 80], "int32"), "labels": labels}
    tf = pytest.importorskip("tensorflow")
    with tf.GradientTape() as tape:
        logits = model(inputs, training=True)
        loss = tf.reduce_mean(transducer_loss(logits, labels, [25, 20], lengths))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        # A bias of all keys alike changes no softmax.
        if not weight.path.endswith("key/bias"):
            assert np.abs(tf.convert_to_tensor(gradient)).max() > 1e-8, weight.path


def test_blocks_of_convolution_own_no_attention():
    config = dataclasses.replace(deploy(TINY), conv_only=1)
    with_one, with_two = build(config), build(deploy(TINY))
    assert not [name for name in with_one.input if name.startswith("block1_attention")]
    assert {"block2_attention_keys", "block1_conv_past"} <= with_one.input.keys()
    attention = sum(
        np.prod(weight.shape)
        for weight in with_two.weights
        if weight.path.startswith("block1_attention")
    )
    assert attention == 5 * 48**2 + 8 * 48
    assert with_two.count_params() - with_one.count_params() == attention
    assert "context" not in build(dataclasses.replace(deploy(TINY), conv_only=2)).input


def test_convolution_only_streams_without_a_limit_of_context(speech):
    config = dataclasses.replace(TINY, conv_only=2, left_context=0, part="encoder")
    model = randomized(config)
    assert config == dataclasses.replace(config, relative=False, heads=1, left_context=9)
    found = streamed(form(model, deploy(config)), speech[:, :96], "features", 16, "encoded")
    np.testing.assert_allclose(found, encode(model, speech)[:, :24], atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        deploy(TINY),
        deploy(dataclasses.replace(TINY, audio_rate=8000)),
        deploy(dataclasses.replace(TINY, objective="ctc", relative=False)),
        deploy(dataclasses.replace(FULL, part="whole")),
        dataclasses.replace(TINY, part="prediction", decoder_depth=2, projection=24),
        dataclasses.replace(TINY, part="prediction", decoder="embedding"),
        dataclasses.replace(TINY, part="joint"),
    ],
    ids=["stream", "audio", "ctc", "full", "lstm", "embedding", "joint"],
)
def test_exported_forms_equal_keras(config):
    model = randomized(config)
    session = convert.Session(convert.convert(model))
    generator = np.random.default_rng(0)
    state: dict = {name: np.zeros(shape, dtype) for name, (shape, dtype) in session.inputs.items()}
    assert set(session.state) == model.input.keys() & model.output.keys()
    for _ in range(3):
        given = {
            name: generator.integers(1, 11, shape).astype(dtype)
            if dtype == np.int32
            else generator.normal(size=shape).astype(dtype)
            for name, (shape, dtype) in session.inputs.items()
            if name not in session.state
        }
        if "frames" in given:
            given["frames"] = np.array([77], np.int32)
        expected = arrays(model(state | given, training=False))
        found = session.step(given)
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-4, err_msg=name)
        state |= {name: expected[name] for name in session.state}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 50}, "width"),
        ({"heads": 0}, "heads"),
        ({"mels": 41}, "mels"),
        ({"conv_only": 3}, "conv_only"),
        ({"causal": False}, "left_context"),
        ({"chunk": 4}, "part"),
        ({"chunk": 4, "part": "encoder", "left_context": 0}, "left_context"),
        ({"objective": "ctc", "part": "joint"}, "part"),
        ({"decoder": "transformer"}, "decoder"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"Conformer {message}: got"):
        dataclasses.replace(TINY, **fields)


def test_deployed_forms():
    assert deploy(TINY).part == "encoder" and deploy(TINY).chunk == 4
    assert deploy(deploy(TINY)) == deploy(TINY)
    assert deploy(FULL).chunk == 0
    assert conformer.build(deploy(TINY)).input["features"].shape == (None, 16, 40)


@pytest.mark.parametrize("base", VARIANTS)
def test_every_sample_builds_and_deploys(base):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [sample(study.ask(), base=base) for _ in range(20)]
    assert len(set(configs)) > 15
    assert {config.frames for config in configs} == {baseline(base).frames}
    assert any(config.conv_only == config.depth for config in configs)
    if base == "tiny":
        for config in configs[:3]:
            with shapes_only():
                assert count(build(deploy(config))).macs < count(build(config)).macs


def test_samples_make_the_same_choices_whatever_they_are():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(4)]
    configs = [sample(trial) for trial in trials]
    assert len({tuple(trial.params) for trial in trials}) == 1
    for trial, config in zip(trials, configs, strict=True):
        assert config.depth == round(4 * trial.params["depth"])
        assert trial.params["depth"] in DEPTHS
        assert sample(optuna.trial.FixedTrial(trial.params)) == config

"""Decoder language models: published counts, attention, caches, export, both backends."""

import dataclasses
import json

import keras
import numpy as np
import optuna
import pytest
from keras import ops

from families import decoder
from families.layers import Attention, Rotary, RotaryAngles, copy_weights, shapes_only
from families.layers.rotary import halves
from latency.networks import count as cost
from search_spaces import decoder as space

SMALL = dataclasses.replace(
    decoder.VARIANTS["tiny"], vocabulary=50, length=14, dim=32, layers=3, hidden=40, rope_theta=99.0
)
FORMS = {
    "plain": SMALL,
    "windows": dataclasses.replace(
        SMALL, window=5, local=2, global_rope=False, qk_norm=True, activation="gelu"
    ),
    "only windows": dataclasses.replace(SMALL, window=4, local=9, tied=False, layers=2),
    "shared": dataclasses.replace(SMALL, shared=1, qk_norm=True),
    "shared windows": dataclasses.replace(SMALL, shared=2, window=6, local=1, layers=4),
    "experts": dataclasses.replace(SMALL, experts=4, top_k=2, expert_every=2, head_width=10),
}
PARAMS = {
    "stories260k": 260_032,
    "afm_2024_on_device": 2_737_739_264,
    "afm_2025_on_device": 3_111_368_064,
    "afm_2025_draft": 48_765_952,
    "mixtral_8x7b": 46_702_792_704,
}


def _built(config, seed=0):
    """The network with scales that are not 1, so that their use is seen."""
    keras.utils.set_random_seed(seed)
    model = decoder.build(config)
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith("scale"):
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(weight + 0.1 * random.normal(size=weight.shape))
    return model


def _tokens(config, batch=2):
    random = np.random.default_rng(1)
    return random.integers(0, config.vocabulary, (batch, config.length)).astype("int32")


def _empty(model, batch):
    return {
        name: np.zeros((batch, *tensor.shape[1:]), tensor.dtype)
        for name, tensor in model.input.items()
    }


def _fed(model, tokens, state=None, position=0):
    """Logits of tokens fed piece by piece, and the state after them."""
    step = model.input["tokens"].shape[1]
    state = _empty(model, len(tokens)) if state is None else dict(state)
    logits = []
    for start in range(0, tokens.shape[1], step):
        state["tokens"] = tokens[:, start : start + step]
        state["position"] = np.full((len(tokens), 1), position + start, "int32")
        outputs = {name: ops.convert_to_numpy(x) for name, x in model(state).items()}
        logits.append(outputs.pop("logits"))
        state |= outputs
    return np.concatenate(logits, 1), state


@pytest.mark.parametrize("variant", PARAMS)
def test_published_networks_have_their_published_parameters(variant):
    with shapes_only():
        model = decoder.build(decoder.VARIANTS[variant])
    counted = cost.count(model)
    assert counted.total_params == PARAMS[variant]
    assert not counted.uncounted


@pytest.mark.parametrize(("variant", "params"), [("window_3b", 2.877e9), ("window_12b", 12.583e9)])
def test_windowed_networks_have_the_published_layers(variant, params):
    config = decoder.VARIANTS[variant]
    with shapes_only():
        model = decoder.build(config)
    kernels = sum(
        np.prod(weight.shape) for weight in model.weights if weight.path.endswith("kernel")
    )
    assert kernels == pytest.approx(params, rel=2e-4)


def test_macs_are_those_of_the_matrices_and_of_attention():
    config = decoder.VARIANTS["stories260k"]
    with shapes_only():
        model, step = decoder.build(config), decoder.build(decoder.deploy(config))
    matrices = 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172) + 64 * 512
    attention = 5 * 2 * 64 * 512  # a token's, of 512 keys
    assert cost.count(step).macs == matrices + attention
    assert cost.count(model).macs == 512 * (matrices + attention)


def test_keys_and_values_are_kept_of_layers_that_have_some_and_of_windows():
    on_device = decoder.VARIANTS["afm_2025_on_device"]
    without = dataclasses.replace(on_device, shared=0)
    assert decoder.kv_bytes(on_device, 1) == 2 * 17_920
    assert decoder.kv_bytes(on_device, 4096) / decoder.kv_bytes(without, 4096) == 1 - 0.375
    windows = decoder.VARIANTS["window_12b"]
    full = decoder.kv_bytes(dataclasses.replace(windows, window=0, global_rope=True), 4096)
    assert 1 - decoder.kv_bytes(windows, 4096) / full == 0.5625
    narrow = dataclasses.replace(windows, window=512)
    assert 1 - decoder.kv_bytes(narrow, 4096, batch=3) / (3 * full) == 0.65625


@pytest.mark.parametrize("form", FORMS)
def test_caches_hold_exactly_the_bytes_that_are_said(form):
    config = decoder.deploy(FORMS[form])
    with shapes_only():
        inputs = decoder.build(config).input
    values = sum(np.prod(tensor.shape[1:]) for name, tensor in inputs.items() if "cache" in name)
    assert decoder.kv_bytes(config, config.cache, batch=2, bytes_per_value=1) == 2 * values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 7])
def test_tokens_fed_piece_by_piece_give_the_logits_of_the_whole(form, length):
    config = FORMS[form]
    model, tokens = _built(config), _tokens(config)
    step = decoder.build(dataclasses.replace(config, length=length, cache=config.length))
    copy_weights(model, step)
    logits, _ = _fed(step, tokens)
    np.testing.assert_allclose(logits, model(tokens), atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_padded_prompt_then_steps_give_the_logits_of_the_whole(form):
    config = FORMS[form]
    model, tokens = _built(config), _tokens(config)
    whole = ops.convert_to_numpy(model(tokens))
    reader = decoder.build(dataclasses.replace(decoder.prefill(config), length=8))
    step = decoder.build(decoder.deploy(config))
    copy_weights(model, reader)
    copy_weights(model, step)
    # Five tokens behind three of padding, which nothing may see.
    padded = np.concatenate([np.full((2, 3), 7, "int32"), tokens[:, :5]], 1)
    logits, state = _fed(reader, padded, position=-3)
    assert logits.shape == (2, 1, config.vocabulary)
    np.testing.assert_allclose(logits[:, 0], whole[:, 4], atol=2e-5)
    logits, _ = _fed(step, tokens[:, 5:], state, position=5)
    np.testing.assert_allclose(logits, whole[:, 5:], atol=2e-5)


def test_layers_that_share_keys_read_a_prompt_for_one_token_only():
    config = dataclasses.replace(
        decoder.VARIANTS["afm_2025_on_device"], layers=16, shared=6, vocabulary=100
    )
    without = dataclasses.replace(config, shared=0)
    macs = []
    for one, form in ((config, decoder.prefill), (without, lambda config: config)):
        with shapes_only():
            macs.append(cost.count(decoder.build(form(one))).macs)
    # The last layer with keys of its own has queries and a gated layer for one token, too.
    assert 0.375 < 1 - macs[0] / macs[1] < 0.375 + 1 / 16


def test_examples_of_a_batch_may_stand_at_different_positions():
    config = FORMS["windows"]
    model, tokens = _built(config), _tokens(config)
    step = decoder.build(decoder.deploy(config))
    copy_weights(model, step)
    _, late = _fed(step, tokens[:1, :9])
    _, early = _fed(step, tokens[1:, :2])
    state = {name: np.concatenate([late[name], early[name]]) for name in late}
    state["tokens"] = np.stack([tokens[0, 9:10], tokens[1, 2:3]])
    state["position"] = np.array([[9], [2]], "int32")
    logits = ops.convert_to_numpy(step(state)["logits"])[:, 0]
    whole = ops.convert_to_numpy(model(tokens))
    np.testing.assert_allclose(logits, [whole[0, 9], whole[1, 2]], atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_changes_nothing_before_it(form):
    model, tokens = _built(FORMS[form]), _tokens(FORMS[form])
    changed = tokens.copy()
    changed[:, 8] = (changed[:, 8] + 1) % 50
    before, after = (ops.convert_to_numpy(model(x)) for x in (tokens, changed))
    np.testing.assert_allclose(before[:, :8], after[:, :8], atol=1e-6)
    assert np.abs(before[:, 8:] - after[:, 8:]).max(-1).min() > 1e-3


def test_a_window_as_long_as_the_text_is_none_and_a_shorter_one_is_felt():
    tokens = _tokens(SMALL)
    logits = [
        ops.convert_to_numpy(_built(dataclasses.replace(SMALL, window=window, local=4))(tokens))
        for window in (0, 14, 13)
    ]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-6)
    assert np.abs(logits[2] - logits[0]).max() > 1e-3
    np.testing.assert_allclose(logits[2][:, :13], logits[0][:, :13], atol=1e-6)


def test_grouped_queries_are_heads_whose_keys_are_repeated():
    random = np.random.default_rng(0)
    query = random.normal(size=(2, 5, 24)).astype("float32")
    key, value = random.normal(size=(2, 2, 9, 8)).astype("float32")
    grouped = Attention(heads=6, key_value_heads=2, causal=True, window=4)(query, key, value)
    repeated = [x.reshape(2, 9, 2, 4).repeat(3, axis=2) for x in (key, value)]
    full = Attention(heads=6, causal=True, window=4)(
        query, *(x.reshape(2, 9, 24) for x in repeated)
    )
    np.testing.assert_allclose(grouped, full, atol=1e-6)
    scores = np.einsum("bqhd,bkhd->bhqk", query.reshape(2, 5, 6, 4), repeated[0]) / 2
    ages = np.arange(4, 9)[:, None] - np.arange(9)
    weights = np.exp(scores) * ((ages >= 0) & (ages < 4))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, repeated[1]).reshape(2, 5, 24)
    np.testing.assert_allclose(grouped, expected, atol=1e-6)


def test_rotary_scores_depend_on_the_distance_only():
    random = np.random.default_rng(0)
    query, key = random.normal(size=(2, 1, 1, 16)).astype("float32")
    angles, turn = RotaryAngles(8, theta=50.0), Rotary(heads=2)

    def score(first, second):
        at = [np.array([[position]], "int32") for position in (first, second)]
        turned = [turn(x, angles(p, position=p)) for x, p in zip((query, key), at, strict=True)]
        return float(ops.sum(turned[0] * turned[1]))

    assert score(3, 1) == pytest.approx(score(12, 10), abs=1e-5)
    assert score(0, 0) == pytest.approx(float((query * key).sum()), abs=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-2


def test_halves_makes_rotary_the_one_of_neighbours():
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 6, 24)).astype("float32")
    order = halves(heads=3, width=8)
    angles = RotaryAngles(8, theta=50.0)(np.zeros((1, 6), "int32"))
    turned = ops.convert_to_numpy(Rotary(heads=3)(x[:, :, order], angles))
    pairs = x.reshape(6, 3, 4, 2)
    turns = np.exp(1j * np.arange(6)[:, None] * 50.0 ** (-np.arange(0, 8, 2) / 8))
    expected = (pairs[..., 0] + 1j * pairs[..., 1]) * turns[:, None]  # llama2.c
    expected = np.stack([expected.real, expected.imag], -1).reshape(1, 6, 24)
    np.testing.assert_allclose(turned, expected[:, :, order], atol=1e-5)


def test_tied_networks_have_one_table_for_both_ends():
    tied, untied = (decoder.build(dataclasses.replace(SMALL, tied=tied)) for tied in (True, False))
    assert untied.count_params() - tied.count_params() == 50 * 32
    table = next(weight for weight in tied.weights if weight.path == "embed/embeddings")
    tokens = np.full((1, 14), 3, "int32")
    before = ops.convert_to_numpy(tied(tokens))
    values = ops.convert_to_numpy(table).copy()
    values[9] *= 2  # of a token that is not in the text
    table.assign(values)
    after = ops.convert_to_numpy(tied(tokens))
    np.testing.assert_allclose(after[..., 9], 2 * before[..., 9], atol=1e-6)
    np.testing.assert_array_equal(np.delete(after, 9, -1), np.delete(before, 9, -1))


def test_half_precision_keeps_logits_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        step = decoder.build(decoder.deploy(SMALL))
    finally:
        keras.config.set_dtype_policy("float32")
    assert step.input["block1_cache_key"].dtype == "bfloat16"
    assert step.output["logits"].dtype == "float32"
    assert all(weight.dtype == "float32" for weight in step.weights)


@pytest.mark.parametrize("form", ["shared windows", "experts"])
def test_the_step_exports_and_equals_keras(form):
    from latency.tflite import convert

    config = decoder.deploy(FORMS[form])
    model = _built(config)
    session = convert.Session(convert.convert(model))
    tokens = _tokens(FORMS[form], batch=1)
    logits, state = _fed(model, tokens)
    mine = _empty(model, 1)
    for position in range(tokens.shape[1]):
        mine["tokens"] = tokens[:, position : position + 1]
        mine["position"] = np.array([[position]], "int32")
        outputs = session(mine)
        np.testing.assert_allclose(outputs["logits"], logits[:, position : position + 1], atol=1e-4)
        mine |= {name: value for name, value in outputs.items() if name in mine}
    for name in outputs.keys() & state.keys():
        np.testing.assert_allclose(mine[name], state[name], atol=1e-4)


def outputs_of(path, inputs):
    model = keras.models.load_model(path, compile=False)
    outputs = model.predict_on_batch(inputs)
    return keras.config.backend(), {name: np.asarray(value) for name, value in outputs.items()}


@pytest.mark.parametrize("form", ["windows", "experts"])
def test_jax_and_tensorflow_agree(form, tmp_path, on_jax):
    config = dataclasses.replace(FORMS[form], length=3, cache=9)
    random, model = np.random.default_rng(2), _built(config)
    inputs = {
        name: random.normal(size=(2, *tensor.shape[1:])).astype(tensor.dtype)
        for name, tensor in model.input.items()
    }
    inputs |= {"tokens": _tokens(config), "position": np.array([[1], [6]], "int32")}
    model.save(tmp_path / "model.keras")
    backend, found = on_jax(outputs_of, tmp_path / "model.keras", inputs)
    assert backend != keras.config.backend()
    for name, value in model(inputs).items():
        np.testing.assert_allclose(found[name], value, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_value_heads": 3}, "key_value_heads: got 3, expected a divisor of heads=4"),
        ({"heads": 5, "key_value_heads": 1}, "heads: got 5, expected a divisor of dim=32"),
        ({"shared": 3}, "shared: got 3, expected less than layers=3"),
        ({"cache": 5}, "cache: got 5, expected 0, or length or more"),
        ({"activation": "relu"}, "activation: got 'relu'"),
        ({"experts": 2, "top_k": 3}, "top_k: got 3, expected 1 to 2"),
        ({"dim": 0}, "dim: got 0, expected a positive number"),
        ({"layers": 2.5}, "layers: got 2.5"),
        ({"global_rope": False}, "global_rope: got False"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(changes, message):
    changes = {"head_width": 0} | changes
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_equal_networks_have_equal_configs():
    replace = dataclasses.replace
    assert replace(SMALL, window=5) == replace(SMALL, local=3) == SMALL
    assert replace(SMALL, top_k=2, expert_every=3) == SMALL
    assert replace(SMALL, window=5, local=9) == replace(SMALL, window=5, local=3)
    assert replace(SMALL, experts=4) == replace(SMALL, experts=4, top_k=2, expert_every=1)
    assert json.dumps(dataclasses.asdict(replace(SMALL, dim=np.int64(32))))


def _sampled(count):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.sample(study.ask()) for _ in range(count)]


def test_sampled_networks_build_in_both_forms_and_differ():
    configs = _sampled(30)
    assert len(set(configs)) > 25
    for field in ("layers", "dim", "hidden", "key_value_heads", "window", "local", "experts"):
        assert len({getattr(config, field) for config in configs}) > 2, field
    for config in configs:
        with shapes_only():
            model, step = decoder.build(config), decoder.build(decoder.deploy(config))
        assert model.output.shape == (None, config.length, config.vocabulary)
        shapes = [{weight.path: weight.shape for weight in net.weights} for net in (model, step)]
        assert shapes[0] == shapes[1]
        assert decoder.kv_bytes(config, 99, bytes_per_value=1) > 0


def test_sampled_networks_step_as_they_train():
    for config in _sampled(2):
        config = dataclasses.replace(config, vocabulary=50, length=40)
        model, tokens = _built(config), _tokens(config, batch=1)
        step = decoder.build(dataclasses.replace(config, length=10, cache=40))
        copy_weights(model, step)
        np.testing.assert_allclose(_fed(step, tokens)[0], model(tokens), atol=5e-4, rtol=1e-4)


def test_an_unknown_base_is_named():
    with pytest.raises(ValueError, match="unknown base 'huge', expected one of tiny"):
        space.baseline("huge")

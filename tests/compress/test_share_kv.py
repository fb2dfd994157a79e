"""Decoders whose last layers share keys and values are those that the family builds so."""

import dataclasses

import keras
import numpy as np
import pytest

from compress.examples.data import Data
from compress.method import NotApplicable, compress
from compress.share_kv import ShareKV
from families import conformer, decoder, vit
from families.layers import Attention, copy_weights
from nas.files.readers.decoder_config import config_of
from nas.tasks.task import Task
from nas.tasks.text import next_token
from nas.training.loop import fit

SMALL = decoder.Config(
    vocabulary=50, length=6, dim=16, layers=8, heads=4, key_value_heads=2, hidden=24
)
FORMS = {
    "step": {"cache": 12, "length": 1},
    "normed queries": {"qk_norm": True, "cache": 12, "length": 2},
    # The layer whose keys are read has a window and is turned; of those that read it one was not.
    "turned": {"window": 4, "local": 3, "global_rope": False, "layers": 8},
    "turned step": {"window": 4, "local": 2, "global_rope": False, "cache": 12, "length": 2},
    # It sees everything and is not turned; those that read it were.
    "not turned": {"window": 4, "local": 3, "global_rope": False, "layers": 6},
    "one shares already": {"shared": 1, "cache": 12, "length": 1},
}


def build(config):
    keras.utils.set_random_seed(0)
    return decoder.build(config)


def examples(model, batch=3):
    """Inputs of any form: of equal names equal ones."""
    generator = np.random.default_rng(0)

    def one(name, tensor):
        shape = (batch, *tensor.shape[1:])
        if name == "tokens":
            return np.arange(np.prod(shape)).reshape(shape).astype("int32") % 50
        if name == "position":
            return np.full(shape, 5, "int32")
        number = sum(map(ord, name))
        return np.random.default_rng(number).normal(size=shape).astype("float32")

    if not isinstance(model.input, dict):
        return generator.integers(0, 50, (batch, *model.input.shape[1:])).astype("int32")
    return {name: one(name, tensor) for name, tensor in model.input.items()}


def outputs(model):
    found = model(examples(model))
    found = found if isinstance(found, dict) else {"logits": found}
    return {name: keras.ops.convert_to_numpy(tensor) for name, tensor in found.items()}


@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)
def test_it_is_the_network_that_the_family_builds(fields):
    config = dataclasses.replace(SMALL, **fields)
    model = build(config)
    done = compress(model, [ShareKV(0.375)])
    number = round(0.375 * config.layers)
    expected = dataclasses.replace(config, shared=number)
    assert config_of(done.model, "it") == expected  # every layer, its options and its name
    other = decoder.build(expected)
    copy_weights(done.model, other)
    copy_weights(model, other)  # what is left has the weights it had
    found = outputs(done.model)
    for name, value in outputs(other).items():
        np.testing.assert_allclose(found.pop(name), value, atol=1e-6)
    assert not found
    (told,) = done.record.details.values()
    assert told["source"] == f"block{config.layers - number}_attention_context"
    assert len(told["sharing"]) == number
    share = told["keys_and_values_after"] / told["keys_and_values_before"]
    assert share == pytest.approx((config.layers - number) / (config.layers - config.shared))


def test_caches_are_three_eighths_smaller():
    config = dataclasses.replace(SMALL, cache=12, length=1)
    model = build(config)
    small = compress(model, [ShareKV()]).model

    def bytes_of_caches(model):
        caches = [tensor for name, tensor in model.input.items() if "cache" in name]
        return sum(4 * np.prod(tensor.shape[1:]) for tensor in caches)

    assert bytes_of_caches(small) == 0.625 * bytes_of_caches(model)
    assert set(small.input) - {"tokens", "position"} == set(small.output) - {"logits"}
    shared = dataclasses.replace(SMALL, shared=3)
    assert decoder.kv_bytes(shared, 100) == 0.625 * decoder.kv_bytes(SMALL, 100)
    assert len(model.input) == 2 + 16  # the model given is as it was


def test_the_step_with_caches_and_the_whole_text_agree(tmp_path):
    """One token after the other, in the shared step: the logits of the shared whole network."""
    config = dataclasses.replace(SMALL, cache=12, length=1)
    step, whole = (compress(build(c), [ShareKV()]).model for c in (config, SMALL))
    copy_weights(whole, step)
    step.save(tmp_path / "step.keras")
    step = keras.saving.load_model(tmp_path / "step.keras")
    tokens = np.arange(12).reshape(2, 6).astype("int32")
    expected = keras.ops.convert_to_numpy(whole(tokens))
    caches = {
        name: np.zeros((2, *tensor.shape[1:]), "float32")
        for name, tensor in step.input.items()
        if "cache" in name
    }
    for position in range(6):
        inputs = {"tokens": tokens[:, position : position + 1], **caches}
        inputs["position"] = np.full((2, 1), position, "int32")
        caches = {name: keras.ops.convert_to_numpy(t) for name, t in step(inputs).items()}
        logits = caches.pop("logits")
        np.testing.assert_allclose(logits[:, 0], expected[:, position], atol=1e-5)


def test_the_prefill_form_answers_as_the_family_s():
    """Its graph is another: the family crops to the last token where sharing begins."""
    config = dataclasses.replace(SMALL, cache=12, last_only=True)
    done = compress(build(config), [ShareKV()]).model
    other = decoder.build(dataclasses.replace(config, shared=3))
    copy_weights(done, other)
    found, expected = outputs(done), outputs(other)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)


@pytest.mark.slow
def test_it_learns_again():
    config = dataclasses.replace(SMALL, layers=4, length=16)
    text = np.tile(np.arange(20), 60)
    windows = np.lib.stride_tricks.sliding_window_view(text, 17)[:64].astype("int32")
    task = Task(
        name="text",
        train=(windows[:, :-1], windows[:, 1:]),
        valid=(windows[:, :-1], windows[:, 1:]),
        fields={},
        recipe="",
        loss=next_token,
        scorer=lambda model, predict: lambda inputs, targets: np.zeros(len(targets)),
    )
    options = {"batch_size": 16, "learning_rate": 1e-2, "schedule": "constant"}
    model = build(config)
    fit(model, task, 10, 0, **options)
    losses = []

    def train(prepared, update):
        trained = fit(prepared, task, 5, 0, update=update, **options)
        losses.extend(epoch.valid_loss for epoch in trained.history)

    data = Data(windows[:, :-1], windows[:, 1:], next_token)

    def loss(model):
        return float(keras.ops.mean(next_token(model(data.inputs), data.targets)))

    at_once = loss(compress(model, [ShareKV(0.5)]).model)
    after = loss(compress(model, [ShareKV(0.5)], fit=train, data=data).model)
    assert loss(model) < at_once and after < 0.5 * at_once
    assert after == pytest.approx(losses[-1], rel=1e-3)


def test_what_cannot_be_is_said():
    with pytest.raises(NotApplicable, match="no causal attention, only Attention .*both ways"):
        compress(vit.build(vit.VARIANTS["tiny"]), [ShareKV()])
    with pytest.raises(NotApplicable, match="no causal attention"):
        compress(conformer.build(conformer.VARIANTS["tiny"]), [ShareKV()])
    one = dataclasses.replace(SMALL, layers=1)
    with pytest.raises(NotApplicable, match="of 1 attention layers is 0"):
        compress(build(one), [ShareKV()])
    shared = dataclasses.replace(SMALL, shared=3)
    with pytest.raises(NotApplicable, match="share already"):
        compress(build(shared), [ShareKV()])
    with pytest.raises(ValueError, match="share=1"):
        ShareKV(1)


def test_heads_that_do_not_fit_are_refused():
    inputs = keras.Input((5, 8))
    x = inputs
    for number, groups in ((1, 2), (2, 1)):
        query = keras.layers.Dense(8, name=f"query{number}")(x)
        key, value = (keras.layers.Dense(4 * groups, name=f"{n}{number}")(x) for n in "kv")
        x = Attention(2, groups, causal=True, name=f"context{number}")(query, key, value)
    with pytest.raises(NotApplicable, match="context2 has 1 key-value heads, context1 has 2"):
        compress(keras.Model(inputs, x), [ShareKV(0.5)])


def test_a_table_of_what_was_left_alone():
    record = compress(build(SMALL), [ShareKV()]).record
    assert "only the keys and values of the last" in record.untouched["block8_feed_up"]
    (told,) = record.details.values()
    removed = [f"block{n}_attention_{kind}/kernel" for n in (6, 7, 8) for kind in ("key", "value")]
    assert told["weights_removed"] == removed

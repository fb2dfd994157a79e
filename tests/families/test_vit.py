"""ViT against published counts and a plain NumPy forward pass."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest

from families import vit
from families.layers import ClassToken, Positions, shapes_only
from families.vit import VARIANTS, Config
from latency.networks.count import count
from latency.tflite.convert import convert, run

PUBLISHED = {
    "ti16": 5_717_416,
    "s16": 22_050_664,
    "b16": 86_567_656,
    "l16": 304_326_632,
    "s32": 22_878_952,
    "b32": 88_224_232,
}


def test_every_published_variant_has_its_count():
    assert set(PUBLISHED) == set(VARIANTS) - {"tiny"}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_params_and_macs_are_the_published_ones(variant, shared_data):
    with shapes_only():
        cost = count(vit.build(VARIANTS[variant]))
    assert cost.total_params == cost.trainable_params == PUBLISHED[variant]
    assert not cost.uncounted
    rows = json.loads((shared_data.parent / "reference" / "models.json").read_text())
    (row,) = [row for row in rows if (row["family"], row["variant"]) == ("vit", variant)]
    assert cost.macs == pytest.approx(
        row["flops_or_madds"], rel=row["check"]["flops_tol_pct"] / 100
    )
    assert cost.macs == row["calculated"]["macs"]


SMALL = Config((12, 8, 3), 5, patch=4, layers=2, dim=8, heads=2, hidden=12, pre_logits=True)


def _random(model, seed=0):
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(generator.normal(scale=0.5, size=weight.shape))
    return model


def _reference(model, config, images):
    """The forward pass from the papers' formulas, in float64."""
    weights = {weight.path: np.asarray(weight.value, np.float64) for weight in model.weights}

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    (height, width, channels), side = config.input_shape, config.patch
    x = images.reshape(-1, height // side, side, width // side, side, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), -1, side * side * channels)
    kernel = weights["patch_embed/kernel"].reshape(side * side * channels, config.dim)
    x = x @ kernel + weights["patch_embed/bias"]
    token = np.broadcast_to(weights["class_token/token"], (len(images), 1, config.dim))
    x = np.concatenate([token, x], 1) + weights["positions/positions"]
    for number in range(1, config.layers + 1):
        path = f"block{number}"
        y = norm(x, f"{path}_attention_norm")
        query, key, value = (
            dense(y, f"{path}_attention_{role}").reshape(len(y), -1, config.heads, 4)
            for role in ("query", "key", "value")
        )
        scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        y = np.einsum("bhqk,bkhd->bqhd", scores, value).reshape(x.shape)
        x = x + dense(y, f"{path}_attention_project")
        y = dense(norm(x, f"{path}_mlp_norm"), f"{path}_mlp_expand")
        x = x + dense(gelu(y), f"{path}_mlp_project")
    x = np.tanh(dense(norm(x, "head_norm")[:, 0], "head_pre_logits"))
    return dense(x, "head_logits")


def test_outputs_are_those_of_plain_numpy_and_of_litert():
    model = _random(vit.build(SMALL))
    images = np.random.default_rng(1).normal(size=(3, 12, 8, 3)).astype("float32")
    expected = _reference(model, SMALL, images)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(convert(model), images[:1]), expected[:1], rtol=1e-4, atol=1e-4)


def test_dropout_is_where_published_code_has_it():
    model = vit.build(dataclasses.replace(SMALL, dropout=0.1))
    names = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    blocks = [f"block{n}_{part}_dropout" for n in (1, 2) for part in ("attention", "mlp")]
    assert names == ["positions_dropout", *blocks]
    assert not any("dropout" in layer.name for layer in vit.build(SMALL).layers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch", 5),
        ("heads", 3),
        ("dim", 0),
        ("dropout", 1.0),
        ("input_shape", (12, 8)),
    ],
)
def test_what_cannot_be_is_refused(field, value):
    with pytest.raises(ValueError, match=f"ViT {field}"):
        dataclasses.replace(SMALL, **{field: value})


def test_equal_networks_are_equal_configs():
    spelled = dataclasses.replace(SMALL, input_shape=[12, 8, 3], dropout=0, pre_logits=1)
    assert spelled == SMALL and hash(spelled) == hash(SMALL) and repr(spelled) == repr(SMALL)


def test_the_leaves_of_a_token_sequence():
    token = ClassToken()
    x = np.ones((2, 3, 4), "float32")
    token.build((None, 3, 4))
    token.token.assign(np.full((1, 1, 4), 7.0))
    np.testing.assert_array_equal(np.asarray(token(x))[:, 0], np.full((2, 4), 7.0))
    np.testing.assert_array_equal(np.asarray(token(x))[:, 1:], x)
    positions = Positions()
    positions.build((None, 3, 4))
    assert np.std(np.asarray(positions.positions.value)) == pytest.approx(0.02, rel=0.6)
    np.testing.assert_allclose(positions(x), x + np.asarray(positions.positions.value))

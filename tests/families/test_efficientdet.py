"""EfficientDet: published counts, pyramids of odd sizes, fusion, the file that finds objects."""

import dataclasses
import json

import keras
import numpy as np
import optuna
import pytest

from families import efficientdet, efficientnet
from families.efficientdet import VARIANTS, build, deploy
from families.layers import Fusion, copy_weights, shapes_only
from families.objectives import boxes
from latency.networks import count as cost
from latency.tflite import convert
from search_spaces import efficientdet as space

TINY = VARIANTS["tiny"]
# google/automl efficientdet/efficientdet_arch_test.py; d7x by the same code.
PARAMS = {
    "d0": 3_880_067,
    "d1": 6_625_898,
    "d7x": 77_147_166,
    "lite0": 3_243_470,
    "lite3x": 9_280_862,
}


@pytest.mark.parametrize("variant", ["d0", "lite0"])
def test_parameters_are_those_of_the_released_networks(variant):
    with shapes_only():
        assert cost.count(build(VARIANTS[variant])).trainable_params == PARAMS[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "tiny"])
def test_published_counts_to_the_last(variant, shared_data):
    path = shared_data.parent / "reference" / "models.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [row for row in json.loads(path.read_text()) if row["family"] == "efficientdet"]
    (row,) = (row for row in rows if row["variant"] == variant)
    with shapes_only():
        counted = cost.count(build(VARIANTS[variant]))
    wanted = row["check"].get("params_exact", row["params"])
    assert counted.trainable_params == wanted == PARAMS.get(variant, wanted)
    assert abs(counted.macs / row["flops_or_madds"] - 1) < 0.035
    if "calculated" in row:
        assert counted.macs == row["calculated"]["macs"]


def test_the_backbone_takes_weights_of_an_efficientnet():
    config = dataclasses.replace(TINY, input_shape=(32, 32, 3))
    detector = build(config)
    classifier = efficientnet.build(
        efficientnet.Config(
            input_shape=(32, 32, 3),
            classes=2,
            stem_filters=config.stem_filters,
            blocks=config.blocks,
            survival=config.survival,
            norm_momentum=config.norm_momentum,
        )
    )
    shared = {weight.path for weight in classifier.weights} & {w.path for w in detector.weights}
    assert len(shared) == len([w for w in classifier.weights if not w.path.startswith("head")])


@pytest.mark.parametrize("shape", [(64, 64, 3), (40, 72, 3), (33, 50, 1)])
def test_there_is_a_prediction_for_every_anchor(shape):
    config = dataclasses.replace(TINY, input_shape=shape, levels=(2, 6), classes=4)
    with shapes_only():
        made = build(config).output
    count = len(boxes.anchors(shape, (2, 6), config.anchor_scale))
    assert made["logits"].shape == (None, count, 4)
    assert made["codes"].shape == made["anchors"].shape == (None, count, 4)


def test_nearest_places_of_odd_sizes():
    """3 places made 5: as tf.image.resize does it, the released code's way."""
    from families.efficientdet import _resized

    inputs = keras.Input((3, 2, 1))
    model = keras.Model(inputs, _resized(inputs, (None, 5, 4, 1), "x"))
    image = np.arange(6, dtype="float32").reshape(1, 3, 2, 1)
    expected = image[:, np.floor(np.arange(5) * 3 / 5).astype(int)]
    expected = expected[:, :, np.floor(np.arange(4) * 2 / 4).astype(int)]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(image)), expected)


def test_weights_are_shared_by_levels_and_norms_are_not():
    model = build(TINY)
    calls = {row.name: 0 for row in cost.count(model).layers}
    for row in cost.count(model).layers:
        calls[row.name] += 1
    assert calls["class_1_depthwise"] == calls["box_last_pointwise"] == 3
    for level in (3, 4, 5):
        assert calls[f"class_1_{level}_norm"] == 1


def test_fusion_by_hand():
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=(2, 3, 3, 4)).astype("float32") for _ in range(3)]
    weights = np.float32([0.5, -1.0, 2.0])
    for method in ("fast", "softmax"):
        layer = Fusion(method)
        layer.build([part.shape for part in parts])
        layer.fusion.assign(weights)
        share = np.maximum(weights, 0) if method == "fast" else np.exp(weights)
        share = share / (share.sum() + (1e-4 if method == "fast" else 0))
        expected = sum(part * one for part, one in zip(parts, share, strict=True))
        found = keras.ops.convert_to_numpy(layer(parts))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'mean'; expected one of"):
        Fusion("mean")


def test_it_begins_with_rare_objects():
    model = build(TINY)
    logits = model(np.zeros((1, *TINY.input_shape), "float32"), training=False)["logits"]
    found = 1 / (1 + np.exp(-keras.ops.convert_to_numpy(logits)))
    np.testing.assert_allclose(found.mean(), 0.01, atol=2e-3)


def test_bad_configs_are_told():
    for changes, words in (
        ({"fusion": "mean"}, "fusion: got 'mean'"),
        ({"levels": (6, 7)}, "levels: .* from 1 to 4"),
        ({"levels": (3, 3)}, "levels"),
        ({"cells": 0}, "cells: got 0, expected a positive"),
        ({"form": "boxes"}, "form"),
        ({"anchor_scale": 0}, "anchor_scale"),
        ({"stem_filters": 0}, "stem_filters"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(TINY, **changes)


def _detector(config):
    """A network that is sure of some things: its logits are far apart, its boxes as well."""
    keras.utils.set_random_seed(1)
    model = build(config)
    generator = np.random.default_rng(1)
    for layer in model.layers:
        if layer.name in ("class_last_pointwise", "box_last_pointwise"):
            scale = 4.0 if "class" in layer.name else 1.0
            kernel = generator.normal(0, scale, layer.kernel.shape)
            layer.kernel.assign(kernel.astype("float32"))
    return model


def test_the_file_finds_what_keras_finds():
    """One .tflite: boxes, scores and classes after suppression, within a thousandth of a pixel."""
    trained = _detector(TINY)
    deployed = build(deploy(TINY))
    copy_weights(trained, deployed)
    images = np.random.default_rng(0).random((3, *TINY.input_shape), np.float32)
    tflite = convert.convert(deployed)
    for image in images[:, None]:
        made = {k: keras.ops.convert_to_numpy(v) for k, v in trained(image, training=False).items()}
        expected = boxes.select_objects(
            made["logits"], made["codes"], made["anchors"][0], TINY.input_shape
        )
        expected = {k: keras.ops.convert_to_numpy(v) for k, v in expected.items()}
        there = expected["classes"] >= 0
        assert there.sum() > 5 and len(set(expected["classes"][there])) > 1
        for found in (deployed(image, training=False), convert.run(tflite, {"image": image})):
            found = {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}
            assert boxes.largest_difference(found, expected) < 1e-3
            np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)


def test_the_space_holds_its_bases_and_other_pyramids():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [space.sample(study.ask(), base="tiny") for _ in range(30)]
    for field in ("filters", "cells", "fusion", "head_repeats"):
        assert len({getattr(config, field) for config in found}) >= 2, field
    assert all(config.blocks == TINY.blocks for config in found)
    for base in ("tiny", "d0", "d3"):
        config = VARIANTS[base]
        chosen = {
            "filters": 1.0,
            "cells": 0,
            "fusion": config.fusion,
            "head_repeats": 0,
        }
        fixed = optuna.trial.FixedTrial(chosen)
        assert space.sample(fixed, base=base) == config == space.baseline(base)
    with pytest.raises(ValueError, match="unknown base 'd9'"):
        space.baseline("d9")


@pytest.mark.slow
def test_on_jax(passes_on_jax):
    passes_on_jax(__file__, "fusion_by_hand or begins_with_rare or nearest_places")


def test_what_is_deployed_is_a_form_of_the_same_config():
    assert deploy(TINY) == dataclasses.replace(TINY, form="objects") != TINY
    assert deploy(deploy(TINY)) == deploy(TINY)
    assert efficientdet.Config is type(deploy(TINY))

"""V-MoE and Mobile V-MoE: published counts, one decision per image, super-classes, the space."""

import dataclasses
import json

import keras
import numpy as np
import optuna
import pytest

from families import mobile_vmoe
from families.layers import Experts, copy_weights, shapes_only
from families.mobile_vmoe import VARIANTS, Config, dense_twin, deploy
from families.objectives.super_classes import router_loss, super_classes
from latency.networks.count import count
from latency.tflite.convert import convert, run
from nas import registry
from nas.tasks.routed import confusion, routed
from nas.training import loop
from search_spaces import vmoe

# Variants by the names of the published rows.
ROWS = {
    "ViT-S/32": "s32",
    "V-MoE-S/32 Last-2": "s32_last2",
    "V-MoE-S/32 Every-2": "s32_every2",
    "ViT-B/32": "b32",
    "V-MoE-B/32 Every-2": "b32_every2",
    "ViT-B/16": "b16",
    "V-MoE-B/16 Every-2": "b16_every2",
    "ViT-L/32": "l32",
    "V-MoE-L/32 Last-2": "l32_last2",
    "ViT-L/16": "l16",
    "V-MoE-L/16 Every-2": "l16_every2",
    "ViT-H/14": "h14",
    "V-MoE-H/14 Last-5": "h14_last5",
    "V-MoE-H/14 Every-2": "h14_every2",
    "V-MoE-15B Every-2": "15b_every2",
    "V-MoE S/32 E8 Last-2 (released, ILSVRC2012, 300ep)": "s32_last2_e8",
}
SMALL = Config(
    input_shape=(8, 8, 1),
    classes=4,
    patch=4,
    layers=3,
    dim=8,
    heads=2,
    hidden=8,
    moe_blocks=(2, 3),
    experts=4,
    top_k=2,
    expert_hidden=6,
    routing="image",
    importance_weight=0.01,
)


def _counted(config):
    with shapes_only():
        model = mobile_vmoe.build(config)
    cost = count(model)
    assert not cost.uncounted
    idle = sum(
        layer.count_params() - layer.active_params()
        for layer in model.layers
        if isinstance(layer, Experts)
    )
    return cost, cost.total_params - idle


def _images(number=6, config=SMALL, seed=0):
    shape = (number, *config.input_shape)
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _built(config, seed=0):
    keras.utils.set_random_seed(seed)
    model = mobile_vmoe.build(config)
    for layer in model.layers:
        if layer.name == "router":  # or all images choose alike
            generator = np.random.default_rng(seed)
            layer.kernel.assign(3 * generator.normal(size=layer.kernel.shape))
    return model


@pytest.mark.parametrize("row", ROWS)
def test_v_moe_has_the_published_counts(row, shared_data):
    rows = json.loads((shared_data.parent / "reference" / "models.json").read_text())
    assert set(ROWS) == {one["variant"] for one in rows if one["family"] == "v_moe"}
    (found,) = [one for one in rows if (one["family"], one["variant"]) == ("v_moe", row)]
    params = _counted(VARIANTS[ROWS[row]])[0].total_params
    tolerance = found["check"]["params_tol_pct"] / 100
    assert params == pytest.approx(found["calculated"]["params"], rel=1e-9)
    assert params == pytest.approx(found["params"] or params, rel=tolerance)


def test_mobile_v_moe_has_the_published_counts():
    cost, active = _counted(VARIANTS["ti16"])
    assert cost.total_params == 11_045_042
    assert active == 6_309_160 + 1_930  # the published 6.31 million, and the router
    one_cost, one_active = _counted(VARIANTS["ti16_k1"])
    assert one_cost.total_params == cost.total_params
    assert one_active == 5_717_416 + 1_930  # one of ten is the dense network


@pytest.mark.parametrize("variant", ["ti16", "tiny", "tiny_token", "s32_every2"])
def test_the_dense_twin_has_the_same_multiply_adds_but_for_the_router(variant):
    config = VARIANTS[variant]
    cost = _counted(config)[0]
    dense = _counted(dense_twin(config))[0]
    tokens = 1 if config.routing == "image" else config.tokens
    routers = 1 if config.routing == "image" else len(config.moe_blocks)
    assert cost.macs - dense.macs == routers * tokens * config.dim * config.experts
    assert dense.macs > 0.98 * cost.macs


def test_all_layers_and_tokens_of_an_image_go_the_same_way():
    model = _built(dataclasses.replace(SMALL, router_outputs=True))
    images = _images(32)
    logits = np.asarray(model(images)["router"])
    chosen = np.argsort(-logits, -1)[:, :2]
    assert len(np.unique(chosen)) == 4
    for block in (2, 3):
        # Experts that an image did not choose may be anything.
        layer = model.get_layer(f"block{block}_experts")
        before, kernel = np.asarray(model(images)["logits"]), layer.expand.value.numpy()
        changed = kernel.copy()
        changed[0] = np.random.default_rng(0).normal(size=kernel[0].shape)
        layer.expand.assign(changed)
        moved = np.abs(np.asarray(model(images)["logits"]) - before).max(-1) > 1e-6
        layer.expand.assign(kernel)
        np.testing.assert_array_equal(moved, (chosen == 0).any(-1))
    assert sum("router" in weight.path for weight in model.weights) == 2  # one, with bias


def test_the_deployed_form_is_the_trained_one_without_the_router_output():
    trained = _built(dataclasses.replace(SMALL, router_outputs=True))
    deployed = mobile_vmoe.build(deploy(dataclasses.replace(SMALL, router_outputs=True)))
    copy_weights(trained, deployed)
    images = _images()
    np.testing.assert_array_equal(deployed(images), trained(images)["logits"])
    exported = convert(deployed)
    for image in images:
        expected = np.asarray(deployed(image[None]))
        np.testing.assert_allclose(run(exported, image[None]), expected, atol=1e-5, rtol=1e-4)
    token = dataclasses.replace(SMALL, routing="token", capacity=1.05, noise=1.0, load_weight=0.1)
    assert deploy(token).capacity is None and deploy(token).noise == 1.0


def test_equal_networks_are_equal_configs():
    dense = dataclasses.replace(SMALL, moe_blocks=(), experts=1, top_k=1)
    assert dense == dataclasses.replace(SMALL, moe_blocks=())
    assert dense == dataclasses.replace(SMALL, experts=1, top_k=1, expert_hidden=0)
    assert dense != dataclasses.replace(SMALL, experts=1, top_k=1, expert_hidden=16)
    assert dataclasses.replace(SMALL, moe_blocks=[3, 2, 3], batch_priority=True) == SMALL
    assert dense_twin(dense) == dense


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 5}, "top_k"),
        ({"moe_blocks": (0, 1)}, "moe_blocks"),
        ({"moe_blocks": (4,)}, "moe_blocks"),
        ({"routing": "batch"}, "routing"),
        ({"noise": 1.0}, "noise"),
        ({"routing": "token", "router_outputs": True}, "router_outputs"),
        ({"experts": 1, "top_k": 1, "router_outputs": True}, "router_outputs"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_classes_that_are_confused_are_one_super_class():
    generator = np.random.default_rng(0)
    groups = np.array([0, 1, 0, 2, 1, 2, 0, 1])  # each class is confused within its group
    counts = generator.integers(0, 3, (8, 8))  # and now and then with any other
    counts = counts + 40 * (groups[:, None] == groups) + 500 * np.eye(8, dtype=int)
    np.testing.assert_array_equal(super_classes(counts, 3), groups)
    order = generator.permutation(8)
    shuffled = super_classes(counts[order][:, order], 3)
    same = groups[order][:, None] == groups[order]
    np.testing.assert_array_equal(shuffled[:, None] == shuffled, same)
    np.testing.assert_array_equal(super_classes(counts, 8), np.arange(8))
    np.testing.assert_array_equal(super_classes(counts, 1), np.zeros(8))
    # Never confused: the graph has no edge, and there are still as many groups.
    assert len(set(super_classes(np.eye(8), 3))) == 3
    for wrong in (0, 9):
        with pytest.raises(ValueError, match="expected 1 to 8"):
            super_classes(counts, wrong)
    with pytest.raises(ValueError, match="expected counts"):
        super_classes(counts[:3], 2)


@pytest.fixture
def fashion_mnist(shared_data, monkeypatch):
    """The task finds its data where the tests do."""
    monkeypatch.setenv("NAS_DATA", str(shared_data))


def test_the_loss_is_the_tasks_and_so_much_of_the_routers(fashion_mnist):
    task = registry.task("fashion_mnist", limit=600)
    mapping = np.array([0, 1, 0, 2, 0, 3, 0, 3, 2, 3])
    logits, router = _images(5).reshape(5, -1)[:, :10], _images(5, seed=1).reshape(5, -1)[:, :4]
    labels = np.array([0, 9, 3, 3, 7])
    outputs = {"logits": keras.ops.array(logits), "router": keras.ops.array(router)}

    def entropy(logits, labels):
        return np.log(np.exp(logits).sum(-1)) - logits[np.arange(5), labels]

    own, guided = entropy(logits, labels), entropy(router, mapping[labels])
    np.testing.assert_allclose(
        routed(task, mapping).loss(outputs, labels), own + 0.3 * guided, 1e-5
    )
    np.testing.assert_allclose(routed(task, mapping, 0.0).loss(outputs, labels), own, 1e-5)
    with pytest.raises(ValueError, match="4 experts for 3 super-classes"):
        router_loss(outputs["router"], labels, np.array([0, 1, 2]))
    assert "routed" in routed(task, mapping).recipe


def test_a_router_learns_super_classes_from_the_confusions_of_a_network(fashion_mnist, tmp_path):
    config = dataclasses.replace(
        VARIANTS["tiny"], layers=2, hidden=32, expert_hidden=32, moe_blocks=(2,), experts=4
    )
    plain = registry.task("fashion_mnist", limit=1500)
    keras.utils.set_random_seed(0)
    dense = mobile_vmoe.build(dense_twin(config))
    loop.fit(dense, plain, 4, 0, learning_rate=3e-3)
    counts = confusion(dense, plain)
    np.testing.assert_array_equal(counts.sum(1), np.bincount(plain.valid[1]))
    assert np.trace(counts) / counts.sum() == pytest.approx(loop.evaluate(dense, plain))
    dense.save(tmp_path / "dense.keras")

    options = f"groups=4,model={tmp_path}/dense.keras,limit=1500"
    task = registry.task(f"routed:fashion_mnist,{options}")
    keras.utils.set_random_seed(0)
    model = mobile_vmoe.build(dataclasses.replace(config, **task.fields))
    done = loop.fit(model, task, 4, 0, learning_rate=3e-3)
    assert done.quality > 0.6
    mapping = super_classes(counts, 4)
    outputs = model(task.train[0][:1000] / np.float32(255))
    right = np.argmax(outputs["router"], -1) == mapping[task.train[1][:1000]]
    assert right.mean() > 0.75
    with pytest.raises(ValueError, match="expected model=FILE.keras"):
        registry.task("routed:fashion_mnist,groups=4,limit=1500")
    with pytest.raises(ValueError, match="no file"):
        registry.task(f"routed:fashion_mnist,groups=4,model={tmp_path}/none.keras,limit=1500")


def test_the_space_holds_its_base_and_only_networks_that_can_be_built():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(200):
        config = vmoe.sample(study.ask())
        seen.add(config)
        assert config.patch == 2 ** len(config.stem)
        assert config.dim % config.heads == 0
    assert len(seen) > 150
    assert {config.routing for config in seen} == {"image", "token"}
    for config in sorted(seen, key=repr)[:3]:
        assert mobile_vmoe.build(config)(_images(2, config)).shape == (2, 10)
    base = vmoe.baseline("tiny")
    choices = {
        "patch": base.patch,
        "width": 1.0,
        "depth": 0,
        "hidden": base.hidden // base.dim,
        "experts": base.experts,
        "moe_layers": "last2",
        "routing": base.routing,
        "top_k": base.top_k,
        "expert_hidden": base.expert_hidden / base.dim,
    }
    assert vmoe.sample(optuna.trial.FixedTrial(choices)) == base
    for variant in ("ti16", "b16"):  # others build, too, without memory
        config = vmoe.sample(optuna.create_study().ask(), base=variant)
        with shapes_only():
            mobile_vmoe.build(config)
    with pytest.raises(ValueError, match="unknown base"):
        vmoe.sample(study.ask(), base="large")

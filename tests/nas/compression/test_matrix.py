"""Every method on every family, and any two methods in both orders: no cell empty, none silent."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest

from compress.method import NotApplicable, compress
from families import mobile_vmoe
from latency.networks.random_inputs import random_inputs
from nas import registry
from nas.compression import examples, matrix
from nas.training import loop

METHODS = list(registry.listing("method"))
FAMILIES = list(registry.listing("family"))
CONVOLUTIONAL = {"mnasnet", "mobilenet_v2", "efficientnet", "efficientnet_x", "efficientdet"}
# What cannot be, with a word of the reason; all else must do something.
NOT = {
    "drop_experts": (CONVOLUTIONAL | {"vit", "conformer", "decoder"}, "expert"),
    "share_kv": (CONVOLUTIONAL | {"vit", "mobile_vmoe", "conformer"}, "keys and values"),
    "instruction_pruning": (CONVOLUTIONAL, "feed-forward"),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory, shared_data):
    """Family -> (model, task) of its tiny, the first time it is asked for."""
    folder, found = tmp_path_factory.mktemp("matrix"), {}

    def network(family):
        if family not in found:
            module, config = registry.network(f"{family}:tiny")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("NAS_DATA", str(shared_data))
                task = matrix.task_for(config, folder)
            task = dataclasses.replace(
                task, **{part: _few(getattr(task, part)) for part in ("train", "valid")}
            )
            keras.utils.set_random_seed(0)
            found[family] = module.build(dataclasses.replace(config, **task.fields)), task
        return found[family]

    return network


def _few(part, count=32):
    return tuple(keras.tree.map_structure(lambda array: array[:count], tree) for tree in part)


def _compressed(model, task, methods):
    """The result of two steps of training."""
    data = examples.examples(task, model, 16, 0)

    def fit(prepared, update):
        loop.fit(prepared, task, 2, 0, batch_size=16, learning_rate=1e-3, update=update)

    return compress(model, methods, fit, data)


def _changed(before, done):
    """Whether the network is another: in its weights, its layers, or what is known of it."""
    old = {weight.path: np.asarray(weight) for weight in before.weights}
    new = {weight.path: np.asarray(weight) for weight in done.model.weights}
    if old.keys() != new.keys() or done.record.variants:
        return True
    return any(not np.array_equal(old[path], new[path]) for path in old)


@pytest.mark.matrix
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_method_does_something_on_each_family_or_says_why_not(networks, family, method):
    model, task = networks(family)
    families, reason = NOT.get(method, (set(), ""))
    before = [np.asarray(weight) for weight in model.weights]
    if family in families:
        with pytest.raises(NotApplicable, match=reason):
            _compressed(model, task, [registry.method(method)])
    else:
        done = _compressed(model, task, [registry.method(method)])
        assert _changed(model, done)
        inputs = random_inputs(done.model, 2)
        for output in keras.tree.flatten(done.model(inputs, training=False)):
            assert np.isfinite(np.asarray(output)).all()
        assert repr(registry.method(method)) in done.record.details or done.record.weights
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), value)


@pytest.fixture(scope="module")
def small():
    """A network on which every method has something to do but for shared keys, and its task."""
    task = registry.task("digits:8")
    task = dataclasses.replace(
        task, **{part: _few(getattr(task, part)) for part in ("train", "valid")}
    )
    config = dataclasses.replace(
        mobile_vmoe.VARIANTS["tiny"],
        **task.fields,
        patch=4,
        stem=(),
        layers=2,
        dim=16,
        heads=2,
        hidden=32,
        expert_hidden=16,
        experts=4,
        moe_blocks=(2,),
    )
    keras.utils.set_random_seed(0)
    return mobile_vmoe.build(config), task


# Pairs in which the first leaves the second nothing, or that exclude each other.
QUANTIZERS = {"qat", "ptq", "palettize"}
EXCLUDED = [{"dynamic_sparsity", "instruction_pruning"}, {"dynamic_sparsity", "recover"}]


def _pairs():
    """Ordered pairs; of methods of two stages one order, as `compress` prepares by stage."""
    stages = {name: registry.method(name).stage for name in METHODS if name != "share_kv"}
    return [
        pair for pair in itertools.permutations(stages, 2) if stages[pair[0]] <= stages[pair[1]]
    ]


@pytest.mark.matrix
@pytest.mark.parametrize("pair", _pairs(), ids="+".join)
def test_any_two_methods_compose_in_both_orders(small, pair):
    model, task = small
    methods = [registry.method(name) for name in pair]
    try:
        done = _compressed(model, task, methods)
    except NotApplicable:
        assert set(pair) in EXCLUDED or set(pair) <= QUANTIZERS
        return
    assert _changed(model, done) and list(done.record.check(done.model)) == []
    outputs = keras.tree.flatten(done.model(random_inputs(done.model, 2), training=False))
    assert all(np.isfinite(np.asarray(output)).all() for output in outputs)

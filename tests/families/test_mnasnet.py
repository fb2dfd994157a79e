"""MnasNet, its space and MobileNetV2: published counts, canonical form, the 432 choices."""

import dataclasses
import functools
import itertools
import json
import math
import random

import keras
import numpy as np
import optuna
import pytest

from families import mnasnet, mobilenet_v2
from families.blocks import convolution as pieces
from families.mnasnet import VARIANTS, Block, Config
from latency.networks.count import count
from search_spaces import mnasnet as space

# Published parameters and multiply-adds (tensorflow/tpu models/official/mnasnet README, sizes in
# pixels), with the tolerances in percent that rounding in the tables asks for; the parameters of
# A1, B1 and their widths are also known exactly from the released code.
A1_PARAMS = {"a1_x1.4": 6105992, "a1": 3887038, "a1_x0.75": 2912278, "a1_x0.5": 2082006}
A1_PARAMS["a1_x0.35"] = 1747018
A1_TABLE = {  # variant: (published millions of parameters, {input size: millions of MACs})
    "a1_x1.4": (6.1, {224: 591.5, 192: 435.1, 160: 302.8, 128: 194.5, 96: 110.3}),
    "a1": (3.9, {224: 315.2, 192: 232.0, 160: 161.6, 128: 104.1, 96: 59.3}),
    "a1_x0.75": (2.9, {224: 226.7, 192: 166.9, 160: 116.4, 128: 75.0, 96: 42.9}),
    "a1_x0.5": (2.1, {224: 105.2, 192: 77.6, 160: 54.4, 128: 35.3, 96: 20.5}),
    "a1_x0.35": (1.7, {224: 63.2, 192: 46.8, 160: 32.9, 128: 21.6, 96: 12.7}),
}


@pytest.mark.parametrize("variant", A1_TABLE)
def test_a1_counts_match_the_published_table(variant):
    millions, macs_by_size = A1_TABLE[variant]
    params_tolerance, macs_tolerance = (0.03, 0.03) if variant == "a1_x0.35" else (0.015, 0.025)
    for size, macs in macs_by_size.items():
        config = dataclasses.replace(VARIANTS[variant], input_shape=(size, size, 3))
        cost = count(mnasnet.build(config))
        assert cost.trainable_params == A1_PARAMS[variant]
        assert cost.trainable_params == pytest.approx(millions * 1e6, rel=params_tolerance)
        assert cost.macs == pytest.approx(macs * 1e6, rel=macs_tolerance)
        assert not cost.uncounted


def test_b1_and_small_counts_match_published():
    b1, small = (count(mnasnet.build(VARIANTS[name])) for name in ("b1", "small"))
    assert b1.trainable_params == 4383312
    assert b1.macs == 314415872 == pytest.approx(315.0e6, rel=0.02)
    assert small.trainable_params == pytest.approx(2.0e6, rel=0.02)
    assert small.macs == pytest.approx(68.0e6, rel=0.04)


MOBILENET_V2 = {  # exact trainable parameters and published millions of MACs
    "x1.4": (6108776, 582),
    "x1.3": (5386792, 509),
    "x1.0": (3504872, 300),
    "x0.75": (2636424, 209),
    "x0.5": (1968680, 97),
    "x0.35": (1677128, 59),
}


@pytest.mark.parametrize("variant", MOBILENET_V2)
def test_mobilenet_v2_counts_are_exact(variant):
    params, macs = MOBILENET_V2[variant]
    cost = count(mobilenet_v2.build(mobilenet_v2.VARIANTS[variant]))
    assert cost.trainable_params == params
    assert cost.macs == pytest.approx(macs * 1e6, rel=0.01)


def test_mobilenet_v2_computes_what_keras_applications_computes():
    config = dataclasses.replace(mobilenet_v2.VARIANTS["x0.35"], input_shape=(96, 96, 3))
    ours = mobilenet_v2.build(config)
    theirs = keras.applications.MobileNetV2(
        (96, 96, 3), alpha=0.35, weights=None, classifier_activation=None
    )
    generator = np.random.default_rng(0)
    values = [  # the moving variances must not be negative
        abs(generator.normal(weight.numpy(), 0.1)) + 0.1
        if "variance" in weight.path
        else generator.normal(weight.numpy(), 0.1)
        for weight in theirs.weights
    ]
    theirs.set_weights(values)
    ours.set_weights(values)
    images = generator.normal(size=(2, 96, 96, 3)).astype("float32")
    expected = theirs(images, training=False).numpy()
    np.testing.assert_allclose(ours(images, training=False).numpy(), expected, rtol=2e-3, atol=1e-4)
    assert np.abs(expected).max() > 1e-3


def choices(config: Config) -> dict:
    """Parameters of the space that ask for `config` itself, around a base with its widths."""
    names = {op: name for name, op in space.OPS.items()}
    params = {}
    for number, block in enumerate(config.blocks, 1):
        params[f"block{number}_op"] = names[block.op, block.expand]
        params[f"block{number}_kernel"] = block.kernel
        params[f"block{number}_se"] = block.se_ratio
        params[f"block{number}_skip"] = block.skip
        params[f"block{number}_filters"] = 1.0
        params[f"block{number}_layers"] = 0
    return params


def sample(params: dict, base: str) -> Config:
    return space.sample(optuna.trial.FixedTrial(params), base=base)


@pytest.mark.parametrize("base", space.BASES)
def test_every_base_is_inside_its_own_space(base):
    config = space.baseline(base)
    assert sample(choices(config), base) == config


def test_small_differs_from_its_space_neighbours():
    params = choices(VARIANTS["small"]) | {"block1_skip": "identity"}
    assert sample(params, "small") != VARIANTS["small"]  # 8 -> 8 channels: the shortcut is real


@pytest.mark.parametrize("base", ["tiny", "a1", "mobilenet_v2"])
def test_a_block_has_432_choices_and_names_never_change(base):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(20)]
    for trial in trials:
        space.sample(trial, base=base)
    assert all(trial.distributions == trials[0].distributions for trial in trials)
    for number in range(1, len(space.baseline(base).blocks) + 1):
        sizes = [
            len(distribution.choices)
            for name, distribution in trials[0].distributions.items()
            if name.startswith(f"block{number}_")
        ]
        assert math.prod(sizes) == 432


def test_unknown_base_is_refused():
    with pytest.raises(ValueError, match="unknown base 'a2', expected one of a1, b1"):
        space.sample(optuna.trial.FixedTrial({}), base="a2")


# A base so small that many real networks are built in seconds; every kind of layer occurs:
# with and without stride, with equal and with other channels, repeats at and above the minimum.
MINIATURE = Config(
    input_shape=(8, 8, 1),
    classes=2,
    stem_filters=8,
    stem_stride=1,
    blocks=(
        Block("conv", kernel=3, stride=1, filters=8, repeats=1),
        Block("mbconv", kernel=3, stride=2, filters=16, repeats=2, expand=3),
    ),
    head_filters=8,
)


def fingerprint(model: keras.Model) -> str:
    """The graph without names: layer types, their options, sizes and connections."""

    def options(layer):
        config = layer.get_config()
        config.pop("name")
        return json.dumps(config, sort_keys=True, default=str)

    numbers, lines = {}, []
    for layer in model.layers:  # in topological order
        sources = [
            numbers[tensor._keras_history.operation]
            for node in layer._inbound_nodes
            for tensor in node.input_tensors
        ]
        numbers[layer] = len(numbers)
        lines.append((type(layer).__name__, options(layer), layer.output.shape, sources))
    return repr(lines)


class Trace:
    """Stands for `keras` inside `build`: tensors are digests of the layers that made them."""

    def __init__(self, digest: int = 0, channels: int = 0):
        self.digest, self.shape = digest, (None, channels)

    def __getattr__(self, kind):
        if kind in ("layers", "initializers"):
            return self
        if kind == "Input":
            return lambda shape, name: Trace(hash(shape), shape[-1])
        if kind == "Model":
            return lambda inputs, outputs, name: outputs.digest
        if kind == "VarianceScaling":
            return lambda *args, **options: repr((args, options))
        return lambda *args, name, **options: functools.partial(self._call, kind, args, options)

    def _call(self, kind, args, options, inputs):
        inputs = inputs if isinstance(inputs, list) else [inputs]
        digests = tuple(tensor.digest for tensor in inputs)
        channels = args[0] if kind == "Conv2D" else inputs[0].shape[-1]
        return Trace(hash((kind, args, tuple(sorted(options.items())), digests)), channels)


def trace(config: Config) -> int:
    """A digest of what `build` does, without doing it: microseconds instead of 0.1 s."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (mnasnet, pieces):
            patch.setattr(module, "keras", Trace())
        return mnasnet.build(config)


@pytest.fixture
def domain(monkeypatch) -> dict:
    """The choices of the space around MINIATURE, by name."""
    monkeypatch.setitem(VARIANTS, "miniature", MINIATURE)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    space.sample(trial, base="miniature")
    return {name: kind.choices for name, kind in trial.distributions.items()}


def assignments(domain: dict, number: int) -> list[dict]:
    """Random assignments, each with two neighbours that differ from it in one choice."""
    generator = random.Random(number)
    found = []
    for _ in range(number):
        params = {name: generator.choice(options) for name, options in domain.items()}
        neighbours = generator.sample(list(domain), 2)
        found += [params | {name: generator.choice(domain[name])} for name in neighbours]
        found.append(params)
    return found


def test_configs_are_equal_exactly_when_networks_are(domain):
    first = {name: domain[name] for name in domain if name.startswith("block1_")}
    pairs = [[(name, value) for value in values] for name, values in first.items()]
    every_first_block = [dict(block) for block in itertools.product(*pairs)]
    assert len(every_first_block) == 432
    asked = assignments(domain, 1000)
    asked += [asked[-1] | choice for choice in every_first_block]
    asked += [choices(MINIATURE) | choice for choice in every_first_block]
    configs = [sample(params, "miniature") for params in asked]
    assert configs == [sample(params, "miniature") for params in asked]
    networks = {config: trace(config) for config in configs}
    distinct = {tuple(sorted(params.items())) for params in asked}
    assert len(networks) < 0.9 * len(distinct), "hardly two assignments mean one network"
    assert len(set(networks.values())) == len(networks)


def test_real_networks_agree_with_their_traces(domain):
    configs = {sample(params, "miniature") for params in assignments(domain, 20)}
    fingerprints = {config: fingerprint(mnasnet.build(config)) for config in configs}
    assert len(set(fingerprints.values())) == len({trace(config) for config in configs})
    for config in list(configs)[:5]:
        assert fingerprint(mnasnet.build(config)) == fingerprints[config]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"op": "mbconv", "expand": 1}, {"op": "depthwise", "expand": 1}),
        ({"op": "conv", "expand": 6}, {"op": "conv", "expand": 1}),
        ({"op": "depthwise", "expand": 3}, {"op": "depthwise", "expand": 1}),
        ({"stride": 2, "skip": "identity"}, {"stride": 2, "skip": "none"}),
        ({"filters": 16, "skip": "identity"}, {"filters": 16, "skip": "none"}),
        ({"kernel": 3.0, "se_ratio": 0}, {"kernel": 3, "se_ratio": 0.0}),
    ],
)
def test_choices_that_build_the_same_network_are_spelled_the_same(change, same):
    first, second = (
        dataclasses.replace(
            MINIATURE,
            blocks=(dataclasses.replace(MINIATURE.blocks[0], **fields), MINIATURE.blocks[1]),
        )
        for fields in (change, same)
    )
    assert first == second and repr(first) == repr(second)
    assert trace(first) == trace(second)


def test_layers_below_one_are_one():
    params = choices(VARIANTS["tiny"])
    assert VARIANTS["tiny"].blocks[0].repeats == 1
    assert sample(params | {"block1_layers": -1}, "tiny") == VARIANTS["tiny"]
    assert sample(params | {"block1_layers": 1}, "tiny").blocks[0].repeats == 2


@pytest.mark.parametrize(
    ("variant", "added", "excited"), [("a1", 9, 8), ("b1", 10, 0), ("small", 9, 10)]
)
def test_published_networks_have_their_shortcuts_and_gates(variant, added, excited):
    kinds = [type(layer).__name__ for layer in mnasnet.build(VARIANTS[variant]).layers]
    assert (kinds.count("Add"), kinds.count("Multiply")) == (added, excited)


def test_pool_shortcut_reaches_every_layer():
    blocks = (Block("depthwise", kernel=3, stride=2, filters=16, repeats=2, skip="pool"),)
    network = mnasnet.build(dataclasses.replace(MINIATURE, blocks=blocks))
    names = {layer.name for layer in network.layers}
    assert {"block1_1_pool", "block1_1_shortcut", "block1_1_add", "block1_2_pool"} <= names
    assert "block1_2_shortcut" not in names  # channels agree
    assert network.get_layer("block1_1_add").output.shape == (None, 4, 4, 16)


@pytest.mark.parametrize(
    ("field", "value"),
    [("op", "mbconv4"), ("skip", "max"), ("se_ratio", 0.5), ("kernel", 0), ("repeats", 0)],
)
def test_meaningless_blocks_are_refused(field, value):
    block = dataclasses.replace(MINIATURE.blocks[0], **{field: value})
    with pytest.raises(ValueError, match=f"block1 {field}: got {value!r}, expected"):
        dataclasses.replace(MINIATURE, blocks=(block,))

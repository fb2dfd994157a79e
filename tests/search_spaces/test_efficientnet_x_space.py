"""The space of EfficientNet-X: what is inside it, one spelling for each network, fixed names."""

import dataclasses
import itertools
import json
import random
import re

import keras
import optuna
import pytest

from families import efficientnet, efficientnet_x
from families.efficientnet import Block, Config
from families.layers import shapes_only
from search_spaces import efficientnet_x as space

MINIATURE = Config(
    input_shape=(12, 12, 1),
    classes=2,
    stem_filters=8,
    blocks=(
        Block("mbconv", kernel=3, stride=1, filters=8, repeats=1),
        Block("mbconv", kernel=3, stride=2, filters=32, repeats=1, expand=3),
        Block("mbconv", kernel=3, stride=1, filters=8, repeats=1),
    ),
    head_filters=8,
    stem_stride=1,
)


def choices(config: Config) -> dict:
    """Parameters of the space that ask for `config` itself, around a base with its sizes."""
    params = {"activation": config.activation}
    for number, block in enumerate(config.blocks, 1):
        params |= {
            f"block{number}_op": block.op,
            f"block{number}_kernel": block.kernel,
            f"block{number}_expand": block.expand,
            f"block{number}_se": block.se_ratio,
            f"block{number}_activation": block.activation,
            f"block{number}_layout": block.layout,
            f"block{number}_filters": 1.0,
            f"block{number}_layers": 0,
        }
    return params


def sample(params: dict, base: str) -> Config:
    return space.sample(optuna.trial.FixedTrial(params), base=base)


@pytest.mark.parametrize(
    ("family", "variant"),
    [(efficientnet, "b0"), (efficientnet_x, "b0"), (efficientnet_x, "h-b0")],
    ids=["b0", "x-b0", "h-b0"],
)
def test_published_networks_are_inside_the_space_around_b0(family, variant):
    config = family.VARIANTS[variant]
    assert sample(choices(config), "b0") == config


@pytest.mark.parametrize("base", space.BASES)
def test_every_base_is_inside_its_own_space(base):
    config = space.baseline(base)
    assert sample(choices(config), base) == config


def test_names_never_change_and_a_block_has_all_its_choices():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(20)]
    for trial in trials:
        space.sample(trial, base="tiny")
    assert all(trial.distributions == trials[0].distributions for trial in trials)
    sizes = {
        name.removeprefix("block1_"): len(distribution.choices)
        for name, distribution in trials[0].distributions.items()
        if name.startswith("block1_")
    }
    assert sizes == {
        **{"op": 3, "kernel": 3, "expand": 4, "se": 4, "activation": 3},
        **{"layout": 5, "filters": 3, "layers": 3},
    }


def test_unknown_base_is_refused():
    with pytest.raises(ValueError, match="unknown base 'b8', expected one of tiny, x-tiny, b0"):
        space.sample(optuna.trial.FixedTrial({}), base="b8")


def fingerprint(config: Config) -> str:
    """The graph without names: layer types, their options, sizes and connections."""

    def options(layer):
        found = layer.get_config()
        return json.dumps({key: found[key] for key in found if key != "name"}, default=str)

    with shapes_only():
        model = efficientnet.build(config)
    numbers, lines = {}, []
    for layer in model.layers:  # in topological order
        sources = [
            numbers[tensor._keras_history.operation]
            for node in layer._inbound_nodes
            for tensor in node.input_tensors
        ]
        numbers[layer] = len(numbers)
        lines.append((type(layer).__name__, options(layer), layer.output.shape, sources))
    return re.sub(r'"seed": \d+', "", repr(lines))


@pytest.fixture
def miniature(monkeypatch) -> dict:
    """The choices of the space around MINIATURE, by name."""
    monkeypatch.setitem(space.BASES, "miniature", MINIATURE)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    space.sample(trial, base="miniature")
    return {name: kind.choices for name, kind in trial.distributions.items()}


def _pairs_are_equal_exactly_when_networks_are(configs: list[Config]) -> None:
    networks = {config: fingerprint(config) for config in dict.fromkeys(configs)}
    assert len(set(networks.values())) == len(networks)


def test_layouts_in_a_row_have_one_spelling(miniature):
    """All 125 rows of three layouts, with a stride between: equal configs, equal networks."""
    params = choices(MINIATURE)
    names = [f"block{number}_layout" for number in (1, 2, 3)]
    configs = [
        sample(params | dict(zip(names, row, strict=True)), "miniature")
        for row in itertools.product(space.LAYOUTS, repeat=3)
    ]
    assert len(set(configs)) == 87, "how many of the 125 are networks of their own"
    _pairs_are_equal_exactly_when_networks_are(configs)


@pytest.mark.slow
def test_configs_are_equal_exactly_when_networks_are(miniature):
    generator = random.Random(0)
    configs = []
    for _ in range(30):
        params = {name: generator.choice(options) for name, options in miniature.items()}
        for changed in (None, *generator.sample(list(miniature), 3)):
            near = {} if changed is None else {changed: generator.choice(miniature[changed])}
            configs.append(sample(params | near, "miniature"))
    assert len(set(configs)) < len(configs)
    _pairs_are_equal_exactly_when_networks_are(configs)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"op": "conv", "expand": 6}, {"op": "conv", "expand": 1}),
        ({"stride": 2, "skip": True}, {"stride": 2, "skip": False}),
        ({"filters": 16, "skip": True}, {"filters": 16, "skip": False}),
        ({"kernel": 3.0, "se_ratio": 0}, {"kernel": 3, "se_ratio": 0.0}),
    ],
)
def test_choices_that_build_the_same_network_are_spelled_the_same(change, same):
    first, second = (
        dataclasses.replace(
            MINIATURE,
            blocks=(dataclasses.replace(MINIATURE.blocks[0], **fields), *MINIATURE.blocks[1:]),
        )
        for fields in (change, same)
    )
    assert first == second and repr(first) == repr(second)
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.slow
def test_random_networks_of_the_space_build_train_and_are_written():
    import numpy as np

    from latency.tflite import convert

    keras.utils.set_random_seed(0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    generator = np.random.default_rng(0)
    base = dataclasses.replace(MINIATURE, input_shape=(15, 15, 1))  # odd: layouts pad and cut
    images = generator.normal(size=(8, 15, 15, 1)).astype("float32")
    for _ in range(6):
        config = space.sample(study.ask(), base="tiny")
        config = dataclasses.replace(
            config, blocks=config.blocks[:3], input_shape=base.input_shape, head_filters=8
        )
        model = efficientnet.build(config)
        model.compile(keras.optimizers.SGD(1e-3), loss="mse", run_eagerly=True)
        loss = model.train_on_batch(images, generator.normal(size=(8, 10)).astype("float32"))
        assert np.isfinite(loss)
        expected = keras.ops.convert_to_numpy(model(images, training=False))
        outputs = convert.run(convert.assemble(model), images)
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-4 * scale)

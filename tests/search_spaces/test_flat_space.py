"""The flat space: every layer by itself, the factorized space inside, equal networks equal."""

import dataclasses
import math
import random

import numpy as np
import optuna
import pytest

from families import mnasnet
from latency.networks.count import count
from nas import registry
from search_spaces import flat
from search_spaces import mnasnet as factorized

optuna.logging.set_verbosity(optuna.logging.ERROR)


def random_params(space, base: str, generator: random.Random) -> dict:
    """One random choice for all decisions of a space."""
    trial = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=generator.randrange(10**6))
    ).ask()
    space.sample(trial, base=base)
    return trial.params


def spread(params: dict, base: str) -> dict:
    """The choices of the factorized space as the flat space makes them: each layer its block's."""
    found = {}
    for number, block in enumerate(factorized.baseline(base).blocks, 1):
        found[f"block{number}_layers"] = params[f"block{number}_layers"]
        for place in range(1, block.repeats + 2):
            for name in ("op", "kernel", "se", "skip", "filters"):
                found[f"block{number}_{place}_{name}"] = params[f"block{number}_{name}"]
    return found


@pytest.mark.parametrize("base", ["tiny", "a1", "small", "mobilenet_v2"])
def test_every_factorized_network_is_inside_and_equal(base):
    generator = random.Random(base)
    for _ in range(150):
        params = random_params(factorized, base, generator)
        ours = flat.sample(optuna.trial.FixedTrial(spread(params, base)), base=base)
        assert ours == factorized.sample(optuna.trial.FixedTrial(params), base=base)


def test_the_base_networks_are_inside():
    for base in ("tiny", "a1", "b1"):
        config = flat.baseline(base)
        assert config == mnasnet.VARIANTS[base]
        params = {}
        for number, block in enumerate(config.blocks, 1):
            op = f"mbconv{block.expand}" if block.op == "mbconv" else block.op
            chosen = {"op": op, "kernel": block.kernel, "se": block.se_ratio, "skip": block.skip}
            chosen |= {"filters": 1.0, "layers": 0}
            params |= {f"block{number}_{name}": value for name, value in chosen.items()}
        assert flat.sample(optuna.trial.FixedTrial(spread(params, base)), base=base) == config


def test_each_layer_chooses_by_itself():
    params = spread(random_params(factorized, "tiny", random.Random(0)), "tiny")
    params |= {
        f"block2_{place}_{name}": value for place in (1, 2, 3) for name, value in SAME.items()
    }
    params |= {"block2_layers": 1, "block2_2_kernel": 5, "block2_3_filters": 1.25}
    first, second, third = flat.sample(optuna.trial.FixedTrial(params)).blocks[1:4]
    assert [block.kernel for block in (first, second, third)] == [3, 5, 3]
    assert [block.filters for block in (first, second, third)] == [24, 24, 32]
    assert [block.stride for block in (first, second, third)] == [2, 1, 1]
    # Two alike, then another: one Block of two.
    params["block2_2_kernel"] = 3
    blocks = flat.sample(optuna.trial.FixedTrial(params)).blocks
    assert [block.repeats for block in blocks[1:3]] == [2, 1]


SAME = {"op": "mbconv3", "kernel": 3, "se": 0.0, "skip": "identity", "filters": 1.0}


def single(config: mnasnet.Config) -> mnasnet.Config:
    """The same network with every layer written as a Block of its own."""
    blocks = [
        dataclasses.replace(block, repeats=1, stride=block.stride if place == 0 else 1)
        for block in config.blocks
        for place in range(block.repeats)
    ]
    return dataclasses.replace(config, blocks=tuple(blocks))


def test_layers_written_as_one_block_compute_the_same():
    generator = random.Random(3)
    merged = None
    while merged is None or max(block.repeats for block in merged.blocks) < 2:
        params = spread(random_params(factorized, "tiny", generator), "tiny")
        params |= {f"block4_{place}_kernel": 3 + 2 * (place == 3) for place in (1, 2, 3)}
        merged = flat.sample(optuna.trial.FixedTrial(params))
    ours, theirs = mnasnet.build(merged), mnasnet.build(single(merged))
    theirs.set_weights(ours.get_weights())
    images = np.random.default_rng(0).normal(size=(2, *merged.input_shape)).astype(np.float32)
    np.testing.assert_array_equal(ours(images), theirs(images))
    assert count(ours).macs == count(theirs).macs


def test_its_size_is_what_factorizing_saves():
    """Choices a layer, times depths a block: against as many a block, of all its layers."""
    sizes = {}
    for name, space in (("flat", flat), ("mnasnet", factorized)):
        trial = optuna.create_study().ask()
        space.sample(trial, base="a1")
        sizes[name] = sum(math.log10(len(d.choices)) for d in trial.distributions.values())
    assert sizes["mnasnet"] == pytest.approx(7 * math.log10(432))
    layers = sum(block.repeats + 1 for block in mnasnet.VARIANTS["a1"].blocks)
    assert sizes["flat"] == pytest.approx(layers * math.log10(144) + 7 * math.log10(3))


def test_it_is_found_by_its_name_and_refuses_unknown_bases():
    assert "flat" in registry.listing("space")
    with pytest.raises(ValueError, match="unknown base 'a2'"):
        flat.sample(optuna.create_study().ask(), base="a2")

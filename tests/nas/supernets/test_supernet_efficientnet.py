"""Shared weights of EfficientNets: a network taken out is the one that was judged."""

import dataclasses
import functools

import numpy as np
import pytest

from families.efficientnet import VARIANTS, Block, Config
from nas import backend, registry
from nas.tasks import digits

keras = backend.load()

from shared_weights import alone, choices, outputs, varied, with_weights  # noqa: E402

from nas.supernets import layers, masks, supernet  # noqa: E402
from search_spaces import efficientnet_x as space  # noqa: E402


def sample(trial) -> Config:
    """All that the space has to choose from but layouts, in two blocks of at most two layers."""
    blocks = []
    for path, stride, filters in (("a", 1, (4, 6)), ("b", 2, (6, 8))):
        blocks.append(
            Block(
                op=trial.suggest_categorical(f"{path}_op", space.OPS),
                kernel=trial.suggest_categorical(f"{path}_kernel", (3, 7)),
                stride=stride,
                filters=trial.suggest_categorical(f"{path}_filters", filters),
                repeats=trial.suggest_int(f"{path}_repeats", 1, 2),
                expand=trial.suggest_categorical(f"{path}_expand", (1, 3)),
                se_ratio=trial.suggest_categorical(f"{path}_se", space.SE_RATIOS),
                activation=trial.suggest_categorical(f"{path}_activation", space.ACTIVATIONS),
            )
        )
    activation = trial.suggest_categorical("activation", space.ACTIVATIONS)
    sizes = {"head_filters": 12, "dropout": 0.0, "survival": 1.0, "stem_stride": 1}
    return Config((8, 8, 1), 10, 6, tuple(blocks), activation=activation, **sizes)


@pytest.fixture(scope="module")
def shared():
    return with_weights(sample)


@pytest.mark.parametrize("number", range(12))
def test_an_inherited_network_has_the_outputs_of_the_supernet(shared, number):
    config = supernet.drawn(shared.sample, 7, number)
    found = outputs(shared, shared.rows(config))
    assert np.ptp(found) > 0.1
    np.testing.assert_allclose(found, alone(shared, config), atol=5e-5)


def test_masks_and_slices_are_the_same_network(shared, monkeypatch):
    drawn = choices(shared)
    sliced = [outputs(shared, rows) for rows in drawn]
    monkeypatch.setattr(layers, "part", lambda: masks)
    for rows, expected in zip(drawn, sliced, strict=True):
        np.testing.assert_allclose(outputs(shared, rows), expected, atol=5e-5)


def test_every_choice_acts(shared):
    """Each option of each block, alone changed, is another network with other outputs."""
    start = supernet.drawn(shared.sample, 0, 0)
    first = Block("mbconv", 3, 1, 4, 2, expand=3, se_ratio=0.25, activation="swish")
    second = dataclasses.replace(first, stride=2, filters=6)
    start = dataclasses.replace(start, blocks=(first, second), activation="relu")
    before = outputs(shared, shared.rows(start))
    options = {
        "op": ("fused", "conv"),
        "kernel": (7,),
        "expand": (1,),
        "repeats": (1,),
        "se_ratio": (0.0, 0.5, 1.0),
        "activation": ("relu", "hard_swish"),
    }
    others = [dataclasses.replace(start, activation=name) for name in ("swish", "hard_swish")]
    for changed in [*others, *varied(start, options)]:
        assert changed != start
        after = outputs(shared, shared.rows(changed))
        assert np.abs(after - before).max() > 1e-3, changed


def test_the_space_without_layouts_fits_into_its_supernet():
    task = registry.task("digits:size=8")
    found = supernet.Supernet(functools.partial(space.sample, base="tiny", layouts=False), task)
    base = found.sample(supernet.Drawn(np.random.default_rng(0)))
    assert {block.layout for block in base.blocks} == {"none"}
    rows = found.rows(dataclasses.replace(VARIANTS["tiny"], input_shape=base.input_shape))
    assert np.isfinite(outputs(found, rows)).all()


def test_what_no_supernet_has_is_refused():
    with pytest.raises(ValueError, match="efficientnet_x:BASE,layouts=false"):
        supernet.Supernet(space.sample, digits.load(size=8))
    config = dataclasses.replace(VARIANTS["tiny"], activation="relu6")
    with pytest.raises(ValueError, match="no supernet has relu6 .there is: relu, hard_swish"):
        supernet.outline(config)


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() == "jax", reason="it starts this")
def test_on_jax(passes_on_jax):
    passes_on_jax(__file__, "inherited_network and 11")

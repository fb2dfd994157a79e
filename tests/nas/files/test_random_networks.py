"""Networks drawn at random: opened, flattened, rewritten, .tflite and .keras again are the same."""

import collections

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_networks import Drawn

from compress.rewriting import graph
from latency.networks.random_inputs import random_inputs
from latency.tflite import convert, same_network
from nas.files.open_network import open_network

FEW, MANY = 8, 300
LEAST_KINDS = 30
MOST_REFUSED = 0.1


class Tally:
    """What became of the networks of a run."""

    def __init__(self):
        self.networks = 0
        self.direct = 0  # that were written layer by layer
        self.refused = collections.Counter()
        self.kinds = set()

    def __str__(self):
        reasons = "; ".join(f"{count} x {why}" for why, count in self.refused.most_common())
        return (
            f"{self.networks} networks of {len(self.kinds)} kinds of layer, {self.direct} written"
            f" directly, {self.refused.total()} refused: {reasons or 'none'}"
        )


def same(ours, theirs, what):
    wrong = same_network.difference(ours, theirs, relative=1e-4, floor=1e-5)
    assert wrong is None, f"{what}: {wrong}"


def check(model, tally, path):
    inputs = random_inputs(open_network(model).model, 2, seed=1)
    expected = by_number(model, inputs)
    flat = open_network(model).model
    same(by_number(flat, inputs), expected, "flattened")
    same(by_number(graph.rewrite(flat, lambda _, copy: copy), inputs), expected, "rewritten")
    model.save(path)
    same(by_number(open_network(path).model, inputs), expected, ".keras again")
    try:
        made = convert.assemble(flat)
    except ValueError:  # what it does not know is left to the converter
        made = None
    if made is not None:
        tally.direct += 1
        wrong = same_network.check(flat, convert.Session(made))
        assert wrong is None, f"written directly: {wrong}"
    made = convert.convert(flat)
    wrong = same_network.check(flat, convert.Session(made))
    assert wrong is None, f"by the converter: {wrong}"


def by_number(model, inputs):
    given = keras.tree.flatten(model(inputs, training=False))
    return {str(n): np.asarray(keras.ops.convert_to_numpy(x)) for n, x in enumerate(given)}


def run(count, path):
    tally = Tally()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def every(random):
        keras.utils.clear_session(free_memory=False)
        drawn = Drawn(random.randrange)
        model = drawn.network()
        tally.networks += 1
        tally.kinds |= drawn.kinds
        try:
            check(model, tally, path)
        except ValueError as error:
            tally.refused[" ".join(str(error).split())[:160]] += 1

    every()
    print(tally)
    return tally


def test_a_few_networks_are_the_same_however_they_are_written(tmp_path):
    tally = run(FEW, tmp_path / "drawn.keras")
    assert tally.networks >= FEW and tally.refused.total() <= 1, str(tally)


@pytest.mark.slow
def test_many_networks_are_the_same_however_they_are_written(tmp_path):
    tally = run(MANY, tmp_path / "drawn.keras")
    assert tally.networks >= MANY and len(tally.kinds) >= LEAST_KINDS, str(tally)
    assert tally.refused.total() < MOST_REFUSED * tally.networks, str(tally)

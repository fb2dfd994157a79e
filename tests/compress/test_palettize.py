"""Tables of values found by k-means, and bits shared out among kernels."""

import keras
import numpy as np
import pytest

from compress.examples.data import Data
from compress.method import NotApplicable, compress
from compress.palettize import Palettize
from compress.prune import Prune
from compress.ptq import PTQ
from compress.quantization.k_means import nearest, tables
from nas import registry
from nas.tasks.task import classification
from nas.training.loop import fit


def brute_force(numbers, count):
    """The least squared error of `count` runs of sorted numbers, by trying all."""
    numbers = np.sort(numbers)
    least = {(0, 0): 0.0}
    for runs in range(1, count + 1):
        for end in range(runs, len(numbers) + 1):
            least[runs, end] = min(
                least[runs - 1, start] + len(numbers[start:end]) * np.var(numbers[start:end])
                for start in range(end)
                if (runs - 1, start) in least
            )
    return least[count, len(numbers)]


def error(numbers, values):
    return np.square(numbers - values[0][nearest(numbers, values)[0]]).sum()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_runs_of_few_numbers_are_the_best_there_are(seed, count):
    numbers = np.random.default_rng(seed).normal(size=(1, 30)).astype(np.float32)
    assert error(numbers, tables(numbers, count)) == pytest.approx(
        brute_force(numbers[0].astype(float), count), rel=2e-3
    )  # tables are rounded to float16


@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "uniform"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_k_means_is_no_worse_than_equal_steps_nor_than_scikit_learns(draw, bits):
    cluster = pytest.importorskip("sklearn.cluster")
    generator = np.random.default_rng(bits)
    numbers = getattr(generator, draw)(size=(1, 3000)).astype(np.float32)
    found = tables(numbers, 2**bits)
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert np.all(np.diff(found) >= 0)
    grid = np.linspace(numbers.min(), numbers.max(), 2**bits)[None]
    grid = grid.astype(np.float16).astype(np.float32)
    assert error(numbers, found) <= error(numbers, grid) * (1 + 1e-5)
    peer = cluster.KMeans(2**bits, n_init=3, random_state=0).fit(numbers.T)
    assert error(numbers, found) <= peer.inertia_ * 1.01


def test_fewer_numbers_than_values_and_masked_ones():
    numbers = np.array([[1.0, 2.0, 2.0, 5.0]], np.float32)
    found = tables(numbers, 16)
    assert found.shape == (1, 16)
    assert error(numbers, found) == 0
    masked = tables(numbers, 2, np.array([[True, True, True, False]]))
    assert masked.tolist() == [[1.0, 2.0]]
    assert tables(numbers, 4, np.zeros((1, 4), bool)).tolist() == [[0.0] * 4]


def network():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(32, 3, name="conv")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    x = keras.layers.Dense(48, activation="relu", name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


def counted(record):
    """Bits a weight, from the codes and tables themselves; a table's values are float16."""
    weights = record.weights.values()
    bits = sum(w.codes.size * w.bits + w.levels.size * 16 for w in weights)
    return bits / sum(w.codes.size for w in weights)


def test_whole_bits_everywhere_with_a_table_for_16_outputs():
    method = Palettize(4)
    done = compress(network(), [method])
    weights = done.record.weights
    assert set(weights) == {f"{name}/kernel" for name in ("conv", "depthwise", "hidden", "head")}
    assert {weight.bits for weight in weights.values()} == {4}
    assert weights["hidden/kernel"].levels.shape == (3, 16)  # 48 outputs
    assert weights["depthwise/kernel"].levels.shape == (1, 16)  # too few weights for more
    for columns in np.split(done.model.get_layer("hidden").kernel.numpy(), 3, 1):
        assert len(np.unique(columns)) <= 16
    assert done.record.details[repr(method)]["bits_per_weight"] == pytest.approx(
        counted(done.record)
    )
    assert counted(done.record) > 4


@pytest.mark.parametrize("bits", [2.5, 3.5])
def test_bits_are_mixed_to_a_target_that_counts_the_tables(bits):
    method = Palettize(bits)
    done = compress(network(), [method])
    told = done.record.details[repr(method)]
    assert set(told["bits"].values()) == {2, 4}
    assert bits - 1.5 < counted(done.record) <= bits
    assert told["bits_per_weight"] == pytest.approx(counted(done.record))


def test_a_target_that_tables_do_not_leave_room_for_is_refused():
    with pytest.raises(NotApplicable, match="out of reach"):
        compress(network(), [Palettize(2.01)])
    with pytest.raises(ValueError, match="bits=9"):
        Palettize(9)
    with pytest.raises(NotApplicable, match="which='nothing'"):
        compress(network(), [Palettize(which="nothing")])


def test_the_kernel_that_the_loss_needs_most_keeps_its_bits():
    """Two parallel kernels, one of which the output hardly sees: only the data tells them apart."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((64,))
    seen = keras.layers.Dense(32, use_bias=False, name="seen")(inputs)
    hidden = keras.layers.Dense(32, use_bias=False, name="hidden")(inputs)
    model = keras.Model(inputs, seen + 1e-3 * hidden)
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    data = Data(x, model.predict(x, verbose=0), lambda y, t: keras.ops.mean((y - t) ** 2, -1))
    method = Palettize(3.2)
    told = compress(model, [method], data=data).record.details[repr(method)]
    assert told["bits"] == {"seen/kernel": 4, "hidden/kernel": 2}
    assert told["sensitivity"]["seen/kernel"] > 1000 * told["sensitivity"]["hidden/kernel"]


def test_pruned_values_stay_zero_and_take_no_value_of_a_table():
    for methods in ([Prune(0.5), Palettize(2)], [Palettize(2), Prune(0.5)]):
        done = compress(network(), methods)
        weight = done.record.weights["hidden/kernel"]
        assert weight.bits == 2
        assert np.mean(weight.mask) == pytest.approx(0.5, abs=0.15)
        assert not done.model.get_layer("hidden").kernel.numpy()[~weight.mask].any()
    alone = compress(network(), [Prune(0.5), Palettize(2)]).record.weights["hidden/kernel"]
    assert np.abs(alone.levels).min() > 1e-3  # no value is spent on the zeros


def test_rounding_leaves_palettized_kernels_alone():
    done = compress(network(), [Palettize(4, which="hidden"), PTQ(8)])
    bits = {path.split("/")[0]: weight.bits for path, weight in done.record.weights.items()}
    assert bits == {"conv": 8, "depthwise": 8, "hidden": 4, "head": 8}


def test_four_bits_cost_a_trained_network_little():
    task = registry.task("digits:size=8")
    inputs = keras.Input((8, 8, 1))
    keras.utils.set_random_seed(0)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    before = fit(model, task, 8, 0).quality
    from nas.training.loop import evaluate

    data = Data(task.train[0][:256], task.train[1][:256].astype(np.int32), classification)
    assert evaluate(compress(model, [Palettize(4)], data=data).model, task) > before - 0.01
    assert evaluate(compress(model, [Palettize(3)], data=data).model, task) > before - 0.02

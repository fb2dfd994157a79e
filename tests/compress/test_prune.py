"""Magnitude pruning: tfmot's schedule, the exact sparsity, patterns where files want them."""

import importlib

import keras
import numpy as np
import pytest

from compress.method import NotApplicable, compress
from compress.prune import Mask, Prune, largest, polynomial
from compress.rewriting.parametrized import Parametrization, functions, parametrize
from compress.rewriting.record import Record
from compress.rewriting.weights import kernels
from families.layers import LSTM, Experts

FAMILIES = (  # the matrix has all
    *("mobilenet_v2", "mobile_vmoe"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("conformer", "decoder")),
)


def _tiny(family):
    keras.utils.set_random_seed(0)
    module = importlib.import_module(f"families.{family}")
    return module.build(module.VARIANTS["tiny"])


def _mlp(*units, inputs=16):
    keras.utils.set_random_seed(1)
    image = keras.Input((inputs,))
    x = image
    for number, width in enumerate(units):
        x = keras.layers.Dense(width, name=f"dense{number}")(x)
    return keras.Model(image, x)


def _values(model):
    return {weight.path: np.asarray(weight) for weight in model.weights}


@pytest.mark.parametrize(
    ("step", "sparsity"),
    # 0.9 + (0.5 - 0.9) (1 - (step - 10) / 40)^3 by hand
    [(0, 0.5), (10, 0.5), (20, 0.73125), (30, 0.85), (40, 0.89375), (50, 0.9), (70, 0.9)],
)
def test_the_schedule_is_zhu_and_guptas(step, sparsity):
    assert polynomial(step, 10, 50, initial=0.5, final=0.9) == pytest.approx(sparsity, abs=1e-9)


def test_the_schedule_is_tfmots():
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    theirs = tfmot.sparsity.keras.PolynomialDecay(0.1, 0.95, 7, 91, power=2.5, frequency=3)
    for step in range(120):
        ours = polynomial(step, 7, 91, initial=0.1, final=0.95, power=2.5)
        assert float(theirs(step)[1]) == pytest.approx(ours, abs=1e-6)


def test_a_run_is_tfmots_step_by_step():
    """Weights after 60 steps of SGD equal those of tfmot's loop, written out in NumPy."""
    steps, rate, every, begin, end = 60, 1.5, 5, 5, 40
    generator = np.random.default_rng(0)
    x = generator.normal(size=(steps, 8, 12)).astype("float32")
    y = (x @ generator.normal(size=(12, 6)) * 0.5).astype("float32")
    inputs = keras.Input((12,))
    keras.utils.set_random_seed(3)
    model = keras.Model(inputs, keras.layers.Dense(6, use_bias=False, name="d")(inputs))
    weight = model.get_weights()[0]
    mask, came_back, chosen = np.ones_like(weight, bool), 0, []
    for step in range(steps):
        if begin <= step <= end and (step - begin) % every == 0:
            share = 1 - (step - begin) / (end - begin)
            sparsity = 0.75 + (0.25 - 0.75) * share**3
            count = max(1, round(weight.size * (1 - sparsity)))
            threshold = np.sort(np.abs(weight).ravel())[-count]
            came_back += np.count_nonzero((np.abs(weight) >= threshold) & ~mask)
            mask = np.abs(weight) >= threshold
            chosen.append(mask.mean())
        weight = weight * mask
        error = x[step] @ weight - y[step]
        weight = weight - rate * 2 / error.size * x[step].T @ error
    assert came_back > 0  # else nothing is tested of what comes back

    def fit(prepared, update):
        prepared.compile(keras.optimizers.SGD(rate), "mse")
        for step in range(steps):
            update(step, steps)
            seen.append(Prune.state(method, prepared)["sparsity"])
            prepared.train_on_batch(x[step], y[step])

    seen = []
    method = Prune(0.75, initial=0.25, begin=begin, end=end, every=every)
    out = compress(model, [method], fit)
    np.testing.assert_allclose(out.model.get_weights()[0], weight * mask, atol=1e-5)
    assert seen[begin - 1] == 0 and seen[begin] == pytest.approx(0.25)
    np.testing.assert_allclose(1 - np.array(chosen), seen[begin : end + 1 : every])
    assert out.record.details[repr(method)]["sparsity"] == 0.75
    np.testing.assert_array_equal(out.record.weights["d/kernel"].mask, mask)


def test_masks_freeze_for_the_tail_and_a_killed_run_goes_on():
    model = _mlp(8, 4)
    method = Prune(0.5, every=1, end=6)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(10, 8, 16)), generator.normal(size=(10, 8, 4))

    def train(prepared, first, last):
        prepared.compile("sgd", "mse")  # no momentum: all state is in the weights
        for step in range(first, last):
            method.update(prepared, None, step, 10)
            prepared.train_on_batch(x[step], y[step])
            mask = functions(prepared, Mask)["dense0/kernel"][0].mask
            history[step] = keras.ops.convert_to_numpy(mask.value)
        return prepared

    history = {}
    whole = train(method.prepare(model, None, Record()), 0, 10)
    assert not np.array_equal(history[3], history[6])
    assert all(np.array_equal(history[6], history[step]) for step in (7, 8, 9))
    killed = train(method.prepare(model, None, Record()), 0, 4)
    resumed = method.prepare(model, None, Record())
    resumed.set_weights(killed.get_weights())
    train(resumed, 4, 10)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_masked_weight_is_trained_only_while_it_may_come_back():
    mask = Mask()
    mask.build((2,))
    mask.mask.assign([True, False])
    weight = keras.Variable([2.0, 3.0])
    method_state = []
    for updated in (4, -2):  # a step; frozen
        mask.updated.assign(updated)
        layer = keras.layers.Layer()
        layer.mask = mask
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                value = mask(weight.value)
                loss = keras.ops.sum(value * [5.0, 7.0])
            method_state.append(np.asarray(tape.gradient(loss, weight.value)))
        else:
            import jax

            gradient = jax.grad(lambda w: keras.ops.sum(mask(w) * np.array([5.0, 7.0])))
            value = mask(weight.value)
            method_state.append(np.asarray(gradient(weight.value)))
        np.testing.assert_array_equal(np.asarray(value), [2.0, 0.0])
    np.testing.assert_array_equal(method_state, [[5.0, 7.0], [5.0, 0.0]])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reaches_the_sparsity_in_each_kernel(family, tmp_path):
    model = _tiny(family)
    before = _values(model)
    method = Prune(0.8)
    out = compress(model, [method])
    after, told = _values(out.model), out.record.details[repr(method)]
    wanted = [k for k in kernels(model) if k.kind not in ("depthwise", "embedding")]
    assert list(told["weights"]) == [kernel.path for kernel in wanted]
    for kernel in wanted:
        zeros = kernel.size - max(1, round(kernel.size * (1 - 0.8)))
        assert np.count_nonzero(after[kernel.path] == 0) == zeros, kernel.path
        kept = after[kernel.path] != 0
        np.testing.assert_array_equal(after[kernel.path][kept], before[kernel.path][kept])
        assert np.abs(before[kernel.path][~kept]).max() <= np.abs(after[kernel.path][kept]).min()
    touched = {kernel.path for kernel in wanted}
    for layer in model.layers:  # all that holds weights is pruned or said to be left
        paths = {weight.path for weight in layer.weights}
        assert not paths or (paths & touched) or out.record.untouched[layer.name]
    out.model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    for path, value in _values(loaded).items():
        np.testing.assert_array_equal(value, after[path])


def test_global_takes_from_all_and_leaves_no_layer_empty():
    model = _mlp(32, 32)
    model.layers[1].kernel.assign(model.layers[1].kernel * 1e-4)
    method = Prune(0.9, scope="global")
    out = compress(model, [method])
    told = out.record.details[repr(method)]
    assert told["zeros"] == 1536 - round(1536 * 0.1)
    values = _values(out.model)
    assert np.count_nonzero(values["dense0/kernel"]) == round(512 * 0.01)  # the least that stays
    # Of the other layer the largest of all stay.
    mask = values["dense1/kernel"] != 0
    original = np.abs(_values(model)["dense1/kernel"])
    assert original[~mask].max() <= original[mask].min()


def test_lamp_does_not_see_the_scale_of_a_layer():
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=(6, 8)), generator.normal(size=(4, 6)) ** 3]
    masks = largest(rows, 0.75, scope="lamp")
    scores = []  # equation 2 of arXiv 2010.07611, value by value
    for row in rows:
        squares = row.ravel() ** 2
        scores += [square / squares[squares >= square].sum() for square in squares]
    found = np.concatenate([mask.ravel() for mask in masks])
    assert found.sum() == 18 and min(np.array(scores)[found]) > max(np.array(scores)[~found])
    scaled = largest([1e-3 * rows[0], rows[1]], 0.75, scope="lamp")
    assert all(np.array_equal(one, two) for one, two in zip(masks, scaled, strict=True))
    assert not np.array_equal(found[:48], largest(rows, 0.75, scope="global")[0].ravel())


def _layers():
    """One of each kind, with the axis in which inputs of an output follow each other."""
    keras.utils.set_random_seed(0)
    return {
        "dense": (keras.layers.Dense(6), (8,), "kernel", lambda w: w.T),
        "conv": (
            keras.layers.Conv2D(5, 3),
            (7, 7, 4),
            "kernel",
            lambda w: w.transpose(3, 0, 1, 2).reshape(5, 36),
        ),
        "conv of one channel": (
            keras.layers.Conv2D(5, (2, 4)),
            (7, 7, 1),
            "kernel",
            lambda w: w.transpose(3, 0, 1, 2).reshape(5, 8),
        ),
        "lstm": (LSTM(8), (3, 4), "recurrent_kernel", lambda w: w.T),
        "keras lstm": (keras.layers.LSTM(8), (3, 4), "recurrent_kernel", lambda w: w.T),
        "experts": (Experts(3, 8, 1), (5, 4), "project", lambda w: w.transpose(0, 2, 1)),
    }


@pytest.mark.parametrize("kind", list(_layers()))
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1x4"])
def test_patterns_lie_along_the_inputs(kind, pattern):
    layer, shape, name, inputs_last = _layers()[kind]
    inputs = keras.Input(shape)
    outputs = layer(inputs)
    model = keras.Model(inputs, outputs[0] if isinstance(outputs, tuple) else outputs)
    out = compress(model, [Prune(0.5 if pattern == "1x4" else None, pattern=pattern)])
    before, after = (
        next(inputs_last(np.asarray(w)) for w in m.weights if w.name == name)
        for m in (model, out.model)
    )
    before, groups = (np.abs(w).reshape(-1, 4) for w in (before, after))
    left = (groups != 0).sum(1)
    if pattern == "1x4":
        assert set(left) == {0, 4}
        sums = before.sum(1)
        assert (left == 4).sum() == round(len(groups) / 2)
        assert sums[left == 0].max() <= sums[left == 4].min()
    else:
        count = int(pattern[0])
        assert set(left) == {count}
        np.testing.assert_allclose(
            np.sort(groups, 1)[:, -count:], np.sort(before, 1)[:, -count:]
        )  # the largest


def test_ramps_of_groups_and_ties():
    rows = np.abs(np.arange(-8, 8, dtype="float32").reshape(2, 8))
    kept = [largest([rows], 0, "2:4", share=share)[0].sum() for share in (0, 0.49, 0.5, 0.99, 1)]
    assert kept == [16, 16, 12, 12, 8]
    ties = largest([np.ones((2, 8))], 0.75)[0]
    assert ties.sum() == 4 and ties[0, :4].all()
    assert largest([np.ones((1, 4))], 0.99)[0].sum() == 1


def test_what_is_left_is_said():
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="stem")(image)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(image, keras.layers.Dense(3, name="head")(x))
    untouched = compress(model, [Prune(pattern="2:4")]).record.untouched
    assert untouched["stem"] == "9 inputs are no multiple of 4: 2:4"
    assert "which" in untouched["depthwise"] and "no kernel" in untouched["norm"]
    assert "head" not in untouched
    named = compress(model, [Prune(which="depthwise|stem")])
    assert set(named.record.weights) == {"stem/kernel", "depthwise/kernel"}
    assert "which='depthwise|stem'" in named.record.untouched["head"]
    with pytest.raises(NotApplicable, match="nothing"):
        compress(model, [Prune(which="nothing")])
    with pytest.raises(NotApplicable, match="9 inputs"):
        compress(keras.Model(image, model.get_layer("stem").output), [Prune(pattern="1x4")])


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 1.0},
        {"sparsity": 0.6, "pattern": "2:4"},
        {"scope": "row"},
        {"scope": "global", "pattern": "2:4"},
        {"scope": "lamp", "pattern": "2:4"},
        {"pattern": "4:4"},
        {"pattern": "2x4"},
        {"every": 0},
        {"end": 1.5},
        {"initial": 0.9},
    ],
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=f"prune {list(options)[0]}"):
        Prune(**options)


class Rounded(Parametrization):
    def call(self, weight):
        return keras.ops.round(weight * 4) / 4 + 0.125  # never 0


def test_masks_come_after_quantizers_whatever_the_order():
    for order in ("before", "after"):
        model, method = _mlp(8), Prune(0.5)
        if order == "before":
            model = parametrize(model, {"dense0/kernel": Rounded()})
        prepared = method.prepare(model, None, Record())
        if order == "after":
            prepared = parametrize(prepared, {"dense0/kernel": Rounded()})
        method.update(prepared, None, 1, 1)
        weight = prepared.layers[1].layer.kernel
        value = np.asarray(prepared.layers[1].read(weight))
        assert np.count_nonzero(value == 0) == value.size // 2


def test_other_runs_of_prune_have_their_own_masks():
    model = _mlp(8, 8)
    out = compress(model, [Prune(0.25, which="dense0"), Prune(0.75, which="dense1")])
    sparsity = {path: 1 - w.mask.mean() for path, w in out.record.weights.items()}
    assert sparsity == {"dense0/kernel": 0.25, "dense1/kernel": 0.75}


@pytest.mark.slow
def test_jax(passes_on_jax):
    """What trains, on the other backend."""
    passes_on_jax(__file__, "step_by_step or may_come_back or other_runs")

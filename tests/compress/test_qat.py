"""Quantization in training and after it: levels, averages, stacks, and what the record says."""

import keras
import numpy as np
import pytest

from compress.method import NotApplicable, compress
from compress.prune import Prune
from compress.ptq import PTQ
from compress.qat import QAT
from compress.quantization.quantizers import LearnedClip
from compress.rewriting.parametrized import functions
from nas import registry
from nas.training.batches import decays
from nas.training.loop import evaluate, fit


@pytest.fixture(scope="module")
def task():
    return registry.task("digits:size=8")


@pytest.fixture(scope="module")
def trained(task):
    model = mlp()
    fit(model, task, 8, 0)
    return model


def mlp():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(32, activation="relu", name="first")(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.Dense(32, activation="relu", name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


def trainer(task, epochs=2, **changes):
    return lambda model, update: fit(model, task, epochs, 0, update=update, **changes)


def words():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 8, name="words")(x)
    x = keras.layers.LSTM(8, name="lstm")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def test_two_bits_end_on_four_levels_an_output_and_lose_little(trained, task):
    done = compress(trained, [QAT(2)], fit=trainer(task, 8))
    for name in ("first", "hidden", "head"):
        kernel, weight = (
            done.model.get_layer(name).kernel.numpy(),
            done.record.weights[f"{name}/kernel"],
        )
        assert weight.bits == 2 and weight.codes.max() == 3
        assert np.array_equal(kernel, weight.dense())  # to the last bit
        ratio = kernel / weight.scale
        assert np.allclose(np.unique(np.abs(ratio.round(4))), [0.5, 1.5])  # no zero
        assert weight.scale.shape == (1, kernel.shape[1])
    assert "norm" in done.record.untouched
    assert evaluate(done.model, task) > evaluate(trained, task) - 0.03
    assert [type(layer) for layer in done.model.layers] == [type(layer) for layer in trained.layers]
    told = done.record.details[repr(QAT(2))]
    assert told["kernels"] == 3 and 2 < told["bits_per_weight"] < 3.1


def test_training_beats_rounding_at_two_bits(trained, task):
    """By loss: the accuracies of so few images would tell little."""

    def loss(model):
        logits = model(task.valid[0], training=False)
        return float(np.mean(task.loss(logits, task.valid[1])))

    learned = loss(compress(trained, [QAT(2)], fit=trainer(task, 6)).model)
    newton = loss(compress(trained, [PTQ(2)]).model)
    widest = loss(compress(trained, [PTQ(2, clip="maxabs")]).model)
    assert learned < newton < widest


def test_without_training_it_is_rounding(trained):
    learned = compress(trained, [QAT(2)]).record.weights
    rounded = compress(trained, [PTQ(2)]).record.weights
    for path, weight in learned.items():
        assert np.array_equal(weight.codes, rounded[path].codes)
        np.testing.assert_allclose(weight.scale, rounded[path].scale, rtol=1e-6)


def test_the_prepared_network_computes_what_the_finished_one_does(trained, task):
    seen = {}

    def fit_and_look(model, update):
        trainer(task)(model, update)
        seen["outputs"] = np.asarray(model(task.valid[0][:64], training=False))
        seen["state"] = QAT(2).state(model)

    done = compress(trained, [QAT(2)], fit=fit_and_look)
    np.testing.assert_allclose(done.model(task.valid[0][:64]), seen["outputs"], atol=1e-5)
    assert seen["state"]["bits"] == 2 and 0.5 < seen["state"]["clip"] != 1


def test_clips_are_trained_unless_fixed_and_never_decay(trained, task):
    clips = {}

    def look(name):
        def fit_and_look(model, update):
            trainer(task, 1)(model, update)
            clips[name] = {path: chain[0] for path, chain in functions(model, LearnedClip).items()}

        return fit_and_look

    compress(trained, [QAT(2)], fit=look("learned"))
    compress(trained, [QAT(2, fixed=True)], fit=look("fixed"))
    assert all(np.any(np.asarray(one.clip)) for one in clips["learned"].values())
    assert all(one.clip is None for one in clips["fixed"].values())
    assert not any(decays(one.clip) for one in clips["learned"].values())


def test_averages_of_weights_are_taken_before_rounding(trained, task):
    """What is kept are the codes of the averaged weights, and that is what was judged."""
    found = {}

    recipe = {"schedule": "constant"}

    def fit_and_look(model, update):
        found["quality"] = trainer(task, 3, ema=0.98, **recipe)(model, update).quality

    done = compress(trained, [QAT(2)], fit=fit_and_look)
    last = compress(trained, [QAT(2)], fit=trainer(task, 3, **recipe)).record
    weights = done.record.weights
    assert all(len(np.unique(weight.codes)) == 4 for weight in weights.values())
    assert any(np.any(weight.codes != last.weights[p].codes) for p, weight in weights.items())
    assert evaluate(done.model, task) == pytest.approx(found["quality"], abs=1e-6)


def test_embeddings_have_four_bits_and_edges_their_own():
    record = compress(words(), [QAT(2)]).record
    bits = {path: weight.bits for path, weight in record.weights.items()}
    assert bits == {
        "words/embeddings": 4,
        "lstm/lstm_cell/kernel": 2,
        "lstm/lstm_cell/recurrent_kernel": 2,
        "head/kernel": 2,
    }
    assert record.weights["words/embeddings"].scale.shape == (20, 1)
    for method in (QAT(2, edges=8, embeddings=None), PTQ(2, edges=8)):
        weights = compress(mlp(), [method]).record.weights
        assert [weights[f"{n}/kernel"].bits for n in ("first", "hidden", "head")] == [8, 2, 8]
    method = QAT(2, edges=32)
    record = compress(mlp(), [method]).record
    assert set(record.weights) == {"hidden/kernel"}
    assert "edges=32" in record.untouched["first"] and "edges=32" in record.untouched["head"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pruned_weights_stay_zero_in_any_order(trained, task, bits):
    for methods in ([Prune(0.5), QAT(bits)], [PTQ(bits), Prune(0.5)]):
        done = compress(trained, methods, fit=trainer(task, 1))
        for path in ("first/kernel", "hidden/kernel"):
            weight = done.record.weights[path]
            assert weight.bits == bits
            assert 0.3 < np.mean(~weight.mask) < 0.7
            value = done.model.get_layer(path.split("/")[0]).kernel.numpy()
            assert not value[~weight.mask].any()
            np.testing.assert_array_equal(value, weight.dense())


def test_two_quantizers_share_the_kernels_out(trained):
    record = compress(trained, [QAT(2, which="hidden"), PTQ(8)]).record
    bits = {path.split("/")[0]: weight.bits for path, weight in record.weights.items()}
    assert bits == {"first": 8, "hidden": 2, "head": 8}
    assert record.activations == 8
    record = compress(trained, [PTQ(8, activations=None), QAT(2, which="hidden")]).record
    assert record.weights["hidden/kernel"].bits == 2 and record.activations is None
    with pytest.raises(NotApplicable, match="quantized by another"):
        compress(trained, [QAT(2), QAT(4)])


def test_eight_and_four_bits_without_training(trained, task):
    before = evaluate(trained, task)
    assert evaluate(compress(trained, [PTQ(8)]).model, task) == pytest.approx(before, abs=0.003)
    assert evaluate(compress(trained, [PTQ(4)]).model, task) == pytest.approx(before, abs=0.02)
    assert not np.array_equal(
        compress(trained, [PTQ(8)]).model.get_weights()[0], trained.get_weights()[0]
    )


def test_what_cannot_be_quantized_is_said(trained):
    with pytest.raises(NotApplicable, match="which='nothing'"):
        compress(trained, [QAT(2, which="nothing")])
    with pytest.raises(NotApplicable, match="stay in float"):
        compress(trained, [PTQ(8, which="head", edges=32)])
    inputs = keras.Input((4,))
    vectors = keras.Model(inputs, keras.layers.LayerNormalization()(inputs))
    for method in (QAT(), PTQ()):
        with pytest.raises(NotApplicable, match="no kernels"):
            compress(vectors, [method])
    for wrong in ({"bits": 5}, {"embeddings": 1}, {"clip": "widest"}, {"edges": 16}):
        for kind in (QAT, PTQ):
            with pytest.raises(ValueError, match="expected one of"):
                kind(**wrong)
    with pytest.raises(ValueError, match="activations"):
        PTQ(activations=4)


def quantizes():
    import test_compress_weights

    from compress.palettize import Palettize

    assert keras.config.backend() == "jax"
    task = registry.task("digits:size=8")
    model = mlp()
    fit(model, task, 2, 0)
    done = compress(model, [QAT(2)], fit=trainer(task, 2, ema=0.9))
    assert evaluate(done.model, task) > evaluate(model, task) - 0.05
    for method, cost in ((PTQ(4), 0.05), (Palettize(3.5, group=0), 0.15)):
        assert evaluate(compress(model, [method]).model, task) > evaluate(model, task) - cost
    name = "test_gradients_are_straight_through_inside_the_clip_and_lsqs_for_the_scale"
    for bits in (2, 4):
        getattr(test_compress_weights, name)(bits)


@pytest.mark.slow
def test_on_jax(on_jax):
    on_jax(quantizes)

"""Instruction pruning: masks of exactly k, gradients through tau, small networks that are equal."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from compress.dynamic_sparsity import DynamicSparsity
from compress.instruction_pruning import InstructionPruning, masks, materialize
from compress.method import NotApplicable, compress
from families import decoder, vit
from families.layers import copy_weights
from families.layers.instruction_mask import (
    MaskedFeedForward,
    MaskPredictor,
    hard_top_k,
    soft_top_k,
)

RANDOM = np.random.default_rng(0)


def mlp(hidden=32, dropout=0.0, seed=0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((16,), name="x")
    x = keras.layers.Dense(hidden, "relu", name="expand")(inputs)
    if dropout:
        x = keras.layers.Dropout(dropout, name="drop")(x)
    x = keras.layers.Dense(8, name="project")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x), name="mlp")


def run(model, inputs) -> np.ndarray:
    return ops.convert_to_numpy(model(inputs, training=False))


def test_soft_masks_sum_to_k_and_become_hard():
    scores = RANDOM.normal(size=(5, 40)).astype("float32")
    for k in (1, 10, 39):
        soft = ops.convert_to_numpy(soft_top_k(scores, k))
        np.testing.assert_allclose(soft.sum(-1), k, rtol=1e-5)
        assert ((soft > 0) & (soft < 1)).all()
        apart = RANDOM.permuted(np.tile(np.arange(40, dtype="float32"), (5, 1)), axis=1)
        cold = ops.convert_to_numpy(soft_top_k(apart, k, temperature=0.05))
        np.testing.assert_allclose(cold, hard_top_k(apart, k), atol=1e-3)


def test_of_equal_scores_the_first_are_taken_and_exactly_k():
    scores = np.array([[1, 1, 1, 1], [0, 2, 0, 0], [3, 1, 3, 3]], "float32")
    hard = ops.convert_to_numpy(hard_top_k(scores, 2))
    assert hard.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]]


def gradient(function, value: np.ndarray) -> np.ndarray:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        variable = tf.constant(value)
        with tf.GradientTape() as tape:
            tape.watch(variable)
            result = function(variable)
        return tape.gradient(result, variable).numpy()
    import jax

    return np.asarray(jax.grad(function)(value))


def test_the_gradient_sees_that_tau_moves():
    scores = RANDOM.normal(size=(1, 12)).astype("float32")
    weights = RANDOM.normal(size=(1, 12)).astype("float32")

    def objective(scores):
        return ops.sum(soft_top_k(scores, 4, temperature=0.7) * weights)

    found = gradient(objective, scores)
    step = 1e-2
    expected = np.zeros_like(found)
    for n in range(12):
        shift = np.zeros_like(scores)
        shift[0, n] = step
        upper, lower = (float(objective(scores + sign * shift)) for sign in (1, -1))
        expected[0, n] = (upper - lower) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # With tau fixed, moving all scores would change the masks; it does not.
    assert abs(found.sum()) < 1e-5


@pytest.mark.parametrize("blocks", [8, 0])
def test_each_input_uses_the_same_number_of_units(blocks):
    done = compress(mlp(), [InstructionPruning(0.25, blocks=blocks)])
    x = RANDOM.normal(size=(20, 16)).astype("float32")
    found = masks(done.model, x)
    assert (found.sum(-1) == (blocks or 32) / 4).all()
    assert set(np.unique(found)) == {0, 1}
    assert len(np.unique(found.reshape(20, -1), axis=0)) > 1  # inputs differ, so do masks
    np.testing.assert_array_equal(masks(done.model, x[:1]), found[:1])
    np.testing.assert_array_equal(masks(done.model, x[::-1]), found[::-1])


def test_the_finished_network_is_the_original_with_hidden_units_masked():
    model = mlp()
    done = compress(model, [InstructionPruning(0.25, blocks=5)])  # 32 = 7 + 7 + 6 + 6 + 6
    x = RANDOM.normal(size=(6, 16)).astype("float32")
    units = np.repeat(masks(done.model, x)[:, 0], [7, 7, 6, 6, 6], axis=-1)
    assert units.sum(-1).max() <= 7
    expand, expand_bias, project, project_bias, last, last_bias = model.get_weights()
    hidden = np.maximum(x @ expand + expand_bias, 0) * units
    expected = (hidden @ project + project_bias) @ last + last_bias
    np.testing.assert_allclose(run(done.model, x), expected, atol=1e-5)


def test_materialize_equals_the_masked_network_and_is_small():
    done = compress(mlp(), [InstructionPruning(0.25)])
    x = RANDOM.normal(size=(1, 16)).astype("float32")
    mask = masks(done.model, x)[0]
    small = materialize(done.model, mask)
    assert [type(layer).__name__ for layer in small.layers] == ["InputLayer"] + ["Dense"] * 3
    assert small.get_layer("expand").units == 8
    np.testing.assert_allclose(run(small, x), run(done.model, x), atol=1e-6)
    other = np.roll(mask, 1, axis=-1)
    assert np.abs(run(materialize(done.model, other), x) - run(small, x)).max() > 1e-3
    with pytest.raises(ValueError, match=r"expected \(1, 8\)"):
        materialize(done.model, mask[0])


def test_a_gated_decoder_becomes_a_smaller_one_of_the_family():
    config = dataclasses.replace(decoder.VARIANTS["tiny"], length=12, layers=2, vocabulary=32)
    keras.utils.set_random_seed(0)
    done = compress(decoder.build(config), [InstructionPruning(0.25)])
    tokens = RANDOM.integers(0, 32, (2, 12)).astype("int32")
    found = masks(done.model, tokens)
    # The first quarter is the instruction: what follows changes no mask.
    later = tokens.copy()
    later[:, 3:] = RANDOM.integers(0, 32, (2, 9))
    np.testing.assert_array_equal(masks(done.model, later), found)
    small = materialize(done.model, found[1])
    np.testing.assert_allclose(run(small, tokens[1:]), run(done.model, tokens)[1:], atol=1e-5)
    twin = decoder.build(dataclasses.replace(config, hidden=config.hidden // 4))
    copy_weights(small, twin)
    np.testing.assert_allclose(run(twin, tokens[1:]), run(small, tokens[1:]), atol=1e-6)


def test_masks_are_blended_in_and_the_predictor_learns():
    method = InstructionPruning(0.25, blocks=4, warm_up=0.5)
    seen = []

    def train(model, update):
        predictor = next(layer for layer in model.layers if isinstance(layer, MaskPredictor))
        before = [ops.convert_to_numpy(weight) for weight in predictor.trainable_weights]
        x = RANDOM.normal(size=(16, 16)).astype("float32")
        y = RANDOM.integers(0, 4, 16)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        for step in range(8):
            update(step, 8)
            seen.append(method.state(model)["active"])
            model.train_on_batch(x, y)
        after = [ops.convert_to_numpy(weight) for weight in predictor.trainable_weights]
        assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))

    compress(mlp(dropout=0.1), [method], train)
    np.testing.assert_allclose(seen, [1, 0.8125, 0.625, 0.4375, 0.25, 0.25, 0.25, 0.25])


def test_what_it_cannot_do_is_said():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    with pytest.raises(NotApplicable, match="no feed-forward layer"):
        compress(model, [InstructionPruning()])
    both = [DynamicSparsity("0+0.5"), InstructionPruning()]
    for methods in (both, both[::-1]):
        with pytest.raises(NotApplicable, match="use one of them"):
            compress(mlp(), methods)
    with pytest.raises(ValueError, match="active=1"):
        InstructionPruning(1.0)


def test_untouched_layers_are_named_and_files_keep_everything(tmp_path):
    done = compress(mlp(), [InstructionPruning()])
    assert set(done.record.untouched) == {"logits"}
    x = RANDOM.normal(size=(3, 16)).astype("float32")
    done.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(loaded, x), run(done.model, x))
    np.testing.assert_array_equal(
        run(materialize(loaded, masks(loaded, x)[0]), x),
        run(materialize(done.model, masks(done.model, x)[0]), x),
    )


def test_codes_follow_the_weights():
    from compress.qat import QAT

    done = compress(mlp(), [QAT(4), InstructionPruning()])
    names = {path for path in done.record.weights if path.startswith("project_masked/")}
    assert names == {"project_masked/expand_kernel", "project_masked/project_kernel"}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports are TensorFlow's")
def test_a_file_has_a_branch_for_each_block_with_its_constants():
    from ai_edge_litert import schema_py_generated as schema

    from latency.tflite import convert

    done = compress(mlp(hidden=64), [InstructionPruning(0.25, blocks=4)])
    tflite = convert.convert(done.model)
    x = RANDOM.normal(size=(5, 16)).astype("float32")
    np.testing.assert_allclose(convert.run(tflite, x), run(done.model, x), atol=1e-5)
    model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    kinds = [
        [
            model.operatorCodes[operator.opcodeIndex].builtinCode
            for operator in graph.operators or ()
        ]
        for graph in model.subgraphs
    ]
    assert kinds[0].count(schema.BuiltinOperator.IF) == 4
    multiplies = [graph for graph in kinds[1:] if schema.BuiltinOperator.FULLY_CONNECTED in graph]
    assert len(multiplies) == 4
    assert schema.BuiltinOperator.BATCH_MATMUL not in sum(kinds, [])
    assert len(tflite) < 1.6 * 4 * done.model.count_params() + 20_000


@pytest.mark.slow
def test_a_vision_transformer_with_a_quarter_of_its_units(shared_data):
    """In training through `nas.training.loop.fit`, on both what trains and what is judged."""
    from nas import registry
    from nas.training.loop import evaluate, fit

    task = registry.task("digits", size=28)
    keras.utils.set_random_seed(0)
    model = vit.build(vit.VARIANTS["tiny"])
    done = compress(
        model, [InstructionPruning()], lambda model, update: fit(model, task, 3, 0, update=update)
    )
    assert evaluate(done.model, task) > 0.5
    layers = [layer for layer in done.model.layers if isinstance(layer, MaskedFeedForward)]
    assert len(layers) == 4

"""Dynamic sparsity: nested levels, exact shares, one set of weights, files of several speeds."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from compress.channels.hidden_units import bundles
from compress.channels.nested_levels import levels_of, rank_levels
from compress.dynamic_sparsity import DynamicSparsity
from compress.method import NotApplicable, compress
from compress.rewriting.record import Record
from families import conformer, decoder, mnasnet, vit

RANDOM = np.random.default_rng(0)
LEVELS = (0.0, 0.5, 0.75, 0.9)
NAMES = ["0%", "50%", "75%", "90%"]


def mlp(hidden=(64, 48), seed=0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((16,), name="x")
    x = inputs
    for number, units in enumerate(hidden, 1):
        x = keras.layers.Dense(units, "relu", name=f"hidden{number}")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x), name="mlp")


def convolutions() -> keras.Model:
    """With what carries channels: a norm, a depthwise layer, squeeze-and-excite, pooling."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="expand")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(4, 1, activation="relu", name="reduce")(gate)
    gate = layers.Conv2D(16, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Multiply(name="excite")([x, gate])
    x = layers.Conv2D(12, 1, name="project")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x))
    for weight in model.weights:  # also the averages of the norm, and biases
        weight.assign(RANDOM.uniform(0.5, 1.5, weight.shape) * (weight.value + 0.1))
    return model


def run(model, inputs) -> np.ndarray:
    outputs = model(inputs, training=False)
    return ops.convert_to_numpy(keras.tree.flatten(outputs)[0])


def example(model, batch=2):
    """Random inputs in the model's own form."""

    def one(tensor):
        shape = (batch, *tensor.shape[1:])
        if "int" in tensor.dtype:
            return RANDOM.integers(1, 5, shape).astype("int32")
        return RANDOM.normal(size=shape).astype("float32")

    arrays = [one(tensor) for tensor in model.inputs]
    if isinstance(model.input, dict):
        names = [tensor.name for tensor in model.inputs]
        return dict(zip(names, arrays, strict=True))
    return arrays[0]


def test_ranks_are_nested_and_ties_go_to_the_first():
    assert rank_levels(np.ones(6), [4, 2]).tolist() == [2, 2, 1, 1, 0, 0]
    rank = rank_levels(RANDOM.normal(size=(20, 30)), [300, 150, 60])
    kept = [rank >= level for level in range(4)]
    assert [int(mask.sum()) for mask in kept] == [600, 300, 150, 60]
    assert all((less <= more).all() for more, less in zip(kept, kept[1:], strict=False))


@pytest.mark.parametrize("pattern", ["unstructured", "1x4"])
def test_masked_levels_are_the_largest_weights_of_each_kernel(pattern):
    model = mlp()
    done = compress(model, [DynamicSparsity(LEVELS, pattern=pattern)])
    x = example(model)
    assert list(done.record.variants) == NAMES and done.record.variants["0%"] is done.model
    np.testing.assert_array_equal(run(done.model, x), run(model, x))  # bit for bit
    before = None
    for level, network in zip(LEVELS, done.record.variants.values(), strict=True):
        for dense, sparse in zip(model.get_weights(), network.get_weights(), strict=True):
            if dense.ndim < 2:
                np.testing.assert_array_equal(dense, sparse)
                continue
            kept = sparse != 0
            np.testing.assert_array_equal(sparse[kept], dense[kept])
            unit = 4 if pattern == "1x4" else 1
            assert kept.sum() == dense.size - unit * round(level * dense.size / unit)
            if pattern == "1x4":
                blocks = kept.T.reshape(dense.shape[1], -1, 4)  # of consecutive inputs
                assert (blocks.all(-1) == blocks.any(-1)).all()
            elif level:
                assert np.abs(dense[kept]).min() >= np.abs(dense[~kept]).max()
        now = [weight != 0 for weight in network.get_weights()]
        if before is not None:
            assert all((less <= more).all() for more, less in zip(before, now, strict=True))
        before = now


@pytest.mark.parametrize("build", [mlp, convolutions])
def test_blocks_are_the_network_without_its_least_hidden_units(build):
    """Against the network with rows of zeros, which is what is trained."""
    model, method = build(), DynamicSparsity(LEVELS)
    x = example(model)
    prepared = method.prepare(model, None, Record(original=model))
    expected = [
        ops.convert_to_numpy(levels_of(prepared).at(level, [x])[0]) for level in range(len(LEVELS))
    ]
    np.testing.assert_array_equal(expected[0], run(model, x))
    done = compress(model, [method])
    sizes = []
    for outputs, network in zip(expected, done.record.variants.values(), strict=True):
        np.testing.assert_allclose(run(network, x), outputs, rtol=1e-5, atol=1e-5)
        sizes.append(network.count_params())
    assert np.abs(expected[0] - expected[3]).max() > 1e-2
    assert sizes[0] == model.count_params()
    for level, size in zip(LEVELS, sizes, strict=True):
        assert size <= (1 - 0.9 * level) * sizes[0] + 20, (level, sizes)


def test_levels_hold_the_same_layers_and_switching_changes_nothing():
    done = compress(mlp(), [DynamicSparsity(LEVELS)])
    dense = {id(layer) for layer in done.model.layers}
    for network in done.record.variants.values():
        holders = [layer for layer in network.layers if layer.weights]
        assert holders and all(id(layer) in dense for layer in holders)
    x = example(done.model)
    first = {name: run(network, x) for name, network in done.record.variants.items()}
    for name in ("90%", "0%", "50%", "0%"):
        np.testing.assert_array_equal(run(done.record.variants[name], x), first[name])
    hidden = done.model.get_layer("hidden2_block1_1").kernel
    hidden.assign(hidden.value * 2)  # of the block that all levels have
    for name, network in done.record.variants.items():
        assert np.abs(run(network, x) - first[name]).max() > 1e-3


@pytest.mark.parametrize("family", [vit, mnasnet, conformer, decoder])
def test_families_have_units_to_leave_out(family):
    model = family.build(family.VARIANTS["tiny"])
    found = bundles(model)
    names = {name for bundle in found for name in bundle.producers}
    expected = {
        "families.vit": "block1_mlp_expand",
        "families.mnasnet": "block2_1_expand",
        "families.conformer": "block1_conv_gate",
        "families.decoder": "block1_feed_up",
    }
    assert expected[family.__name__] in names
    assert not any("attention" in name or "logits" in name for name in names)


def test_a_decoder_in_blocks_of_its_gated_layers():
    config = dataclasses.replace(decoder.VARIANTS["tiny"], length=8, layers=1, vocabulary=32)
    model = decoder.build(config)
    done = compress(model, [DynamicSparsity("0+0.75")])
    x = example(model)
    np.testing.assert_allclose(run(done.model, x), run(model, x), atol=1e-5)
    assert len(done.record.untouched) > 3
    assert "no hidden units" in done.record.untouched["block1_attention_query"]


def trained(method, steps=6, stop=None) -> tuple[keras.Model, Record]:
    """By plain Keras, on data that does not matter; `stop`: at that step the training ends."""
    random = np.random.default_rng(1)
    x, y = random.normal(size=(32, 16)).astype("float32"), random.integers(0, 4, 32)

    def fit(model, update):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss)
        for step in range(steps):
            if step == stop:
                break
            update(step, steps)
            model.train_on_batch(x, y)

    done = compress(mlp(), [method], fit)
    return done.model, done.record


@pytest.mark.parametrize("pattern", ["blocks", "unstructured"])
def test_training_brings_the_levels_to_what_the_whole_network_says(pattern):
    random = np.random.default_rng(2)
    x = random.normal(size=(64, 16)).astype("float32")
    y = (x @ random.normal(size=(16, 4))).argmax(-1)
    right = {}
    for steps in (0, 150):

        def fit(model, update, steps=steps):
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.Adam(0.01), loss)
            for step in range(steps):
                update(step, steps)
                model.train_on_batch(x, y)

        done = compress(mlp(), [DynamicSparsity("0+0.5+0.75", pattern=pattern)], fit)
        right[steps] = {
            name: np.mean(run(network, x).argmax(-1) == y)
            for name, network in done.record.variants.items()
        }
    assert all(right[150][name] > 0.9 > 0.6 > right[0][name] for name in right[0]), right


def test_a_training_that_ends_early_has_all_sparsities():
    method = DynamicSparsity(LEVELS, pattern="unstructured")
    model, record = trained(method, steps=100, stop=2)
    for level, network in zip(LEVELS, record.variants.values(), strict=True):
        kernel = network.get_layer("hidden2").get_weights()[0]
        assert np.count_nonzero(kernel == 0) == round(level * kernel.size)


def test_all_state_is_in_variables():
    """A second model that is given the variables of the first goes on as the first."""
    method = DynamicSparsity(LEVELS, pattern="unstructured")
    models = [method.prepare(mlp(seed=n), None, Record()) for n in (0, 1)]
    random = np.random.default_rng(1)
    x, y = random.normal(size=(32, 16)).astype("float32"), random.integers(0, 4, 32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), loss)
    for step in range(3):
        method.update(models[0], None, step, 8)
        models[0].train_on_batch(x, y)
    for target, source in zip(models[1].variables, models[0].variables, strict=True):
        target.assign(source)
    for model in models:
        for step in range(3, 8):
            method.update(model, None, step, 8)
            model.train_on_batch(x, y)
    for first, second in zip(models[0].variables, models[1].variables, strict=True):
        np.testing.assert_array_equal(first, second)


def test_codes_of_a_quantizer_are_cut_with_the_weights():
    from compress.qat import QAT

    for methods in ([QAT(4), DynamicSparsity("0+0.75")], [DynamicSparsity("0+0.75"), QAT(4)]):
        done = compress(mlp(), methods)  # `Record.check` compares codes with weights
        coded = {path for path, weight in done.record.weights.items() if weight.codes is not None}
        assert {
            "hidden2_block1_1/kernel",
            "hidden2_block2_1/kernel",
            "logits_block2/kernel",
        } <= coded
        assert not any(path.startswith("hidden2/") for path in coded)


def test_what_it_cannot_do_is_said():
    inputs = keras.Input((8,))
    with pytest.raises(NotApplicable, match="has no hidden units"):
        compress(keras.Model(inputs, keras.layers.Dense(4)(inputs)), [DynamicSparsity()])
    with pytest.raises(NotApplicable, match="already"):
        compress(mlp(), [DynamicSparsity(), DynamicSparsity(pattern="unstructured")])
    for levels in ("0.5+0.9", "0+0.9+0.5", "0+1", "0", "0+half", 0.5):
        with pytest.raises(ValueError, match="ascending shares"):
            DynamicSparsity(levels)
    with pytest.raises(ValueError, match="pattern"):
        DynamicSparsity(pattern="2:4")
    assert DynamicSparsity("0+0.5+0.75+0.9") == DynamicSparsity()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports are TensorFlow's")
def test_one_file_has_all_levels_and_hardly_more_bytes(tmp_path):
    from latency.tflite import convert
    from nas.files.writers.litert import write

    model = mlp(hidden=(512, 512))
    dense = write(tmp_path / "dense.tflite", model, Record())
    done = compress(model, [DynamicSparsity(LEVELS)])
    whole = write(tmp_path / "levels.tflite", done.model, done.record)
    assert whole.bytes <= 1.05 * dense.bytes
    interpreter = convert.load(whole.path)
    x = RANDOM.normal(size=(1, 16)).astype("float32")
    for name in ("90%", "0%", "75%", "0%", "50%"):  # without loading again
        outputs = interpreter.get_signature_runner(name)(x=x)
        expected = run(done.record.variants[name], x)
        np.testing.assert_allclose(next(iter(outputs.values())), expected, atol=1e-5)


@pytest.mark.slow
def test_levels_learn_digits_in_the_training_of_nas(shared_data):
    from nas import registry
    from nas.training.loop import evaluate, fit

    task = registry.task("digits", size=8)
    keras.utils.set_random_seed(0)
    inputs = keras.Input(task.input_shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(2):
        x = keras.layers.Dense(128, "relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    for pattern in ("blocks", "unstructured"):
        done = compress(
            model,
            [DynamicSparsity(LEVELS, pattern=pattern)],
            lambda model, update: fit(model, task, 10, 0, update=update),
        )
        scores = {name: evaluate(network, task) for name, network in done.record.variants.items()}
        assert all(score > 0.9 for score in scores.values()), (pattern, scores)

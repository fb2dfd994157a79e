"""The mixture of experts against plain NumPy, in each of its forms, on both backends."""

import math

import keras
import numpy as np
import pytest

from families.layers import Experts, experts, gelu
from latency.networks.count import count
from latency.tflite.convert import convert, run

FORMS = {"everywhere": (10**9, 10**9), "gathered": (0, 0), "grouped": (0, 10**9)}


def _inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _layer(shape, logits_shape=None, **options):
    """An `Experts` with weights that all matter."""
    keras.utils.set_random_seed(0)
    layer = Experts(**{"count": 5, "hidden": 6, "top_k": 2} | options, name="experts")
    layer.build(shape, logits_shape) if logits_shape else layer.build(shape)
    generator = np.random.default_rng(7)
    for weight in layer.weights:
        weight.assign(generator.normal(size=weight.shape))
    return layer


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def _reference(layer, inputs, logits=None):
    """One unit, one choice, one expert after the other, in float64."""
    weights = {w.name: np.asarray(w.value, np.float64) for w in layer.weights}
    x = np.asarray(inputs, np.float64)
    image = layer.routing == "image"
    if logits is None:
        logits = (x.mean(1) if image else x) @ weights["router"]
    units = x if image else x.reshape(-1, 1, x.shape[-1])  # (units, tokens of each, dim)
    gates = _softmax(np.asarray(logits, np.float64).reshape(-1, layer.count))
    chosen = np.argsort(-gates, -1, kind="stable")[:, : layer.top_k]
    priority = range(len(units))
    if layer.batch_priority:
        priority = sorted(priority, key=lambda unit: -gates[unit].max())
    places = np.inf
    if layer.capacity is not None:
        places = max(1, round(layer.top_k * len(units) * layer.capacity / layer.count))
    taken, outputs = np.zeros(layer.count), np.zeros_like(units)
    for choice in range(layer.top_k):
        for unit in priority:
            expert = chosen[unit, choice]
            taken[expert] += 1
            if taken[expert] > places:
                continue
            gate = gates[unit, expert]
            if layer.renormalize:
                gate /= gates[unit, chosen[unit]].sum()
            outputs[unit] += gate * _mlp(layer, weights, expert, units[unit])
    return outputs.reshape(x.shape)


def _mlp(layer, weights, expert, x):
    def activate(x):
        if layer.activation == "silu":
            return x / (1 + np.exp(-x))
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    inner = x @ weights["expand"][expert]
    if layer.use_bias:
        inner = inner + weights["expand_bias"][expert]
    inner = activate(x @ weights["gate"][expert]) * inner if layer.gated else activate(inner)
    outputs = inner @ weights["project"][expert]
    return outputs + weights["project_bias"][expert] if layer.use_bias else outputs


def _assert_near(outputs, expected):
    np.testing.assert_allclose(np.asarray(outputs), expected, rtol=2e-5, atol=2e-5)


OPTIONS = {
    "token": {},
    "one": {"top_k": 1},
    "all": {"top_k": 5},
    "mixtral": {"gated": True, "use_bias": False, "activation": "silu", "renormalize": True},
    "capacity": {"capacity": 0.6},
    "priority": {"capacity": 0.6, "batch_priority": True},
    "image": {"routing": "image"},
    "image_capacity": {"routing": "image", "capacity": 0.8, "batch_priority": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_outputs_are_those_of_plain_numpy(options, form, monkeypatch):
    monkeypatch.setattr(experts, "FEW", FORMS[form][0])
    monkeypatch.setattr(experts, "GATHER", FORMS[form][1])
    monkeypatch.setattr(experts, "BLOCK", 4)  # 7 x 9 tokens fill several blocks and parts of some
    layer = _layer((None, 9, 8), **options)
    inputs = _inputs(7, 9, 8)
    expected = _reference(layer, inputs)
    if layer.capacity is not None:  # or nothing is dropped here, and the test is none
        assert not np.allclose(expected, _reference(_layer((None, 9, 8)), inputs))
    _assert_near(layer(inputs), expected)


def test_an_open_batch_gives_the_same():
    import tensorflow as tf

    for options in ({}, {"capacity": 0.6, "batch_priority": True}, {"routing": "image"}):
        layer = _layer((None, 9, 8), **options)
        inputs = _inputs(40, 9, 8)  # more than FEW units
        open_batch = tf.function(layer, input_signature=[tf.TensorSpec((None, 9, 8))])
        _assert_near(open_batch(inputs), _reference(layer, inputs))


def test_of_equal_logits_the_first_experts_are_chosen():
    layer = _layer((None, 9, 8))
    layer.router.assign(np.zeros((8, 5)))
    inputs = _inputs(2, 9, 8)
    _assert_near(layer(inputs), _reference(layer, inputs))  # a stable sort: experts 0 and 1
    changed = layer.expand.value.numpy()
    changed[2:] = 0
    before = np.asarray(layer(inputs))
    layer.expand.assign(changed)
    np.testing.assert_array_equal(np.asarray(layer(inputs)), before)


def test_logits_from_outside():
    for options, shape in (({"routing": "image"}, (7, 5)), ({}, (7, 9, 5))):
        layer = _layer((None, 9, 8), (None, *shape[1:]), **options)
        assert "router" not in [weight.name for weight in layer.weights]
        inputs, logits = _inputs(7, 9, 8), _inputs(*shape, seed=1)
        _assert_near(layer(inputs, logits), _reference(layer, inputs, logits))


def test_the_forms_and_gradients_agree(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(experts, "BLOCK", 4)
    results = []
    for few, gather in FORMS.values():
        monkeypatch.setattr(experts, "FEW", few)
        monkeypatch.setattr(experts, "GATHER", gather)
        layer = _layer((None, 9, 8))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(layer(_inputs(7, 9, 8))))
        gradients = tape.gradient(loss, [weight.value for weight in layer.weights])
        results.append([tf.convert_to_tensor(gradient).numpy() for gradient in gradients])
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert all(np.abs(gradient).max() > 0 for gradient in results[0])


def test_without_capacity_no_example_depends_on_the_others():
    layer = _layer((None, 9, 8))
    inputs = _inputs(40, 9, 8)
    _assert_near(layer(inputs)[:2], np.asarray(layer(inputs[:2])))
    limited = _layer((None, 9, 8), capacity=0.6)
    assert not np.allclose(limited(inputs)[:2], limited(inputs[:2]), atol=1e-3)


def test_losses_are_added_in_training_only(monkeypatch):
    layer = _layer((None, 9, 8), noise=2.0, importance_weight=0.3, load_weight=0.5)
    inputs = _inputs(4, 9, 8)
    first = np.asarray(layer(inputs))
    assert layer.losses == []
    np.testing.assert_array_equal(layer(inputs), first)
    noise = _inputs(4 * 9, 5, seed=2)
    monkeypatch.setattr(keras.random, "normal", lambda shape, seed: keras.ops.array(noise))
    trained = layer(inputs, training=True)
    importance, load = (float(loss) for loss in layer.losses)
    deviation = 2.0 / 5
    logits = inputs.reshape(-1, 8) @ layer.router.value.numpy()
    noisy = logits + deviation * noise
    _assert_near(trained, _reference(layer, inputs, noisy))
    shares = _softmax(logits).sum(0)
    assert importance == pytest.approx(0.3 * shares.var() / shares.mean() ** 2, rel=1e-4)
    threshold = np.sort(noisy)[:, [-2]]
    chances = [math.erfc(z / math.sqrt(2)) / 2 for z in ((threshold - logits) / deviation).flat]
    loads = np.reshape(chances, (-1, 5)).sum(0)
    assert load == pytest.approx(0.5 * loads.var() / loads.mean() ** 2, rel=1e-4)


def test_even_experts_cost_little_and_one_for_all_most():
    def losses(router):
        options = {"noise": 1.0, "load_weight": 1.0, "importance_weight": 1.0}
        layer = _layer((None, 4, 4), count=4, top_k=1, **options)
        layer.router.assign(router)
        layer(np.tile(np.eye(4, dtype="float32"), (500, 1, 1)), training=True)
        return [float(loss) for loss in layer.losses]

    assert losses(20 * np.eye(4)) == pytest.approx([0, 0], abs=0.01)  # its own for each token
    favourite = np.zeros((4, 4))
    favourite[:, 1] = 20
    assert losses(favourite) == pytest.approx([3, 3], abs=1e-4)  # count - 1: all on one


def test_keep_experts_removes_columns_and_kernels():
    layer = _layer((None, 9, 8))
    # Experts 1 and 4 are never chosen: without them nothing changes but the weights' sum.
    router = np.zeros((8, 5))
    router[:, [1, 4]] = -30
    router[:, [0, 2, 3]] = np.random.default_rng(3).normal(size=(8, 3))
    layer.router.assign(router)
    inputs = np.abs(_inputs(7, 9, 8))
    kept = layer.keep_experts([0, 2, 3])
    assert (kept.name, kept.count, kept.expand.shape) == ("experts", 3, (3, 8, 6))
    _assert_near(kept(inputs), np.asarray(layer(inputs)))
    _assert_near(kept(inputs), _reference(kept, inputs))
    swapped = layer.keep_experts(np.array([3, 0, 2]))
    _assert_near(swapped(inputs), np.asarray(kept(inputs)))
    with pytest.raises(ValueError, match="1 experts left of 5, but top_k=2"):
        layer.keep_experts([3])
    with pytest.raises(ValueError, match="different ones of 0..4"):
        layer.keep_experts([3, 3])
    with pytest.raises(ValueError, match="different ones of 0..4"):
        layer.keep_experts([0, 5])


def test_what_cannot_be_is_refused():
    for options, message in (
        ({"top_k": 6}, "top_k=6; expected 1 to 5"),
        ({"routing": "batch"}, "expected one of"),
        ({"load_weight": 0.1}, "load_weight needs noise"),
        ({"capacity": 0}, "capacity=0"),
    ):
        with pytest.raises(ValueError, match=message):
            Experts(**{"count": 5, "hidden": 6, "top_k": 2} | options)
    with pytest.raises(ValueError, match="for 5 experts"):
        _layer((None, 9, 8), (None, 4), routing="image")


def test_counts_are_those_of_the_chosen_experts():
    inputs = keras.Input((9, 8))
    layer = Experts(5, 6, 2, name="experts")
    assert count(keras.Model(inputs, layer(inputs))).macs == 9 * (2 * 2 * 8 * 6 + 8 * 5)
    assert layer.active_params() == 2 * (8 * 6 + 6 + 6 * 8 + 8) + 8 * 5
    gated = Experts(5, 6, 2, gated=True, use_bias=False, routing="image", name="experts")
    assert count(keras.Model(inputs, gated(inputs))).macs == 9 * 2 * 3 * 8 * 6 + 8 * 5
    assert gated.active_params() == 2 * 3 * 8 * 6 + 8 * 5


def test_each_expert_starts_as_a_dense_layer_does():
    keras.utils.set_random_seed(0)
    layer = Experts(8, 300, 2)
    layer.build((None, 1, 200))
    limit = math.sqrt(6 / (200 + 300))  # Glorot
    for kernel in (layer.expand, layer.project):
        assert kernel.value.numpy().max() == pytest.approx(limit, rel=0.01)


def test_mixed_precision_routes_in_float32():
    layer = _layer((None, 9, 8), dtype="mixed_bfloat16")
    outputs = layer(_inputs(2, 9, 8))
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert layer.router.dtype == "float32"
    exact = _reference(layer, _inputs(2, 9, 8))
    assert np.abs(np.asarray(keras.ops.cast(outputs, "float32")) - exact).max() < 0.3


@pytest.mark.parametrize(
    ("tokens", "options"),
    [(9, {}), (1, {"count": 32}), (300, {}), (9, {"routing": "image"}), (9, OPTIONS["mixtral"])],
    ids=["everywhere", "gathered", "grouped", "image", "mixtral"],
)
def test_litert_gives_the_same(tokens, options):
    inputs = keras.Input((tokens, 8), name="tokens")
    model = keras.Model(inputs, _layer((None, tokens, 8), **options)(inputs))
    x = _inputs(1, tokens, 8)
    outputs = run(convert(model), x)
    np.testing.assert_allclose(np.asarray(outputs), np.asarray(model(x)), atol=1e-4, rtol=1e-4)


def answers_and_trains(path, x):
    """Outputs of a model in a file, which then learns."""
    assert keras.config.backend() == "jax"
    model = keras.models.load_model(path)
    outputs = model.predict_on_batch(x)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    losses = [model.train_on_batch(x, np.sin(x)) for _ in range(20)]
    assert losses[-1] < losses[0], losses
    return outputs


def test_jax_gives_the_same_and_trains(tmp_path, on_jax):
    inputs = keras.Input((9, 8), name="tokens")
    layer = _layer((None, 9, 8), noise=1.0, load_weight=0.01, capacity=0.8)
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    x = _inputs(40, 9, 8)
    found = on_jax(answers_and_trains, tmp_path / "model.keras", np.asarray(x))
    np.testing.assert_allclose(found, np.asarray(model(x)), atol=1e-4, rtol=1e-4)


def test_gelu_is_the_tanh_form():
    x = np.linspace(-3, 3, 13, dtype="float32")
    expected = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(gelu(x), expected, atol=1e-6)

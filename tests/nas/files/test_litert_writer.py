"""Compressed networks as `.tflite` files: every code exact, outputs as Keras's, files smaller."""

import dataclasses

import keras
import numpy as np
import pytest
from coded import coded
from keras import layers

from compress.method import compress
from compress.ptq import PTQ
from compress.qat import QAT
from compress.rewriting.record import Record, Weight
from families import decoder, mobilenet_v2, vit
from families.layers.experts import Experts
from families.layers.lstm import LSTM
from latency.tflite import convert
from latency.tflite.graph import operations
from nas.files.writers.litert import read_codes, write
from nas.files.writers.tflite import integer_codes
from nas.files.writers.tflite.editable_file import File, text
from nas.files.writers.tflite.extra_operators import ExtraOperators
from nas.files.writers.tflite.integer_codes import pack, unpack
from nas.files.writers.written_file import CannotWrite

BALANCED = {2: (-1.5, -0.5, 0.5, 1.5)}
NARROW = {4: range(-7, 8), 8: range(-127, 128)}
WHOLE = {2: range(-2, 2), 3: range(-4, 4)}
ONCE = {"mobilenet": NARROW[8], "decoder step": NARROW[4], "vit": BALANCED[2]}
ONCE |= {"experts, many": BALANCED[2], "keras lstm": NARROW[8]}
GAIN_BYTES = 1_500  # a multiplication by 64 values, and for logits a table's second name
KERNELS = ("kernel", "embeddings", "expand", "project", "router", "recurrent_kernel")


def chain(*parts, shape, dtype="float32"):
    inputs = x = keras.Input(shape, dtype=dtype, name="features")
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


def mlp(width=128):
    return chain(
        layers.Dense(width, activation="relu", name="first"),
        layers.Dense(width, activation="relu", name="second"),
        layers.Dense(10, name="last"),
        shape=(width,),
    )


def resnet():
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = y = layers.ReLU()(layers.BatchNormalization(name="stem_norm")(x))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.Add()([layers.BatchNormalization(name="conv_norm")(x), y])
    x = layers.Conv2D(32, 1, name="point")(layers.ReLU()(x))
    x = layers.DepthwiseConv2D(5, name="depth")(x)
    x = layers.Conv2D(32, 3, groups=2, name="groups")(x)
    x = layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    generator = np.random.default_rng(0)
    for name in ("stem_norm", "conv_norm"):  # as after training: some gammas are negative
        norm = model.get_layer(name)
        norm.gamma.assign(generator.normal(size=16))
        norm.moving_mean.assign(generator.normal(size=16))
        norm.moving_variance.assign(generator.uniform(0.5, 2, 16))
    return model


NETWORKS = {
    "mlp": mlp,
    "resnet": resnet,
    "mobilenet": lambda: mobilenet_v2.build(mobilenet_v2.VARIANTS["tiny"]),
    "decoder step": lambda: decoder.build(
        dataclasses.replace(decoder.deploy(decoder.VARIANTS["tiny"]), layers=2)
    ),
    "vit": lambda: with_gains(vit.build(dataclasses.replace(vit.VARIANTS["tiny"], layers=1))),
    "experts, few": lambda: chain(Experts(4, 64, 2, name="experts"), shape=(4, 32)),
    "experts, many": lambda: chain(Experts(4, 64, 2, name="experts"), shape=(300, 32)),
    "keras lstm": lambda: chain(layers.LSTM(48, name="lstm"), shape=(12, 64)),
    "lstm": lambda: chain(lambda x: LSTM(48, name="lstm")(x)[0], shape=(12, 64)),
    "conv1d": lambda: chain(
        layers.Conv1D(32, 3, padding="same"), layers.Conv1D(32, 1), shape=(16, 24)
    ),
    "embedding": lambda: chain(
        layers.Embedding(300, 32, name="words"), layers.Dense(64), shape=(9,), dtype="int32"
    ),
}


def quantized(model, levels):
    """Rounds the kernels of `model` to scale * levels; the record of it."""
    record, levels = Record(original=model), np.array([levels], np.float32)
    for variable in model.weights:
        value = np.asarray(variable)
        if value.ndim < 2 or variable.name not in KERNELS:
            continue
        axes = tuple(range(value.ndim - 1))
        if "depth" in variable.path:
            axes = (0, 1)
        elif variable.name in ("embeddings", "expand", "project"):
            axes = (1,)
        scale = np.abs(value).max(axes, keepdims=True) / np.abs(levels).max()
        scale = np.maximum(scale, 1e-6).astype(np.float32)
        edges = (levels[0, 1:] + levels[0, :-1]) / 2
        codes = np.searchsorted(edges, value / scale).astype(np.uint8)
        bits = max(2, int(np.ceil(np.log2(levels.size))))
        record.weights[variable.path] = Weight(bits, codes, levels, scale)
        variable.assign(record.weights[variable.path].dense())
    return record


CASES = [  # what takes longer to convert, once
    (name, levels)
    for name in NETWORKS
    for levels in (BALANCED[2], NARROW[4], NARROW[8])
    if name not in ONCE or ONCE[name] is levels
]


def written(tmp_path, model, record, data=None, **options):
    return write(tmp_path / "small.tflite", model, record, data, **options)


@pytest.mark.parametrize("name, levels", CASES, ids=[f"{n} {len(v)}" for n, v in CASES])
def test_every_code_is_in_the_file_and_outputs_are_kerass(tmp_path, name, levels):
    model = NETWORKS[name]()
    record = quantized(model, levels)
    result = written(tmp_path, model, record)
    bits = next(iter(record.weights.values())).bits
    floats = len(convert.file_of(model))
    assert result.path.stat().st_size == result.bytes < floats
    assert f"{sum(w.codes.size for w in record.weights.values())} codes" in result.checked
    for path, weight in record.weights.items():
        stored = result.weights[path]
        if stored != f"int{bits}":
            assert path in result.left, path
        if path.endswith("embeddings"):  # the decoder's logits use the table, too
            assert stored == f"int{bits}"
        if weight.codes.size > 4000 and len(weight.codes.shape) != 4:
            assert stored in (f"int{bits}", f"int{2 * bits}"), (path, stored)


def with_gains(model):
    """The same with norms as after training, not all ones; the last gain of each is negative."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "norm" in variable.path and variable.name in ("scale", "gamma", "beta"):
            value = generator.uniform(0.3, 1.7, variable.shape)
            value[-1] *= -1
            variable.assign(value)
    return model


def products_of(path):
    """Name of a product's kernel -> the operator that makes its input."""
    file = File(path.read_bytes())
    graph = file.graphs[0]
    makers = {int(index): o for o in graph.operators for index in o.outputs}
    return {
        text(graph.tensors[o.inputs[1]].name): makers.get(int(o.inputs[0]))
        for o in graph.operators
        if file.name(o) == "FULLY_CONNECTED"
    }


@pytest.mark.parametrize("levels", [BALANCED[2], NARROW[4], NARROW[8]], ids=["2", "4", "8"])
def test_gains_of_norms_are_taken_out_of_kernels(tmp_path, levels):
    config = dataclasses.replace(decoder.deploy(decoder.VARIANTS["tiny"]), layers=1)
    model = with_gains(decoder.build(config))
    record = quantized(model, levels)
    bits = next(iter(record.weights.values())).bits
    result = written(tmp_path, model, record)
    assert not result.left
    assert {result.weights[path] for path in record.weights} == {f"int{bits}"}
    stored, makers = read_codes(result.path), products_of(result.path)
    gains = {variable.path: np.asarray(variable) for variable in model.weights}
    lowest = int(stored["block1_feed_down/kernel"].values.min())
    for norm, paths in {
        "block1_attention_norm": [
            f"block1_attention_{n}/kernel" for n in ("query", "key", "value")
        ],
        "block1_feed_norm": ["block1_feed_gate/kernel", "block1_feed_up/kernel"],
        "head_norm": ["embed/embeddings/normed"],
    }.items():
        for path in paths:
            codes = record.weights[path.removesuffix("/normed")].codes
            codes = codes if path.endswith("/normed") else codes.T  # the file has outputs first
            assert np.array_equal(stored[path].values.astype(int) - lowest, codes), path
            assert np.allclose(stored[path].gain, gains[f"{norm}/scale"], rtol=1e-5), path
        assert len({id(makers[path]) for path in paths}) == 1  # one multiplication for all
    without = decoder.build(config)  # all gains are 1: nothing is folded, the table is there once
    ones = write(tmp_path / "ones.tflite", without, quantized(without, levels)).bytes
    assert ones < result.bytes < ones + 3 * GAIN_BYTES


def test_a_wrong_gain_is_an_error(tmp_path, monkeypatch):
    inputs = keras.Input((8, 64), name="features")
    x = layers.RMSNormalization(name="norm")(inputs)
    model = with_gains(keras.Model(inputs, layers.Dense(64, name="dense")(x)))
    record = quantized(model, NARROW[4])
    assert written(tmp_path, model, record).weights["dense/kernel"] == "int4"
    plain = ExtraOperators.multiply
    monkeypatch.setattr(
        ExtraOperators,
        "multiply",
        lambda self, graph, gain, name, readers: plain(self, graph, gain * 1.001, name, readers),
    )
    with pytest.raises(CannotWrite, match="dense/kernel"):
        written(tmp_path, model, record)


def test_a_gain_stands_before_the_parts_of_a_product(tmp_path):
    model = with_gains(
        chain(layers.RMSNormalization(name="norm"), layers.Dense(96, name="dense"), shape=(8, 64))
    )
    levels = np.array([BALANCED[2], [10 * level for level in BALANCED[2]]], np.float32)
    codes = np.random.default_rng(0).integers(0, 4, (64, 96)).astype(np.uint8)
    scale = np.full((1, 96), 0.01, np.float32)
    weight = Weight(2, codes, levels, scale, axis=0)  # levels of each half of the inputs
    model.get_layer("dense").kernel.assign(weight.dense())
    result = written(tmp_path, model, Record(weights={"dense/kernel": weight}))
    assert result.weights["dense/kernel"] == "int2"
    stored = read_codes(result.path)["dense/kernel"]
    assert np.array_equal(stored.values.T + 2, codes)
    gain = np.asarray(model.get_layer("norm").scale)
    assert np.allclose(stored.gain, gain, rtol=1e-5)


def test_an_input_without_weights_has_no_gain_to_find(tmp_path):
    inputs = keras.Input((8, 64), name="features")
    x = layers.RMSNormalization(name="norm")(inputs)
    outputs = [layers.Dense(64, name=name)(x) for name in ("first", "second")]
    model = with_gains(keras.Model(inputs, outputs))
    record = quantized(model, NARROW[4])
    for name, dead in (("first", [3, 5]), ("second", [5, 9])):
        path = f"{name}/kernel"
        weight = record.weights[path]
        weight.codes[dead] = 7
        model.get_layer(name).kernel.assign(weight.dense())
    result = written(tmp_path, model, record)
    assert not result.left
    assert "8192 codes" in result.checked


def test_codes_read_back_are_the_levels_numbers(tmp_path):
    model = mlp()
    record = quantized(model, BALANCED[2])
    result = written(tmp_path, model, record)
    stored = read_codes(result.path)
    for path, weight in record.weights.items():
        found = stored[path]
        assert found.kind == result.weights[path] == "int2"
        assert np.array_equal(found.values.T + 2, weight.codes)  # the file has outputs first
        assert np.abs(found.dense().T - weight.dense()).max() < 1e-6
    assert not result.left
    assert result.bits_per_weight < 2.5


def test_a_wrong_code_is_an_error_that_names_its_weight(tmp_path):
    model = mlp()
    record = quantized(model, BALANCED[2])
    kernel = model.get_layer("second").kernel
    codes = record.weights[kernel.path].codes
    codes[5, 7] = (codes[5, 7] + 1) % 4
    with pytest.raises(CannotWrite, match="second/kernel"):
        written(tmp_path, model, record)


def test_negative_gammas_and_dead_channels_are_scales(tmp_path):
    model = resnet()
    model.get_layer("conv_norm").gamma.assign(np.linspace(-1, 1, 17)[:16].astype(np.float32))
    assert 0 in np.asarray(model.get_layer("conv_norm").gamma)
    record = quantized(model, NARROW[4])
    assert written(tmp_path, model, record).weights["conv/kernel"] == "int4"


def test_a_code_without_a_negative_is_stored_wider(tmp_path):
    model = resnet()
    result = written(tmp_path, model, quantized(model, WHOLE[2]))
    assert "negative" in result.left["stem/kernel"] or "NaN" in result.left["stem/kernel"]
    assert result.weights["point/kernel"] == "int2"  # a product at every pixel


def test_convolutions_of_two_bits_are_int4_never_nan(tmp_path):
    model = chain(layers.Conv2D(16, 3, name="conv"), shape=(9, 9, 16))
    result = written(tmp_path, model, quantized(model, BALANCED[2]))
    assert result.weights["conv/kernel"] == "int4"
    assert "NaN" in result.left["conv/kernel"]


def test_speed_takes_the_faster_kernel(tmp_path):
    model = chain(layers.Conv2D(16, 3, name="conv"), layers.Dense(32, name="d"), shape=(9, 9, 16))
    result = written(tmp_path, model, quantized(model, BALANCED[2]), prefer="speed")
    assert result.weights["conv/kernel"] == "int8"
    assert result.weights["d/kernel"] == "int4"
    with pytest.raises(ValueError, match="prefer='tiny'"):
        written(tmp_path, model, quantized(model, BALANCED[2]), prefer="tiny")


def test_an_embedding_is_looked_up_in_integers(tmp_path):
    model = NETWORKS["embedding"]()
    result = written(tmp_path, model, quantized(model, NARROW[4]))
    names = [operation.name for operation in operations(result.path.read_bytes())]
    assert "EMBEDDING_LOOKUP" in names
    assert "GATHER" not in names
    assert result.weights["words/embeddings"] == "int4"


def test_uneven_levels_stay_float_and_say_so(tmp_path):
    model = mlp(64)
    record = quantized(model, (-1.0, -0.31, 0.22, 1.13))
    result = written(tmp_path, model, record)
    assert set(result.weights.values()) == {"float32"}
    assert result.left["second/kernel"] == "its levels are not evenly spaced"
    assert result.zipped_bytes < result.bytes / 3


def test_pruned_values_have_a_code(tmp_path):
    """Levels of 2 bits have no 0; with pruned values they are written in 4 bits."""
    model = mlp()
    record = quantized(model, BALANCED[2])
    weight = record.weights["second/kernel"]
    mask = np.random.default_rng(0).random(weight.codes.shape) > 0.5
    record.weights["second/kernel"] = Weight(2, weight.codes, weight.levels, weight.scale, mask)
    model.get_layer("second").kernel.assign(record.weights["second/kernel"].dense())
    result = written(tmp_path, model, record)
    assert result.weights["second/kernel"] == "int4"
    assert result.weights["first/kernel"] == "int2"
    assert (read_codes(result.path)["second/kernel"].values == 0).mean() == pytest.approx(
        0.5, abs=0.05
    )


def pruned(model, share, block):
    record = Record(original=model)
    generator = np.random.default_rng(0)
    for variable in model.weights:
        value = np.asarray(variable)
        if value.ndim == 2:
            rows = generator.random((value.shape[0] // block, value.shape[1])) >= share
            mask = np.repeat(rows, block, 0)
        elif value.ndim == 4:
            mask = generator.random(value.shape) >= share
        else:
            continue
        variable.assign(value * mask)
        record.weights[variable.path] = Weight(mask=mask)
    return record


def test_blocks_of_four_inputs_run_in_the_sparse_kernel(tmp_path):
    model = mlp()
    result = written(tmp_path, model, pruned(model, 0.9, 4))
    assert result.weights["second/kernel"] == "1x4"
    assert "DENSIFY" not in [o.name for o in operations(result.path.read_bytes())]
    assert result.bytes < 0.25 * len(convert.file_of(model))
    kernel = read_codes(result.path)["second/kernel"].values.T
    assert np.array_equal(kernel, np.asarray(model.get_layer("second").kernel))


def test_scattered_zeros_are_left_out_of_the_file(tmp_path):
    model = chain(
        layers.Conv2D(32, 3, name="conv"), layers.Flatten(), layers.Dense(10), shape=(6, 6, 32)
    )
    result = written(tmp_path, model, pruned(model, 0.8, 1))
    assert result.weights["conv/kernel"] == "sparse"
    assert result.bytes < 0.5 * len(convert.file_of(model))


def test_half_the_values_are_written_dense_when_positions_would_cost_more(tmp_path):
    model = mlp(32)
    result = written(tmp_path, model, pruned(model, 0.3, 1))
    assert result.weights["second/kernel"] == "float32"


def blocks_of(inputs, parts, count):
    """A hidden layer of `count` of the blocks `parts` (pairs of layers), and their sum."""
    made = [second(first(inputs)) for first, second in parts[:count]]
    return made[0] if count == 1 else layers.Add()(made)


def test_variants_are_signatures_of_one_file_that_share_their_weights(tmp_path):
    parts = [
        (layers.Dense(64, activation="relu", name=f"in{n}"), layers.Dense(64, name=f"out{n}"))
        for n in range(4)
    ]
    models = []
    for count in (4, 2, 1):
        inputs = keras.Input((64,), name="features")
        models.append(keras.Model(inputs, blocks_of(inputs, parts, count)))
    record = quantized(models[0], BALANCED[2])
    record.variants = dict(zip(("0%", "50%", "75%"), models, strict=True))
    alone = write(tmp_path / "alone.tflite", models[0], Record(weights=record.weights))
    result = written(tmp_path, models[0], record)
    assert result.bytes < 1.4 * alone.bytes  # 8 small kernels; the graphs are in it three times
    assert result.bits_per_weight == pytest.approx(alone.bits_per_weight, rel=0.1)
    data = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    for name, model in record.variants.items():
        output = convert.Session(result.path, signature=name)({"features": data})
        expected = np.asarray(model(data))
        distance = np.abs(next(iter(output.values())) - expected).max()
        assert distance < 0.05 * np.abs(expected).max(), name
    with pytest.raises(ValueError, match=r"no signature '90%'; the file has 0%, 50%, 75%"):
        convert.Session(result.path, signature="90%")


def test_loops_of_two_signatures_stay_apart(tmp_path):
    inputs = keras.Input((12, 32), name="features")
    lstm, head = layers.LSTM(32, name="lstm"), layers.Dense(32, name="head")
    model, short = keras.Model(inputs, head(lstm(inputs))), keras.Model(inputs, lstm(inputs))
    record = quantized(model, NARROW[4])
    record.variants = {"short": short}
    result = written(tmp_path, model, record)
    assert "serving_default, short" in result.checked


def test_a_session_of_a_signature_carries_its_state(tmp_path):
    def adder(name):
        inputs = {"x": keras.Input((2,), name="x"), "sum": keras.Input((2,), name="sum")}
        return keras.Model(inputs, {"sum": layers.Add()(list(inputs.values()))}, name=name)

    result = written(tmp_path, adder("a"), Record(variants={"again": adder("b")}))
    for signature in (None, "again"):
        session = convert.Session(result.path, signature=signature)
        for _ in range(3):
            session.step({"x": np.ones((1, 2), np.float32)})
        total = session({"x": np.zeros((1, 2)), "sum": np.ones((1, 2))})["sum"]
        assert total.tolist() == [[1.0, 1.0]]
        assert session.state == ("sum",)


@pytest.mark.parametrize("levels", [NARROW[8], NARROW[4]], ids=["8", "4"])
def test_calibrated_activations_keep_our_codes(tmp_path, levels):
    pytest.importorskip("ai_edge_quantizer")
    model = resnet()
    record = quantized(model, levels)
    record.activations = 8
    with pytest.raises(ValueError, match="need examples"):
        written(tmp_path, model, record)
    data = np.random.default_rng(0).normal(size=(16, 12, 12, 3)).astype(np.float32)
    result = written(tmp_path, model, record, data)
    assert f"{sum(w.codes.size for w in record.weights.values())} codes" in result.checked
    assert result.weights["conv/kernel"] == ("int8" if len(levels) > 15 else "int4")
    session = convert.Session(result.path)
    assert session.inputs["image"][1] == np.float32
    assert "QUANTIZE" in [o.name for o in operations(result.path.read_bytes())]


def test_calibrated_kernels_behind_a_norm_say_whose_integers_they_are(tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    model = with_gains(
        chain(layers.RMSNormalization(name="norm"), layers.Dense(64, name="dense"), shape=(8, 64))
    )
    record = quantized(model, NARROW[4])
    record.activations = 8
    data = np.random.default_rng(0).normal(size=(16, 8, 64)).astype(np.float32)
    result = written(tmp_path, model, record, data)
    assert result.weights["dense/kernel"] == "int8"
    assert "the gain of a norm" in result.left["dense/kernel"]


def test_a_failure_leaves_no_file(tmp_path, monkeypatch):
    model = mlp(32)
    monkeypatch.setattr("nas.files.writers.tflite.verify._noise", lambda *_: float("nan"))
    with pytest.raises(CannotWrite, match="differs from Keras"):
        written(tmp_path, model, Record())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", integer_codes.WIDTHS)
def test_packed_integers_come_back(bits):
    half = 2 ** (bits - 1)
    values = np.random.default_rng(0).integers(-half, half, (5, 7)).astype(np.int8)
    data = pack(values, bits)
    assert data.size == -(-35 * bits // 8)
    assert np.array_equal(unpack(data, bits, (5, 7)), values)


@pytest.mark.parametrize(
    "levels, expected",
    [
        (BALANCED[2], [(2, 0.5), (4, 0), (8, 0)]),
        (WHOLE[2], [(2, 0), (4, 0), (8, 0)]),
        (WHOLE[3], [(4, 0), (8, 0)]),
        (NARROW[8], [(8, 0)]),
        (range(0, 16), [(4, 8), (8, 0)]),
        ((-1.0, 0.0, 1.0), [(2, 0), (4, 0), (8, 0)]),
        ((-1.0, -0.31, 0.22, 1.13), []),
    ],
)
def test_forms_are_exact(levels, expected):
    levels = np.array([levels], np.float32)
    codes = np.random.default_rng(0).integers(0, levels.size, (8, 12)).astype(np.uint8)
    weight = Weight(8, codes, levels, np.linspace(0.1, 1, 12, dtype=np.float32)[None])
    forms = integer_codes.forms(weight)
    assert [(form.bits, form.offset) for form in forms] == expected
    for form in forms:
        assert np.allclose(form.dense(), weight.dense(), atol=1e-6)


def test_groups_of_levels_become_scales():
    levels = np.array([[-2, -1, 0, 1], [-20, -10, 0, 10]], np.float32)
    codes = np.random.default_rng(0).integers(0, 4, (6, 8)).astype(np.uint8)
    weight = Weight(2, codes, levels, np.ones((1, 1), np.float32), axis=1)
    form = integer_codes.forms(weight)[0]
    assert form.bits == 2
    assert np.allclose(form.dense(), weight.dense())


@pytest.mark.parametrize("method", [QAT(4), PTQ(8, activations=None)], ids=["qat4", "ptq8"])
def test_a_layer_before_several_norms_is_there_several_times(tmp_path, method):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 16))
    shared, outputs = keras.layers.Conv2D(16, 1, name="shared"), []
    for level, image in enumerate((inputs, keras.layers.AveragePooling2D(2)(inputs))):
        norm = keras.layers.BatchNormalization(name=f"norm{level}")
        outputs.append(keras.layers.GlobalAveragePooling2D()(norm(shared(image))))
        if level:
            norm.gamma.assign(np.linspace(0.5, 1.5, 16))
    model = keras.Model(inputs, keras.layers.Add(name="sum")(outputs))
    done = compress(model, [method])
    path = tmp_path / "shared.tflite"
    write(path, done.model, done.record)
    names = [name for name in read_codes(path) if name.startswith("shared/kernel")]
    assert sorted(names) == ["shared/kernel", "shared/kernel/2"]


def test_codes_of_8_bits_between_integers_are_those_of_a_product_at_each_pixel(tmp_path):
    inputs = keras.Input((4, 4, 16))
    model = keras.Model(inputs, layers.Conv2D(24, 1, name="pointwise")(inputs))
    record = coded(model, 8)
    write(tmp_path / "n.tflite", model, record)
    stored = read_codes(tmp_path / "n.tflite")["pointwise/kernel"]
    expected = record.weights["pointwise/kernel"].dense().reshape(16, 24).T
    np.testing.assert_allclose(stored.dense(), expected, rtol=1e-5)
    assert stored.kind == "int8"

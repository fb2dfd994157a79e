"""EfficientNet, -X and -H: published counts, layouts against their definition, canonical form."""

import dataclasses

import keras
import numpy as np
import pytest

from families import efficientnet, efficientnet_x
from families.efficientnet import Block, Config
from families.layers import (
    BatchToDepth,
    DepthToBatch,
    DepthToSpace,
    SpaceToDepth,
    copy_weights,
    shapes_only,
)
from latency.networks import count
from latency.roofline import kernel_times
from latency.tflite import convert
from latency.tflite.graph import operations

LAYOUTS = ("none", "depth_learned", "depth_reshape", "batch_learned", "batch_reshape")


def _count(config: Config) -> count.Cost:
    with shapes_only():
        return count.count(efficientnet.build(config))


# Trainable parameters and multiply-adds, both exact: parameters of B0 to B7 are those of
# keras.applications, all others follow from the released block strings (tensorflow/tpu).
COUNTS = {
    (efficientnet, "b0"): (5288548, 385814752),
    (efficientnet, "b7"): (66347960, 37745884192),
    (efficientnet_x, "b0"): (7584104, 920421088),
    (efficientnet_x, "b1"): (9571024, 1606191824),
    (efficientnet_x, "tpu-b2"): (11493130, 2697179808),
    (efficientnet_x, "tpu-b7"): (198638730, 85471623096),
    (efficientnet_x, "gpu-b7"): (196730150, 84538368384),
}
LACS = {  # trainable parameters
    "tpu-b1": 10419068,
    "tpu-b3": 15768856,
    "tpu-b4": 33978936,
    "tpu-b5": 59919646,
    "tpu-b6": 137204266,
    "gpu-b1": 10419068,
    "gpu-b2": 10753924,
    "gpu-b3": 16807232,
    "gpu-b4": 37106070,
    "gpu-b5": 72087216,
    "gpu-b6": 122194334,
}


@pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param(*key, marks=[pytest.mark.slow] if key[1][-1] == "7" else []) for key in COUNTS],
    ids=lambda value: value if isinstance(value, str) else value.__name__.partition(".")[2],
)
def test_counts_are_exact(family, name):
    counted = _count(family.VARIANTS[name])
    assert (counted.trainable_params, counted.macs) == COUNTS[family, name]
    assert not counted.uncounted


@pytest.mark.slow
def test_rows_of_lacs_have_the_parameters_of_the_released_blocks():
    found = {name: _count(efficientnet_x.VARIANTS[name]).trainable_params for name in LACS}
    assert found == LACS


def test_h_is_x_with_less_expansion():
    x, h = (efficientnet_x.VARIANTS[name] for name in ("b0", "h-b0"))
    assert [block.expand for block in x.blocks] == [1, 6, 6, 6, 6, 6, 6]
    assert [block.expand for block in h.blocks] == [1, 4, 4, 4, 6, 6, 6]
    same = [
        dataclasses.replace(ours, expand=theirs.expand)
        for ours, theirs in zip(h.blocks, x.blocks, strict=True)
    ]
    assert dataclasses.replace(h, blocks=tuple(same)) == x


@pytest.mark.slow
def test_b0_computes_what_keras_applications_computes():
    config = dataclasses.replace(efficientnet.VARIANTS["b0"], input_shape=(64, 64, 3), classes=10)
    ours = efficientnet.build(config)
    theirs = keras.applications.EfficientNetB0(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )
    # Its first layers rescale the image; what they own is not ours.
    skipped = {id(w) for w in theirs.get_layer("normalization").weights}
    weights = [weight for weight in theirs.weights if id(weight) not in skipped]
    generator = np.random.default_rng(0)
    assert [tuple(w.shape) for w in ours.weights] == [tuple(w.shape) for w in weights]
    for mine, weight in zip(ours.weights, weights, strict=True):
        value = generator.normal(0, 0.1, weight.shape)
        if "variance" in weight.path or "gamma" in weight.path:
            value = 1 + abs(value)
        mine.assign(value)
        weight.assign(value)
    images = generator.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(theirs(images, training=False))
    outputs = keras.ops.convert_to_numpy(ours(images / 255, training=False))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(outputs, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


def _moved(image: np.ndarray, *layers) -> np.ndarray:
    for layer in layers:
        shape = layer.compute_output_shape(image.shape)
        image = keras.ops.convert_to_numpy(layer(image))
        assert image.shape == tuple(shape)
    return image


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (3, 7), (1, 1)])
def test_layouts_keep_every_pixel(size):
    image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)
    depth = _moved(image, SpaceToDepth())
    assert depth.shape == (2, rows, columns, 12)
    whole = np.zeros((2, 2 * rows, 2 * columns, 3), "float32")
    whole[:, : size[0], : size[1]] = image
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        part = depth[..., 3 * place : 3 * (place + 1)]
        np.testing.assert_array_equal(part, whole[:, row::2, column::2])
    batch = _moved(depth, DepthToBatch())
    assert batch.shape == (8, rows, columns, 3)
    np.testing.assert_array_equal(batch[1], whole[0, 0::2, 1::2])  # the first image's second grid
    np.testing.assert_array_equal(batch[4], whole[1, 0::2, 0::2])
    np.testing.assert_array_equal(_moved(batch, BatchToDepth(), DepthToSpace(size)), image)


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="6 channels"):
        DepthToBatch()(keras.KerasTensor((None, 2, 2, 6)))
    with pytest.raises(ValueError, match="holds no image of size"):
        DepthToSpace((5, 4))(keras.KerasTensor((None, 2, 2, 8)))


# Every operation, activation and way into and out of a layout occurs, on few channels.
def _miniature(layout: str, size: int = 12) -> Config:
    return Config(
        input_shape=(size, size, 1),
        classes=3,
        stem_filters=8,
        blocks=(
            Block("mbconv", kernel=3, stride=1, filters=8, repeats=2, expand=2, layout=layout),
            Block("fused", 3, stride=2, filters=16, repeats=1, expand=2, activation="hard_swish"),
            Block("conv", 5, stride=2, filters=16, repeats=2, activation="relu", layout=layout),
            Block("mbconv", 3, stride=1, filters=16, repeats=1, se_ratio=0),
        ),
        head_filters=16,
        stem_stride=1,
    )


def _as_trained(model: keras.Model) -> keras.Model:
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("moving_variance", "gamma"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif "int" not in weight.dtype:
            fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 10
            weight.assign(generator.normal(0, (2 / fan_in) ** 0.5, weight.shape))
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [12, 11])
def test_a_file_written_directly_computes_what_keras_does(layout, size):
    model = _as_trained(efficientnet.build(_miniature(layout, size)))
    images = np.random.default_rng(1).normal(size=(2, size, size, 1)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    assert np.abs(expected).max() > 1e-2
    outputs = convert.run(convert.assemble(model), images)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_the_official_converter_makes_the_same_operations(layout):
    pytest.importorskip("tensorflow", reason="compares with TensorFlow's converter")
    model = _as_trained(efficientnet.build(_miniature(layout, 11)))
    official = convert.convert(model)
    assert operations(convert.assemble(model)) == operations(official)
    images = np.random.default_rng(1).normal(size=(2, 11, 11, 1)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    outputs = convert.run(official, images)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_layouts_on_jax(passes_on_jax):
    pytest.importorskip("jax", reason="runs the tests of this file with Keras on JAX")
    passes_on_jax(__file__, "keep_every_pixel or 12-batch_learned or 11-depth_reshape or lowers")


def test_counts_in_batch_are_those_of_the_file():
    """Four images of a quarter of the pixels: as many multiply-adds, where sizes are even."""
    block = Block("fused", kernel=3, stride=1, filters=8, repeats=2, expand=2, se_ratio=0)
    config = dataclasses.replace(_miniature("none"), blocks=(block,))
    moved = dataclasses.replace(block, layout="batch_reshape")
    plain, batch = (
        count.count(efficientnet.build(dataclasses.replace(config, blocks=(one,))))
        for one in (block, moved)
    )
    assert batch.macs == plain.macs and batch.trainable_params == plain.trainable_params
    sizes = {row.name: row.output_bytes for row in batch.layers}
    assert sizes["block1_enter_batch"] == sizes["stem_swish"] == 12 * 12 * 8 * 4
    model = efficientnet.build(dataclasses.replace(config, blocks=(moved,)))
    kernels, _ = kernel_times.layer_graph(model, batch_size=2, dtype="float32", fusion="none")
    moving = next(kernel for kernel in kernels if kernel.name == "block1_enter_batch")
    assert moving.bytes == 2 * 2 * sizes["stem_swish"]  # read and written, of two images


def test_space_to_batch_is_a_dilated_convolution():
    """Convolving the grids of every second pixel is convolving with holes."""
    block = Block("conv", kernel=3, stride=1, filters=8, repeats=1, se_ratio=0, skip=False)
    config = dataclasses.replace(
        _miniature("none"), blocks=(dataclasses.replace(block, layout="batch_reshape"),)
    )
    model = _as_trained(efficientnet.build(config))
    stem = keras.Model(model.input, model.get_layer("stem_swish").output)
    conv = keras.Model(model.input, model.get_layer("head_leave_depth").output)
    images = np.random.default_rng(2).normal(size=(2, 12, 12, 1)).astype("float32")
    x = keras.ops.conv(
        stem(images), model.get_layer("block1_1_conv").kernel, padding="same", dilation_rate=2
    )
    x = keras.activations.silu(model.get_layer("block1_1_conv_norm")(x, training=False))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(conv(images, training=False)),
        keras.ops.convert_to_numpy(x),
        rtol=0,
        atol=1e-4,
    )


def test_layers_are_left_out_in_training_only_and_by_depth():
    config = dataclasses.replace(efficientnet.VARIANTS["tiny"], survival=0.2)
    model = efficientnet.build(config)
    rates = {
        layer.name: layer.rate
        for layer in model.layers
        if isinstance(layer, keras.layers.Dropout) and layer.name != "head_dropout"
    }
    # Of 8 layers; those with a shortcut, but for the very first.
    assert rates == pytest.approx(
        {"block2_2_drop": 0.2, "block3_2_drop": 0.4, "block4_2_drop": 0.6}
    )
    drop = model.get_layer("block4_2_drop")
    ones = np.ones((400, 2, 2, 3), "float32")
    np.testing.assert_array_equal(drop(ones, training=False), ones)
    outputs = keras.ops.convert_to_numpy(drop(ones, training=True)).reshape(400, -1)
    assert (outputs == outputs[:, :1]).all()  # a sample as a whole
    assert set(np.unique(outputs.round(4))) == {0.0, 2.5}
    assert (outputs[:, 0] == 0).mean() == pytest.approx(0.6, abs=0.1)


def test_a_network_of_all_layouts_lowers_its_loss():
    config = dataclasses.replace(_miniature("batch_learned"), survival=1.0, dropout=0.0)
    keras.utils.set_random_seed(0)
    model = efficientnet.build(config)
    model.compile(keras.optimizers.SGD(1e-2), loss="mse", run_eagerly=False)
    generator = np.random.default_rng(0)
    images = generator.normal(size=(8, 12, 12, 1)).astype("float32")
    targets = generator.normal(size=(8, 3)).astype("float32")
    losses = [float(model.train_on_batch(images, targets)) for _ in range(4)]
    assert losses[-1] < losses[0] and np.isfinite(losses).all()


def test_features_are_the_last_of_each_stride_and_share_weights():
    config = efficientnet_x.VARIANTS["tiny"]
    inputs = keras.Input(config.input_shape, name="image")
    levels = efficientnet.features(inputs, config)
    shapes = {level: tensor.shape[1:] for level, tensor in levels.items()}
    assert shapes == {1: (16, 16, 16), 2: (8, 8, 32), 3: (4, 4, 64)}
    trained = efficientnet.build(config)
    body = keras.Model(inputs, levels)
    copy_weights(trained, body)
    last = keras.Model(trained.input, trained.get_layer("block5_1_project_norm").output)
    images = np.random.default_rng(0).normal(size=(1, *config.input_shape)).astype("float32")
    np.testing.assert_array_equal(body(images)[3], last(images))


def test_features_of_b0_are_what_efficientdet_reads():
    with shapes_only():
        inputs = keras.Input((512, 512, 3))
        levels = efficientnet.features(inputs, efficientnet.VARIANTS["b0"])
    read = {level: levels[level].shape[1:] for level in (3, 4, 5)}
    assert read == {3: (64, 64, 40), 4: (32, 32, 112), 5: (16, 16, 320)}


def test_a_block_that_gets_deeper_gets_its_shortcuts():
    b1 = efficientnet.VARIANTS["b1"]
    with shapes_only():
        names = {layer.name for layer in efficientnet.build(b1).layers}
    # 23 layers in 7 blocks, of which all but the first of a block add their input.
    assert sum(block.repeats for block in b1.blocks) == 23
    assert sum(name.endswith("_add") for name in names) == 16
    assert {"block1_2_add", "block7_2_add"} <= names


def test_scaling_by_one_is_the_identity_and_rounds_as_published():
    tiny = efficientnet.VARIANTS["tiny"]
    assert efficientnet.scaled(tiny) == tiny
    deeper = efficientnet.scaled(tiny, depth=1.01)
    assert [block.repeats for block in deeper.blocks] == [2, 3, 3, 3, 2]
    finer = efficientnet.scaled(tiny, width=1.2, divisor=4)
    assert [block.filters for block in finer.blocks] == [20, 28, 40, 56, 76]
    wider = efficientnet.scaled(efficientnet.VARIANTS["b0"], width=1.1, depth=1.2, resolution=260)
    assert dataclasses.replace(wider, dropout=0.3) == efficientnet.VARIANTS["b2"]
    with pytest.raises(ValueError, match="depth factor: got 0"):
        efficientnet.scaled(tiny, depth=0)


def _with_first(**fields) -> Config:
    config = _miniature("none")
    first = dataclasses.replace(config.blocks[0], **fields)
    return dataclasses.replace(config, blocks=(first, *config.blocks[1:]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("op", "depthwise"),
        ("activation", "gelu"),
        ("layout", "depth"),
        ("se_ratio", 0.3),
        ("stride", 3),
        ("kernel", 4),
        ("repeats", 0),
    ],
)
def test_meaningless_blocks_are_refused(field, value):
    with pytest.raises(ValueError, match=f"block1 {field}: got {value!r}, expected"):
        _with_first(**{field: value})

"""Networks of other types, shapes and structures than most: right, or refused in one line."""

import json

import keras
import numpy as np
import pytest

import nas
from compress.ptq import PTQ
from latency.tflite import convert
from nas.cli import command_line
from nas.files.flatten import flatten, with_open_batch
from nas.files.open_network import open_network

ROWS = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype(np.float32)


def convolution(size=None) -> tuple:
    image = keras.Input((size, size, 3), name="image")
    return image, keras.layers.Conv2D(4, 3, padding="same")(image)


@pytest.mark.parametrize("keepdims", [False, True])
def test_an_argmax_gives_the_same_classes_in_its_file(keepdims):
    """Keras writes it with BitwiseAnd, which LiteRT lacks."""
    image, x = convolution(12)
    model = keras.Model(image, keras.ops.argmax(x, axis=-1, keepdims=keepdims))
    found = convert.run(convert.convert(model), IMAGES)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, model(IMAGES))


def test_outputs_in_dicts_of_dicts_are_named_by_their_keys():
    row = keras.Input((6,), name="row")
    hidden = keras.layers.Dense(5)(row)
    outputs = {"heads": {"a": keras.layers.Dense(2)(hidden), "b": hidden}, "more": [hidden * 2]}
    model = keras.Model(row, outputs)
    found, expected = convert.run(convert.convert(model), ROWS), model(ROWS)
    assert found.keys() == {"heads_a", "heads_b", "more_0"}
    np.testing.assert_allclose(found["heads_a"], expected["heads"]["a"], atol=1e-5)
    np.testing.assert_allclose(found["more_0"], expected["more"][0], atol=1e-5)


def test_double_precision_is_computed_in_float32_and_said():
    row = keras.Input((6,), dtype="float64")
    model = keras.Model(row, keras.layers.Dense(3, dtype="float64", name="head")(row))
    opened = open_network(model)
    assert opened.model.inputs[0].dtype == opened.model.outputs[0].dtype == "float32"
    assert "float64" in opened.notes[0] and "head" in opened.notes[0]
    np.testing.assert_allclose(opened.model(ROWS), model(ROWS.astype(float)), atol=1e-5)


def test_an_array_of_numpy_in_the_graph_does_not_make_float64_of_it():
    """x / np.array([...]) is float64 in Keras, which LiteRT does not compute in."""
    image = keras.Input((12, 12, 3), name="image")
    scaled = (image - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.3, 0.2])
    model = keras.Model(image, keras.layers.Conv2D(2, 3, name="conv")(scaled))
    assert scaled.dtype == "float64"
    flat = open_network(model).model
    np.testing.assert_allclose(flat(IMAGES), model(IMAGES), atol=1e-4)
    np.testing.assert_allclose(convert.run(convert.file_of(flat), IMAGES), flat(IMAGES), atol=1e-4)


def test_given_sizes_stand_in_place_of_open_ones():
    image, x = convolution()
    model = keras.Model(image, keras.layers.GlobalMaxPooling2D()(x))
    flat = nas.open(model, shapes=(1, 12, 12, 3)).model
    assert flat.input_shape == (None, 12, 12, 3)
    np.testing.assert_allclose(flat(IMAGES), model(IMAGES), atol=1e-6)
    assert nas.open(model, shapes={"image": (2, 12, 12, 3)}).model.input_shape == (2, 12, 12, 3)
    for shapes, said in (
        ((1, 12, 12, 4), "the network fixes it to"),
        ({"picture": (1, 12, 12, 3)}, "no input 'picture'; the network takes image"),
        ((1, 0, 12, 3), "expected whole numbers from 1"),
    ):
        with pytest.raises(ValueError, match=said):
            nas.open(model, shapes=shapes)
    with pytest.raises(ValueError, match="only .tflite files have signatures"):
        nas.open(model, signature="main")


def test_sizes_that_layers_do_not_take_name_the_layer():
    image, x = convolution()
    model = keras.Model(image, keras.layers.Reshape((9, 4), name="nine")(x[:, :3, :3]))
    assert nas.open(model, shapes=(1, 12, 12, 3)).model.output_shape == (None, 9, 4)
    with pytest.raises(ValueError, match=r"layer 'nine' \(Reshape\) cannot be called on tensors"):
        nas.open(model, shapes=(1, 2, 2, 3))


def test_a_network_built_for_a_batch_is_compressed_with_any():
    image = keras.Input(batch_shape=(5, 12, 12, 3), name="image")
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(image)))
    model = keras.Model(image, logits)
    opened = with_open_batch(flatten(model).model)
    assert opened.input_shape == (None, 12, 12, 3)
    five = np.repeat(IMAGES, 3, axis=0)[:5]
    np.testing.assert_allclose(opened(five), model(five), atol=1e-5)
    labels = np.arange(20) % 2
    data = (np.tile(IMAGES, (10, 1, 1, 1)), labels)
    small = nas.compress(model, [PTQ(8)], data, by_layer=False)
    assert "built for batches of 5" in small.record["notes"][0]
    with pytest.raises(ValueError, match="built for batches of 5"):
        nas.train(model, data, epochs=1)


def test_a_stateful_network_keeps_its_state_and_says_what_it_cannot():
    steps = keras.Input(batch_shape=(4, 3, 6))
    model = keras.Model(steps, keras.layers.LSTM(2, stateful=True, name="memory")(steps))
    batch = np.random.default_rng(2).normal(size=(4, 3, 6)).astype(np.float32)
    model(batch)
    before = [state.numpy() for state in model.layers[-1].states]
    small = nas.compress(model, [PTQ(8)])
    assert all(np.array_equal(*p) for p in zip(before, model.layers[-1].states, strict=True))
    assert small.model.layers[-1].stateful
    with pytest.raises(ValueError, match="'memory' .*is stateful: it takes batches of 4"):
        nas.compress(model, [PTQ(8)], np.repeat(batch, 5, axis=0))
    with pytest.raises(ValueError, match="stateful: a .tflite file keeps nothing"):
        convert.file_of(model)


def test_adapters_on_codes_are_refused():
    """enable_lora, then quantize("int8"): no float kernel is left to merge the product into."""
    dense = keras.layers.Dense(4, name="adapted")
    model = keras.Sequential([keras.Input((6,)), dense])
    dense.enable_lora(2)
    dense.quantize("int8")
    with pytest.raises(
        ValueError, match=r"'adapted' was quantized by Keras \(int8\).*float network"
    ):
        open_network(model)


def test_what_a_safetensors_file_does_not_hold(tmp_path):
    word = keras.Input((1,), dtype="string")
    look_up = keras.layers.StringLookup(vocabulary=["a", "b"], name="words")
    vectors = keras.layers.Embedding(4, 64)(look_up(word))
    small = nas.compress(keras.Model(word, vectors), [PTQ(8)])
    with pytest.raises(nas.CannotWrite, match="'words' .* looks words up in a table"):
        small.write(tmp_path / "a.safetensors")


def test_the_command_line_asks_for_open_sizes_and_says_what_it_ran(tmp_path, capsys):
    image, x = convolution()
    keras.Model(image, keras.layers.GlobalMaxPooling2D()(x)).save(tmp_path / "open.keras")
    words = ["profile", str(tmp_path / "open.keras"), "--target", "gpu:h100,how=layers", "--json"]
    assert command_line.main(words) == 2
    assert "give its sizes: --shape image=1,224,224,3" in capsys.readouterr().err
    assert command_line.main([*words, "--shape", "4,12,12,3"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["batch_size"] == 4
    assert row["conditions"]["inputs"] == {"image": "float32 4x12x12x3"}
    assert command_line.main([*words, "--shape", "big"]) == 2
    assert "expected SIZES or INPUT=SIZES" in capsys.readouterr().err

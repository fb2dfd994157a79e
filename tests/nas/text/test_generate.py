"""nas generate: the known story from every form of the network, and forms that agree."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from families import decoder
from latency.tflite import convert
from nas.cli import command_line
from nas.files.readers import any_checkpoint, decoder_config
from nas.text import generation, language_models
from nas.text import tokenizer_files as tokenizers
from nas.text.tokenizer import Characters

# What llama2.c says at temperature 0, 256 steps from the start token (doc/stories260K.md there).
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. "
    "She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" "
    "Her mom said, \"Don't worry, Lily. We can help you."
)
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def stories(shared_data):
    return shared_data / "checkpoints" / "stories260K.bin"


@pytest.fixture(scope="module")
def network(stories):
    checkpoint = any_checkpoint.read(stories)
    return checkpoint.network(), checkpoint.config


@pytest.fixture(scope="module")
def cached(network):
    return language_models.Cached(*network, 512)


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return tokenizers.read(shared_data / "checkpoints" / "tok512.bin")


def said(model, tokenizer, prompt, count=256):
    """What a model says after a prompt, greedily."""
    parts = []
    result = generation.generate(model, tokenizer, prompt, tokens=count, on_text=parts.append)
    assert "".join(parts) == result.text
    return result


@pytest.mark.parametrize("prompt", ["", PROMPT, STORY[:60]], ids=len)
def test_the_known_story_with_a_cache(prompt, cached, tokenizer):
    result = said(cached, tokenizer, prompt)
    assert result.text.startswith(STORY)
    assert (result.tokens, result.ended) == (256, "tokens")


def test_the_known_story_without_a_cache(network, tokenizer):
    assert said(language_models.Uncached(*network, 320), tokenizer, PROMPT).text.startswith(STORY)


def test_the_known_story_from_tflite(network, tokenizer, tmp_path):
    path = tmp_path / "step.tflite"
    assert language_models.write_step(path, *network, 320) == path.stat().st_size
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step.tflite", "use.py"]
    model = language_models.LiteRT(path)
    for _ in range(2):  # nothing is left of the first text
        assert said(model, tokenizer, PROMPT).text.startswith(STORY)
    steps = convert.Session(path)
    assert set(steps.state) == {
        f"block{n}_cache_{k}" for n in range(1, 6) for k in ("key", "value")
    }


def printed(command):
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert command_line.main(command) == 0
    return keras.config.backend(), out.getvalue()


@pytest.mark.parametrize("cache", [[], pytest.param(["--no-cache"], marks=pytest.mark.slow)])
def test_the_known_story_under_jax(cache, stories, on_jax):
    """The command itself."""
    backend, out = on_jax(printed, ["generate", str(stories), "--prompt", PROMPT, *cache])
    assert backend == "jax" and out.startswith(STORY)


def test_a_text_ends_where_the_network_ends_it(cached, tokenizer):
    result = said(cached, tokenizer, PROMPT, 600)
    assert result.ended == "stop"
    assert 256 < result.tokens < 400
    assert result.text.endswith('You are a good friend."')
    told = result.to_json()
    assert told["prompt_tokens"] == 5
    assert told["decode_tokens_per_s"] == pytest.approx(result.tokens / result.decode_s)


def test_the_command_says_the_story_and_writes_the_step(stories, tmp_path, capsys):
    path = str(tmp_path / "step.tflite")
    command = ["generate", str(stories), "--prompt", PROMPT, "--tokens", "30", "--export", path]
    assert command_line.main([*command, "--context", "64"]) == 0
    out, err = capsys.readouterr()
    assert STORY.startswith(out.rstrip("\n")) and len(out) > 80
    assert "prompt: 5 tokens" in err and "said: 30 tokens" in err and "a second" in err
    assert "a cache of 64 tokens" in err
    assert (
        command_line.main(["generate", path, "--prompt", PROMPT, "--tokens", "30", "--json"]) == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["text"] == out[:-1]
    assert record["decode_tokens_per_s"] > 1


FORMS = {
    "windows and shared keys": {"window": 24, "local": 2, "shared": 1, "global_rope": False},
    "plain": {},
    "grouped and normalized": {"qk_norm": True, "key_value_heads": 1},
    "experts": {"experts": 4, "expert_every": 2, "tied": False, "dropout": 0.1},
}


def lively(form):
    """A network whose layers matter: random weights, larger than those of a beginning."""
    config = dataclasses.replace(
        decoder.VARIANTS["tiny"], layers=4, dim=32, hidden=48, vocabulary=64, **form
    )
    keras.utils.set_random_seed(1)
    model = decoder.build(config)
    for weight in model.weights:
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(2.5 * np.asarray(weight))
    return model, config


@pytest.mark.parametrize(
    "form", [next(iter(FORMS)), *(pytest.param(n, marks=pytest.mark.slow) for n in list(FORMS)[1:])]
)
def test_a_cache_changes_nothing(form):
    """Logits after a prompt that is read in several padded parts, and of steps after it."""
    model, config = lively(FORMS[form])
    ids = np.random.default_rng(0).integers(0, 64, 160).tolist()
    cached, plain = (
        language_models.Cached(model, config, 192),
        language_models.Uncached(model, config, 192),
    )
    for part in (ids[:150], ids[150:151], ids[151:152], ids[152:155], ids[155:]):
        expected = plain.read(part)
        np.testing.assert_allclose(cached.read(part), expected, atol=2e-4 * np.abs(expected).max())
    assert np.ptp(expected) > 0.5
    cached.reset()
    plain.reset()
    np.testing.assert_allclose(cached.read(ids[:3]), plain.read(ids[:3]), atol=1e-3)


def test_longer_than_the_cache_the_oldest_are_forgotten():
    model, config = lively({})
    config = dataclasses.replace(config, layers=1)
    keras.utils.set_random_seed(1)
    model = decoder.build(config)
    ids = np.random.default_rng(0).integers(0, 64, 100).tolist()
    network = language_models.Cached(model, config, 16)
    for token in ids:
        after_all = network.read([token])
    network.reset()
    np.testing.assert_allclose(after_all, network.read(ids[-16:]), atol=1e-4)
    plain = language_models.Uncached(model, config, 16)
    plain.read(ids[:50])
    np.testing.assert_allclose(after_all, plain.read(ids[50:]), atol=1e-4)


def test_a_keras_file_holds_its_network(tmp_path):
    model, config = lively(FORMS["windows and shared keys"])
    model.save(tmp_path / "x.keras")
    found = decoder_config.read(tmp_path / "x.keras")
    assert found.config == config
    for weight in model.weights:
        np.testing.assert_array_equal(found.weights[weight.path], np.asarray(weight))


@pytest.mark.slow
def test_a_keras_file_says_what_its_network_says(tmp_path, capsys):
    model, config = lively(FORMS["windows and shared keys"])
    path = tmp_path / "x.keras"
    model.save(path)
    alphabet = Characters("".join(map(chr, range(40, 104))))
    (tmp_path / "x.tokenizer.txt").write_bytes(alphabet.to_bytes())
    command = ["generate", str(path), "--prompt", "ABC", "--tokens", "50", "--top-k", "9"]
    assert command_line.main([*command, "--temperature", "1.5", "--seed", "4"]) == 0
    text = capsys.readouterr().out
    network = language_models.Uncached(model, config, 64)
    options = {"temperature": 1.5, "top_k": 9, "seed": 4}
    result = generation.generate(network, alphabet, "ABC", tokens=50, **options)
    assert text == result.text + "\n"
    assert len(text) == 54 and len(set(text)) > 5


@pytest.mark.parametrize(
    "form",
    [*FORMS.values(), {"activation": "gelu"}, {"experts": 2, "top_k": 1}],
    ids=str,
)
@pytest.mark.parametrize("step", [False, True])
def test_the_config_is_read_off_the_layers(form, step):
    config = dataclasses.replace(decoder.VARIANTS["tiny"], layers=6, rope_theta=500.0, **form)
    config = decoder.deploy(config) if step else config
    assert decoder_config.config_of(decoder.build(config), "x") == config


def test_a_network_that_was_changed_is_not_taken_for_another(tmp_path):
    model = decoder.build(decoder.VARIANTS["tiny"])
    layer = model.get_layer("block2_attention_context")
    layer.window = 4
    with pytest.raises(ValueError, match="layers were changed"):
        decoder_config.config_of(model, "x.keras")
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "y.keras")
    with pytest.raises(ValueError, match="no network of families/decoder.py"):
        decoder_config.read(tmp_path / "y.keras")


def test_what_is_drawn_has_the_shares_it_should():
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1], np.float32))

    def counted(*options):
        choose = generation.sampler(*options)
        return np.bincount([choose(logits) for _ in range(4000)], minlength=4) / 4000

    np.testing.assert_allclose(counted(1.0, 0, 0), np.exp(logits), atol=0.03)
    squared = np.exp(2 * logits) / np.exp(2 * logits).sum()
    np.testing.assert_allclose(counted(0.5, 0, 1), squared, atol=0.03)
    np.testing.assert_allclose(counted(1.0, 3, 2), np.array([5, 2, 2, 0]) / 9, atol=0.03)
    assert counted(0.0, 0, 0).tolist() == [1, 0, 0, 0]
    assert counted(2.0, 1, 0).tolist() == [1, 0, 0, 0]
    assert (counted(1.0, 0, 7) == counted(1.0, 0, 7)).all()
    assert (counted(1.0, 0, 7) != counted(1.0, 0, 8)).any()


def test_an_interrupt_ends_the_text(cached, tokenizer):
    parts = []

    def say(text):
        parts.append(text)
        if len(parts) == 12:
            raise KeyboardInterrupt

    result = generation.generate(cached, tokenizer, PROMPT, tokens=99, on_text=say)
    assert result.ended == "interrupted"
    assert result.text == "".join(parts) and STORY.startswith(result.text)


@pytest.mark.slow
def test_ctrl_c_ends_the_command(stories):
    command = [sys.executable, "-m", "nas", "generate", str(stories), "--prompt", PROMPT]
    process = subprocess.Popen(
        [*command, "--no-cache", "--context", "512"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    first = process.stdout.read(len(PROMPT) + 12)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=600)
    text = (first + rest).decode()
    assert process.returncode == 130
    assert text.endswith("\n") and STORY.startswith(text[:-1])
    assert "said:" in err.decode() and "Traceback" not in err.decode()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{stories}"], "--prompt"),
        (["{stories}", "--prompt", "a", "--tokens", "0"], "--tokens"),
        (["{stories}", "--prompt", "a", "--temperature", "-1"], "--temperature"),
        (["{stories}", "--prompt", "a", "--temperature", "nan"], "--temperature"),
        (["{stories}", "--prompt", "a", "--context", "0"], "--context 0"),
        (["{stories}", "--export", "x.bin"], "ends in .tflite"),
        (["{stories}", "--prompt", "a", "--tokenizer", "{gpt2}"], "has 50257 pieces"),
        (["{tmp}/x.bin", "--prompt", "a"], "no such file"),
        (["{tmp}/x.keras", "--prompt", "a"], "x.keras"),
        (["{tmp}/x.tflite", "--prompt", "a"], "x.tflite"),
        (["{tmp}/x.tflite", "--prompt", "a", "--no-cache"], "step already"),
        (["{tmp}/text", "--prompt", "a"], "expected a file"),
        (["decoder:huge", "--prompt", "a"], "no variant 'huge'"),
        (["decoder:tiny", "--prompt", "a"], "no tokenizer beside"),
        (["decoder:mixtral_8x7b", "--prompt", "a"], "of memory are free"),
        (["mnasnet:tiny", "--prompt", "a"], "decoder:VARIANT"),
    ],
)
def test_bad_commands_get_one_line(arguments, words, stories, shared_data, tmp_path, capsys):
    known = {"stories": stories, "tmp": tmp_path, "gpt2": shared_data / "text" / "gpt2_vocab.bpe"}
    assert command_line.main(["generate", *(one.format(**known) for one in arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("nas: ") and words in err and err.count("\n") == 1


def test_another_tflite_is_no_language_model(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    (tmp_path / "x.tflite").write_bytes(convert.assemble(model))
    with pytest.raises(ValueError, match="no step of a decoder"):
        language_models.LiteRT(tmp_path / "x.tflite")

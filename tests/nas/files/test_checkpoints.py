"""Checkpoint readers against a plain NumPy Llama, on the real file and on bad ones."""

import dataclasses
import json
import random
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from families import decoder, mnasnet
from nas.files.readers import any_checkpoint
from nas.files.writers.checkpoint import write

RNG = np.random.default_rng(0)
TOKENS = [1, 403, 407, 261, 378, 5, 60, 2]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x, scale, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale


def turn(x, theta, neighbours):
    """Rotary positions of x (length, heads, width), pair by pair in complex numbers."""
    length, _, width = x.shape
    rates = theta ** (-np.arange(0, width, 2) / width)
    spin = np.exp(1j * np.outer(np.arange(length), rates))[:, None]
    out = np.empty_like(x)
    first, second = (
        (slice(0, None, 2), slice(1, None, 2))
        if neighbours
        else (slice(0, width // 2), slice(width // 2, None))
    )
    turned = (x[..., first] + 1j * x[..., second]) * spin
    out[..., first], out[..., second] = turned.real, turned.imag
    return out


def attention(x, wq, wk, wv, wo, heads, groups, theta, neighbours):
    """Causal; kernels are (outputs, inputs)."""
    length = len(x)
    q = turn((x @ wq.T).reshape(length, heads, -1), theta, neighbours)
    k = turn((x @ wk.T).reshape(length, groups, -1), theta, neighbours)
    v = (x @ wv.T).reshape(length, groups, -1)
    outputs = []
    for head in range(heads):
        group = head * groups // heads
        scores = q[:, head] @ k[:, group].T / np.sqrt(q.shape[-1])
        scores[np.triu_indices(length, 1)] = -np.inf
        outputs.append(softmax(scores) @ v[:, group])
    return np.concatenate(outputs, -1) @ wo.T


def llama2c(path, tokens):
    """Logits of a llama2.c file by its own layout, read front to back."""
    content = path.read_bytes()
    dim, hidden, layers, heads, groups, vocabulary, length = struct.unpack_from("<7i", content)
    values = np.frombuffer(content, "<f4", offset=28).astype(np.float64)
    at = 0

    def take(*shape):
        nonlocal at
        at += np.prod(shape)
        return values[at - np.prod(shape) : at].reshape(shape)

    width = dim // heads
    embed = take(abs(vocabulary), dim)
    rms_attention = take(layers, dim)
    wq, wk, wv = take(layers, dim, dim), *(take(layers, groups * width, dim) for _ in "kv")
    wo, rms_feed = take(layers, dim, dim), take(layers, dim)
    w1, w2, w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
    rms_final = take(dim)
    take(length, width)
    head = embed if vocabulary > 0 else take(-vocabulary, dim)
    assert at == len(values)
    x = embed[tokens]
    for n in range(layers):
        inputs = norm(x, rms_attention[n], 1e-5)
        x = x + attention(inputs, wq[n], wk[n], wv[n], wo[n], heads, groups, 10000.0, True)
        inputs = norm(x, rms_feed[n], 1e-5)
        x = x + (silu(inputs @ w1[n].T) * (inputs @ w3[n].T)) @ w2[n].T
    return norm(x, rms_final, 1e-5) @ head.T


def logits(checkpoint, tokens):
    config = dataclasses.replace(checkpoint.config, length=len(tokens))
    model = dataclasses.replace(checkpoint, config=config).network()
    return np.asarray(model(np.array([tokens], np.int32)))[0]


@pytest.fixture(scope="module")
def stories(shared_data):
    return shared_data / "checkpoints" / "stories260K.bin"


def test_the_real_file_gives_the_logits_of_its_layout(stories):
    checkpoint = any_checkpoint.read(stories)
    assert checkpoint.config == decoder.VARIANTS["stories260k"]
    expected = llama2c(stories, TOKENS)
    np.testing.assert_allclose(logits(checkpoint, TOKENS), expected, atol=2e-4)
    assert expected[-1].max() > 5  # trained: sure of something


def test_an_untied_head_comes_last(tmp_path):
    numbers = {"dim": 16, "hidden": 24, "layers": 2, "heads": 4, "groups": 2}
    header = struct.pack("<7i", *numbers.values(), -40, 32)
    count = 40 * 16 * 2 + 2 * (16 * 16 * 2 + 16 * 8 * 2 + 2 * 16 + 3 * 16 * 24) + 16 + 32 * 4
    path = tmp_path / "x.bin"
    path.write_bytes(header + RNG.normal(0, 0.5, count).astype("<f4").tobytes())
    checkpoint = any_checkpoint.read(path)
    assert not checkpoint.config.tied
    tokens = [3, 39, 0, 17, 3]
    np.testing.assert_allclose(logits(checkpoint, tokens), llama2c(path, tokens), atol=1e-4)


def hugging_face(folder, mixture=False, shards=1, **changes):
    """A tiny Llama or Mixtral as Hugging Face writes it; its arrays and config."""
    config = {
        "model_type": "mixtral" if mixture else "llama",
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    } | changes
    if mixture:
        config |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    arrays = {"model.embed_tokens.weight": (50, 24), "model.norm.weight": (24,)}
    if not config["tie_word_embeddings"]:
        arrays["lm_head.weight"] = (50, 24)
    kept = config["num_key_value_heads"] * 6
    for n in range(2):
        at = f"model.layers.{n}."
        arrays |= {at + f"{name}.weight": (24,) for name in ("input_layernorm",)}
        arrays |= {at + "post_attention_layernorm.weight": (24,)}
        arrays |= {at + f"self_attn.{name}_proj.weight": (24, 24) for name in "qo"}
        arrays |= {at + f"self_attn.{name}_proj.weight": (kept, 24) for name in "kv"}
        shapes = {"gate": (20, 24), "up": (20, 24), "down": (24, 20)}
        if mixture:
            arrays[at + "block_sparse_moe.gate.weight"] = (4, 24)
            names = {"w1": "gate", "w2": "down", "w3": "up"}
            for number in range(4):
                for name, kind in names.items():
                    path = f"{at}block_sparse_moe.experts.{number}.{name}.weight"
                    arrays[path] = shapes[kind]
        else:
            arrays |= {at + f"mlp.{name}_proj.weight": shape for name, shape in shapes.items()}
    arrays = {name: RNG.normal(0, 0.4, s).astype(np.float32) for name, s in arrays.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(arrays, folder / "model.safetensors", {"format": "pt"})
        return arrays, config
    placed = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(arrays)}
    for file in set(placed.values()):
        save_file({n: a for n, a in arrays.items() if placed[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return arrays, config


def llama(arrays, config, tokens):
    """Logits by Hugging Face's names: rotary pairs are halves."""
    w = {name.removesuffix(".weight"): value.astype(np.float64) for name, value in arrays.items()}
    x = w["model.embed_tokens"][tokens]
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}."
        inputs = norm(x, w[at + "input_layernorm"], config["rms_norm_eps"])
        kernels = [w[f"{at}self_attn.{name}_proj"] for name in "qkvo"]
        x = x + attention(inputs, *kernels, 4, config["num_key_value_heads"], 500.0, False)
        inputs = norm(x, w[at + "post_attention_layernorm"], config["rms_norm_eps"])
        if config["model_type"] == "mixtral":
            x = x + mixture(inputs, w, at + "block_sparse_moe.")
        else:
            gate, up, down = (w[f"{at}mlp.{name}_proj"] for name in ("gate", "up", "down"))
            x = x + (silu(inputs @ gate.T) * (inputs @ up.T)) @ down.T
    x = norm(x, w["model.norm"], config["rms_norm_eps"])
    return x @ w.get("lm_head", w["model.embed_tokens"]).T


def mixture(inputs, w, at):
    outputs = np.zeros_like(inputs)
    for row, x in enumerate(inputs):
        shares = softmax(w[at + "gate"] @ x)
        chosen = np.argsort(-shares)[:2]
        for number in chosen:
            w1, w2, w3 = (w[f"{at}experts.{number}.w{i}"] for i in (1, 2, 3))
            outputs[row] += shares[number] / shares[chosen].sum() * (w2 @ (silu(w1 @ x) * (w3 @ x)))
    return outputs


@pytest.mark.parametrize(
    "options",
    [{}, {"tie_word_embeddings": True}, {"shards": 3}, {"num_key_value_heads": 4}],
    ids=str,
)
def test_hugging_face_llama(options, tmp_path):
    arrays, config = hugging_face(tmp_path, **options)
    tokens = [7, 0, 49, 3, 3, 21]
    checkpoint = any_checkpoint.read(tmp_path)
    assert checkpoint.config.tied == config["tie_word_embeddings"]
    np.testing.assert_allclose(
        logits(checkpoint, tokens), llama(arrays, config, tokens), rtol=1e-3, atol=1e-3
    )


def test_hugging_face_mixtral(tmp_path):
    arrays, config = hugging_face(tmp_path, mixture=True)
    tokens = [7, 0, 49, 3, 3, 21]
    checkpoint = any_checkpoint.read(tmp_path / "model.safetensors")
    assert (checkpoint.config.experts, checkpoint.config.top_k) == (4, 2)
    np.testing.assert_allclose(
        logits(checkpoint, tokens), llama(arrays, config, tokens), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling="),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_scaling="),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"num_attention_heads": 5}, "heads"),
        ({"vocab_size": "many"}, "many"),
        ({"vocab_size": 51}, "expected \\(51, 24\\)"),
        ({"num_hidden_layers": 3}, "no weight 'block3_"),
        ({"num_hidden_layers": 1}, "unexpected weight 'block2_"),
    ],
)
def test_what_hugging_face_says_and_we_cannot_is_named(changes, words, tmp_path):
    hugging_face(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        any_checkpoint.read(tmp_path).network()


@pytest.mark.parametrize("family, variant", [(decoder, "tiny"), (mnasnet, "tiny")])
def test_our_own_files_come_back_exactly(family, variant, tmp_path):
    config = family.VARIANTS[variant]
    model = family.build(config)
    write(tmp_path / "x.safetensors", model, config)
    checkpoint = any_checkpoint.read(tmp_path / "x.safetensors")
    assert checkpoint.config == config
    again = checkpoint.network()
    for ours, theirs in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("kind", [np.float16, "bfloat16", np.float64])
def test_other_precisions_are_read(kind, tmp_path):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if kind == "bfloat16" else kind
    config = decoder.VARIANTS["tiny"]
    model = decoder.build(config)
    arrays = {w.path: np.asarray(w).astype(kind) for w in model.weights}
    save_file(arrays, tmp_path / "x.safetensors")
    again = any_checkpoint.read(tmp_path / "x.safetensors", config).network()
    for weight in again.weights:
        np.testing.assert_array_equal(
            np.asarray(weight), arrays[weight.path].astype(np.float32), strict=True
        )


HEADER = struct.Struct("<7i")
STORIES = (64, 172, 5, 8, 4, 512, 512)


@pytest.mark.parametrize(
    "header, words",
    [
        ((2**31 - 1,) * 7, "not a llama2.c file"),
        ((64, 172, 5, 8, 4, 2**31 - 1, 512), "which takes 549"),
        ((64, 172, 5, 8, 4, -(2**31), 512), "which takes"),
        ((0, 172, 5, 8, 4, 512, 512), "not a llama2.c file"),
        ((-64, 172, 5, 8, 4, 512, 512), "not a llama2.c file"),
        ((64, 172, 5, 7, 4, 512, 512), "heads"),
        ((64, 172, 5, 8, 3, 512, 512), "key_value_heads"),
        ((64, 172, 5, 8, 4, -512, 512), "which takes"),
        ((0x616B3432, 1, 64, 172, 5, 8, 4), "version 1"),
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_read(header, words, stories, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(HEADER.pack(*header) + stories.read_bytes()[28:])
    with pytest.raises(ValueError, match=words) as error:
        any_checkpoint.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 27, 28, 1000, 1056540 - 4, 1056540 + 4])
def test_a_file_of_another_size_is_refused(size, stories, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes((stories.read_bytes() + b"\0" * 4)[:size])
    with pytest.raises(ValueError, match="no llama2.c header|which takes 1056540 bytes"):
        any_checkpoint.read(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad, stories, tmp_path):
    content = bytearray(stories.read_bytes())
    struct.pack_into("<f", content, 28 + 4 * 70000, bad)
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"weight 'block\d_\w+/kernel' is not finite"):
        any_checkpoint.read(tmp_path / "x.bin").network()


def test_a_sparse_file_as_large_as_its_header_says_is_not_loaded(tmp_path):
    numbers = (16384, 65536, 100, 64, 64, 2**17, 4096)
    dim, hidden, layers, _, _, vocabulary, length = numbers
    count = vocabulary * dim + layers * (4 * dim * dim + 2 * dim + 3 * dim * hidden) + dim
    with open(tmp_path / "x.bin", "wb") as file:
        file.write(HEADER.pack(*numbers))
        file.truncate(28 + 4 * (count + length * dim // 64))
    with pytest.raises(ValueError, match="GB of memory are free"):
        any_checkpoint.read(tmp_path / "x.bin").network()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 8 + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "metadata name no network"),
        (b"\x80\x04\x95pickle....", "not a safetensors file"),
        (
            struct.pack("<Q", 60)
            + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}'[:60],
            "not a safetensors file",
        ),
    ],
)
def test_bad_safetensors_get_one_line(content, words, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        any_checkpoint.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"family": "decoder", "config": '{"vocabulary": 5}'},
        {"family": "decoder", "config": '{"is": "Config", "vocabulary": 5}'},
        {"family": "decoder", "config": '{"is": "build", "config": 5}'},
        {"family": "decoder", "config": "[1]"},
        {"family": "decoder", "config": "[" * 10**5},
        {"family": "os", "config": "{}"},
        {"family": "decoder"},
    ],
)
def test_metadata_that_say_nothing_are_refused(metadata, tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(ValueError, match="metadata name no network of ours"):
        any_checkpoint.read(tmp_path / "x.safetensors")


def test_integers_are_no_weights(tmp_path):
    save_file({"a": np.ones(2, np.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="'a' is I8"):
        any_checkpoint.read(tmp_path / "x.safetensors")


def test_an_index_stays_in_its_folder(tmp_path):
    index = {"weight_map": {"a": "../../etc/passwd"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="weight_map of file names"):
        any_checkpoint.read(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="weight_map"):
        any_checkpoint.read(tmp_path)


def test_variants_of_a_file_are_refused_or_whole(tmp_path):
    hugging_face(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    generator = random.Random(0)
    for _ in range(40):
        variant = bytearray(content)
        if generator.random() < 0.3:
            del variant[generator.randrange(len(variant)) :]
        for _ in range(2):
            variant[generator.randrange(min(len(variant), 3000) or 1)] = generator.randrange(256)
        (tmp_path / "model.safetensors").write_bytes(variant)
        try:
            checkpoint = any_checkpoint.read(tmp_path)
            _ = {name: checkpoint.weights[name] for name in checkpoint.weights}
        except ValueError as error:
            assert len(str(error)) < 1000  # noqa: PT017


def test_kinds_that_nobody_reads_are_named(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"PK")
    for path, words in ((tmp_path / "x.pt", "expected a .bin"), (tmp_path, "in it")):
        with pytest.raises(ValueError, match=words):
            any_checkpoint.read(path)
    for name in ("y.bin", "y.safetensors"):
        with pytest.raises(ValueError, match="no such file"):
            any_checkpoint.read(tmp_path / name)

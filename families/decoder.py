"""Decoder language models: grouped queries, rotary positions, gated layers, windows, experts.

The form of Llama (Touvron et al., arXiv 2302.13971) with grouped queries (2305.13245), windows and
experts (Mixtral, 2401.04088), and the keys and values that layers share (Apple's 2025 model).
"""

import dataclasses
import functools
from typing import Any

import keras

from families.blocks.checks import check, spell
from families.layers import Attention
from families.layers.activations import gelu
from families.layers.cached import CacheBias, KeepLast
from families.layers.embedding import TiedEmbedding
from families.layers.experts import Experts
from families.layers.head_norm import HeadNormalization
from families.layers.rotary import Rotary, RotaryAngles

_check = functools.partial(check, "decoder")

ACTIVATIONS = {"silu": keras.activations.silu, "gelu": gelu}  # SwiGLU, GeGLU (arXiv 2002.05202)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole network, and the form it is built in.

    head_width: of queries, keys and values (dim / heads if 0).
    shared: the last so many layers have no keys and values; they read those of the layer before.
    window, local: of every local + 1 layers the first `local` see the last `window` tokens only.
    global_rope: whether the layers that see everything have rotary positions, where others do not.
    experts, top_k, expert_every: every so many layers the gated layer is one of experts.

    The form: `length` tokens in one call, and `cache` tokens remembered between calls (0: none).
    last_only: logits of the last token only, so the layers that share keys see only that one.
    """

    vocabulary: int
    length: int
    dim: int
    layers: int
    heads: int
    key_value_heads: int
    hidden: int
    head_width: int = 0
    activation: str = "silu"
    tied: bool = True
    qk_norm: bool = False
    shared: int = 0
    window: int = 0
    local: int = 0
    global_rope: bool = True
    experts: int = 0
    top_k: int = 0
    expert_every: int = 0
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    cache: int = 0
    last_only: bool = False

    def __post_init__(self):
        spell(self, _canonical(self))


def _canonical(config: Config) -> dict[str, Any]:
    """Check every field and give choices that build the same network the same spelling."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), field.type  # a class: annotations are evaluated
        assert isinstance(kind, type)
        values[field.name] = kind(value)
        _check(values[field.name] == value, field.name, value, f"a value of type {field.type}")
    for name in ("vocabulary", "length", "dim", "layers", "heads", "key_value_heads", "hidden"):
        _check(values[name] > 0, name, values[name], "a positive number")
    for name in ("head_width", "shared", "window", "local", "experts", "expert_every", "cache"):
        _check(values[name] >= 0, name, values[name], "0 or more")
    heads, dim, cache = values["heads"], values["dim"], values["cache"]
    groups = values["key_value_heads"]
    _check(heads % groups == 0, "key_value_heads", groups, f"a divisor of heads={heads}")
    if not values["head_width"]:
        _check(dim % heads == 0, "heads", heads, f"a divisor of dim={dim}, or a head_width")
        values["head_width"] = dim // heads
    _check(values["head_width"] % 2 == 0, "head_width", values["head_width"], "an even number")
    layers = values["layers"]
    _check(values["shared"] < layers, "shared", values["shared"], f"less than layers={layers}")
    if not values["window"] or not values["local"]:
        values["window"] = values["local"] = 0
        _check(values["global_rope"], "global_rope", False, "True where no layer has a window")
    values["local"] = min(values["local"], layers)
    activation = values["activation"]
    _check(activation in ACTIVATIONS, "activation", activation, f"one of {tuple(ACTIVATIONS)}")
    if values["experts"]:
        values["expert_every"] = values["expert_every"] or 1
        top_k = values["top_k"] = values["top_k"] or min(2, values["experts"])
        _check(0 < top_k <= values["experts"], "top_k", top_k, f"1 to {values['experts']}")
        every = values["expert_every"]
        _check(every <= layers, "expert_every", every, f"at most layers={layers}")
    else:
        values["top_k"] = values["expert_every"] = 0
    _check(0 <= values["dropout"] < 1, "dropout", values["dropout"], "0 <= rate < 1")
    _check(not cache or cache >= values["length"], "cache", cache, "0, or length or more")
    return values


# Characters of small texts: minutes on two cores. Widths are those of a 0.8M-parameter Llama.
_TINY = Config(
    vocabulary=256, length=128, dim=128, layers=4, heads=4, key_value_heads=2, hidden=352
)

# karpathy/tinyllamas stories260K.
_STORIES = Config(
    vocabulary=512, length=512, dim=64, layers=5, heads=8, key_value_heads=4, hidden=172
)

# Gunter et al., arXiv 2407.21075; hidden, vocabulary, theta: apple/axlearn honeycrisp 3B.
_AFM_2024 = Config(
    vocabulary=49152,
    length=4096,
    dim=3072,
    layers=26,
    heads=24,
    key_value_heads=8,
    hidden=8064,
    head_width=128,
    qk_norm=True,
    rope_theta=5e5,
)

# The weights of Apple's adapter training toolkit add up to this network exactly.
_AFM_2025 = Config(
    vocabulary=153600,
    length=4096,
    dim=2048,
    layers=56,
    heads=16,
    key_value_heads=2,
    hidden=6656,
    qk_norm=True,
    shared=21,
    rope_theta=5e5,
)
_AFM_2025_DRAFT = Config(
    vocabulary=153600,
    length=4096,
    dim=256,
    layers=12,
    heads=8,
    key_value_heads=4,
    hidden=768,
    qk_norm=True,
    rope_theta=5e5,
)

_MIXTRAL = Config(
    vocabulary=32000,
    length=4096,
    dim=4096,
    layers=32,
    heads=32,
    key_value_heads=8,
    hidden=14336,
    tied=False,
    experts=8,
    top_k=2,
    rope_theta=1e6,
)

# The windowed networks that RATTENTION starts from (arXiv 2506.15545), without its linear branch;
# their vocabulary is not published: this is AFM's.
_WINDOW_3B = Config(
    vocabulary=49152,
    length=4096,
    dim=2048,
    layers=56,
    heads=16,
    key_value_heads=4,
    hidden=6656,
    activation="gelu",
    qk_norm=True,
    window=1024,
    local=3,
    global_rope=False,
    rope_theta=5e5,
)
_WINDOW_12B = dataclasses.replace(
    _WINDOW_3B, dim=5120, layers=40, heads=40, key_value_heads=8, head_width=128, hidden=16384
)

VARIANTS: dict[str, Config] = {
    "tiny": _TINY,
    "stories260k": _STORIES,
    "afm_2024_on_device": _AFM_2024,
    "afm_2025_on_device": _AFM_2025,
    "afm_2025_draft": _AFM_2025_DRAFT,
    "mixtral_8x7b": _MIXTRAL,
    "window_3b": _WINDOW_3B,
    "window_12b": _WINDOW_12B,
}


def deploy(config: Config) -> Config:
    """The form that runs on a device: one token a call, with a cache of `length` tokens."""
    return dataclasses.replace(config, length=1, cache=config.cache or config.length)


def prefill(config: Config) -> Config:
    """The form that reads a prompt of `length` tokens into an empty cache, for `deploy`'s form."""
    return dataclasses.replace(config, cache=config.cache or config.length, last_only=True)


def kv_bytes(config: Config, tokens: int, batch: int = 1, bytes_per_value: float = 2) -> int:
    """Bytes of the keys and values that are kept of `tokens` tokens, the next one not included.

    >>> kv_bytes(VARIANTS["stories260k"], tokens=100)
    64000
    """
    kept = sum(
        min(tokens, config.window) if is_local(config, number) else tokens
        for number in range(1, config.layers - config.shared + 1)
    )
    values = 2 * config.key_value_heads * config.head_width
    return int(batch * kept * values * bytes_per_value)


def is_local(config: Config, number: int) -> bool:
    """Whether layer `number`, counted from 1, sees the last `window` tokens only.

    >>> is_local(VARIANTS["tiny"], 1)
    False
    """
    number = min(number, config.layers - config.shared)  # what shares keys sees what they are of
    return bool(config.window) and number % (config.local + 1) != 0


def build(config: Config) -> keras.Model:
    """Tokens (batch, length) -> logits (batch, length, vocabulary): flat and Functional.

    With a cache the inputs and outputs are dicts: {"tokens", "position" (batch, 1), the number of
    tokens before these, and "block<n>_cache_key" and "..._value" (batch, kept, key_value_heads *
    head_width) of every layer that has keys} -> {"logits" and the same caches, to be given back}.
    A cache starts as zeros. `length` tokens that begin with n of padding have position -n.

    >>> build(VARIANTS["stories260k"]).count_params()
    260032
    """
    tokens = keras.Input((config.length,), dtype="int32", name="tokens")
    inputs, caches = {"tokens": tokens}, dict[str, Any]()
    if config.cache:
        inputs["position"] = keras.Input((1,), dtype="int32", name="position")
    embed = _embedding(config)
    angles = RotaryAngles(config.head_width, config.rope_theta, name="rotary_angles")(
        tokens, inputs.get("position")
    )
    x = _dropout(embed(tokens), config, "embed_dropout")
    memory, bias, biases = None, None, dict[Any, Any]()
    for number in range(1, config.layers + 1):
        path = f"block{number}_attention"
        rotary = angles if config.global_rope or is_local(config, number) else None
        normed = _norm(x, config, f"{path}_norm")
        if number <= config.layers - config.shared:
            memory = _keys_and_values(normed, config, rotary, path)
            if config.cache:
                memory = _remember(memory, config, number, inputs, caches)
                bias = _bias(memory[0].shape[1], config, inputs["position"], biases)
        if config.last_only and x.shape[1] > 1 and number >= config.layers - config.shared:
            x, normed = _last(x, path), _last(normed, f"{path}_norm")
            angles = _last(angles, "rotary_angles")
            rotary = None if rotary is None else angles
        x = _attention(x, normed, memory, bias, config, number, rotary)
        x = _feed_forward(x, config, number)
    x = _norm(x, config, "head_norm")
    tied = config.tied
    logits = embed(x, reverse=True) if tied else _dense(x, config.vocabulary, "head_logits")
    if logits.dtype != "float32":  # losses and samplers want all bits
        logits = keras.layers.Activation("linear", dtype="float32", name="head_float")(logits)
    if not config.cache:
        return keras.Model(tokens, logits, name="decoder")
    return keras.Model(inputs, {"logits": logits} | caches, name="decoder")


def _embedding(config: Config) -> Any:
    kind = TiedEmbedding if config.tied else keras.layers.Embedding
    initializer = keras.initializers.RandomNormal(stddev=0.02)
    return kind(config.vocabulary, config.dim, embeddings_initializer=initializer, name="embed")


def _keys_and_values(normed: Any, config: Config, rotary: Any, path: str) -> Any:
    """Keys, turned by their positions, and values: each (batch, length, groups * head_width)."""
    width = config.key_value_heads * config.head_width
    keys = _turned(
        _dense(normed, width, f"{path}_key"), config, config.key_value_heads, rotary, f"{path}_key"
    )
    return keys, _dense(normed, width, f"{path}_value")


def _remember(memory: Any, config: Config, number: int, inputs: dict, caches: dict) -> Any:
    """Behind a cache that enters by `inputs` and leaves by `caches`; what the queries may see."""
    capacity, seen = config.cache, config.cache
    if is_local(config, number) and config.window < config.cache:
        # The first of the new tokens sees window - 1 before it, which the last may not.
        capacity, seen = config.window, config.window - 1 + config.length
    dtype = keras.config.dtype_policy().compute_dtype
    result = []
    for kind, new in zip(("key", "value"), memory, strict=True):
        name = f"block{number}_cache_{kind}"
        cache = inputs[name] = keras.Input((capacity, new.shape[-1]), dtype=dtype, name=name)
        caches[name] = KeepLast(capacity, name=f"{name}_next")(cache, new)
        if seen == capacity:
            result.append(caches[name])
        else:
            result.append(KeepLast(seen, name=f"{name}_seen")(cache, new))
    return tuple(result)


def _bias(keys: int, config: Config, position: Any, biases: dict) -> Any:
    """Keeps queries from the keys of a cache that is not full; one for all equal caches."""
    if keys not in biases:
        name = f"cache_{keys}_bias"
        biases[keys] = CacheBias(keys, config.length, name=name)(position)
    return biases[keys]


def _attention(
    x: Any, normed: Any, memory: Any, bias: Any, config: Config, number: int, rotary: Any
) -> Any:
    path = f"block{number}_attention"
    width = config.heads * config.head_width
    query = _dense(normed, width, f"{path}_query")
    query = _turned(query, config, config.heads, rotary, f"{path}_query")
    attend = Attention(
        config.heads,
        config.key_value_heads,
        causal=True,
        window=config.window if is_local(config, number) else None,
        name=f"{path}_context",
    )
    context = attend(query, *memory, bias)
    outputs = _dense(context, config.dim, f"{path}_output", config)
    outputs = _dropout(outputs, config, f"{path}_dropout")
    return keras.layers.Add(name=f"{path}_add")([x, outputs])


def _turned(inputs: Any, config: Config, heads: int, rotary: Any, path: str) -> Any:
    """Queries or keys, each head normalized and turned by its position where the network does."""
    if config.qk_norm:
        inputs = HeadNormalization(heads, epsilon=config.norm_epsilon, name=f"{path}_norm")(inputs)
    return inputs if rotary is None else Rotary(heads, name=f"{path}_rotary")(inputs, rotary)


def _feed_forward(x: Any, config: Config, number: int) -> Any:
    """The gated layer, or experts that are each one."""
    path = f"block{number}_feed"
    inputs = _norm(x, config, f"{path}_norm")
    if config.experts and number % config.expert_every == 0:
        outputs = Experts(
            config.experts,
            config.hidden,
            config.top_k,
            activation=config.activation,
            gated=True,
            use_bias=False,
            renormalize=True,
            importance_weight=0.01,
            name=f"{path}_experts",
        )(inputs)
    else:
        activation = ACTIVATIONS[config.activation]
        gate = _dense(inputs, config.hidden, f"{path}_gate", activation=activation)
        up = _dense(inputs, config.hidden, f"{path}_up")
        gated = keras.layers.Multiply(name=f"{path}_gated")([gate, up])
        outputs = _dense(gated, config.dim, f"{path}_down", config)
    outputs = _dropout(outputs, config, f"{path}_dropout")
    return keras.layers.Add(name=f"{path}_add")([x, outputs])


def _last(x: Any, path: str) -> Any:
    return keras.layers.Cropping1D((x.shape[1] - 1, 0), name=f"{path}_last")(x)


def _norm(x: Any, config: Config, name: str) -> Any:
    return keras.layers.RMSNormalization(epsilon=config.norm_epsilon, name=name)(x)


def _dropout(x: Any, config: Config, name: str) -> Any:
    return keras.layers.Dropout(config.dropout, name=name)(x) if config.dropout else x


def _dense(
    x: Any, units: int, name: str, residual: Config | None = None, activation: Any = None
) -> Any:
    """A projection without bias; one that is added to the stream starts smaller in deep networks.

    Variance 1 / fan_in, and for the 2 * layers summands of the stream that over their number
    (GPT-2).
    """
    scale = 1.0 if residual is None else 0.5 / residual.layers
    return keras.layers.Dense(
        units,
        activation=activation,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(scale),
        name=name,
    )(x)

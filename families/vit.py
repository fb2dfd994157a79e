"""ViT: an image is a sentence of patches, read by a plain transformer.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv 2010.11929), table 1; Ti and
S: Touvron et al., arXiv 2012.12877. Layer details: google-research/vision_transformer.
"""

import dataclasses
import functools
import math
from typing import Any

import keras

from families.blocks.checks import check, spell
from families.layers import Attention, ClassToken, Positions, gelu

_check = functools.partial(check, "ViT")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole network in canonical form: two Configs are equal exactly when their networks are.

    patch: side of the square patches that are the tokens; it divides the sides of the image.
    stem: filters of 3x3 convolutions of stride 2, each with BatchNormalization and ReLU, that make
        the tokens instead: "early convolutions", Xiao et al., arXiv 2106.14881. A token stands for
        2**len(stem) pixels a side then, which is its `patch`.
    layers, dim, heads, hidden: blocks, width of a token, attention heads, hidden units of the MLPs.
    pre_logits: a layer dim -> dim with tanh before the logits, as in pre-training.
    """

    input_shape: tuple[int, int, int]
    classes: int
    patch: int
    layers: int
    dim: int
    heads: int
    hidden: int
    pre_logits: bool = False
    dropout: float = 0.0
    stem: tuple[int, ...] = ()

    def __post_init__(self):
        spell(self, _canonical(self))

    @property
    def tokens(self) -> int:
        """Patches of an image, begun ones as well, and the class token."""
        return math.prod(math.ceil(side / self.patch) for side in self.input_shape[:2]) + 1


def _canonical(config: Config) -> dict:
    """Check every field and give equal choices the same spelling."""
    shape = tuple(int(size) for size in config.input_shape)
    _check(
        len(shape) == 3 and min(shape) > 0, "input_shape", config.input_shape, "3 positive sizes"
    )
    numbers = ("classes", "patch", "layers", "dim", "heads", "hidden")
    for name in numbers:
        _check(int(getattr(config, name)) > 0, name, getattr(config, name), "a positive integer")
    stem = tuple(int(filters) for filters in config.stem)
    _check(all(filters > 0 for filters in stem), "stem", config.stem, "positive integers")
    divides = shape[0] % config.patch == shape[1] % config.patch == 0
    _check(
        config.patch == 2 ** len(stem) if stem else divides,
        "patch",
        config.patch,
        f"2 ** {len(stem)}, of the stem" if stem else f"a divisor of the sides of {shape}",
    )
    _check(config.dim % config.heads == 0, "heads", config.heads, f"a divisor of dim={config.dim}")
    _check(0 <= config.dropout < 1, "dropout", config.dropout, "0 <= rate < 1")
    return {
        "input_shape": shape,
        **{name: int(getattr(config, name)) for name in numbers},
        "pre_logits": bool(config.pre_logits),
        "dropout": float(config.dropout),
        "stem": stem,
    }


def _imagenet(patch: int, layers: int, dim: int, heads: int) -> Config:
    return Config((224, 224, 3), 1000, patch, layers, dim, heads, hidden=4 * dim)


VARIANTS: dict[str, Config] = {
    "ti16": _imagenet(16, layers=12, dim=192, heads=3),
    "s16": _imagenet(16, layers=12, dim=384, heads=6),
    "b16": _imagenet(16, layers=12, dim=768, heads=12),
    "l16": _imagenet(16, layers=24, dim=1024, heads=16),
    "s32": _imagenet(32, layers=12, dim=384, heads=6),
    "b32": _imagenet(32, layers=12, dim=768, heads=12),
    "tiny": Config((28, 28, 1), 10, patch=4, layers=4, dim=64, heads=4, hidden=128),
}


def build(config: Config) -> keras.Model:
    """Images (batch, *input_shape) -> logits (batch, classes): flat and Functional.

    >>> build(VARIANTS["tiny"]).count_params()
    139018
    """
    inputs = keras.Input(config.input_shape, name="image")
    x = embed(inputs, config)
    for number in range(1, config.layers + 1):
        x = attend(x, config, f"block{number}")
        x = mlp(x, config, config.hidden, f"block{number}")
    return keras.Model(inputs, classify(x, config), name="vit")


def embed(images: Any, config: Config) -> Any:
    """Images -> tokens (batch, tokens, dim): patches, the class token, positions."""
    x, side = images, config.patch
    for number, filters in enumerate(config.stem, 1):
        path, side = f"stem{number}", 1
        x = keras.layers.Conv2D(
            filters, 3, strides=2, padding="same", use_bias=False, name=f"{path}_conv"
        )(x)
        x = keras.layers.BatchNormalization(name=f"{path}_norm")(x)
        x = keras.layers.ReLU(name=f"{path}_relu")(x)
    x = keras.layers.Conv2D(config.dim, side, side, name="patch_embed")(x)
    x = keras.layers.Reshape((config.tokens - 1, config.dim), name="patch_tokens")(x)
    x = ClassToken(name="class_token")(x)
    return dropout(Positions(name="positions")(x), config, "positions_dropout")


def attend(inputs: Any, config: Config, path: str) -> Any:
    """Normalized tokens attend to each other; the result is added to the tokens."""
    x = norm(inputs, f"{path}_attention_norm")
    projections = [
        keras.layers.Dense(config.dim, name=f"{path}_attention_{role}")(x)
        for role in ("query", "key", "value")
    ]
    x = Attention(config.heads, name=f"{path}_attention")(*projections)
    x = keras.layers.Dense(config.dim, name=f"{path}_attention_project")(x)
    x = dropout(x, config, f"{path}_attention_dropout")
    return keras.layers.Add(name=f"{path}_attention_add")([inputs, x])


def mlp(inputs: Any, config: Config, hidden: int, path: str) -> Any:
    """Normalized tokens go through two layers each; the result is added to the tokens."""
    x = norm(inputs, f"{path}_mlp_norm")
    x = keras.layers.Dense(hidden, activation=gelu, name=f"{path}_mlp_expand")(x)
    x = keras.layers.Dense(config.dim, name=f"{path}_mlp_project")(x)
    x = dropout(x, config, f"{path}_mlp_dropout")
    return keras.layers.Add(name=f"{path}_mlp_add")([inputs, x])


def classify(x: Any, config: Config) -> Any:
    """Tokens -> logits, read from the class token."""
    x = norm(x, "head_norm")
    x = keras.layers.Cropping1D((0, config.tokens - 1), name="head_token")(x)
    x = keras.layers.Reshape((config.dim,), name="head_vector")(x)
    if config.pre_logits:
        x = keras.layers.Dense(config.dim, activation="tanh", name="head_pre_logits")(x)
    return keras.layers.Dense(config.classes, name="head_logits")(x)


def norm(x: Any, name: str) -> Any:
    """LayerNormalization with the epsilon of the released networks."""
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name)(x)


def dropout(x: Any, config: Config, name: str) -> Any:
    """Dropout, where there is any."""
    return keras.layers.Dropout(config.dropout, name=name)(x) if config.dropout else x

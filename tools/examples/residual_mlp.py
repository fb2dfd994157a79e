"""A family of your own: MLPs with residual connections; `search_own_family.py` searches in it."""

import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Config:
    input_shape: tuple[int, ...] = (64,)
    classes: int = 10
    width: int = 32
    depth: int = 2


VARIANTS = {"tiny": Config(), "large": Config(width=256, depth=8)}


def build(config: Config) -> keras.Model:
    inputs = keras.Input(config.input_shape)
    x = keras.layers.Dense(config.width, name="stem")(inputs)
    for number in range(config.depth):
        y = keras.layers.Dense(config.width, activation="relu", name=f"block{number}")(x)
        x = keras.layers.Add(name=f"block{number}_add")([x, y])
    return keras.Model(inputs, keras.layers.Dense(config.classes, name="head")(x))

"""What a candidate is trained and judged on: arrays, a loss, a metric."""

import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A classification task held in memory.

    `train` and `valid` are pairs (inputs, labels): inputs of shape (count, *input_shape), float32,
    or uint8 pixels of which the network sees x / 255 (`pixels`); labels are integers (count,).
    `loss` and `metric` are Keras names; the network gives logits. `recipe` says what the numbers
    depend on (data, preprocessing, split): equal recipes, comparable qualities.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]
    input_shape: tuple[int, int, int]
    classes: int
    recipe: str
    loss: str = "sparse_categorical_crossentropy"
    metric: str = "accuracy"


def pixels(inputs: np.ndarray) -> np.ndarray:
    """Inputs as a network sees them: float32, and uint8 pixels divided by 255."""
    if inputs.dtype == np.uint8:
        return inputs.astype(np.float32) / np.float32(255)
    return inputs.astype(np.float32, copy=False)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of (count, height, width, channels) to `size` x `size`, float32.

    Half-pixel centres; the filter widens when shrinking, as in PIL and `jax.image.resize`.
    """
    rows = _interpolation(images.shape[1], size)
    columns = _interpolation(images.shape[2], size)
    small = np.empty((len(images), size, size, images.shape[3]), np.float32)
    for start in range(0, len(images), 1024):  # bounds the float32 copy
        part = images[start : start + 1024].astype(np.float32)
        part = np.einsum("rh,nhwc->nrwc", rows, part, optimize=True)
        small[start : start + 1024] = np.einsum("sw,nrwc->nrsc", columns, part, optimize=True)
    return small


def _interpolation(length: int, size: int) -> np.ndarray:
    """Matrix (size, length) of the weights of a triangle filter; its rows sum to 1."""
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(length) - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0, 1 - distances)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def split(labels: np.ndarray, valid: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (train, valid): the share `valid` of every class, drawn from `seed`."""
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out.append(generator.permutation(members)[: round(len(members) * valid)])
    mask = np.zeros(len(labels), bool)
    mask[np.concatenate(held_out)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def fingerprint(*arrays: np.ndarray) -> str:
    """Short hash of the contents of arrays, for a recipe."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]


def whole(name: str, value, least: int) -> int:
    """`value` if it is a whole number >= `least`, else ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}; expected a whole number >= {least}")
    return value

"""Your own arrays: an .npz file of inputs and labels, or of JPEG images and labels.

Without labels a file still serves to calibrate; training and judging then say what is missing.
"""

import dataclasses
import io
import os
import pathlib
from typing import Any

import numpy as np

from compress.examples.data import taken
from nas.data import as_targets, divided, weighted
from nas.tasks.inputs.preprocessing import Preprocessing, of_inputs, of_sound, per_channel
from nas.tasks.scoring.classes import classified, names_of
from nas.tasks.scoring.judgement import WEIGHTS
from nas.tasks.task import Task, fingerprint, pixels, whole_number

# What the parts of a data set are called in files, by Keras' and NumPy's habit.
INPUTS = {"train": ("x_train", "x"), "valid": ("x_valid", "x_val", "x_test")}
LABELS = {"train": ("y_train", "y"), "valid": ("y_valid", "y_val", "y_test")}
EXPECTED = "x and y, x_train and y_train (x_test, y_test), or jpeg, end and y"
NAMES = "class_names"  # of classes, in a file
SAMPLE_WEIGHTS = ("w", WEIGHTS)
SHIFT = 4  # pixels of 32


def load(
    path: str,
    scale: float | None = None,
    valid: str | float = 0.2,
    offset: float = 0.0,
    factor: float = 1.0,
    shape: str | None = None,
    augmented: bool | None = None,
    limit: int | None = None,
    seed: int = 0,
    mean: float | str | None = None,
    std: float | str | None = None,
    labels: str | None = None,
    class_weights: str | None = None,
    balanced: bool = False,
    sample_rate: int | None = None,
) -> Task:
    """Inputs and targets, each (count, ...), of an .npz file, or of NAS_DATA/`path`.

    The arrays are x and y, or x_train, y_train and x_test, y_test, or `jpeg` (the files one after
    the other), `end` of each and `y`; or, of a network of several inputs or outputs, arrays of
    their names. `w` is what each example counts in the loss. Targets are integers (count,) or
    one-hot rows for classes, else numbers of the output's shape. `valid` is another file, of which
    everything judges (its x may be called as in the first), or the share held out where the file
    has no test arrays.

    A network sees uint8 / `scale`: 255 unless it rescales pixels itself, or is only above chance on
    another scale; `scale=1` is for those that take raw 0..255. Then `mean` and `std`, a number or,
    as 0.485/0.456/0.406, one a channel, are subtracted and divided by. Everything else it
    sees as (x - `offset`) * `factor`, such as int8 features of a known quantization; integers of
    32 and 64 bits (tokens) as they are. Integer (count, height, width) become images of one
    channel; `shape`, as 49x10x1, is that of an input where the file has another.

    `augmented` training images are mirrored and shifted by up to an eighth; by default JPEG images
    are, other arrays are not. `limit` keeps that many training examples, drawn from `seed`.

    `labels`, a text file or cat+dog, names the classes, unless the file has `class_names`;
    `class_weights`, balanced or numbers as 1/5/20, counts each class in the loss; `balanced` judges
    by balanced accuracy; `sample_rate`, in Hz, says that the inputs are samples of sound.

    >>> load("cifar10.npz", scale=1, valid="test.npz")  # doctest: +SKIP
    """
    for name, number in (("scale", scale), ("factor", factor), ("offset", offset)):
        if number is None and name == "scale":
            continue
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"npz: {name}={number!r}; expected a number")
    chosen_scale, scale = scale, 255 if scale is None else scale
    if scale == 0 or factor == 0:
        raise ValueError("npz: scale=0 or factor=0 leaves nothing of the inputs")
    if augmented not in (True, False, None):
        raise ValueError(f"npz: augmented={augmented!r}; expected True or False")
    file = _file(path)
    content = _read(file)
    names = names_of(labels, content.pop(NAMES, np.zeros(0, str)).tolist())
    if not _has_inputs(content):
        task = dataclasses.replace(_named(file, content, valid, seed), labels=names)
        return classified(task, class_weights=class_weights, balanced=balanced)
    inputs, targets = _part(file, content, "train")
    if isinstance(valid, str):
        other = _file(valid)
        found = _read(other)
        part = "valid" if any(name in found for name in INPUTS["valid"]) else "train"
        held, truth = _part(other, found, part)
        how = f"file {fingerprint(held)}"
    elif any(name in content for name in INPUTS["valid"]):
        held, truth = _part(file, content, "valid")
        how = "arrays"
    else:
        (inputs, targets), (held, truth) = _divided(inputs, targets, valid, seed)
        how = f"share {valid}"
    if limit is not None and whole_number("limit", limit, 1) < len(inputs):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(inputs))[:limit])
        inputs, targets = inputs[chosen], taken(targets, chosen)
    leaves = [
        a for one in (targets, truth) for a in (one.values() if isinstance(one, dict) else [one])
    ]
    source = fingerprint(inputs, *(one for one in leaves if one is not None))
    parts = [_mapped(one, file, shape, scale, offset, factor) for one in (inputs, held)]
    seen = _seen(inputs, scale, offset, factor, mean, std)
    if sample_rate is not None:
        seen = of_sound(seen, sample_rate, inputs.dtype)
    if chosen_scale is not None:  # not for the network to choose
        parts = [pixels(one) if one.dtype == np.uint8 else one for one in parts]
    scaling = ""
    if mean is not None or std is not None:
        parts = [normalized(one, mean, std) for one in parts]
        scaling = f" mean={mean} std={std}"
    if parts[0].shape[1:] != parts[1].shape[1:]:
        raise ValueError(
            f"npz: inputs to train with are {parts[0].shape[1:]}, those to judge on "
            f"{parts[1].shape[1:]}"
        )
    known = [
        int(np.max(one)) + 1 for one in (targets, truth) if one is not None and _are_classes(one)
    ]
    if augmented is None:
        augmented = "jpeg" in content
    if augmented and parts[0].ndim != 4:
        raise ValueError(f"npz: augmented=True is for images; the inputs are {parts[0].shape[1:]}")
    task = Task(
        name="npz",
        train=(parts[0], targets),
        valid=(parts[1], truth),
        fields={"input_shape": parts[0].shape[1:]} | ({"classes": max(known)} if known else {}),
        recipe=f"npz data={source} valid={how} scale={scale} offset={offset} factor={factor} "
        f"augmented={augmented} seed={seed}{scaling}",
        augment=mirror_and_shift if augmented else None,
        of_network=True,
        labels=names,
        preprocessing=seen,
    )
    return classified(task, class_weights=class_weights, balanced=balanced)


def _seen(
    inputs: np.ndarray, scale: float, offset: float, factor: float, mean: Any, std: Any
) -> Preprocessing:
    """What `_mapped` and `normalized` make of an input, as (x / scale - mean) / std."""
    seen = of_inputs(inputs)
    plain = offset == 0 and factor == 1
    if inputs.dtype == np.uint8:
        factor = factor / scale
    elif plain and inputs.dtype.kind in "iu" and inputs.dtype.itemsize >= 4:
        return seen  # tokens
    means = per_channel("mean", mean, 0, inputs.shape[-1])
    return dataclasses.replace(
        seen,
        scale=1 / factor,
        mean=tuple(offset * factor + one for one in means),
        std=per_channel("std", std, 1, inputs.shape[-1]),
    )


def _are_classes(targets: Any) -> bool:
    return isinstance(targets, np.ndarray) and targets.ndim == 1 and targets.dtype.kind in "iu"


def _has_inputs(content: dict[str, np.ndarray]) -> bool:
    if "jpeg" in content or "x_train" in content:
        return True
    return "x" in content and (len(content) == 1 or any(n in content for n in LABELS["train"]))


def _named(file: pathlib.Path, content: dict[str, np.ndarray], valid: Any, seed: int) -> Task:
    """A file whose arrays are called as the inputs and outputs of a network."""
    arrays = dict(content)
    labels = next((arrays.pop(name) for name in LABELS["train"] if name in arrays), None)
    weights = next((arrays.pop(name) for name in SAMPLE_WEIGHTS if name in arrays), None)
    if len(arrays) == 1 and next(iter(arrays.values())).ndim < 2:
        raise ValueError(f"npz: {file} holds {', '.join(content)}; expected {EXPECTED}")
    for name, array in arrays.items():
        if array.dtype.kind not in "iufb" or not array.ndim:
            raise ValueError(f"npz: {file}: {name} is {array.dtype}{array.shape}; expected numbers")
    sizes = {name: len(array) for name, array in arrays.items()}
    sizes |= {} if labels is None else {"y": len(labels)}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"npz: {file}: unequally many examples: {found}")
    targets = None if labels is None else as_targets(labels)
    if weights is not None:
        targets = weighted(targets, weights)
    if isinstance(valid, str):
        raise ValueError("npz: valid=FILE is for arrays x and y; expected a share, as valid=0.2")
    rows = divided(arrays, np.zeros(len(next(iter(arrays.values()))), int), share(valid), seed)
    if targets is None:
        parts = [(one, None) for one, _ in rows]
    else:
        parts = list(divided(arrays, targets, share(valid), seed))
    every = [*arrays.values(), *([] if labels is None else [labels])]
    return Task(
        name="npz",
        train=parts[0],
        valid=parts[1],
        fields={},
        recipe=f"npz data={fingerprint(*every)} {','.join(arrays)} valid={valid} seed={seed}",
        of_network=True,
    )


def share(valid: Any) -> float:
    """A share between 0 and 1; `ValueError` where it is none.

    >>> share(0.2)
    0.2
    """
    if isinstance(valid, bool) or not isinstance(valid, (int, float)) or not 0 < valid < 1:
        raise ValueError(f"npz: valid={valid!r}; expected a file, or a share between 0 and 1")
    return float(valid)


def normalized(inputs: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """(inputs - mean) / std, float32; each a number, or text of one a channel, as 0.485/0.456/0.4.

    >>> normalized(np.ones((1, 2), np.float32), "0.5/1", 0.5)
    array([[1., 0.]], dtype=float32)
    """
    means, stds = (
        np.array(per_channel(name, value, default, inputs.shape[-1]), np.float32)
        for name, value, default in (("mean", mean, 0), ("std", std, 1))
    )
    return (pixels(inputs) - means) / stds


def mirror_and_shift(
    images: np.ndarray, targets: Any, generator: np.random.Generator
) -> tuple[np.ndarray, Any]:
    """Images (batch, height, width, channels), half of them mirrored, and moved at random.

    By up to 4 pixels of 32, with 0 at the border: He et al. (2016), section 4.2. The targets are
    returned as they are.

    >>> images = np.ones((2, 8, 8, 1), np.uint8)
    >>> mirror_and_shift(images, np.arange(2), np.random.default_rng(0))[0].shape
    (2, 8, 8, 1)
    """
    count, height, width, _ = images.shape
    reach = max(1, round(SHIFT * min(height, width) / 32))
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    down, right = generator.integers(0, 2 * reach + 1, (2, count))
    mirrored = np.less(generator.random(count), 0.5)
    moved = np.empty_like(images)
    for place, (image, y, x) in enumerate(zip(padded, down, right, strict=True)):
        cut = image[y : y + height, x : x + width]
        moved[place] = cut[:, ::-1] if mirrored[place] else cut
    return moved, targets


def _file(path: Any) -> pathlib.Path:
    """The file of this name; one that is not here may lie in NAS_DATA."""
    file = pathlib.Path(str(path)).expanduser()
    shared = os.environ.get("NAS_DATA")
    if not file.exists() and shared and not file.is_absolute():
        file = pathlib.Path(shared, file)
    if not file.is_file():
        raise ValueError(f"npz: no file {path}; expected an .npz file with {EXPECTED}")
    return file


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays that we know the names of; of the others the names only."""
    known = {name for names in (*INPUTS.values(), *LABELS.values()) for name in names}
    known |= {"jpeg", "end", NAMES, *SAMPLE_WEIGHTS}
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = archive.files
            given = known & set(names) - {NAMES}
            if not given - {*LABELS["train"], *SAMPLE_WEIGHTS} or given == {"x"}:
                known = set(names)  # of a network's inputs and outputs
            found = {name: archive[name] for name in names if name in known}
    except Exception as error:  # a damaged archive raises whatever zip, zlib or numpy meet first
        raise ValueError(f"npz: cannot read {file}: {' '.join(str(error).split())}") from error
    inputs = found.keys() - {"end", NAMES, *sum(LABELS.values(), ()), *SAMPLE_WEIGHTS}
    if not inputs:
        raise ValueError(f"npz: {file} holds {', '.join(names) or 'nothing'}; expected {EXPECTED}")
    return found


def _part(
    file: pathlib.Path, content: dict[str, np.ndarray], part: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs, and labels (count,) int32 or None."""
    if "jpeg" in content:
        inputs = _decoded(file, content)
    else:
        name = next((name for name in INPUTS[part] if name in content), None)
        if name is None:
            raise ValueError(f"npz: {file} holds {', '.join(content)}; expected {EXPECTED}")
        inputs = content[name]
    if inputs.dtype.kind not in "iufb" or inputs.ndim < 2 or not len(inputs):
        raise ValueError(
            f"npz: {file}: inputs are {inputs.dtype}{inputs.shape}; expected numbers (count, ...)"
        )
    labels = next((content[name] for name in LABELS[part] if name in content), None)
    if labels is None:
        return inputs, None
    if labels.dtype.kind not in "iubf" or labels.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            f"npz: {file}: {len(inputs)} inputs, but targets are {labels.dtype}{labels.shape}; "
            f"expected numbers ({len(inputs)}, ...)"
        )
    targets = as_targets(labels)
    weights = next((content[name] for name in SAMPLE_WEIGHTS if name in content), None)
    if weights is not None and part == "train":
        targets = weighted(targets, weights)
    return inputs, targets


def _decoded(file: pathlib.Path, content: dict[str, np.ndarray]) -> np.ndarray:
    """uint8 (count, height, width, 3) of JPEG files of one size."""
    from PIL import Image

    jpeg, ends = content["jpeg"], content.get("end", np.zeros((0, 0)))
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or ends.ndim != 1:
        raise ValueError(f"npz: {file}: expected jpeg, uint8 of one axis, and end of each file")
    steps = np.diff([0, *ends.tolist()])
    if not len(ends) or steps.min() <= 0 or ends[-1] > len(jpeg):
        raise ValueError(f"npz: {file}: end does not rise from 1 to at most {len(jpeg)}")
    data = jpeg.tobytes()
    images = np.empty((0,), np.uint8)
    for place, (end, step) in enumerate(zip(ends.tolist(), steps.tolist(), strict=True)):
        try:
            with Image.open(io.BytesIO(data[end - step : end])) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"npz: cannot read image {place} of {file}: {error}") from error
        if not place:
            images = np.empty((len(ends), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise ValueError(
                f"npz: {file}: image {place} is {pixels.shape[:2]}, the first "
                f"{images.shape[1:3]}; expected one size"
            )
        images[place] = pixels
    return images


def _divided(
    inputs: np.ndarray, labels: Any, valid: Any, seed: int
) -> tuple[tuple[np.ndarray, Any], tuple[np.ndarray, Any]]:
    """Two pairs (inputs, labels): the share `valid` of each class is the second."""
    grouped = np.zeros(len(inputs), int) if labels is None else labels
    try:
        first, second = divided(inputs, grouped, share(valid), seed)
    except ValueError as error:
        if "too few" not in str(error):
            raise
        raise ValueError(f"npz: {len(inputs)} examples are too few for valid={valid}") from error
    return (first, second) if labels is not None else ((first[0], None), (second[0], None))


def _mapped(
    inputs: np.ndarray,
    file: pathlib.Path,
    shape: str | None,
    scale: float,
    offset: float,
    factor: float,
) -> np.ndarray:
    """Inputs of the shape and in the numbers that a network takes; uint8 of scale 255 stay."""
    if shape is not None:
        try:
            sizes = [int(part) for part in str(shape).split("x")]
            inputs = inputs.reshape(len(inputs), *sizes)
        except ValueError as error:
            raise ValueError(
                f"npz: shape={shape!r}; expected sizes as 49x10x1 that hold an input of {file}, "
                f"{inputs.shape[1:]}"
            ) from error
    elif inputs.ndim == 3 and inputs.dtype.kind in "iu" and inputs.dtype.itemsize == 1:
        inputs = inputs[..., np.newaxis]
    plain = offset == 0 and factor == 1
    if inputs.dtype == np.uint8:
        if plain and scale == 255:
            return inputs
        factor = factor / scale
    elif inputs.dtype.kind in "iu" and inputs.dtype.itemsize >= 4 and plain:
        return inputs.astype(np.int32)
    mapped = (inputs.astype(np.float32) - np.float32(offset)) * np.float32(factor)
    if not np.isfinite(mapped).all():
        raise ValueError(f"npz: inputs of {file} are not finite everywhere")
    return mapped

"""Objects in images: boxes and their classes, as `bccd` has them of blood cells.

BCCD: 364 microscope images of 320 x 240, 4,886 boxes of white and red cells and platelets;
https://github.com/Shenggan/BCCD_Dataset, its own split into 205, 87 and 72 images. For families
that give boxes: `nas train efficientdet:d0 --task detection:bccd,size=320 --out cells.keras`.
"""

import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from nas.tasks.inputs.preprocessing import Preprocessing
from nas.tasks.scoring import average_precision
from nas.tasks.task import Score, Task, fingerprint, whole_number

SPLITS = ("train", "val", "test")
NO_OBJECT = -1.0  # the class of rows that only fill up
# From new weights on a few hundred images; batches of 8 fill one core.
TRAINING = {
    "epochs": 60,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "clip": 10.0,  # google/automl
    "ema": 0.99,
}
SCALES = (0.7, 1.4)  # by which training images are drawn larger
LEAST_SEEN = 0.3  # share of a box that must stay within the image
LIGHT = 0.2  # by how much brightness changes, and half as much each colour


def load(path: str = "bccd", size: int = 320, test: bool = False, augmented: bool = True) -> Task:
    """Images (n, size, size, 3) uint8 and the boxes in them, of an .npz file.

    `path` is the file, or its name in the folder NAS_DATA/detection. It holds `jpeg`, the files one
    after the other, `end` of each, `boxes` (image, class, x0, y0, x1, y1) in pixels, `classes`, and
    idx_train, idx_val, idx_test. Networks are judged on val; with `test` on the test images, which
    else are never decoded.

    An image is scaled to fit, its aspect kept, and lies at the upper left; the rest is black.
    Targets are `boxes` (n, most, 5), rows of class, x0, y0, x1, y1 in pixels of the scaled image,
    filled up with rows of class -1 and zeros, and `number` (n,), how many are boxes. `augmented`
    training images are mirrored, scaled, moved and lit otherwise, with their boxes.

    The quality is COCO's mean average precision (`nas.tasks.scoring.average_precision`), of
    overlaps .5 to .95; the loss, of anchors, is `families.objectives.detection.loss`. Raises
    `ValueError` where the file is missing or damaged.

    >>> load("bccd", size=320).classes  # doctest: +SKIP
    3
    """
    whole_number("size", size, 8)
    for name, value in (("test", test), ("augmented", augmented)):
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}; expected True or False")
    file = _file(path)
    data = _read(file)
    ends = np.concatenate([[0], data["end"]])
    owners = data["boxes"][:, 0].astype(int)
    most = int(np.bincount(owners, minlength=1).max())
    parts = []
    for name in ("train", "test" if test else "val"):
        chosen = data[f"idx_{name}"].astype(int)
        images = np.zeros((len(chosen), size, size, 3), np.uint8)
        boxes = np.zeros((len(chosen), most, 5), np.float32)
        boxes[..., 0] = NO_OBJECT
        number = np.zeros(len(chosen), np.int32)
        for position, index in enumerate(chosen):
            content = data["jpeg"][ends[index] : ends[index + 1]].tobytes()
            scaled, factors = _scaled(content, size, f"{file}, image {index}")
            images[position, : scaled.shape[0], : scaled.shape[1]] = scaled
            ours = data["boxes"][owners == index, 1:]
            number[position] = len(ours)
            boxes[position, : len(ours)] = ours * np.array([1, *factors, *factors], np.float32)
        parts.append((images, {"boxes": boxes, "number": number}))
    train, held = parts
    source = fingerprint(data["jpeg"], data["boxes"])
    return Task(
        name="detection",
        train=train,
        valid=held,
        fields={"input_shape": (size, size, 3), "classes": len(data["classes"])},
        recipe=f"detection data={source} size={size} judged on {'test' if test else 'val'}"
        f" augmented={augmented}",
        loss=loss,
        scorer=scorer,
        average=mean_precision,
        metric="mean average precision",
        training=TRAINING,
        labels=tuple(map(str, data["classes"])),
        preprocessing=Preprocessing("image", 255.0, aspect="corner", background="black"),
        augment=transformed if augmented else None,
    )


def loss(outputs: Any, targets: Any) -> Any:
    """Losses (batch,) of a network that gives logits, codes and anchors; ValueError of others."""
    from families.objectives import detection  # imports Keras

    expected = {"logits", "codes", "anchors"}
    if not isinstance(outputs, dict) or not expected <= set(outputs):
        given = sorted(outputs) if isinstance(outputs, dict) else "one output"
        raise ValueError(
            f"detection: the network gives {given}; expected {', '.join(sorted(expected))}, as"
            " those of efficientdet do"
        )
    return detection.loss(outputs, targets)


def scorer(model: Any, predict: Callable[[Any], Any]) -> Score:
    """(inputs, targets) -> rows (batch, n, 7) for `mean_precision`: what is there, what is found.

    Of a network in training, or of one that gives boxes, scores and classes by itself.
    """
    average_precision.evaluator()  # said before the training, not after its first epoch
    found = _compiled(_found)

    def score(inputs: Any, targets: Any) -> np.ndarray:
        outputs = predict(inputs)
        if "anchors" in outputs:
            outputs = found(
                outputs["logits"], outputs["codes"], outputs["anchors"][0], inputs.shape[1:]
            )
        return average_precision.rows(
            targets["boxes"], {name: np.asarray(value) for name, value in outputs.items()}
        )

    return score


def mean_precision(rows: np.ndarray) -> float:
    """COCO's mean average precision, 0..1, of the rows (images, n, 7) of all images together."""
    return average_precision.precision(rows).mean


def _found(logits: Any, codes: Any, anchors: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """The objects among all anchors: the function that the deployed network ends with."""
    from keras import ops

    from families.objectives import boxes

    return boxes.select_objects(
        ops.convert_to_tensor(logits), ops.convert_to_tensor(codes), anchors, shape
    )


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays and a shape as one graph: its loop would run step by step."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function, static_argnums=3)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False, reduce_retracing=True)
    return function


def transformed(
    images: np.ndarray, targets: dict[str, np.ndarray], generator: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images (batch, size, size, 3) uint8 and their boxes, each mirrored, scaled, moved and lit.

    The boxes of what is hardly to be seen any more are left out.
    """
    new, tables = np.empty_like(images), np.zeros_like(targets["boxes"])
    tables[..., 0] = NO_OBJECT
    for index, (image, table) in enumerate(zip(images, targets["boxes"], strict=True)):
        scale = np.exp(generator.uniform(*np.log(SCALES)))
        shift = generator.uniform(0, 1, 2) * (1 - scale) * image.shape[0]
        mirrored = generator.random(2) < 0.5
        light = 1 + generator.uniform(-LIGHT, LIGHT) + generator.uniform(-LIGHT, LIGHT, 3) / 2
        new[index] = _drawn(image, scale, shift, mirrored, light)
        kept = _moved_boxes(table, image.shape[0], scale, shift, mirrored)
        tables[index, : len(kept)] = kept
    number = np.sum(tables[..., 0] != NO_OBJECT, axis=1).astype(targets["number"].dtype)
    return new, {"boxes": tables, "number": number}


def _drawn(
    image: np.ndarray,
    scale: float,
    shift: np.ndarray,
    mirrored: np.ndarray,
    light: np.ndarray,
) -> np.ndarray:
    """The image at scale * (x or size - x) + shift; what comes from outside is black."""
    from PIL import Image

    size = image.shape[0]
    signs = np.where(mirrored, -1.0, 1.0) / scale
    offsets = np.where(mirrored, size, 0.0) - signs * shift
    inverse = (signs[0], 0, offsets[0], 0, signs[1], offsets[1])
    picture = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    lit = np.asarray(picture, np.float32) * light.astype(np.float32)
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


def _moved_boxes(
    table: np.ndarray, size: int, scale: float, shift: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """The rows (class, x0, y0, x1, y1) that are still there."""
    table = table[table[:, 0] != NO_OBJECT]
    corners = table[:, 1:].reshape(-1, 2, 2)  # (boxes, corners, x and y)
    corners = scale * np.where(mirrored, size - corners, corners) + shift
    corners = np.sort(corners, axis=1)
    inside = np.clip(corners, 0, size)
    seen, whole_box = (np.prod(c[:, 1] - c[:, 0], axis=-1) for c in (inside, corners))
    kept = seen >= LEAST_SEEN * whole_box
    return np.concatenate([table[kept, :1], inside[kept].reshape(-1, 4)], axis=1)


def _file(path: str) -> pathlib.Path:
    file = pathlib.Path(path).expanduser()
    if file.suffix != ".npz":
        folder = os.environ.get("NAS_DATA")
        if not folder:
            raise ValueError(
                f"detection: {path!r} is no .npz file; set NAS_DATA to the folder that holds "
                f"detection/{path}.npz, or give the file"
            )
        file = pathlib.Path(folder, "detection", f"{path}.npz")
    if not file.is_file():
        raise ValueError(f"detection: no file {file}; expected an .npz with images and boxes")
    return file


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of the file, looked at."""
    names = ["jpeg", "end", "boxes", "classes", *(f"idx_{name}" for name in SPLITS)]
    try:
        with np.load(file) as archive:
            data = {name: archive[name] for name in names}
    except Exception as error:  # a damaged archive raises whatever zip, zlib or numpy meet first
        raise ValueError(
            f"detection: cannot read {', '.join(names)} from {file}: {error}"
        ) from error
    count, boxes = len(data["end"]), data["boxes"]
    split = np.concatenate([data[f"idx_{name}"] for name in SPLITS])
    holds = {
        "ends of images in order within jpeg": data["jpeg"].ndim == 1
        and (np.diff([0, *data["end"].tolist(), len(data["jpeg"])]) >= 0).all(),
        f"indices below {count}, each in one split": ((split >= 0) & (split < count)).all()
        and len(np.unique(split)) == len(split),
        "boxes (n, 6) of finite numbers": boxes.ndim == 2
        and boxes.shape[1] == 6
        and np.isfinite(boxes).all(),
    }
    holds |= {
        "boxes of known images and classes": holds["boxes (n, 6) of finite numbers"]
        and ((boxes[:, :2] >= 0) & (boxes[:, :2] < [count, len(data["classes"])])).all(),
        "boxes with x0 < x1 and y0 < y1": holds["boxes (n, 6) of finite numbers"]
        and (boxes[:, 2:4] < boxes[:, 4:6]).all(),
    }
    for expected, found in holds.items():
        if not found:
            raise ValueError(f"detection: {file}: expected {expected}")
    return data


def _scaled(content: bytes, size: int, name: str) -> tuple[np.ndarray, tuple[float, float]]:
    """The image (height, width, 3), its longer side `size`, and by what x and y were scaled."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            longer = max(width, height)
            new = (max(1, round(width * size / longer)), max(1, round(height * size / longer)))
            pixels = image.convert("RGB").resize(new, Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"detection: cannot read {name}: {error}") from error
    return np.asarray(pixels), (new[0] / width, new[1] / height)

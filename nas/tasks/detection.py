"""Objects in images: boxes and their classes, as `bccd` has them of blood cells.

BCCD: 364 microscope images of 320 x 240, 4,886 boxes of white and red cells and platelets;
https://github.com/Shenggan/BCCD_Dataset, its own split into 205, 87 and 72 images.
"""

import io
import os
import pathlib

import numpy as np

from nas.tasks.task import Task, fingerprint, whole

SPLITS = ("train", "val", "test")
NO_OBJECT = -1.0  # the class of rows that only fill up


def load(path: str = "bccd", size: int = 320, test: bool = False) -> Task:
    """Images (n, size, size, 3) uint8 and the boxes in them, of an .npz file.

    `path` is the file, or its name in the folder NAS_DATA/detection. It holds `jpeg`, the files one
    after the other, `end` of each, `boxes` (image, class, x0, y0, x1, y1) in pixels, `classes`, and
    idx_train, idx_val, idx_test. Networks are judged on val; with `test` on the test images, which
    else are never decoded.

    An image is scaled to fit, its aspect kept, and lies at the upper left; the rest is black.
    Targets are `boxes` (n, most, 5), rows of class, x0, y0, x1, y1 in pixels of the scaled image,
    filled up with rows of class -1 and zeros, and `number` (n,), how many are boxes.

    No family here trains on boxes yet: the loss says so.
    """
    whole("size", size, 8)
    if not isinstance(test, bool):
        raise ValueError(f"test={test!r}; expected True or False")
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
            boxes[position, : len(ours)] = ours * np.float32([1, *factors, *factors])
        parts.append((images, {"boxes": boxes, "number": number}))
    train, held = parts
    source = fingerprint(data["jpeg"], data["boxes"])
    return Task(
        name="detection",
        train=train,
        valid=held,
        fields={"input_shape": (size, size, 3), "classes": len(data["classes"])},
        recipe=f"detection data={source} size={size} judged on {'test' if test else 'val'}",
        loss=loss,
        scorer=scorer,
        metric="mean average precision",
    )


def loss(outputs, targets):
    """Raises `ValueError`: the loss belongs to the anchors of a family that finds boxes."""
    raise ValueError("detection: no family here trains on boxes yet; the task is the data only")


def scorer(model, predict):
    """Raises `ValueError`, as `loss`."""
    loss(None, None)


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

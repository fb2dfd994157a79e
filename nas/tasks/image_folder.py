"""Your own images: a folder that holds one folder of images per class.

With folders `train/` and `valid/` (or `val/`) inside, those are the split; otherwise the hash of
each file's name decides, so an image never changes sides when others are added.
"""

import hashlib
import pathlib

import numpy as np

from nas.tasks.task import Task, fingerprint, whole_number

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
Files = list[tuple[pathlib.Path, int]]  # (image, label)


def load(path: str, size: int = 64, channels: int = 3, valid: float = 0.2) -> Task:
    """Images of `size` x `size` x `channels` (1 grey, 3 colour), uint8, resized bilinearly.

    `valid` is the share held out where the folder has no split of its own. Raises `ValueError`
    where a class has no images, or one cannot be read.

    >>> load("photos", size=64).classes  # doctest: +SKIP
    3
    """
    whole_number("size", size, 8)
    if channels not in (1, 3):
        raise ValueError(f"channels={channels!r}; expected 1 (grey) or 3 (colour)")
    if not 0 < valid < 1:
        raise ValueError(f"valid={valid!r}; expected a share between 0 and 1")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"image_folder: {root} is no folder; expected one folder per class in it")
    held_out = next((root / name for name in ("valid", "val") if (root / name).is_dir()), None)
    if held_out is not None and (root / "train").is_dir():
        classes = _classes(root / "train")
        if not set(extra := _folders(held_out)) <= set(classes):
            unknown = sorted(set(extra) - set(classes))[0]
            raise ValueError(f"image_folder: class {unknown!r} of {held_out} is not in train")
        parts = _files(root / "train", classes), _files(held_out, classes)
        how = "folders"
    else:
        classes = _classes(root)
        parts = _divide(_files(root, classes), root, valid)
        how = f"hash {valid}"
    for name, files in zip(("training", "validation"), parts, strict=True):
        if not files:
            raise ValueError(f"image_folder: no {name} images in {root}")
    train, held = (_read(files, size, channels) for files in parts)
    source = fingerprint(*train, *held)
    return Task(
        name="image_folder",
        train=train,
        valid=held,
        fields={"input_shape": (size, size, channels), "classes": len(classes)},
        recipe=f"image_folder data={source} size={size} channels={channels} split={how}",
        of_network=True,
    )


def _folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(root: pathlib.Path) -> list[str]:
    classes = _folders(root)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(
            f"image_folder: expected one folder per class in {root}, at least 2; found {found}"
        )
    return classes


def _files(root: pathlib.Path, classes: list[str]) -> Files:
    files: Files = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found and (root / name).is_dir():
            raise ValueError(f"image_folder: no images in {root / name}")
        files += [(file, label) for file in found]
    return files


def _divide(files: Files, root: pathlib.Path, valid: float) -> tuple[Files, Files]:
    """Hold out the files whose name hashes below `valid`."""
    train: Files = []
    held: Files = []
    for file, label in files:
        (held if _score(file.relative_to(root)) < valid else train).append((file, label))
    return train, held


def _score(file: pathlib.PurePath) -> float:
    digest = hashlib.sha256(file.as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _read(files: Files, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    images = np.empty((len(files), size, size, channels), np.uint8)
    for position, (file, _) in enumerate(files):
        try:
            with Image.open(file) as image:
                pixels = image.convert("L" if channels == 1 else "RGB")
                pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"image_folder: cannot read {file}: {error}") from error
        images[position] = np.asarray(pixels).reshape(size, size, channels)
    return images, np.array([label for _, label in files], np.int32)

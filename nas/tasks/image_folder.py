"""Your own images: a folder that holds one folder of images per class.

With folders `train/` and `valid/` (or `val/`) inside, those are the split; otherwise the hash of
each file's name decides, so an image never changes sides when others are added; of each class that
has two images at least one is on either side.
"""

import hashlib
import pathlib
from typing import Any

import numpy as np

from nas.files.hand_over.use import ASPECTS, BACKGROUND, PICTURES, picture
from nas.tasks.inputs.on_disk import Stack, mapped
from nas.tasks.inputs.preprocessing import Preprocessing, per_channel
from nas.tasks.scoring.classes import classified
from nas.tasks.task import Task, fingerprint, whole_number

Files = list[tuple[pathlib.Path, int]]  # (image, label)
READ = 64  # images that are stacked at once
TOLD = 5  # files that cannot be read, in a sentence


def load(
    path: str,
    size: int = 64,
    channels: int = 3,
    valid: float = 0.2,
    aspect: str = "stretch",
    background: str = "white",
    skip: bool = False,
    class_weights: str | None = None,
    balanced: bool = False,
    scale: float | None = None,
    mean: float | str | None = None,
    std: float | str | None = None,
) -> Task:
    """Images of `size` x `size` x `channels` (1 grey, 3 colour), uint8, resized bilinearly.

    They are turned as their EXIF data say; transparency lies on `background` (white, black).
    `aspect`: stretch; keep, with background around the image; crop, its middle. `valid` is the
    share held out where the folder has no split of its own. Raises `ValueError` where a class has
    no images, or one cannot be read; with `skip` those are left out, and listed in the notes.

    `class_weights`: balanced, or numbers as 1/5/20, of each class in the loss. `balanced`: the
    quality is the balanced accuracy, the mean of the classes' own. A network sees pixels / `scale`
    (255 unless it rescales them itself), then minus `mean` and divided by `std`, as
    0.485/0.456/0.406.

    More images than memory holds lie on disk as they are read (`nas.tasks.inputs.on_disk`).

    >>> load("photos", size=64).classes  # doctest: +SKIP
    3
    """
    check_pictures(size, channels, aspect, background)
    if not 0 < valid < 1:
        raise ValueError(f"valid={valid!r}; expected a share between 0 and 1")
    for name, value in (("skip", skip), ("balanced", balanced)):
        if value not in (True, False):
            raise ValueError(f"{name}={value!r}; expected true or false")
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
    seen = Preprocessing(
        "image",
        scale=255.0 if scale is None else per_channel("scale", scale, 255, 1)[0],
        mean=per_channel("mean", mean, 0, channels),
        std=per_channel("std", std, 1, channels),
        aspect=aspect,
        background=background,
    )
    shape = (size, size, channels)
    unread: list[str] | None = [] if skip else None
    train, held = (_read(files, shape, seen, unread) for files in parts)
    for name, (_, labels) in zip(("training", "validation"), (train, held), strict=True):
        if not len(labels):
            raise ValueError(f"image_folder: no {name} images in {root}")
    for number, name in enumerate(classes):
        if not (train[1] == number).any():
            raise ValueError(f"image_folder: no training image of class {name!r} in {root}")
    source = fingerprint(*train, *held)
    recipe = f"image_folder data={source} size={size} channels={channels} split={how}"
    if scale is not None or mean is not None or std is not None:  # not for the network to choose
        train, held = ((mapped(inputs, seen), labels) for inputs, labels in (train, held))
        recipe += f" seen as {seen}"
    task = Task(
        name="image_folder",
        train=train,
        valid=held,
        fields={"input_shape": shape, "classes": len(classes)},
        recipe=recipe,
        of_network=True,
        labels=tuple(classes),
        preprocessing=seen,
        notes=_notes(unread or [], held[1], classes),
    )
    return classified(task, class_weights=class_weights, balanced=balanced)


def check_pictures(size: int, channels: int, aspect: str, background: str) -> None:
    """`ValueError` where an option of pictures is out of range."""
    whole_number("size", size, 8)
    if channels not in (1, 3):
        raise ValueError(f"channels={channels!r}; expected 1 (grey) or 3 (colour)")
    for name, value, known in (("aspect", aspect, ASPECTS), ("background", background, BACKGROUND)):
        if value not in known:
            raise ValueError(f"{name}={value!r}; expected one of {', '.join(known)}")


def _notes(unread: list[str], held: np.ndarray, classes: list[str]) -> tuple[str, ...]:
    notes = []
    if unread:
        more = f", and {len(unread) - TOLD} more" if len(unread) > TOLD else ""
        notes.append(f"{len(unread)} unreadable images left out: {'; '.join(unread[:TOLD])}{more}")
    if unjudged := [name for number, name in enumerate(classes) if not (held == number).any()]:
        some = ", ".join(unjudged[:TOLD]) + (", ..." if len(unjudged) > TOLD else "")
        notes.append(f"{len(unjudged)} classes have no validation image: {some}")
    return tuple(notes)


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
        found = sorted(p for p in (root / name).rglob("*") if _is_picture(p))
        if not found and (root / name).is_dir():
            raise ValueError(f"image_folder: no images in {root / name}")
        files += [(file, label) for file in found]
    return files


def _is_picture(path: pathlib.Path) -> bool:
    hidden = path.name.startswith(".")  # macOS leaves ._a.jpg beside a.jpg
    return path.suffix.lower() in PICTURES and not hidden and path.is_file()


def _divide(files: Files, root: pathlib.Path, valid: float) -> tuple[Files, Files]:
    """Hold out the files whose name hashes below `valid`; of two of a class at least one."""
    of_class: dict[int, Files] = {}
    for file in files:
        of_class.setdefault(file[1], []).append(file)
    train: Files = []
    held: Files = []
    for members in of_class.values():
        order = sorted(members, key=lambda file: _score(file[0].relative_to(root)))
        number = sum(_score(file.relative_to(root)) < valid for file, _ in order)
        number = min(max(number, 1), len(order) - 1)
        chosen = set(order[:number])
        held += [file for file in members if file in chosen]
        train += [file for file in members if file not in chosen]
    return train, held


def _score(file: pathlib.PurePath) -> float:
    digest = hashlib.sha256(file.as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _read(
    files: Files, shape: tuple[int, ...], seen: Preprocessing, unread: list[str] | None
) -> tuple[Any, np.ndarray]:
    """Images and labels; what cannot be read is an error, or is added to `unread`."""
    from PIL import Image

    images, labels = Stack(), []
    rows: list[np.ndarray] = []
    for file, label in files:
        try:
            rows.append(picture(file, shape, seen.aspect, seen.background))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if unread is None:
                raise ValueError(
                    f"image_folder: cannot read {file}: {error}; skip=true leaves such files out"
                ) from error
            unread.append(f"{file}: {error}")
            continue
        labels.append(label)
        if len(rows) == READ:
            images.append(np.stack(rows))
            rows.clear()
    images.append(np.array(rows, np.uint8).reshape(-1, *shape))
    return images.array(), np.array(labels, np.int32)

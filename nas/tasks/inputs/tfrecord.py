"""TFRecord files of `tf.train.Example`: pictures or numbers, and their targets, by what is in them.

https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import glob
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nas.files.hand_over.use import picture
from nas.tasks.inputs.on_disk import Stack

TARGETS = ("y", "label", "labels", "target", "class", "image/class/label")
NAME = "image/class/text"  # of the class, beside its number
STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")  # of JPEG, PNG, GIF, BMP, WebP
BATCH = 64


def files_of(path: str) -> list[str]:
    """The files of a name, or of a pattern as train.tfrecord-*, in order.

    >>> files_of("no/such/train.tfrecord-*")
    []
    """
    place = str(pathlib.Path(path).expanduser())
    return [place] if pathlib.Path(place).is_file() else sorted(glob.glob(place))


def read(
    files: Sequence[str],
    target: str | None,
    shape: tuple[int, ...] | None,
    size: tuple[int, int, int],
    aspect: str,
    background: str,
) -> tuple[Any, Any, tuple[str, ...], bool]:
    """Inputs, targets or None, names of classes, and whether the inputs are pictures.

    A feature that holds a picture is the input, made `size` (height, width, channels); else each
    feature of numbers is one, by its name, of `shape` where there is only one; else bytes of
    `shape`. `target` names the target's feature. Raises `ValueError` where a file is damaged or
    an example holds other features than the first.
    """
    stacks: dict[str, Stack] = {}
    targets: list[Any] = []
    named: dict[int, str] = {}
    rows: dict[str, list[np.ndarray]] = {}
    kinds: list[str] | None = None
    name, pictures, number = target, False, 0
    for number, features in enumerate(_examples(files), 1):
        if kinds is None:
            name = _target(target, features)
            pictures, kinds = _inputs(features, name, shape)
        try:
            for one in kinds:
                value = features[one]
                if pictures:
                    row = picture(io.BytesIO(value[0]), size, aspect, background)
                elif isinstance(value, list):
                    row = np.frombuffer(b"".join(value), np.uint8).reshape(shape or (-1,))
                else:
                    row = value.reshape(shape) if shape and len(kinds) == 1 else value
                rows.setdefault(one, []).append(row)
            if name is not None:
                targets.append(_one(features[name]))
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"{files[0]}: example {number - 1}: {error}") from error
        if NAME in features and isinstance(targets[-1] if targets else None, np.integer):
            named[int(targets[-1])] = features[NAME][0].decode(errors="replace")
        if number % BATCH == 0:
            _flush(rows, stacks, files[0])
    if not number:
        raise ValueError(f"{files[0]}: no records of tf.train.Example in it")
    _flush(rows, stacks, files[0])
    arrays = {one: stack.array() for one, stack in stacks.items()}
    inputs = next(iter(arrays.values())) if len(arrays) == 1 else arrays
    if name is None:
        return inputs, None, (), pictures
    if isinstance(targets[0], str):
        labels, found = np.unique(targets, return_inverse=True)
        return inputs, found.reshape(-1), tuple(labels.tolist()), pictures
    known = set(named) == set(range(len(named))) and len(named) > 1
    names = tuple(named[one] for one in sorted(named)) if known else ()
    return inputs, np.stack(targets), names, pictures


def _flush(rows: dict[str, list[np.ndarray]], stacks: dict[str, Stack], file: str) -> None:
    for name, values in rows.items():
        if not values:
            continue
        try:
            stacks.setdefault(name, Stack()).append(np.stack(values))
        except ValueError as error:
            raise ValueError(f"{file}: feature {name!r} is not of one shape: {error}") from error
        values.clear()


def _examples(files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The features of each example: arrays of numbers, or lists of bytes."""
    import tensorflow as tf

    for file in files:
        kind = "GZIP" if file.endswith(".gz") else ""
        if not kind:
            _check_whole(file)
        try:
            for record in tf.data.TFRecordDataset(file, compression_type=kind):
                example = tf.train.Example.FromString(record.numpy())
                found: dict[str, Any] = {}
                for name, feature in example.features.feature.items():
                    which = feature.WhichOneof("kind")
                    if which == "bytes_list":
                        found[name] = list(feature.bytes_list.value)
                    elif which == "float_list":
                        found[name] = np.array(feature.float_list.value, np.float32)
                    elif which == "int64_list":
                        found[name] = np.array(feature.int64_list.value, np.int64)
                yield found
        except (tf.errors.OpError, ValueError) as error:
            raise ValueError(f"{file}: {_first_line(error)}") from error
        except Exception as error:  # protobuf's own, of bytes that are no tf.train.Example
            if type(error).__name__ != "DecodeError":
                raise
            raise ValueError(f"{file}: its records are no tf.train.Example") from error


def _check_whole(file: str) -> None:
    """`ValueError` where the last record is cut: TensorFlow takes that for the end of the file.

    A record is its length (8 bytes), a checksum (4), its bytes, a checksum (4).
    """
    size, place = pathlib.Path(file).stat().st_size, 0
    with open(file, "rb") as content:
        while place < size:
            content.seek(place)
            place += 16 + int.from_bytes(content.read(8), "little")
    if place != size:
        raise ValueError(f"{file}: its last record is cut, or it is no TFRecord file")


def _first_line(error: Exception) -> str:
    return str(getattr(error, "message", error)).splitlines()[0]


def _target(given: str | None, features: dict[str, Any]) -> str | None:
    if given is not None and given not in features:
        raise ValueError(f"no feature {given!r}; the examples have {', '.join(sorted(features))}")
    return given or next((one for one in TARGETS if one in features), None)


def _inputs(
    features: dict[str, Any], target: str | None, shape: tuple[int, ...] | None
) -> tuple[bool, list[str]]:
    """Whether the input is a picture, and the features that are inputs."""
    others = {name: value for name, value in sorted(features.items()) if name != target}
    for name, value in others.items():
        if isinstance(value, list) and len(value) == 1 and value[0].startswith(STARTS):
            return True, [name]
    numbers = [
        name for name, value in others.items() if isinstance(value, np.ndarray) and len(value)
    ]
    if numbers:
        return False, numbers
    size = 0 if shape is None else int(np.prod(shape))
    raw = [
        name
        for name, value in others.items()
        if isinstance(value, list) and size and sum(map(len, value)) == size
    ]
    if not raw:
        raise ValueError(
            f"the examples hold {', '.join(sorted(features))}: no picture and no numbers; of bytes "
            "say their shape, as shape=28x28x1"
        )
    return False, raw[:1]


def _one(value: Any) -> Any:
    """A target: text, a number, or an array."""
    if isinstance(value, list):
        return value[0].decode()
    return value[0] if len(value) == 1 else value

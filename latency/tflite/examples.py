"""Examples through a `.tflite` file, whatever batch it was made for: any number goes in and out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Sizes = Mapping[str, tuple[int, ...]]


def batch_of(inputs: Sizes, outputs: Sizes) -> int | None:
    """How many examples a file takes at once, along the first axis; None: one, without an axis.

    inputs, outputs: shapes by name, as the file has them.

    >>> batch_of({"image": (1, 8, 8, 3)}, {"boxes": (90, 4)})
    1
    >>> batch_of({"waveform": (15600,)}, {"scores": (1, 521)}) is None
    True
    """
    first = {shape[:1] for shape in inputs.values()}
    if first == {(1,)}:
        return 1
    if len(first) == 1 and first == {shape[:1] for shape in outputs.values()} != {()}:
        return first.pop()[0]
    return None


def example_shapes(inputs: Sizes, outputs: Sizes) -> tuple[Sizes, Sizes]:
    """The shapes of one example on both sides.

    >>> example_shapes({"image": (4, 8, 8, 3)}, {"scores": (4, 10)})
    ({'image': (8, 8, 3)}, {'scores': (10,)})
    """
    batch = batch_of(inputs, outputs)
    if batch is None:
        return inputs, outputs
    return (
        {name: shape[1:] for name, shape in inputs.items()},
        {name: shape[1:] if shape[:1] == (batch,) else shape for name, shape in outputs.items()},
    )


def batches(inputs: Sizes, outputs: Sizes, arrays: Arrays) -> list[Arrays]:
    """What the file is given one after the other; the last batch is filled with its last example.

    arrays: (n, ...) by name. Raises `ValueError` where they are of other shapes.
    """
    wanted, _ = example_shapes(inputs, outputs)
    if arrays.keys() != wanted.keys():
        raise ValueError(f"expected the inputs {sorted(wanted)}, got {sorted(arrays)}")
    for name, shape in wanted.items():
        if arrays[name].shape[1:] != shape:
            raise ValueError(
                f"{name}: expected inputs of shape {('n', *shape)}, got {arrays[name].shape}"
            )
    count = len(next(iter(arrays.values())))
    batch = batch_of(inputs, outputs)
    if batch is None:
        return [{name: array[n] for name, array in arrays.items()} for n in range(count)]
    starts = range(0, count, batch)
    chosen = [np.minimum(np.arange(start, start + batch), count - 1) for start in starts]
    return [{name: array[rows] for name, array in arrays.items()} for rows in chosen]


def run(session: Any, arrays: Arrays) -> Arrays:
    """The outputs (n, ...) of a `latency.tflite.convert.Session` for inputs (n, ...), by name."""
    inputs, outputs = session.shapes
    batch = batch_of(inputs, outputs)
    runs = [session(given) for given in batches(inputs, outputs, arrays)]
    count = len(next(iter(arrays.values())))
    found = {}
    for name in outputs:
        rows = [one[name] for one in runs]
        whole = batch is not None and rows[0].shape[:1] == (batch,)
        found[name] = (np.concatenate(rows) if whole else np.stack(rows))[:count]
    return found

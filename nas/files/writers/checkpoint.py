"""A family's network as a checkpoint: .safetensors with its weights under our paths, its Config."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from latency.system.atomic_write import atomic_write


def write(path: str | pathlib.Path, model: Any, config: Any) -> None:
    """Write all weights of `model` as float32, whole or not at all.

    `nas.files.readers.any_checkpoint.read` reads the file, with the Config.
    """
    from safetensors.numpy import save_file

    arrays = {w.path: np.ascontiguousarray(w, np.float32) for w in model.weights}
    with atomic_write(pathlib.Path(path)) as partial:
        save_file(arrays, partial, metadata_of(config))


def metadata_of(config: Any) -> dict[str, str]:
    """What a file says of itself, so that the Config is read back: its family and its fields.

    >>> from families import mnasnet
    >>> metadata_of(mnasnet.VARIANTS["tiny"])["family"]
    'mnasnet'
    """
    family = type(config).__module__.removeprefix("families.")
    return {"family": family, "config": json.dumps(_plain(config))}


def _plain(value: Any) -> Any:
    """What JSON can hold of a Config: dataclasses by their names, tuples as lists."""
    if dataclasses.is_dataclass(value):
        values = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"is": type(value).__name__, **values}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value

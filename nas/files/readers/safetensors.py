"""Safetensors files: any family's network under our weight paths, and arrays read one by one.

The format holds numbers and text only: nothing in a file can run.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nas.files.readers.checkpoint import Checkpoint
from nas.files.readers.config_file import family_module

INDEX = ".index.json"  # which of several files holds what, by Hugging Face
NUMBERS = {"F64", "F32", "F16", "BF16"}


class Tensors(Mapping):
    """The arrays of one file or several, by name; read from the disk whenever asked for."""

    def __init__(self, files: list[pathlib.Path]):
        self._file_of: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.metadata: dict[str, str] = {}
        for path in files:
            with _opened(path) as file:
                self.metadata |= file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    part = file.get_slice(name)
                    if part.get_dtype() not in NUMBERS:
                        raise ValueError(
                            f"{path}: {name!r} is {part.get_dtype()}; expected one of "
                            f"{', '.join(sorted(NUMBERS))}"
                        )
                    self._file_of[name] = path
                    self.shapes[name] = tuple(part.get_shape())

    def __getitem__(self, name: str) -> np.ndarray:
        with _opened(self._file_of[name]) as file:
            return file.get_tensor(name).astype(np.float32)

    def __iter__(self):
        return iter(self._file_of)

    def __len__(self):
        return len(self._file_of)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    import ml_dtypes  # noqa: F401 (gives NumPy bfloat16)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error


def metadata(path: pathlib.Path) -> dict[str, str]:
    """What a .safetensors file says of itself."""
    with _opened(path) as file:
        return file.metadata() or {}


def tensors(path: pathlib.Path) -> Tensors:
    """The arrays of a .safetensors file, or of those that a .safetensors.index.json names."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not path.name.endswith(INDEX):
        return Tensors([path])
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        files = [path.with_name(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a weight_map of file names ({error!r})") from error
    return Tensors(files)


def read(path: pathlib.Path, found: Tensors, config: Any | None = None) -> Checkpoint:
    """A network that `nas.files.writers.checkpoint` wrote; `config` if its metadata are lost."""
    if config is None:
        config = _config(path, found.metadata)
    return Checkpoint(config, found, str(path))


def _config(path: pathlib.Path, metadata: dict[str, str]) -> Any:
    try:
        family = family_module(metadata["family"])
        config = _restored(json.loads(metadata["config"]), family)
        if type(config) is not family.Config:
            raise ValueError(f"{config!r:.40}")
        return config
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: its metadata name no network of ours ({error}); expected family and config, "
            "or a config.json of Llama, Mistral or Mixtral beside it"
        ) from error


def _restored(value: Any, family: Any) -> Any:
    """The Config that was written as this; only a family's own dataclasses are made."""
    if isinstance(value, list):
        return tuple(_restored(one, family) for one in value)
    if not isinstance(value, dict):
        return value
    kind = getattr(family, value.pop("is"))
    if not (dataclasses.is_dataclass(kind) and kind.__module__ == family.__name__):
        raise ValueError(f"{kind!r:.40} is no part of a Config")
    make: Any = kind
    return make(**{name: _restored(one, family) for name, one in value.items()})

"""Networks from files: what kind a file is decides who reads it."""

import pathlib
from typing import Any

from nas.files.readers import huggingface, llama2c, safetensors
from nas.files.readers.checkpoint import Checkpoint

WHOLE = ("model.safetensors", "model.safetensors.index.json")  # what Hugging Face calls them


def read(path: str | pathlib.Path, config: Any | None = None) -> Checkpoint:
    """The network in a .bin of llama2.c, a .safetensors of ours or Hugging Face's, or its folder.

    A config.json beside safetensors without our metadata is Hugging Face's. `config` is for a
    file of our weight paths that does not say of what network they are.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        inside = [path / name for name in WHOLE if (path / name).is_file()]
        if not inside:
            raise ValueError(f"{path}: expected {' or '.join(WHOLE)} in it")
        path = inside[0]
    if path.suffix == ".bin":
        return llama2c.read(path)
    if path.suffix != ".safetensors" and not path.name.endswith(safetensors.INDEX):
        raise ValueError(f"{path}: expected a .bin of llama2.c, a .safetensors or a folder of them")
    found = safetensors.tensors(path)
    described = path.with_name("config.json")
    if config is None and "family" not in found.metadata and described.is_file():
        return huggingface.read(path, found, described)
    return safetensors.read(path, found, config)

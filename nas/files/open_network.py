"""Networks to compress, from whatever a user has: files of several kinds, or the catalog."""

import dataclasses
import pathlib
import warnings
from typing import Any

import numpy as np

from latency.networks import keras_file
from nas import backend, registry

EXPECTED = (
    "expected a .keras, .h5, .safetensors or llama2.c .bin file, a SavedModel folder, or "
    "FAMILY:VARIANT,weights=FILE"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network as methods take it, and where it is from.

    model: a flat Functional `keras.Model`. config: its family's Config, None where it is unknown.
    source: in words. opaque: layers whose inside cannot be rewritten -> the reason.
    """

    model: Any
    config: Any
    source: str
    opaque: dict[str, str]


def read(text: str) -> Network:
    """The network in a file or folder, or of the catalog: `mnasnet:tiny,weights=FILE`.

    Files are only read, and no code in them runs. Raises `ValueError`, one line, where a file is
    damaged, foreign or too large, or the weights are another network's. Loads Keras.
    """
    path = pathlib.Path(text).expanduser()
    if path.exists():
        backend.load()
        model, config, kind = _from_file(path)
        return _network(model, config, f"{kind} {text}")
    name = registry.parse(text).name if ":" in text or not path.suffix else text
    if name not in registry.listing("family"):
        if path.suffix or "/" in text:
            raise ValueError(f"no file {text}; {EXPECTED}")
        registry.known("family", name)
    return _from_catalog(text)


def _network(model: Any, config: Any, source: str) -> Network:
    from nas.files.flatten import flattened

    flat, opaque = flattened(model)
    for weight in flat.weights:
        if not np.isfinite(np.asarray(weight)).all():
            raise ValueError(f"{source}: weight {weight.path!r} is not finite everywhere")
    return Network(flat, config, source, opaque)


def _from_catalog(text: str) -> Network:
    named = registry.parse(text)
    options = dict(named.options)
    file = options.pop("weights", None)
    backend.load()
    bare = dataclasses.replace(named, options=tuple(options.items()))
    family, config = registry.network(str(bare))
    if file is None:
        from nas.networks.build import build

        return _network(build(config), config, f"{text}, not trained")
    from nas.files.readers.checkpoint import Checkpoint

    path = pathlib.Path(str(file)).expanduser()
    if not path.exists():
        raise ValueError(f"{text}: no file {path}")
    if path.name.endswith(".weights.h5"):
        return _network(_with_weights(family.build(config), path), config, text)
    if path.suffix in (".bin", ".safetensors"):
        weights = _checkpoint(path, config).weights
    else:
        weights = {weight.path: np.asarray(weight) for weight in _from_file(path)[0].weights}
    return _network(Checkpoint(config, weights, str(path)).network(), config, text)


def _with_weights(model: Any, path: pathlib.Path) -> Any:
    """`model` with the weights that Keras' `save_weights` wrote."""
    from nas.files.readers import keras_h5

    keras_h5.look(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of containers that hold no weights
            model.load_weights(path)
    except Exception as error:  # whatever is missing or of another shape
        raise ValueError(f"{path}: not {model.name}'s: {keras_file.cause(error)}") from error
    return model


def _checkpoint(path: pathlib.Path, config: Any = None) -> Any:
    from nas.files.readers import any_checkpoint, safetensors
    from nas.files.readers.checkpoint import Checkpoint
    from nas.files.writers import safetensors as packed

    of_ours = path.suffix == ".safetensors" and path.is_file()
    if of_ours and packed.is_packed(safetensors.metadata(path)):
        return Checkpoint(config, packed.load(path), str(path))
    return any_checkpoint.read(path, config)


def _from_file(path: pathlib.Path) -> tuple[Any, Any, str]:
    """Model, Config or None, and the kind of file."""
    from nas.files.readers import keras_h5, safetensors, saved_model
    from nas.files.writers import safetensors as packed

    if path.is_dir():
        if (path / saved_model.GRAPH).is_file():
            return saved_model.read(path), None, "SavedModel"
        checkpoint = _checkpoint(path)
        return checkpoint.network(), checkpoint.config, "checkpoint"
    if path.suffix in keras_h5.SUFFIXES:
        return keras_h5.read(path), None, "Keras HDF5 file"
    if path.suffix == ".keras":
        model = keras_file.load(path)
        return model, _decoder(model, path), "Keras file"
    if path.suffix == ".safetensors" and packed.is_packed(safetensors.metadata(path)):
        return packed.network(path), None, "packed weights"
    if path.suffix == ".bin" or path.suffix == ".safetensors" or path.name.endswith(".index.json"):
        checkpoint = _checkpoint(path)
        return checkpoint.network(), checkpoint.config, "checkpoint"
    raise ValueError(f"{path}: {keras_file.looks_like(keras_file.start_of(path))}; {EXPECTED}")


def _decoder(model: Any, path: pathlib.Path) -> Any:
    """The Config of a decoder, which its layers tell; None of another network."""
    from nas.files.readers import decoder_config

    try:
        return decoder_config.config_of(model, str(path))
    except ValueError:
        return None

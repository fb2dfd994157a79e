"""Networks from whatever a user has: a model in memory, a file of some kind, a folder, a Config."""

import dataclasses
import pathlib
import sys
import tempfile
import warnings
from typing import Any

import numpy as np

from latency.networks import keras_file
from nas import backend
from nas.files.given_shapes import Shapes

EXPECTED = (
    "expected a .keras, .h5, .tflite, .safetensors or llama2.c .bin file, a SavedModel, Hugging "
    "Face or runs/ folder, or FAMILY:VARIANT,weights=FILE"
)
_RUN = ("best.keras", "config.py", "study.json")  # one of them is in every folder of a search


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network as every command takes it, and where it is from.

    keras_model: a flat Functional `keras.Model`; None for a .tflite file, and for a SavedModel that
    is taken as one. config: its family's
    Config; None where it is unknown. source: where it is from, in words. opaque: name of a layer
    whose inside cannot be rewritten -> the reason. file: a file of the same network that targets
    can time as it is; None where there is none. read_from: the file or folder that the weights were
    read from, which nothing is to overwrite; None of a model in memory. notes: what was changed as
    it was opened, in sentences. made: the folder of `file`, where that was made as it was opened.
    """

    keras_model: Any
    config: Any
    source: str
    opaque: dict[str, str]
    file: pathlib.Path | None = None
    read_from: pathlib.Path | None = None
    notes: tuple[str, ...] = ()
    made: tempfile.TemporaryDirectory | None = None

    @property
    def name(self) -> str:
        """What results call it: where it is from."""
        return self.source

    @property
    def model(self) -> Any:
        """The flat `keras.Model`; `ValueError` for a .tflite file, which holds none."""
        if self.keras_model is None:
            raise ValueError(
                f"{self.source}: a .tflite file holds no Keras layers; expected the .keras file "
                f"that it was made of{''.join(f' ({note})' for note in self.notes)}"
            )
        return self.keras_model

    def for_target(self, target: Any) -> Any:
        """What a `latency.target.Target` is to time: the file where it takes it, else the model."""
        if self.file is None or (self.file.suffix == ".tflite" and not target.runs_tflite):
            return self.model
        return self.file


def open_network(source: Any, shapes: Shapes = (), signature: str | None = None) -> Network:
    """The network that a `keras.Model` is, or that is in a file or folder.

    source: any `keras.Model` whose graph can be read; or the path of a .keras, .h5, .tflite,
    .safetensors or llama2.c file, of a folder of a SavedModel, of Hugging Face's files or of a
    search (`runs/mine`: its best network).
    shapes: of inputs, by name, or of the only one: sizes in place of open ones, a batch before
    them. signature: of a .tflite file with several, that which is to run.

    Files are only read, and no code in them runs. Raises `ValueError`, one line, where a file is
    damaged, foreign or too large, where a weight is not finite, and where a model cannot be made
    flat (`nas.files.flatten`). Loads Keras.

    >>> import keras
    >>> row = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="row")
    >>> network = open_network(row)
    >>> network.source, network.model.count_params()
    ('model row', 15)
    """
    if shapes or signature is not None:
        return _fixed(open_network(source), shapes, signature)
    if isinstance(source, Network):
        return source
    if isinstance(source, (str, pathlib.Path)):
        path = pathlib.Path(source).expanduser()
        if not path.exists():
            raise ValueError(f"no file {source}; {EXPECTED}")
        backend.load()
        return _from_path(path)
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(source, keras.Model):
        raise ValueError(f"a {type(source).__name__} is no network; {EXPECTED}, or a keras.Model")
    return _network(source, None, f"model {source.name}")


def _fixed(network: Network, shapes: Shapes, signature: str | None) -> Network:
    """The network with sizes for open ones; a .tflite file's is a file of its own."""
    if network.keras_model is not None:
        if signature is not None:
            raise ValueError(
                f"{network.source}: signature {signature!r}: only .tflite files have signatures"
            )
        from nas.files.flatten import flatten

        flat = flatten(network.keras_model, shapes)
        return dataclasses.replace(network, keras_model=flat.model, opaque=flat.opaque, file=None)
    from latency.tflite import fixed_shapes, process
    from nas.files.given_shapes import by_input

    assert network.file is not None  # it is the network
    try:
        takes = fixed_shapes.read(network.file.read_bytes(), signature)
        by_name = by_input([one.name for one in takes.inputs], shapes)
    except ValueError as error:
        raise ValueError(f"{network.file}: {error}") from None
    folder = tempfile.TemporaryDirectory(prefix="nas_shapes_")
    file = pathlib.Path(folder.name) / network.file.name
    file.write_bytes(process.fixed(network.file, by_name, signature))
    return dataclasses.replace(network, file=file, made=folder)


def from_config(config: Any, weights: str | pathlib.Path | None = None) -> Network:
    """The network of a family's Config.

    weights: a file of a trained network of this Config; None: weights as `nas.networks.build` draws
    them. Raises `ValueError`, one line, where the file is missing or of another network.

    >>> from families import mnasnet
    >>> from_config(mnasnet.VARIANTS["tiny"]).source
    'mnasnet:tiny, not trained'
    """
    from nas.networks.build import build

    family = sys.modules[type(config).__module__]
    known = (f":{name}" for name, one in family.VARIANTS.items() if one == config)
    name = f"{family.__name__.rpartition('.')[2]}{next(known, '')}"
    if weights is None:
        return _network(build(config), config, f"{name}, not trained")
    from nas.files.readers.checkpoint import Checkpoint

    path = pathlib.Path(weights).expanduser()
    if not path.exists():
        raise ValueError(f"{name}: no file {path}")
    source = f"{name}, weights of {path}"
    if path.name.endswith(".weights.h5"):
        return _network(_with_weights(family.build(config), path), config, source, path)
    if path.suffix in (".bin", ".safetensors"):
        arrays = _checkpoint(path, config).weights
    else:
        arrays = {weight.path: np.asarray(weight) for weight in _from_path(path).model.weights}
    return _network(Checkpoint(config, arrays, str(path)).network(), config, source, path)


def _network(
    model: Any,
    config: Any,
    source: str,
    read_from: pathlib.Path | None = None,
    tflite: pathlib.Path | None = None,
) -> Network:
    """`model` made flat; `tflite`: its LiteRT file, where there is one."""
    from nas.files.flatten import flatten

    flat = flatten(model)
    for weight in flat.model.weights:
        if not np.isfinite(np.asarray(weight)).all():
            raise ValueError(f"{source}: weight {weight.path!r} is not finite everywhere")
    file = tflite
    if file is None and flat.model is model and read_from is not None:
        file = read_from if read_from.suffix == ".keras" else None
    notes = (_in_float32(flat.others),) if flat.others else ()
    return Network(flat.model, config, source, flat.opaque, file, read_from, notes)


def _in_float32(others: dict[str, str]) -> str:
    policies = ", ".join(sorted(set(others.values())))
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    names = ", ".join(list(others)[:4]) + more
    return f"computed in float32 here and in files; these layers are {policies}: {names}"


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


def _from_path(path: pathlib.Path) -> Network:
    from nas.files.readers import keras_h5, safetensors
    from nas.files.writers import safetensors as packed

    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".tflite":
        return Network(None, None, f"LiteRT file {path}", {}, path, path)
    if path.suffix in keras_h5.SUFFIXES:
        return _network(keras_h5.read(path), None, f"Keras HDF5 file {path}", path)
    if path.suffix == ".keras":
        model = keras_file.load(path)
        return _network(model, _decoder(model, path), f"Keras file {path}", path)
    if path.suffix == ".safetensors" and packed.is_packed(safetensors.metadata(path)):
        return _network(packed.network(path), None, f"packed weights {path}", path)
    if path.suffix in (".bin", ".safetensors") or path.name.endswith(safetensors.INDEX):
        return _of_checkpoint(path)
    raise ValueError(f"{path}: {keras_file.format_of(keras_file.first_bytes(path))}; {EXPECTED}")


def _from_folder(path: pathlib.Path) -> Network:
    from nas.files.readers import saved_model

    if (path / saved_model.GRAPH).is_file():
        try:
            return _network(saved_model.read(path), None, f"SavedModel {path}", path)
        except saved_model.NoLayers as error:
            if not saved_model.serves(path):
                raise
            return _of_graph(path, str(error).removeprefix(f"{path}: "))
    if any((path / name).is_file() for name in _RUN):
        return _of_run(path)
    return _of_checkpoint(path)


def _of_graph(path: pathlib.Path, reason: str) -> Network:
    """A SavedModel whose layers cannot be built again: the function that it serves, as .tflite.

    `ValueError`, for both reasons, where there is no such file either.
    """
    from latency.tflite import process

    try:
        tflite = process.convert_graph(path)
    except ValueError as error:
        raise ValueError(f"{path}: {reason}; and as .tflite: {error}") from None
    folder = tempfile.TemporaryDirectory(prefix="nas_graph_")
    file = pathlib.Path(folder.name) / f"{path.name}.tflite"
    file.write_bytes(tflite)
    note = f"taken as the .tflite file that TensorFlow makes of its graph, for {reason}"
    return Network(None, None, f"SavedModel {path}", {}, file, path, (note,), folder)


def _of_checkpoint(path: pathlib.Path) -> Network:
    checkpoint = _checkpoint(path)
    return _network(checkpoint.network(), checkpoint.config, f"checkpoint {path}", path)


def _of_run(path: pathlib.Path) -> Network:
    """The best network of a search."""
    from nas.files.readers import config_file

    best, tflite = path / "best.keras", path / "best.tflite"
    if not best.is_file():
        so_far = path / "so_far.keras"
        found = f"; the best so far is {so_far}" if so_far.is_file() else ""
        raise ValueError(f"{path}: a search that has no best.keras, so no network yet{found}")
    config = config_file.read(path) if (path / "config.py").is_file() else None
    file = tflite if tflite.is_file() else None
    return _network(keras_file.load(best), config, f"search {path}", best, file)


def _decoder(model: Any, path: pathlib.Path) -> Any:
    """The Config of a decoder, which its layers tell; None for another network."""
    from nas.files.readers import decoder_config

    try:
        return decoder_config.config_of(model, str(path))
    except ValueError:
        return None

"""A `.tflite` file that a user brings to be compressed: which methods and files it can have."""

import dataclasses
import pathlib
from collections.abc import Sequence

from compress.float16 import Float16
from compress.method import WEIGHTS, Method, NotApplicable
from nas.files.given_file import describe
from nas.files.open_network import Network

SUFFIX = ".tflite"


def opened(
    network: Network, methods: Sequence[Method], out: Sequence[str | pathlib.Path]
) -> Network:
    """The network with its file read as a `keras.Model` (`nas.files.readers.tflite_file`).

    Raises `NotApplicable` where a method does more than change weights in place, and `ValueError`
    where another format than .tflite is to be written, or the file holds no float function.
    """
    assert network.file is not None and network.read_from is not None  # it is the network
    reasons = "".join(f" ({note})" for note in network.notes)
    for method in methods:
        if method.trains or method.stage != WEIGHTS:
            kind = type(method).__module__.rpartition(".")[2]
            raise NotApplicable(
                f"{kind} needs the layers of a network and its gradients, and {network.read_from}"
                f" has neither{reasons}: give the .keras, .h5 or SavedModel that it was made of;"
                " ptq and float16 take a .tflite file"
            )
        if isinstance(method, Float16) and "float16" in describe(network.file, SUFFIX, 1)["dtype"]:
            raise NotApplicable(f"{network.read_from} keeps its weights in float16 already")
    if others := [str(path) for path in out if pathlib.Path(path).suffix != SUFFIX]:
        raise ValueError(
            f"out {others[0]}: of a .tflite file another .tflite can be made, and nothing else"
            f"{reasons}: give the .keras, .h5 or SavedModel that it was made of"
        )
    from nas.files.readers import tflite_file

    try:
        model, notes = tflite_file.network(network.file)
    except ValueError as error:  # of a copy with fixed shapes, whose name says nothing
        reason = str(error).removeprefix(f"{network.file}: ")
        raise ValueError(f"{network.read_from}: {reason}") from error
    if network.made is not None and network.read_from.suffix == SUFFIX:
        notes = [
            *notes,
            "the file that is written has the shapes and the signature that were given",
        ]
    return dataclasses.replace(network, keras_model=model, notes=(*network.notes, *notes))

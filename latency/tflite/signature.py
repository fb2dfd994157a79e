"""The names by which a `.tflite` file takes its inputs and gives its outputs: its signature.

Format: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from latency.tflite.graph import AlignedBuilder, signature


def names(model: Any) -> tuple[list[str], list[str]]:
    """What the inputs and the outputs of a Keras model are called, in the order of its tensors.

    By their keys where the model takes or gives a dict, else by the layers that make them, with a
    number where a layer makes several; `ValueError` where dicts or lists are nested.
    """
    return _named(model, "input", model.inputs), _named(model, "output", model.outputs)


def _named(model: Any, side: str, tensors: list) -> list[str]:
    structure = getattr(model, side)
    if isinstance(structure, dict):
        keys = sorted(structure)  # as Keras flattens it
        if len(keys) == len(tensors):
            return keys
    else:
        parts = structure if isinstance(structure, (list, tuple)) else [structure]
        if len(parts) == len(tensors):
            return _distinct([tensor._keras_history.operation.name for tensor in tensors])
    raise ValueError(
        f"model {model.name!r}: expected each {side} by a name of its own (a tensor, a list of"
        f" tensors, a dict of tensors), got {structure!r:.300}"
    )


def _distinct(found: list[str]) -> list[str]:
    """The same names, those that come again with the first number that makes them new."""
    given: list[str] = []
    for name in found:
        number, new = 1, name
        while new in given or (new != name and new in found):
            new, number = f"{name}_{number}", number + 1
        given.append(new)
    return given


def signed(tflite: bytes, inputs: list[str], outputs: list[str]) -> bytes:
    """The file with names for the inputs and outputs of its main graph, in their order."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
    model.signatureDefs = signature(model.subgraphs[0], inputs, outputs)
    builder = AlignedBuilder(len(tflite) + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())

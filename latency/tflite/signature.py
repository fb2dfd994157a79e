"""The names by which a `.tflite` file takes its inputs and gives its outputs: its signature.

Format: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from latency.tflite.graph import AlignedBuilder, signature


def names(model: Any) -> tuple[list[str], list[str]]:
    """What the inputs and the outputs of a Keras model are called, in the order of its tensors.

    By their keys where the model takes or gives a dict, else by the layers that make them, with a
    number where a layer makes several; where dicts and lists are nested, by their keys and places.
    Of a model that was read from a file (its layer has `file_names`), as they are called there.
    """
    readers = (layer for layer in model.layers if hasattr(layer, "file_names"))
    renamed = {ours: name for layer in readers for ours, name in layer.file_names().items()}
    sides = _named(model, "input", model.inputs), _named(model, "output", model.outputs)
    inputs, outputs = ([renamed.get(name, name) for name in side] for side in sides)
    return inputs, outputs


def _named(model: Any, side: str, tensors: list) -> list[str]:
    structure = getattr(model, side)
    if isinstance(structure, dict):
        keys = sorted(structure)  # as Keras flattens it
        if len(keys) == len(tensors):
            return keys
    else:
        parts = structure if isinstance(structure, (list, tuple)) else [structure]
        if len(parts) == len(tensors):
            return distinct([tensor._keras_history.operation.name for tensor in tensors])
    import keras  # noqa: PLC0415 (whoever has a model has imported it)

    paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
    return distinct(["_".join(map(str, path)) for path in paths])


def distinct(found: list[str]) -> list[str]:
    """The same names, those that come again with the first number that makes them new.

    >>> distinct(["a", "b", "a"])
    ['a', 'b', 'a_1']
    """
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

"""SavedModel folders of Keras 2 networks: layers from their description, variables by name.

TensorFlow's graph in it is not read, and nothing of it runs. Keras kept the description of layers
in saved_model.pb, since TensorFlow 2.5 in keras_metadata.pb beside it.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from latency.networks import keras_file
from nas.files.readers import keras2_config, keras2_operations

GRAPH, METADATA, VARIABLES = "saved_model.pb", "keras_metadata.pb", "variables/variables"
VALUE = "VARIABLE_VALUE"


class NoLayers(ValueError):
    """A sound SavedModel of which no network of Keras layers can be made."""


def serves(folder: pathlib.Path) -> bool:
    """Whether a SavedModel has a function that can be called without its layers."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / GRAPH).read_bytes())
    signatures = saved.meta_graphs[0].signature_def.values()
    return any(one.inputs and one.outputs for one in signatures)


def read(folder: pathlib.Path) -> Any:
    """The `keras.Model` in a folder; `ValueError`, one line, where there is none.

    `NoLayers` where the folder is sound.
    """
    import tensorflow as tf

    if not (folder / f"{VARIABLES}.index").is_file():
        raise ValueError(f"{folder}: a SavedModel without {VARIABLES}.index")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if 2 * size > keras_file.free_mb() * 2**20:
        raise ValueError(f"{folder}: {size / 2**30:.1f} GB do not fit into the free memory")
    nodes = _objects(folder)
    described = {n: m for n, m in _described(folder, nodes) if m.get("config")}
    if 0 not in described:
        raise NoLayers(
            f"{folder}: a SavedModel without the layers of a Keras network (Keras 3's export "
            "leaves them out); save it as .keras"
        )
    try:
        reader = tf.train.load_checkpoint(str(folder / VARIABLES))
        keys = _keys(nodes, reader)
        stored = sum(int(np.prod(reader.get_variable_to_shape_map()[key])) for key in keys.values())
    except Exception as error:  # whatever a damaged checkpoint makes TensorFlow raise
        raise ValueError(
            f"{folder}: its variables cannot be read: {keras_file.cause(error)}"
        ) from error
    root = described[0]
    text = keras2_config.json.dumps({"class_name": root["class_name"], "config": root["config"]})
    try:
        model = keras2_config.built(keras2_config.parsed(text, str(folder)), stored, str(folder))
    except ValueError as error:
        raise NoLayers(str(error)) from error
    _fill(model, 0, nodes, described, lambda node: reader.get_tensor(keys[node]), folder)
    return model


def _objects(folder: pathlib.Path) -> Any:
    """The nodes of the tree of objects that was saved."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / GRAPH).read_bytes())
        nodes = saved.meta_graphs[0].object_graph_def.nodes
    except Exception as error:
        raise ValueError(f"{folder}: its {GRAPH} cannot be read: {error}") from error
    if not len(nodes):
        raise ValueError(f"{folder}: a SavedModel of TensorFlow 1, without objects")
    return nodes


def _described(folder: pathlib.Path, nodes: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, metadata) of every node that Keras says something of."""
    if (folder / METADATA).is_file():
        from tensorflow.python.keras.protobuf import saved_metadata_pb2

        saved = saved_metadata_pb2.SavedMetadata()
        try:
            saved.ParseFromString((folder / METADATA).read_bytes())
        except Exception as error:
            raise ValueError(f"{folder}: its {METADATA} cannot be read: {error}") from error
        texts = [(node.node_id, node.metadata) for node in saved.nodes]
    else:
        texts = [(n, node.user_object.metadata) for n, node in enumerate(nodes)]
    for number, text in texts:
        if not text:
            continue
        try:
            found = keras2_config.json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{folder}: its description of layers is damaged: {error}") from None
        if isinstance(found, dict):
            yield number, found


def _keys(nodes: Any, reader: Any) -> dict[int, str]:
    """Number of a variable's node -> its name in the checkpoint.

    The checkpoint has a tree of its own: both are walked side by side.
    """
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    found, met, open_pairs = {}, {0}, [(0, 0)]
    while open_pairs:
        ours, theirs = open_pairs.pop()
        for attribute in graph.nodes[theirs].attributes:
            if attribute.name == VALUE:
                found[ours] = attribute.checkpoint_key
        others = {child.local_name: child.node_id for child in graph.nodes[theirs].children}
        for child in nodes[ours].children:
            if child.local_name in others and child.node_id not in met:
                met.add(child.node_id)
                open_pairs.append((child.node_id, others[child.local_name]))
    return found


def _fill(
    layer: Any,
    number: int,
    nodes: Any,
    described: dict[int, dict[str, Any]],
    value: Callable[[int], np.ndarray],
    folder: pathlib.Path,
) -> None:
    """Sets the weights of a layer, or of all layers of a network, from those of a node."""
    children = {child.local_name: child.node_id for child in nodes[number].children}
    if hasattr(layer, "layers") and "layer-0" in children:
        named = {
            keras2_operations.named(described[node]["name"]): node
            for node in children.values()
            if isinstance(described.get(node, {}).get("name"), str)
        }
        for part in layer.layers:
            if part.weights and part.name not in named:
                raise ValueError(f"{folder}: no variables of layer {part.name!r}")
            if part.weights:
                _fill(part, named[part.name], nodes, described, value, folder)
        return
    variables = nodes[children["variables"]].children if "variables" in children else []
    expected = layer.trainable_weights + layer.non_trainable_weights  # the order of Keras 2
    try:
        found = [value(child.node_id) for child in variables]
    except Exception as error:
        raise ValueError(
            f"{folder}: variables of layer {layer.name!r} cannot be read: {keras_file.cause(error)}"
        ) from error
    shapes = [tuple(one.shape) for one in found], [tuple(one.shape) for one in expected]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{folder}: layer {layer.name!r} has variables {shapes[0]}; expected {shapes[1]}"
        )
    for weight, array in zip(expected, found, strict=True):
        weight.assign(array)

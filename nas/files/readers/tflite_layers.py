"""The layers of a `.tflite` file as a Keras model: its float constants, and what runs its graph."""

import base64
import functools
from typing import Any

import keras
import numpy as np

from latency.tflite import convert, examples
from nas.files.writers.tflite.editable_file import FLOAT32, File, shape
from nas.files.writers.tflite.find_weights import Place, named

_LOADED = 2  # files that stay loaded: before and after


@keras.saving.register_keras_serializable("nas")
class Constant(keras.layers.Layer):
    """A float constant of a graph, given whatever it is called on.

    axes: of a kernel its kind, output axis and input axes, as `kernels` has them; else None.
    """

    def __init__(self, size: Any, axes: Any = None, **options: Any):
        super().__init__(**options)
        self.size, self.axes = tuple(size), axes

    def build(self, *_: Any) -> None:
        """The weight."""
        self.value = self.add_weight(shape=self.size, initializer="zeros", name="value")

    def kernels(self) -> dict[str, tuple[str, int, tuple[int, ...]]]:
        """The weight, where it multiplies activations."""
        if self.axes is None:
            return {}
        kind, output, inputs = self.axes
        return {"value": (kind, output, tuple(inputs))}

    def call(self, anything: Any) -> Any:
        """The constant."""
        return keras.ops.convert_to_tensor(self.value)

    def compute_output_spec(self, anything: Any) -> Any:
        """The constant's shape: it has no batch."""
        return keras.KerasTensor(self.size, "float32")

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return super().get_config() | {"size": self.size, "axes": self.axes}


@keras.saving.register_keras_serializable("nas")
class Output(keras.layers.Layer):
    """An output of a graph, as it is. activation: the function that it came out of, if known."""

    def __init__(self, activation: str | None = None, **options: Any):
        super().__init__(**options)
        self.activation = None if activation is None else keras.activations.get(activation)

    def call(self, value: Any) -> Any:
        """The output."""
        return value

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        name = self.activation and keras.activations.serialize(self.activation)
        return super().get_config() | {"activation": name}


@keras.saving.register_keras_serializable("nas")
class Graph(keras.layers.Layer):
    """The operators of a `.tflite` file, run by LiteRT on inputs and float constants.

    graph: the file, base64; each float constant holds its number in place of its values.
    constants: the names of the layers that give them, by number.
    inputs, outputs: of the file, in the order of the tensors: (what the model calls it, its name in
        the file, shape of an example, type).
    parts: what the user's file has beside its graphs, the fields of `UserParts`.
    """

    def __init__(
        self, graph: str, constants: list, inputs: list, outputs: list, parts: dict, **options: Any
    ):
        super().__init__(**options)
        self.graph, self.constants, self.parts = graph, constants, parts
        self.takes, self.gives = inputs, outputs

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        plain = {"graph": self.graph, "constants": list(self.constants), "parts": dict(self.parts)}
        sides = {"inputs": list(self.takes), "outputs": list(self.gives)}
        return super().get_config() | plain | sides

    def file_names(self) -> dict[str, str]:
        """Inputs and outputs as the model calls them -> their names in the file."""
        return {ours: name for ours, name, *_ in (*self.takes, *self.gives)}

    def call(self, inputs: list[Any], constants: list[Any]) -> list[Any]:
        """The outputs, in the file's order, of any number of examples."""
        names = [name for _, name, *_ in self.takes]

        def run(*arrays: Any) -> list[np.ndarray]:
            given = [np.asarray(array) for array in arrays]
            tflite = with_constants(self.graph, given[len(names) :])
            found = examples.run(_session(tflite), dict(zip(names, given, strict=False)))
            return [found[name] for _, name, *_ in self.gives]

        specs = [(len(inputs[0]), *size) for _, _, size, _ in self.gives]
        kinds = [kind for *_, kind in self.gives]
        return _outside_of_keras(run, [*inputs, *constants], list(zip(specs, kinds, strict=True)))

    def compute_output_spec(self, inputs: Any, constants: Any) -> list[Any]:
        """The shapes and types of the outputs."""
        return [keras.KerasTensor((None, *size), kind) for _, _, size, kind in self.gives]


def graph_of(model: Any) -> Graph | None:
    """The layer that runs the graph of a `.tflite` file; None in a network of Keras."""
    return next((layer for layer in model.layers if isinstance(layer, Graph)), None)


def file_of(model: Any, graph: Graph) -> bytes:
    """The file of a model that was read from one, with the constants that the model has now."""
    layers = [model.get_layer(name) for name in graph.constants]
    return with_constants(graph.graph, [np.asarray(layer.value) for layer in layers])


def places(model: Any, graph: Graph) -> list[Place]:
    """Where a file that was made by `file_of` holds the weights of the model."""
    layers = [model.get_layer(name) for name in graph.constants]
    file, found = File(base64.b64decode(graph.graph)), []
    for number, tensor in _numbered(file):
        layer = layers[number]
        size = shape(file.graphs[tensor[0]].tensors[tensor[1]])
        channel = layer.axes[1] % len(size) if layer.axes else 0
        ratio = np.ones(size[channel] if size else 1, np.float32)
        path, axes = layer.value.path, tuple(range(len(size)))
        found.append(Place(path, *tensor, axes, size, channel, ratio, None, path))
    return named(found)


def with_constants(graph: str, values: list[np.ndarray]) -> bytes:
    """The file of a graph (`Graph.graph`) with values in place of the numbers of its constants."""
    file = File(base64.b64decode(graph))
    buffers: dict[int, int] = {}
    for number, (where, index) in _numbered(file):
        if number not in buffers:
            buffers[number] = file.buffer(np.ascontiguousarray(values[number], np.float32))
        file.graphs[where].tensors[index].buffer = buffers[number]
    return file.pack()


def _numbered(file: File) -> list[tuple[int, tuple[int, int]]]:
    """Of each float constant its number, which it holds, and its graph and index."""
    return [
        (int(file.raw(tensor).view(np.int32)[0]), (graph, index))
        for graph, index, tensor in file.constants()
        if tensor.type == FLOAT32
    ]


@functools.lru_cache(maxsize=_LOADED)
def _session(tflite: bytes) -> convert.Session:
    return convert.Session(tflite)


def _outside_of_keras(run: Any, arrays: list[Any], specs: list[tuple[tuple, str]]) -> list[Any]:
    """What a function of NumPy arrays gives, whatever backend traces the call."""
    if keras.backend.backend() == "jax":
        import jax

        kinds = [jax.ShapeDtypeStruct(size, kind) for size, kind in specs]
        return list(jax.pure_callback(run, kinds, *arrays))
    import tensorflow as tf

    if tf.executing_eagerly():
        return [tf.convert_to_tensor(one) for one in run(*arrays)]
    found = tf.numpy_function(run, arrays, [kind for _, kind in specs])
    made = found if isinstance(found, list) else [found]  # one that is alone comes as it is
    return [
        tf.ensure_shape(one, (None, *size[1:])) for one, (size, _) in zip(made, specs, strict=True)
    ]

"""Leaf layers: what several families share and Keras lacks. Importing this registers them all.

How to add a leaf: one file in this folder, with a `keras.layers.Layer` registered under the package
"nas" (a layer outside the package registers itself under a name of its own). What only the layer
knows is said by methods of it, each of which is optional. They are looked up on its class:

`macs(*input_shapes) -> int`: multiply-adds of one call, of shapes with the batch (1 where it is
    open). Without it, counts list the layer as one that may multiply.
`kernels() -> {name of a weight: (kind, output axis, input axes)}`: the weights that multiply
    activations, the ones that quantization and pruning act on. kind: of `KINDS` in
    compress/rewriting/weights.py; input axes: those that products are summed over. Without it,
    weights whose names end in "kernel" are taken for (..., inputs, outputs).
`channels(graph, node, labels) -> labels of the outputs, or None`: where channels are in the
    weights, which of them leave together, and which stay, said to `graph`, a `ChannelGraph`
    (families/layers/protocol.py). labels: of the channels of each input, along its last axis; node:
    the call in Keras's graph (`input_tensors`, `output_tensors`). Without it, or where it returns
    None, the channels that go in and come out all stay.
`litert(graph, inputs, shape) -> int`: adds the layer's LiteRT operators to `graph`, of the protocol
    `LiteRTGraph`, and returns the output tensor. inputs: numbers of its input tensors, shape: of
    the output. Without it, only the official converter can write the layer.
`batch_factor: float`: samples of the output for each of the input, where that is not 1.
`chooses_outputs: bool`: whether comparisons decide what it gives, so that a little noise may change
    it to something else; files with such layers are compared by their scores alone.
`chooses_units: bool`: whether it chooses hidden units of other layers, as only one layer may.

A subclass that overrides `call` computes something else: of it only methods that it overrides, too,
are used (`macs` is inherited).
"""

import importlib
import pkgutil
from typing import Any


def _public() -> dict[str, Any]:
    """The public classes and functions of all modules of this folder, by name."""
    found = {}
    for entry in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(entry.name)
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == entry.name and not name.startswith("_"):
                found[name] = value
    return found


globals().update(_public())


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

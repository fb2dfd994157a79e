"""The LSTM as one leaf with its state in sight: Keras's keeps a layer, the cell, within a layer.

Hochreiter and Schmidhuber 1997; with a projection of the output: Sak et al., arXiv 1402.1128.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from families.layers.protocol import ChannelGraph, Kernels, Labels

_UNROLLED = 8  # steps: a loop costs more to trace and to run than so few


@keras.saving.register_keras_serializable("nas")
class LSTM(keras.layers.Layer):
    """(batch, steps, width) -> outputs (batch, steps, outputs), last output, last cell.

    Called with two more tensors it goes on from there: last output (batch, outputs) and cell
    (batch, units) of the call before; zeros if absent. `projection` is the size of the outputs,
    0: they are the units. The gates are Keras's: i, f, c, o.

    >>> outputs, output, cell = LSTM(units=16, projection=8)(keras.Input((5, 4)))
    >>> outputs.shape, output.shape, cell.shape
    ((None, 5, 8), (None, 8), (None, 16))
    """

    def __init__(self, units: int, projection: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        self.projection = projection
        self.outputs = projection or units

    def build(self, input_shape: tuple[int, ...], *_: Any) -> None:
        gates = 4 * self.units
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], gates))
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(self.outputs, gates), initializer="orthogonal"
        )
        self.bias = self.add_weight(name="bias", shape=(gates,), initializer=self._forget_little)
        if self.projection:
            self.projection_kernel = self.add_weight(
                name="projection_kernel", shape=(self.units, self.projection)
            )

    def _forget_little(self, shape, dtype=None):
        """A bias of 1 for the forget gate, 0 for others (Jozefowicz et al. 2015)."""
        return ops.convert_to_tensor(np.repeat([0.0, 1.0, 0.0, 0.0], self.units), dtype=dtype)

    def call(self, inputs: Any, output: Any = None, cell: Any = None) -> Any:
        steps = inputs.shape[1]
        if output is None:
            zeros = ops.zeros_like(inputs[:, 0, :1])
            output, cell = (ops.tile(zeros, (1, size)) for size in (self.outputs, self.units))
        gates = ops.matmul(inputs, self.kernel) + self.bias  # of all steps at once

        def step(state, gates):
            output, cell = state
            gates = gates + ops.matmul(output, self.recurrent_kernel)
            enter, keep, new, leave = ops.split(gates, 4, axis=-1)
            cell = ops.sigmoid(keep) * cell + ops.sigmoid(enter) * ops.tanh(new)
            output = ops.sigmoid(leave) * ops.tanh(cell)
            if self.projection:
                output = ops.matmul(output, self.projection_kernel)
            return (output, cell), (output, cell)  # Keras on TensorFlow: outputs are as states

        if steps > _UNROLLED:
            (output, cell), (outputs, _) = ops.scan(
                step, (output, cell), ops.transpose(gates, (1, 0, 2))
            )
            return ops.transpose(outputs, (1, 0, 2)), output, cell
        outputs = []
        for number in range(steps):
            (output, cell), _ = step((output, cell), gates[:, number])
            outputs.append(output)
        return ops.stack(outputs, axis=1), output, cell

    def compute_output_spec(self, inputs: Any, output: Any = None, cell: Any = None) -> Any:
        batch, steps, _ = inputs.shape
        shapes = ((batch, steps, self.outputs), (batch, self.outputs), (batch, self.units))
        return tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)

    def macs(self, input_shape: tuple[int, ...], *_: Any) -> int:
        batch, steps, width = input_shape
        each = 4 * self.units * (width + self.outputs) + self.units * self.projection
        return batch * steps * each

    def kernels(self) -> Kernels:
        names = ["kernel", "recurrent_kernel"]
        if self.projection:
            names.append("projection_kernel")
        return dict.fromkeys(names, ("recurrent", 1, (0,)))

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """Outputs and, where they are not the outputs, cells, which nobody else sees."""
        outputs = cells = graph.fresh(self.units, self.name)
        if self.projection:
            graph.keep(cells, f"{self.name}: cells that no other layer sees")
            outputs = graph.fresh(self.projection, self.name)
            graph.slot(self, "projection_kernel", 0, cells, "in")
            graph.slot(self, "projection_kernel", 1, outputs, "out")
            graph.size(self, projection=lambda count: count(outputs))
        for one, state in zip(labels[1:], (outputs, cells), strict=False):
            graph.tie(one, state)
        gates = np.tile(cells, 4)
        graph.slot(self, "kernel", 0, labels[0], "in", node.input_tensors[0])
        graph.slot(self, "kernel", 1, gates, "out")
        graph.slot(self, "recurrent_kernel", 0, outputs, "in", node.output_tensors[0])
        graph.slot(self, "recurrent_kernel", 1, gates, "out")
        graph.slot(self, "bias", -1, gates, "other")
        graph.size(self, units=lambda count: count(cells))
        return [outputs, outputs, cells]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.units, "projection": self.projection}

"""The layers of a supernet: each owns the weights of all that may be chosen in its place.

A choice is an integer matrix, a row for each block; it is a variable of the network and so enters
the graph as a number. Normalization is by the statistics of the batch, in training and in judging:
averages over many networks would be those of none (Yu and Huang, arXiv 1903.05134).
"""

import functools
from typing import Any

import keras
from keras import ops

# What a row says: which operations are on (1 or 0), and sizes. SQUEEZE is the divisor of the input
# channels that gives the units of squeeze-and-excitation, 0 for none; SKIP is an index of SKIPS,
# ACTIVATION and OUTSIDE (that of stem and head, the same in all rows) are indices of ACTIVATIONS.
OPERATIONS = ("conv", "depthwise", "mbconv", "fused")
KERNEL, EXPAND, FILTERS, REPEATS, SQUEEZE, SKIP, ACTIVATION, OUTSIDE = range(
    len(OPERATIONS), len(OPERATIONS) + 8
)
COLUMNS = OUTSIDE + 1
SKIPS = ("none", "identity", "pool")
ACTIVATIONS = ("relu", "hard_swish", "swish")
EPSILON = 1e-3
STEEP = 1e6  # a slope that makes of a hard sigmoid the step of ReLU


def part() -> Any:
    """The functions that take the chosen part of weights, on this backend."""
    if keras.config.backend() == "tensorflow":
        from nas.supernets import slices

        return slices
    from nas.supernets import masks

    return masks


@keras.saving.register_keras_serializable("nas")
class Choice(keras.layers.Layer):
    """Holds the choice (blocks, columns), and gives it whatever it is called with."""

    def __init__(self, blocks: Any, columns: Any = COLUMNS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = (blocks, columns)

    def build(self, shape: Any) -> None:
        self.choice = self.add_weight(
            name="choice", shape=self.shape, dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, inputs: Any) -> Any:
        return ops.convert_to_tensor(self.choice)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(self.shape, "int32")

    def get_config(self) -> Any:
        return super().get_config() | {"blocks": self.shape[0], "columns": self.shape[1]}


class Shared(keras.layers.Layer):
    """A leaf with kernels, norms and gates that are used in part."""

    def _kernel(self, name: str, rows: int, inputs: int, outputs: int) -> None:
        self._add(f"{name}_kernel", (rows, rows, inputs, outputs), initializer())

    def _norm(self, name: str, channels: int) -> None:
        self._add(f"{name}_gamma", (channels,), "ones")
        self._add(f"{name}_beta", (channels,), "zeros")

    def _gate(self, name: str, channels: int, units: int) -> None:
        self._add(f"{name}_reduce_kernel", (1, 1, channels, units), "glorot_uniform")
        self._add(f"{name}_reduce_bias", (units,), "zeros")
        self._add(f"{name}_expand_kernel", (1, 1, units, channels), "glorot_uniform")
        self._add(f"{name}_expand_bias", (channels,), "zeros")

    def _add(self, name: str, shape: Any, initial: Any) -> None:
        self.named[name] = self.add_weight(name=name, shape=shape, initializer=initial)

    @functools.cached_property
    def named(self) -> dict:
        return {}

    def _convolved(self, x: Any, name: str, *, stride: int = 1, **chosen: Any) -> Any:
        return part().convolved(x, part().narrow(self.named[f"{name}_kernel"], **chosen), stride)

    def _normalized(self, x: Any, name: str, channels: Any) -> Any:
        gamma, beta = (part().first(self.named[f"{name}_{w}"], channels) for w in ("gamma", "beta"))
        return part().normalized(x, gamma, beta, EPSILON)

    def _activated(self, x: Any, kind: Any) -> Any:
        """The chosen one of `self.activations`: x times a gate, without a condition."""
        if self.activations == ("relu",):
            return ops.relu(x)
        # A condition within that of an operation would take TensorFlow twice as long to trace.
        slope = ops.where(kind == ACTIVATIONS.index("relu"), STEEP, 1 / 6)
        gate = ops.clip(x * ops.cast(slope, x.dtype) + 0.5, 0, 1)
        if "swish" in self.activations:
            gate = ops.where(kind == ACTIVATIONS.index("swish"), ops.sigmoid(x), gate)
        return x * gate

    def _excited(self, x: Any, name: str, channels: Any, units: Any, on: Any, kind: Any) -> Any:
        """Squeeze-and-excitation (arXiv 1709.01507) where `on` is 1; a gate of 1 where it is 0."""

        def dense(x: Any, step: str, inputs: Any, outputs: Any) -> Any:
            x = self._convolved(x, f"{name}_{step}", inputs=inputs, outputs=outputs)
            return x + part().first(self.named[f"{name}_{step}_bias"], outputs)

        gate = ops.mean(x, (1, 2), keepdims=True)
        gate = self._activated(dense(gate, "reduce", channels, units), kind)
        return x * (1 - on * (1 - ops.sigmoid(dense(gate, "expand", units, channels))))


@keras.saving.register_keras_serializable("nas")
class SharedConv(Shared):
    """Convolution, norm and activation of the stem, or of the head.

    Called with images and the choice; `narrows`: only the filters of the last block come in.
    """

    def __init__(
        self,
        filters: Any,
        kernel: Any,
        activations: Any,
        stride: Any = 1,
        narrows: Any = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters, self.kernel, self.stride = filters, kernel, stride
        self.activations, self.narrows = tuple(activations), narrows

    def build(self, inputs_shape: Any, choice_shape: Any) -> None:
        self._kernel("conv", self.kernel, inputs_shape[-1], self.filters)
        self._norm("norm", self.filters)

    def call(self, inputs: Any, choice: Any) -> Any:
        channels = choice[-1, FILTERS] if self.narrows else None
        x = self._convolved(inputs, "conv", stride=self.stride, inputs=channels)
        return self._activated(self._normalized(x, "norm", None), choice[0, OUTSIDE])

    def compute_output_spec(self, inputs: Any, choice: Any) -> Any:
        return _spec(inputs, self.stride, self.filters)

    def get_config(self) -> Any:
        names = ("filters", "kernel", "activations", "stride", "narrows")
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("nas")
class SharedLayer(Shared):
    """One layer of a block: the sum of the operations that are on, and the shortcut.

    block, repeat: its place, from 0; all but the first layer of a block may be left out. The
    others are the most there is to choose from: `operations`, of `OPERATIONS`, `kernel`, `expand`,
    `filters`, `squeeze` (the least divisor, 0 for none), `skips` of `SKIPS`, `activations`.
    """

    def __init__(
        self,
        block: Any,
        repeat: Any,
        stride: Any,
        operations: Any,
        kernel: Any,
        expand: Any,
        filters: Any,
        squeeze: Any,
        skips: Any,
        activations: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.block, self.repeat, self.stride = block, repeat, stride
        self.operations, self.skips = tuple(operations), tuple(skips)
        self.activations = tuple(activations)
        self.kernel, self.expand, self.filters, self.squeeze = kernel, expand, filters, squeeze

    def build(self, inputs_shape: Any, choice_shape: Any) -> None:
        inputs, outputs = self.inputs, filters = inputs_shape[-1], self.filters
        units = max(1, inputs // self.squeeze) if self.squeeze else 0
        wide = inputs * self.expand
        hidden = {"conv": filters, "depthwise": inputs, "mbconv": wide, "fused": wide}
        for name in self.operations:
            if name in ("conv", "fused"):
                self._kernel(f"{name}_conv", self.kernel, inputs, hidden[name])
                self._norm(f"{name}_conv_norm", hidden[name])
            if name == "mbconv":
                self._kernel("mbconv_expand", 1, inputs, hidden[name])
                self._norm("mbconv_expand_norm", hidden[name])
            if name in ("depthwise", "mbconv"):
                self._kernel(f"{name}_depthwise", self.kernel, hidden[name], 1)
                self._norm(f"{name}_depthwise_norm", hidden[name])
            if name != "conv":
                self._kernel(f"{name}_project", 1, hidden[name], outputs)
                self._norm(f"{name}_project_norm", outputs)
            if units:
                self._gate(f"{name}_squeeze", hidden[name], units)
        if self._may_reshape():
            self._kernel("shortcut", 1, inputs, outputs)
            self._norm("shortcut_norm", outputs)

    def _may_reshape(self) -> bool:
        return "pool" in self.skips and self.repeat == 0

    def call(self, inputs: Any, choice: Any) -> Any:
        # No condition within another: each level takes TensorFlow as long again to trace.
        row = choice[self.block]
        channels = row[FILTERS] if self.repeat else None
        if self.repeat == 0 and self.block:
            channels = choice[self.block - 1, FILTERS]
        inputs = part().widened(inputs, self.filters) if self.repeat else inputs
        there = row[REPEATS] > self.repeat
        x = None
        for name in self.operations:
            on = ops.logical_and(there, row[OPERATIONS.index(name)] > 0)
            run = functools.partial(getattr(self, f"_{name}"), inputs, row, channels)
            if x is None:
                off = functools.partial(
                    part().nothing, inputs, self.stride, row[FILTERS], self.filters
                )
                x = ops.cond(on, run, off)
            else:
                x = ops.cond(on, lambda x=x, run=run: x + run(), lambda x=x: x)
        return self._with_shortcut(x, inputs, row, channels, there)

    def _conv(self, inputs: Any, row: Any, channels: Any) -> Any:
        x = self._full(inputs, "conv", row, channels, row[FILTERS])
        return self._squeezed(x, "conv", row, channels, row[FILTERS])

    def _fused(self, inputs: Any, row: Any, channels: Any) -> Any:
        hidden = self._hidden(row, channels)
        x = self._full(inputs, "fused", row, channels, hidden)
        return self._projected(x, "fused", row, channels, hidden)

    def _depthwise(self, inputs: Any, row: Any, channels: Any) -> Any:
        return self._separable(inputs, "depthwise", row, channels, channels)

    def _mbconv(self, inputs: Any, row: Any, channels: Any) -> Any:
        hidden = self._hidden(row, channels)
        x = self._convolved(inputs, "mbconv_expand", inputs=channels, outputs=hidden)
        x = self._activated(self._normalized(x, "mbconv_expand_norm", hidden), row[ACTIVATION])
        return self._separable(x, "mbconv", row, channels, hidden)

    def _hidden(self, row: Any, channels: Any) -> Any:
        """Channels between expansion and projection."""
        return self._known(channels) * row[EXPAND]

    def _known(self, channels: Any) -> Any:
        """Channels that come in: all there are, where none are chosen."""
        return self.inputs if channels is None else channels

    def _full(self, x: Any, name: str, row: Any, channels: Any, outputs: Any) -> Any:
        """Full convolution, norm and activation."""
        x = self._convolved(
            x,
            f"{name}_conv",
            stride=self.stride,
            window=row[KERNEL],
            inputs=channels,
            outputs=outputs,
        )
        return self._activated(self._normalized(x, f"{name}_conv_norm", outputs), row[ACTIVATION])

    def _separable(self, x: Any, name: str, row: Any, channels: Any, hidden: Any) -> Any:
        """Depthwise convolution of `hidden` channels, and projection."""
        kernel = part().narrow(
            self.named[f"{name}_depthwise_kernel"], window=row[KERNEL], inputs=hidden
        )
        x = self._normalized(
            part().depthwise(x, kernel, self.stride), f"{name}_depthwise_norm", hidden
        )
        return self._projected(self._activated(x, row[ACTIVATION]), name, row, channels, hidden)

    def _projected(self, x: Any, name: str, row: Any, channels: Any, hidden: Any) -> Any:
        """Squeeze-and-excitation, and the linear 1x1 convolution."""
        x = self._squeezed(x, name, row, channels, hidden)
        x = self._convolved(x, f"{name}_project", inputs=hidden, outputs=row[FILTERS])
        return self._normalized(x, f"{name}_project_norm", row[FILTERS])

    def _squeezed(self, x: Any, name: str, row: Any, channels: Any, hidden: Any) -> Any:
        if not self.squeeze:
            return x
        divisor = ops.where(row[SQUEEZE] > 0, row[SQUEEZE], self.squeeze)
        units = ops.maximum(self._known(channels) // divisor, 1)
        on = ops.cast(row[SQUEEZE] > 0, x.dtype)
        return self._excited(x, f"{name}_squeeze", hidden, units, on, row[ACTIVATION])

    def _with_shortcut(self, x: Any, inputs: Any, row: Any, channels: Any, there: Any) -> Any:
        """Adds the input; a layer that is not there has only that."""
        none, identity, pool = range(len(SKIPS))
        kind, same = row[SKIP], True
        if self.repeat:
            kind = ops.where(there, kind, identity)
        else:
            same = ops.equal(self._known(channels), row[FILTERS])

        def pooled() -> Any:
            return ops.average_pool(inputs, 3, self.stride, padding="same")

        def projected() -> Any:
            y = self._convolved(pooled(), "shortcut", inputs=channels, outputs=row[FILTERS])
            return x + self._normalized(y, "shortcut_norm", row[FILTERS])

        branches = [lambda: x, lambda: x, lambda: x]
        if self.repeat or (self.stride == 1 and "identity" in self.skips):
            branches[identity] = lambda: x + part().widened(inputs, self.filters)
        if "pool" in self.skips:
            branches[pool] = lambda: x + part().widened(pooled(), self.filters)
        if same is not True:
            other = none
            if self._may_reshape():
                branches.append(projected)
                other = ops.where(ops.equal(kind, pool), len(SKIPS), none)
            kind = ops.where(same, kind, other)
        return ops.switch(kind, branches)

    def compute_output_spec(self, inputs: Any, choice: Any) -> Any:
        return _spec(inputs, self.stride, self.filters)

    def get_config(self) -> Any:
        names = "block repeat stride operations kernel expand filters squeeze skips activations"
        return super().get_config() | {name: getattr(self, name) for name in names.split()}


def initializer() -> Any:
    """As in families/blocks/convolution.py: normal, variance 2 / fan_out."""
    return keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )


def _spec(inputs: Any, stride: int, filters: int) -> Any:
    batch, height, width, _ = inputs.shape
    shape = (batch, -(-height // stride), -(-width // stride), filters)
    return keras.KerasTensor(shape, inputs.dtype)

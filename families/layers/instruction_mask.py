"""Feed-forward layers of which an input uses some blocks of hidden units, predicted beforehand.

Hou et al., "Instruction-Following Pruning", arXiv 2501.02086. Where the batch is 1, what is not
used is not computed either: an exported file has a branch for each block.
"""

from typing import Any

import keras
import numpy as np
from keras import ops


def soft_top_k(scores: Any, k: int, temperature: float = 1.0, iterations: int = 30) -> Any:
    """sigmoid(scores / temperature - tau) over the last axis, with the tau that makes the sum k.

    tau is found by bisection; its gradient is that of the implicit function.

    >>> round(float(ops.sum(soft_top_k(ops.convert_to_tensor([0.1, 3.0, 2.0]), 2))), 3)
    2.0
    """
    scores = scores / temperature
    size = scores.shape[-1]
    if not 0 < k < size:
        raise ValueError(f"k={k}; expected 1 to {size - 1}")
    fixed = ops.stop_gradient(scores)
    even = float(np.log(k / (size - k)))  # where all scores are equal, tau is their logit less this
    bounds = (
        ops.min(fixed, -1, keepdims=True) - even,
        ops.max(fixed, -1, keepdims=True) - even,
    )

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        above = ops.sum(ops.sigmoid(fixed - middle), -1, keepdims=True) > k
        return ops.where(above, middle, low), ops.where(above, high, middle)

    low, high = ops.fori_loop(0, iterations, halve, bounds)
    tau = ops.stop_gradient((low + high) / 2)
    # A step of Newton: hardly changes tau, but its gradient is d tau / d scores.
    soft = ops.sigmoid(scores - tau)
    slope = ops.stop_gradient(ops.sum(soft * (1 - soft), -1, keepdims=True))
    tau = tau + (ops.sum(soft, -1, keepdims=True) - k) / ops.maximum(slope, 1e-6)
    return ops.sigmoid(scores - tau)


def hard_top_k(scores: Any, k: int) -> Any:
    """1 for the k largest of the last axis, 0 for the others: of equal ones the first are taken.

    >>> ops.convert_to_numpy(hard_top_k(ops.convert_to_tensor([1.0, 3.0, 2.0]), 2)).tolist()
    [0.0, 1.0, 1.0]
    """
    chosen = ops.top_k(scores, k)[1]
    return ops.sum(ops.one_hot(chosen, scores.shape[-1], dtype=scores.dtype), -2)


@keras.saving.register_keras_serializable("nas")
class MaskPredictor(keras.layers.Layer):
    """Features (batch, ..., channels) -> masks (batch, count, blocks): `active` ones each, else 0.

    The mean over what lies between the first and the last axis (of `prompt` > 0 only the first
    places) is normalized and goes through two layers: `hidden` units, and a score for each block of
    each of `count` feed-forward layers. In training the gradient is that of `soft_top_k`, and the
    variable `blend` goes from 0, where all blocks are used, to 1.
    """

    chooses_units = True

    def __init__(
        self,
        count: int,
        blocks: int,
        active: int,
        hidden: int = 128,
        prompt: int = 0,
        temperature: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.count, self.blocks, self.active = count, blocks, active
        self.hidden, self.prompt, self.temperature, self.seed = hidden, prompt, temperature, seed

    def build(self, shape: tuple[int, ...]) -> None:
        outputs = self.count * self.blocks
        glorot = keras.initializers.GlorotUniform
        # Not called kernels: they stay as they are where kernels are quantized or pruned.
        self.inner = self.add_weight(
            shape=(shape[-1], self.hidden), initializer=glorot(self.seed), name="inner"
        )
        self.inner_bias = self.add_weight(
            shape=(self.hidden,), initializer="zeros", name="inner_bias"
        )
        self.scores = self.add_weight(
            shape=(self.hidden, outputs), initializer=glorot(self.seed + 1), name="scores"
        )
        self.scores_bias = self.add_weight(
            shape=(outputs,), initializer="zeros", name="scores_bias"
        )
        self.blend = self.add_weight(
            shape=(), initializer="ones", trainable=False, autocast=False, name="blend"
        )

    def call(self, features: Any, training: bool | None = None) -> Any:
        scores = self.score(features)
        hard = hard_top_k(scores, self.active)
        if not training or self.active == self.blocks:
            return hard
        soft = soft_top_k(scores, self.active, self.temperature)
        mask = soft + ops.stop_gradient(hard - soft)
        return 1 + ops.cast(self.blend, mask.dtype) * (mask - 1)

    def score(self, features: Any) -> Any:
        """Scores (batch, count, blocks)."""
        if self.prompt and len(features.shape) > 2:
            features = features[:, : self.prompt]
        x = ops.mean(features, tuple(range(1, len(features.shape) - 1)))
        x = x - ops.mean(x, -1, keepdims=True)
        x = x * ops.rsqrt(ops.mean(ops.square(x), -1, keepdims=True) + 1e-6)
        x = ops.leaky_relu(ops.matmul(x, self.inner) + self.inner_bias)
        x = ops.matmul(x, self.scores) + self.scores_bias
        return ops.reshape(x, (-1, self.count, self.blocks))

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        return (shape[0], self.count, self.blocks)

    def macs(self, shape: tuple[int, ...]) -> int:
        return shape[0] * self.hidden * (shape[-1] + self.count * self.blocks)

    def get_config(self) -> dict[str, Any]:
        names = ("count", "blocks", "active", "hidden", "prompt", "temperature", "seed")
        return super().get_config() | {name: getattr(self, name) for name in names}


def unit_blocks(hidden: int, blocks: int) -> np.ndarray:
    """The block of each hidden unit: consecutive units, as equal in number as they can be.

    >>> unit_blocks(5, 2).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.repeat(np.arange(blocks), [len(p) for p in np.array_split(np.arange(hidden), blocks)])


@keras.saving.register_keras_serializable("nas")
class MaskedFeedForward(keras.layers.Layer):
    """(batch, ..., dim), masks (batch, count, blocks) -> (batch, ..., outputs), by masks[:, index].

    output_activation((activation(x expand + bias) * ...) * mask, project + bias): as many factors
    as there are `activations` (a gated layer has two). `hidden` units are cut into blocks.

    `names`: those of the layers that this stands for, factors first, to be used again when it is
    cut down (compress/instruction_pruning.py).
    Of a batch that is known to be 1 only blocks whose mask is 1 are computed.
    """

    def __init__(
        self,
        hidden: int,
        outputs: int,
        blocks: int,
        index: int = 0,
        activations: Any = ("relu",),
        biases: tuple[bool, ...] = (True,),
        project_bias: bool = True,
        output_activation: Any = "linear",
        names: tuple[str, ...] = ("expand", "project"),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.hidden, self.outputs, self.blocks, self.index = hidden, outputs, blocks, index
        self.activations = [keras.activations.get(one) for one in activations]
        self.biases, self.project_bias = tuple(biases), project_bias
        self.output_activation = keras.activations.get(output_activation)
        self.names = tuple(names)

    def build(self, shape: tuple[int, ...], *_: Any) -> None:
        self.factors = []
        for number, biased in enumerate(self.biases, 1):
            name = "expand" if number == 1 else f"expand_{number}"
            kernel = self.add_weight(shape=(shape[-1], self.hidden), name=f"{name}_kernel")
            bias = None
            if biased:
                bias = self.add_weight(
                    shape=(self.hidden,), initializer="zeros", name=f"{name}_bias"
                )
            self.factors.append((kernel, bias))
        self.project = self.add_weight(shape=(self.hidden, self.outputs), name="project_kernel")
        self.bias = None
        if self.project_bias:
            self.bias = self.add_weight(
                shape=(self.outputs,), initializer="zeros", name="project_bias"
            )

    def call(self, inputs: Any, masks: Any, training: bool | None = None) -> Any:
        mask = masks[:, self.index]
        if inputs.shape[0] == 1 and not training:
            x = self._branches(inputs, mask)
        else:
            block = unit_blocks(self.hidden, self.blocks)
            units = ops.take(mask, block, axis=-1)
            units = ops.reshape(units, (-1, *[1] * (len(inputs.shape) - 2), self.hidden))
            x = ops.matmul(self._units(inputs, self.factors) * units, self.project)
        x = x if self.bias is None else x + self.bias
        return self.output_activation(x)

    def _units(self, inputs: Any, factors: list) -> Any:
        x = None
        for (kernel, bias), activation in zip(factors, self.activations, strict=True):
            factor = ops.matmul(inputs, kernel)
            factor = activation(factor if bias is None else factor + bias)
            x = factor if x is None else x * factor
        return x

    def _branches(self, inputs, mask):
        """The sum of the blocks that are used, each a branch with constants of its own.

        They are cut before the branch, where an exporter (latency/tflite/branch_constants.py) can
        do it once.
        """
        owner = unit_blocks(self.hidden, self.blocks)
        total = None
        for block in range(self.blocks):
            first, last = (int(n) for n in np.searchsorted(owner, [block, block + 1]))
            factors = [
                (kernel[:, first:last], None if bias is None else bias[first:last])
                for kernel, bias in self.factors
            ]
            project = self.project[first:last]

            def used(factors=factors, project=project):
                return ops.matmul(self._units(inputs, factors), project)

            def unused():
                return ops.zeros((*inputs.shape[:-1], self.outputs), inputs.dtype)

            part = ops.cond(mask[0, block] > 0.5, used, unused)
            total = part if total is None else total + part
        return total

    def compute_output_shape(self, shape: tuple[int, ...], *_: Any) -> tuple[int | None, ...]:
        return (*shape[:-1], self.outputs)

    def compute_output_spec(self, inputs: Any, masks: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), self.compute_dtype)

    def macs(self, shape: tuple[int, ...], masks_shape: tuple[int, ...]) -> int:
        """Of all blocks: how many are used, the predictor decides."""
        rows = int(np.prod(shape[:-1]))
        return rows * self.hidden * (len(self.biases) * shape[-1] + self.outputs)

    def get_config(self) -> dict[str, Any]:
        names = ("hidden", "outputs", "blocks", "index", "biases", "project_bias", "names")
        return (
            super().get_config()
            | {name: getattr(self, name) for name in names}
            | {
                "activations": [keras.activations.serialize(one) for one in self.activations],
                "output_activation": keras.activations.serialize(self.output_activation),
            }
        )

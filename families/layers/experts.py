"""A sparse mixture of experts as one leaf: a router and the weights of all its experts.

Riquelme et al., "Scaling Vision with Sparse Mixture of Experts", arXiv 2106.05974 (V-MoE; the
losses are those of Shazeer et al., arXiv 1701.06538); whole images routed: Daxberger et al.,
"Mobile V-MoEs", arXiv 2309.04354; gated experts with weights that sum to 1: arXiv 2401.04088.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from families.layers.activations import gelu
from families.layers.protocol import ChannelGraph, Kernels, Labels

ROUTINGS = ("token", "image")
OPTIONS = (
    *("count", "hidden", "top_k", "activation", "gated", "use_bias", "renormalize", "capacity"),
    *("batch_priority", "routing", "noise", "importance_weight", "load_weight"),
)
# Three forms of one function, by measured time (`tools/bench_vmoe.py forms`). To train, 64 x 50
# tokens, 2 of 10 experts of 64 x 128, 2 cores: a dense MLP of equal multiply-adds takes 10 ms,
# `_grouped` 13 (in blocks of 256 rows 20), `_everywhere` 40. LiteRT copies a kernel that is not a
# constant before it multiplies: 197 tokens, 2 of 10 experts of 192 x 768 take 11.7 ms `_everywhere`
# and 11.8 `_grouped`, as a whole image 2.4 ms `_gathered`; 1 token, 256 x 768: 2 of 8 experts
# 157 us `_everywhere` and 245 `_gathered`, 2 of 32 experts 1824 and 243.
BLOCK = 64
FEW = 256  # units up to here: `_everywhere`
GATHER = 6  # experts a unit would have to choose from, per chosen one, to make `_gathered` faster


@keras.saving.register_keras_serializable("nas")
class Experts(keras.layers.Layer):
    """Each token (routing "token") or whole example ("image") goes through `top_k` of `count` MLPs.

    Called with (batch, tokens, dim), gives (batch, tokens, dim): the sum over the chosen experts of
    weight * (activation(x expand + bias) project + bias), where `gated` experts have
    activation(x gate) * (x expand) inside. Weights are the softmax of the router's logits, divided
    by the sum of the chosen ones if `renormalize`. The router is a matrix (dim, count), in float32,
    that sees the token, or the mean of the tokens. Called with a second input, the `logits`
    (batch, tokens, count) or for images (batch, count), the layer has no router of its own.

    activation: a Keras name; "gelu" is the tanh form (`families.layers.gelu`).
    noise: in training the logits get normal noise of deviation noise / count; V-MoE has 1.
    capacity: an expert takes round(top_k * units * capacity / count) of the units (tokens or
        images) of the batch; what comes later goes without it. First choices come first, then in
        order of the batch, or with `batch_priority` of the largest weight. None: nothing is left
        out, and outputs do not depend on the other examples.
    importance_weight, load_weight: of the losses that keep the experts busy, added in training.

    >>> layer = Experts(count=4, hidden=8, top_k=2)
    >>> layer(keras.Input((5, 6))).shape, layer.macs((1, 5, 6))
    ((None, 5, 6), 1080)
    """

    def __init__(
        self,
        count: int,
        hidden: int,
        top_k: int,
        activation: str = "gelu",
        gated: bool = False,
        use_bias: bool = True,
        renormalize: bool = False,
        capacity: float | None = None,
        batch_priority: bool = False,
        routing: str = "token",
        noise: float = 0.0,
        importance_weight: float = 0.0,
        load_weight: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not 1 <= top_k <= count:
            raise ValueError(f"top_k={top_k}; expected 1 to {count}, as many as there are experts")
        if routing not in ROUTINGS:
            raise ValueError(f"routing={routing!r}; expected one of {ROUTINGS}")
        if load_weight and not noise:
            raise ValueError("load_weight needs noise > 0: the load is a probability under it")
        if capacity is not None and capacity <= 0:
            raise ValueError(f"capacity={capacity}; expected more than 0, or None for no limit")
        self.count, self.hidden, self.top_k = count, hidden, top_k
        self.activation, self.gated, self.use_bias = activation, gated, use_bias
        self.renormalize, self.routing = renormalize, routing
        self.capacity, self.batch_priority = capacity, batch_priority
        self.noise = noise
        self.importance_weight, self.load_weight = importance_weight, load_weight
        self._activate = gelu if activation == "gelu" else keras.activations.get(activation)
        self._random = keras.random.SeedGenerator() if noise else None

    def build(
        self, inputs_shape: tuple[int, ...], logits_shape: tuple[int, ...] | None = None
    ) -> None:
        dim, count, hidden = inputs_shape[-1], self.count, self.hidden
        if logits_shape is not None and logits_shape[-1] != count:
            raise ValueError(f"{self.name}: logits {logits_shape} for {count} experts")
        self.router = None
        if logits_shape is None:
            self.router = self.add_weight(
                shape=(dim, count), initializer="lecun_normal", autocast=False, name="router"
            )
        self.gate = self._kernel(dim, hidden, "gate") if self.gated else None
        self.expand = self._kernel(dim, hidden, "expand")
        self.project = self._kernel(hidden, dim, "project")
        self.expand_bias = self.project_bias = None
        if self.use_bias:
            self.expand_bias = self.add_weight(
                shape=(count, hidden), initializer="zeros", name="expand_bias"
            )
            self.project_bias = self.add_weight(
                shape=(count, dim), initializer="zeros", name="project_bias"
            )

    def _kernel(self, inputs, outputs, name):
        # Glorot for each expert: Keras takes the first axis for a window and divides by its size.
        initializer = keras.initializers.VarianceScaling(self.count, "fan_avg", "uniform")
        return self.add_weight(
            shape=(self.count, inputs, outputs), initializer=initializer, name=name
        )

    def call(self, inputs: Any, logits: Any = None, training: bool | None = None) -> Any:
        batch, tokens, dim = ops.shape(inputs)[0], inputs.shape[1], inputs.shape[2]
        images = self.routing == "image"
        units = batch if images else batch * tokens
        if logits is None:
            seen = ops.mean(inputs, 1) if images else inputs
            logits = ops.matmul(ops.cast(seen, "float32"), self.router)
        logits = ops.reshape(ops.cast(logits, "float32"), (-1, self.count))
        weights, chosen = self._route(logits, training)
        if self.capacity is not None:
            rank = self._rank(weights, chosen)
            weights = ops.where(rank < self._places(units, self.capacity), weights, 0.0)
        weights = ops.cast(weights, inputs.dtype)
        if images and tokens > 1:
            return self._gathered(inputs, weights, chosen)
        x = ops.reshape(inputs, (-1, dim))
        if isinstance(units, int) and units * self.top_k * GATHER < self.count:
            x = self._gathered(x[:, None], weights, chosen)
        elif isinstance(units, int) and units <= FEW:
            x = self._everywhere(x, weights, chosen)
        else:
            x = self._grouped(x, weights, chosen)
        return ops.reshape(x, (-1, tokens, dim))

    def _route(self, logits, training):
        """Weights and numbers of the chosen experts, both (units, top_k); losses in training."""
        clean = ops.softmax(logits)
        noisy, probabilities = logits, clean
        if training and self.noise:
            noise = keras.random.normal(ops.shape(logits), seed=self._random)
            noisy = logits + noise * (self.noise / self.count)
            probabilities = ops.softmax(noisy)
        weights, chosen = ops.top_k(probabilities, self.top_k)
        if training and self.importance_weight:
            self.add_loss(self.importance_weight * _unevenness(ops.sum(clean, 0)))
        if training and self.load_weight:
            threshold = ops.top_k(noisy, self.top_k)[0][:, -1:]
            # P(logit + new noise >= threshold), a smooth count of the units an expert gets.
            distance = (logits - threshold) * (self.count / self.noise)
            load = ops.sum(0.5 * (1.0 + ops.erf(distance * 2**-0.5)), 0)
            self.add_loss(self.load_weight * _unevenness(load))
        if self.renormalize:
            weights = weights / ops.sum(weights, -1, keepdims=True)
        return weights, chosen

    def _places(self, units: Any, capacity: float) -> Any:
        """How many of so many units one expert takes."""
        if isinstance(units, int):
            return max(1, round(self.top_k * units * capacity / self.count))
        places = ops.round(ops.cast(units, "float32") * (self.top_k * capacity / self.count))
        return ops.maximum(1, ops.cast(places, "int32"))

    def _rank(self, weights, chosen):
        """How many assignments to the same expert have priority over each, (units, top_k)."""
        if self.batch_priority:
            order = ops.argsort(-weights[:, 0])  # stable: of equals the first comes first
            chosen = ops.take(chosen, order, axis=0)
        rank = self._assign(chosen)[1]
        rank = ops.transpose(ops.reshape(rank, (self.top_k, -1)))
        return ops.take(rank, ops.argsort(order), axis=0) if self.batch_priority else rank

    def _assign(self, chosen):
        """One-hot experts of all assignments, all first choices first, and their ranks therein."""
        flat = ops.reshape(ops.transpose(chosen), (-1,))
        mine = ops.one_hot(flat, self.count, dtype="int32")
        return mine, ops.sum((ops.cumsum(mine, 0) - mine) * mine, -1)

    def _everywhere(self, x, weights, chosen):
        """All experts as one MLP, hidden units of the others times 0; x (units, dim).

        For few tokens: the kernels stay where they are.
        """
        count, hidden, dim = self.count, self.hidden, x.shape[-1]
        mask = ops.one_hot(chosen, count, dtype=x.dtype) * weights[..., None]
        mask = ops.sum(mask, 1)

        def multiply(kernel):
            kernel = ops.reshape(ops.transpose(kernel, (1, 0, 2)), (dim, count * hidden))
            return ops.reshape(ops.matmul(x, kernel), (-1, count, hidden))

        inner = self._inner(multiply, lambda bias: bias) * mask[..., None]
        inner = ops.reshape(inner, (-1, count * hidden))
        x = ops.matmul(inner, ops.reshape(self.project, (count * hidden, dim)))
        return x + ops.matmul(mask, self.project_bias) if self.use_bias else x

    def _gathered(self, x, weights, chosen):
        """The kernels of the chosen experts copied beside each unit; x (units, tokens, dim).

        For whole images: many tokens are multiplied with each copy.
        """

        def pick(tensor):
            return ops.take(tensor, chosen, axis=0)  # (units, top_k, ...)

        x = x[:, None]
        inner = self._inner(
            lambda kernel: ops.matmul(x, pick(kernel)), lambda bias: pick(bias)[:, :, None]
        )
        x = ops.matmul(inner, pick(self.project))
        if self.use_bias:
            x = x + pick(self.project_bias)[:, :, None]
        return ops.sum(x * weights[:, :, None, None], 1)

    def _grouped(self, x, weights, chosen):
        """Blocks of rows, each of one expert and padded with zeros; x (units, dim).

        For many tokens: few rows are computed that nobody wants. An assignment without a place
        (`capacity`) is computed all the same, with weight 0.
        """
        units, dim = ops.shape(x)[0], x.shape[-1]
        mine, rank = self._assign(chosen)
        blocks = (ops.sum(mine, 0) + (BLOCK - 1)) // BLOCK  # of each expert
        ends = ops.cumsum(blocks)
        row = ops.sum(mine * (ends - blocks), -1) * BLOCK + rank
        # The most there can be: all experts but for one row fill their last block in vain.
        most = (units * self.top_k + self.count * (BLOCK - 1)) // BLOCK
        passed = ops.arange(most, dtype="int32")[:, None] >= ends
        owner = ops.minimum(ops.sum(ops.cast(passed, "int32"), -1), self.count - 1)

        def pick(tensor):
            return ops.take(tensor, owner, axis=0)  # (blocks, ...)

        x = ops.scatter(row[:, None], ops.tile(x, (self.top_k, 1)), (most * BLOCK, dim))
        x = ops.reshape(x, (-1, BLOCK, dim))
        inner = self._inner(
            lambda kernel: ops.matmul(x, pick(kernel)), lambda bias: pick(bias)[:, None]
        )
        x = ops.matmul(inner, pick(self.project))
        if self.use_bias:
            x = x + pick(self.project_bias)[:, None]
        x = ops.take(ops.reshape(x, (-1, dim)), row, axis=0)
        x = x * ops.reshape(ops.transpose(weights), (-1, 1))
        return ops.sum(ops.reshape(x, (self.top_k, -1, dim)), 0)

    def _inner(self, multiply, spread):
        """Hidden units; `multiply` by a kernel, `spread` a bias to where it is added."""
        x = multiply(self.expand)
        if self.use_bias:
            x = x + spread(self.expand_bias)
        return self._activate(multiply(self.gate)) * x if self.gated else self._activate(x)

    def compute_output_shape(
        self, inputs_shape: tuple[int, ...], *_: Any
    ) -> tuple[int | None, ...]:
        return inputs_shape

    def keep_experts(self, indices: Any) -> Any:
        """A new layer of this name with the experts `indices` only, in that order, and its router.

        `ValueError` where fewer than `top_k` are left. Logits from outside are the caller's to cut.
        """
        indices = [int(index) for index in indices]
        if len(set(indices)) < len(indices) or not set(indices) <= set(range(self.count)):
            raise ValueError(f"experts {indices}; expected different ones of 0..{self.count - 1}")
        if len(indices) < self.top_k:
            raise ValueError(f"{len(indices)} experts left of {self.count}, but top_k={self.top_k}")
        kept = type(self).from_config(self.get_config() | {"count": len(indices)})
        logits_shape = (None, len(indices)) if self.router is None else None
        kept.build((None, None, self.expand.shape[1]), logits_shape)
        for weight, source in zip(kept.weights, self.weights, strict=True):
            axis = 1 if source is self.router else 0
            weight.assign(ops.take(source, indices, axis=axis))
        return kept

    def macs(
        self, inputs_shape: tuple[int, ...], logits_shape: tuple[int, ...] | None = None
    ) -> int:
        """Multiply-adds of one call: `top_k` experts for every token, and the router."""
        batch, tokens, dim = inputs_shape
        kernels = 3 if self.gated else 2
        experts = batch * tokens * self.top_k * kernels * dim * self.hidden
        seen = batch if self.routing == "image" else batch * tokens
        return experts + (seen * dim * self.count if logits_shape is None else 0)

    def kernels(self) -> Kernels:
        return dict.fromkeys(("gate", "expand", "project"), ("experts", 2, (1,)))

    def channels(self, graph: ChannelGraph, node: Any, labels: Labels) -> Labels:
        """Hidden units leave, of each expert its own; what goes in and out stays."""
        for one in labels:
            graph.keep(one, f"{self.name} (Experts) gives as many channels as it takes")
        made = [graph.fresh(self.hidden, f"{self.name}[{e}]") for e in range(self.count)]
        hidden = np.stack(made)
        for name in ("expand", "gate"):
            graph.slot(self, name, (0, 2), hidden, "out")
        graph.slot(self, "expand_bias", (0, 1), hidden, "other")
        source = node.input_tensors[0]
        graph.slot(self, "project", (0, 1), hidden, "in", source, self.hidden_units)
        graph.size(self, hidden=lambda count: count(hidden) // self.count)
        reason = f"its channels come from {self.name} (Experts)"
        return [graph.kept(node.output_tensors[0], reason)]

    def hidden_units(self, inputs: Any) -> Any:
        """Of every expert for all tokens, whoever chose it: (experts, tokens, hidden)."""
        rows = ops.reshape(inputs, (1, -1, inputs.shape[-1]))
        return self._inner(lambda kernel: ops.matmul(rows, kernel), lambda bias: bias[:, None])

    def active_params(self) -> int:
        """Parameters that one token meets: those of `top_k` experts and of the router."""
        router = 0 if self.router is None else math.prod(self.router.shape)
        every = sum(math.prod(weight.shape) for weight in self.weights) - router
        return router + every // self.count * self.top_k

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {name: getattr(self, name) for name in OPTIONS}


def _unevenness(loads):
    """Squared coefficient of variation, the importance and the load loss (section A.2)."""
    return ops.var(loads) / ops.square(ops.mean(loads))

"""Which channels of a flat network stand and fall together, and where each is in the weights.

After Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900; here the graph that
Keras has is read, and channels are tracked one by one, so that concatenations, flattened images and
heads need no rules of their own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from compress.rewriting import graph

# Functions of one channel each: what is left out changes no other.
ELEMENTWISE = {
    *("linear", "relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "swish", "tanh", "sigmoid"),
    *("hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "softplus", "softsign", "mish"),
    *("leaky_relu", "exponential", "squareplus", "log_sigmoid", "soft_shrink", "hard_shrink"),
    *("tanh_shrink", "sparse_plus", "threshold"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """Places of channels along `axes` of one weight of a layer: place -> number of a channel.

    role: "out", the weight makes these channels; "in", it multiplies them, so zeros there are as
    good as the channels' absence; "scale", a factor of each; "other". `source`: the tensor whose
    last axis an "in" multiplies, None where it is within the layer; `multiplied`: what of it is
    multiplied, (..., rows, channels) with the labels' shape but for the rows, None: itself.
    """

    layer: keras.layers.Layer
    weight: int  # in layer.weights
    axes: tuple[int, ...]
    labels: np.ndarray
    role: str
    source: keras.KerasTensor | None = None
    multiplied: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units that can be left out one by one: channels that belong together are one unit.

    makers: the layers whose outputs (or hidden units) they are. grain: channels a unit has in one
    of them (a head has several).
    """

    units: np.ndarray
    makers: tuple[str, ...]
    grain: int


class Channels:
    """The channels of all tensors of a flat model, what ties them, and what keeps them.

    `rule(layer)` gives what a layer does with channels (`compress.channels.layer_rules`), in the
    words of `families.layers.protocol.ChannelGraph`.
    slots: where they are in weights. sizes: name of a layer -> option of its config -> function of
    `count(labels)` that gives the option when only some channels are left.
    """

    def __init__(self, model: keras.Model, rule: Callable):
        graph.check_flat(model)
        self._rule = rule
        self.slots: list[Slot] = []
        self.sizes: dict[str, dict[str, Callable]] = {}
        self.stays: dict[str, str] = {}
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}  # root -> why it is kept
        self._makers: list[tuple[str, np.ndarray]] = []
        self._seen: dict[str, tuple] = {}
        self.tensors: dict[int, np.ndarray] = {}
        for tensor in model.inputs:
            self.tensors[id(tensor)] = self.kept(tensor, "an input of the network")
        for node in graph.calls(model):
            self._call(node)
        for tensor in model.outputs:
            self.keep(self.tensors[id(tensor)], "its channels are outputs of the network")

    @property
    def total(self) -> int:
        """How many numbers of channels there are."""
        return len(self._parents)

    def find(self, labels: np.ndarray) -> np.ndarray:
        """The channels that stand for all that are tied to them."""
        flat, where = np.unique(labels, return_inverse=True)
        roots = np.array([self._root(int(label)) for label in flat], int)
        return roots[where].reshape(np.shape(labels))

    def reasons(self, labels: np.ndarray) -> list[str]:
        """The reasons for which some of these channels stay."""
        roots = np.unique(self.find(labels))
        found = (self._reasons.get(int(root)) for root in roots)
        return list(dict.fromkeys(reason for reason in found if reason))

    def groups(self) -> list[Group]:
        """Of all channels that may go."""
        parents = list(range(len(self._makers)))

        def leader(number):
            while parents[number] != number:
                number = parents[number]
            return number

        owner: dict[int, int] = {}
        free = []
        for number, (_, labels) in enumerate(self._makers):
            roots = [int(r) for r in np.unique(self.find(labels)) if int(r) not in self._reasons]
            free.append(roots)
            for root in roots:
                parents[leader(number)] = leader(owner.setdefault(root, number))
        found = []
        for number in range(len(self._makers)):
            members = [other for other in range(len(self._makers)) if leader(other) == number]
            units = sorted({root for other in members for root in free[other]})
            if not units:
                continue
            names = tuple(dict.fromkeys(self._makers[other][0] for other in members))
            biggest = max((self._makers[other][1] for other in members), key=len)
            _, counts = np.unique(self.find(biggest), return_counts=True)
            found.append(Group(np.array(units), names, int(counts.min())))
        return found

    # What rules are made of.

    def fresh(self, shape: int | tuple[int, ...], maker: str) -> np.ndarray:
        """New channels, made by this layer."""
        size = math.prod(shape) if isinstance(shape, tuple) else shape
        labels = np.arange(len(self._parents), len(self._parents) + size)
        self._parents += labels.tolist()
        labels = labels.reshape(shape)
        self._makers.append((maker, labels))
        return labels

    def kept(self, tensor: keras.KerasTensor, reason: str) -> np.ndarray:
        """Channels that stay, for the last axis of this tensor."""
        size = tensor.shape[-1] or 0 if len(tensor.shape) > 1 else 0
        if not size:
            return np.zeros(0, int)
        self._parents.append(len(self._parents))
        self._reasons[len(self._parents) - 1] = reason
        return np.full(size, len(self._parents) - 1)

    def keep(self, labels: np.ndarray, reason: str) -> None:
        """These channels stay, and the reason; the first reason counts."""
        for root in np.unique(self.find(labels)):
            self._reasons.setdefault(int(root), reason)

    def stay(self, layer: keras.layers.Layer, reason: str) -> None:
        """Why nothing is taken from the weights of a layer."""
        self.stays[layer.name] = reason

    def tie(self, *labels: np.ndarray) -> None:
        """What is in the same place stands and falls together."""
        first, *others = labels
        for other in others:
            for a, b in zip(first.ravel(), other.ravel(), strict=True):
                self._join(int(a), int(b))

    def tie_within(self, labels: np.ndarray) -> None:
        """All channels of each row (rows, channels) stand and fall together."""
        for row in labels:
            self.tie(np.repeat(row[:1], len(row)), row)

    def slot(
        self,
        layer: keras.layers.Layer,
        weight: str | keras.Variable | None,
        axes: int | tuple[int, ...],
        labels: np.ndarray,
        role: str,
        source: keras.KerasTensor | None = None,
        multiplied: Callable[[Any], Any] | None = None,
    ) -> None:
        """These channels are along the axes (one or some) of a weight of the layer.

        weight: its name, or where several have one name the weight itself.
        """
        keys = [one.name if isinstance(weight, str) else id(one) for one in layer.weights]
        key = weight if isinstance(weight, str) else id(weight)
        if key in keys:
            index = keys.index(key)
            rank = len(layer.weights[index].shape)
            axes = axes if isinstance(axes, tuple) else (axes,)
            axes = tuple(axis % rank for axis in axes)
            labels = np.asarray(labels)
            self.slots.append(Slot(layer, index, axes, labels, role, source, multiplied))

    def size(self, layer: keras.layers.Layer, /, **options: Callable) -> None:
        """Options of a layer's config, each a function of `count(labels)`."""
        self.sizes.setdefault(layer.name, {}).update(options)

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def _join(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        if a != b:
            self._parents[b] = a
            if b in self._reasons:
                self._reasons.setdefault(a, self._reasons.pop(b))

    def _call(self, node: Any) -> None:
        layer, inputs = node.operation, node.input_tensors
        labels = [self.tensors[id(tensor)] for tensor in inputs]
        before = self._seen.get(layer.name)
        outputs = None
        if before is not None and [len(x) for x in before[0]] == [len(x) for x in labels]:
            for old, new in zip(before[0], labels, strict=True):
                self.tie(old, new)
            if [len(x) for x in before[1]] == [x.shape[-1] or 0 for x in node.output_tensors]:
                outputs = before[1]
        elif (found := self._rule(layer)) is not None and before is None:
            outputs = found(self, layer, node, labels)
        if outputs is None:
            what = f"{layer.name} ({type(layer).__name__})"
            self.stays[layer.name] = f"no rule for the channels of {what} as it is used here"
            for one in (*labels, *(before[0] if before else ())):
                self.keep(one, f"its channels go into {what}, for which there is no rule")
            outputs = [self.kept(x, f"its channels come from {what}") for x in node.output_tensors]
        self._seen[layer.name] = (labels, outputs)
        for tensor, one in zip(node.output_tensors, outputs, strict=True):
            self.tensors[id(tensor)] = one


def elementwise(activation: Any) -> bool:
    """Whether an activation acts on each number by itself.

    >>> elementwise(keras.activations.relu), elementwise(keras.activations.softmax)
    (True, False)
    """
    return activation is None or getattr(activation, "__name__", None) in ELEMENTWISE


def channels_last(layer: keras.layers.Layer) -> bool:
    """Whether the last axis of a layer's inputs counts channels."""
    return getattr(layer, "data_format", "channels_last") in ("channels_last", None)

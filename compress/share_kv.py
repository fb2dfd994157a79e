"""Layers that share keys and values: the last ones of a decoder read those of an earlier layer.

Apple, "Intelligence Foundation Language Models: Tech Report 2025", arXiv 2507.13575, section 2: of
eight layers the last three have no keys and values of their own, and need no cache.
"""

import dataclasses
from typing import Any, ClassVar

import keras

from compress.examples.data import Data
from compress.method import STRUCTURE, Method, NotApplicable, check_fields
from compress.rewriting import graph
from compress.rewriting.record import Record
from compress.rewriting.weights import record_untouched
from families.layers.attention import Attention
from families.layers.cached import KeepLast
from families.layers.rotary import Rotary


@dataclasses.dataclass(frozen=True)
class ShareKV(Method):
    """The last `share` of the causal attention layers read the keys and values of the one before.

    Their own projections go, and of a step with caches the caches, so the bytes of keys and values
    fall by `share`. What they had learned goes with them: train afterwards, best with `distill`.
    They see the window, and have rotary positions, as the layer whose keys they read.

    Encoders are left alone: without a cache between calls there is little to win by sharing, and
    tokens of an encoder see each other in both directions, so `NotApplicable`.

    >>> from compress.method import compress
    >>> x = inputs = keras.Input((4, 8))
    >>> for number in (1, 2):
    ...     parts = [keras.layers.Dense(8, name=f"{part}{number}")(x) for part in "qkv"]
    ...     x = Attention(heads=2, causal=True, name=f"block{number}_attend")(*parts)
    >>> small = compress(keras.Model(inputs, x), [ShareKV(0.5)]).model
    >>> sorted(layer.name for layer in small.layers if layer.weights)
    ['k1', 'q1', 'q2', 'v1']
    """

    share: float = 0.375

    stage: ClassVar[int] = STRUCTURE

    def __post_init__(self):
        check_fields(self, share=(0 < self.share < 1, "a share between 0 and 1"))

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        """The model in which the last layers share; as it is to be trained."""
        graph.check_flat(model)
        nodes = _attentions(model)
        number = self._number(model, nodes)
        source, sharers = nodes[-number - 1], nodes[-number:]
        own = [node for node in sharers if not _same_memory(node, source)]
        if not own:
            raise NotApplicable(f"the last {number} attention layers of {model.name} share already")
        for node in own:
            _check(node, source)
        before = _memories(nodes)
        finished = _without_caches(_shared(model, source, own), own, source)
        lost = {weight.path for weight in model.weights}
        lost -= {weight.path for weight in finished.weights}
        record.details[repr(self)] = {
            "layers": len(nodes),
            "source": source.operation.name,
            "sharing": [node.operation.name for node in sharers],
            "keys_and_values_before": before,
            "keys_and_values_after": _memories(_attentions(finished)),
            "weights_removed": sorted(lost),
        }
        return finished

    def _number(self, model: keras.Model, nodes: list) -> int:
        """How many layers are to have no keys and values of their own."""
        if not nodes:
            kinds = {type(layer).__name__ for layer in model.layers}
            kinds = {kind for kind in kinds if "Attention" in kind}
            raise NotApplicable(
                f"{model.name} has no causal attention"
                + (f", only {', '.join(sorted(kinds))} that sees both ways" if kinds else "")
                + ": no keys and values are kept from call to call"
            )
        number = round(self.share * len(nodes))
        if not 0 < number < len(nodes):
            raise NotApplicable(
                f"share={self.share:g} of {len(nodes)} attention layers is {number}; expected 1 to "
                f"{len(nodes) - 1} that share"
            )
        return number

    def state(self, model: keras.Model) -> dict[str, float]:
        """{"key_values": numbers that are kept of a token}."""
        return {"key_values": _memories(_attentions(model))}

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        """The model as it is; `record` notes which layers have no keys and values."""
        reason = "stays: only the keys and values of the last layers went"
        record_untouched(model, record.weights, record, reason)
        return model


def _attentions(model: keras.Model) -> list:
    """The calls of causal `Attention` in a flat model, in order."""
    return [
        node
        for node in graph.calls(model)
        if isinstance(node.operation, Attention) and node.operation.causal
    ]


def _memories(nodes: list) -> int:
    """Numbers that are kept of a token: the widths of all different keys and values."""
    tensors = {id(t): t for node in nodes for t in node.input_tensors[1:3]}
    return sum(tensor.shape[-1] for tensor in tensors.values())


def _same_memory(node: Any, source: Any) -> bool:
    pairs = zip(node.input_tensors[1:3], source.input_tensors[1:3], strict=True)
    return all(one is other for one, other in pairs)


def _check(node: Any, source: Any) -> None:
    """`NotApplicable` unless the queries of `node` can meet the keys of `source`."""
    one, other = node.operation, source.operation
    for what, mine, theirs in (
        ("key-value heads", one.key_value_heads, other.key_value_heads),
        ("width", node.input_tensors[1].shape[-1], source.input_tensors[1].shape[-1]),
    ):
        if mine != theirs:
            raise NotApplicable(f"{one.name} has {mine} {what}, {other.name} has {theirs}")
    turned = _rotary(source)
    if turned is not None and _rotary(node) is None:
        lengths = [tensor.shape[1] for tensor in (node.input_tensors[0], turned.input_tensors[1])]
        if lengths[0] != lengths[1]:
            raise NotApplicable(f"{one.name} has {lengths[0]} queries, with no angles to turn them")


def _shared(model: keras.Model, source: Any, sharers: list) -> keras.Model:
    """The graph in which the attention of `sharers` gets keys, values and bias of `source`."""
    # What the source, and the rotation of its queries, are called with.
    memory: list[Any] = []
    angles: list[Any] = []
    turned = _rotary(source)
    own = {node.operation.name: _rotary(node) for node in sharers}
    unturned = {node.operation.name for node in own.values() if node} if turned is None else set()

    def change(layer, copy):
        if layer is source.operation:
            return _noting(copy, memory)
        if turned is not None and layer is turned.operation:
            return _noting(copy, angles)
        if layer.name in unturned:
            return None
        if layer.name not in own:
            return copy
        attend = Attention.from_config(copy.get_config() | {"window": source.operation.window})
        if turned is None or own[layer.name] is not None:
            return lambda query, key, value, bias=None: attend(query, *memory)
        place, stem = _stem(layer.name), _stem(source.operation.name)
        name = turned.operation.name.replace(stem, place, 1)
        turn = Rotary.from_config(turned.operation.get_config() | {"name": name})
        return lambda query, key, value, bias=None: attend(turn(query, *angles), *memory)

    return graph.rewrite(model, change)


def _noting(layer: keras.layers.Layer, others: list) -> Any:
    """`layer`, which notes down what it is called with beside the queries."""

    def call(query, *rest, **named):
        others[:] = [*rest, *named.values()]
        return layer(query, *rest, **named)

    return call


def _stem(name: str) -> str:
    return name.rsplit("_", 1)[0]


def _rotary(node):
    """The call that turns the queries of an attention, if there is one."""
    before = _before(node.input_tensors[0])
    return before if isinstance(before.operation, Rotary) else None


def _before(tensor):
    """The call that gave a tensor."""
    return tensor._keras_history.operation._inbound_nodes[tensor._keras_history.node_index]


def _without_caches(new: keras.Model, sharers: list, source: Any) -> keras.Model:
    """`new` without the inputs and outputs that were caches of the layers that share now."""
    gone = {name for node in sharers for name in _caches(node)} - {*_caches(source)}
    if not gone:
        return new
    if not (isinstance(new.input, dict) and isinstance(new.output, dict)):
        raise NotApplicable(f"the caches of {new.name} have no names: expected dicts of tensors")
    inputs = {
        name: tensor
        for name, tensor in new.input.items()
        if tensor._keras_history.operation.name not in gone
    }
    outputs = {
        name: tensor for name, tensor in new.output.items() if _cache_behind(tensor) not in gone
    }
    return keras.Model(inputs, outputs, name=new.name)


def _caches(node: Any) -> list[str]:
    """The inputs of the model that are caches behind the keys and values of an attention."""
    names = [_cache_behind(tensor) for tensor in node.input_tensors[1:3]]
    return [name for name in names if name is not None]


def _cache_behind(tensor: Any) -> str | None:
    """The name of the input that a tensor was appended to."""
    before = _before(tensor)
    if not isinstance(before.operation, KeepLast):
        return None
    cache = before.input_tensors[0]._keras_history.operation
    return cache.name if isinstance(cache, keras.layers.InputLayer) else None

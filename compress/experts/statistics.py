"""Statistics of the experts of a network on examples: which were chosen, and their outputs.

Examples go through the network in batches, and only sums are kept of them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from compress.examples.data import Data
from compress.method import NotApplicable
from compress.rewriting import graph
from compress.rewriting.gradients import gradient
from compress.rewriting.parametrized import inner
from families.layers.activations import gelu
from families.layers.experts import Experts

NEEDS = ("nothing", "weights", "router", "routes", "words", "outputs", "outliers", "gradients")
OUTLIER = 3.0  # standard deviations from the mean: MC-Suite, section 2.4


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """One `Experts` in a flat model, and where its logits come from.

    holder: the layer of the model: `layer` itself, or what reads its weights through functions.
    tensors: what it is called with: inputs, and logits where the router is outside. router: the
    layer that gives those logits, if it is a linear `Dense`; source: the tensor they are.
    """

    holder: keras.layers.Layer
    layer: Experts
    tensors: list
    source: object = None
    router: keras.layers.Layer | None = None

    @property
    def name(self) -> str:
        """That of the layer of experts."""
        return self.layer.name


def mixtures(model: keras.Model) -> list[Mixture]:
    """All `Experts` of a flat model in order; `NotApplicable` where one has several calls."""
    graph.check_flat(model)
    found: list[Mixture] = []
    for node in graph.calls(model):
        layer = inner(node.operation)
        if not isinstance(layer, Experts):
            continue
        if any(layer is mixture.layer for mixture in found):
            raise NotApplicable(f"{layer.name} is called more than once; expected one call")
        source = node.input_tensors[1] if len(node.input_tensors) > 1 else None
        router = None if source is None else _linear(source._keras_history.operation)
        tensors = list(node.input_tensors)
        found.append(Mixture(node.operation, layer, tensors, source, router))
    return found


def _linear(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    dense = inner(layer)
    linear = keras.activations.linear
    return layer if type(dense) is keras.layers.Dense and dense.activation is linear else None


@dataclasses.dataclass(eq=False)
class Statistics:
    """What is known of the experts of one layer; the first axis of all arrays are `experts`.

    weights, gradients: the kernels of an expert (and the sum over the examples of the loss's
    gradients) as one matrix of rows of the network's width: (experts, rows, dim).
    router: (experts, dim). used: units (tokens or images) that chose each. together: those that
    chose both. words: which token ids each has met (experts, vocabulary). rows: outputs counted;
    total, squares, directions: sums over outputs a of a, a ** 2 and a / |a| (experts, dim).
    saliency: sums of weight * |a|. outliers: entries further than 3 deviations from the mean.
    """

    experts: np.ndarray
    weights: Any = None  # arrays, of what was asked for
    gradients: Any = None
    router: Any = None
    used: Any = None
    together: Any = None
    words: Any = None
    rows: Any = None
    total: Any = None
    squares: Any = None
    directions: Any = None
    saliency: Any = None
    outliers: Any = None

    def mean(self) -> np.ndarray:
        """Of the outputs of each expert, per dimension: (experts, dim)."""
        return self.total / np.maximum(self.rows, 1)[:, None]

    def variance(self) -> np.ndarray:
        """Of the outputs of each expert, per dimension: (experts, dim)."""
        squares = self.squares / np.maximum(self.rows, 1)[:, None]
        return np.maximum(squares - self.mean() ** 2, 0)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of all entries of the outputs of each expert."""
        mean = self.mean().mean(1)
        squares = (self.squares / np.maximum(self.rows, 1)[:, None]).mean(1)
        return mean, np.sqrt(np.maximum(squares - mean**2, 0))


def gather(
    model: keras.Model,
    needs: str,
    data: Data | None = None,
    alive: dict[str, np.ndarray] | None = None,
) -> dict[str, Statistics]:
    """Layer -> statistics of its experts, of those that are `alive` (layer -> their numbers).

    `needs`, of `NEEDS`, says which. Units are tokens, or whole images where those are routed; an
    expert's outputs are those for the units that chose it, before they are weighted; what a
    capacity would leave out is counted. `NotApplicable` where something is missing.
    """
    check(needs, data)
    found = mixtures(model)
    result = {}
    for mixture in found:
        experts = np.arange(mixture.layer.count)
        if alive is not None:
            experts = np.asarray(alive[mixture.name])
        if mixture.layer.top_k > len(experts):
            raise ValueError(f"{mixture.name}: top_k={mixture.layer.top_k} of {len(experts)} left")
        result[mixture.name] = Statistics(experts)
    if needs == "weights":
        for mixture in found:
            kernels = [_values(mixture)[name] for name in _kernel_names(mixture.layer)]
            result[mixture.name].weights = _matrix(kernels)[result[mixture.name].experts]
    elif needs == "router":
        for mixture in found:
            columns = _router(mixture)
            result[mixture.name].router = columns.T[result[mixture.name].experts]
    elif needs == "gradients" and data is not None:
        _gradients(model, data, found, result)
    elif data is not None and needs != "nothing":
        _look(model, data, found, result, needs)
    return result


def check(needs: str, data: Data | None) -> None:
    """`NotApplicable` unless `data` has what is needed."""
    if needs in ("nothing", "weights", "router"):
        return
    if data is None:
        raise NotApplicable("this criterion needs examples, and there are none; give some as data")
    if needs == "gradients" and (data.loss is None or data.targets is None):
        raise NotApplicable("this criterion needs gradients, so examples with targets and a loss")


def _values(mixture: Mixture) -> dict[str, np.ndarray]:
    """The weights of a layer by name as its `call` sees them, float32."""
    read = getattr(mixture.holder, "read", lambda weight: weight.value)
    return {
        weight.name: ops.convert_to_numpy(read(weight)).astype(np.float32)
        for weight in mixture.layer.weights
    }


def _kernel_names(layer: Experts) -> list[str]:
    return [*(["gate"] if layer.gated else []), "expand", "project"]


def _matrix(kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Kernels (experts, dim, hidden), the last (experts, hidden, dim), as rows of dim."""
    *inwards, outwards = kernels
    return np.concatenate([*(kernel.swapaxes(1, 2) for kernel in inwards), outwards], 1)


def _router(mixture: Mixture) -> np.ndarray:
    """(dim, experts): its own, or the kernel of the layer that gives the logits."""
    if mixture.source is None:
        return _values(mixture)["router"]
    if mixture.router is None:
        raise NotApplicable(
            f"the logits of {mixture.name} come from no linear Dense layer: no router to look at"
        )
    read = getattr(mixture.router, "read", lambda weight: weight.value)
    return ops.convert_to_numpy(read(inner(mixture.router).kernel))


def _look(
    model: keras.Model,
    data: Data,
    found: list[Mixture],
    result: dict[str, Statistics],
    needs: str,
) -> None:
    """Send all examples through the network once, for outliers twice: they need the deviation."""
    inputs = {id(tensor): tensor for mixture in found for tensor in mixture.tensors}
    tokens = _tokens(model, found) if needs == "words" else None
    if tokens is not None:
        inputs |= {id(tensor): tensor for tensor, _ in tokens.values()}
    probe = keras.Model(model.input, list(inputs.values()))
    weights = {mixture.name: _values(mixture) for mixture in found}
    for mixture in found:
        vocabulary = None if tokens is None else tokens[mixture.name][1]
        _begin(result[mixture.name], mixture.layer, vocabulary)
    for again in range(2 if needs == "outliers" else 1):
        bounds = {name: one.bounds() for name, one in result.items()} if again else {}
        for batch, _ in data.batches():
            outputs = probe(keras.tree.map_structure(ops.convert_to_tensor, batch), training=False)
            seen = dict(zip(inputs, keras.tree.flatten(outputs), strict=True))
            for mixture in found:
                one = result[mixture.name]
                x, *logits = (ops.convert_to_numpy(seen[id(t)]) for t in mixture.tensors)
                values = weights[mixture.name]
                routed = _routed(mixture.layer, one.experts, values, x, *logits)
                if again:
                    for place, rows, _ in _answers(mixture.layer, one, values, x, *routed):
                        mean, deviation = (bound[place] for bound in bounds[mixture.name])
                        outside = np.abs(rows.astype(np.float64) - mean) > OUTLIER * deviation
                        one.outliers[place] += outside.sum()
                    continue
                _count(one, routed[0])
                if tokens is not None:
                    ids = ops.convert_to_numpy(seen[id(tokens[mixture.name][0])])
                    _read_words(one, routed[0], ids)
                elif needs != "routes":
                    for answer in _answers(mixture.layer, one, values, x, *routed):
                        _add(one, *answer)


def _begin(found: Statistics, layer: Experts, vocabulary: int | None) -> None:
    count, dim = len(found.experts), layer.expand.shape[1]
    found.used, found.together = np.zeros(count, np.int64), np.zeros((count, count), np.int64)
    found.rows, found.outliers = np.zeros(count, np.int64), np.zeros(count, np.int64)
    found.total, found.squares, found.directions = np.zeros((3, count, dim))
    found.saliency = np.zeros(count)
    found.words = None if vocabulary is None else np.zeros((count, vocabulary), bool)


def _tokens(model: keras.Model, found: list[Mixture]) -> dict[str, tuple]:
    """Layer -> (the input of token ids that its tokens stand for, how many ids there are)."""
    tables: dict[int, int] = {}
    for node in graph.calls(model):
        layer = inner(node.operation)
        if isinstance(layer, keras.layers.Embedding):
            tables.setdefault(id(node.input_tensors[0]), layer.input_dim)
    result = {}
    for mixture in found:
        length = mixture.tensors[0].shape[1]
        for tensor in model.inputs:
            ids = "int" in keras.backend.standardize_dtype(tensor.dtype)
            if ids and tuple(tensor.shape[1:]) == (length,) and id(tensor) in tables:
                result[mixture.name] = (tensor, tables[id(tensor)])
                break
        else:
            raise NotApplicable(
                f"{mixture.name} sees {length} tokens that are no token ids of an input: "
                "these criteria need a network of texts"
            )
    return result


def _routed(
    layer: Experts, experts: Any, values: Any, x: Any, logits: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choices (units, experts), bool, and their weights, of the `experts` left; no capacity."""
    if logits is None:
        seen = x.mean(1) if layer.routing == "image" else x
        logits = seen.astype(np.float32) @ values["router"]
    logits = logits.reshape(-1, layer.count).astype(np.float64)[:, experts]
    gates = np.exp(logits - logits.max(-1, keepdims=True))
    gates /= gates.sum(-1, keepdims=True)
    order = np.argsort(-logits, -1, kind="stable")[:, : layer.top_k]
    chosen = np.zeros(gates.shape, bool)
    np.put_along_axis(chosen, order, True, -1)
    if layer.renormalize:
        gates = gates / (gates * chosen).sum(-1, keepdims=True)
    return chosen, gates


def _count(found: Statistics, chosen: np.ndarray) -> None:
    found.used += chosen.sum(0)
    found.together += chosen.T.astype(np.int64) @ chosen.astype(np.int64)


def _read_words(found: Statistics, chosen: np.ndarray, ids: np.ndarray) -> None:
    ids = ids.reshape(len(chosen), -1)  # of one unit
    for place in range(len(found.experts)):
        found.words[place, ids[chosen[:, place]].ravel()] = True


def _answers(
    layer: Experts, found: Statistics, values: Any, x: Any, chosen: Any, gates: Any
) -> Iterator[tuple]:
    """(place of the expert, its outputs (rows, dim), the weights of those) for who chose it."""
    units = x.reshape(len(chosen), -1, x.shape[-1]).astype(np.float32)  # (units, tokens, dim)
    for place, expert in enumerate(found.experts):
        mine = chosen[:, place]
        rows = units[mine].reshape(-1, x.shape[-1])
        weights = np.repeat(gates[mine, place], units.shape[1])
        yield place, _answered(layer, values, expert, rows), weights


def _answered(layer: Experts, values: Any, expert: int, rows: np.ndarray) -> np.ndarray:
    activation = gelu if layer.activation == "gelu" else keras.activations.get(layer.activation)

    def activate(array: np.ndarray) -> np.ndarray:
        # As many rows as some power of two: JAX compiles an operation for each shape it meets.
        padded = np.zeros((1 << (max(len(array), 1) - 1).bit_length(), array.shape[1]), np.float32)
        padded[: len(array)] = array
        return ops.convert_to_numpy(activation(ops.convert_to_tensor(padded)))[: len(array)]

    inner = rows @ values["expand"][expert]
    if layer.use_bias:
        inner = inner + values["expand_bias"][expert]
    inner = activate(rows @ values["gate"][expert]) * inner if layer.gated else activate(inner)
    outputs = inner @ values["project"][expert]
    return outputs + values["project_bias"][expert] if layer.use_bias else outputs


def _add(found: Statistics, place: int, outputs: np.ndarray, weights: np.ndarray) -> None:
    outputs = outputs.astype(np.float64)
    norms = np.linalg.norm(outputs, axis=1)
    found.rows[place] += len(outputs)
    found.total[place] += outputs.sum(0)
    found.squares[place] += (outputs**2).sum(0)
    found.directions[place] += (outputs / np.maximum(norms, 1e-30)[:, None]).sum(0)
    found.saliency[place] += (weights * norms).sum()


def _gradients(
    model: keras.Model, data: Data, found: list[Mixture], result: dict[str, Statistics]
) -> None:
    """Sums over all examples of the gradients of the loss, without noise and dropout."""
    names = [(mixture, name) for mixture in found for name in _kernel_names(mixture.layer)]
    variables = [getattr(mixture.layer, name) for mixture, name in names]
    sums = [np.zeros(variable.shape) for variable in variables]
    compute = gradient(model, data.measured_loss(), variables)
    for inputs, targets in data.batches():
        for total, one in zip(sums, compute(inputs, targets), strict=True):
            total += ops.convert_to_numpy(one)
    for mixture in found:
        mine = [one for one, (owner, _) in zip(sums, names, strict=True) if owner is mixture]
        result[mixture.name].gradients = _matrix(mine)[result[mixture.name].experts]

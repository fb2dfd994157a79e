"""Low-rank adapters make up for what compression took: few numbers in float beside the codes.

Apple's 2024 models, arXiv 2407.21075 (rank 16); Hu et al., "LoRA", arXiv 2106.09685; without
training: Zhang et al., "LQER", arXiv 2402.02446.
"""

import dataclasses
import re
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from compress.channels.nested_levels import has_levels
from compress.examples.data import Data
from compress.method import LOSS, Method, NotApplicable, check_fields
from compress.rewriting import graph
from compress.rewriting.parametrized import Parametrization, Parametrized, functions, parametrize
from compress.rewriting.record import Record
from compress.rewriting.weights import record_untouched

DOWN, UP, ADD, ACTIVATION = (f"_adapter_{part}" for part in ("down", "up", "add", "activation"))
LATE = 0.75  # of a training in which quantized weights move, too: the adapters have the rest
LOOKED_AT = 256  # examples
CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


@dataclasses.dataclass(frozen=True)
class Recover(Method):
    """outputs = activation(layer(x) + up(down(x))), `up` and `down` two small layers.

    rank: outputs of `down`; less where both would hold more than half as many numbers as the layer.
    start: the share of the training after which the adapters are trained: what other methods made
        codes or sparse is frozen from then on. None: 0 where no other method is there, and the
        network is frozen as a whole; 0.75 with quantizers and masks that training sees; 1 with
        those that come after it, such as ptq.
    which: a regular expression over the paths of weights; None: all that other methods have put on
        levels or masked; without such methods, all of dense and convolution layers.

    Adapters begin as nothing. Without training, or with start=1, they are the best of their rank
    for the weights that were lost, by the size of the inputs where there are examples. In the end
    those of weights that are neither quantized nor pruned are merged into them; the others stay
    layers of their own, of values that float16 holds.

    >>> from compress.method import compress
    >>> from compress.qat import QAT
    >>> inputs = keras.Input((32,))
    >>> model = keras.Model(inputs, keras.layers.Dense(32, name="head")(inputs))
    >>> small = compress(model, [QAT(2), Recover(4)]).model
    >>> sorted(layer.name for layer in small.layers[1:])
    ['head', 'head_adapter_add', 'head_adapter_down', 'head_adapter_up']
    """

    rank: int = 16
    start: float | None = None
    which: str | None = None

    stage: ClassVar[int] = LOSS  # after all that decide how weights are stored

    def __post_init__(self):
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        check_fields(
            self,
            rank=(whole and self.rank >= 1, "a whole number above 0"),
            start=(self.start is None or 0 <= self.start <= 1, "a share from 0 to 1"),
        )

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        if has_levels(model):
            raise NotApplicable("recover: dynamic_sparsity keeps all weights: nothing is lost")
        ranks = self._ranks(model, record)
        start = _start(model) if self.start is None else self.start
        names = {layer.name for layer in record.original.layers}

        def change(layer, copy):
            if not start and layer.name in names:
                copy.trainable = False
            return _Adapted(copy, ranks[layer.name]) if layer.name in ranks else copy

        adapted = graph.rewrite(model, change)
        gates = {f"{name}{UP}/kernel": Gate(start, opens=True) for name in ranks}
        if start:
            held = functions(model, Parametrization)
            gates |= {path: Gate(start, opens=False) for path in held}
        return parametrize(adapted, gates)

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        gates = _gates(model)
        opened = float(gates[0].phase) > 0
        if step < steps and (opened or step < gates[0].start * steps):
            return False
        if not opened and step == steps:
            _make_up(model, data)
        for gate in gates:
            gate.phase.assign(1.0)
        return True

    def state(self, model: keras.Model) -> dict[str, float]:
        return {"adapting": float(_gates(model)[0].phase)}

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        layers = {layer.name: layer for layer in model.layers}
        mine = [name for name in layers if f"{name}{DOWN}" in layers]
        merged = {name for name in mine if not _is_stored(record, layers[name].kernel.path)}
        leave = {f"{name}{part}" for name in merged for part in (ADD, ACTIVATION)}
        kept = {f"{name}{part}" for name in set(mine) - merged for part in (DOWN, UP)}
        before = {layer.name: layer.trainable for layer in record.original.layers}

        def change(layer, copy):
            if layer.name in leave:
                return None
            copy.trainable = before.get(layer.name, True)
            if layer.name in merged:
                _merge(
                    copy, *(layers.get(f"{layer.name}{part}") for part in (DOWN, UP, ACTIVATION))
                )
            if layer.name in kept:
                copy.set_weights([w.astype(np.float16) for w in copy.get_weights()])
            return copy

        finished = graph.rewrite(model, change)
        record.details[repr(self)] = {
            "adapters": len(mine),
            "merged": len(merged),
            "parameters": sum(layers[name].count_params() for name in kept),
        }
        return finished

    def _ranks(self, model: keras.Model, record: Record) -> dict[str, int]:
        """Name of a layer -> rank of its adapter."""
        lossy = functions(model, Parametrization)
        ranks = {}
        for layer in model.layers:
            inner = _inner(layer)
            if not layer.weights or not _adaptable(inner):
                continue
            path = inner.kernel.path
            if (lossy and path not in lossy) or not re.search(self.which or "", path):
                continue
            inputs, outputs = np.prod(inner.kernel.shape[:-1]), inner.kernel.shape[-1]
            most = int(inputs * outputs // (2 * (inputs + outputs)))
            if most:
                ranks[layer.name] = min(self.rank, most)
            else:
                record.untouched.setdefault(layer.name, "too small for an adapter")
        if not ranks:
            raise NotApplicable(
                f"recover: {model.name} has no dense or convolution kernel that adapters fit"
                + (f" and matches which={self.which!r}" if self.which else "")
            )
        touched = {*lossy, *(f"{name}/kernel" for name in ranks)}
        record_untouched(model, touched, record, "adapters are for dense and convolution layers")
        return ranks


class Gate(Parametrization):
    """`opens`: 0 until the adapters are trained; else a weight that is not trained from then on."""

    last = True

    def __init__(self, start: float, opens: bool):
        super().__init__(dtype="float32")
        self.start, self.opens = start, opens

    def build(self, shape: tuple[int, ...]) -> None:
        self.phase = self.add_weight(shape=(), initializer="zeros", trainable=False, name="phase")

    def call(self, weight: Any) -> Any:
        weight = ops.convert_to_tensor(weight)
        now, later = weight, ops.stop_gradient(weight)
        if self.opens:
            now, later = ops.zeros_like(weight), weight
        return ops.where(self.phase > 0, later, now)


class _Adapted:
    """Called in place of a layer: the layer and its adapter, on tensors of a graph."""

    def __init__(self, layer: keras.layers.Layer, rank: int):
        inner = _inner(layer)
        self.layer, self.down, self.up = layer, *_pair(inner, rank)
        self.add = keras.layers.Add(name=f"{layer.name}{ADD}", dtype=inner.dtype_policy)
        self.activation = None
        if getattr(inner, "activation", None) not in (None, keras.activations.linear):
            self.activation = keras.layers.Activation(
                inner.activation, name=f"{layer.name}{ACTIVATION}", dtype=inner.dtype_policy
            )
            inner.activation = keras.activations.linear

    def __call__(self, inputs, **kwargs):
        x = self.add([self.layer(inputs, **kwargs), self.up(self.down(inputs))])
        return x if self.activation is None else self.activation(x)


def _pair(layer: keras.layers.Layer, rank: int) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """Layers whose product is one like `layer`, without bias: inputs to `rank`, and to outputs."""
    deviation = float(np.prod(layer.kernel.shape[:-1])) ** -0.5
    options = {"dtype": layer.dtype_policy, "use_bias": False}
    first = {
        "name": f"{layer.name}{DOWN}",
        "kernel_initializer": keras.initializers.RandomNormal(stddev=deviation),
    } | options
    second = {"name": f"{layer.name}{UP}", "kernel_initializer": "zeros"} | options
    if isinstance(layer, keras.layers.Dense):
        return keras.layers.Dense(rank, **first), keras.layers.Dense(layer.units, **second)
    if isinstance(layer, keras.layers.EinsumDense):
        for one in (first, second):
            del one["use_bias"]
        return _einsum_pair(layer, rank, first, second)
    kind = next(one for one in CONVOLUTIONS if isinstance(layer, one))
    same = ("kernel_size", "strides", "padding", "data_format", "dilation_rate")
    first |= {name: getattr(layer, name) for name in same}
    return kind(rank, **first), kind(layer.filters, 1, data_format=layer.data_format, **second)


def _einsum_pair(layer, rank, first, second):
    """As the layer, its last letter counting `rank`; then that letter to the outputs."""
    equation = layer.equation.replace(" ", "")
    outputs, letter = equation.split("->")[1], equation.split("->")[0][-1]
    shape = list(layer.partial_output_shape)
    shape[outputs.index(letter) - len(outputs)] = rank
    free = next(one for one in "abcdefghijklmnopqrstuvwxyz" if one not in equation)
    up = f"{outputs},{letter}{free}->{outputs.replace(letter, free)}"
    return (
        keras.layers.EinsumDense(equation, tuple(shape), **first),
        keras.layers.EinsumDense(up, layer.partial_output_shape, **second),
    )


def _adaptable(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.layers.EinsumDense):
        operands, outputs = layer.equation.replace(" ", "").split("->")
        return operands[-1] in outputs.replace(".", "")
    if isinstance(layer, CONVOLUTIONS):
        return layer.groups == 1 and layer.data_format == "channels_last"
    return isinstance(layer, keras.layers.Dense)


def _start(model: keras.Model) -> float:
    """When adapters begin, by what is done to the weights of the network before them."""
    chains = functions(model, Parametrization).values()
    if not chains:
        return 0.0
    return LATE if any(one.variables for chain in chains for one in chain) else 1.0


def _make_up(model: keras.Model, data: Data | None) -> None:
    """Set all adapters to the best of their rank for what the weights have lost now."""
    layers = {layer.name: layer for layer in model.layers}
    names = [name for name in layers if f"{name}{DOWN}" in layers]
    lost = {name: _lost(layers[name]) for name in names}
    if not any(array.any() for array in lost.values()):
        raise NotApplicable("recover: no weight has lost anything, and there was no training")
    sizes = {} if data is None else _input_sizes(model, names, data)
    for name, array in lost.items():
        down, up = layers[f"{name}{DOWN}"].kernel, _inner(layers[f"{name}{UP}"]).kernel
        matrix = array.reshape(-1, array.shape[-1])
        size = np.ones(len(matrix))
        if name in sizes and len(matrix) % len(sizes[name]) == 0:
            size = np.tile(sizes[name], len(matrix) // len(sizes[name]))
        left, values, right = np.linalg.svd(matrix * size[:, None], full_matrices=False)
        rank = down.shape[-1]
        down.assign((left[:, :rank] * values[:rank] / size[:, None]).reshape(down.shape))
        up.assign(right[:rank].reshape(up.shape))


def _lost(layer: keras.layers.Layer) -> np.ndarray:
    if not isinstance(layer, Parametrized):
        return np.zeros(layer.kernel.shape)
    kernel = layer.layer.kernel
    before, now = (ops.convert_to_numpy(one) for one in (kernel.value, layer.read(kernel)))
    return before.astype(np.float64) - now


def _input_sizes(model: keras.Model, names: list[str], data: Data) -> dict[str, np.ndarray]:
    """Root mean square of every channel that layers read, at least a hundredth of the mean."""
    read = {}
    for node in graph.calls(model):
        if node.operation.name in names:
            read[node.operation.name] = node.input_tensors[0]
    probe = keras.Model(model.input, read)
    totals, count = dict.fromkeys(read, 0.0), 0
    for inputs, _ in data.batches():
        for name, value in probe(inputs, training=False).items():
            value = ops.convert_to_numpy(ops.cast(value, "float32"))
            squares = np.square(value, dtype=np.float64).reshape(-1, value.shape[-1])
            totals[name] += squares.mean(0) * len(value)
        count += len(value)
        if count >= LOOKED_AT:
            break
    sizes = {name: np.sqrt(total / count) for name, total in totals.items()}
    return {name: np.maximum(size, 1e-2 * size.mean() + 1e-9) for name, size in sizes.items()}


def _merge(layer: keras.layers.Layer, down: Any, up: Any, activation: Any) -> None:
    """Make the adapter a part of the layer's kernel."""
    product = np.tensordot(
        ops.convert_to_numpy(down.kernel), ops.convert_to_numpy(up.kernel), axes=(-1, -2)
    )
    layer.kernel.assign_add(product.reshape(layer.kernel.shape))
    if activation is not None:
        layer.activation = activation.activation


def _is_stored(record: Record, path: str) -> bool:
    """Whether files hold this weight in another form than float, which a merge would end."""
    found = record.weights.get(path)
    return found is not None and (found.codes is not None or found.mask is not None)


def _gates(model: keras.Model) -> list[Gate]:
    return [gate for chain in functions(model, Gate).values() for gate in chain]


def _inner(layer: keras.layers.Layer) -> keras.layers.Layer:
    return layer.layer if isinstance(layer, Parametrized) else layer

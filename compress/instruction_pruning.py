"""Instruction-following pruning: each input uses some of the hidden units of feed-forward layers.

Hou et al., "Instruction-Following Pruning for Large Language Models", arXiv 2501.02086: a small
predictor sees the instruction once and chooses the units of all layers; both are trained together.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from compress.channels.hidden_units import Bundle, bundles, chooser, is_dense
from compress.examples.data import Data
from compress.method import STRUCTURE, Method, NotApplicable, check_fields
from compress.rewriting import graph
from compress.rewriting.parametrized import inner
from compress.rewriting.record import Record
from compress.rewriting.weights import record_untouched
from families.layers.instruction_mask import MaskedFeedForward, MaskPredictor, unit_blocks

PART = 4  # of a sequence of tokens, the first 1 / PART is the instruction, unless `prompt` says
PREDICTOR = "mask_predictor"
STEPS = 20  # in which the masks are blended in: each assignment costs on some backends


@dataclasses.dataclass(frozen=True)
class InstructionPruning(Method):
    """Of every feed-forward layer (Dense layers around hidden units) each input uses this share.

    active: share of the blocks of hidden units that are used, the same number in every layer.
    blocks: so many consecutive parts the hidden units are cut into; 0: each unit by itself, which
        prunes finer but makes too many branches for a file.
    hidden: units of the predictor. What it sees is the mean of the network's first layer (of
        tokens their embedding, of images the patches) over all places.
    prompt: tokens at the beginning that are the instruction; 0: the first quarter of tokens, and of
        other inputs everything.
    warm_up: share of the training in which the masks are blended in.
    temperature: of the soft masks, whose gradient trains the predictor.

    The finished network predicts its masks; `masks` tells them, `materialize` makes of one the
    small dense network. In a file for batches of 1 unused blocks are not computed.

    >>> from compress.method import compress
    >>> inputs = keras.Input((8,))
    >>> x = keras.layers.Dense(16, "relu", name="hidden")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(x))
    >>> small = compress(model, [InstructionPruning(active=0.5, blocks=4, hidden=4)]).model
    >>> masks(small, np.ones((1, 8), np.float32)).sum()  # of 4 blocks
    np.float32(2.0)
    """

    active: float = 0.25
    blocks: int = 8
    hidden: int = 128
    prompt: int = 0
    warm_up: float = 0.3
    temperature: float = 1.0
    seed: int = 0

    stage = STRUCTURE

    def __post_init__(self):
        check_fields(
            self,
            active=(0 < self.active < 1, "a share between 0 and 1"),
            blocks=(self.blocks == 0 or self.blocks >= 2, "at least 2, or 0"),
            hidden=(self.hidden >= 1, "a positive number"),
            prompt=(self.prompt >= 0, "0 or more"),
            warm_up=(0 <= self.warm_up <= 1, "0..1"),
            temperature=(self.temperature > 0, "above 0"),
        )

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        if (other := chooser(model)) is not None:
            raise NotApplicable(
                f"instruction_pruning: layer {other.name} chooses hidden units of this network "
                "already, for another method; use one of them"
            )
        found = _feed_forwards(model)
        blocks = self.blocks or min((pair.bundle.size for pair in found), default=0)
        found = [pair for pair in found if pair.bundle.size >= blocks]
        if self.blocks == 0:
            found = [pair for pair in found if pair.bundle.size == blocks]
        if not found:
            raise NotApplicable(
                f"instruction_pruning: {model.name} has no feed-forward layer (Dense, activation, "
                f"Dense) of at least {max(self.blocks, 2)} hidden units"
            )
        touched = {name for pair in found for name in (*pair.bundle.producers, pair.project)}
        paths = [w.path for layer in model.layers if layer.name in touched for w in layer.weights]
        record_untouched(model, paths, record, "not of a feed-forward layer")
        active = min(max(1, round(self.active * blocks)), blocks - 1)
        features, prompt = _instruction(model, touched)
        predictor = MaskPredictor(
            len(found),
            blocks,
            active,
            hidden=self.hidden,
            prompt=self.prompt or prompt,
            temperature=self.temperature,
            seed=self.seed,
            name=PREDICTOR,
        )
        return _masked(model, found, features, predictor)

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        share = 1.0
        if step < self.warm_up * steps:
            share = np.floor(STEPS * step / (self.warm_up * steps)) / STEPS
        blend = _predictor(model).blend
        if float(ops.convert_to_numpy(blend)) == np.float32(share):
            return False
        blend.assign(share)
        return True

    def state(self, model: keras.Model) -> dict[str, float]:
        predictor = _predictor(model)
        blend = float(ops.convert_to_numpy(predictor.blend))
        return {"active": 1 - blend * (1 - predictor.active / predictor.blocks)}

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        finished = _switched(model, record)
        predictor = _predictor(finished)
        record.details[repr(self)] = {
            "feed_forwards": predictor.count,
            "blocks": predictor.blocks,
            "active_blocks": predictor.active,
            "predictor_params": predictor.count_params(),
        }
        return finished


def masks(model: keras.Model, inputs: Any) -> np.ndarray:
    """The masks (batch, feed-forward layers, blocks) that a finished network predicts."""
    predictor = _predictor(model)
    node = next(node for node in graph.calls(model) if node.operation is predictor)
    return ops.convert_to_numpy(keras.Model(model.input, node.output_tensors[0])(inputs))


def materialize(model: keras.Model, mask: np.ndarray) -> keras.Model:
    """The small dense network of one mask (feed-forward layers, blocks), of stock layers.

    Its feed-forward layers have their original names, fewer hidden units, and no predictor.
    """
    mask = np.asarray(mask)
    predictor = _predictor(model)
    if mask.shape != (predictor.count, predictor.blocks):
        expected = (predictor.count, predictor.blocks)
        raise ValueError(f"mask of shape {mask.shape}; expected {expected}, 0 or 1 each")

    def place(node, now):
        layer = node.operation
        if layer is predictor:
            return [None]
        if not isinstance(layer, MaskedFeedForward):
            return None
        units = np.flatnonzero(mask[layer.index][unit_blocks(layer.hidden, layer.blocks)])
        return [_dense(layer, now[id(node.input_tensors[0])], units)]

    return _rebuild(model, place)


def _dense(layer: MaskedFeedForward, inputs: Any, units: np.ndarray) -> Any:
    """What a feed-forward layer is of these units alone: a gather of columns and rows."""
    *names, project = layer.names
    factors = []
    for name, (kernel, bias), activation in zip(
        names, layer.factors, layer.activations, strict=True
    ):
        dense = keras.layers.Dense(len(units), activation, use_bias=bias is not None, name=name)
        factors.append(dense(inputs))
        found = [kernel] if bias is None else [kernel, bias]
        dense.set_weights([ops.convert_to_numpy(weight)[..., units] for weight in found])
    x = factors[0]
    if len(factors) > 1:
        x = keras.layers.Multiply(name=f"{layer.name}_gated")(factors)
    dense = keras.layers.Dense(
        layer.outputs, layer.output_activation, use_bias=layer.project_bias, name=project
    )
    x = dense(x)
    kernel = ops.convert_to_numpy(layer.project)[units]
    dense.set_weights(
        [kernel] if layer.bias is None else [kernel, ops.convert_to_numpy(layer.bias)]
    )
    return x


@dataclasses.dataclass(frozen=True)
class _FeedForward:
    bundle: Bundle
    activations: tuple

    @property
    def project(self) -> str:
        return self.bundle.consumers[0]


def _feed_forwards(model: keras.Model) -> list[_FeedForward]:
    """Pairs of Dense layers with hidden units between them, no layer in two of them."""
    found: list[_FeedForward] = []
    taken: set[str] = set()
    layers = {layer.name: inner(layer) for layer in model.layers}
    read = {node.operation.name: node.input_tensors[0] for node in graph.calls(model)}
    for bundle in bundles(model):
        names = {*bundle.producers, *bundle.consumers}
        dense = all(is_dense(layers[name]) for name in names) and len(bundle.consumers) == 1
        same_input = len({id(read[name]) for name in bundle.producers}) == 1
        if not dense or not same_input or names & taken:
            continue
        activations = [layers[name].activation for name in bundle.producers]
        kinds = [type(layers[name]) for name in bundle.carriers]
        multiplies = kinds.count(keras.layers.Multiply)
        later = [n for n in bundle.carriers if type(layers[n]) is keras.layers.Activation]
        known = {keras.layers.Multiply, keras.layers.Dropout, keras.layers.Activation}
        if multiplies != len(activations) - 1 or multiplies > 1 or set(kinds) - known:
            continue
        if later:
            if len(later) + len(activations) > 2 or activations[0] is not keras.activations.linear:
                continue
            activations = [layers[later[0]].activation]
        found.append(_FeedForward(bundle, tuple(activations)))
        taken |= names
    return found


def _instruction(model: keras.Model, touched: set[str]) -> Any:
    """What the predictor sees: the first layer with weights; and how many tokens, 0: all."""
    tensor = next(t for t in model.inputs if "int" not in t.dtype or len(t.shape) > 1)
    for node in graph.calls(model):
        if node.operation.name in touched:
            tensor = node.input_tensors[0]
            break
        output = node.output_tensors[0]
        if node.operation.weights and len(output.shape) > 1 and "float" in output.dtype:
            tensor = output
            if "int" in node.input_tensors[0].dtype and len(output.shape) > 2:
                return tensor, max(1, output.shape[1] // PART)
            break
    return tensor, 0


class MaskUnits(keras.layers.Layer):
    """In training: hidden units times their block's mask."""

    def __init__(self, pair: _FeedForward, index: int, blocks: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.pair, self.index, self.blocks = pair, index, blocks

    def call(self, inputs: Any, masks: Any) -> Any:
        owner = unit_blocks(inputs.shape[-1], self.blocks)
        units = ops.take(masks[:, self.index], owner, axis=-1)
        middle = [1] * (len(inputs.shape) - 2)
        return inputs * ops.cast(ops.reshape(units, (-1, *middle, len(owner))), inputs.dtype)

    def compute_output_shape(self, shape: tuple[int, ...], *_: Any) -> tuple[int | None, ...]:
        return shape

    def get_config(self) -> dict[str, Any]:
        own = {"pair": self.pair, "index": self.index, "blocks": self.blocks}
        return super().get_config() | own


def _masked(
    model: keras.Model, found: Sequence[_FeedForward], features: Any, predictor: Any
) -> keras.Model:
    """The model to train: masks between the hidden units and what reads them."""
    projects = {pair.project: number for number, pair in enumerate(found)}
    predicted: list[Any] = []

    def place(node, now):
        if not predicted and id(features) in now:
            predicted.append(predictor(now[id(features)]))
        number = projects.get(node.operation.name)
        if number is None:
            return None
        mask = MaskUnits(
            found[number], number, predictor.blocks, name=f"{node.operation.name}_mask"
        )
        hidden = mask(now[id(node.input_tensors[0])], predicted[0])
        return [graph.copy(node.operation)(hidden)]

    return _rebuild(model, place)


def _switched(model: keras.Model, record: Record) -> keras.Model:
    """The finished network: `MaskedFeedForward` in place of the layers around masks."""
    marks = {layer.pair.project: layer for layer in model.layers if isinstance(layer, MaskUnits)}
    layers = {layer.name: layer for layer in model.layers}
    read = {node.operation.name: node.input_tensors[0] for node in graph.calls(model)}
    inside = {
        name
        for mark in marks.values()
        for name in (*mark.pair.bundle.producers, *mark.pair.bundle.carriers, mark.name)
    }
    predictor = next(node for node in graph.calls(model) if node.operation.name == PREDICTOR)

    def place(node, now):
        name = node.operation.name
        if name in inside:
            return [None]
        if name not in marks:
            return None
        mark, project = marks[name], layers[name]
        made = [layers[producer] for producer in mark.pair.bundle.producers]
        new = MaskedFeedForward(
            project.kernel.shape[0],
            project.units,
            mark.blocks,
            mark.index,
            activations=mark.pair.activations,
            biases=tuple(layer.use_bias for layer in made),
            project_bias=project.use_bias,
            output_activation=project.activation,
            names=(*mark.pair.bundle.producers, name),
            name=f"{name}_masked",
        )
        source = now[id(read[made[0].name])]
        output = new(source, now[id(predictor.output_tensors[0])])
        weights = [weight for layer in (*made, project) for weight in layer.weights]
        for before, after in zip(weights, new.weights, strict=True):
            after.assign(before)
            if before.path in record.weights:
                record.weights[after.path] = record.weights.pop(before.path)
        return [output]

    return _rebuild(model, place)


def _rebuild(model: keras.Model, place: Any) -> keras.Model:
    """A new graph: `place(node, now)` gives the outputs that stand for a call, or None: as it was.

    `now`: id of a tensor -> what stands for it.
    """
    graph.check_flat(model)
    copies = {}

    def placed(node, now):
        results = place(node, now)
        if results is not None:
            return results
        layer = node.operation
        if id(layer) not in copies:
            copies[id(layer)] = graph.copy(layer)
        return graph.call(copies[id(layer)], node, now)

    return graph.rebuild(model, placed)


def _predictor(model: keras.Model) -> MaskPredictor:
    for layer in model.layers:
        if isinstance(layer, MaskPredictor):
            return layer
    raise ValueError(f"{model.name} predicts no masks; expected a network of instruction_pruning")

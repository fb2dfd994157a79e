"""The network learns from a teacher while it is compressed: outputs, layers within, or lattices.

Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531 (logits); Romero et
al., "FitNets", arXiv 1412.6550 (features); Panchapagesan et al., "Efficient Knowledge Distillation
for RNN-Transducer Models", arXiv 2011.06110 (lattices).
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import keras
from keras import ops

from compress.channels.nested_levels import Levels
from compress.examples.data import Data
from compress.method import LOSS, Method, NotApplicable, check_fields
from compress.rewriting import graph, tensors
from compress.rewriting.record import Record

KINDS = ("logits", "features", "lattice")
DISTANCES = ("mse", "cosine")
BLANK = 0  # index of the blank of transducers
LEAST = 1e-7  # the smallest probability that counts


@dataclasses.dataclass(frozen=True, repr=False)
class Distill(Method):
    """Adds `weight` times a distance to a teacher to the loss; the finished network is unchanged.

    teacher: a `keras.Model` of the same inputs; None: the network before any compression.
    temperature: of the softmax of both; None: 2 for logits, 1, as in the paper, for lattices.
    kind: "logits": T^2 times the KL divergence of the classes, mean over batch and positions; of
        outputs that are sigmoids that of each and its opposite, of numbers, as of a regression, the
        mean square error relative to the teacher's mean square (`outputs_are` of the loss says).
        "features": `distance` ("mse", relative to the teacher's mean square, or "cosine") of layers
        within, where widths differ through a projection that is learned and thrown away.
        "lattice": of transducers, T^2 times the KL divergence of {blank, label, anything else} in
        the nodes that a text can reach, mean over these; small beside that of all classes.
    which: the layers of features: a regular expression of names that both networks have, or pairs
        "mine->teacher's|..."; None: what the logits are made of.
    named: where the teacher is from, for the record.

    A step costs the teacher's forward pass more; evaluation costs nothing.

    >>> Distill(kind="feature")
    Traceback (most recent call last):
        ...
    ValueError: distill kind='feature'; expected one of logits, features, lattice
    """

    teacher: Any = None
    weight: float = 1.0
    temperature: float | None = None
    kind: str = "logits"
    which: str | None = None
    distance: str = "mse"
    named: str = ""

    stage: ClassVar[int] = LOSS

    def __post_init__(self):
        heat = self.temperature
        check_fields(
            self,
            kind=(self.kind in KINDS, f"one of {', '.join(KINDS)}"),
            distance=(self.distance in DISTANCES, f"one of {', '.join(DISTANCES)}"),
            weight=(0 < self.weight < float("inf"), "a number above 0"),
            temperature=(heat is None or 0 < heat < float("inf"), "a number above 0"),
        )

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["teacher"] = values.pop("named") or getattr(self.teacher, "name", self.teacher)
        return f"Distill({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        teacher = record.original if self.teacher is None else self.teacher
        if not isinstance(teacher, keras.Model):
            raise ValueError(f"distill: teacher={teacher!r}; expected a keras.Model")
        mine, theirs = (_shapes(one.input) for one in (model, teacher))
        if mine != theirs:
            raise ValueError(
                f"distill: the teacher reads {theirs}, the network {mine}; expected the same inputs"
            )
        copy = graph.rewrite(model, lambda _, layer: layer)
        # What earlier methods put there, such as adapters, is not a layer whose features count.
        added = {one.name for one in copy.layers} - {one.name for one in record.original.layers}
        features = functools.partial(self._features, added=added)
        make: dict[str, Any] = {
            "logits": functools.partial(self._logits, data=data),
            "features": features,
            "lattice": self._lattice,
        }
        compared, measure, teach = make[self.kind](copy, teacher)
        place, logits = _logits_of(copy)
        layer = Teach(measure, teach, self.weight, repr(self), name=_free_name(copy, "distill"))
        taught = layer(logits, compared, copy.input)
        outputs = copy.output
        outputs = {**outputs, place: taught} if isinstance(outputs, dict) else taught
        return keras.Model(copy.input, outputs, name=model.name)

    def state(self, model: keras.Model) -> dict[str, float]:
        return {"distance": float(self._teach(model).seen)}

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        mine = self._teach(model)
        if not int(mine.steps):
            raise NotApplicable("distill: a teacher teaches in a training only, and there was none")
        record.details[repr(self)] = {"last distance": float(mine.seen), "steps": int(mine.steps)}
        return graph.rewrite(model, lambda layer, copy: None if layer is mine else copy)

    def _teach(self, model: keras.Model) -> "Teach":
        teachers = [layer for layer in model.layers if isinstance(layer, Teach)]
        return next(layer for layer in teachers if layer.asked == repr(self))

    def _logits(self, model: keras.Model, teacher: keras.Model, data: Any = None) -> Any:
        """(tensors of the network to compare, the measure, a function inputs -> the teacher's)."""
        _, logits = _logits_of(model)
        place, target = _logits_of(teacher)
        if tuple(logits.shape[1:]) != tuple(target.shape[1:]):
            raise ValueError(
                f"distill: the teacher's logits are {tuple(target.shape)}, the network's "
                f"{tuple(logits.shape)}; expected equal shapes"
            )
        heat = 2.0 if self.temperature is None else self.temperature
        outputs = getattr(data and data.loss, "outputs_are", None)
        shares = tuple(_ends_in("sigmoid", one) for one in (logits, target))
        measure: Any = Classes(heat, tuple(_ends_in("softmax", one) for one in (logits, target)))
        if outputs == "sigmoid" or (outputs is None and logits.shape[-1] == 1 and all(shares)):
            measure = Shares(heat, shares)
        elif outputs == "numbers" or logits.shape[-1] == 1:
            measure = Features("mse", ((logits.shape[-1], logits.shape[-1]),))
        return [logits], measure, functools.partial(_run, teacher, place)

    def _lattice(self, model: keras.Model, teacher: keras.Model) -> Any:
        inputs = model.input
        if not isinstance(inputs, dict) or not {"frames", "labels"} <= set(inputs):
            raise NotApplicable("distill: no transducer: it has no inputs named frames and labels")
        (logits,), classes, teach = self._logits(model, teacher)
        if len(logits.shape) != 4:
            raise NotApplicable(f"distill: outputs {tuple(logits.shape)} are no lattices")
        frames = _feature_frames(model)
        heat = 1.0 if self.temperature is None else self.temperature
        measure = Lattice(heat, classes.soft, ratio=-(-frames // logits.shape[1]))
        return [logits, inputs["frames"], inputs["labels"]], measure, teach

    def _features(self, model: keras.Model, teacher: keras.Model, added: set[str]) -> Any:
        pairs = list(_pairs(self.which, model, teacher, added))
        for mine, theirs in pairs:
            if tuple(mine.shape[1:-1]) != tuple(theirs.shape[1:-1]):
                raise ValueError(
                    f"distill: features {tuple(mine.shape)} of {tensors.maker(mine).name} and "
                    f"{tuple(theirs.shape)} of the teacher's {tensors.maker(theirs).name}; "
                    "expected shapes that differ in the last axis at most"
                )
        widths = tuple((mine.shape[-1], theirs.shape[-1]) for mine, theirs in pairs)
        part = keras.Model(teacher.input, [theirs for _, theirs in pairs])
        teach = functools.partial(_run, part, None)
        return [mine for mine, _ in pairs], Features(self.distance, widths), teach


class Teach(keras.layers.Layer):
    """(outputs, what is compared, inputs of the network) -> outputs; a loss in training only.

    `measure(mine, theirs, projections)` is the distance; `teach(inputs)` runs the teacher: within a
    function Keras does not find its weights, which are neither trained nor saved.
    """

    def __init__(self, measure: Any, teach: Any, weight: float, asked: str, **kwargs: Any):
        super().__init__(**({"dtype": "float32", "autocast": False} | kwargs))
        self.measure, self.teach, self.weight, self.asked = measure, teach, weight, asked
        self.supports_masking = True

    def build(self, outputs_shape: Any, compared_shape: Any, inputs_shape: tuple[int, ...]) -> None:
        self.steps = self.add_weight(
            name="steps", shape=(), initializer="zeros", dtype="int", trainable=False
        )
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", trainable=False)
        self.projections = [
            self.add_weight(name=f"projection_{number}", shape=widths)
            for number, widths in enumerate(getattr(self.measure, "widths", ()))
            if widths[0] != widths[1]
        ]

    def call(self, outputs: Any, compared: Any, inputs: Any, training: bool | None = None) -> Any:
        if training:
            theirs = [ops.stop_gradient(_float32(one)) for one in self.teach(inputs)]
            distance = self.measure([_float32(one) for one in compared], theirs, self.projections)
            self.steps.assign_add(1)
            self.seen.assign(ops.stop_gradient(distance))
            self.add_loss(self.weight * distance)
        return outputs

    def compute_output_spec(
        self, outputs: Any, compared: Any, inputs: Any, training: bool | None = None
    ) -> Any:
        return keras.KerasTensor(outputs.shape, outputs.dtype)

    def get_config(self) -> dict[str, Any]:
        mine = {"measure": self.measure, "teach": self.teach, "asked": self.asked}
        config = super().get_config() | mine | {"weight": self.weight}
        return config | {"dtype": "float32", "autocast": False}


@dataclasses.dataclass(frozen=True)
class Classes:
    """heat^2 KL(teacher's, mine) of softmax(logits / heat); `soft`: which of both are softmaxed."""

    heat: float
    soft: tuple[bool, ...]

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        mine, theirs = self.logarithms(mine[0], theirs[0])
        mine, theirs = (ops.log_softmax(one, axis=-1) for one in (mine, theirs))
        return self.heat**2 * ops.mean(ops.sum(ops.exp(theirs) * (theirs - mine), axis=-1))

    def logarithms(self, *both: Any) -> Any:
        """Logits / heat of both: logarithms of probabilities are logits, too."""
        logits = [
            ops.log(ops.maximum(one, LEAST)) if soft else one
            for one, soft in zip(both, self.soft, strict=True)
        ]
        return logits if self.heat == 1 else [one / self.heat for one in logits]


@dataclasses.dataclass(frozen=True)
class Shares(Classes):
    """The same of sigmoids, each the probability of one class against its opposite."""

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        pairs = zip((mine[0], theirs[0]), self.soft, strict=True)
        mine, theirs = (
            ops.stack([one, 1 - one if soft else ops.zeros_like(one)], -1) for one, soft in pairs
        )
        return Classes.__call__(self, [mine], [theirs], projections)


@dataclasses.dataclass(frozen=True)
class Lattice(Classes):
    """The same of {blank, the next label, the rest} in the nodes of lattices, one array held."""

    ratio: int  # frames that are one column of the lattice

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        mine, frames, labels = mine
        mine, theirs = self.logarithms(mine, theirs[0])
        labels = ops.cast(labels, "int32")
        lengths = ops.sum(ops.cast(labels != BLANK, "int32"), axis=1)[:, None, None]
        columns = (ops.cast(frames, "int32") + self.ratio - 1) // self.ratio
        column = ops.arange(mine.shape[1], dtype="int32")[None, :, None]
        row = ops.arange(mine.shape[2], dtype="int32")[None, None, :]
        nodes = (column < ops.reshape(columns, (-1, 1, 1))) & (row <= lengths)
        nodes = ops.cast(nodes, "float32")
        nodes = nodes / ops.maximum(ops.sum(nodes), 1.0)
        next_label = ops.pad(labels, [[0, 0], [0, 1]])[:, None, :]  # 0: none follows
        next_label = ops.broadcast_to(next_label, ops.shape(mine)[:3])
        return self.heat**2 * _reduced_divergence(mine, theirs, next_label, nodes)


@dataclasses.dataclass(frozen=True)
class Features:
    """The mean distance of pairs of layers (..., width); widths: of each pair."""

    distance: str
    widths: tuple[tuple[int, int], ...]

    def __call__(self, mine: Any, theirs: Any, projections: Any) -> Any:
        projections, total = iter(projections), 0.0
        for one, other, (width, wanted) in zip(mine, theirs, self.widths, strict=True):
            one = one if width == wanted else ops.matmul(one, next(projections))
            if self.distance == "mse":
                size = ops.mean(ops.square(other))
                total += ops.mean(ops.square(one - other)) / ops.maximum(size, LEAST)
            else:
                total += 1 - ops.mean(ops.sum(ops.normalize(one) * ops.normalize(other), axis=-1))
        return total / len(self.widths)


def _reduced_divergence(mine, theirs, next_label, nodes):
    """Sum of nodes * KL(teacher's, mine) over three classes; logits (batch, T, U + 1, V).

    The gradient in closed form holds one array of that size: in a class k with probabilities p of
    mine and q of the teacher's it is softmax(mine) * (1 - q_k / p_k).
    """
    follows = next_label != BLANK

    def classes(logits):
        """log p of the blank, p of the blank, the label, the rest; logarithm of the sum."""
        total = ops.logsumexp(logits, axis=-1)
        blank = logits[..., BLANK] - total
        label = ops.take_along_axis(logits, next_label[..., None], axis=-1)[..., 0] - total
        taken = ops.exp(blank) + ops.where(follows, ops.exp(label), 0.0)
        return blank, label, ops.log(ops.maximum(1 - taken, LEAST)), total

    target = [ops.stop_gradient(one) for one in classes(theirs)[:3]]
    shares = [ops.exp(one) for one in target]
    shares[1] = ops.where(follows, shares[1], 0.0)

    @ops.custom_gradient
    def divergence(logits):
        *found, total = classes(logits)
        parts = zip(shares, target, found, strict=True)
        value = ops.sum(nodes * sum(q * (log_q - log_p) for q, log_q, log_p in parts))

        def gradient(upstream):
            blank, label, rest = (ops.exp(one) for one in found)
            weight = upstream * nodes
            result = ops.exp(logits - total[..., None])
            result = result * (weight * (1 - shares[2] / rest))[..., None]
            places = ops.arange(logits.shape[-1], dtype="int32")
            entries = (
                (next_label, label - shares[1]),
                (ops.zeros_like(next_label), blank - shares[0]),
            )
            for (
                place,
                entry,
            ) in entries:  # the blank second: where no label follows, it is the label
                here = places == place[..., None]
                result = ops.where(here, (weight * entry)[..., None], result)
            return result

        return value, gradient

    return divergence(mine)


def _run(teacher: keras.Model, place: Any, inputs: Any) -> list:
    """What the teacher makes of a batch, as a list."""
    outputs = teacher(inputs, training=False)
    if isinstance(outputs, dict):
        outputs = outputs[place]
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _shapes(inputs: Any) -> Any:
    """The shapes of inputs, by their names where they have some."""
    if isinstance(inputs, dict):
        return {name: tuple(tensor.shape[1:]) for name, tensor in sorted(inputs.items())}
    return [tuple(tensor.shape[1:]) for tensor in keras.tree.flatten(inputs)]


def _logits_of(model: keras.Model) -> tuple[Any, Any]:
    """(key, tensor) of the outputs that are classes: the only one, or the one named logits."""
    outputs = model.output
    if isinstance(outputs, dict):
        if "logits" not in outputs:
            raise NotApplicable(
                f"distill: none of the outputs {', '.join(outputs)} is named logits"
            )
        return "logits", outputs["logits"]
    outputs = keras.tree.flatten(outputs)
    if len(outputs) != 1:
        raise NotApplicable(f"distill: {len(outputs)} outputs without names; expected logits")
    return 0, outputs[0]


def _ends_in(activation: str, tensor: Any) -> bool:
    """Whether these are probabilities, as networks that end with a softmax, or sigmoids, give."""
    layer = tensors.maker(tensor)
    if isinstance(layer, Teach | Levels | keras.layers.Reshape):
        return _ends_in(activation, tensors.sources(tensor)[0])
    found = getattr(getattr(layer, "activation", None), "__name__", None)
    return found == activation or type(layer).__name__.lower() == activation


def _pairs(
    which: str | None, model: keras.Model, teacher: keras.Model, added: set[str]
) -> Iterator[Any]:
    """(mine, the teacher's) tensors of the layers that `which` means."""
    if which is None:
        yield tuple(_before_logits(_logits_of(one)[1], added) for one in (model, teacher))
        return
    if "->" in which:
        names = [tuple(pair.split("->")) for pair in which.split("|")]
    else:
        there = {layer.name for layer in teacher.layers}
        names = [(layer.name, layer.name) for layer in model.layers if layer.name in there]
        names = [pair for pair in names if re.search(which, pair[0])]
        if not names:
            raise NotApplicable(f"distill: which={which!r} is no layer that both networks have")
    for mine, theirs in names:
        yield tensors.output(model, mine), tensors.output(teacher, theirs)


def _feature_frames(model: keras.Model) -> int:
    """How many frames there are of the features of a transducer, its input or made of its audio.

    They are the first tensor (batch, frames, features) with more than one feature.
    """
    sound = [tensor for name, tensor in model.input.items() if name not in ("frames", "labels")]
    reached = {id(tensor) for tensor in sound}
    for node in graph.calls(model):
        if any(id(tensor) in reached for tensor in node.input_tensors):
            sound += node.output_tensors
            reached |= {id(tensor) for tensor in node.output_tensors}
    found = (tensor.shape for tensor in sound if len(tensor.shape) == 3)
    return next(shape[1] for shape in found if shape[-1] > 1)


def _before_logits(tensor: Any, added: set[str]) -> Any:
    """What the layer of the logits reads: the last features. `added`: layers of other methods."""
    layer = tensors.maker(tensor)
    passing = (Teach, keras.layers.Activation, keras.layers.Softmax, keras.layers.Reshape)
    before = tensors.sources(tensor)[0]
    sums = isinstance(layer, keras.layers.Add) and layer.name in added
    return _before_logits(before, added) if sums or isinstance(layer, passing) else before


def _free_name(model: keras.Model, name: str) -> str:
    names = {layer.name for layer in model.layers}
    return next(n for n in (name, *(f"{name}_{k}" for k in range(2, 99))) if n not in names)


def _float32(tensor):
    kind = keras.backend.standardize_dtype(tensor.dtype)
    return ops.cast(tensor, "float32") if "float" in kind and kind != "float32" else tensor

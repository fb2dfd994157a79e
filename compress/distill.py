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
from compress.distillation.distances import Classes, Features, Lattice, Several, Shares
from compress.examples.data import Data
from compress.method import LOSS, Method, NotApplicable, check_fields
from compress.rewriting import graph, tensors
from compress.rewriting.record import Record

KINDS = ("logits", "features", "lattice")
DISTANCES = ("mse", "cosine")


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
        if isinstance(model.input, dict) and not isinstance(teacher.input, dict):
            named = {tensor.name: tensor for tensor in teacher.inputs}
            teacher = keras.Model(named, teacher.output, name=teacher.name)
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
        place, logits = next(iter(_answers(copy).items()))
        layer = Teach(measure, teach, self.weight, repr(self), name=_free_name(copy, "distill"))
        taught = layer(logits, compared, copy.input)
        outputs = copy.output
        if isinstance(outputs, dict):
            outputs = {**outputs, place: taught}
        else:
            outputs = [taught, *outputs[1:]] if isinstance(outputs, list | tuple) else taught
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
        mine, theirs = _answers(model), _answers(teacher)
        shapes = [{at: tuple(one.shape[1:]) for at, one in each.items()} for each in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"distill: the teacher's logits are {_in_words(shapes[1])}, the network's "
                f"{_in_words(shapes[0])}; expected equal shapes"
            )
        loss = data and data.loss
        kinds = getattr(loss, "each_is", {})
        if len(mine) == 1:
            kinds = dict.fromkeys(mine, getattr(loss, "outputs_are", None))
        parts = tuple(self._distance(mine[at], theirs[at], kinds.get(at)) for at in mine)
        measure = parts[0] if len(parts) == 1 else Several(parts)
        return list(mine.values()), measure, functools.partial(_run, teacher, tuple(mine))

    def _distance(self, logits: Any, target: Any, outputs: str | None) -> Any:
        """That of one output; outputs: what it is, None where the loss does not say."""
        heat = 2.0 if self.temperature is None else self.temperature
        shares = tuple(_ends_in("sigmoid", one) for one in (logits, target))
        if outputs == "sigmoid" or (outputs is None and logits.shape[-1] == 1 and all(shares)):
            return Shares(heat, shares)
        if outputs == "numbers" or logits.shape[-1] == 1:
            return Features("mse", ((logits.shape[-1], logits.shape[-1]),))
        return Classes(heat, tuple(_ends_in("softmax", one) for one in (logits, target)))

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


def _run(teacher: keras.Model, places: Any, inputs: Any) -> list:
    """What the teacher makes of a batch, as a list."""
    outputs = teacher(inputs, training=False)
    if isinstance(outputs, dict):
        return [outputs[place] for place in places]
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _shapes(inputs: Any) -> Any:
    """The shapes of inputs, by their names where they have some."""
    if isinstance(inputs, dict):
        return {name: tuple(tensor.shape[1:]) for name, tensor in sorted(inputs.items())}
    return [tuple(tensor.shape[1:]) for tensor in keras.tree.flatten(inputs)]


def _answers(model: keras.Model) -> dict[Any, Any]:
    """Key, or number, of each output that is taught -> its tensor: the one named logits, or all."""
    outputs = model.output
    if isinstance(outputs, dict) and "logits" in outputs:
        return {"logits": outputs["logits"]}
    found = outputs if isinstance(outputs, dict) else dict(enumerate(_list(outputs)))
    if not all(isinstance(one, keras.KerasTensor) for one in found.values()):
        raise NotApplicable("distill: outputs within outputs; expected tensors, or a dict of them")
    return dict(found)


def _list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _in_words(shapes: dict[Any, Any]) -> str:
    return ", ".join(str(shape) for shape in shapes.values())


def _logits_of(model: keras.Model) -> Any:
    """The tensor of the only output, or of that named logits."""
    found = _answers(model)
    if len(found) > 1:
        raise NotApplicable(
            f"distill: of {len(found)} outputs none is named logits, so none tells which features "
            "count; name their layers by which="
        )
    return next(iter(found.values()))


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
        yield tuple(_before_logits(_logits_of(one), added) for one in (model, teacher))
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

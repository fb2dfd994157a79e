"""Drop experts: mixtures keep those that matter, at once or round by round while training goes on.

Jaiswal et al., "Finding Fantastic Experts in MoEs", arXiv 2504.05586: criteria (MC-Suite, see
compress/experts/criteria.py), iterative dropping, and lottery subnetworks (fine-tuned every round).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from compress.examples.data import Data
from compress.experts import statistics
from compress.experts.criteria import CRITERIA, EXTREMES, weakest
from compress.experts.masked import MaskedExperts
from compress.experts.statistics import Mixture, mixtures
from compress.method import STRUCTURE, Method, NotApplicable, check_fields
from compress.rewriting import graph
from compress.rewriting.parametrized import Parametrized
from compress.rewriting.record import Record, Weight
from compress.rewriting.weights import record_untouched
from families.layers.experts import Experts

# The share of a training in which experts are dropped. The paper trains longer after later rounds
# (0.2M tokens, twice as many each round); here the rounds are even, and the rest is a tail.
DROPPING = 0.5


@dataclasses.dataclass(frozen=True)
class DropExperts(Method):
    """Drop the share `fraction` of the experts of every mixture, and their columns of the router.

    criterion: of `CRITERIA` (MC-Suite's codes, "REAP" or "random"); extreme: whether the experts
    with the "min" or "max" score go (None: as suits the criterion). rounds: so many times scores
    are taken of `data` and equally many experts dropped; with training these are spread evenly over
    its first half (MoE lottery), the first before it begins. Mixtures that share a router lose the
    same experts, by the mean of their standard scores. seed: of "random".

    >>> from compress.method import compress
    >>> inputs = keras.Input((4, 8))
    >>> model = keras.Model(inputs, Experts(count=4, hidden=8, top_k=1, name="mixture")(inputs))
    >>> compress(model, [DropExperts(0.5, "RWN")]).model.get_layer("mixture").count
    2
    """

    fraction: float = 0.5
    criterion: str = "EAN"
    extreme: str | None = None
    rounds: int = 1
    seed: int = 0

    stage: ClassVar[int] = STRUCTURE

    def __post_init__(self):
        whole = isinstance(self.rounds, int)
        check_fields(
            self,
            fraction=(0 < self.fraction < 1, "a share between 0 and 1"),
            criterion=(self.criterion in CRITERIA, f"one of {', '.join(CRITERIA)}"),
            extreme=(self.extreme in (None, *EXTREMES), f"one of {', '.join(EXTREMES)}"),
            rounds=(whole and self.rounds >= 1, "a whole number from 1"),
        )

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        """The model with `MaskedExperts`, which still answer as before."""
        found = mixtures(model)
        if not found:
            raise NotApplicable(f"{model.name} has no mixture of experts")
        for mixture in found:
            self._number(mixture)
            if mixture.source is not None and mixture.router is None:
                raise NotApplicable(
                    f"the logits of {mixture.name} come from no linear Dense layer, whose columns "
                    "could be dropped"
                )
        # All that scores need is there, and they can be taken of this model: of one batch.
        few = next(_few(data), None) if data is not None else None
        statistics.gather(model, CRITERIA[self.criterion].needs, few)
        names = {mixture.holder.name for mixture in found}
        return graph.rewrite(
            model, lambda layer, copy: _masked(copy) if layer.name in names else copy
        )

    def _number(self, mixture: Mixture) -> int:
        """How many experts of a layer go."""
        count, top_k = mixture.layer.count, mixture.layer.top_k
        number = round(self.fraction * count)
        if count - number < top_k:
            raise ValueError(
                f"fraction={self.fraction:g} leaves {count - number} of the {count} experts of "
                f"{mixture.name}, but top_k={top_k}; expected at most {1 - top_k / count:g}"
            )
        if number == 0:
            raise ValueError(
                f"fraction={self.fraction:g} of the {count} experts of {mixture.name} is none; "
                f"expected at least {1 / count:g}"
            )
        return number

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        """Drop what is due: all rounds where the training is over, or there is none."""
        due = self.rounds
        if step < steps:
            due = min(due, 1 + int(step * self.rounds / (DROPPING * steps)))
        groups = _groups(model)
        changed = False
        for number in range(1, due + 1):
            missing = [self._missing(group, number) for group in groups]
            if any(missing):
                self._drop(model, data, number, groups, missing)
                changed = True
        return changed

    def _missing(self, group: list[Mixture], number: int) -> int:
        """How many more experts of a group are to be gone after round `number`."""
        first = group[0]
        goal = self._number(first) * number // self.rounds
        return max(0, goal - (first.layer.count - len(first.layer.alive())))

    def _drop(
        self, model: keras.Model, data: Data | None, number: int, groups: Any, missing: Any
    ) -> None:
        alive = {mixture.name: mixture.layer.alive() for group in groups for mixture in group}
        needs = CRITERIA[self.criterion].needs
        found = statistics.gather(model, needs, data, alive)
        extreme = self.extreme or CRITERIA[self.criterion].extreme
        for place, (group, count) in enumerate(zip(groups, missing, strict=True)):
            generator = np.random.default_rng((self.seed, number, place))
            mine = [found[mixture.name] for mixture in group]
            chosen = weakest(mine, self.criterion, extreme, count, generator) if count else []
            for mixture in group:
                mixture.layer.drop(dict(chosen), number)

    def state(self, model: keras.Model) -> dict[str, float]:
        """{"experts": how many are left, in all layers together}."""
        return {"experts": sum(len(mixture.layer.alive()) for mixture in mixtures(model))}

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        """The model with smaller `Experts` and routers; what is known of their weights is cut."""
        found = mixtures(model)
        record.details[repr(self)] = {
            "criterion": self.criterion,
            "extreme": self.extreme or CRITERIA[self.criterion].extreme,
            "layers": {
                mixture.name: {
                    "experts": mixture.layer.count,
                    "kept": mixture.layer.alive().tolist(),
                    "dropped": mixture.layer.dropped(),
                }
                for mixture in found
            },
        }
        touched = {*record.weights}
        for mixture in found:
            parts = [mixture.layer, *([mixture.router] if mixture.router is not None else [])]
            touched |= {weight.path for part in parts for weight in part.weights}
        finished = _cut(model, record)
        for name, variant in record.variants.items():
            record.variants[name] = _cut(variant, None)
        record_untouched(finished, touched, record, "no mixture of experts")
        return finished


def _few(data: Data) -> Iterator[Any]:
    for inputs, targets in data.batches(8):
        yield dataclasses.replace(data, inputs=inputs, targets=targets)


def _masked(layer):
    """The twin of an `Experts`, or of the layer that reads its weights through functions."""
    if isinstance(layer, Parametrized):
        new = type(layer)(_masked(layer.layer))
        for path, functions in layer.parametrizations.items():
            for function in functions:
                new.parametrize(path, function)
        return new
    return _rebuilt(layer, MaskedExperts)


def _rebuilt(layer: Experts, kind: type[Experts]) -> Experts:
    """The same experts as a layer of another kind."""
    new = kind.from_config(layer.get_config())
    new.build(
        (None, None, layer.expand.shape[1]),
        None if layer.router is not None else (None, layer.count),
    )
    found = {weight.name: weight for weight in layer.weights}
    for weight in new.weights:
        if weight.name in found:
            weight.assign(found[weight.name])
    return new


def _groups(model: keras.Model) -> list[list[Mixture]]:
    """Mixtures that have to lose the same experts: those that share their logits."""
    groups: dict[object, list[Mixture]] = {}
    for mixture in mixtures(model):
        key = mixture.name if mixture.source is None else id(mixture.router)
        groups.setdefault(key, []).append(mixture)
    return list(groups.values())


def _cut(model: keras.Model, record: Record | None) -> keras.Model:
    """The model without the experts that were dropped; without `record` nothing is said there."""
    found = mixtures(model)
    if not any(isinstance(mixture.layer, MaskedExperts) for mixture in found):
        return model
    kept = {mixture.name: mixture.layer.alive() for mixture in found}
    routers = {mixture.router.name: mixture for mixture in found if mixture.router is not None}
    whole = {name for name, mixture in routers.items() if _used_elsewhere(model, mixture)}

    def change(layer, copy):
        if isinstance(copy, MaskedExperts):
            experts = kept[layer.name]
            _cut_weights(record, layer, {"router": 1}, experts)
            new = _rebuilt(copy, Experts).keep_experts(experts)
            mixture = next(mixture for mixture in found if mixture.name == layer.name)
            if mixture.router is None or mixture.router.name not in whole:
                return new
            # Somebody else wants all logits: the router stays, the experts get their columns.
            return lambda x, logits: new(x, ops.take(logits, experts.tolist(), axis=-1))
        if layer.name in routers and layer.name not in whole:
            experts = kept[routers[layer.name].name]
            _cut_weights(record, layer, {"kernel": 1}, experts)
            return _narrow(copy, experts)
        return copy

    return graph.rewrite(model, change)


def _used_elsewhere(model: keras.Model, mixture: Mixture) -> bool:
    """Whether anything but experts sees the logits that a router outside gives."""
    if mixture.source is None:
        return False
    if any(mixture.source is output for output in model.outputs):
        return True
    return any(
        any(mixture.source is tensor for tensor in node.input_tensors)
        and not isinstance(node.operation, Experts)
        for node in graph.calls(model)
    )


def _narrow(dense: keras.layers.Dense, outputs: np.ndarray) -> keras.layers.Dense:
    new = keras.layers.Dense.from_config(dense.get_config() | {"units": len(outputs)})
    new.build((None, dense.kernel.shape[0]))
    for weight, source in zip(new.weights, dense.weights, strict=True):
        weight.assign(ops.take(source, outputs.tolist(), axis=-1))
    return new


def _cut_weights(
    record: Record | None, layer: keras.layers.Layer, axes: dict[str, int], kept: np.ndarray
) -> None:
    """What is known of the weights of a layer, for those experts alone; they are on axis 0 else."""
    for weight in layer.weights:
        if record is not None and (known := record.weights.get(weight.path)) is not None:
            record.weights[weight.path] = _take(known, kept, axes.get(weight.name, 0))


def _take(weight: Weight, kept: np.ndarray, axis: int) -> Weight:
    """`Weight.take`, of a weight with tables of levels for each expert as well."""
    levels, codes = weight.levels, weight.codes
    if levels is None or codes is None or len(levels) == 1 or not weight.on_groups(axis):
        return weight.take(kept, axis)
    if len(levels) != codes.shape[axis]:
        raise ValueError(
            f"{len(levels)} tables of levels for {codes.shape[axis]} experts: "
            "those that share one cannot be dropped apart"
        )
    whole = dataclasses.replace(weight, levels=levels[:1]).take(kept, axis)
    return dataclasses.replace(whole, levels=levels[kept])

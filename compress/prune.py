"""Magnitude pruning: the smallest weights become zeros, more and more of them while training.

Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878 (the schedule, as in tfmot); N:M:
Mishra et al., arXiv 2104.08378.
"""

import dataclasses
import re
from typing import Any

import keras
import numpy as np
from keras import ops

from compress.examples.data import Data
from compress.method import WEIGHTS, Method, NotApplicable, check_fields
from compress.rewriting.parametrized import Parametrization, functions, parametrize
from compress.rewriting.record import Record, Weight
from compress.rewriting.weights import Kernel, kernels, record_untouched

SCOPES = ("layer", "global", "lamp")
SPARSITY = 0.8  # unless the pattern says it
# Of each weight, whatever the others are like: a layer without any passes nothing on (Tanaka et
# al., arXiv 2006.05467, name that layer collapse); our choice, not for scope="layer".
LEAST_KEPT = 0.01
NOT_BY_ITSELF = {
    "depthwise": "depthwise: few weights, each alone for its channel and place",
    "embedding": "embedding: a row is looked up whole, so zeros save no work",
}
_NEVER, _FROZEN = -1, -2  # of Mask.updated


@dataclasses.dataclass(frozen=True)
class Prune(Method):
    """Zeros in place of the smallest weights: `sparsity` of each, or of all.

    scope: "layer": every weight is as sparse as the others; "global": the smallest of all;
        "lamp": of all, by what share of the squares of its own weight a value makes up among those
        no smaller (Lee et al., arXiv 2010.07611), which a layer's scale does not touch.
    pattern: "unstructured"; "2:4" (any N:M), at most N of every M consecutive inputs of an output
        stay, which is a sparsity of its own; "1x4" (any 1xB), whole blocks of B consecutive inputs,
        by their sum of magnitudes. Inputs of a convolution are in the order row, column, channel.
    begin, end, every: from when to when masks are chosen anew, and how often; an int is a number of
        steps, a float a share of the training. The sparsity rises from `initial` by
        `polynomial` with `power`; the steps after `end` train what is left.
    which: regex over the paths of weights; None: all kernels but depthwise ones and embeddings.

    While masks still change, the gradient of a masked weight is taken as if it were there, and of
    what it accumulates the last step counts when masks are chosen: so it can come back (as tfmot).

    >>> Prune(pattern="2:4").sparsity, Prune("2:4").pattern
    (0.5, '2:4')
    """

    sparsity: float | str | None = None
    scope: str = "layer"
    pattern: str = "unstructured"
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.7
    power: float = 3
    every: float = 0.01
    which: str | None = None

    stage = WEIGHTS

    def __post_init__(self):
        if isinstance(self.sparsity, str):  # prune:2:4, as users write it
            object.__setattr__(self, "pattern", self.sparsity)
            object.__setattr__(self, "sparsity", None)
        keep, group = _pattern(self.pattern)
        given = 1 - keep / group if keep else SPARSITY
        sparsity = given if self.sparsity is None else float(self.sparsity)
        object.__setattr__(self, "sparsity", sparsity)
        check_fields(
            self,
            sparsity=(
                0 < sparsity < 1 and (not keep or abs(sparsity - given) < 1e-6),
                f"{given} of pattern {self.pattern}" if keep else "between 0 and 1",
            ),
            scope=(self.scope in SCOPES, f"one of {SCOPES}"),
            initial=(0 <= self.initial <= sparsity, "from 0 to the sparsity"),
            begin=(_is_time(self.begin), "a share 0.0..1.0 or a number of steps"),
            end=(_is_time(self.end), "a share 0.0..1.0 or a number of steps"),
            every=(_is_time(self.every) and self.every > 0, "a share or a number of steps > 0"),
            power=(self.power > 0, "above 0"),
        )
        if keep and self.scope != "layer":
            raise ValueError(
                f"prune scope={self.scope!r}; expected 'layer': every group of {self.pattern} is "
                "as sparse"
            )

    @property
    def _final(self) -> float:
        """The sparsity in the end: `__post_init__` has put a number in place of None."""
        return SPARSITY if self.sparsity is None else float(self.sparsity)

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        left: dict[str, str] = {}
        chosen = self._chosen(model, left)
        for name, reason in left.items():
            record.untouched.setdefault(name, reason)
        if not chosen:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            matched = "" if self.which is None else f" matches which={self.which!r}"
            raise NotApplicable(
                f"prune: no kernel{matched} to prune in {model.name}"
                + (f" ({reasons})" if reasons else "")
            )
        paths = [kernel.path for kernel in chosen]
        record_untouched(model, paths, record, f"not matched by which={self.which!r}")
        return parametrize(model, {path: Mask(repr(self)) for path in paths})

    def _chosen(self, model: keras.Model, left: dict[str, str]) -> list[Kernel]:
        """What is to be pruned; `left`: name of a layer -> why one of its kernels is not."""
        keep, group = _pattern(self.pattern)
        chosen = []
        for kernel in kernels(model):
            inputs = int(np.prod([kernel.shape[axis] for axis in kernel.input_axes]))
            if self.which is not None and not re.search(self.which, kernel.path):
                continue
            if self.which is None and kernel.kind in NOT_BY_ITSELF:
                left[kernel.layer] = f"{NOT_BY_ITSELF[kernel.kind]}; name it by which= to prune it"
            elif inputs % group:
                left[kernel.layer] = f"{inputs} inputs are no multiple of {group}: {self.pattern}"
            else:
                chosen.append(kernel)
        return chosen

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        masks = self._masks(model)
        last = int(next(iter(masks.values())).updated)
        if last == _FROZEN:
            return False
        begin, end, every = (_steps(time, steps) for time in (self.begin, self.end, self.every))
        over = step >= max(begin, end) or step == steps

        def due(step: int) -> bool:
            return step >= begin and (last == _NEVER or step - last >= max(every, 1))

        if not over and not due(step):
            if last == _NEVER or not due(step + 1):
                return False
            # What masked weights gathered until now does not count when masks are chosen.
            for weight, mask in self._weights(model, masks):
                weight.assign(weight.value * ops.cast(mask.mask, weight.dtype))
            return True
        sparsity = self._final
        if not over:
            sparsity = polynomial(
                step, begin, end, initial=self.initial, final=self._final, power=self.power
            )
        self._choose(model, masks, sparsity, _FROZEN if over else step)
        return True

    def _choose(self, model: keras.Model, masks: dict, sparsity: float, updated: int) -> None:
        """New masks, by the weights as they are now."""
        shapes = {kernel.path: kernel for kernel in kernels(model)}
        pairs = list(self._weights(model, masks))
        rows = [
            _rows(ops.convert_to_numpy(weight.value), shapes[weight.path].input_axes)
            for weight, _ in pairs
        ]
        kept = largest(rows, sparsity, self.pattern, self.scope, share=sparsity / self._final)
        for (weight, mask), chosen in zip(pairs, kept, strict=True):
            chosen = _from_rows(chosen, tuple(weight.shape), shapes[weight.path].input_axes)
            mask.mask.assign(chosen)
            mask.updated.assign(updated)
            weight.assign(weight.value * ops.cast(mask.mask, weight.dtype))

    def _masks(self, model: keras.Model) -> dict[str, "Mask"]:
        found = functions(model, Mask)
        mine = {
            path: mask
            for path, chain in found.items()
            for mask in chain
            if mask.owner == repr(self)
        }
        if not mine:
            raise ValueError(f"{model.name} was not prepared by {self!r}")
        return mine

    def _weights(self, model: keras.Model, masks: dict) -> Any:
        """(weight, its mask) of all masks."""
        weights = {weight.path: weight for weight in model.weights}
        return [(weights[path], mask) for path, mask in masks.items()]

    def state(self, model: keras.Model) -> dict[str, float]:
        masks = [ops.convert_to_numpy(mask.mask.value) for mask in self._masks(model).values()]
        return {"sparsity": 1 - sum(mask.sum() for mask in masks) / sum(m.size for m in masks)}

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        chosen = [kernel.path for kernel in self._chosen(model, {})]
        # Adapters of `recover` are new kernels, and have no mask.
        known = {path: record.weights[path].mask for path in chosen if path in record.weights}
        masks = {path: mask for path, mask in known.items() if mask is not None}
        zeros = {path: int(mask.size - mask.sum()) for path, mask in masks.items()}
        record.details[repr(self)] = {
            "sparsity": sum(zeros.values()) / sum(mask.size for mask in masks.values()),
            "zeros": sum(zeros.values()),
            "weights": {path: zeros[path] / mask.size for path, mask in masks.items()},
        }
        return model


class Mask(Parametrization):
    """The weight where the mask is True, else 0."""

    last = True

    def __init__(self, owner: str = ""):
        super().__init__()
        self.owner = owner

    def build(self, shape: tuple[int, ...]) -> None:
        # No float: averages of weights (`Recipe.ema`) are not taken of it.
        self.mask = self.add_weight(
            shape=shape, dtype="bool", initializer="ones", trainable=False, name="mask"
        )
        self.updated = self.add_weight(  # the step of the last choice
            shape=(),
            dtype="int32",
            initializer=keras.initializers.Constant(_NEVER),
            trainable=False,
            name="updated",
        )

    def call(self, weight: Any) -> Any:
        still = ops.cast(ops.not_equal(self.updated.value, _FROZEN), weight.dtype)
        absent = (weight - ops.stop_gradient(weight)) * still  # 0, whose gradient goes on
        return ops.where(self.mask.value, weight, absent)

    def describe(self, value: np.ndarray, before: Weight | None) -> Weight:
        mask = ops.convert_to_numpy(self.mask.value)
        before = before or Weight()
        return dataclasses.replace(before, mask=mask if before.mask is None else before.mask & mask)


def polynomial(
    step: float, begin: float, end: float, *, initial: float, final: float, power: float = 3
) -> float:
    """Sparsity at a step: final + (initial - final) (1 - (step - begin) / (end - begin))^power.

    Before `begin` it is `initial`, after `end` `final`: tfmot's PolynomialDecay.

    >>> polynomial(5, 0, 10, initial=0.0, final=0.5)
    0.4375
    """
    share = min(1.0, max(0.0, (step - begin) / (end - begin))) if end > begin else 1.0
    return final + (initial - final) * (1 - share) ** power


def largest(
    rows: list[np.ndarray],
    sparsity: float,
    pattern: str = "unstructured",
    scope: str = "layer",
    share: float = 1.0,
) -> list[np.ndarray]:
    """Masks of the weights `rows`, each (outputs, inputs): True where a value stays.

    round(size * (1 - sparsity)) of each weight stay, at least 1, as in tfmot; of equals the first.
    N:M: of each group M - floor(share * (M - N)).

    >>> largest([np.array([[3.0, -1.0, 0.5, 2.0]])], 0.5, "2:4")[0].tolist()
    [[True, False, False, True]]
    """
    keep, group = _pattern(pattern)
    scores = [np.abs(row).reshape(-1, group) for row in rows]
    if keep:
        stay = group - int(share * (group - keep) + 1e-6)
        order = [np.argsort(-score, axis=1, kind="stable") for score in scores]
        kept = [np.zeros(score.shape, bool) for score in scores]
        for mask, places in zip(kept, order, strict=True):
            np.put_along_axis(mask, places[:, :stay], True, axis=1)
    else:
        scores = [score.sum(1) for score in scores]
        if scope == "lamp":
            scores = [_of_what_is_left(score) for score in scores]
        if scope != "layer":
            for score in scores:
                score[_top(score, max(1, round(LEAST_KEPT * len(score))))] = np.inf
            scores, ends = [np.concatenate(scores)], np.cumsum([len(score) for score in scores])
        kept = [_top(score, max(1, round(len(score) * (1 - sparsity)))) for score in scores]
        if scope != "layer":
            kept = np.split(kept[0], ends[:-1])
        kept = [np.repeat(mask, group) for mask in kept]
    return [mask.reshape(row.shape) for mask, row in zip(kept, rows, strict=True)]


def _of_what_is_left(sizes: np.ndarray) -> np.ndarray:
    """Equation 2 of Lee et al.: a square over the sum of those that are no smaller, itself too."""
    order = np.argsort(sizes, kind="stable")
    squares = np.square(sizes[order], dtype=np.float64)
    left = np.cumsum(squares[::-1])[::-1]
    scores = np.empty(len(sizes))
    scores[order] = squares / np.maximum(left, np.finfo(np.float64).tiny)
    return scores


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """Mask of exactly `count` of the largest scores, of equals the first."""
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    mask = scores > threshold
    mask[np.flatnonzero(scores == threshold)[: count - np.count_nonzero(mask)]] = True
    return mask


def _rows(value: np.ndarray, input_axes: tuple[int, ...]) -> np.ndarray:
    """(outputs, inputs): what an output sums over is a row."""
    outputs = [axis for axis in range(value.ndim) if axis not in input_axes]
    size = int(np.prod([value.shape[axis] for axis in input_axes]))
    return value.transpose(*outputs, *input_axes).reshape(-1, size)


def _from_rows(rows: np.ndarray, shape: tuple[int, ...], input_axes: tuple[int, ...]) -> Any:
    """The inverse of `_rows`."""
    order = [axis for axis in range(len(shape)) if axis not in input_axes] + list(input_axes)
    return rows.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def _pattern(text: str) -> tuple[int, int]:
    """(N, M) of "N:M", (0, B) of blocks "1xB", (0, 1) of "unstructured"."""
    if text == "unstructured":
        return 0, 1
    if found := re.fullmatch(r"(\d+):(\d+)|1x(\d+)", str(text)):
        keep, group, block = (int(number or 0) for number in found.groups())
        if 0 < keep < group or block > 1:
            return (keep, group) if group else (0, block)
    raise ValueError(
        f"prune pattern={text!r}; expected 'unstructured', 'N:M' such as '2:4' (N of M stay) or "
        "'1xB' such as '1x4' (blocks of B inputs)"
    )


def _is_time(value: float) -> bool:
    return value >= 0 and (isinstance(value, int) or value <= 1)


def _steps(time: float, steps: int) -> int:
    """A number of steps; a float is a share of all."""
    return time if isinstance(time, int) else round(time * steps)

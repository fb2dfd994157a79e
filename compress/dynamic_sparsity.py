"""Dynamic sparsity: one set of weights that is several networks, each sparser than the one before.

Wu et al., "Dynamic Sparsity Neural Networks", arXiv 2005.10627. How levels are sampled is not known
of the paper: ours is that of slimmable networks (compress/channels/nested_levels.py).
"""

import dataclasses
import itertools
from typing import Any

import keras
import numpy as np

from compress.channels.hidden_units import bundles, chooser, importance
from compress.channels.nested_levels import (
    Levels,
    has_levels,
    levels_of,
    rank_levels,
    with_levels,
    without_levels,
)
from compress.channels.unit_blocks import Cut, build_variants, kept_units
from compress.examples.data import Data
from compress.method import STRUCTURE, Method, NotApplicable, check_fields
from compress.rewriting import graph
from compress.rewriting.parametrized import parametrize
from compress.rewriting.record import Record
from compress.rewriting.weights import Kernel, kernels, record_untouched

PATTERNS = ("blocks", "unstructured", "1x4")
LEFT = ("depthwise", "embedding")
EVERY = 0.01  # of a training: how often masks are chosen anew


@dataclasses.dataclass(frozen=True)
class DynamicSparsity(Method):
    """Nested networks of these sparsities: shares of the kernels' weights that each does without.

    levels: ascending, the first 0, the whole network; in a spec "0+0.5+0.75+0.9".
    pattern: "blocks" leaves out hidden units, the same share of every layer that can lose any. The
        finished network has a layer for each block of units, and the networks of the levels are
        made of the same layers: smaller dense networks, that share their constants in one file.
        "unstructured" and "1x4" (4 consecutive inputs together) leave out the smallest weights of
        each kernel: only a sparse format makes that smaller. Level 0 is the network as it was.
    until: share of the training in which masks of weights still follow the weights, sparser and
        sparser; blocks are chosen once, by the weights at the beginning.
    distill: weight of the loss of each level, which is how far its outputs are from those of the
        whole network; the loss of the training is that of the whole network alone.
    seed: of the drawing of levels.

    Afterwards `record.variants` has the networks by name, "0%" first, which is the finished one.

    >>> DynamicSparsity("0+0.5").levels
    (0.0, 0.5)
    """

    levels: tuple[float, ...] | str = (0.0, 0.5, 0.75, 0.9)
    pattern: str = "blocks"
    until: float = 0.5
    distill: float = 0.3
    seed: int = 0

    stage = STRUCTURE

    def __post_init__(self):
        try:
            given = self.levels.split("+") if isinstance(self.levels, str) else self.levels
            levels = tuple(float(level) for level in given)
        except (TypeError, ValueError):
            levels = ()
        ascending = all(low < high for low, high in itertools.pairwise((*levels, 1.0)))
        sound = 2 <= len(levels) <= 255 and levels[0] == 0 and ascending
        example = "ascending shares below 1, the first 0, such as 0+0.5+0.75+0.9"
        check_fields(
            self,
            levels=(sound, example),
            pattern=(self.pattern in PATTERNS, f"one of {PATTERNS}"),
            until=(0 <= self.until <= 1, "0..1"),
            distill=(self.distill > 0, "above 0"),
        )
        object.__setattr__(self, "levels", levels)

    @property
    def _sparser(self) -> tuple[float, ...]:
        """The levels but the first, which is the whole network."""
        return tuple(float(level) for level in self.levels[1:])

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        if has_levels(model):
            raise NotApplicable("dynamic_sparsity: the network has levels already; name it once")
        if (other := chooser(model)) is not None:
            raise NotApplicable(
                f"dynamic_sparsity: layer {other.name} chooses hidden units of this network "
                "already, for another method; use one of them"
            )
        levels = Levels(len(self.levels), self.distill, self.seed, name="levels")
        masks = (
            self._of_units(model, levels) if self._by_blocks else self._of_weights(model, levels)
        )
        if not masks:
            what = "hidden units that only other Dense or Conv layers see"
            what = what if self._by_blocks else "kernels of which single weights can go"
            raise NotApplicable(f"dynamic_sparsity: {model.name} has no {what}")
        reason = "no hidden units of its own" if self._by_blocks else "its weights go together"
        record_untouched(model, _touched(model, masks, self._by_blocks), record, reason)
        return with_levels(parametrize(model, masks), levels)

    @property
    def _by_blocks(self) -> bool:
        return self.pattern == "blocks"

    def _of_units(self, model: keras.Model, levels: Levels) -> dict:
        """Masks over the inputs of the layers that read hidden units, by path of the kernel."""
        found = bundles(model)
        counts = kept_units(model, found, self._sparser)
        owners = {kernel.layer: kernel for kernel in kernels(model)}
        masks = {}
        for bundle, kept in zip(found, counts, strict=True):
            key = bundle.consumers[0]
            levels.add(key, rank_levels(importance(model, bundle), kept))
            for name in bundle.consumers:
                shape = [1] * len(owners[name].shape)
                shape[-2] = bundle.size
                masks[owners[name].path] = levels.mask(key, shape)
        return masks

    def _of_weights(self, model: keras.Model, levels: Levels) -> dict:
        masks, values = {}, _values(model)
        for kernel in kernels(model):
            if kernel.kind in LEFT or not self._fits(kernel):
                continue
            levels.add(kernel.path, self._ranked(values[kernel.path], kernel, 1.0))
            masks[kernel.path] = levels.mask(kernel.path, kernel.shape)
        return masks

    def _fits(self, kernel: Kernel) -> bool:
        return self.pattern != "1x4" or not kernel.shape[kernel.input_axes[-1]] % 4

    def _ranked(self, variable: Any, kernel: Kernel, ramp: float) -> np.ndarray:
        """The level of each weight, by magnitude; `ramp` 0..1: how sparse the levels are yet."""
        scores = np.abs(keras.ops.convert_to_numpy(variable).astype(np.float64))
        if self.pattern == "unstructured":
            return rank_levels(scores, self._kept(scores.size, ramp))
        axis = kernel.input_axes[-1]
        rows = np.moveaxis(scores, axis, -1)
        blocks = rows.reshape(*rows.shape[:-1], -1, 4).sum(-1)
        rank = rank_levels(blocks, self._kept(blocks.size, ramp))
        return np.moveaxis(np.repeat(rank, 4, axis=-1), -1, axis)

    def _kept(self, size: int, ramp: float = 1.0) -> list[int]:
        return [max(1, size - round(level * ramp * size)) for level in self._sparser]

    def update(self, model: keras.Model, data: Data | None, step: int, steps: int) -> bool:
        if self._by_blocks:
            return False
        ramp = 1.0
        if step < steps:
            if step % max(1, round(EVERY * steps)) or step > self.until * steps:
                return False
            # The cubic of Zhu and Gupta, arXiv 1710.01878.
            ramp = 1 - (1 - min(1.0, step / max(1, self.until * steps))) ** 3
        levels, values = levels_of(model), _values(model)
        changed = False
        for kernel in kernels(model):
            if kernel.path not in levels.ranks:
                continue
            rank = levels.ranks[kernel.path]
            if step == steps and self._is_reached(keras.ops.convert_to_numpy(rank)):
                continue
            rank.assign(self._ranked(values[kernel.path], kernel, ramp))
            changed = True
        return changed

    def _is_reached(self, rank: np.ndarray) -> bool:
        unit = 4 if self.pattern == "1x4" else 1
        kept = self._kept(rank.size // unit)
        return all(np.sum(rank >= n) == unit * count for n, count in enumerate(kept, 1))

    def state(self, model: keras.Model) -> dict[str, float]:
        if self._by_blocks:
            return {"levels": len(self.levels)}
        levels = levels_of(model)
        ranks = [keras.ops.convert_to_numpy(rank) for rank in levels.ranks.values()]
        most = sum(np.sum(rank < len(self.levels) - 1) for rank in ranks)
        return {"sparsity": float(most / sum(rank.size for rank in ranks))}

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        levels = levels_of(model)
        ranks = {key: keras.ops.convert_to_numpy(rank) for key, rank in levels.ranks.items()}
        model = without_levels(model)
        names = [f"{100 * level:g}%" for level in self.levels]
        if self._by_blocks:
            cuts = self._cuts(model, ranks)
            networks = build_variants(model, cuts, len(names), record)
        else:
            networks = [model, *(_masked(model, ranks, n) for n in range(1, len(names)))]
        record.variants = dict(zip(names, networks, strict=True))
        sizes = {
            name: {"params": network.count_params(), "non_zeros": _non_zeros(network)}
            for name, network in record.variants.items()
        }
        record.details[repr(self)] = {"pattern": self.pattern, "levels": sizes}
        return networks[0]

    def _cuts(self, model: keras.Model, ranks: dict[str, np.ndarray]) -> list[Cut]:
        """The blocks, of units that may be fewer now: another method can have removed some."""
        found = bundles(model)
        counts = kept_units(model, found, self._sparser)
        cuts = []
        for bundle, kept in zip(found, counts, strict=True):
            rank = ranks.get(bundle.consumers[0])
            if rank is None or len(rank) != bundle.size:
                rank = rank_levels(importance(model, bundle), kept)
            cuts.append(Cut(bundle, rank))
        return cuts


def _values(model: keras.Model) -> dict:
    return {weight.path: weight for weight in model.weights}


def _touched(model: keras.Model, masks: dict, by_blocks: bool) -> list[str]:
    """Paths of the kernels that lose weights."""
    if not by_blocks:
        return list(masks)
    names = {name for bundle in bundles(model) for name in (*bundle.producers, *bundle.consumers)}
    names |= {name for bundle in bundles(model) for name in bundle.carriers}
    return [w.path for layer in model.layers if layer.name in names for w in layer.weights]


def _masked(model: keras.Model, ranks: dict[str, np.ndarray], level: int) -> keras.Model:
    """A copy in which only the weights of a level are not zero."""
    network = graph.rewrite(model, lambda _, copy: copy)
    for weight in network.weights:
        if weight.path in ranks:
            weight.assign(keras.ops.convert_to_numpy(weight) * (ranks[weight.path] >= level))
    return network


def _non_zeros(model: keras.Model) -> int:
    return int(sum(np.count_nonzero(keras.ops.convert_to_numpy(w)) for w in model.weights))

"""Few levels for many weights: which, how far apart, and how they are trained.

Learned step: Esser et al., "LSQ", arXiv 1902.08153; balanced levels: Liu et al., "ParetoQ", arXiv
2502.02631, and Apple's 2-bit networks, arXiv 2507.13575; clipping: Sakr et al., arXiv 2206.06501.
"""

from typing import Any

import numpy as np
from keras import ops

from compress.rewriting.parametrized import Parametrization
from compress.rewriting.record import Weight

# Lowest and highest level, in steps. 2 bits: balanced about 0 without a level there, as a zero
# would cost a quarter of the codes. 3 bits: a zero costs an eighth, and all codes are used, as no
# integer kernel takes 3 bits. 4 and 8 bits: the narrow range that LiteRT's specification asks for.
RANGES = {2: (-1.5, 1.5), 3: (-4.0, 3.0), 4: (-7.0, 7.0), 8: (-127.0, 127.0)}
STARTS = 16  # shares of the scale for the largest magnitude that a search may begin with
NEWTON = 20  # steps at most; few are needed
CLIPS = ("newton", "octav", "maxabs")


def levels(bits: int) -> np.ndarray:
    """The levels of a weight of so many bits, in steps, float32 and ascending.

    >>> levels(2).tolist()
    [-1.5, -0.5, 0.5, 1.5]
    """
    low, high = limits(bits)
    return np.arange(low, high + 1, dtype=np.float32)


def limits(bits: int) -> tuple[float, float]:
    """Lowest and highest level of so many bits, in steps.

    >>> limits(4)
    (-7.0, 7.0)
    """
    if bits not in RANGES:
        raise ValueError(f"bits={bits!r}; expected one of {', '.join(map(str, RANGES))}")
    return RANGES[bits]


def codes(values: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """uint8 numbers of the levels that are nearest to values / scale.

    >>> codes(np.array([-9.0, 0.4, 1.6]), np.float32(1), 2).tolist()
    [0, 2, 3]
    """
    low, high = limits(bits)
    return np.clip(np.rint(values / scale - low), 0, high - low).astype(np.uint8)


def round_to_levels(values: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """The nearest of scale * levels, float32.

    >>> round_to_levels(np.array([-9.0, 0.4, 1.6]), np.float32(1), 2).tolist()
    [-1.5, 0.5, 1.5]
    """
    return levels(bits)[codes(values, scale, bits)] * np.asarray(scale, np.float32)


def scales(
    values: np.ndarray,
    bits: int,
    axes: tuple[int, ...],
    clip: str = "newton",
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """float32 distances of the levels, one for each index of the axes other than `axes`.

    clip: "maxabs" covers all values; "octav" is the fixed point of Sakr et al., which takes the
        levels for a fine grid; "newton" finds the least squared error for these very levels.
    mask: bool, False where a value does not count.

    "newton": for given codes q the error sum (w - s q)^2 is a parabola in s whose minimum is one
    Newton step away; new codes never raise the error, so it falls until it stays. It starts at the
    best of some scales up to "maxabs", hence is never worse than that.

    >>> scales(np.array([[0.5, -3.0], [1.5, 1.0]]), 2, axes=(0,), clip="maxabs").tolist()
    [[1.0, 2.0]]
    """
    if clip not in CLIPS:
        raise ValueError(f"clip={clip!r}; expected one of {', '.join(CLIPS)}")
    if not np.all(np.isfinite(values)):
        raise ValueError("a weight holds NaN or infinity; expected the weights of a sound network")
    low, high = limits(bits)
    kept = [axis for axis in range(values.ndim) if axis not in axes]
    shape = [values.shape[axis] if axis in kept else 1 for axis in range(values.ndim)]

    def rows(array):
        return np.moveaxis(array, kept, range(len(kept))).reshape(int(np.prod(shape)), -1)

    w = rows(np.asarray(values, np.float32))
    counts = None if mask is None else rows(np.broadcast_to(mask, values.shape))
    if counts is not None:
        w = np.where(counts, w, np.float32(0))
    widest = np.maximum(w.max(1, initial=0) / high, w.min(1, initial=0) / low)
    # A row of zeros: small beside the others, so that it stays nearly zero and yet can grow.
    floor = max(1e-3 * float(widest.mean()), 1e-8)
    widest = np.maximum(widest, np.float32(floor))
    if clip == "maxabs":
        found = widest
    elif clip == "octav":
        found = np.maximum(_octav(w, counts, bits) / np.float32(high), floor)
    else:
        found = _newton(w, counts, bits, widest)
    return found.astype(np.float32).reshape(shape)


def _newton(w, counts, bits, widest):
    low, high = limits(bits)

    def nearest(scale):
        return np.clip(np.rint(w / scale[:, None] - low) + low, low, high).astype(np.float32)

    def error(scale):
        difference = w - scale[:, None] * nearest(scale)
        if counts is not None:
            difference = np.where(counts, difference, 0)
        return np.einsum("rn,rn->r", difference, difference)

    best, least = widest, error(widest)
    coarse, fine = np.arange(1, STARTS) / STARTS, 1 + np.arange(-7, 8) / (8 * STARTS)
    for shares in (coarse, fine):
        around = best
        for share in shares:
            tried = (around * share).astype(np.float32)
            wrong = error(tried)
            best, least = np.where(wrong < least, tried, best), np.minimum(wrong, least)
    for _ in range(NEWTON):
        q = nearest(best)
        if counts is not None:
            q = np.where(counts, q, 0)
        power = np.einsum("rn,rn->r", q, q)
        step = np.einsum("rn,rn->r", w, q) / np.maximum(power, 1e-30)
        step = np.where((power > 0) & (step > 0), step, best).astype(np.float32)
        wrong = error(step)
        better = wrong < least
        if not better.any():
            break
        best, least = np.where(better, step, best), np.where(better, wrong, least)
    return best


def _octav(w, counts, bits):
    """Section 3 there: clipping costs (|w| - s)^2, rounding s^2 4^-bits / 3."""
    size = np.abs(w)
    count = size.shape[1] if counts is None else np.maximum(counts.sum(1), 1)
    clip = size.sum(1) / count
    for _ in range(NEWTON):
        outside = size > clip[:, None]
        rounded = 4.0**-bits / 3 * (count - outside.sum(1))
        clip = (size * outside).sum(1) / np.maximum(rounded + outside.sum(1), 1e-30)
    return clip


def fake_quantize(weight: Any, scale: Any, bits: int, share: float = 1.0) -> Any:
    """Exactly round_to_levels(weight, scale, bits), in `keras.ops`, with gradients to train it.

    To the weight the gradient goes straight through inside the clip, half a step beyond the
    outermost levels at 2 bits (all its bins are equally wide) and at the outermost levels with
    more; outside it is 0. To the scale: level - weight / scale inside, the outermost level
    outside (LSQ, equation 3), times `share`.
    """
    low, high = limits(bits)
    ratio = weight / scale
    edge = 0.5 if bits == 2 else 0.0
    inside = ops.cast(ops.logical_and(ratio >= low - edge, ratio <= high + edge), weight.dtype)
    level = ops.clip(ops.round(ratio - low), 0.0, high - low) + low
    exact = ops.stop_gradient(level * scale)
    slope = ops.stop_gradient((level - inside * ratio) * share)
    surrogate = ops.stop_gradient(inside) * weight + slope * scale
    # Its value is taken away again to the last bit: only the gradient of the second term is left.
    return exact + (surrogate - ops.stop_gradient(surrogate))


class OnLevels(Parametrization):
    """A weight that takes few values."""


class Quantizer(OnLevels):
    """A weight on equal steps; `scale()` is their distance, as broadcast to the weight."""

    bits: int

    def scale(self) -> Any:
        """The distance of the levels, to be broadcast to the weight."""
        raise NotImplementedError

    def describe(self, value: np.ndarray, before: Weight | None) -> Weight:
        scale = np.asarray(ops.convert_to_numpy(self.scale()), np.float32)
        return Weight(
            bits=self.bits,
            codes=codes(value, scale, self.bits),
            levels=levels(self.bits)[None],
            scale=scale,
            mask=None if before is None else before.mask,
        )


class LearnedClip(Quantizer):
    """A weight on levels from the start of training, whose distances are trained with it.

    initial: float32 distances, to be broadcast to the weight. What is trained is the logarithm of
    the factor to them: a step of Adam changes a small distance by the same share as a large one,
    and none becomes negative. It is a vector, which weight decay spares.
    """

    def __init__(self, initial: np.ndarray, bits: int, fixed: bool = False):
        super().__init__(dtype="float32")
        limits(bits)
        self.bits, self.fixed = bits, fixed
        self._initial = np.asarray(initial, np.float32)

    def build(self, shape: tuple[int, ...]) -> None:
        self.initial = self.add_weight(
            shape=self._initial.shape,
            initializer=lambda *_, **__: ops.convert_to_tensor(self._initial),
            trainable=False,
            name="initial",
        )
        self.clip = None
        if not self.fixed:
            self.clip = self.add_weight(
                shape=(self._initial.size,), initializer="zeros", name="clip"
            )
        # LSQ, section 2.2: so that scales learn as fast as weights; of one scale's own weights.
        each = np.prod(shape) / self._initial.size
        self._share = float((each * limits(self.bits)[1]) ** -0.5)

    def scale(self) -> Any:
        """The initial distances times what was learned."""
        if self.clip is None:
            return ops.convert_to_tensor(self.initial)
        return self.initial * ops.exp(ops.reshape(self.clip, self._initial.shape))

    def call(self, weight: Any) -> Any:
        return fake_quantize(ops.convert_to_tensor(weight), self.scale(), self.bits, self._share)

"""Rounding that disturbs a product least: least squares over what a kernel is multiplied with.

Codes one input after the other, the others making up for each error: Frantar et al., "GPTQ", arXiv
2210.17323. Targets corrected for errors in the inputs: as in Frantar et al., "OBC", arXiv
2208.11580, with a ridge. Coordinate descent and scales in closed form on top.
"""

import contextlib
import dataclasses
from typing import Any

import numpy as np

from compress.quantization.quantizers import limits

RIDGE = 0.1  # of the mean diagonal: how far targets follow few examples (.03 to 1: no difference)
DAMPING = 0.01  # of the mean diagonal, so that there is an inverse
PLACES = 16  # scales that are tried, as shares of the one for the largest magnitude
SWEEPS = 4  # of coordinate descent, at most
BLOCK = 128  # inputs whose errors are gathered before the others are told


@dataclasses.dataclass
class Moments:
    """Sums over rows of a float and a quantized network: (groups, inputs) and (groups, i, i).

    paired: whether the rows of the two networks belong together.
    """

    groups: int
    inputs: int
    count: np.ndarray
    float_sum: np.ndarray
    sum: np.ndarray
    square: np.ndarray | None
    cross: np.ndarray | None
    paired: bool = True

    @classmethod
    def empty(cls, groups: int, inputs: int, squares: bool = True) -> "Moments":
        """Of no rows; without `squares` only means are kept."""
        line, area = (groups, inputs), (groups, inputs, inputs)
        square, cross = (np.zeros(area, np.float32) if squares else None for _ in range(2))
        count, before, now = np.zeros(groups), np.zeros(line), np.zeros(line)
        return cls(groups, inputs, count, before, now, square, cross)

    def add(
        self, float_rows: np.ndarray | None, rows: np.ndarray, owner: np.ndarray | None = None
    ) -> None:
        """rows: (blocks, rows, inputs), a group each; owner: the group of each block."""
        groups = np.arange(self.groups) if owner is None else owner
        np.add.at(self.count, groups, rows.shape[1])
        np.add.at(self.sum, groups, rows.sum(1))
        self.paired &= float_rows is not None
        if float_rows is not None:
            np.add.at(self.float_sum, groups, float_rows.sum(1))
        if self.square is None or self.cross is None:
            return
        for first in range(0, len(rows), 64) if owner is None else range(len(rows)):
            some = slice(first, first + (64 if owner is None else 1))
            turned = rows[some].transpose(0, 2, 1)
            self.square[groups[some]] += turned @ rows[some]
            if float_rows is not None:
                self.cross[groups[some]] += turned @ float_rows[some]

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the rows of the float network and of the quantized one, (groups, inputs)."""
        count = np.maximum(self.count, 1)[:, None]
        return self.float_sum / count, self.sum / count

    def centered(self, center: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """(H, C): mean squares of rows, and how much the float rows differ along them.

        center: about their means, which a bias makes right.
        """
        assert self.square is not None and self.cross is not None
        count = np.maximum(self.count, 1).astype(np.float32)[:, None, None]
        square, cross = self.square / count, self.cross / count
        if center:
            before, now = (one.astype(np.float32) for one in self.means())
            square -= now[:, :, None] * now[:, None]
            cross -= now[:, :, None] * before[:, None]
        none = np.einsum("gii->g", square) <= 0  # experts that saw nothing
        square[none] = np.eye(self.inputs, dtype=np.float32)
        return square, np.where(none[:, None, None], 0, cross - square) if self.paired else None


def corrected(weights: np.ndarray, square: np.ndarray, cross: np.ndarray | None) -> np.ndarray:
    """The weights that make up best for what is wrong with the inputs already.

    weights: (groups, inputs, outputs); square, cross: of `Moments.centered`.
    """
    if cross is None:
        return weights
    return weights + np.linalg.solve(_damped(square, RIDGE), cross @ weights)


def round_to_moments(
    target: np.ndarray,
    square: np.ndarray,
    bits: int,
    mask: np.ndarray | None = None,
    parts: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """(levels in steps, (groups, inputs, outputs); scales, (groups, 1, outputs)), float32.

    They make (target - scale * levels)' square (target - scale * levels) small for each output.
    target: (groups, inputs, outputs); square: (groups, inputs, inputs); mask: as target, False
    where a weight is 0 and stays; parts: so many groups in a row share their scales.

    >>> rng = np.random.default_rng(0)
    >>> rows, weights = rng.normal(size=(64, 8)), rng.normal(size=(1, 8, 4))
    >>> square = (rows.T @ rows / 64)[None]
    >>> q, scale = round_to_moments(weights, square, 2)
    >>> sorted(set(q.ravel().tolist()))
    [-1.5, -0.5, 0.5, 1.5]
    """
    target, square = (np.asarray(one, np.float32) for one in (target, square))
    square = _damped(square, DAMPING)
    scale = _first_scale(target, square, bits, mask, parts)
    found = [_nearest(target, scale, bits, mask), _sequential(target, square, scale, bits, mask)]
    errors = [_error(target - scale * q, square) for q in found]
    q = np.where(errors[1] < errors[0], found[1], found[0])
    for _ in range(SWEEPS):
        scale = _best_scale(target, square, q, scale, parts)
        before, q = q, _descend(target, square, q, scale, bits, mask)
        if np.array_equal(before, q):
            break
    return q, _best_scale(target, square, q, scale, parts)


def _over_parts(found: np.ndarray, parts: int, over: Any = np.sum) -> np.ndarray:
    """One value of all parts of a matrix, for each of them."""
    if parts == 1:
        return found
    whole = found.reshape(-1, parts, *found.shape[1:])
    return np.broadcast_to(over(whole, 1, keepdims=True), whole.shape).reshape(found.shape)


def _damped(square: np.ndarray, share: float) -> np.ndarray:
    size = square.shape[-1]
    mean = np.einsum("gii->g", square) / size
    return square + (share * np.maximum(mean, 1e-12))[:, None, None] * np.eye(size, dtype="float32")


def _nearest(
    target: np.ndarray, scale: np.ndarray, bits: int, mask: np.ndarray | None
) -> np.ndarray:
    low, high = limits(bits)
    q = np.clip(np.rint(target / scale - low) + low, low, high).astype(np.float32)
    return q if mask is None else q * mask


def _error(difference: np.ndarray, square: np.ndarray) -> np.ndarray:
    """(groups, 1, outputs)."""
    return np.einsum("gio,gio->go", difference, square @ difference)[:, None]


def _first_scale(
    target: np.ndarray, square: np.ndarray, bits: int, mask: np.ndarray | None, parts: int
) -> np.ndarray:
    low, high = limits(bits)
    kept = target if mask is None else target * mask
    widest = np.maximum(kept.max(1, keepdims=True) / high, kept.min(1, keepdims=True) / low)
    widest = _over_parts(widest, parts, np.max)
    # An output of zeros: small beside the others, and still a step.
    floor = np.float32(max(1e-3 * float(widest.mean()), 1e-8))
    widest = np.maximum(widest, floor)
    best, least = widest, np.full_like(widest, np.inf)
    for place in range(1, PLACES + 1):
        scale = widest * np.float32(place / PLACES)
        error = _error(target - scale * _nearest(target, scale, bits, mask), square)
        error = _over_parts(error, parts)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _best_scale(
    target: np.ndarray, square: np.ndarray, q: np.ndarray, scale: np.ndarray, parts: int
) -> np.ndarray:
    """In closed form for these levels."""
    seen = square @ q
    power = _over_parts(np.einsum("gio,gio->go", q, seen)[:, None], parts)
    found = _over_parts(np.einsum("gio,gio->go", target, seen)[:, None], parts)
    found = found / np.maximum(power, 1e-30)
    return np.where((power > 0) & (found > 0), found, scale).astype(np.float32)


def _sequential(
    target: np.ndarray, square: np.ndarray, scale: np.ndarray, bits: int, mask: np.ndarray | None
) -> np.ndarray:
    """GPTQ: inputs that count most first; what is lost on one is put on those that follow."""
    order = np.argsort(-np.einsum("gii->gi", square), 1, kind="stable")
    sorted_square = np.take_along_axis(
        np.take_along_axis(square, order[:, :, None], 1), order[:, None], 2
    )
    factor = _inverse_factor(sorted_square)
    left = np.take_along_axis(target, order[:, :, None], 1).copy()
    kept = None if mask is None else np.take_along_axis(mask, order[:, :, None], 1)
    q, size = np.empty_like(left), left.shape[1]
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        wrong = np.empty_like(left[:, start:end])
        for at in range(start, end):
            now = left[:, at : at + 1]
            one = None if kept is None else kept[:, at : at + 1]
            q[:, at : at + 1] = _nearest(now, scale, bits, one)
            error = (now - scale * q[:, at : at + 1]) / factor[:, at, at, None, None]
            wrong[:, at - start : at - start + 1] = error
            left[:, at:end] -= factor[:, at, at:end, None] * error
        left[:, end:] -= factor[:, start:end, end:].transpose(0, 2, 1) @ wrong
    return np.take_along_axis(q, np.argsort(order, 1)[:, :, None], 1)


def _inverse_factor(square: np.ndarray) -> np.ndarray:
    """Upper U with U'U the inverse: from the Cholesky factor of the matrix turned about."""
    import scipy.linalg

    found = np.empty_like(square)
    for group, one in enumerate(square):
        upper = _cholesky(one[::-1, ::-1])[::-1, ::-1]
        found[group], _ = scipy.linalg.lapack.strtri(np.asfortranarray(upper, np.float32))
    return found


def _cholesky(square: np.ndarray) -> np.ndarray:
    """The lower factor; of what rounding errors left indefinite, with more damping."""
    for share in (0.0, 0.01, 0.1, 1.0):
        with contextlib.suppress(np.linalg.LinAlgError):
            return np.linalg.cholesky(square if not share else _damped(square[None], share)[0])
    raise ValueError("inputs of a kernel that are not finite; is the network sound on these data?")


def _descend(
    target: np.ndarray,
    square: np.ndarray,
    q: np.ndarray,
    scale: np.ndarray,
    bits: int,
    mask: np.ndarray | None,
) -> np.ndarray:
    """One sweep: each level becomes the best, the others being what they are."""
    q, size = q.copy(), q.shape[1]
    slope = square @ (target - scale * q)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        before = q[:, start:end].copy()
        inner = slope[:, start:end].copy()
        for at in range(start, end):
            here = at - start
            value = scale * q[:, at : at + 1]
            wanted = value + inner[:, here : here + 1] / square[:, at, at, None, None]
            one = None if mask is None else mask[:, at : at + 1]
            q[:, at : at + 1] = _nearest(wanted, scale, bits, one)
            step = scale * q[:, at : at + 1] - value
            inner -= square[:, start:end, at, None] * step
        step = scale * (q[:, start:end] - before)
        slope -= square[:, :, start:end] @ step
    return q

"""Boxes of a detector: anchors, their coding, overlaps, and one box for each object.

Boxes are (x0, y0, x1, y1) in pixels of the network's input. Anchors and coding: Ren et al., "Faster
R-CNN" (arXiv 1506.01497), section 3.1 placed as in Lin et al., RetinaNet (arXiv 1708.02002),
section 4, and Tan et al., EfficientDet (arXiv 1911.09070).
"""

import math
from typing import Any

import numpy as np
from keras import ops

OCTAVES = (0.0, 1 / 3, 2 / 3)  # sizes of each level: 2 ** octave
ASPECTS = (1.0, 2.0, 0.5)  # width / height, at equal areas
PER_PLACE = len(OCTAVES) * len(ASPECTS)
LARGEST_CODE = math.log(1000 / 16)  # of a width or height: exp of more overflows sooner or later
NO_OBJECT = -1.0  # the class of rows that only fill up

CANDIDATES = 1000  # boxes of the highest scores that are looked at: as many as RetinaNet's a level
MOST = 100  # boxes that are found at most: as many as COCO's evaluation counts
OVERLAP = 0.5  # of boxes of one class; what overlaps a better one by more is the same object
LEAST_SCORE = 0.01  # below, a box is not given out


def sizes(shape: tuple[int, ...], levels: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of the features at each level: at level n the stride is 2 ** n."""
    height, width = shape[:2]
    found = []
    for level in range(levels[1] + 1):
        if level >= levels[0]:
            found.append((height, width))
        height, width = -(-height // 2), -(-width // 2)
    return found


def anchors(shape: tuple[int, ...], levels: tuple[int, int], scale: float) -> np.ndarray:
    """(A, 4) float32: at every place of every level 3 sizes of 3 aspects, row by row.

    shape: of the image, (height, width, ...). scale: side of a level's smallest square, in strides.
    """
    found = []
    for rows, columns in sizes(shape, levels):
        # 10 pixels at stride 4 are 3 places; their stride is 10 / 3, so that they fill the image.
        strides = np.array([shape[1] / columns, shape[0] / rows])
        x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
        centres = np.stack([x, y], -1)[:, :, None] * strides
        halves = [
            strides * scale * 2**octave * np.array([aspect**0.5, aspect**-0.5]) / 2
            for octave in OCTAVES
            for aspect in ASPECTS
        ]
        found.append(np.concatenate([centres - halves, centres + halves], -1).reshape(-1, 4))
    return np.concatenate(found).astype(np.float32)


def encode(boxes: Any, around: Any) -> Any:
    """Boxes (..., 4) as seen from anchors of the same shape: shifts and logarithms of sizes."""
    centres, extents = _centred(boxes)
    middles, sides = _centred(around)
    logarithms = ops.log(ops.maximum(extents, 1e-6) / sides)
    return ops.concatenate([(centres - middles) / sides, logarithms], -1)


def decode(codes: Any, around: Any) -> Any:
    """The boxes (..., 4) that `encode` gave `codes` for."""
    middles, sides = _centred(around)
    centres = codes[..., :2] * sides + middles
    halves = ops.exp(ops.minimum(codes[..., 2:], LARGEST_CODE)) * sides / 2
    return ops.concatenate([centres - halves, centres + halves], -1)


def _centred(boxes):
    """Centres (..., 2) and extents (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def overlaps(ours: Any, theirs: Any) -> Any:
    """Intersection over union (batch, n, m) of boxes (batch, n, 4) and (batch, m, 4)."""
    ours, theirs = ours[:, :, None], theirs[:, None]
    low = ops.maximum(ours[..., :2], theirs[..., :2])
    high = ops.minimum(ours[..., 2:], theirs[..., 2:])
    inner = ops.maximum(high - low, 0.0)
    inner = inner[..., 0] * inner[..., 1]
    union = area(ours) + area(theirs) - inner
    return inner / ops.maximum(union, 1e-6)


def area(boxes: Any) -> Any:
    """(...) of boxes (..., 4).

    >>> area(np.array([0.0, 0.0, 2.0, 3.0]))
    np.float64(6.0)
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def select_objects(
    logits: Any,
    codes: Any,
    around: np.ndarray,
    shape: tuple[int, ...],
    *,
    candidates: int = CANDIDATES,
    most: int = MOST,
    overlap: float = OVERLAP,
    least_score: float = LEAST_SCORE,
) -> dict:
    """Objects: {"boxes": (batch, most, 4), "scores": (batch, most), "classes": (batch, most)}.

    logits: (batch, A, classes); codes: (batch, A, 4); around: the anchors (A, 4). Of the
    `candidates` highest scores of any class the best is an object, what overlaps it and has its
    class goes, and so on (greedy suppression): best first, at most `most`, then zeros of class -1
    and score 0. Boxes end at the edges of the image of `shape`. In operations that TensorFlow, JAX
    and LiteRT have: `most` rounds of one loop.
    """
    number, count = logits.shape[-1], min(candidates, logits.shape[1])
    # Of logits, as scores near 1 are all the same number. The best anchors have the best classes.
    _, places = ops.top_k(ops.max(logits, axis=-1), count)
    flat = ops.reshape(_rows(logits, places), (-1, count * number))
    best, index = ops.top_k(flat, min(candidates, count * number))
    # Whole numbers below 2 ** 24 are exact in float32.
    which = ops.floor((ops.cast(index, "float32") + 0.5) / number)
    classes = ops.cast(index, "float32") - which * number
    places = _rows(places[..., None], ops.cast(which, "int32"))[..., 0]
    boxes = decode(_rows(codes, places), ops.take(ops.convert_to_tensor(around), places, axis=0))
    height, width = shape[:2]
    edges = ops.convert_to_tensor(np.array([width, height, width, height], np.float32))
    boxes = ops.maximum(ops.minimum(boxes, edges), 0.0)
    least = math.log(least_score / (1 - least_score)) if least_score else -math.inf
    rows = suppress(boxes, best, classes, most=most, overlap=overlap, least=least)
    is_object = rows[..., 6] > 0
    return {
        "boxes": rows[..., :4],
        "scores": ops.where(is_object, ops.sigmoid(rows[..., 4]), 0.0),
        "classes": ops.cast(ops.where(is_object, rows[..., 5], NO_OBJECT), "int32"),
    }


def _rows(values, chosen):
    """Rows (batch, n, width) of `values` (batch, m, width) at the places `chosen` (batch, n)."""
    count, width = values.shape[1:]
    first = ops.arange(ops.shape(values)[0], dtype="int32")[:, None] * count
    return ops.take(ops.reshape(values, (-1, width)), chosen + first, axis=0)


def suppress(
    boxes: Any, logits: Any, classes: Any, *, most: int, overlap: float, least: float
) -> Any:
    """(batch, most, 7): box, logit, class and 1 of each object, best first, then zeros.

    boxes: (batch, n, 4); logits, classes: (batch, n) float32, the highest logits first. Only those
    of at least `least` count.
    """
    count = boxes.shape[1]
    places, turns = ops.arange(count, dtype="int32"), ops.arange(most, dtype="int32")
    # One property a row: so that all that follows runs along memory.
    x0, y0, x1, y1 = corners = [boxes[..., corner] for corner in range(4)]
    areas = (x1 - x0) * (y1 - y0)
    table = ops.stack([*corners, logits, classes, ops.ones_like(logits), areas], 1)
    live = logits >= least
    found = ops.zeros_like(table[:, :7, :1]) * ops.zeros((1, 1, most))

    def turn(number, live, found):
        first = ops.min(ops.where(live, places, count), axis=1, keepdims=True)
        is_first = ops.equal(places, first)
        # One column times 1, the others times 0: exact, and no gather in the loop. None left: 0.
        best = ops.sum(table * ops.cast(is_first, "float32")[:, None], axis=2, keepdims=True)
        found = found + best[:, :7] * ops.cast(ops.equal(turns, number), "float32")
        width = ops.minimum(table[:, 2], best[:, 2]) - ops.maximum(table[:, 0], best[:, 0])
        height = ops.minimum(table[:, 3], best[:, 3]) - ops.maximum(table[:, 1], best[:, 1])
        inner = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
        over = inner > overlap * (table[:, 7] + best[:, 7] - inner)
        gone = ops.logical_or(is_first, ops.logical_and(over, ops.equal(table[:, 5], best[:, 5])))
        return number + 1, ops.logical_and(live, ops.logical_not(gone)), found

    def goes_on(number, live, found):
        return ops.logical_and(number < most, ops.any(live))

    start = (ops.convert_to_tensor(0, dtype="int32"), live, found)
    return ops.transpose(ops.while_loop(goes_on, turn, start)[2], (0, 2, 1))


def largest_difference(ours: dict, theirs: dict) -> float:
    """The most by which a corner of an object or its score differs; inf where one has no partner.

    Both as `select_objects` gives them, as arrays. Objects of one class are paired, whatever their
    order: where two scores are all but equal, rounding decides which comes first.
    """
    worst = 0.0
    for image in range(len(ours["classes"])):
        (a, mine), (b, his) = (
            (
                np.asarray(objects["classes"][image]),
                np.column_stack([objects["boxes"][image], objects["scores"][image]]),
            )
            for objects in (ours, theirs)
        )
        if sorted(a) != sorted(b):
            return math.inf
        for label in set(a) - {NO_OBJECT}:
            left = mine[a == label].astype(np.float64)
            for row in his[b == label]:
                distances = np.abs(left - row).max(axis=1)
                nearest = int(np.argmin(distances))
                worst = max(worst, float(distances[nearest]))
                left = np.delete(left, nearest, axis=0)
    return worst

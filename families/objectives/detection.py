"""What a detector is trained for: anchors are given objects, classes by focal loss, boxes by Huber.

Lin et al., RetinaNet (arXiv 1708.02002), sections 3 and 4; the constants of the losses are those of
EfficientDet (arXiv 1911.09070) as released (google/automl).
"""

from typing import Any

from keras import ops

from families.objectives import boxes

MATCHED, UNMATCHED = 0.5, 0.4  # overlaps: an object from the first, background below the second
ALPHA, GAMMA = 0.25, 1.5
DELTA = 0.1  # of Huber's loss, where it turns from square to linear
BOX_WEIGHT = 50.0


def loss(outputs: dict, targets: dict) -> Any:
    """Losses (batch,): of each image, focal over its anchors plus 50 x Huber, by its matches.

    outputs: {"logits": (batch, A, classes), "codes": (batch, A, 4), "anchors": (batch, A, 4)}.
    targets: {"boxes": (batch, most, 5)}, rows of class, x0, y0, x1, y1; class -1: no box.
    """
    around = outputs["anchors"]
    wanted = targets["boxes"]
    classes, wanted, role = assign_anchors(around, wanted[..., 0], wanted[..., 1:])
    is_object = ops.cast(role == 1, "float32")
    counts = ops.cast(role >= 0, "float32")
    number = outputs["logits"].shape[-1]
    labels = ops.one_hot(ops.cast(classes, "int32"), number) * is_object[..., None]
    of_classes = ops.sum(focal(outputs["logits"], labels), axis=-1) * counts
    codes = boxes.encode(wanted, around)
    # Where there is no object the code is of a box that is none: 0 takes its place.
    error = ops.where(is_object[..., None] > 0, outputs["codes"] - codes, 0.0)
    of_boxes = ops.mean(huber(error), axis=-1)
    matches = ops.maximum(ops.sum(is_object, axis=-1), 1.0)
    return (ops.sum(of_classes, axis=-1) + BOX_WEIGHT * ops.sum(of_boxes, axis=-1)) / matches


def assign_anchors(
    around: Any, classes: Any, wanted: Any, matched: float = MATCHED, unmatched: float = UNMATCHED
) -> Any:
    """What each anchor is to find: class (batch, A), box (batch, A, 4) and role (batch, A) int32.

    Role 1: an object, that of most overlap, at least `matched`; every object also gets the anchor
    that overlaps it most. Role 0: background, below `unmatched`. Role -1: neither, no loss.
    around: (batch, A, 4); classes: (batch, most), -1 for no box; wanted: (batch, most, 4).
    """
    is_box = (classes >= 0)[:, None]
    over = ops.where(is_box, boxes.overlaps(around, wanted), -1.0)  # (batch, A, most)
    index = ops.argmax(over, axis=-1)
    highest = ops.max(over, axis=-1)
    own = ops.argmax(over, axis=1)  # of every object its best anchor
    numbers = ops.arange(around.shape[1], dtype="int32")[None, :, None]
    is_own = ops.equal(numbers, ops.cast(own, "int32")[:, None])
    is_own = ops.logical_and(ops.logical_and(is_own, is_box), over > 0)
    forced = ops.any(is_own, axis=-1)
    # An anchor that is the best of several objects takes the one it overlaps most.
    index = ops.where(forced, ops.argmax(ops.where(is_own, over, -1.0), axis=-1), index)
    role = ops.where(highest >= unmatched, -1, 0)
    role = ops.where(ops.logical_or(highest >= matched, forced), 1, role)
    index = ops.cast(index, "int32")
    classes = ops.take_along_axis(classes, index, axis=1)
    wanted = ops.take_along_axis(wanted, index[..., None], axis=1)
    return classes, wanted, ops.cast(role, "int32")


def focal(logits: Any, labels: Any, alpha: float = ALPHA, gamma: float = GAMMA) -> Any:
    """Cross-entropy of each class alone, weighted by how wrong it is; labels 0 or 1, same shape."""
    wrong = ops.sigmoid(logits * (1 - 2 * labels))  # the probability of the other answer
    entropy = ops.softplus(logits * (1 - 2 * labels))
    weight = alpha * labels + (1 - alpha) * (1 - labels)
    return weight * wrong**gamma * entropy


def huber(error: Any, delta: float = DELTA) -> Any:
    """Half the square up to `delta`, linear above."""
    size = ops.abs(error)
    return ops.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))

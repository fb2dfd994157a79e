"""Mean average precision of found boxes, as COCO counts it (Lin et al., arXiv 1405.0312).

By pycocotools, the reference: https://github.com/ppwwyyxx/cocoapi.
"""

import contextlib
import dataclasses
import io
from typing import Any

import numpy as np

FOUND, TRUE, FILL = 0.0, 1.0, -1.0  # the kinds of rows
MOST = 100  # boxes of an image and a class that count
WIDTH = 7  # kind, class, x0, y0, x1, y1, score


@dataclasses.dataclass(frozen=True)
class Precision:
    """Average precisions 0..1: the mean of overlaps .5 to .95, those of .5 and .75, of each class.

    `of_class` is of overlaps .5 to .95, NaN for a class that no image has.
    """

    mean: float
    at_50: float
    at_75: float
    of_class: tuple[float, ...]


def evaluator() -> tuple[Any, Any]:
    """pycocotools' COCO and COCOeval, or ValueError saying how to get them."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ValueError(
            "detection: mean average precision is counted by pycocotools, which is not installed: "
            "pip install 'nas[detection]'"
        ) from error
    return COCO, COCOeval


def rows(boxes: np.ndarray, found: dict[str, np.ndarray]) -> np.ndarray:
    """(batch, n, 7) float64 of what is there and what was found in each image, for `precision`.

    boxes: (batch, most, 5), class -1 for none, then x0, y0, x1, y1. found: "boxes" (batch, m, 4),
    "scores" and "classes" (batch, m), class -1 for none.
    """
    images, most = boxes.shape[:2]
    count = found["scores"].shape[1]
    table = np.full((images, most + count, WIDTH), FILL)
    table[:, :most, 1:6] = boxes
    table[:, :most, 0] = np.where(boxes[..., 0] >= 0, TRUE, FILL)
    table[:, most:, 0] = np.where(found["classes"] >= 0, FOUND, FILL)
    table[:, most:, 1] = found["classes"]
    table[:, most:, 2:6] = found["boxes"]
    table[:, most:, 6] = found["scores"]
    return table


def precision(table: np.ndarray) -> Precision:
    """Average precisions of the `rows` (images, n, 7) of all images together."""
    COCO, COCOeval = evaluator()
    image, row = np.nonzero(table[..., 0] == TRUE)
    true = table[image, row]
    classes = sorted({int(label) for label in true[:, 1]})
    if not classes:
        raise ValueError("detection: no image has a box to be found")
    truth = COCO()
    extents = true[:, 4:6] - true[:, 2:4]
    truth.dataset = {
        "images": [{"id": number} for number in range(len(table))],
        "categories": [{"id": label} for label in classes],
        "annotations": [
            {
                "id": number,  # 0 would be no match
                "image_id": int(image[number - 1]),
                "category_id": int(one[1]),
                "bbox": [*one[2:4], *extent],
                "area": float(np.prod(extent)),
                "iscrowd": 0,
            }
            for number, (one, extent) in enumerate(zip(true, extents, strict=True), 1)
        ],
    }
    image, row = np.nonzero((table[..., 0] == FOUND) & np.isin(table[..., 1], classes))
    nothing = [float("nan")] * (max(classes) + 1)
    if not len(image):
        for label in classes:
            nothing[label] = 0.0
        return Precision(0.0, 0.0, 0.0, tuple(nothing))
    made = table[image, row]
    results = np.column_stack([image, made[:, 2:4], made[:, 4:6] - made[:, 2:4], made[:, 6:]])
    with contextlib.redirect_stdout(io.StringIO()):  # it reports what it does
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(np.column_stack([results, made[:, 1]])), "bbox")
        run.params.maxDets = [MOST]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]  # no object is too large
        run.evaluate()
        run.accumulate()
    # (overlaps, recalls, classes, sizes of objects, most boxes an image)
    curves = run.eval["precision"][:, :, :, 0, 0]
    for index, label in enumerate(classes):
        nothing[label] = float(np.mean(curves[:, :, index]))
    return Precision(
        float(np.mean(curves)),
        float(np.mean(curves[0])),
        float(np.mean(curves[5])),
        tuple(nothing),
    )

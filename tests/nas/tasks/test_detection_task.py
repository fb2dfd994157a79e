"""What a detector is trained for and judged by: by hand, and against slow references."""

import json
import math

import keras
import numpy as np
import pytest

from families.objectives import boxes
from families.objectives import detection as objective
from nas.cli import command_line
from nas.tasks import detection
from nas.tasks.scoring import average_precision
from nas.training import loop

SHAPE, LEVELS = (32, 48, 3), (2, 4)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_anchors_by_hand():
    found = boxes.anchors(SHAPE, LEVELS, 3.0)
    assert found.shape == (9 * (8 * 12 + 4 * 6 + 2 * 3), 4) and found.dtype == np.float32
    first = found[:9]
    np.testing.assert_allclose((first[:, :2] + first[:, 2:]) / 2, np.full((9, 2), 2.0), rtol=1e-6)
    sides = first[:, 2:] - first[:, :2]
    areas = [(12 * 2 ** (octave / 3)) ** 2 for octave in range(3) for _ in range(3)]
    np.testing.assert_allclose(sides.prod(axis=1), areas, rtol=1e-5)
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], [1, 2, 0.5] * 3, rtol=1e-5)
    # The second place of the first row is one stride of 4 to the right, the 13th one row down.
    np.testing.assert_allclose(found[9:18] - first, np.tile([4, 0, 4, 0], (9, 1)), atol=1e-5)
    np.testing.assert_allclose(found[108:117] - first, np.tile([0, 4, 0, 4], (9, 1)), atol=1e-5)
    # Places of an odd size fill the image: 5 pixels at stride 2 are 3 places of 5 / 3.
    middles = boxes.anchors((5, 5, 3), (1, 2), 1.0)[: 9 * 3 : 9]
    np.testing.assert_allclose((middles[:, 0] + middles[:, 2]) / 2, [5 / 6, 15 / 6, 25 / 6])


def test_coding_goes_there_and_back():
    around = boxes.anchors(SHAPE, LEVELS, 3.0)[None]
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 30, (*around.shape[:2], 2))
    wanted = np.concatenate([corner, corner + generator.uniform(1, 20, corner.shape)], -1)
    wanted = wanted.astype("float32")
    codes = boxes.encode(wanted, around)
    np.testing.assert_allclose(numpy(boxes.decode(codes, around)), wanted, atol=1e-4)
    one = numpy(boxes.encode(np.float32([[2, 0, 6, 16]]), np.float32([[0, 0, 8, 8]])))
    np.testing.assert_allclose(one, [[0, 0.5, math.log(0.5), math.log(2)]], atol=1e-6)
    far = numpy(boxes.decode(np.float32([[0, 0, 99, 99]]), np.float32([[0, 0, 8, 8]])))
    np.testing.assert_allclose(far[0, 2] - far[0, 0], 500, rtol=1e-5)  # 8 * 1000 / 16, not inf


def test_overlaps_by_hand():
    ours = np.float32([[[0, 0, 4, 4], [0, 0, 0, 0]]])
    theirs = np.float32([[[2, 0, 6, 4], [0, 0, 4, 4], [4, 4, 5, 5]]])
    expected = [[8 / 24, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(numpy(boxes.overlaps(ours, theirs))[0], expected, atol=1e-6)


def test_assignment_by_hand():
    around = np.float32([[[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4.5], [20, 20, 24, 24]]])
    #            the first two match; the third, 4.5 of 10, is neither; the last is nobody's best
    wanted = np.float32([[[0, 0, 10, 10], [22, 22, 30, 30], [0, 0, 0, 0]]])
    classes = np.float32([[2, 1, -1]])
    found = objective.assign_anchors(around, classes, wanted)
    label, box, role = (numpy(one)[0] for one in found)
    # The second object overlaps one anchor, by far too little: it gets it all the same.
    assert role.tolist() == [1, 1, -1, 1]
    assert label[[0, 1, 3]].tolist() == [2, 2, 1]
    np.testing.assert_array_equal(box[[0, 1, 3]], wanted[0, [0, 0, 1]])
    nothing = objective.assign_anchors(around, np.full((1, 3), -1.0, "float32"), wanted)
    assert numpy(nothing[2]).tolist() == [[0, 0, 0, 0]]


def test_losses_by_hand():
    logits = np.float32([-30, -2, 0, 3, 30])
    for label in (0.0, 1.0):
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
        right = p if label else 1 - p
        alpha = 0.25 if label else 0.75
        expected = alpha * (1 - right) ** 1.5 * -np.log(np.maximum(right, 1e-300))
        found = numpy(objective.focal(logits, np.full_like(logits, label)))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)
    error = np.float32([0, 0.05, -0.1, 1.0])
    np.testing.assert_allclose(
        numpy(objective.huber(error)), [0, 0.00125, 0.005, 0.1 * (1 - 0.05)], rtol=1e-5
    )


def test_the_whole_loss_against_loops():
    generator = np.random.default_rng(0)
    around = boxes.anchors(SHAPE, LEVELS, 3.0)
    corner = generator.uniform(0, 20, (2, 3, 2))
    table = np.concatenate([corner, corner + generator.uniform(5, 20, corner.shape)], -1)
    table = np.concatenate([generator.integers(0, 4, (2, 3, 1)), table], -1).astype("float32")
    table[1, 1:] = [-1, 0, 0, 0, 0]
    logits = generator.normal(-2, 1, (2, len(around), 4)).astype("float32")
    codes = generator.normal(0, 0.3, (2, len(around), 4)).astype("float32")
    outputs = {"logits": logits, "codes": codes, "anchors": np.stack([around] * 2)}
    found = numpy(objective.loss(outputs, {"boxes": table}))
    for image in range(2):
        expected, matches = 0.0, 0
        true = table[image][table[image, :, 0] >= 0]
        over = _overlaps(around, true[:, 1:])
        best = over.argmax(axis=0)
        for anchor in range(len(around)):
            own = [j for j in range(len(true)) if best[j] == anchor]
            if not own and 0.4 <= over[anchor].max() < 0.5:
                continue
            j = own[int(np.argmax(over[anchor, own]))] if own else int(over[anchor].argmax())
            is_object = bool(own) or over[anchor, j] >= 0.5
            for label in range(4):
                p = 1 / (1 + math.exp(-float(logits[image, anchor, label])))
                hit = is_object and label == true[j, 0]
                expected += 0.25 * (1 - p) ** 1.5 * -math.log(p) if hit else 0.0
                expected += 0.0 if hit else 0.75 * p**1.5 * -math.log(1 - p)
            if is_object:
                matches += 1
                wanted = numpy(boxes.encode(true[j : j + 1, 1:], around[anchor : anchor + 1]))[0]
                size = np.abs(codes[image, anchor] - wanted)
                each = np.where(size <= 0.1, 0.5 * size**2, 0.1 * (size - 0.05))
                expected += 50 * float(each.mean())
        assert matches >= len(true)
        np.testing.assert_allclose(found[image], expected / matches, rtol=1e-4)


def _overlaps(ours, theirs) -> np.ndarray:
    found = np.zeros((len(ours), len(theirs)))
    for i, a in enumerate(ours.astype(np.float64)):
        for j, b in enumerate(theirs.astype(np.float64)):
            w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            inner = max(w, 0) * max(h, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
            found[i, j] = inner / union if union > 0 else 0
    return found


def _greedy(logits, codes, around, *, candidates, most, overlap, least):
    """Slow and plain: sort all, take the best, drop what overlaps it."""
    decoded = numpy(boxes.decode(codes, around)).astype(np.float64)
    limits = [SHAPE[1], SHAPE[0], SHAPE[1], SHAPE[0]]
    decoded = np.clip(decoded, 0, limits)
    entries = sorted(
        ((float(logits[a, c]), a, c) for a in range(len(logits)) for c in range(logits.shape[1])),
        key=lambda entry: -entry[0],
    )[:candidates]
    entries = [entry for entry in entries if entry[0] >= math.log(least / (1 - least))]
    kept = []
    for value, anchor, label in entries:
        box = decoded[anchor]
        clear = all(
            other != label or _overlaps(box[None], one[None])[0, 0] <= overlap
            for _, one, other in kept
        )
        if clear and len(kept) < most:
            kept.append((value, box, label))
    return kept


@pytest.mark.parametrize(
    "options", [(200, 20, 0.5, 0.01), (60, 100, 0.3, 0.2), (1000, 5, 0.9, 0.5)]
)
def test_suppression_is_greedy(options):
    candidates, most, overlap, least = options
    generator = np.random.default_rng(most)
    around = boxes.anchors(SHAPE, LEVELS, 3.0)[::4]
    logits = generator.normal(-2, 1.5, (2, len(around), 3)).astype("float32")
    codes = generator.normal(0, 0.3, (2, len(around), 4)).astype("float32")
    found = boxes.select_objects(
        logits,
        codes,
        around,
        SHAPE,
        candidates=candidates,
        most=most,
        overlap=overlap,
        least_score=least,
    )
    found = {name: numpy(value) for name, value in found.items()}
    settings = {"candidates": candidates, "most": most, "overlap": overlap, "least": least}
    for image in range(2):
        expected = _greedy(logits[image], codes[image], around, **settings)
        count = len(expected)
        assert count > 3
        assert found["classes"][image].tolist() == [e[2] for e in expected] + [-1] * (most - count)
        np.testing.assert_allclose(
            found["boxes"][image, :count], [e[1] for e in expected], atol=1e-4
        )
        scores = [1 / (1 + math.exp(-e[0])) for e in expected]
        np.testing.assert_allclose(found["scores"][image, :count], scores, atol=1e-6)
        assert not found["boxes"][image, count:].any() and not found["scores"][image, count:].any()


def test_objects_are_paired_whatever_their_order():
    generator = np.random.default_rng(0)
    made = {
        "boxes": generator.uniform(0, 50, (2, 4, 4)),
        "scores": generator.uniform(0, 1, (2, 4)),
        "classes": np.array([[0, 0, 1, 1], [2, 2, 2, -1]]),
    }
    order = [1, 0, 3, 2]
    other = {name: np.array(value) for name, value in made.items()}
    other = {name: np.stack([value[0][order], value[1]]) for name, value in other.items()}
    assert boxes.largest_difference(made, other) == 0
    other["boxes"][1, 0, 2] += 0.25
    assert boxes.largest_difference(made, other) == pytest.approx(0.25)
    other["classes"][1, 0] = 1
    assert boxes.largest_difference(made, other) == math.inf


def test_average_precision_by_hand():
    """Two objects of class 0, one of class 2; one is found twice, one not, one by 4 of 6."""
    table = np.float32(
        [[[0, 0, 0, 10, 10], [0, 20, 20, 30, 30]], [[2, 0, 0, 6, 6], [-1] + [0] * 4]]
    )
    found = {
        "boxes": np.float32(
            [
                [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 0]],
                [[0, 0, 4, 6], [9, 9, 12, 12], [0, 0, 0, 0]],
            ]
        ),
        "scores": np.float32([[0.9, 0.8, 0], [0.7, 0.6, 0]]),
        "classes": np.int32([[0, 0, -1], [2, 2, -1]]),
    }
    got = average_precision.precision(average_precision.rows(table, found))
    # Class 0: recall ends at 1/2, with precision 1: 51 of the 101 recalls that COCO looks at.
    # Class 2: overlap 2/3 counts at .5, .55, .6 and .65, then alone and first: precision 1.
    assert got.of_class[0] == pytest.approx(51 / 101)
    assert math.isnan(got.of_class[1]) and got.of_class[2] == pytest.approx(0.4)
    assert got.mean == pytest.approx((51 / 101 + 0.4) / 2)
    assert got.at_50 == pytest.approx((51 / 101 + 1) / 2)
    assert got.at_75 == pytest.approx(51 / 101 / 2)
    nothing = found | {"classes": np.full((2, 3), -1)}
    got = average_precision.precision(average_precision.rows(table, nothing))
    assert got.mean == 0 and got.of_class[2] == 0
    with pytest.raises(ValueError, match="no image has a box"):
        average_precision.precision(average_precision.rows(table * 0 - 1, found))


def test_without_pycocotools_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.coco", None)
    with pytest.raises(ValueError, match=r"pip install 'nas\[detection\]'"):
        detection.scorer(None, None)


def test_boxes_move_with_their_images():
    """White rectangles on black stay within their boxes, which they fill."""
    size, generator = 60, np.random.default_rng(0)
    images = np.zeros((40, size, size, 3), np.uint8)
    table = np.full((40, 3, 5), 0, np.float32)
    table[..., 0] = -1
    for index in range(40):
        x, y = generator.integers(5, 30, 2)
        width, height = generator.integers(12, 25, 2)
        images[index, y : y + height, x : x + width] = 255
        table[index, 0] = [1, x, y, x + width, y + height]
    before = images.copy()
    targets = {"boxes": table, "number": np.ones(40, np.int32)}
    new, there = detection.transformed(images, targets, np.random.default_rng(1))
    np.testing.assert_array_equal(images, before)
    again, _ = detection.transformed(images, targets, np.random.default_rng(1))
    np.testing.assert_array_equal(new, again)
    assert there["number"].tolist() == (there["boxes"][..., 0] >= 0).sum(axis=1).tolist()
    assert (new != before).any(axis=(1, 2, 3)).all() and there["number"].sum() >= 30
    sides = set()
    for image, boxes_of in zip(new, there["boxes"], strict=True):
        if boxes_of[0, 0] < 0:
            continue
        bright = np.argwhere(image.min(axis=-1) > 80)
        low, high = bright.min(axis=0)[::-1], bright.max(axis=0)[::-1] + 1
        assert np.abs(np.concatenate([low, high]) - boxes_of[0, 1:]).max() <= 1.01
        sides.add(bool(boxes_of[0, 1] < 30))
    assert sides == {True, False}


def test_a_detector_learns_the_cells(shared_data, tmp_path, monkeypatch, capsys):
    """From the command: the loss falls, the record holds what mAP the kept weights have."""
    monkeypatch.setenv("NAS_DATA", str(shared_data))
    out = tmp_path / "cells.keras"
    command = ["train", "efficientdet:tiny", "--task", "detection:bccd,size=32", "--epochs", "2"]
    command += ["--out", str(out), "--json"]
    assert command_line.main(command) == 0
    record = json.loads(capsys.readouterr().out)
    first, last = record["history"]
    assert last["valid_loss"] < first["valid_loss"] and last["loss"] < first["loss"]
    assert record["metric"] == "mean average precision" and 0 <= record["quality"] < 0.5
    model = keras.models.load_model(out, compile=False)
    task = detection.load(size=32)
    quality, loss = loop.measure(model, task)
    assert quality == pytest.approx(record["quality"], abs=1e-4)
    assert loss == pytest.approx(record["valid_loss"], rel=1e-3)


@pytest.mark.slow
def test_on_jax(passes_on_jax):
    passes_on_jax(__file__, "by_hand or loops or greedy or there_and_back")

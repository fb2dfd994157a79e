"""Boxes of the real file: all there, scaled exactly, the test images left alone."""

import io

import numpy as np
import pytest
from PIL import Image

from nas import registry
from nas.tasks import detection


@pytest.fixture(scope="module")
def data():
    """A small file: two images of different shapes, one box in the first, two in the second."""
    jpegs = []
    for width, height in ((40, 20), (10, 30), (16, 16)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[: height // 2, width // 2 :] = 255
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        jpegs.append(np.frombuffer(stream.getvalue(), np.uint8))
    boxes = [[0, 1, 20, 0, 40, 10], [1, 0, 5, 0, 10, 15], [1, 1, 0, 0, 10, 30], [2, 0, 0, 0, 8, 8]]
    return {
        "jpeg": np.concatenate(jpegs),
        "end": np.cumsum([len(one) for one in jpegs]),
        "boxes": np.float32(boxes),
        "classes": np.array(["a", "b"]),
        "idx_train": np.uint16([1]),
        "idx_val": np.uint16([0]),
        "idx_test": np.uint16([2]),
    }


@pytest.fixture
def write(tmp_path, data):
    def written(**changes):
        path = tmp_path / "some.npz"
        np.savez(path, **(data | changes))
        return str(path)

    return written


def test_bccd_is_all_there(shared_data, monkeypatch):
    monkeypatch.setenv("NAS_DATA", str(shared_data))
    task, final = registry.task("detection:bccd,size=64"), detection.load(size=64, test=True)
    assert task.fields == {"input_shape": (64, 64, 3), "classes": 3}
    assert [len(part[0]) for part in (task.train, task.valid, final.valid)] == [205, 87, 72]
    parts = [part[1] for part in (task.train, task.valid, final.valid)]
    assert sum(part["number"].sum() for part in parts) == 4886
    classes = np.concatenate([part["boxes"][..., 0].ravel() for part in parts]).astype(int)
    assert np.bincount(classes[classes >= 0]).tolist() == [372, 4153, 361]
    for part in parts:
        boxes, number = part["boxes"], part["number"]
        real = np.arange(boxes.shape[1]) < number[:, None]
        np.testing.assert_array_equal(boxes[~real], np.tile([-1, 0, 0, 0, 0], ((~real).sum(), 1)))
        x0, y0, x1, y1 = boxes[real][:, 1:].T
        assert (x0 >= 0).all() and (x0 < x1).all() and (x1 <= 64).all()
        assert (y0 >= 0).all() and (y0 < y1).all() and (y1 <= 48).all()  # 320 x 240
    np.testing.assert_array_equal(task.train[0], final.train[0])
    assert task.recipe != final.recipe
    seen = {image.tobytes() for image in task.train[0]} | {i.tobytes() for i in task.valid[0]}
    assert not any(image.tobytes() in seen for image in final.valid[0])


def test_at_its_own_size_nothing_changes(shared_data, monkeypatch):
    monkeypatch.setenv("NAS_DATA", str(shared_data))
    task = detection.load(size=320)
    with np.load(shared_data / "detection" / "bccd.npz") as data:
        index = int(data["idx_val"][5])
        start, end = data["end"][index - 1], data["end"][index]
        image = Image.open(io.BytesIO(data["jpeg"][start:end].tobytes())).convert("RGB")
        boxes = data["boxes"][data["boxes"][:, 0] == index, 1:]
    images, targets = task.valid
    np.testing.assert_array_equal(images[5, :240], image)
    assert not images[5, 240:].any()
    np.testing.assert_array_equal(targets["boxes"][5, : targets["number"][5]], boxes)


def test_boxes_stay_on_what_they_frame(write):
    task = detection.load(write(), size=80)
    wide, tall = task.valid, task.train
    np.testing.assert_array_equal(wide[1]["boxes"][0], [[1, 40, 0, 80, 20], [-1, 0, 0, 0, 0]])
    # 10 x 30 becomes 27 x 80: the width by 2.7, not by 2.667.
    np.testing.assert_allclose(
        tall[1]["boxes"][0], [[0, 13.5, 0, 27, 40], [1, 0, 0, 27, 80]], rtol=1e-6
    )
    for images, targets in (wide, tall):
        x0, y0, x1, y1 = np.rint(targets["boxes"][0, 0, 1:]).astype(int)
        assert images[0, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].min() > 200  # the white part
        assert images[0, y1 + 3 :].max() < 50 and images[0, :, : x0 - 3].max() < 50
    assert not images[0, :, 27:].any()


def test_a_network_that_gives_no_boxes_is_told(write):
    task = detection.load(write(), size=16)
    with pytest.raises(ValueError, match="gives one output; expected anchors, codes, logits"):
        task.loss(np.zeros((1, 2)), task.train[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"end": np.array([5, 3, 4])}, "ends of images in order"),
        ({"idx_val": np.uint16([1])}, "each in one split"),
        ({"idx_val": np.uint16([9])}, "indices below 3"),
        ({"boxes": np.zeros((2, 5))}, r"boxes \(n, 6\)"),
        ({"boxes": np.float32([[0, 7, 0, 0, 1, 1]])}, "known images and classes"),
        ({"boxes": np.float32([[0, 1, 5, 0, 1, 1]])}, "x0 < x1"),
        ({"boxes": np.float32([[0, 1, np.nan, 0, 1, 1]])}, "finite"),
        ({"jpeg": np.zeros(9000, np.uint8)}, "cannot read .*image 1"),
    ],
)
def test_bad_files_are_refused(write, changes, words):
    with pytest.raises(ValueError, match=words):
        detection.load(write(**changes), size=16)


def test_a_missing_file_is_told(tmp_path, monkeypatch):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="cannot read jpeg, end"):
        detection.load(str(tmp_path / "text.npz"))
    monkeypatch.setenv("NAS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"no file .*detection/coins\.npz"):
        detection.load("coins")
    monkeypatch.delenv("NAS_DATA")
    with pytest.raises(ValueError, match="set NAS_DATA"):
        detection.load()
    with pytest.raises(ValueError, match="size=4"):
        detection.load(size=4)

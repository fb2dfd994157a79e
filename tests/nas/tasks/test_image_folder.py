"""Folders of images as people have them: odd modes, turned, transparent, uneven, broken."""

import numpy as np
import pytest
from PIL import Image

from nas.files.hand_over.use import picture
from nas.tasks import image_folder
from nas.tasks.scoring.classes import BALANCED, ClassWeighted


def _folder(root, counts: dict[str, int], seed: int = 0):
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (6, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"é{number}.png")
    return root


def _grey16(path):
    Image.fromarray(np.full((8, 8), 25700, np.uint16)).save(path)  # 100 * 257


def _palette(path):
    image = Image.new("P", (8, 8))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(path, transparency=0)


def _animated(path):
    frames = [Image.new("L", (8, 8), shade) for shade in (3, 250)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


MODES = {
    "grey16.png": (_grey16, (100, 100, 100)),
    "palette.png": (_palette, (255, 255, 255)),  # its one colour is transparent
    "animated.gif": (_animated, (3, 3, 3)),
    "cmyk.jpg": (lambda path: Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path), (255, 0, 0)),
    "clear.png": (lambda path: Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(path), (255,) * 3),
    "half.png": (lambda path: Image.new("LA", (8, 8), (0, 128)).save(path), (127, 127, 127)),
    "bits.png": (lambda path: Image.new("1", (8, 8), 1).save(path), (255, 255, 255)),
    "floats.tiff": (lambda path: Image.fromarray(np.full((8, 8), 0.5, "f")).save(path), (128,) * 3),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_the_pixels_that_are_seen(name, tmp_path):
    write, expected = MODES[name]
    write(tmp_path / name)
    found = picture(tmp_path / name, (8, 8, 3))
    np.testing.assert_allclose(found, np.broadcast_to(expected, (8, 8, 3)), atol=1)


def test_an_image_is_turned_as_its_exif_data_say_and_keeps_its_aspect_by_choice(tmp_path):
    wide = Image.new("RGB", (40, 20))
    wide.paste((255, 255, 255), (0, 0, 20, 20))  # the left half is white
    turned = Image.Exif()
    turned[0x112] = 6  # shown turned to the right: its upper half is white
    wide.save(tmp_path / "a.png", exif=turned)
    stretched = picture(tmp_path / "a.png", (8, 8, 1))[..., 0]
    assert (stretched[:3] == 255).all() and (stretched[-3:] == 0).all()
    kept = picture(tmp_path / "a.png", (8, 8, 1), "keep", "black")[..., 0]
    assert (kept[0] == [0, 0, 255, 255, 255, 255, 0, 0]).all() and (kept[-1] == 0).all()
    corner = picture(tmp_path / "a.png", (8, 8, 1), "corner", "black")[..., 0]
    assert (corner[0] == [255] * 4 + [0] * 4).all()
    cropped = picture(tmp_path / "a.png", (8, 8, 1), "crop")[..., 0]
    assert (cropped[0] > 200).all() and (cropped[-1] < 50).all()


def test_every_class_stands_on_both_sides(tmp_path):
    """Uneven classes, and many small ones, of which half had no validation image."""
    many = _folder(tmp_path / "many", {f"{number:03}": 3 for number in range(40)})
    (many / "000" / "deeper" / "still").mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(many / "000" / "deeper" / "still" / "x.webp")
    uneven = _folder(tmp_path / "uneven", {"größe": 100, "鳥": 10, "two": 2, "one": 1})
    for root in (many, uneven):
        task = image_folder.load(str(root), size=8)
        for labels in (task.train[1], task.valid[1]):
            counts = np.bincount(labels, minlength=task.classes)
            assert (counts > 0).sum() >= task.classes - (root == uneven)
    assert task.labels == ("größe", "one", "two", "鳥")
    assert "1 classes have no validation image: one" in task.notes[0]
    assert "größe 8" in task.notes[1] and "always saying the largest gets" in task.notes[1]
    assert task.chance == np.mean(task.valid[1] == 0)


def test_uneven_classes_are_weighted_and_judged_by_choice(tmp_path):
    root = _folder(tmp_path, {"a": 30, "b": 6})
    plain = image_folder.load(str(root), size=8)
    task = image_folder.load(str(root), size=8, class_weights="balanced", balanced=True)
    assert isinstance(task.loss, ClassWeighted) and task.metric == BALANCED
    counts = np.bincount(task.train[1])
    np.testing.assert_allclose(np.multiply(task.loss.weights, counts), len(task.train[1]) / 2)
    always_a = task.scorer(None, lambda inputs: np.eye(2)[np.zeros(len(inputs), int)])
    assert task.average(always_a(*task.valid)) == task.chance == 0.5
    assert task.recipe != plain.recipe
    with pytest.raises(ValueError, match="class_weights='1/2/3'; expected balanced, or 2 numbers"):
        image_folder.load(str(root), size=8, class_weights="1/2/3")


def test_what_cannot_be_read_is_named_or_left_out_and_listed(tmp_path):
    root = _folder(tmp_path, {"a": 5, "b": 5})
    (root / "b" / "broken.jpg").write_bytes(b"no picture")
    (root / "b" / "._é0.png").write_bytes(b"what macOS leaves")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.jpg.*skip=true"):
        image_folder.load(str(root), size=8)
    task = image_folder.load(str(root), size=8, skip=True)
    assert len(task.train[1]) + len(task.valid[1]) == 10
    assert "1 unreadable images left out" in task.notes[0] and "broken.jpg" in task.notes[0]


def test_scale_mean_and_std_are_applied_and_recorded(tmp_path):
    root = _folder(tmp_path, {"a": 5, "b": 5})
    raw = image_folder.load(str(root), size=8)
    task = image_folder.load(str(root), size=8, mean="0.5/0.25/0", std=0.5)
    expected = (raw.train[0].astype("f") / 255 - np.array([0.5, 0.25, 0], "f")) / 0.5
    np.testing.assert_allclose(task.train[0], expected, rtol=1e-5, atol=1e-6)
    assert task.preprocessing.mean == (0.5, 0.25, 0.0) and task.preprocessing.scale == 255
    for name, value in (("aspect", "wide"), ("background", "red"), ("skip", "maybe")):
        with pytest.raises(ValueError, match=f"{name}='{value}'; expected"):
            image_folder.load(str(root), size=8, **{name: value})

"""Data in files, by their suffix."""

import importlib.util

import numpy as np
import pytest

from nas.data import task_of
from nas.tasks import data_file

X = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
Y = np.arange(60) % 3


def test_an_npz_and_arrays_are_the_same(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    found, expected = data_file.load(str(tmp_path / "a.npz")), task_of((X, Y))
    for part in ("train", "valid"):
        for one, other in zip(getattr(found, part), getattr(expected, part), strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_npz_of_several_inputs_and_outputs_keeps_all_names(tmp_path):
    np.savez(tmp_path / "a.npz", image=X, meta=X[:, :1], size=X[:, 0])
    inputs, targets = data_file.load(str(tmp_path / "a.npz")).train
    assert sorted(inputs) == ["image", "meta", "size"] and targets is None
    np.savez(tmp_path / "b.npz", image=X, meta=X[:9, :1], y=Y)
    with pytest.raises(ValueError, match="image 60, meta 9"):
        data_file.load(str(tmp_path / "b.npz"))


def test_a_table_names_its_target(tmp_path):
    lines = ["a,b,price,kind"]
    lines += [f"{a},{b},{c},{'xyz'[y]}" for (a, b, c), y in zip(X, Y, strict=True)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    task = data_file.load(str(path), target="kind", mean="0/1/2", std=2)
    assert task.classes == 3 and len(task.valid[1]) == 12
    everything = np.concatenate([task.train[0], task.valid[0]])
    expected = (X - [0, 1, 2]) / 2
    assert sorted(everything[:, 0].tolist()) == pytest.approx(sorted(expected[:, 0].tolist()))
    for options, words in (
        ({"target": "cost"}, "no column 'cost'; it has a, b, price, kind"),
        ({"target": "price"}, "'kind' is text"),
        ({"target": "kind", "std": "1/2"}, "3 of them"),
    ):
        with pytest.raises(ValueError, match=words):
            data_file.load(str(path), **options)
    path.write_text("a,y\n1,2\n3\n")
    with pytest.raises(ValueError, match="line 3: 1 values, but 2 names"):
        data_file.load(str(path))


def test_numbers_are_targets_of_their_own_kind(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b,y\n" + "\n".join(f"{a},{b},{c}" for a, b, c in X) + "\n")
    targets = data_file.load(str(path)).train[1]
    assert targets.dtype == np.float32 and targets.shape == (48,)


def test_python_and_numpy_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "import numpy as np\ndef data():\n    return np.ones((9, 2)), np.arange(9) % 3\n"
    (tmp_path / "my_rows.py").write_text(code)
    assert data_file.load(str(tmp_path / "my_rows.py")).classes == 3
    (tmp_path / "my_nothing.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"no function data\(\)"):
        data_file.load(str(tmp_path / "my_nothing.py"))
    np.save(tmp_path / "x.npy", X)
    assert data_file.load(str(tmp_path / "x.npy"), scale=2).train[0] == pytest.approx(X / 2)


def test_other_files_say_what_to_do(tmp_path):
    remedies = {"a.tfrecord": "it is no TFRecord file", "a.txt": "expected .npz"}
    if importlib.util.find_spec("pyarrow") is None:
        remedies["a.parquet"] = "pip install pyarrow, or save it as .csv"
    for name, words in remedies.items():
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=words) as error:
            data_file.load(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no file nowhere.csv"):
        data_file.load("nowhere.csv")


class Columns:
    """What a Hugging Face dataset looks like."""

    column_names = ("image", "label")

    def with_format(self, kind):
        return {"numpy": self}[kind]

    def __getitem__(self, rows):
        return {"image": X[rows], "label": Y[rows]}


def test_a_dataset_of_columns_is_its_images_and_labels():
    found, expected = task_of(Columns()), task_of((X, Y))
    np.testing.assert_array_equal(found.train[0], expected.train[0])
    np.testing.assert_array_equal(found.valid[1], expected.valid[1])

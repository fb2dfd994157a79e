"""The text task: what is predicted from what, what is held out, what the quality means."""

import keras
import numpy as np
import pytest

from nas import registry
from nas.tasks import text
from nas.text import tokenizer_files


@pytest.fixture
def play(shared_data):
    return shared_data / "text" / "tinyshakespeare.txt"


def test_tiny_shakespeare_in_characters(play, tmp_path):
    task = text.load(str(play), length=64)
    content = play.read_text()
    cut = int(0.9 * len(content))
    assert task.fields == {"vocabulary": 65, "length": 64}
    (inputs, targets), (held, _) = task.train, task.valid
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.shape == targets.shape == ((cut - 1) // 64, 64)
    assert held.shape == ((len(content) - cut - 1) // 64, 64)
    (tmp_path / "net.tokenizer.txt").write_bytes(task.files[".tokenizer.txt"])
    tokenizer = tokenizer_files.beside(tmp_path / "net.keras", 65)
    assert tokenizer.decode(inputs[:2].ravel()) == content[:128]
    assert tokenizer.decode(targets[:2].ravel()) == content[1:129]
    assert tokenizer.decode(held[0]) == content[cut : cut + 64]
    assert max(targets.ravel()) < 65


def test_training_windows_are_views_of_one_array(play):
    task = text.load(str(play), length=64, stride=8)
    inputs, targets = task.train
    assert np.shares_memory(inputs, targets)
    assert not inputs.flags.owndata
    assert (inputs[1:, :-8] == inputs[:-1, 8:]).all()
    chosen = np.array([5, 3])
    assert inputs[chosen].flags.c_contiguous
    assert len(task.valid[0]) == len(text.load(str(play), length=64).valid[0])


def test_a_file_of_its_own_validates(shared_data):
    valid, test = (shared_data / "text" / f"wikitext2_{part}.txt" for part in ("valid", "test"))
    tokenizer = shared_data / "text" / "gpt2_vocab.bpe"
    task = text.load(str(valid), tokenizer=str(tokenizer), length=128, valid=str(test))
    assert task.fields["vocabulary"] == 50257
    known = tokenizer_files.read(tokenizer)
    for (inputs, _), path in ((task.train, valid), (task.valid, test)):
        assert inputs[0].tolist() == known.encode(path.read_text()[:4000])[:128]
        assert len(inputs) == (len(known.encode(path.read_text())) - 1) // 128


def test_pieces_are_learned_from_the_training_part_only(tmp_path):
    path = tmp_path / "a.txt"
    common = "the cat sat on the mat and so on\n" * 400
    path.write_text(common + "zebra " * 600)
    task = text.load(str(path), tokenizer="bpe:290", length=16, valid=3600 / path.stat().st_size)
    assert list(task.files) == [".tokenizer.model"]
    other = tmp_path / "b.txt"
    other.write_text(common + "quokka" * 600)
    again = text.load(str(other), tokenizer="bpe:290", length=16, valid=3600 / path.stat().st_size)
    assert again.files == task.files
    assert again.recipe != task.recipe
    (tmp_path / "a.tokenizer.model").write_bytes(task.files[".tokenizer.model"])
    tokenizer = tokenizer_files.beside(tmp_path / "a.keras")
    assert b"zeb" not in tokenizer.pieces
    assert tokenizer.decode(task.valid[0][0]).startswith("zebra")


def test_a_start_token_that_no_text_has_is_no_part_of_it(shared_data, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ONCE UPON A TIME THERE WAS A KING " * 50)
    model = shared_data / "text" / "librispeech_bpe_1024.model"
    task = text.load(str(path), tokenizer=str(model), length=8)
    (tmp_path / "a.tokenizer.model").write_bytes(task.files[".tokenizer.model"])
    assert tokenizer_files.read(model).start == 1
    assert tokenizer_files.beside(tmp_path / "a.keras").start is None


def test_the_quality_is_one_over_the_perplexity(play):
    """Of a network that says what a table of pairs says, counted by hand."""
    task = text.load(str(play), length=32)
    counts = np.ones((65, 65))
    np.add.at(counts, (task.train[0].ravel(), task.train[1].ravel()), 1)
    table = np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32)
    inputs, targets = task.valid
    expected = -np.mean(table[inputs, targets], dtype=np.float64)
    scores = task.scorer(None, lambda tokens: 3 + table[tokens])(inputs, targets)
    assert scores.shape == (len(inputs),)
    assert task.average(scores) == pytest.approx(np.exp(-expected), rel=1e-6)
    assert 2.3 < expected < 2.6  # two characters tell this much of Shakespeare
    losses = keras.ops.convert_to_numpy(task.loss(table[inputs[:50]], targets[:50]))
    assert losses.shape == (50,)
    np.testing.assert_allclose(np.exp(-losses), scores[:50], rtol=1e-5)


def test_it_is_named_in_a_flag(play):
    task = registry.task(f"text:{play},tokenizer=bpe:400,length=32,stride=16,valid=0.2")
    assert task.fields == {"vocabulary": 400, "length": 32}


@pytest.mark.parametrize(
    "content, options, words",
    [
        (None, {}, "no file"),
        (b"", {}, "is empty"),
        (b" \n", {}, "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff", {}, "not UTF-8"),
        (b"MZ\0\0", {}, "zero byte at 2"),
        (b"a short text", {}, "training tokens"),
        (b"a short text" * 20, {"valid": 0.01}, "validation tokens"),
        (b"a short text" * 20, {"valid": 1.0}, "valid=1.0"),
        (b"a short text" * 20, {"valid": "nowhere.txt"}, "no file nowhere.txt"),
        (b"a short text" * 20, {"length": 1}, "length=1"),
        (b"a short text" * 20, {"stride": 0}, "stride=0"),
        (b"a short text" * 20, {"tokenizer": "words"}, "tokenizer='words'"),
        (b"a short text" * 20, {"tokenizer": "bpe:7"}, "no tokenizer of 7 pieces"),
    ],
)
def test_bad_input_is_named(content, options, words, tmp_path):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        text.load(str(path), **options)
    assert "\n" not in str(error.value)

"""Tokenizers: real files and text come back exactly, ids are those of independent encoders."""

import json
import random
import struct

import pytest
import sentencepiece

from nas.text import sentence_piece, tokenizer_files
from nas.text.byte_pairs import BytePairs
from nas.text.sentence_piece import SentencePiece
from nas.text.tokenizer import Characters

HARD = "\n\n  Wait —  naïve café, 日本語 😀🏳️‍🌈 '\tx\r\n 1234 ½ don't I'LL \x00\x7f\u00a0end  "


@pytest.fixture(scope="module")
def play(shared_data):
    return (shared_data / "text" / "tinyshakespeare.txt").read_text()


@pytest.fixture(scope="module")
def wiki(shared_data):
    return (shared_data / "text" / "wikitext2_test.txt").read_text()


def kinds(shared_data, play):
    yield tokenizer_files.read(shared_data / "text" / "gpt2_vocab.bpe")
    yield tokenizer_files.read(shared_data / "checkpoints" / "tok512.bin")
    yield sentence_piece.train(play, 500)
    yield Characters(play + HARD)


def test_texts_come_back_exactly(shared_data, play):
    for tokenizer in kinds(shared_data, play):
        for text in (play, HARD, "", " ", "\n", "a"):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text, type(tokenizer)
            assert not ids or 0 <= min(ids) <= max(ids) < tokenizer.vocabulary


def test_all_of_a_text_no_tokenizer_was_made_for_comes_back(shared_data, play, wiki):
    for tokenizer in list(kinds(shared_data, play))[:3]:
        assert tokenizer.decode(tokenizer.encode(wiki)) == wiki


def test_a_stream_gives_the_same_text_and_only_whole_characters(shared_data, play):
    for tokenizer in kinds(shared_data, play):
        parts = list(tokenizer.stream(iter(tokenizer.encode(HARD))))
        assert "".join(parts) == HARD
        assert "\ufffd" not in parts


def test_the_file_beside_a_network_is_the_same_tokenizer(shared_data, play, tmp_path):
    for tokenizer in kinds(shared_data, play):
        path = tmp_path / ("net" + tokenizer.suffix)
        path.write_bytes(tokenizer.to_bytes())
        again = tokenizer_files.beside(tmp_path / "net.keras")
        assert type(again) is type(tokenizer)
        assert again.pieces == tokenizer.pieces
        assert (again.start, again.stops) == (tokenizer.start, tokenizer.stops)
        assert again.encode(play[:9999]) == tokenizer.encode(play[:9999])
        path.unlink()


def test_gpt2_gives_the_published_ids(shared_data):
    tokenizer = tokenizer_files.read(shared_data / "text" / "gpt2_vocab.bpe")
    known = json.loads((shared_data / "text" / "gpt2_encoder.json").read_text())
    assert tokenizer.vocabulary == len(known) == 50257
    assert tokenizer.stops == {known["<|endoftext|>"]}
    assert tokenizer.encode("Hello world") == [known["Hello"], known["Ġworld"]] == [15496, 995]
    assert tokenizer.encode("<|endoftext|>") != [50256]  # text is text


def test_gpt2_merges_by_hand(shared_data):
    """Words against the joining of pairs as the paper describes it, over the raw merges file."""
    lines = (shared_data / "text" / "gpt2_vocab.bpe").read_text().splitlines()[1:]
    order = {tuple(line.split(" ")): rank for rank, line in enumerate(lines)}
    numbers = json.loads((shared_data / "text" / "gpt2_encoder.json").read_text())
    tokenizer = tokenizer_files.read(shared_data / "text" / "gpt2_vocab.bpe")
    for word in ("antidisestablishmentarianism", "Shakespeare", "xqzzzt", "aaaaaaaaaaaa", "thethe"):
        parts = list(word)
        while pairs := [pair for pair in zip(parts, parts[1:], strict=False) if pair in order]:
            best, joined, place = min(pairs, key=order.get), [], 0
            while place < len(parts):
                two = tuple(parts[place : place + 2]) == best
                joined.append("".join(parts[place : place + 1 + two]))
                place += 1 + two
            parts = joined
        assert tokenizer.encode(word) == [numbers[part] for part in parts]


def greedy(pieces: list[tuple[bytes, float]], text: str) -> list[int]:
    """llama2.c's encoder: bytes of what it lacks, then the best pair is joined, again and again."""
    known = {piece: number for number, (piece, _) in enumerate(pieces)}
    ids = [known[b" "]] if text else []
    for letter in text:
        coded = letter.encode()
        ids += [known[coded]] if coded in known else [byte + 3 for byte in coded]
    while True:
        pairs = [
            (pieces[known[joined]][1], -place)
            for place in range(len(ids) - 1)
            if (joined := pieces[ids[place]][0] + pieces[ids[place + 1]][0]) in known
        ]
        if not pairs:
            return ids
        place = -max(pairs)[1]
        ids[place : place + 2] = [known[pieces[ids[place]][0] + pieces[ids[place + 1]][0]]]


def test_llama2c_gives_the_ids_of_its_own_algorithm(shared_data, play, wiki):
    content = (shared_data / "checkpoints" / "tok512.bin").read_bytes()
    at, pieces = 4, []
    while at < len(content):
        score, length = struct.unpack_from("<fi", content, at)
        pieces.append((content[at + 8 : at + 8 + length], score))
        at += 8 + length
    tokenizer = sentence_piece.llama2c(content)
    assert tokenizer.vocabulary == 512
    assert (tokenizer.start, tokenizer.stops) == (1, {1, 2})
    generator = random.Random(0)
    strange = "".join(chr(generator.randrange(1, 0x2500)) for _ in range(600))
    texts = [HARD, strange, " two", "", *(play[i : i + 200] for i in range(0, 200000, 10000))]
    for text in texts + [wiki[i : i + 200] for i in range(0, 200000, 10000)]:
        assert tokenizer.encode(text) == greedy(pieces, text)


def test_a_sentencepiece_file_decodes_as_sentencepiece_does(shared_data):
    path = shared_data / "text" / "librispeech_bpe_1024.model"
    ours, theirs = (
        tokenizer_files.read(path),
        sentencepiece.SentencePieceProcessor(model_file=str(path)),
    )
    text = "HELLO THERE HOW ARE YOU IT'S ME"
    assert ours.vocabulary == 1024
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) == text
    assert ours.decode(ours.encode("Hello")) == theirs.decode(theirs.encode("Hello")) != "Hello"
    assert ours.decode([ours.start, *ours.encode(text)]) == text


def test_without_start_only_the_start_is_gone(shared_data):
    ours = tokenizer_files.read(shared_data / "text" / "librispeech_bpe_1024.model")
    plain = ours.without_start()
    assert (ours.start, plain.start) == (1, None)
    assert plain.encode("HELLO THERE") == ours.encode("HELLO THERE")
    assert plain.pieces == ours.pieces
    assert plain.without_start() is plain


def test_training_shortens_what_it_is_trained_on(play):
    small, large = (sentence_piece.train(play, size) for size in (400, 1000))
    assert (small.vocabulary, large.vocabulary) == (400, 1000)
    assert len(play) > len(small.encode(play)) > 1.1 * len(large.encode(play))
    assert sentence_piece.train(play, 400).to_bytes() == small.to_bytes()
    assert small.start is None


@pytest.mark.parametrize("size", [2, 290, 10**6])
def test_a_vocabulary_that_cannot_be_is_refused(size, play):
    with pytest.raises(ValueError, match=f"no tokenizer of {size} pieces: Vocabulary size"):
        sentence_piece.train(play[:20000], size)


def test_a_character_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="'z' is not among the 3"):
        Characters("abca").encode("abz")


def test_ids_out_of_range_are_refused(shared_data):
    tokenizer = tokenizer_files.read(shared_data / "checkpoints" / "tok512.bin")
    for number in (-1, 512):
        with pytest.raises(ValueError, match=f"id {number}"):
            tokenizer.decode([number])


def piece(text: bytes, score: float = 0.0, length: int | None = None) -> bytes:
    return struct.pack("<fi", score, len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("x.model", b"", "without pieces|cannot read"),
        ("x.model", b"no protocol buffer", "cannot read"),
        ("x.bin", b"", "ends at byte 0"),
        ("x.bin", b"\7\0\0\0" + piece(b"<unk>")[:-1], "piece 0"),
        ("x.bin", b"\7\0\0\0" + piece(b"<unk>", length=2**31 - 1), "piece 0"),
        ("x.bin", b"\7\0\0\0" + piece(b"<unk>", length=-5), "piece 0"),
        ("x.bin", b"\7\0\0\0" + piece(b"<unk>", score=float("nan")), "piece 0"),
        ("x.bin", b"\7\0\0\0" + piece(b"<unk>"), "expected <unk>, <s>"),
        ("x.bin", b"\7\0\0\0" + piece(b"\xff\xfe"), "utf-8"),
        ("x.bpe", b"#version: 0.2\na b c\n", "line 2"),
        ("x.bpe", b"#version: 0.2\na b\na b\n", "second time"),
        ("x.bpe", b"\xff\xfe\x00", "utf-8"),
        ("x.tiktoken", b"YQ== 0\n", "every single byte"),
        ("x.tiktoken", b"what is this\n", "base64"),
        ("x.txt", b"", "no characters"),
        ("x.txt", b"\xff", "utf-8"),
        ("x.json", b"{}", "expected a tokenizer file"),
    ],
)
def test_bad_files_get_one_line(name, content, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        tokenizer_files.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_huge_one(tmp_path):
    with pytest.raises(ValueError, match="no such"):
        tokenizer_files.read(tmp_path / "x.bin")
    with open(tmp_path / "huge.bin", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="too large"):
        tokenizer_files.read(tmp_path / "huge.bin")


def test_variants_of_a_real_file_are_refused_or_whole(shared_data, tmp_path):
    for name in ("checkpoints/tok512.bin", "text/librispeech_bpe_1024.model"):
        content = bytearray((shared_data / name).read_bytes())
        generator = random.Random(1)
        for _ in range(60):
            variant = content[:]
            if generator.random() < 0.3:
                del variant[generator.randrange(len(variant)) :]
            for _ in range(3):
                if variant:
                    variant[generator.randrange(len(variant))] = generator.randrange(256)
            path = tmp_path / ("v" + (shared_data / name).suffix)
            path.write_bytes(variant)
            try:
                tokenizer = tokenizer_files.read(path)
            except ValueError:
                continue
            assert max(tokenizer.encode("once upon a time"), default=0) < tokenizer.vocabulary


def test_an_encoder_that_does_not_fit_its_merges_is_refused(tmp_path):
    ranks = {bytes([byte]): byte for byte in range(256)}
    assert BytePairs(ranks).vocabulary == 257
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    assert tokenizer_files.read(tmp_path / "vocab.bpe").encode("ab") == [256]
    (tmp_path / "encoder.json").write_text('{"ab": 0}')
    with pytest.raises(ValueError, match="encoder.json beside it"):
        tokenizer_files.read(tmp_path / "vocab.bpe")


def test_the_one_that_fits_is_found_beside_a_network(shared_data, tmp_path):
    tok512 = (shared_data / "checkpoints" / "tok512.bin").read_bytes()
    with pytest.raises(ValueError, match="no tokenizer beside"):
        tokenizer_files.beside(tmp_path / "x.bin", 512)
    (tmp_path / "tok512.bin").write_bytes(tok512)
    found = tokenizer_files.beside(tmp_path / "x.bin", 512)
    assert isinstance(found, SentencePiece)
    with pytest.raises(ValueError, match="no tokenizer beside"):
        tokenizer_files.beside(tmp_path / "x.bin", 511)
    (tmp_path / "tok_other.bin").write_bytes(tok512)
    with pytest.raises(ValueError, match="several tokenizers"):
        tokenizer_files.beside(tmp_path / "x.bin", 512)
    (tmp_path / "x.tokenizer.txt").write_text("abc")
    assert tokenizer_files.beside(tmp_path / "x.bin", 512).vocabulary == 3
    with pytest.raises(ValueError, match="has 3 pieces"):
        tokenizer_files.beside(tmp_path / "x.bin", 2)

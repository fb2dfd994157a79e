"""Tokenizer files: reading one of any kind, and finding the one beside a network."""

import functools
import pathlib
from collections.abc import Callable

from nas.text import byte_pairs, sentence_piece
from nas.text.tokenizer import Characters, Tokenizer

LARGEST_MB = 64  # the largest vocabularies in use, of 260,000 pieces, take 5 MB


def read(path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer in a file; ValueError in one line where it is none.

    .model: sentencepiece. .bin: llama2.c. .bpe or merges.txt: GPT-2's list of merges, checked
    against the encoder.json beside it. .tiktoken: byte pairs in base64. .txt: an alphabet.
    """
    path = pathlib.Path(path).expanduser()
    kinds: dict[str, Callable[[bytes], Tokenizer]] = {
        ".model": sentence_piece.SentencePiece,
        ".bin": sentence_piece.llama2c,
        ".bpe": functools.partial(byte_pairs.of_merges, path),
        ".tiktoken": byte_pairs.of_base64,
        ".txt": lambda content: Characters(content.decode()),
    }
    if not path.is_file():
        raise ValueError(f"{path}: no such tokenizer file")
    if path.suffix not in kinds:
        raise ValueError(f"{path}: expected a tokenizer file that ends in {', '.join(kinds)}")
    if path.stat().st_size > LARGEST_MB * 2**20:
        raise ValueError(f"{path}: over {LARGEST_MB} MB, too large for a tokenizer")
    content = path.read_bytes()
    kind = kinds[".bpe" if content.startswith(b"#version") else path.suffix]
    try:
        return kind(content)
    except ValueError as error:
        raise ValueError(f"{path}: not a tokenizer: {' '.join(str(error).split())}") from error


def beside(model: str | pathlib.Path, vocabulary: int | None = None) -> Tokenizer:
    """The tokenizer in the folder of a network: its own, the folder's, or one that fits in size.

    For `x.keras`: x.tokenizer.*, else tokenizer.model, merges.txt or vocab.bpe, else the one
    tok*.bin of `vocabulary` pieces.
    """
    model = pathlib.Path(model)
    folder = model.parent
    own = sorted(folder.glob(f"{_escaped(model.stem)}.tokenizer.*"))
    usual = [folder / name for name in ("tokenizer.model", "merges.txt", "vocab.bpe")]
    for path in [*own, *(path for path in usual if path.is_file())]:
        found = read(path)
        if vocabulary is None or found.vocabulary <= vocabulary:
            return found
        raise ValueError(f"{path} has {found.vocabulary} pieces, {model} {vocabulary}")
    fitting = []
    for path in sorted(folder.glob("tok*.bin")):
        found = read(path)
        if found.vocabulary == vocabulary:
            fitting.append(found)
    if len(fitting) != 1:
        raise ValueError(
            f"{'no tokenizer' if not fitting else 'several tokenizers'} beside {model}; "
            "name one: --tokenizer FILE"
        )
    return fitting[0]


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)

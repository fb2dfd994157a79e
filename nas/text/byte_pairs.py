"""GPT-2's byte-level BPE, by tiktoken.

Radford et al., "Language models are unsupervised multitask learners", 2019.
"""

import base64
import binascii
import json
import pathlib

from nas.text.tokenizer import Tokenizer

# How GPT-2 divides text before it joins bytes: contractions, words, numbers, the rest, spaces.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"


class BytePairs(Tokenizer):
    """GPT-2's byte-level BPE: any text, exactly; the last id ends a text.

    `ranks` are the ids of the joined bytes, in the order in which they are joined.
    """

    suffix = ".tokenizer.tiktoken"

    def __init__(self, ranks: dict[bytes, int]):
        import tiktoken

        count = len(ranks)
        if sorted(ranks.values()) != list(range(count)) or any(
            bytes([byte]) not in ranks for byte in range(256)
        ):
            raise ValueError("expected ids from 0 without a gap, and among them every single byte")
        self.pieces = [*sorted(ranks, key=ranks.__getitem__), b""]
        self._encoding = tiktoken.Encoding(
            "nas",
            pat_str=WORDS,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: count},
        )
        self.stops = frozenset([count])

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def to_bytes(self) -> bytes:
        lines = [
            f"{base64.b64encode(piece).decode()} {rank}\n"
            for rank, piece in enumerate(self.pieces[:-1])
        ]
        return "".join(lines).encode()


def of_merges(path: pathlib.Path, content: bytes) -> BytePairs:
    """GPT-2's merges: the bytes in the order of its alphabet, then what is joined, in order."""
    letters = _byte_letters()
    ranks = {bytes([byte]): rank for rank, byte in enumerate(letters.values())}
    for number, line in enumerate(content.decode().splitlines(), 1):
        if line.startswith("#version") or not line.strip():
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not set("".join(pair)) <= letters.keys():
            raise ValueError(f"line {number} is {line[:40]!r}; expected two tokens to join")
        joined = bytes(letters[letter] for letter in "".join(pair))
        if joined in ranks:
            raise ValueError(f"line {number} joins {line!r} a second time")
        ranks[joined] = len(ranks)
    encoder = path.with_name(path.name.replace("vocab.bpe", "encoder.json"))
    encoder = path.with_name("vocab.json") if path.name == "merges.txt" else encoder
    if encoder != path and encoder.is_file():
        _compare(ranks, encoder, letters)
    return BytePairs(ranks)


def _compare(ranks: dict[bytes, int], encoder: pathlib.Path, letters: dict[str, int]) -> None:
    """ValueError unless the file that numbers the tokens numbers them as the merges do."""
    numbers = {rank: piece for piece, rank in ranks.items()}
    names = {byte: letter for letter, byte in letters.items()}
    expected = {"".join(names[b] for b in piece): n for n, piece in numbers.items()}
    expected[END_OF_TEXT] = len(ranks)
    if json.loads(encoder.read_bytes()) != expected:
        raise ValueError(f"{encoder.name} beside it numbers the tokens otherwise")


def _byte_letters() -> dict[str, int]:
    """GPT-2's letter of every byte: printable ones are themselves, others come from U+0100 on."""
    plain = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def of_base64(content: bytes) -> BytePairs:
    ranks = {}
    for line in content.decode().splitlines():
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{line[:40]!r}; expected base64 and a number") from error
    return BytePairs(ranks)

"""What every tokenizer does, and the simplest one: characters."""

import abc
import codecs
from collections.abc import Iterable, Iterator

import numpy as np


class Tokenizer(abc.ABC):
    """Text to ids 0..vocabulary-1 and back; its file goes beside the network that reads the ids.

    `start` opens every text the network was trained on, None where it was not so; a network that
    says one of `stops` has come to the end of its text.
    """

    suffix: str  # of its file, e.g. ".tokenizer.model"
    start: int | None = None
    stops: frozenset[int] = frozenset()
    pieces: list[bytes]  # the UTF-8 bytes that every id stands for, maybe of half a character

    @property
    def vocabulary(self) -> int:
        return len(self.pieces)

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without `start`."""

    @abc.abstractmethod
    def to_bytes(self) -> bytes:
        """The file that `read` makes the same tokenizer of."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return "".join(self.stream(ids))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come, one string an id: characters appear when complete."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in self._bytes(ids):
            yield decoder.decode(piece)
        yield decoder.decode(b"", True)

    def _bytes(self, ids: Iterable[int]) -> Iterator[bytes]:
        for number in ids:
            if not 0 <= number < self.vocabulary:
                raise ValueError(f"id {number}; expected 0 to {self.vocabulary - 1}")
            yield self.pieces[number]


class Characters(Tokenizer):
    """Every character is a token; the ids are places in the sorted alphabet."""

    suffix = ".tokenizer.txt"

    def __init__(self, text: str):
        self._points = np.unique(_code_points(text))
        if not len(self._points):
            raise ValueError("an alphabet of no characters")
        self.pieces = [chr(point).encode() for point in self._points]

    def encode(self, text: str) -> list[int]:
        points = _code_points(text)
        ids = np.minimum(np.searchsorted(self._points, points), len(self._points) - 1)
        unknown = np.flatnonzero(self._points[ids] != points)
        if len(unknown):
            raise ValueError(
                f"character {chr(points[unknown[0]])!r} is not among the {self.vocabulary} that "
                "this network knows"
            )
        return ids.tolist()

    def to_bytes(self) -> bytes:
        return b"".join(self.pieces)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)

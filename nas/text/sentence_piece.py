"""Sentencepiece models, read, trained, or made of llama2.c's tokenizer files.

Kudo and Richardson, arXiv 1808.06226; BPE: Sennrich et al., arXiv 1508.07909.
"""

import functools
import io
import struct
from collections.abc import Iterable, Iterator

import numpy as np

from nas.text.tokenizer import Tokenizer

SPACE = "\u2581"  # how sentencepiece writes a space
UNKNOWN, START, END, FIRST_BYTE = 0, 1, 2, 3  # the first pieces of every llama2.c tokenizer
# Sentencepiece's numbers of its piece and model types.
NORMAL_PIECE, UNKNOWN_PIECE, CONTROL_PIECE, UNUSED_PIECE, BYTE_PIECE = 1, 2, 3, 5, 6
BPE_MODEL = 2


class SentencePiece(Tokenizer):
    """A sentencepiece model (BPE or unigram), by sentencepiece itself."""

    suffix = ".tokenizer.model"

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(f"sentencepiece cannot read it: {error}") from error
        if not self._processor.vocab_size():
            raise ValueError("a sentencepiece model without pieces")
        self.pieces = [self._piece(number) for number in range(self._processor.vocab_size())]
        start, end = self._processor.bos_id(), self._processor.eos_id()
        self.start = None if start < 0 else start
        self.stops = frozenset(number for number in (start, end) if number >= 0)

    def _piece(self, number: int) -> bytes:
        processor = self._processor
        piece = processor.id_to_piece(number)
        if processor.is_control(number) or processor.is_unused(number):
            return b""
        if processor.is_unknown(number):
            return b" \xe2\x81\x87 "  # a double question mark, as sentencepiece writes it
        if processor.is_byte(number):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE, " ").encode()

    @functools.cached_property
    def _adds_space(self) -> bool:
        """Whether it puts a space before every text, which its decoding takes away."""
        first = self._processor.encode("x", out_type=str)[:1]
        return bool(first) and first[0].startswith(SPACE)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def _bytes(self, ids: Iterable[int]) -> Iterator[bytes]:
        first = self._adds_space
        for piece in super()._bytes(ids):
            yield piece.removeprefix(b" ") if first else piece
            first = first and not piece

    def to_bytes(self) -> bytes:
        return self._model

    def without_start(self) -> "SentencePiece":
        """The same pieces, for a network that is trained on text in which no token opens it."""
        if self.start is None:
            return self
        from sentencepiece import sentencepiece_model_pb2 as proto

        model = proto.ModelProto.FromString(self._model)  # type: ignore[attr-defined]
        model.pieces[self.start].type = UNUSED_PIECE
        return SentencePiece(model.SerializeToString())


def train(text: str, vocabulary: int) -> SentencePiece:
    """Byte pairs learned from a text, by sentencepiece: `vocabulary` pieces with all 256 bytes.

    Any text without U+2581, which sentencepiece takes for a space, comes back exactly.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_parts(text),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            byte_fallback=True,
            bos_id=-1,
            eos_id=-1,
            user_defined_symbols=["\n"],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            num_threads=1,
            minloglevel=3,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rpartition("] ")[2] or str(error)
        raise ValueError(f"no tokenizer of {vocabulary} pieces: {reason.strip()}") from error
    return SentencePiece(model.getvalue())


def _parts(text: str) -> Iterator[str]:
    """The lines of a text, long ones in pieces: sentencepiece leaves out what is over 4 kB."""
    for line in text.split("\n"):
        for first in range(0, len(line), 1000):
            yield line[first : first + 1000]


def llama2c(content: bytes) -> SentencePiece:
    """llama2.c's tok*.bin: the longest piece, then score, length and bytes of every piece.

    It joins the pair of the best score first, and writes what it lacks in bytes: that is
    sentencepiece's BPE, so a sentencepiece model of the same pieces does it.
    """
    from sentencepiece import sentencepiece_model_pb2 as proto

    longest, at = _unpack("<i", content, 0)[0], 4
    found: list[tuple[str, float]] = []
    while at < len(content):
        score, length = _unpack("<fi", content, at)
        at += 8
        if not 0 < length <= longest or at + length > len(content) or not np.isfinite(score):
            raise ValueError(f"piece {len(found)} of {length} bytes, score {score}, at byte {at}")
        found.append((content[at : at + length].decode(), score))
        at += length
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    if [piece for piece, _ in found[FIRST_BYTE : FIRST_BYTE + 256]] != bytes_of:
        raise ValueError("expected <unk>, <s>, </s> and <0x00> to <0xFF> first, as llama2.c's have")
    model = proto.ModelProto()  # type: ignore[attr-defined]
    special = {UNKNOWN: UNKNOWN_PIECE, START: CONTROL_PIECE, END: CONTROL_PIECE}
    for number, (piece, score) in enumerate(found):
        byte = FIRST_BYTE <= number < FIRST_BYTE + 256
        name = piece.strip() if number in special else piece.replace(" ", SPACE)
        kind = special.get(number, BYTE_PIECE if byte else NORMAL_PIECE)
        model.pieces.add(piece=name, score=score, type=kind)
    model.trainer_spec.model_type = BPE_MODEL
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return SentencePiece(model.SerializeToString())


def _unpack(form: str, content: bytes, at: int) -> tuple:
    if at + struct.calcsize(form) > len(content):
        raise ValueError(f"it ends at byte {len(content)}, within a piece")
    return struct.unpack_from(form, content, at)

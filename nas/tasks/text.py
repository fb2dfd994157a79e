"""A text file: say the next token of every window of `length` tokens; quality 1 / perplexity.

The first part of the file trains, the last part validates: no window reaches over the cut.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from nas.tasks.inputs.preprocessing import Preprocessing
from nas.tasks.task import Score, Task, fingerprint, geometric_mean, whole_number
from nas.text import sentence_piece, tokenizer_files
from nas.text.tokenizer import Characters, Tokenizer

LARGEST_MB = 1024  # the tokens of a file are held in memory, four bytes each


def load(
    path: str,
    tokenizer: str = "characters",
    length: int = 128,
    valid: float | str = 0.1,
    stride: int | None = None,
) -> Task:
    """Tokens (n, length) int32 and the tokens that follow each, of a UTF-8 file.

    `tokenizer`: characters, bpe:N (N pieces, learned from the training part) or a file, see
    `nas.text.tokenizer_files.read`. `valid`: the share of the file held out at its end, or another
    file. `stride`: training windows begin every so many tokens (`length`: each token once an
    epoch); they are views of one array. What is left at the end of a part is not used.

    The quality is exp(-loss), the likelihood of a validation token: 1 / perplexity. Raises
    `ValueError` where the file is no text, or has fewer tokens than a window.

    >>> load("shakespeare.txt", tokenizer="bpe:512", length=64).train[0].shape  # doctest: +SKIP
    (9026, 64)
    """
    whole_number("length", length, 2)
    stride = length if stride is None else whole_number("stride", stride, 1)
    train, held, how = _parts(path, valid)
    coder, recipe = _tokenizer(tokenizer, train, held)
    tokens = [np.array(coder.encode(part), np.int32) for part in (train, held)]
    for name, part in zip(("training", "validation"), tokens, strict=True):
        if len(part) <= length:
            raise ValueError(
                f"text: {len(part)} {name} tokens in {path}; expected more than length={length}"
            )
    return Task(
        name="text",
        train=_windows(tokens[0], length, stride),
        valid=_windows(tokens[1], length, length),
        fields={"vocabulary": coder.vocabulary, "length": length},
        recipe=f"text data={fingerprint(*tokens)} tokenizer={recipe} length={length} "
        f"stride={stride} valid={how}",
        loss=next_token,
        scorer=likelihood,
        average=geometric_mean,
        metric="1 / perplexity",
        training={"batch_size": 32, "learning_rate": 3e-3, "clip": 1.0},
        files={coder.suffix: coder.to_bytes()},
        labels=characters_of(coder),
        preprocessing=preprocessing_of(coder),
    )


def characters_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What each token is, where it is a character; else nothing: its file lies beside the network.

    >>> characters_of(Characters("cab"))
    ('a', 'b', 'c')
    """
    if not isinstance(tokenizer, Characters):
        return ()
    return tuple(piece.decode() for piece in tokenizer.pieces)


def preprocessing_of(tokenizer: Tokenizer) -> Preprocessing:
    """What is said of tokens to whoever is handed a network of them."""
    plain = isinstance(tokenizer, Characters)
    return Preprocessing("text", tokenizer="characters" if plain else tokenizer.suffix[1:])


def next_token(logits: Any, targets: Any) -> Any:
    """Mean cross-entropy (batch,) in nats of logits (batch, length, vocabulary) and tokens.

    >>> next_token(np.zeros((1, 3, 8), "float32"), np.zeros((1, 3), "int32")).shape[0]
    1
    """
    import keras

    losses = keras.ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    return keras.ops.mean(losses, axis=-1)


def likelihood(model: Any, predict: Callable[[Any], Any]) -> Score:
    """The scorer: for each window the geometric mean of the right tokens' probabilities."""

    def scores(tokens: Any, targets: Any) -> np.ndarray:
        pairs = zip(predict(tokens), targets, strict=True)
        return np.exp([-_cross_entropy(np.asarray(logits), right) for logits, right in pairs])

    return scores


def _cross_entropy(logits: np.ndarray, right: np.ndarray) -> float:
    logits = logits - logits.max(-1, keepdims=True)
    said = np.take_along_axis(logits, right[:, None], -1)[:, 0]
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - said, dtype=np.float64))


def _windows(tokens: np.ndarray, length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::stride]
    return windows[:, :-1], windows[:, 1:]


def _parts(path: str, valid: float | str) -> tuple[str, str, str]:
    """The training text, the validation text, and how they were divided."""
    text = _read(path)
    if isinstance(valid, str):
        return text, _read(valid), "file"
    if isinstance(valid, bool) or not 0 < valid < 1:
        raise ValueError(f"valid={valid!r}; expected a share between 0 and 1, or a file")
    cut = int(len(text) * (1 - valid))
    return text[:cut], text[cut:], str(valid)


def _read(path: str) -> str:
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"text: no file {file}")
    size = file.stat().st_size
    if size > LARGEST_MB * 2**20:
        raise ValueError(f"text: {file} has {size >> 20} MB; expected at most {LARGEST_MB}")
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {file} is not UTF-8 text: {error}") from error
    if "\0" in text:
        raise ValueError(f"text: {file} is not text: a zero byte at {content.index(0)}")
    if not text.strip():
        raise ValueError(f"text: {file} is empty")
    return text


def _tokenizer(name: str | int, train: str, held: str) -> tuple[Tokenizer, str]:
    """The tokenizer that an option names, and what of it the numbers depend on."""
    if name == "characters":  # also those that only the validation part has
        return Characters(train + held), "characters"
    learned = re.fullmatch(r"bpe:(\d{1,9})", str(name))
    if learned:
        return sentence_piece.train(train, int(learned[1])), str(name)
    if not pathlib.Path(str(name)).expanduser().is_file():
        raise ValueError(f"tokenizer={name!r}; expected characters, bpe:N, or a file")
    found = tokenizer_files.read(str(name))
    if isinstance(found, sentence_piece.SentencePiece):
        found = found.without_start()
    return found, fingerprint(np.frombuffer(found.to_bytes(), np.uint8))

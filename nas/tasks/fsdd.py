"""Spoken digits: 3,000 clips of six speakers at 8 kHz; alone, or several in a row.

Jackson et al., Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset).
Takes 0-4 of every speaker and digit, the usual test split, validate; the others train.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nas.files.hand_over.use import BLANK
from nas.tasks.inputs.preprocessing import Preprocessing
from nas.tasks.task import Score, Task, fingerprint, whole_number

RATE, HOP_MS, WINDOW_MS = 8000, 10, 25
VALID_TAKES = 5
SILENT = 16  # frames of silence with every clip: a network that only looks back needs them to end
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNITS = {"digits": "0123456789", "letters": "efghinorstuvwxz"}  # label i + 1 is character i
OBJECTIVES = ("transducer", "ctc")
TRAINING = {
    "epochs": 24,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "optimizer": "adamw",
    "weight_decay": 1e-3,
    "clip": 5.0,
}


def load(
    objective: str = "transducer",
    units: str = "digits",
    strings: int = 1,
    frames: int | None = None,
    mels: int = 40,
    fastemit: float = 0.005,
    augmented: bool = True,
    path: str | None = None,
    seed: int = 0,
) -> Task:
    """Log-mel features (count, frames, mels) and what is said, as digits or as letters.

    Inputs: `features`, of 25 ms every 10 ms, normalized by `feature_mean` and `feature_deviation`
    of `fields`; `frames`, how many are real; for a transducer the `labels`. Targets: `labels`, 0
    after their end, `label_lengths`, `frames`. `strings`: up to that many digits of one speaker in
    a row (1, 2, ... in turns). Clips longer than 0.96 s are cut there: what follows is silence.
    `fastemit` is the transducer loss's. `augmented`: training features are moved in time,
    stretched, made louder or noisier, and masked.

    The score is the share of strings that are right as a whole; of several digits, 1 - edit
    distance / digits. The data comes from `path`, else from NAS_DATA (speech/fsdd.npz): raises
    `ValueError` where there is none.

    >>> load("ctc", units="letters").fields["vocabulary"]  # doctest: +SKIP
    16
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r}; expected one of {', '.join(OBJECTIVES)}")
    if units not in UNITS:
        raise ValueError(f"units={units!r}; expected one of {', '.join(UNITS)}")
    whole_number("strings", strings, 1)
    whole_number("mels", mels, 4)
    frames = 96 * strings + SILENT if frames is None else whole_number("frames", frames, 2 * SILENT)
    clips = _read(path)
    held = clips["take"] < VALID_TAKES
    parts, longest = {}, 0
    for name, chosen in (("train", ~held), ("valid", held)):
        groups = _groups(clips["speaker"], np.flatnonzero(chosen), strings, seed)
        audio, counts = _joined(clips["audio"], groups, frames)
        labels = [_labels([clips["digit"][clip] for clip in group], units) for group in groups]
        longest = max(longest, *map(len, labels))
        parts[name] = (audio, counts, labels)
    mels_of = {name: log_mels(audio, mels) for name, (audio, *_) in parts.items()}
    real = np.arange(frames) < parts["train"][1][:, None] - SILENT
    mean, deviation = (float(f(mels_of["train"][real])) for f in (np.mean, np.std))
    made = {}
    for name, (_, counts, labels) in parts.items():
        padded = np.zeros((len(labels), longest), np.int32)
        for row, found in zip(padded, labels, strict=True):
            row[: len(found)] = found
        features = ((mels_of[name] - mean) / deviation).astype(np.float32)
        inputs = {"features": features, "frames": counts}
        if objective == "transducer":
            inputs["labels"] = padded
        lengths = np.array([len(row) for row in labels], np.int32)
        made[name] = (inputs, {"labels": padded, "label_lengths": lengths, "frames": counts})
    silence = float((np.log(_floor()) - mean) / deviation)
    loss = (
        functools.partial(_ctc, frames)
        if objective == "ctc"
        else functools.partial(_transducer, frames, fastemit)
    )
    score = functools.partial(_scorer, objective, units, frames, strings)
    return Task(
        name="fsdd",
        train=made["train"],
        valid=made["valid"],
        fields={
            "frames": frames,
            "mels": mels,
            "labels": longest,
            "vocabulary": 1 + len(UNITS[units]),
            "objective": objective,
            "feature_mean": round(mean, 6),
            "feature_deviation": round(deviation, 6),
        },
        recipe=f"fsdd data={fingerprint(clips['audio_all'])} {objective} {units} strings={strings} "
        f"frames={frames} mels={mels} fastemit={fastemit} augmented={augmented} seed={seed}",
        loss=loss,
        scorer=score,
        metric="digits right",
        training=TRAINING,
        labels=(BLANK, *UNITS[units]),
        preprocessing=Preprocessing("audio", sample_rate=RATE),
        augment=functools.partial(augment, silence=silence) if augmented else None,
    )


def text(labels: Sequence[int] | np.ndarray, units: str = "digits") -> str:
    """Labels as text; padding and blanks, 0, are left out.

    >>> text([8, 2, 0]), text([9, 1, 12, 1, 6, 0], "letters")
    ('71', 'seven')
    """
    return "".join(UNITS[units][label - 1] for label in labels if label)


def log_mels(audio: np.ndarray, mels: int) -> np.ndarray:
    """(count, frames, mels) of audio -1..1 (count, frames * 80): not yet normalized.

    A window ends with its frame, as in the streaming front end of families.conformer.
    """
    from families.layers.log_mel import LogMel

    layer = LogMel(RATE, mels, window_ms=WINDOW_MS, hop_ms=HOP_MS)
    before = np.zeros((1, (WINDOW_MS - HOP_MS) * RATE // 1000), np.float32)
    parts = []
    for start in range(0, len(audio), 256):  # bounds the spectra in memory
        part = audio[start : start + 256]
        part = np.concatenate([np.repeat(before, len(part), 0), part], axis=1)
        parts.append(np.asarray(layer(part)))
    return np.concatenate(parts)


def augment(
    inputs: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
    generator: np.random.Generator,
    *,
    silence: float,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training features as they might have been; all else stays.

    Stretched by up to 15 %, begun up to SILENT frames later, shifted by up to one mel, louder or
    softer, with noise; then two masks over mels and one over frames (SpecAugment, arXiv 1904.08779,
    sizes for clips of half a second). `silence` is the normalized value of digital silence.
    """
    features, counts = inputs["features"], inputs["frames"]
    batch, frames, mels = features.shape
    rows = np.arange(batch)[:, None]
    speech = counts - SILENT
    rate = generator.uniform(0.87, 1.15, batch)
    length = np.minimum(np.rint(speech * rate), counts).astype(int)
    start = generator.integers(0, counts - length + 1)
    time = (np.arange(frames)[None] - start[:, None]) * (speech / length)[:, None]
    inside = (time >= 0) & (time <= speech[:, None] - 1)
    time = np.clip(time, 0, speech[:, None] - 1)
    first = np.minimum(time.astype(int), frames - 2)
    share = (time - first)[..., None].astype(np.float32)
    x = features[rows, first] * (1 - share) + features[rows, first + 1] * share
    x = np.where(inside[..., None], x, np.float32(silence))
    mel = np.clip(np.arange(mels)[None] + generator.uniform(-1, 1, (batch, 1)), 0, mels - 1)
    first = np.minimum(mel.astype(int), mels - 2)
    share = (mel - first)[:, None].astype(np.float32)
    x = (
        np.take_along_axis(x, first[:, None], 2) * (1 - share)
        + np.take_along_axis(x, first[:, None] + 1, 2) * share
    )
    x = x + generator.uniform(-0.3, 0.3, (batch, 1, 1)).astype(np.float32)
    noise = generator.uniform(silence - 0.5, silence + 1.2, (batch, 1, 1))
    noise = noise + 0.2 * generator.standard_normal((batch, 1, mels)).cumsum(-1) / mels**0.5
    noise = noise + 0.25 * generator.standard_normal(x.shape, np.float32)
    x = np.maximum(x, noise.astype(np.float32))
    for _ in range(2):
        width = generator.integers(0, mels // 8 + 1, (batch, 1))
        low = generator.integers(0, mels - width + 1)
        masked = (np.arange(mels) >= low) & (np.arange(mels) < low + width)
        x = np.where(masked[:, None], np.float32(0), x)
    width = generator.integers(0, 6, (batch, 1))
    low = start[:, None] + generator.integers(0, np.maximum(length[:, None] - width, 1))
    masked = (np.arange(frames) >= low) & (np.arange(frames) < low + width)
    x = np.where(masked[..., None], np.float32(0), x)
    return inputs | {"features": x.astype(np.float32)}, targets


def _transducer(frames: int, fastemit: float, logits: Any, targets: Any) -> Any:
    """Losses (batch,) of logits (batch, T, U + 1, V), whose T frames were made of `frames`."""
    import keras

    from families.objectives.transducer import transducer_loss

    lengths = -(-keras.ops.cast(targets["frames"], "int32") // _ratio(frames, logits.shape[1]))
    return transducer_loss(logits, targets["labels"], lengths, targets["label_lengths"], fastemit)


def _ctc(frames: int, logits: Any, targets: Any) -> Any:
    """Losses (batch,) of logits (batch, T, V), whose T frames were made of `frames`."""
    import keras

    lengths = -(-keras.ops.cast(targets["frames"], "int32") // _ratio(frames, logits.shape[1]))
    return keras.ops.ctc_loss(
        targets["labels"], logits, targets["label_lengths"], lengths, mask_index=0
    )


def _ratio(frames: int, encoded: int) -> int:
    """How many features an encoder made one frame of."""
    return round(frames / encoded)


def _scorer(
    objective: str,
    units: str,
    frames: int,
    strings: int,
    model: Any,
    predict: Callable[[Any], Any],
) -> Score:
    """A function (inputs, targets) -> scores (batch,) of what greedy search finds."""
    from families.objectives import decoding

    def scores(inputs: Any, targets: Any) -> np.ndarray:
        if objective == "ctc":
            logits = predict(inputs)
            lengths = -(-targets["frames"] // _ratio(frames, logits.shape[1]))
            found = decoding.ctc_greedy(logits, lengths)
        else:
            found = decoding.greedy_lattice(
                lambda labels: predict(inputs | {"labels": labels}),
                lambda encoded: -(-targets["frames"] // _ratio(frames, encoded)),
                inputs["labels"].shape,
            )
        pairs = zip(found, targets["labels"], strict=True)
        return np.array([score(text(a, units), text(b, units), strings) for a, b in pairs])

    return scores


def score(found: str, expected: str, strings: int = 1) -> float:
    """1 for the same text; of several digits what is right of them, letters being whole words.

    >>> score("71", "71"), score("71", "72", strings=2)
    (1.0, 0.5)
    """
    if strings == 1:
        return float(found == expected)
    from families.objectives import decoding

    errors = decoding.edit_distance(_words(found), _words(expected))
    return max(0.0, 1 - errors / len(_words(expected)))


def _words(said: str) -> list[str]:
    """The digits of a text; what is no digit is a word of one letter."""
    words = []
    while said:
        word = next((word for word in WORDS if said.startswith(word)), said[0])
        words.append(word)
        said = said[len(word) :]
    return words


def _labels(digits: Sequence[int], units: str) -> list[int]:
    said = [str(d) if units == "digits" else WORDS[d] for d in digits]
    return [UNITS[units].index(character) + 1 for character in "".join(said)]


def _groups(speakers: np.ndarray, clips: np.ndarray, strings: int, seed: int) -> list[np.ndarray]:
    """Every clip once, with others of its speaker: 1 to `strings` in a group."""
    if strings == 1:
        return [np.array([clip]) for clip in clips]
    generator = np.random.default_rng(seed)
    groups: list[np.ndarray] = []
    for speaker in np.unique(speakers):
        left = generator.permutation(clips[speakers[clips] == speaker])
        while len(left):
            size = 1 + len(groups) % strings
            groups.append(left[:size])
            left = left[size:]
    return groups


def _joined(
    audio: list[np.ndarray], groups: list[np.ndarray], frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Audio (count, frames * hop) in -1..1, and the number of frames with sound and silence."""
    hop = HOP_MS * RATE // 1000
    joined = np.zeros((len(groups), frames * hop), np.float32)
    counts = np.empty(len(groups), np.int32)
    for row, group in enumerate(groups):
        sound = np.concatenate([audio[clip] for clip in group])[: (frames - SILENT) * hop]
        joined[row, : len(sound)] = sound / np.float32(32768)
        counts[row] = -(-len(sound) // hop) + SILENT
    return joined, counts


def _read(path: str | None) -> dict[str, Any]:
    shared = os.environ.get("NAS_DATA")
    if path is None and shared is None:
        raise ValueError(
            "fsdd: no data: set NAS_DATA to a folder with speech/fsdd.npz, or give path=FILE.npz "
            "with audio (int16, one clip after the other), end, digit, speaker, take, rate; the "
            "clips are at github.com/Jakobovski/free-spoken-digit-dataset"
        )
    file = pathlib.Path(path or f"{shared}/speech/fsdd.npz").expanduser()
    if not file.is_file():
        raise ValueError(
            f"fsdd: no file {file}; expected an .npz made of the clips of "
            "github.com/Jakobovski/free-spoken-digit-dataset"
        )
    try:
        with np.load(file) as data:
            audio, end = data["audio"], data["end"]
            found = {name: data[name] for name in ("digit", "speaker", "take")}
            rate = int(data["rate"])
    except Exception as error:  # a damaged archive raises whatever zip, zlib or numpy meet first
        raise ValueError(f"fsdd: cannot read {file}: {error}") from error
    if audio.dtype != np.int16 or rate != RATE or any(len(x) != len(end) for x in found.values()):
        raise ValueError(
            f"fsdd: {file} holds audio {audio.dtype} at {rate} Hz and {len(end)} clips; expected "
            f"int16 at {RATE} Hz with a digit, speaker and take of each"
        )
    clips = np.split(audio, end[:-1])
    return found | {"audio": clips, "audio_all": audio}


def _floor() -> float:
    from families.layers.log_mel import FLOOR

    return FLOOR

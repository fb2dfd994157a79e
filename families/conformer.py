"""Conformer: speech recognizers for whole utterances and for streams, as transducers or with CTC.

Gulati et al., "Conformer", arXiv 2005.08100 (S, M, L); Zhang et al., "Pushing the Limits",
arXiv 2010.10504 (XL, XXL) and "BigSSL", arXiv 2109.13226 (G); Li et al., "A Language Agnostic
Multilingual Streaming On-Device ASR System", arXiv 2208.13916 (endpointer, embedding decoder).
"""

import dataclasses
import functools
from typing import Any

import keras

from families.blocks.checks import check, spell
from families.blocks.conformer import EPSILON, encode
from families.blocks.streaming import Stream, with_past
from families.blocks.transducer import join, predict
from families.layers import LogMel
from families.layers.log_mel import samples_of

_check = functools.partial(check, "Conformer")

OBJECTIVES = ("transducer", "ctc", "endpointer")
PARTS = ("whole", "encoder", "prediction", "joint")
WINDOW_MS, HOP_MS = 25, 10


@dataclasses.dataclass(frozen=True)
class Config:
    """A network, and which form of it: forms have equal layer names, `copy_weights` joins them.

    frames, mels, labels, vocabulary: sizes of the arrays; the vocabulary counts the blank, 0.
    audio_rate: samples per second of raw audio, of which log-mel features are taken and normalized
        by feature_mean and feature_deviation; 0: the network is given features, one in 10 ms.
    subsampling: "conv" makes one frame of 4 features, "linear" projects frames as they are.
    depth, width, heads, expand, kernel: blocks, channels, attention heads, FFN factor, taps.
    conv_only: this many of the lowest blocks have no attention.
    relative: relative positions in attention.
    causal: no frame sees later ones; left_context: nor more than this many encoded frames before
        it in each attention, 0 for all.
    objective: "transducer"; "ctc", logits of every frame; "endpointer", normalized logits of every
        frame (speech; initial, intermediate and final silence).
    decoder: "lstm" of decoder_depth layers of `units`, each projected to `projection` if not 0;
        "embedding" of the last `context` labels with decoder_heads, projected to `units`.
    embed, joint: sizes of the label table and of the joint layer.

    Form only: part "whole", or "encoder", "prediction" (one step) or "joint" of a transducer;
    chunk > 0: the encoder takes that many encoded frames at a time and the past as state.
    """

    frames: int = 1000
    mels: int = 80
    labels: int = 48
    vocabulary: int = 1024
    depth: int = 16
    width: int = 144
    heads: int = 4
    kernel: int = 32
    expand: int = 4
    conv_only: int = 0
    relative: bool = True
    causal: bool = False
    left_context: int = 0
    subsampling: str = "conv"
    objective: str = "transducer"
    decoder: str = "lstm"
    embed: int = 128
    units: int = 320
    decoder_depth: int = 1
    projection: int = 0
    decoder_heads: int = 4
    context: int = 2
    joint: int = 640
    dropout: float = 0.1
    norm_momentum: float = 0.99
    audio_rate: int = 0
    feature_mean: float = 0.0
    feature_deviation: float = 1.0
    part: str = "whole"
    chunk: int = 0

    def __post_init__(self):
        fields = dataclasses.fields(self)
        spell(self, {one.name: _canonical(one, getattr(self, one.name)) for one in fields})
        _check_together(self)
        if self.conv_only == self.depth:  # no attention: what describes it describes nothing
            spell(self, {"heads": 1, "relative": False, "left_context": 0})

    @property
    def ratio(self) -> int:
        """Features that become one encoded frame."""
        return 4 if self.subsampling == "conv" else 1

    @property
    def encoded_frames(self) -> int:
        """Frames of the encoder's output."""
        return -(-self.frames // self.ratio)


_ZERO_ALLOWED = {"conv_only", "left_context", "projection", "audio_rate", "chunk"}
_CHOICES = {
    "objective": OBJECTIVES,
    "part": PARTS,
    "decoder": ("lstm", "embedding"),
    "subsampling": ("conv", "linear"),
}


def _canonical(field: dataclasses.Field, value: Any) -> Any:
    """The value in the field's type, or ValueError."""
    name = field.name
    if field.type is int:
        least = 0 if name in _ZERO_ALLOWED else 1
        _check(int(value) == value >= least, name, value, f"a whole number >= {least}")
    elif field.type is str:
        _check(value in _CHOICES[name], name, value, f"one of {_CHOICES[name]}")
    elif name in ("dropout", "norm_momentum"):
        _check(0 <= value < 1, name, value, "0 <= value < 1")
    elif name == "feature_deviation":
        _check(value > 0, name, value, "a positive number")
    kind: Any = field.type
    return kind(value)


def _check_together(config: Config) -> None:
    _check(config.width % config.heads == 0, "width", config.width, f"times heads={config.heads}")
    _check(config.width % 2 == 0, "width", config.width, "an even number (sines and cosines)")
    _check(config.conv_only <= config.depth, "conv_only", config.conv_only, "at most depth")
    if config.subsampling == "conv":
        _check(config.mels % 4 == 0, "mels", config.mels, "a multiple of 4, halved twice")
    if not config.causal:
        _check(not config.left_context, "left_context", config.left_context, "0 without causal")
    if config.objective != "transducer":
        _check(config.part == "whole", "part", config.part, f"'whole' for {config.objective}")
    if config.chunk:
        streams = "encoder" if config.objective == "transducer" else "whole"
        _check(config.part == streams, "part", config.part, f"{streams!r} with chunk > 0")
        _check(config.causal, "causal", config.causal, "True with chunk > 0")
        if config.conv_only < config.depth:
            _check(config.left_context > 0, "left_context", 0, "a limit with chunk > 0")


_S = Config()
_M = dataclasses.replace(_S, width=256, units=640)
_L = dataclasses.replace(_M, depth=17, width=512, heads=8)
# Embedding 640: what reproduces the decoders of models.md, section 3.3; the papers do not say.
_XL = Config(
    depth=24,
    width=1024,
    heads=8,
    kernel=5,
    relative=False,
    embed=640,
    units=640,
    decoder_depth=2,
)

VARIANTS: dict[str, Config] = {
    "s": _S,
    "m": _M,
    "l": _L,
    "xl": _XL,
    "xxl": dataclasses.replace(_XL, depth=42),
    "g": dataclasses.replace(_XL, depth=36, width=3072, heads=16),
    # Encoder Endpointer EP3: reads what the 512 wide first block of the recognizer encodes.
    "endpointer": Config(
        mels=512,
        subsampling="linear",
        depth=1,
        width=128,
        heads=8,
        kernel=15,
        relative=False,
        causal=True,
        left_context=64,
        objective="endpointer",
        vocabulary=4,
    ),
    # Streams spoken digits of 8 kHz; trains on a CPU in minutes.
    "tiny": Config(
        frames=100,
        mels=40,
        labels=4,
        vocabulary=11,
        depth=4,
        width=48,
        kernel=7,
        expand=2,
        causal=True,
        left_context=16,
        embed=16,
        units=64,
        joint=64,
        norm_momentum=0.9,
    ),
}


def build(config: Config) -> keras.Model:
    """The network in the form that `config` says; flat, Functional, with named inputs.

    whole, transducer: features (frames, mels), frames (), labels (labels,) -> logits
        (encoded frames, labels + 1, vocabulary); `frames` counts the real features.
    whole, ctc and endpointer: features, frames -> logits (encoded frames, vocabulary).
    encoder: features, frames -> {encoded (encoded frames, width)}.
    with chunk: features (chunk * ratio, mels) and state -> {encoded or logits, state}. Outputs
        named as inputs are the state for the next chunk, which starts as zeros.
    prediction: label (1,) and state -> {predicted (units,), state}; first the label is 0.
    joint: encoded (width,), predicted (units,) -> {logits (vocabulary,)}.
    With audio_rate, audio (samples,) in -1..1, 10 ms for each frame, takes the place of features.

    >>> build(VARIANTS["tiny"]).output_shape
    (None, 25, 5, 11)
    """
    if config.part == "prediction":
        return _prediction(config)
    if config.part == "joint":
        return _joint(config)
    stream = Stream(config.chunk) if config.chunk else None
    inputs, features = _features(config, stream)
    frames = None
    if stream is None:
        frames = inputs["frames"] = keras.Input((), name="frames", dtype="int32")
    x = encode(features, frames, config, stream)
    if config.part == "encoder":
        x = {"encoded": x}
    elif config.objective == "transducer":
        inputs["labels"] = keras.Input((config.labels,), name="labels", dtype="int32")
        predicted = predict(inputs["labels"], config)
        x = keras.layers.Reshape((x.shape[1], 1, x.shape[2]), name="lattice_encoded")(x)
        predicted = keras.layers.Reshape((1, *predicted.shape[1:]), name="lattice_predicted")(
            predicted
        )
        x = join(x, predicted, config)
    else:
        x = _frame_logits(x, config)
    if stream is not None:
        inputs |= stream.inputs
        x = (x if isinstance(x, dict) else {"logits": x}) | stream.outputs
    return keras.Model(inputs, x, name="conformer")


def deploy(config: Config) -> Config:
    """What runs on a device: the streaming encoder of a causal network, 4 encoded frames a chunk.

    The encoder of whole utterances where the network cannot stream.
    """
    part = "encoder" if config.objective == "transducer" else "whole"
    streams = config.causal and (config.left_context or config.conv_only == config.depth)
    chunk = config.chunk or 4 if streams else 0
    return dataclasses.replace(config, part=part, chunk=chunk)


def _features(config: Config, stream: Stream | None) -> Any:
    """Inputs, and the features made of them."""
    frames = config.chunk * config.ratio if stream else config.frames
    if not config.audio_rate:
        features = keras.Input((frames, config.mels), name="features")
        return {"features": features}, features
    hop = samples_of(HOP_MS, config.audio_rate)
    past = samples_of(WINDOW_MS, config.audio_rate) - hop  # a window ends with its 10 ms
    audio = keras.Input((frames * hop,), name="audio")
    if stream is None:
        x = keras.layers.Reshape((frames * hop, 1), name="audio_samples")(audio)
        x = keras.layers.ZeroPadding1D((past, 0), name="audio_pad")(x)
        x = keras.layers.Reshape((frames * hop + past,), name="audio_padded")(x)
    else:
        x = with_past(audio, past, stream, path="audio_past")
    features = LogMel(
        config.audio_rate,
        config.mels,
        window_ms=WINDOW_MS,
        hop_ms=HOP_MS,
        mean=config.feature_mean,
        deviation=config.feature_deviation,
        name="audio_mels",
    )(x)
    return {"audio": audio}, features


def _frame_logits(x: Any, config: Config) -> Any:
    x = keras.layers.Dense(config.vocabulary, name="head_logits")(x)
    if config.objective == "endpointer":
        x = keras.layers.LayerNormalization(epsilon=EPSILON, name="head_norm")(x)
    return x


def _prediction(config: Config) -> keras.Model:
    stream = Stream(1)
    label = keras.Input((1,), name="label", dtype="int32")
    x = predict(label, config, stream)
    x = keras.layers.Reshape((x.shape[-1],), name="prediction_output")(x)
    return keras.Model(
        {"label": label} | stream.inputs, {"predicted": x} | stream.outputs, name="conformer"
    )


def _joint(config: Config) -> keras.Model:
    units = config.units
    if config.decoder == "lstm" and config.projection:
        units = config.projection
    inputs = {
        "encoded": keras.Input((config.width,), name="encoded"),
        "predicted": keras.Input((units,), name="predicted"),
    }
    logits = join(inputs["encoded"], inputs["predicted"], config)
    return keras.Model(inputs, {"logits": logits}, name="conformer")

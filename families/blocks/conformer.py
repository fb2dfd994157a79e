"""The Conformer encoder: subsampling, and blocks of attention and convolution between half FFNs.

Gulati et al., arXiv 2005.08100; causal convolutions, limited left context and blocks of convolution
only: Botros et al., "Practical Conformer", arXiv 2304.00171. With a `Stream` the same layers see
their past as state instead of padding.
"""

from typing import Any

import keras

from families.blocks.streaming import Stream, with_past
from families.layers import FrameAttention, RelativeAttention, ValidContext, ValidFrames

EPSILON = 1e-5  # of all normalizations


def encode(features: Any, frames: Any, config: Any, stream: Stream | None = None) -> Any:
    """Features (batch, frames, mels) -> (batch, encoded frames, width), each `config.ratio` frames.

    `frames` (batch,) counts the real features of every utterance, None in a stream. The padding
    after them changes no encoded frame: it is zero at the entrance, unseen by attention and by
    convolutions, left out of the statistics of batch normalization, and zero in the end.
    """
    if stream is None:
        features = _masked(features, frames, 1, "features")
    x = _subsample(features, config, stream)
    if config.dropout and stream is None:
        x = keras.layers.Dropout(config.dropout, name="subsample_dropout")(x)
    valid, attended = None, None
    if stream is None:
        valid = ValidFrames(x.shape[1], config.ratio, name="valid")(frames)
        attended = None if config.causal else valid  # the past of a real frame is real
    elif config.conv_only < config.depth:
        count = stream.take("context", (), "int32")
        attended, count = ValidContext(config.left_context, stream.chunk, name="valid")(count)
        stream.keep("context", count)
    for number in range(1, config.depth + 1):
        path = f"block{number}"
        x = _feed_forward(x, config, stream, f"{path}_feed_1")
        if number > config.conv_only:
            x = _attend(x, attended, config, stream, f"{path}_attention")
        x = _convolve(x, valid, config, stream, f"{path}_conv")
        x = _feed_forward(x, config, stream, f"{path}_feed_2")
        x = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{path}_norm")(x)
    return x if stream else _masked(x, frames, config.ratio, "encoded")


def _subsample(x: Any, config: Any, stream: Stream | None) -> Any:
    """Two convolutions of stride 2 and a projection; or, of stacked features, a projection alone.

    An output frame sees its own 4 features and 3 before them, in full context too, so that its
    inputs do not depend on the length of the utterance.
    """
    if config.subsampling == "conv":
        x = keras.layers.Reshape((*x.shape[1:], 1), name="subsample_image")(x)
        for number in (1, 2):
            path = f"subsample_{number}"
            end = -x.shape[1] % config.ratio if number == 1 else 0
            if stream is None:
                x = keras.layers.ZeroPadding2D(((1, end), (0, 1)), name=f"{path}_pad")(x)
            else:
                x = with_past(x, 1, stream, path=path)
                x = keras.layers.ZeroPadding2D(((0, 0), (0, 1)), name=f"{path}_pad")(x)
            x = keras.layers.Conv2D(
                config.width, 3, strides=2, activation="relu", name=f"{path}_conv"
            )(x)
        x = keras.layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]), name="subsample_flat")(x)
    return keras.layers.Dense(config.width, name="subsample_project")(x)


def _feed_forward(inputs: Any, config: Any, stream: Stream | None, path: str) -> Any:
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{path}_norm")(inputs)
    x = keras.layers.Dense(config.expand * config.width, "silu", name=f"{path}_expand")(x)
    x = _dropped(x, config, stream, f"{path}_expand")
    x = keras.layers.Dense(config.width, name=f"{path}_project")(x)
    x = _dropped(x, config, stream, path)
    x = keras.layers.Rescaling(0.5, name=f"{path}_half")(x)
    return keras.layers.Add(name=f"{path}_add")([inputs, x])


def _attend(inputs: Any, valid: Any, config: Any, stream: Stream | None, path: str) -> Any:
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{path}_norm")(inputs)
    query, key, value = (
        keras.layers.Dense(config.width, name=f"{path}_{name}")(x)
        for name in ("query", "key", "value")
    )
    if stream is not None:
        key = with_past(key, config.left_context, stream, path=f"{path}_keys")
        value = with_past(value, config.left_context, stream, path=f"{path}_values")
    attention = RelativeAttention if config.relative else FrameAttention
    x = attention(
        config.heads,
        causal=config.causal,
        left=config.left_context or None,
        name=f"{path}_frames",
    )(query, key, value, valid)
    x = keras.layers.Dense(config.width, name=f"{path}_project")(x)
    x = _dropped(x, config, stream, path)
    return keras.layers.Add(name=f"{path}_add")([inputs, x])


def _convolve(inputs: Any, valid: Any, config: Any, stream: Stream | None, path: str) -> Any:
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{path}_norm")(inputs)
    linear = keras.layers.Dense(config.width, name=f"{path}_linear")(x)
    gate = keras.layers.Dense(config.width, "sigmoid", name=f"{path}_gate")(x)
    x = keras.layers.Multiply(name=f"{path}_glu")([linear, gate])
    past = config.kernel - 1
    if stream is not None:
        x = with_past(x, past, stream, path=f"{path}_past")
    elif config.causal:
        x = keras.layers.ZeroPadding1D((past, 0), name=f"{path}_pad")(x)
    else:
        mask = keras.layers.Reshape((valid.shape[1], 1), name=f"{path}_valid")(valid)
        x = keras.layers.Multiply(name=f"{path}_mask")([x, mask])
        x = keras.layers.ZeroPadding1D((past // 2, past - past // 2), name=f"{path}_pad")(x)
    x = keras.layers.DepthwiseConv1D(config.kernel, use_bias=False, name=f"{path}_depthwise")(x)
    x = keras.layers.BatchNormalization(
        momentum=config.norm_momentum, epsilon=EPSILON, name=f"{path}_depthwise_norm"
    )(x, mask=valid)
    x = keras.layers.Activation("silu", name=f"{path}_swish")(x)
    x = keras.layers.Dense(config.width, name=f"{path}_project")(x)
    x = _dropped(x, config, stream, path)
    return keras.layers.Add(name=f"{path}_add")([inputs, x])


def _masked(x: Any, frames: Any, ratio: int, path: str) -> Any:
    """Zeros after the real frames."""
    mask = ValidFrames(x.shape[1], ratio, name=f"{path}_valid")(frames)
    mask = keras.layers.Reshape((x.shape[1], 1), name=f"{path}_mask")(mask)
    return keras.layers.Multiply(name=f"{path}_real")([x, mask])


def _dropped(x: Any, config: Any, stream: Stream | None, path: str) -> Any:
    if not config.dropout or stream is not None:
        return x
    return keras.layers.Dropout(config.dropout, name=f"{path}_dropout")(x)

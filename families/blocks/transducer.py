"""What turns an encoder into a transducer: a prediction network over labels, and the joint.

Graves, arXiv 1211.3711; joint: Graves et al., arXiv 1303.5778. The label 0 is the blank, and, for
the prediction network, the start of the text.
"""

from typing import Any

import keras

from families.blocks.streaming import Stream, with_past
from families.layers import LSTM, LabelContext


def predict(labels: Any, config: Any, stream: Stream | None = None) -> Any:
    """Labels (batch, U) -> (batch, U + 1, units): what is known before each label, and after all.

    With a `Stream`: the label just emitted (batch, 1) -> (batch, 1, units), 0 at the start.
    """
    past = config.context if config.decoder == "embedding" else 1
    if stream is None:
        x = keras.layers.Reshape((labels.shape[1], 1), name="prediction_labels")(labels)
        x = keras.layers.ZeroPadding1D((past, 0), name="prediction_start")(x)
        x = keras.layers.Reshape((x.shape[1],), name="prediction_started")(x)
    else:
        x = with_past(labels, past - 1, stream, path="prediction_labels")
    x = keras.layers.Embedding(
        config.vocabulary,
        config.embed,
        # Keras's uniform 0.05, squared by the embedding decoder, would leave it nothing to see.
        embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
        name="prediction_embedding",
    )(x)
    if config.decoder == "embedding":
        x = LabelContext(config.decoder_heads, config.context, name="prediction_context")(x)
        x = keras.layers.Dense(config.units, "silu", name="prediction_project")(x)
        return keras.layers.LayerNormalization(epsilon=1e-5, name="prediction_norm")(x)
    for number in range(1, config.decoder_depth + 1):
        path = f"prediction_lstm_{number}"
        state: tuple[Any, ...] = ()
        if stream is not None:
            state = (
                stream.take(f"{path}_output", (config.projection or config.units,)),
                stream.take(f"{path}_cell", (config.units,)),
            )
        x, output, cell = LSTM(config.units, config.projection, name=path)(x, *state)
        if stream is not None:
            stream.keep(f"{path}_output", output)
            stream.keep(f"{path}_cell", cell)
    return x


def join(encoded: Any, predicted: Any, config: Any) -> Any:
    """(batch, T, 1, width) and (batch, 1, U + 1, units) -> logits (batch, T, U + 1, vocabulary)."""
    encoded = keras.layers.Dense(config.joint, name="joint_encoded")(encoded)
    predicted = keras.layers.Dense(config.joint, use_bias=False, name="joint_predicted")(predicted)
    x = keras.layers.Add(name="joint_add")([encoded, predicted])
    x = keras.layers.Activation("tanh", name="joint_tanh")(x)
    return keras.layers.Dense(config.vocabulary, name="joint_logits")(x)

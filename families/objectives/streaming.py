"""A transducer on a stream: chunks go in, labels come out, everything between them is state.

What a network keeps from one call to the next it takes and gives by equal names, zeros at first.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from families.objectives.decoding import SYMBOLS_PER_FRAME, Greedy, Parts, greedy

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of named arrays, wherever it runs.

    run: arrays (batch, ...) by name -> outputs by name.
    inputs: name -> (shape without the batch, dtype).
    outputs: the names of the outputs.
    """

    run: Callable[[Arrays], Arrays]
    inputs: dict[str, tuple[tuple[int, ...], str]]
    outputs: frozenset[str]

    @property
    def state(self) -> list[str]:
        """The names of what it is given back in the next call."""
        return sorted(self.outputs & set(self.inputs))

    @property
    def source(self) -> str:
        """The name of its one input that is no state."""
        names = sorted(set(self.inputs) - self.outputs)
        if len(names) != 1:
            raise ValueError(f"a network with inputs {names} beside its state; expected one")
        return names[0]

    def start(self, batch: int) -> Arrays:
        """The state before the first call."""
        return {
            name: np.zeros((batch, *shape), dtype)
            for name, (shape, dtype) in self.inputs.items()
            if name in self.outputs
        }


def of_keras(model: Any, compiled: Callable = lambda run: run) -> Network:
    """The network of a Keras model that takes and gives dicts; `compiled`: such as tf.function."""
    import keras

    call = compiled(lambda inputs: model(inputs, training=False))

    def run(inputs: Arrays) -> Arrays:
        tensors = {name: keras.ops.convert_to_tensor(array) for name, array in inputs.items()}
        return {name: np.asarray(output) for name, output in call(tensors).items()}

    inputs = {
        name: (tuple(tensor.shape[1:]), keras.backend.standardize_dtype(tensor.dtype))
        for name, tensor in model.input.items()
    }
    return Network(run, inputs, frozenset(model.output))


def parts_of(prediction: Network, joint: Network) -> Parts:
    """What `decoding` searches with, of the parts "prediction" and "joint" of a transducer."""
    source, names = prediction.source, prediction.state
    (predicted,) = prediction.outputs - set(names)
    (logits,) = joint.outputs
    (encoded,) = set(joint.inputs) - {predicted}

    def predict(labels, state):
        outputs = prediction.run({source: np.asarray(labels, np.int32)[:, None]} | state)
        return outputs[predicted], {name: outputs[name] for name in names}

    def join(frame, prediction):
        return joint.run({encoded: frame, predicted: prediction})[logits]

    return Parts(predict, join, prediction.start)


def stream(
    encoder: Network,
    parts: Parts,
    signal: np.ndarray,
    lengths: np.ndarray,
    *,
    limit: int = SYMBOLS_PER_FRAME,
) -> Iterator[Greedy]:
    """Greedy search after every chunk that `encoder` takes of streams (batch, length, ...).

    Of stream i the first lengths[i] features, or samples, are real. What was found after the last
    chunk is what the whole gives at once.
    """
    source, names, lengths = encoder.source, encoder.state, np.asarray(lengths)
    (encoded,) = encoder.outputs - set(names)
    size = encoder.inputs[source][0][0]
    state, memory = encoder.start(len(signal)), None
    for start in range(0, int(lengths.max()), size):
        chunk = np.zeros((len(signal), size, *signal.shape[2:]), signal.dtype)
        piece = signal[:, start : start + size]
        real = start + np.arange(piece.shape[1]) < lengths[:, None]
        chunk[:, : piece.shape[1]] = np.where(
            real.reshape(*real.shape, *[1] * (piece.ndim - 2)), piece, 0
        )
        outputs = encoder.run({source: chunk} | state)
        state = {name: outputs[name] for name in names}
        frames = outputs[encoded]
        ratio = size // frames.shape[1]
        real = np.clip(-(-(lengths - start) // ratio), 0, frames.shape[1])
        memory = greedy(frames, real, parts, limit=limit, memory=memory)
        yield memory

"""Blocks that look back: over zeros in a network for whole utterances, over state in a stream."""

from typing import Any

import keras

from families.layers import LastFrames


class Stream:
    """The state of a streaming network: what it is given with a chunk and gives for the next.

    An output and the input of the same name are one state; all states start as zeros.
    """

    def __init__(self, chunk: int):
        self.chunk = chunk
        self.inputs: dict[str, keras.KerasTensor] = {}
        self.outputs: dict[str, keras.KerasTensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """A state from the chunk before: an input of this name."""
        self.inputs[name] = keras.Input(shape, name=name, dtype=dtype)
        return self.inputs[name]

    def keep(self, name: str, state: Any) -> None:
        """What becomes of it: the output of this name."""
        self.outputs[name] = state


def with_past(inputs: Any, count: int, stream: Stream, *, path: str) -> Any:
    """`inputs` (batch, frames, ...) after the `count` frames before them, the state `path`."""
    if not count:
        return inputs
    past = stream.take(path, (count, *inputs.shape[2:]), inputs.dtype)
    joined = keras.layers.Concatenate(axis=1, name=f"{path}_join")([past, inputs])
    stream.keep(path, LastFrames(count, name=f"{path}_keep")(joined))
    return joined

"""What stateful recurrent layers carry from call to call."""

import contextlib
from collections.abc import Iterator
from typing import Any


def stateful_layer(model: Any) -> Any | None:
    """The first layer that carries state from batch to batch, if any."""
    return next((one for one in model._flatten_layers() if getattr(one, "stateful", False)), None)


@contextlib.contextmanager
def from_rest(model: Any) -> Iterator[None]:
    """While this lasts, stateful layers begin from zeros; afterwards they hold what they did.

    >>> import keras, numpy as np
    >>> inputs = keras.Input(batch_shape=(2, 3, 1))
    >>> model = keras.Model(inputs, keras.layers.GRU(1, stateful=True)(inputs))
    >>> first = model(np.ones((2, 3, 1)))
    >>> with from_rest(model):
    ...     again = model(np.ones((2, 3, 1)))
    >>> bool(np.all(first == again)), bool(np.all(model(np.ones((2, 3, 1))) == first))
    (True, False)
    """
    layers = [one for one in model._flatten_layers() if getattr(one, "stateful", False)]
    held = [[(state, state.numpy()) for state in _states(layer)] for layer in layers]
    try:
        for layer in layers:
            layer.reset_state()
        yield
    finally:
        for state, value in (pair for pairs in held for pair in pairs):
            state.assign(value)


def _states(layer: Any) -> list[Any]:
    import keras

    return [one for one in keras.tree.flatten(getattr(layer, "states", None)) if one is not None]

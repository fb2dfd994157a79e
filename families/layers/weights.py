"""One set of weights in several networks: by path, as layers of equal names are the same layers."""

from typing import Any


def copy_weights(source: Any, target: Any) -> None:
    """Set every weight of `target` to that of equal path in `source`; both are `keras.Model`s.

    `source` may hold more, as a network to train holds more than its step with a cache. Raises
    `ValueError` naming the first weight that is missing or of another shape.

    >>> import keras
    >>> def network():
    ...     inputs = keras.Input((2,))
    ...     return keras.Model(inputs, keras.layers.Dense(1, name="head")(inputs))
    >>> source, target = network(), network()
    >>> copy_weights(source, target)
    >>> bool((source.get_weights()[0] == target.get_weights()[0]).all())
    True
    """
    found = {weight.path: weight for weight in source.weights}
    for weight in target.weights:
        if weight.path not in found:
            raise ValueError(
                f"{source.name} has no weight {weight.path!r}, which {target.name} has"
            )
        if tuple(found[weight.path].shape) != tuple(weight.shape):
            raise ValueError(
                f"weight {weight.path!r}: {tuple(found[weight.path].shape)} in {source.name}, "
                f"{tuple(weight.shape)} in {target.name}"
            )
        weight.assign(found[weight.path])

"""The Functional model that a Sequential one is: its graph is what files are written of."""

from typing import Any


def functional(model: Any) -> Any:
    """`model`, or the Functional model within a Sequential one; `ValueError` if it is not built.

    >>> import keras
    >>> row = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> [layer.__class__.__name__ for layer in functional(row).layers]
    ['InputLayer', 'Dense']
    """
    import keras  # noqa: PLC0415 (whoever has a model has imported it)

    if not isinstance(model, keras.Sequential):
        return model
    if not model.built or model._functional is None:
        raise ValueError(
            f"{model.name}: a Sequential model without an input shape; begin it with "
            "keras.Input(SHAPE), or call model.build((None, *SHAPE))"
        )
    return model._functional

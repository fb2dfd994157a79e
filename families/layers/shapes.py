"""Networks whose weights hold no memory: what 47 billion parameters cost, on paper."""

import contextlib
from collections.abc import Iterator

import keras
from keras.src.backend.common import global_state

_UNINITIALIZED = "uninitialized_variables"  # Keras's list of what it owes a value


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """A `build` in this context gives a Functional model whose weights have shapes and no values.

    Counting reads shapes only and works on it; what runs, saves or loads it does not. The weights
    stay without values after the context.

    >>> with shapes_only():
    ...     inputs = keras.Input((10**6,))
    ...     model = keras.Model(inputs, keras.layers.Dense(10**6)(inputs))  # 4 TB
    >>> model.count_params()
    1000001000000
    """
    # What Keras already owes a value is still owed it afterwards, and only that: leaving the next
    # StatelessScope, even one of a single layer, initializes all that is in the list.
    owed = list(global_state.get_global_attribute(_UNINITIALIZED) or ())
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(_UNINITIALIZED, owed)

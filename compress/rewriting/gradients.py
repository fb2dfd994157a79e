"""Gradients of a loss by chosen weights, on TensorFlow and on JAX."""

from collections.abc import Callable

import keras
from keras import ops


def gradient(model: keras.Model, loss: Callable, variables: list) -> Callable:
    """A function (inputs, targets) -> gradients of the sum of the losses by `variables`.

    Without noise and dropout; zeros where the loss does not depend on a variable.
    """

    def total(inputs, targets):
        return ops.sum(loss(model(inputs, training=False), targets))

    if keras.config.backend() == "jax":
        import jax

        def stateless(values, inputs, targets):
            mapping = list(zip(variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return total(inputs, targets)

        compiled = jax.jit(jax.grad(stateless))
        return lambda inputs, targets: compiled([v.value for v in variables], inputs, targets)
    if keras.config.backend() != "tensorflow":
        raise ValueError(f"no gradients for KERAS_BACKEND={keras.config.backend()}")
    import tensorflow as tf

    def taped(inputs, targets):
        tensors = keras.tree.map_structure(ops.convert_to_tensor, (inputs, targets))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            watched = [variable.value for variable in variables]
            tape.watch(watched)
            objective = total(*tensors)
        gradients = tape.gradient(objective, watched, unconnected_gradients="zero")
        return [tf.convert_to_tensor(one) for one in gradients]

    return taped

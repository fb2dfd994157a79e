"""Activations that Keras lacks by name."""

from typing import Any

import keras


@keras.saving.register_keras_serializable("nas")
def gelu(inputs: Any) -> Any:
    """x Phi(x) in the tanh form (Hendrycks and Gimpel, arXiv 1606.08415, section 2).

    It is that of the released ViT and V-MoE (flax.linen.gelu), and every exporter has it as one
    operation, while Core ML's converter fails on the error function of the exact form.
    """
    return keras.activations.gelu(inputs, approximate=True)

"""Weighted sums of features: Tan et al., EfficientDet (arXiv 1911.09070), section 3.3."""

from typing import Any

import keras
from keras import ops

METHODS = ("fast", "softmax")
SMALLEST = 1e-4  # keeps the sum of the weights from 0: the paper's epsilon


@keras.saving.register_keras_serializable("nas")
class Fusion(keras.layers.Layer):
    """Tensors of one shape -> their average, by one learned weight each.

    method: "fast" weighs by relu(w) / (sum of relu(w) + 1e-4), "softmax" by softmax(w).

    >>> Fusion()([keras.Input((4, 4, 8)), keras.Input((4, 4, 8))]).shape
    (None, 4, 4, 8)
    """

    def __init__(self, method: str = "fast", **kwargs: Any):
        super().__init__(**kwargs)
        if method not in METHODS:
            raise ValueError(f"Fusion method={method!r}; expected one of {METHODS}")
        self.method = method

    def build(self, shapes: list[tuple[int, ...]]) -> None:
        self.fusion = self.add_weight(shape=(len(shapes),), initializer="ones", name="fusion")

    def call(self, inputs: Any) -> Any:
        if self.method == "fast":
            weights = ops.relu(self.fusion)
            weights = weights / (ops.sum(weights) + SMALLEST)
        else:
            weights = ops.softmax(self.fusion)
        total = inputs[0] * weights[0]
        for index, tensor in enumerate(inputs[1:], 1):
            total = total + tensor * weights[index]
        return total

    def compute_output_shape(self, shapes: list[tuple[int, ...]]) -> tuple[int | None, ...]:
        return shapes[0]

    def macs(self, *_: Any) -> int:
        return 0

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"method": self.method}

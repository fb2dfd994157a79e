"""A compression method of your own: every kernel rounded to multiples of a step, in one class.

$ python own_method.py
$ nas compress small.keras --method ./own_method.py:Steps,0.1 --out smaller.keras
"""

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np

import nas
from compress.rewriting.weights import kernels


@dataclasses.dataclass(frozen=True)
class Steps(nas.Method):
    """Kernels in multiples of `step`."""

    trains: ClassVar[bool] = False  # nothing to be trained with
    step: float = 0.1

    def finalize(self, model: keras.Model, data: Any, record: Any) -> keras.Model:
        small = keras.models.clone_model(model)  # a method changes no model in place
        small.set_weights(model.get_weights())
        paths = {kernel.path for kernel in kernels(model)}
        for weight in small.weights:
            if weight.path in paths:
                weight.assign(np.round(weight.numpy() / self.step) * self.step)
        record.details[repr(self)] = {"rounded": sorted(paths)}
        return small


if __name__ == "__main__":
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(4)])
    small = nas.compress(model, Steps(step=0.05), out="small.keras")
    print(small)
    print(sorted({round(float(value), 2) for value in small.model.weights[0].numpy().flat}))

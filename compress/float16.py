"""Weights in half precision: half the bytes of a file, on nearly the same outputs."""

import dataclasses
from typing import ClassVar

import keras
import numpy as np

from compress.examples.data import Data
from compress.method import Method, NotApplicable
from compress.rewriting import graph
from compress.rewriting.record import Record

_MOST = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class Float16(Method):
    """All weights that are no codes rounded to float16 at the end, as files keep them then.

    Computation stays in float32, but for GPUs and Apple's devices, which take half precision as it
    is. Kernels that another method has put on levels stay as they are.

    >>> from compress.method import compress
    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs))
    >>> done = compress(model, [Float16()])
    >>> kernel = done.model.get_weights()[0]
    >>> bool((kernel == kernel.astype("float16")).all()), done.record.floats
    (True, 16)
    """

    trains: ClassVar[bool] = False

    def prepare(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        if not _floats(model):
            raise NotApplicable(f"{model.name} has no weights in floating point")
        return model

    def finalize(self, model: keras.Model, data: Data | None, record: Record) -> keras.Model:
        model = graph.rewrite(model, lambda _, copy: copy)  # the one before is not ours
        count = 0
        for weight in _floats(model):
            known = record.weights.get(weight.path)
            if known is not None and known.codes is not None:
                continue
            value = keras.ops.convert_to_numpy(weight)
            if np.abs(value).max(initial=0) > _MOST:
                raise NotApplicable(
                    f"{weight.path} reaches {np.abs(value).max():.3g}, and float16 {_MOST:g}"
                )
            weight.assign(value.astype(np.float16).astype(value.dtype))
            count += value.size
        record.details[repr(self)] = {"weights": count}
        record.floats = 16
        return model


def _floats(model: keras.Model) -> list:
    return [one for one in model.weights if "float" in keras.backend.standardize_dtype(one.dtype)]

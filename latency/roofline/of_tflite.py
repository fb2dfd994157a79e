"""Explains the latency of a `.tflite` file on a target that runs such files."""

import math
from typing import Any

import numpy as np

from latency.prediction import operation_features
from latency.roofline import explanation, file_kernels, measure_limits
from latency.roofline.explanation import Explanation
from latency.target import Kind, Latency, Target
from latency.tflite import convert


def explain(target: Target, model: Any, latency: Latency) -> Explanation:
    """The operations of a `.tflite` file, with their measured times where there are some.

    The device's limits are measured through `target` too, once. Times are the fastest ones, which
    repeat on a busy machine; where none were measured, the attainable ones stand for them, as
    PREDICTED.
    """
    kernels = file_kernels.read(convert.bytes_of(model))
    limits, _ = measure_limits.measured(target)
    notes = []
    if limits.conditions.get("reason"):
        notes.append(f"the device's limits were not measured well: {limits.conditions['reason']}")
    times: np.ndarray | None = None
    ms: list[float | None]
    if latency.per_op_kind is Kind.MEASURED:
        times = operation_features.times([(one.type, one.name) for one in kernels], latency.per_op)
    if times is None:
        reason = latency.conditions.get("per_op") or "this target times none"
        notes.append(f"no operation was timed ({reason}): times are what the device allows at best")
        ms = [max(limits.times_ms(k.op_class, 2 * k.macs, k.bytes).values()) for k in kernels]
        kind = Kind.PREDICTED
    else:
        ms = [None if math.isnan(time) else float(time) for time in times]
        kind = Kind.MEASURED
    return explanation.explain(kernels, ms, limits=limits, latency=latency, kind=kind, notes=notes)

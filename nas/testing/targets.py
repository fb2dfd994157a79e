"""The contract of a target: a device, or a model of one, that tells latencies."""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras

from latency.target import Kind, Latency, Target
from latency.tflite import convert
from nas.testing.expectations import expect, expect_frozen

RUNS = 5


def check_target(target: Target, model: Any = None) -> None:
    """What every target holds: figures above 0 of a declared kind, that JSON keeps.

    model: the network that is timed, as `Target.profile` takes it; None: two small ones, of which
    the larger has some fifty times the multiply-adds and must not be faster.

    Raises `AssertionError` at the first promise that is not kept; `TargetUnavailable`, of the
    target itself, where the device cannot be reached.

    >>> from latency.tpu import TPU
    >>> from latency.target import TargetUnavailable
    >>> try:
    ...     check_target(TPU())
    ... except TargetUnavailable:
    ...     pass
    """
    name = repr(target)
    expect(isinstance(target, Target), f"{name} is no latency.target.Target: make it a subclass")
    expect_frozen(target, name)
    kinds = getattr(type(target), "kinds", None)
    expect(
        isinstance(kinds, frozenset) and kinds and all(isinstance(kind, Kind) for kind in kinds),
        f"{name}: kinds = {kinds}; expected a frozenset of Kind, what its figures can be",
    )
    for found in type(target).discover():
        text = f"{found.spec!r} of {found.device!r}"
        expect(found.kind in type(target).kinds, f"{name}: discover lists {text}, {found.kind}")
    models = [_network(8), _network(64)] if model is None else [model]
    latencies = _compare(target, models)
    for latency in latencies:
        _check_latency(target, latency, name)
    if len(models) == 2:
        small, large = (latency.median_ms for latency in latencies)
        expect(
            large > 0.8 * small,
            f"{name}: {small:g} ms of a small network, {large:g} ms of a far larger one",
        )
    _check_identity(target, name)
    if model is None and type(target).runs_tflite:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.tflite")
            path.write_bytes(convert.assemble(models[0]))
            (latency,) = _compare(target, [path])
        _check_latency(target, latency, f"{name} on a .tflite file (runs_tflite is True)")


def _network(width: int) -> Any:
    inputs = keras.Input((16, 16, 3), name="image")
    x = inputs
    for number in (1, 2):
        x = keras.layers.Conv2D(width, 3, padding="same", name=f"conv{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(10, name="head")(x)
    return keras.Model(inputs, outputs, name=f"width_{width}")


def _compare(target: Target, models: list[Any]) -> list[Latency]:
    try:
        latencies = target.compare(models, warmup=1, runs=RUNS)
    except TypeError as error:  # a figure of a kind that it does not declare
        raise AssertionError(str(error)) from error
    expect(
        len(latencies) == len(models),
        f"{target!r}: {len(latencies)} figures of {len(models)} networks",
    )
    return latencies


def _check_latency(target: Target, latency: Latency, name: str) -> None:
    samples = latency.samples_ms
    expect(
        isinstance(samples, tuple) and samples,
        f"{name}: samples_ms = {samples!r}; expected a tuple of times in milliseconds",
    )
    wrong = [one for one in samples if not (math.isfinite(one) and one > 0)]
    expect(not wrong, f"{name}: samples of {wrong[:3]} ms; expected times above 0")
    if latency.measured:
        expect(len(samples) == RUNS, f"{name}: {len(samples)} samples of {RUNS} runs")
    expect(
        isinstance(latency.device, str) and latency.device,
        f"{name}: device = {latency.device!r}; expected what the device says it is",
    )
    try:
        text = json.dumps(latency.to_json())
    except TypeError as error:
        raise AssertionError(f"{name}: JSON cannot keep its conditions: {error}") from error
    again = Latency.from_json(json.loads(text))
    expect(
        again == latency,
        f"{name}: JSON keeps {again.conditions}, not {latency.conditions}; expected lists and dicts"
        " with texts as keys",
    )


def _check_identity(target: Target, name: str) -> None:
    first, second = target.identity(), target.identity()
    try:
        kept = json.loads(json.dumps(first))
    except TypeError as error:
        raise AssertionError(f"{name}: JSON cannot keep its identity: {error}") from error
    expect(
        isinstance(kept, dict) and first == second,
        f"{name}: identity() is {first}, then {second}; expected the same dict, by which an earlier"
        " figure is found again",
    )
    if len(target.kinds) > 1:
        said = {str(value) for value in first.values()} & set(Kind)
        expect(
            said,
            f"{name}: its figures can be {', '.join(sorted(target.kinds))}, and identity()"
            f" {first} does not say which they are now",
        )
    expect(
        type(target).__module__ in sys.modules and type(target).__module__ != "__main__",
        f"{name} is defined in a script; put it into a file, as my_board.py",
    )

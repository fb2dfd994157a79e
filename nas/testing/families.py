"""The contract of a family: a file with `Config`, `VARIANTS` and `build`."""

import math
from types import ModuleType
from typing import Any

import keras
import numpy as np

from families.layers import shapes_only
from latency.networks import count
from latency.tflite import convert
from latency.tflite.signature import names
from nas.networks.build import deploy
from nas.testing.expectations import (
    as_trained,
    expect,
    expect_close,
    expect_flat,
    expect_frozen,
    expect_names,
    expect_saved,
    inputs_of,
    outputs,
)


def check_family(module: ModuleType) -> None:
    """What every family holds, on its variant "tiny": a second or a few.

    Its Configs are frozen, hashable and rebuilt by their repr; `build` gives a flat Functional
    model whose layers have names of their own, that trains, gives logits, comes back from its
    .keras file, and computes the same as a LiteRT file of its deployed form; every multiplication
    is counted. Raises `AssertionError` at the first promise that is not kept.

    >>> import json
    >>> check_family(json)
    Traceback (most recent call last):
    AssertionError: json has no Config; expected Config, VARIANTS, build
    """
    name = module.__name__
    _check_configs(module, name)
    keras.utils.set_random_seed(0)
    config = module.VARIANTS["tiny"]
    model = module.build(config)
    expect_flat(model, name)
    expect_names(model, name)
    _check_again(module.build(config), model, name)
    _check_outputs(model, config, name)
    expect_saved(model, inputs_of(model, 2), name)
    _check_step(module.build(config), name)
    _check_deployed(module.build(deploy(config)), model, name)
    for form in (config, deploy(config)):
        with shapes_only():
            counted = count.count(module.build(form))
        what = ", ".join(counted.uncounted)
        expect(not what, f"{name}: nothing says what {what} multiplies; give it a method macs")
        expect(counted.macs > 0, f"{name}: no multiplication is counted")


def _check_configs(module: ModuleType, name: str) -> None:
    for needed in ("Config", "VARIANTS", "build"):
        expect(hasattr(module, needed), f"{name} has no {needed}; expected Config, VARIANTS, build")
    variants = module.VARIANTS
    expect("tiny" in variants, f"{name}.VARIANTS has no 'tiny' (it has: {', '.join(variants)})")
    for variant, config in variants.items():
        same = type(config) is module.Config
        expect(same, f"{name}:{variant} is a {type(config).__name__}; expected {name}.Config")
        expect_frozen(config, f"{name}:{variant}")
    aliases = getattr(module, "ALIASES", {})  # rows of published tables that are one network
    for alias, original in aliases.items():
        expect(
            variants[alias] == variants[original],
            f"{name}: ALIASES says that {alias} is {original}, but their Configs differ",
        )
    distinct = len(set(variants.values()))
    expect(
        distinct == len(variants) - len(aliases),
        f"{name}.VARIANTS: {len(variants)} names of {distinct} networks; equal ones go to ALIASES",
    )


def _check_again(again: Any, model: Any, name: str) -> None:
    """Keras numbers what nobody named: conv2d here, conv2d_1 the next time."""
    first, second = ([weight.path for weight in one.weights] for one in (model, again))
    first += [layer.name for layer in model.layers]
    second += [layer.name for layer in again.layers]
    changed = [f"{one} and {two}" for one, two in zip(first, second, strict=False) if one != two]
    expect(
        first == second,
        f"{name}: built twice, names differ: {', '.join(changed[:3])}; name every layer",
    )


def _check_outputs(model: Any, config: Any, name: str) -> None:
    found = outputs(model, inputs_of(model))
    for output in found:
        expect(np.isfinite(output).all(), f"{name}: outputs are not finite")
    if hasattr(config, "classes") and not isinstance(model.output, dict):
        (output,) = found
        shape = (8, config.classes)
        expect(output.shape == shape, f"{name}: outputs {output.shape}; expected {shape}")
        sums = output.sum(axis=-1)
        expect(not np.allclose(sums, 1.0), f"{name}: outputs are probabilities; expected logits")


def _check_step(model: Any, name: str) -> None:
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0  # the same function before and after the step
    inputs = inputs_of(model)
    generator = np.random.default_rng(1)
    shapes = [(8, *tensor.shape[1:]) for tensor in model.outputs]
    flat = [generator.normal(size=shape).astype("float32") for shape in shapes]
    targets = keras.tree.pack_sequence_as(model.output, flat)
    model.compile(keras.optimizers.SGD(1e-3), loss="mse", run_eagerly=True)
    # Of several outputs the sum comes first.
    before, after = (float(np.ravel(model.train_on_batch(inputs, targets))[0]) for _ in range(2))
    expect(
        math.isfinite(before) and after < before,
        f"{name}: a step of gradient descent takes the loss from {before:g} to {after:g}",
    )


def _check_deployed(step: Any, model: Any, name: str) -> None:
    name = f"{name}, in the form that runs on a device"
    paths = {weight.path: tuple(weight.shape) for weight in model.weights}
    for weight in step.weights:
        expect(
            paths.get(weight.path) == tuple(weight.shape),
            f"{name}: weight {weight.path!r} {tuple(weight.shape)} is not in the trained network",
        )
    expect_flat(step, name)
    for tensor in (*step.inputs, *step.outputs):
        static = tensor.shape[0] is None and None not in tensor.shape[1:]
        expect(static, f"{name}: {tensor.name} has shape {tensor.shape}; expected (None, sizes)")
    as_trained(step)
    inputs = inputs_of(step, 2)
    takes, gives = names(step)
    given = dict(zip(takes, keras.tree.flatten(inputs), strict=True))
    found = convert.run(convert.convert(step), given)
    expect(
        sorted(found) == sorted(gives),
        f"{name}: the LiteRT file has outputs {sorted(found)}; expected {sorted(gives)}",
    )
    for output, theirs in zip(gives, outputs(step, inputs), strict=True):
        expect_close(found[output], theirs, f"{name}: output {output!r} of the LiteRT file")

"""Timing a network on an attached accelerator: an operation of `latency.jax_runtime.worker`."""

import time
from typing import Any

import numpy as np

from latency.jax_runtime import worker
from latency.measuring import stopwatch
from latency.target import TargetUnavailable

_STEADY = 0.02  # warm when the median of five runs moves by less than this share
_WARM_S = 10.0  # at most
_BACK_TO_BACK = 20  # calls in flight at once, to tell the device's time from that of the dispatch


def time_model(request: dict[str, Any], model: Any) -> dict[str, Any]:
    """Times the model: "samples_ms" of blocking runs, "memory_mb" and "conditions".

    request: platform, dtype, batch_size, warmup, runs, devices (more than 1: data parallel).
    """
    import jax

    devices = worker.attached_devices(request["platform"])
    count = request.get("devices", 1)
    if count > len(devices):
        raise TargetUnavailable(f"{count} devices asked for, {len(devices)} are attached")
    over_batch, everywhere = worker.placement(devices[:count], request["batch_size"])
    network = worker.forward(model, request["dtype"])
    weights = jax.device_put(weights_of(model, request["dtype"]), everywhere)
    _, inputs = worker.arguments(model, request["dtype"], request["batch_size"])
    run = _Runner(network, weights, jax.device_put(filled(inputs), over_batch))
    warmed = _warm(run, request["warmup"])
    samples = [run.blocking() for _ in range(request["runs"])]
    at_once = run.back_to_back(min(_BACK_TO_BACK, max(2, request["runs"])))
    stats = devices[0].memory_stats() or {}
    conditions = worker.versions(devices[0]) | {
        "device_kind": devices[0].device_kind,
        "devices": count,
        "dtype": request["dtype"],
        "values": "random from 0 to 1 of a fixed seed, integers 0",
        "donated_inputs": len(run.pairs),
        "warmup_runs": warmed,
        "back_to_back_ms": at_once,
        "dispatch_ms": max(0.0, float(np.median(samples)) - at_once),
        "peak_mb_in_use": stats.get("peak_bytes_in_use", 0) / 1e6 or None,
    }
    return {
        "samples_ms": samples,
        "memory_mb": worker.memory_mb(run.compiled),
        "conditions": conditions | stopwatch.stability(stopwatch.instabilities(samples)),
    }


def weights_of(model: Any, dtype: str) -> Any:
    """The values of the weights, in the types of `arguments`."""
    import jax.numpy as jnp

    return tuple(
        [jnp.asarray(np.asarray(v.value), worker.tensor_type(v.dtype, dtype)) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )


def filled(inputs: Any) -> Any:
    """Arrays of the shapes: numbers between 0 and 1, zeros where they are integers."""
    import jax

    random = np.random.default_rng(0)

    def array(like):
        if np.issubdtype(like.dtype, np.integer) or like.dtype == bool:
            return np.zeros(like.shape, like.dtype)
        return random.random(like.shape, np.float32).astype(like.dtype)

    return jax.tree.map(array, inputs)


class _Runner:
    """A compiled network with its weights on the device, run again and again.

    An input that has the shape and type of an output (a cache, a state) is donated and replaced by
    that output, as in use; the others stay on the device.
    """

    def __init__(self, network: Any, weights: Any, inputs: Any):
        import jax

        leaves, structure = jax.tree.flatten(inputs)
        self.pairs = _alike(leaves, jax.tree.leaves(jax.eval_shape(network, weights, inputs)))

        def step(weights, kept, donated):
            merged = dict(kept) | dict(donated)
            ordered = [merged[index] for index in range(len(leaves))]
            return jax.tree.leaves(network(weights, jax.tree.unflatten(structure, ordered)))

        self._weights = weights
        self._kept = {i: leaf for i, leaf in enumerate(leaves) if i not in self.pairs}
        self._donated = {index: leaves[index] for index in self.pairs}
        jitted = jax.jit(step, donate_argnums=2)
        self.compiled = jitted.lower(weights, self._kept, self._donated).compile()

    def blocking(self) -> float:
        """Milliseconds of one run, from the call to the end of the computation."""
        started = time.perf_counter_ns()
        self._call()
        self.block()
        return (time.perf_counter_ns() - started) / 1e6

    def back_to_back(self, calls: int) -> float:
        """Milliseconds of a run when the next is dispatched before it ends."""
        started = time.perf_counter_ns()
        for _ in range(calls):
            self._call()
        self.block()
        return (time.perf_counter_ns() - started) / 1e6 / calls

    def block(self) -> None:
        import jax

        jax.block_until_ready(self._outputs)

    def _call(self) -> None:
        self._outputs = self.compiled(self._weights, self._kept, self._donated)
        self._donated = {index: self._outputs[j] for index, j in self.pairs.items()}


def _alike(inputs: list[Any], outputs: list[Any]) -> dict[int, int]:
    """For each input the output that has its shape and type, if any; each output once."""
    free, pairs = dict(enumerate(outputs)), {}
    for index, leaf in enumerate(inputs):
        for j, output in free.items():
            if (output.shape, output.dtype) == (leaf.shape, leaf.dtype):
                pairs[index] = j
                del free[j]
                break
    return pairs


def _warm(run: _Runner, least: int) -> int:
    """Runs until five runs are as fast as the five before, at least `least` times; the count."""
    times = [run.blocking() for _ in range(max(least, 1))]
    end = time.monotonic() + _WARM_S
    while time.monotonic() < end:
        times += [run.blocking() for _ in range(5)]
        if len(times) >= 10:
            before, after = np.median(times[-10:-5]), np.median(times[-5:])
            if abs(after - before) < _STEADY * before:
                break
    return len(times)

"""Compiling a network with Google's TPU compiler, without a TPU: an operation of the worker.

Runs in `latency.jax_runtime.worker`. What it finds is kept as facts (cycles, bytes, sizes), not as
times:
`latency.tpu` makes times of them.
"""

import dataclasses
import hashlib
import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from latency.jax_runtime import worker
from latency.system.json_records import write_json
from latency.target import TargetUnavailable
from latency.tpu_compiler import chips, schedule

FORMAT = 3  # of the record; raised when what is read from the compiler changes
# Beside these the caller adds the folder of the dump; libtpu reads them when it is loaded.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # never waits for, or takes, a TPU that is there
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # else it complains on stderr
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once
}
_DUMP = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=final_bundles|deduplication"
)


def environment(folder: Path) -> dict[str, str]:
    """The environment of a worker whose schedules libtpu dumps into `folder`."""
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    return ENVIRONMENT | {"LIBTPU_INIT_ARGS": f"{given} {_DUMP.format(folder=folder)}".strip()}


def compile_model(request: dict[str, Any], model: Any) -> dict[str, Any]:
    """The record of a network: from the cache, or compiled for request["chip"], "topology".

    request: chip, topology, dtype, batch_size, dump (folder), cache (folder).
    """
    import jax

    chip = chips.named(request["chip"])
    devices = _devices(chip, request["topology"])
    network = worker.forward(model, request["dtype"])
    weights, inputs = worker.arguments(model, request["dtype"], request["batch_size"])
    over_batch, everywhere = worker.placement(devices, request["batch_size"])
    lowered = jax.jit(network).lower(
        worker.placed(weights, everywhere), worker.placed(inputs, over_batch)
    )
    layers = _layers(model)
    about = {name: request[name] for name in ("chip", "topology", "dtype", "batch_size")}
    about |= {"format": FORMAT, "versions": versions(), "layers": layers}
    text = json.dumps(about, sort_keys=True) + lowered.as_text()
    program = hashlib.sha256(text.encode()).hexdigest()[:32]
    path = Path(request["cache"], f"{program}.json")
    if path.is_file():
        return {"program": program, "compiled": False}
    for stale in Path(request["dump"]).iterdir():
        stale.unlink()
    started = time.monotonic()
    try:
        compiled = lowered.compile()
        record = _facts(compiled, Path(request["dump"]), layers, _variables(model))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        record = {"out_of_memory": worker.out_of_memory(str(error))}
    record |= {"compile_s": round(time.monotonic() - started, 1), "devices": len(devices)}
    answer = {"program": program, "compiled": True}
    try:
        write_json(path, record)
    except OSError:  # a full or read-only cache: the caller, who keeps an index there, says so
        answer["record"] = record
    return answer


def versions() -> dict[str, str]:
    """What the figures depend on; `TargetUnavailable` where a part is missing."""
    try:
        return {name: metadata.version(name) for name in ("libtpu", "jax", "jaxlib", "keras")}
    except metadata.PackageNotFoundError as error:
        raise TargetUnavailable(f"{error.name} is missing: {HOW}") from None


HOW = (
    "pip install 'nas[tpu]' (libtpu, Google's compiler, comes under the Google Cloud Platform Terms"
    " of Service)"
)


def _devices(chip: chips.Chip, topology: str | None) -> list[Any]:
    from jax.experimental import topologies

    sizes = chips.sizes(chip, topology)
    three = (*sizes, 1)[:3]
    # A host has 2x2x1 chips; a part of one is described as a smaller host.
    bounds = tuple(min(size, most) for size, most in zip(three, (2, 2, 1), strict=True))
    options = {"chip_config_name": chip.config} if chip.config else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{chip.topology}:{'x'.join(map(str, sizes))}",
            chips_per_host_bounds=bounds,
            num_slices=1,
            **options,
        )
    except Exception as error:  # libtpu's own words for a topology that is not built
        if topology is not None and "INVALID_ARGUMENT" in str(error):
            raise ValueError(
                f"topology={topology!r}: {chip.name} has none: {str(error).splitlines()[0][:200]}"
            ) from error
        raise TargetUnavailable(f"libtpu: {str(error).splitlines()[0][:300]}") from error
    devices = list(described.devices)
    return devices[:1] if topology is None else devices


def _layers(model: Any) -> dict[str, str]:
    """The class of each layer by its name."""
    return {layer.name: type(layer).__name__ for layer in model._flatten_layers()}


def _variables(model: Any) -> dict[str, str]:
    """The layer of each weight, by the name that JAX gives the weight."""
    names = {}
    for kind, variables in enumerate((model.trainable_variables, model.non_trainable_variables)):
        for index, variable in enumerate(variables):
            names[f"weights[{kind}][{index}]"] = variable.path.rpartition("/")[0]
    return names


def _facts(compiled: Any, dump: Path, layers: dict, variables: dict) -> dict[str, Any]:
    schedules = schedule.read_dump(dump)
    operations = []
    for operation in schedule.operations(compiled.as_text(), schedules):
        row = dataclasses.asdict(operation)
        row["layer"] = layer = layer_of(row.pop("source"), layers, variables)
        row["type"] = layers.get(layer, "")
        row["products"] = [layer_of(one, layers, variables) for one in operation.products]
        operations.append(row)
    costs = compiled.cost_analysis() or {}
    return {
        "operations": operations,
        "unknown_loops": schedules.unknown_loops,
        "dispatch_cycles": schedules.cycles.get("TLP"),
        "memory_mb": worker.memory_mb(compiled),
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "optimal_seconds": costs.get("optimal_seconds"),
    }


def layer_of(source: str, layers: dict[str, str], variables: dict[str, str]) -> str:
    """The innermost Keras layer in JAX's name of an operation, else what it works on.

    >>> layer_of("jit(network)/stem/conv_general_dilated", {"stem": "Conv2D"}, {})
    'stem'
    """
    if source in variables:
        source = variables[source] + "/"
    named = [part for part in source.split("/")[:-1] if part in layers]
    if named:
        return named[-1]
    return "other" if "/" in source or not source else source.partition("[")[0]

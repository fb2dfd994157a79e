"""What runs in a process of its own for `latency.jax_runtime.process`.

A process with Keras on JAX; only here are they imported. Other modules of the package bring further
operations, functions `operation(request, model) -> dict`.
"""

import importlib
import json
import re
import traceback
import zipfile
from typing import Any

import numpy as np

from latency.networks import keras_file
from latency.system import worker_process
from latency.target import DoesNotFit, TargetUnavailable

_SIZE = r"(\d+(?:\.\d+)?[KMGT]?(?:i?B)?)"
_SHORT_OF_MEMORY = (  # needed, available: XLA's words when it compiles, then when it allocates
    rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)",
    rf"Used {_SIZE} of {_SIZE} \w+",
    rf"allocate (?:request for )?{_SIZE}",
)


def devices(request: dict[str, Any], model: Any) -> dict[str, Any]:
    """The devices that JAX sees on a platform."""
    import jax

    return {
        "devices": [
            {"id": device.id, "kind": device.device_kind, "platform": device.platform}
            for device in attached_devices(request["platform"])
        ],
        "jax": jax.__version__,
    }


def forward(model: Any, dtype: str) -> Any:
    """The network as a function (weights, inputs) -> outputs that computes in `dtype`."""
    set_dtype(model, dtype)

    def network(weights, inputs):
        return model.stateless_call(*weights, inputs, training=False)[0]

    return network


def set_dtype(model: Any, dtype: str) -> None:
    """Every layer computes in `dtype`; quantized layers stay as they are."""
    import keras

    # "mixed": the layers cast their weights, which are float32 variables, as they use them; given
    # bfloat16 for them (`arguments`), the compiler leaves out the way there and back.
    policy = keras.DTypePolicy("float32" if dtype == "float32" else f"mixed_{dtype}")
    for layer in model._flatten_layers():
        if layer.dtype_policy.quantization_mode is None:
            layer.dtype_policy = policy


def arguments(model: Any, dtype: str, batch_size: int) -> tuple[Any, Any]:
    """Shapes and types of the weights ((trainable, others)) and of the inputs, as `forward` takes.

    Raises `ValueError` on an input without a static shape.
    """
    import jax
    import keras

    def described(tensor):
        shape = tuple(tensor.shape)
        if any(size is None for size in shape[1:]):
            raise ValueError(
                f"input {tensor.name!r} of model {model.name!r}: expected a static shape, got"
                f" {shape}"
            )
        kept = batch_size if shape[0] is None else shape[0]
        if kept != batch_size:
            raise ValueError(
                f"model {model.name!r} was built for batch {kept}: batch_size={batch_size}"
            )
        return jax.ShapeDtypeStruct((kept, *shape[1:]), tensor_type(tensor.dtype, dtype))

    if not getattr(model, "inputs", None):
        raise ValueError(f"model {model.name!r} was never built: it has no inputs")
    weights = tuple(
        [jax.ShapeDtypeStruct(v.shape, tensor_type(v.dtype, dtype)) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )
    return weights, keras.tree.map_structure(described, model.input)


def placement(devices_: list[Any], batch_size: int) -> tuple[Any, Any]:
    """Where inputs and where weights lie: the batch in equal parts, the weights on each device."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

    if len(devices_) == 1:
        place = SingleDeviceSharding(devices_[0])
        return place, place
    if batch_size % len(devices_):
        raise ValueError(
            f"batch_size={batch_size}: expected a multiple of {len(devices_)}, the devices that"
            " share the batch"
        )
    mesh = Mesh(np.array(devices_), ("batch",))
    return NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())


def placed(shapes: Any, place: Any) -> Any:
    """The shapes, with where they lie."""
    import jax

    return jax.tree.map(
        lambda like: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=place), shapes
    )


def memory_mb(compiled: Any) -> float:
    """What a compiled network needs on the device: arguments, outputs, intermediates, program."""
    sizes = compiled.memory_analysis()
    total = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.generated_code_size_in_bytes
        - sizes.alias_size_in_bytes
    )
    return total / 1e6


def versions(device: Any) -> dict[str, Any]:
    """The software that ran a network."""
    import jax
    import jaxlib

    platform = str(getattr(device.client, "platform_version", "")).strip()
    return {
        "runtime": f"JAX {jax.__version__}, jaxlib {jaxlib.__version__}",
        "platform_version": " ".join(platform.split()),
    }


def tensor_type(kind: Any, dtype: str) -> Any:
    """What a float32 tensor is where the network computes in `dtype`; others stay."""
    import jax.numpy as jnp

    return jnp.dtype(dtype) if str(kind) == "float32" else jnp.dtype(str(kind))


def attached_devices(platform: str) -> list[Any]:
    import jax

    try:
        found = jax.devices(platform)
    except (RuntimeError, AssertionError) as error:  # jax 0.10 asserts where no platform is left
        raise TargetUnavailable(f"JAX sees no {platform} device: {_first_line(error)}") from error
    return found


def _load(request: dict[str, Any]) -> Any:
    """The model of the request; its own layers' modules are imported first. Keras' safe mode on.

    request["weights"] false: weights of zeros, where only the shapes count.
    """
    import keras

    for name in request["imports"]:
        importlib.import_module(name)
    path = request["model"]
    try:
        try:
            return _load_at_once(path, request.get("weights", True))
        except Exception:  # a layer that reads its weights when it is built, or a bad file
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a damaged or foreign file makes Keras raise
        raise ValueError(f"{path}: Keras cannot load it: {keras_file.cause(error)}") from error


def _load_at_once(path: str, weights: bool) -> Any:
    """What Keras' `load_model` does, without first compiling and running every initializer.

    On JAX these take 15 s for a MnasNet, against 0.5 s for all of this.
    """
    import keras

    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    config.pop("compile_config", None)
    with keras.StatelessScope():  # variables come to life when it ends
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
        for variable in model.variables:
            variable._initializer = lambda shape, dtype: np.zeros(shape, dtype)
    if weights:
        model.load_weights(path)
    return model


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        import jax
        import keras  # noqa: F401 (a broken installation is told apart from a broken model)
    except ImportError as error:
        return {"error": "ImportError", "message": str(error)}
    try:
        model = _load(request) if "model" in request else None
        return _operation(request["operation"])(request, model)
    except DoesNotFit as error:
        return {"error": "DoesNotFit", "message": str(error)} | {
            "needed_mb": error.needed_mb,
            "available_mb": error.available_mb,
        }
    except (ValueError, TargetUnavailable) as error:
        return {"error": type(error).__name__, "message": str(error)}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return {"error": "DoesNotFit"} | out_of_memory(str(error))
        return {"error": "ValueError", "message": f"JAX cannot run it: {_first_line(error)}"}
    except Exception:
        return {"error": "RuntimeError", "message": traceback.format_exc()}


def _operation(name: str) -> Any:
    module, _, function = _SHORT.get(name, name).rpartition(".")
    return getattr(importlib.import_module(f"latency.{module}"), function)


def out_of_memory(message: str) -> dict[str, Any]:
    """What XLA says where memory is short: one line, and megabytes where it names them.

    >>> out_of_memory("the total ... (18.26G) exceeds available HBM (15.75G).")["message"]
    'does not fit: needs 19.6 GB of 16.9 GB'
    """
    needed = available = None
    for pattern in _SHORT_OF_MEMORY:
        if found := re.search(pattern, message):
            needed, *rest = [_megabytes(text) for text in found.groups()]
            available = rest[0] if rest else None
            break
    sizes = f"needs {needed / 1e3:.1f} GB" if needed else message.splitlines()[0][:300]
    sizes += f" of {available / 1e3:.1f} GB" if available else ""
    return {"message": f"does not fit: {sizes}", "needed_mb": needed, "available_mb": available}


def _megabytes(text: str) -> float:
    found = re.fullmatch(r"([\d.]+?)\.?([KMGT]?)(?:i?B)?", text)
    assert found is not None, text
    number, unit = found.groups()
    return float(number) * 1024 ** "_KMGT".index(unit or "_") / 1e6


_SHORT = {"devices": "jax_runtime.worker.devices", "time": "jax_runtime.timing.time_model"}


if __name__ == "__main__":
    worker_process.serve(_answer)

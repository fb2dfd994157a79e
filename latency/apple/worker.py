"""What runs in a process of its own for `latency.apple.coreml`.

Here TensorFlow and coremltools are imported. Times are those of Core ML's own prediction call
(`MLModel predictionFromFeatures`), without Python's handling of arrays.
"""

import asyncio
import importlib
import os
import shutil
import subprocess
import time
from typing import Any

import numpy as np

from latency.system import worker_process
from latency.target import TargetUnavailable


class BadModel(ValueError):
    """The network cannot be read, or has no Core ML form."""


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Writes the `.mlpackage` of a `.keras` file."""
    import coremltools as ct

    program = converted(
        _load(request),
        request["batch_size"],
        request["precision"],
        # 17: float16 inputs and outputs, and compute plans, need no cast and exist.
        ct.target.iOS17,
    )
    program.save(request["package"])
    return {"operations": len(_operations(program.get_spec()))}


def converted(model: Any, batch_size: int, precision: str, target: Any) -> Any:
    """The `coremltools.models.MLModel` of a Keras model, an ML program of static shapes."""
    import coremltools as ct
    import keras
    import tensorflow as tf

    _register()
    signature = [_specification(tensor, batch_size) for tensor in model.inputs]

    # A concrete function: a SavedModel is refused, and coremltools does not know Keras 3's models.
    def infer(*inputs):
        with keras.StatelessScope():  # as in latency.tflite.convert
            return model(keras.tree.pack_sequence_as(model.input, inputs), training=False)

    try:
        function = tf.function(infer, autograph=False).get_concrete_function(*signature)
        return ct.convert(
            [function],
            source="tensorflow",
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=getattr(ct.precision, precision.upper()),
            skip_model_load=True,
        )
    except Exception as error:  # a converter raises whatever its passes raise
        raise BadModel(f"{model.name}: Core ML has no form of it: {_line(error)}") from error


def time_here(request: dict[str, Any]) -> dict[str, Any]:
    """Times a package on this Mac, and asks the plan where its operations run."""
    import coremltools as ct

    units = getattr(ct.ComputeUnit, request["units"])
    model = ct.models.MLModel(request["package"], compute_units=units)
    if model.__proxy__ is None:  # coremltools only warns
        reason = getattr(model, "_framework_error", None) or "there is no Core ML here"
        raise TargetUnavailable(f"it cannot load {request['package']}: {_line(Exception(reason))}")
    inputs = _inputs(model.get_spec())
    load_ns = model.load_duration_in_nano_seconds
    for _ in range(max(1, request["warmup"])):
        model.predict(inputs)
    samples, walls = [], []
    for _ in range(request["runs"]):
        started = time.perf_counter_ns()
        model.predict(inputs)
        walls.append((time.perf_counter_ns() - started) / 1e6)
        duration = model.last_predict_duration_in_nano_seconds
        samples.append(None if duration is None else duration / 1e6)
    timed = None not in samples
    answer = {
        "samples_ms": samples if timed else walls,
        "clock": "Core ML's prediction call" if timed else "Python's predict",
        "wall_median_ms": float(np.median(walls)),
        "load_ms": None if load_ns is None else load_ns / 1e6,
    }
    try:
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(model.get_compiled_model_path(), units)
        block = plan.model_structure.program.functions["main"].block
        answer["plan"] = [
            {
                "name": operation.outputs[0].name if operation.outputs else "",
                "type": operation.operator_name,
                "on": _place(plan.get_compute_device_usage_for_mlprogram_operation(operation)),
                "cost": None if cost is None else float(cost.weight),
            }
            for operation in block.operations
            for cost in [plan.get_estimated_cost_for_mlprogram_operation(operation)]
        ]
    except Exception as error:  # macOS before 14.4 has no plan; the times hold without it
        answer["plan_missing"] = _line(error)
    return answer


def time_on_phone(request: dict[str, Any]) -> dict[str, Any]:
    """Times a package on a connected iPhone through coremltools' model runner app."""
    return asyncio.run(_time_on_phone(request))


async def _time_on_phone(request: dict[str, Any]) -> dict[str, Any]:
    import coremltools as ct
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
    from coremltools.models.ml_program.experimental.remote_device import (
        AppSigningCredentials,
        Device,
        DeviceType,
    )

    _find_devicectl()
    phones = Device.get_connected_devices(DeviceType.IPHONE)
    phone = next((one for one in phones if one.udid == request["udid"]), None)
    if phone is None:
        raise TargetUnavailable(f"iPhone {request['udid']} is not connected any more")
    credentials = AppSigningCredentials(
        development_team=request["team"],
        provisioning_profile_uuid=request["provisioning"],
        bundle_identifier=request["bundle"],
    )
    phone = await phone.prepare_for_model_debugging(credentials=credentials)
    try:
        units = getattr(ct.ComputeUnit, request["units"])
        model = ct.models.MLModel(request["package"], compute_units=units, skip_model_load=True)
        inputs = _inputs(model.get_spec())
        benchmark = MLModelBenchmarker(model, phone)
        load = await benchmark.benchmark_load(iterations=1)
        await benchmark.benchmark_predict(inputs, iterations=max(1, request["warmup"]))
        timed = await benchmark.benchmark_predict(inputs, iterations=request["runs"])
        answer = {
            "samples_ms": list(timed.samples),
            "clock": "Core ML's prediction call",
            "load_ms": load.samples[0] if load.samples else None,
        }
        if request["details"]:
            try:
                answer["plan"] = _shares(await benchmark.benchmark_operation_execution(inputs))
            except Exception as error:  # the plan is told apart from the times, which hold
                answer["plan_missing"] = _line(error)
        return answer
    finally:
        if phone.session is not None:
            phone.session.stop()


def _shares(operations: list[Any]) -> list[dict[str, Any]]:
    """Rows of a plan from coremltools' operations: their times are the whole by estimated cost."""
    return [
        {
            "name": getattr(one.path.components[-1], "output_name", ""),
            "type": one.spec.type,
            "on": _place(one.compute_device_usage),
            "cost": one.measurement.samples[0] if one.measurement.samples else None,
        }
        for one in operations
    ]


def _find_devicectl() -> None:
    """Puts devicectl on PATH, where coremltools wants it and Xcode has it elsewhere."""
    if shutil.which("devicectl") is None and shutil.which("xcrun") is not None:
        found = subprocess.run(
            ["xcrun", "--find", "devicectl"], capture_output=True, text=True, timeout=30
        ).stdout.strip()
        if found:
            os.environ["PATH"] += os.pathsep + os.path.dirname(found)


def _register() -> None:
    """Teaches coremltools the TensorFlow operations that it lacks and that Keras layers make."""
    from coremltools.converters.mil import Builder, register_tf_op
    from coremltools.converters.mil.frontend.tensorflow.tf_op_registry import _TF_OPS_REGISTRY
    from coremltools.converters.mil.mil import types

    def erfc(context, node):
        x = context[node.inputs[0]]
        erf = Builder.erf(x=x)
        context.add(node.name, Builder.sub(x=np.float32(1), y=erf, name=node.name))

    erfc.__name__ = "Erfc"  # exact GELU; the decorator goes by the name
    register_tf_op(erfc, override=True)
    others = _TF_OPS_REGISTRY["Cast"]

    def cast(context, node):
        if node.attr["DstT"] is not types.bool:
            return others(context, node)
        x = context[node.inputs[0]]
        context.add(node.name, Builder.cast(x=x, dtype="bool", name=node.name))

    cast.__name__ = "Cast"  # theirs has no bool
    if others.__module__ != __name__:
        register_tf_op(cast, override=True)


def _load(request: dict[str, Any]) -> Any:
    """The model of the request; Keras' safe mode on: a file cannot run code."""
    import keras

    for name in request["imports"]:
        importlib.import_module(name)
    try:
        return keras.saving.load_model(request["model"], compile=False, safe_mode=True)
    except Exception as error:  # whatever a damaged or foreign file makes Keras raise
        raise BadModel(f"{request['model']}: Keras cannot load it: {_line(error)}") from error


def _specification(tensor: Any, batch_size: int) -> Any:
    """The static shape of an input."""
    import tensorflow as tf

    shape = tuple(tensor.shape)
    if None in shape[1:]:
        raise BadModel(f"input {tensor.name!r}: expected a static shape, got {shape}")
    if shape[0] not in (None, batch_size):
        raise BadModel(f"input {tensor.name!r} is built for batch {shape[0]}, not {batch_size}")
    return tf.TensorSpec((batch_size, *shape[1:]), tensor.dtype, name=tensor.name)


def _operations(specification: Any) -> list[Any]:
    """The operations of an ML program, without its constants."""
    blocks = specification.mlProgram.functions["main"].block_specializations.values()
    return [one for block in blocks for one in block.operations if one.type != "const"]


def _inputs(specification: Any) -> dict[str, np.ndarray]:
    """An array for each input: numbers between 0 and 1, zeros where they are integers."""
    random = np.random.default_rng(0)
    arrays = {}
    for feature in specification.description.input:
        kind = feature.type.multiArrayType
        shape = tuple(kind.shape)
        integers = kind.ArrayDataType.Name(kind.dataType).startswith("INT")
        arrays[feature.name] = (
            np.zeros(shape, np.int32) if integers else random.random(shape, np.float32)
        )
    return arrays


def _place(usage: Any) -> str | None:
    """Where the plan puts an operation: cpu, gpu or ane."""
    if usage is None:
        return None
    name = type(usage.preferred_compute_device).__name__
    named = {"NeuralEngine": "ane", "GPU": "gpu", "CPU": "cpu"}
    return next((short for long, short in named.items() if long in name), name)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


_ANSWERS = {"convert": convert, "time": time_here, "time_on_phone": time_on_phone}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _ANSWERS[request["operation"]](request)
    except BadModel as error:
        return {"error": "model", "message": str(error)}
    except Exception as error:  # coremltools raises ValueError, Exception and its own alike
        return {"error": "device", "message": f"Core ML: {_line(error)}"}


if __name__ == "__main__":
    worker_process.serve(_answer)

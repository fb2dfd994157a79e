"""What runs in a process of its own for `latency.tflite.process`: files that may crash it."""

import contextlib
import importlib
import os
import time
from pathlib import Path
from typing import Any

from latency.networks import keras_file
from latency.system import worker_process


def check(file: str, threads: int) -> dict[str, Any]:
    """Loads a `.tflite` file and runs it twice; the peak of its memory in MB, or None."""
    from latency.tflite import convert as litert

    before_mb = _memory_mb("VmRSS")
    _forget_peak()
    invoke = litert.runner(Path(file), threads)
    started = time.perf_counter()
    invoke()
    first_s = time.perf_counter() - started
    if first_s < 1:
        invoke()  # a second run meets what the first one left behind
    peak_mb = _memory_mb("VmHWM")
    memory_mb = None if before_mb is None or peak_mb is None else peak_mb - before_mb
    return {"memory_mb": memory_mb, "first_ms": 1e3 * first_s}


def profile(file: str, **options: Any) -> dict[str, Any]:
    """The microseconds of each operation, by LiteRT's profiler."""
    from latency.tflite import profiler

    return profiler.profile_file(file, **options)


def convert(file: str, into: str, modules: list[str]) -> dict[str, Any]:
    """Writes the `.tflite` file of a `.keras` file, and checks it. Nothing in it can be code.

    `modules` are the caller's own, which define its layers.
    """
    import keras

    from latency.tflite import convert as litert

    for module in modules:
        importlib.import_module(module)
    # Explicit, for KERAS_SAFE_MODE and keras.config can turn it off.
    model = keras.saving.load_model(file, compile=False, safe_mode=True)
    Path(into).write_bytes(litert.bytes_of(model))
    return check(into, 1)


def fix(file: str, into: str, shapes: dict[str, list[int]], signature: str | None) -> dict:
    """Writes a `.tflite` file with fixed shapes, of one signature of another."""
    from latency.tflite import fixed_shapes

    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    Path(into).write_bytes(fixed_shapes.fixed(Path(file).read_bytes(), wanted, signature))
    return {}


def convert_graph(folder: str, into: str) -> dict[str, Any]:
    """Writes the `.tflite` file of the function that a SavedModel serves, and checks it."""
    import tensorflow as tf
    from ai_edge_litert import schema_py_generated as schema
    from tensorflow.core.protobuf import saved_model_pb2

    from latency.tflite.signature import signed

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(Path(folder, "saved_model.pb").read_bytes())
    known = saved.meta_graphs[0].signature_def
    names = [name for name in known if known[name].inputs and known[name].outputs]
    if not names:
        raise ValueError("it has no signature, so no function that could be called")
    name = "serving_default" if "serving_default" in names else names[0]
    # The loader of TensorFlow 1 needs no objects, which those of Keras 2 are not in TensorFlow 2.
    converter = tf.compat.v1.lite.TFLiteConverter.from_saved_model(
        folder, tag_set=set(saved.meta_graphs[0].meta_info_def.tags), signature_key=name
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    tflite = converter.convert()
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite)).subgraphs[0]
    sides = []
    for indices, entries in (
        (graph.inputs, known[name].inputs),
        (graph.outputs, known[name].outputs),
    ):
        keys = {entry.name.removesuffix(":0"): key for key, entry in entries.items()}
        found = [graph.tensors[index].name.decode().removesuffix(":0") for index in indices]
        sides.append([keys.get(one, one) for one in found])
    Path(into).write_bytes(signed(tflite, *sides))
    return check(into, 1)


_JOBS = {job.__name__: job for job in (check, profile, convert, convert_graph, fix)}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the job of a request returns, or {"error": ...}, within its memory and time."""
    _limit(request["memory_mb"], request["limit_s"])
    try:
        return _JOBS[request["job"]](**request["arguments"])
    except MemoryError:
        return {"error": "it needs more memory than there is"}
    except Exception as error:  # whatever a bad file provokes becomes one line
        return {"error": keras_file.cause(error), "type": type(error).__name__}


def _limit(memory_mb: float, seconds: float) -> None:
    """What this process may take from here on; no limit where the system has none."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    # The caller keeps the time; this is for when it is gone.
    cpu_s = used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1) + 10
    bytes_ = ((_memory_mb("VmSize") or 0) + memory_mb) * 2**20
    for kind, limit in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, bytes_)):
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or limit < hard:
            with contextlib.suppress(ValueError, OSError):  # macOS refuses
                resource.setrlimit(kind, (int(limit), hard))


def _memory_mb(name: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def _forget_peak() -> None:
    """The peak of memory starts anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    worker_process.serve(answer)

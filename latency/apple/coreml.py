"""Core ML for this Mac and for iPhones: what is common to them, asked in a process of its own.

The conversion needs Keras on TensorFlow, which the caller may not have, and Apple's code may crash
or wait for ever: `latency.apple.worker` is the other side. On a machine without macOS a network is
converted and kept, and the error names what is missing to time it.
"""

import atexit
import hashlib
import importlib.util
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from latency.measuring import stopwatch
from latency.networks import keras_file
from latency.system import worker_process
from latency.system.atomic_write import atomic_write
from latency.system.json_records import utc_now
from latency.system.spared import spared
from latency.system.worker_process import WorkerDied, WorkerTimeout
from latency.target import Kind, TargetUnavailable, Timing, cache_directory

# What may compute (coremltools' names of them): ane is the Neural Engine.
UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu_gpu": "CPU_AND_GPU", "cpu_ane": "CPU_AND_NE"}
PRECISIONS = ("float16", "float32")

_CONVERT_S = 900.0


def check(units: str, precision: str, limit_s: float) -> None:
    """`ValueError` unless the options of a Core ML target are good."""
    for name, value, known in (("units", units, UNITS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    if not isinstance(limit_s, (int, float)) or not 1 <= limit_s < float("inf"):
        raise ValueError(f"limit_s={limit_s!r}: expected seconds, at least 1")


def missing() -> str | None:
    """What must be installed before anything can be converted, or None."""
    if importlib.util.find_spec("coremltools") is None:
        return "coremltools is missing: pip install 'nas[coreml]'"
    return None


def runtime() -> str:
    """What makes the files, and calls Core ML."""
    return f"Core ML, coremltools {metadata.version('coremltools')}"


def convert(model: Any, batch_size: int, precision: str, save: str | None) -> Path:
    """The `.mlpackage` of a model or `.keras` file: an ML program of static shapes, for iOS 17 on.

    It lies at `save` (the name of the package, or a folder to put it into), else in the user's
    cache, where it is found again. Weights and computation are float16, unless `precision` says
    float32. Raises `ValueError` where the network has no Core ML form.
    """
    if (missing_package := missing()) is not None:
        raise TargetUnavailable(missing_package)
    with tempfile.TemporaryDirectory(prefix="nas_coreml_") as name:
        source, digest, imports = _file_of(model, Path(name))
        kept = f"{digest}-{precision}-batch{batch_size}-{metadata.version('coremltools')}"
        place = _place(save, f"{kept}.mlpackage")
        if save is None and _is_package(place):
            return place
        made = Path(name) / "converted.mlpackage"
        request = {
            "operation": "convert",
            "model": str(source),
            "imports": imports,
            "batch_size": batch_size,
            "precision": precision,
            "package": str(made),
        }
        ask(request, _CONVERT_S)
        if save is not None:
            _put(made, place)
            return place
        with spared():
            _put(made, place)
            return place
        apart = Path(tempfile.mkdtemp(prefix="nas_coreml_"))  # for as long as this process lives
        atexit.register(shutil.rmtree, apart, ignore_errors=True)
        return Path(shutil.move(made, apart / place.name))


def _put(made: Path, place: Path) -> None:
    with atomic_write(place) as partial:
        shutil.copytree(made, partial)


def ask(request: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """What `latency.apple.worker` answers, run in a new process with Keras on TensorFlow.

    Raises `ValueError` where the model is bad, `TargetUnavailable` where Core ML or the device
    fails, was killed or took more than `limit_s` seconds. What it prints is kept from the terminal.
    """
    try:
        answer = worker_process.ask(
            "latency.apple.worker", request, limit_s, {"KERAS_BACKEND": "tensorflow"}
        )
    except WorkerTimeout:
        raise TargetUnavailable(
            f"Core ML: {request['operation']} did not end within {limit_s:g} s; it was stopped"
        ) from None
    except WorkerDied as error:
        raise TargetUnavailable(f"Core ML: {request['operation']}: the process {error}") from None
    if "error" in answer:
        raise (ValueError if answer["error"] == "model" else TargetUnavailable)(answer["message"])
    return answer


def timed(answer: dict[str, Any], conditions: dict[str, Any]) -> Timing:
    """The timing from a worker's answer to "time": its plan says where operations run.

    Nothing times single operations: theirs are the median, shared as the plan estimates their cost.
    """
    samples = tuple(answer["samples_ms"])
    plan = answer.get("plan") or []
    places = [row["on"] for row in plan if row.get("on")]
    conditions = conditions | {
        "load_ms": answer.get("load_ms"),
        "clock": answer["clock"],
        "wall_median_ms": answer.get("wall_median_ms"),
        "operations_on": {place: places.count(place) for place in sorted(set(places))} or None,
        "plan": answer.get("plan_missing"),  # why there is none, where there is none
        **answer.get("state", {}),
        "date": utc_now(),
    }
    rows = operations(plan, float(np.median(samples)))
    return Timing(
        samples,
        conditions | stopwatch.stability(stopwatch.instabilities(samples)),
        Kind.MEASURED,
        per_op=rows or None,
        per_op_kind=Kind.PREDICTED if rows else None,
    )


def operations(plan: list[dict[str, Any]], total_ms: float) -> tuple[dict[str, Any], ...]:
    """`total_ms` shared out over the operations of a plan by their estimated costs.

    >>> operations([{"name": "a", "type": "conv", "on": "ane", "cost": 1.0}], 2.0)[0]["ms"]
    2.0
    """
    whole = sum(row["cost"] or 0 for row in plan)
    if not whole:
        return ()
    return tuple(
        {
            "name": row["name"],
            "type": row["type"],
            "ms": total_ms * (row["cost"] or 0) / whole,
            "on": row["on"],
            "within": "graph",
        }
        for row in plan
        if row["cost"] is not None
    )


def with_location(error: TargetUnavailable, package: Path) -> TargetUnavailable:
    """The error, saying where the converted network lies."""
    return TargetUnavailable(f"{error}; the converted network lies at {package}")


def output_of(command: list[str], limit_s: float) -> str:
    """What a command of the system prints, "" where it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit_s, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def system() -> str:
    """The operating system, in words for an error message."""
    return f"this is {platform.system()}"


def _file_of(model: Any, folder: Path) -> tuple[Path, str, list[str]]:
    """The `.keras` file of a model, what tells it apart, and the modules of its own layers."""
    path, own = keras_file.for_worker(model, folder, "Core ML")
    if isinstance(model, (str, Path)):
        with open(path, "rb") as file:
            return path, hashlib.file_digest(file, "sha256").hexdigest()[:16], own
    digest = hashlib.sha256(model.to_json().encode())  # the file holds the date
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return path, digest.hexdigest()[:16], own


def _place(save: str | None, name: str) -> Path:
    """Where the package is to lie; `ValueError` where something else lies there."""
    if save is None:
        place = cache_directory() / "coreml" / name
    else:
        place = Path(save).expanduser()
        place = place if place.suffix == ".mlpackage" else place / name
        if place.exists() and not _is_package(place):
            raise ValueError(f"save={save}: {place} exists and is no .mlpackage")
    return place


def _is_package(place: Path) -> bool:
    return place.is_dir() and (place / "Manifest.json").is_file()

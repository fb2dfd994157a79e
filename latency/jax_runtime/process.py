"""Asking JAX in a process of its own, for the caller may hold Keras on TensorFlow."""

import tempfile
from pathlib import Path
from typing import Any, NoReturn

from latency.networks import keras_file
from latency.system import worker_process
from latency.system.worker_process import WorkerDied, WorkerTimeout
from latency.target import DoesNotFit, TargetUnavailable

_WORKER = "latency.jax_runtime.worker"
_EXTRAS = {"tpu": "nas[tpu]", "cuda": "nas[gpu]"}  # what installs JAX for a platform


def ask(
    request: dict[str, Any],
    model: Any = None,
    *,
    environment: dict[str, str],
    limit_s: float,
) -> dict[str, Any]:
    """What `latency.jax_runtime.worker` answers to `request`, in a new process with Keras on JAX.

    request["operation"] is a function of that module ("devices", "time"), or of another module of
    the package latency ("tpu_compiler.compile.estimate"), called with the request and the model.
    request["platform"] is "tpu", "cuda" or "cpu". `environment` is put over this process's own.

    Raises `ValueError` where the model or the request is bad, `DoesNotFit` where the device's
    memory is too small, `TargetUnavailable` where JAX or the device is missing, where the process
    was killed and where it took more than `limit_s` seconds, and `RuntimeError`, with the worker's
    traceback, on everything else. Nothing of what JAX prints reaches the user's terminal.
    """
    with tempfile.TemporaryDirectory(prefix="nas_jax_") as folder:
        request = dict(request)
        if model is not None:
            path, request["imports"] = keras_file.for_worker(model, Path(folder), "JAX")
            request["model"] = str(path)
        try:
            answer = worker_process.ask(
                _WORKER, request, limit_s, environment | {"KERAS_BACKEND": "jax"}
            )
        except WorkerTimeout:
            raise TargetUnavailable(
                f"JAX did not answer within {limit_s:.0f} s ({request['operation']}); it was ended"
            ) from None
        except WorkerDied as error:
            raise TargetUnavailable(f"the JAX process {error}") from None
    if "error" in answer:
        _raise(answer, request)
    return answer


def _raise(answer: dict[str, Any], request: dict[str, Any]) -> NoReturn:
    kind, message = answer["error"], answer.get("message", "")
    if kind == "ValueError":
        raise ValueError(message)
    if kind == "DoesNotFit":
        raise DoesNotFit(message, answer.get("needed_mb"), answer.get("available_mb"))
    if kind == "TargetUnavailable":
        raise TargetUnavailable(message)
    if kind == "ImportError":
        extra = _EXTRAS.get(request.get("platform", ""), "nas[jax]")
        raise TargetUnavailable(f"JAX is missing ({message}): pip install '{extra}'")
    raise RuntimeError(f"{request['operation']} failed in the JAX process:\n{message}")

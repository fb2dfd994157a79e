"""Asking JAX in a process of its own, for the caller may hold Keras on TensorFlow."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from latency.networks import keras_file
from latency.target import DoesNotFit, TargetUnavailable

_EXTRAS = {"tpu": "nas[tpu]", "cuda": "nas[gpu]"}  # what installs JAX for a platform


def ask(
    request: dict[str, Any],
    model: Any = None,
    *,
    environment: dict[str, str],
    limit_s: float,
) -> dict[str, Any]:
    """What `latency.jax_runtime.worker` answers to `request`, run in a new process with Keras on
    JAX.

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
            path, request["imports"] = keras_file.hand_on(model, Path(folder), "JAX")
            request["model"] = str(path)
        text, code, noise = _run(request, Path(folder), environment, limit_s)
    try:
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise ValueError("not an object")
    except ValueError:
        raise TargetUnavailable(_death(code, noise)) from None
    if "error" in answer:
        _raise(answer, request)
    return answer


def _run(
    request: dict[str, Any], folder: Path, environment: dict[str, str], limit_s: float
) -> tuple[str, int, str]:
    """Runs the worker; its answer, its exit code and what it wrote to stderr."""
    given = environment | {
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join(
            [*filter(None, [environment.get("PYTHONPATH")]), *filter(None, sys.path)]
        ),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # -P: what lies in the current directory is not imported. Its own session: one signal ends all.
    with (
        open(folder / "answer", "w+b") as answer,
        open(folder / "noise", "w+b") as noise,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "latency.jax_runtime.worker"],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=noise,
            env=os.environ | given,
            start_new_session=True,
        ) as process,
    ):
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once; its noise says why
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()  # and stays open: the worker ends when this process does
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise TargetUnavailable(
                f"JAX did not answer within {limit_s:.0f} s ({request['operation']}); it was ended"
            ) from None
        finally:  # also on Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        answer.seek(0)
        noise.seek(0)
        return (
            answer.read().decode(errors="replace"),
            process.returncode,
            noise.read().decode(errors="replace"),
        )


def _death(code: int, noise: str) -> str:
    """One line on a worker that gave no answer."""
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += " (out of memory on this machine?)"
    else:
        how = f"ended with exit code {code} and no answer"
    last = [line.strip() for line in noise.splitlines() if line.strip()][-1:]
    return f"the JAX process {how}" + (f"; its last words: {last[0][:300]}" if last else "")


def _raise(answer: dict[str, Any], request: dict[str, Any]) -> None:
    kind, message = answer["error"], answer.get("message", "")
    if kind == "ValueError":
        raise ValueError(message)
    if kind == "DoesNotFit":
        raise DoesNotFit(message, answer.get("needed_mb"), answer.get("available_mb"))
    if kind == "TargetUnavailable":
        raise TargetUnavailable(message)
    if kind == "ImportError":
        extra = _EXTRAS.get(request.get("platform"), "nas[jax]")
        raise TargetUnavailable(f"JAX is missing ({message}): pip install '{extra}'")
    raise RuntimeError(f"{request['operation']} failed in the JAX process:\n{message}")

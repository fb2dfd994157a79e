"""LiteRT in a process of its own: a bad file may crash it, or take all memory or time there."""

import functools
import tempfile
from pathlib import Path
from typing import Any

from latency.networks import keras_file
from latency.system.worker_process import WorkerDied, WorkerProcess, WorkerTimeout

_CHECK_S = 30  # a sound network's load and first run take less
_CONVERT_S = 150  # imports Keras: 5 to 20 s, by how busy the machine is
_SHARE = 0.8  # of the memory that is free now


class Process(WorkerProcess):
    """A worker that runs functions of `latency.tflite.worker`."""

    def __init__(self, **environment: str):
        given = {"KERAS_BACKEND": "tensorflow", "OPENBLAS_NUM_THREADS": "1"}
        super().__init__("latency.tflite.worker", given | environment)

    def run(self, job: str, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """What the function `job` returns.

        Raises `ValueError` where it failed, died or took longer than `limit_s`, in one line that
        continues "FILE: ".
        """
        memory_mb = _SHARE * keras_file.free_mb()
        request = {"job": job, "arguments": arguments, "memory_mb": memory_mb, "limit_s": limit_s}
        try:
            answer = self.ask(request, limit_s)
        except WorkerTimeout:
            raise ValueError(f"LiteRT did not get through one run within {limit_s:.0f} s") from None
        except WorkerDied as error:
            raise ValueError(
                f"LiteRT crashes on it ({error.cause}): a damaged file, or one that needs more "
                f"than the {memory_mb / 1024:.1f} GB that it was given"
            ) from None
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


def check(path: str | Path, threads: int = 1) -> None:
    """Loads and runs a `.tflite` file in another process first; `ValueError`, one line, if bad."""
    path = Path(path)
    _check(str(path), threads, *_state(path))


@functools.lru_cache(maxsize=256)
def _check(name: str, threads: int, size: int, *_: int) -> None:
    """`check` of one state of a file: a sound one is not asked for again in this process."""
    start = keras_file.first_bytes(Path(name))
    if start[4:8] != b"TFL3":
        raise ValueError(
            f"{name}: not a LiteRT file: {keras_file.format_of(start)}, and no identifier TFL3 in"
            " it"
        )
    free_mb = keras_file.free_mb()
    if 2 * size / 2**20 > free_mb:  # the runtime keeps a packed copy of the weights
        raise ValueError(
            f"{name}: {size / 2**30:.1f} GB; to run it takes twice that, and {free_mb / 1024:.1f}"
            " GB of memory are free here"
        )
    # What a bad file reads by mistake is not zero there, as it might not be later.
    with Process(MALLOC_PERTURB_="165") as process:
        try:
            process.run("check", _CHECK_S, file=str(Path(name).absolute()), threads=threads)
        except ValueError as error:
            raise ValueError(_about(name, error)) from None


def memory_mb(path: Path, threads: int = 1) -> float | None:
    """What loading and running a `.tflite` file adds to the memory of a new process, at its peak.

    Weights, their packed copy and tensors. None where the system does not report it; `ValueError`
    as of `check`.
    """
    with Process() as process:
        file = str(path.absolute())
        return process.run("check", _CHECK_S, file=file, threads=threads)["memory_mb"]


def convert(path: str | Path) -> bytes:
    """The `.tflite` file of a `.keras` file, loaded (in safe mode) and run in another process."""
    path = Path(path)
    return _convert(str(path), *_state(path))


@functools.lru_cache(maxsize=8)
def _convert(name: str, *_: int) -> bytes:
    """`convert` of one state of a file: several targets ask for it."""
    path = Path(name)
    keras_file.check(path)
    with tempfile.TemporaryDirectory(prefix="nas_litert_") as folder, Process() as process:
        into = Path(folder) / "model.tflite"
        files = {"file": str(path.absolute()), "into": str(into)}
        try:
            process.run("convert", _CONVERT_S, **files, modules=keras_file.registered())
        except ValueError as error:
            raise ValueError(_about(name, error)) from None
        return into.read_bytes()


def convert_graph(folder: str | Path) -> bytes:
    """The `.tflite` file of the function that a SavedModel serves, made in another process."""
    with tempfile.TemporaryDirectory(prefix="nas_litert_") as made, Process() as process:
        into = Path(made) / "model.tflite"
        files = {"folder": str(Path(folder).absolute()), "into": str(into)}
        try:
            process.run("convert_graph", _CONVERT_S, **files)
        except ValueError as error:
            raise ValueError(_about(str(folder), error)) from None
        return into.read_bytes()


def fixed(path: str | Path, shapes: dict[str, Any], signature: str | None = None) -> bytes:
    """`latency.tflite.fixed_shapes.fixed` of a file, in another process."""
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="nas_litert_") as folder, Process() as process:
        into = Path(folder) / "model.tflite"
        files = {"file": str(path.absolute()), "into": str(into)}
        try:
            process.run("fix", _CONVERT_S, **files, shapes=shapes, signature=signature)
        except ValueError as error:
            raise ValueError(_about(str(path), error)) from None
        return into.read_bytes()


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does: its size, date and number."""
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return state.st_size, state.st_mtime_ns, state.st_ino


def _about(name: str, error: ValueError) -> str:
    """What is wrong with a file, which is named once and as the user names it."""
    return f"{name}: {str(error).removeprefix(f'{Path(name).absolute()}: ')}"

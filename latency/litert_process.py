"""LiteRT in a process of its own: a bad file may crash it, or take all memory or time there."""

import contextlib
import functools
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

_CHECK_S = 30  # a sound network's load and first run take less
_CONVERT_S = 150  # imports Keras: 5 to 20 s, by how busy the machine is
_SHARE = 0.8  # of the memory that is free now
_KERAS_PARTS = {"metadata.json", "config.json"}  # what every .keras file holds
_BROKEN_ZIP = (  # what Python's zipfile raises on damaged archives
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
)
_CONFIG_MB = 100  # an architecture of ten thousand layers takes 20


class Process:
    """A worker that is asked job by job; when a job kills it, the next one starts another."""

    def __init__(self, **environment: str):
        self._worker: subprocess.Popen | None = None
        self._environment = environment

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        self._end()

    def ask(self, job: str, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """What a function of `latency.litert_worker` answers.

        Raises `ValueError` where it failed, died or took longer than `limit_s`, in one line that
        goes on after "FILE: ".
        """
        if self._worker is None:
            self._start()
        worker = self._worker
        memory_mb = _SHARE * free_mb()
        request = {"job": job, "arguments": arguments, "memory_mb": memory_mb, "limit_s": limit_s}
        late = threading.Timer(limit_s, self._kill)
        try:
            late.start()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(request).encode() + b"\n")
                worker.stdin.flush()
            line = worker.stdout.readline()
        except BaseException:  # Ctrl-C
            self._end()
            raise
        finally:
            in_time = late.is_alive()
            late.cancel()
        if not line.endswith(b"\n"):
            self._end()
            if in_time:
                raise ValueError(_death(worker.returncode, memory_mb))
            raise ValueError(f"LiteRT did not get through one run within {limit_s:.0f} s")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def _start(self) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        given = {
            "KERAS_BACKEND": "tensorflow",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": path,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        # -P: what lies in the current directory is not imported. Its own session: see _end.
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "latency.litert_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | given | self._environment,
            start_new_session=True,
        )

    def _kill(self) -> None:
        worker = self._worker
        if worker is not None:
            with contextlib.suppress(ProcessLookupError, AttributeError):  # Windows has no killpg
                os.killpg(worker.pid, signal.SIGKILL)
            worker.kill()

    def _end(self) -> None:
        if self._worker is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that died is let say how; one that waits for a job ends with its stdin.
            with contextlib.suppress(BrokenPipeError):
                self._worker.stdin.close()
            self._worker.wait(0.5)
        self._kill()
        self._worker.wait()
        self._worker.stdout.close()
        self._worker = None


def check(path: str | Path, threads: int = 1) -> None:
    """Loads and runs a `.tflite` file in another process first; `ValueError`, one line, if bad."""
    path = Path(path)
    _check(str(path), threads, *_state(path))


@functools.lru_cache(maxsize=256)
def _check(name: str, threads: int, size: int, *_: int) -> None:
    """`check` of one state of a file: a sound one is not asked for again in this process."""
    start = _start_of(Path(name))
    if start[4:8] != b"TFL3":
        raise ValueError(
            f"{name}: not a LiteRT file: {_looks_like(start)}, and no identifier TFL3 in it"
        )
    if 2 * size / 2**20 > free_mb():  # the runtime keeps a packed copy of the weights
        raise ValueError(
            f"{name}: {size / 2**30:.1f} GB; to run it takes twice that, and {free_mb() / 1024:.1f}"
            " GB of memory are free here"
        )
    # What a bad file reads by mistake is not zero there, as it might not be later.
    with Process(MALLOC_PERTURB_="165") as process:
        try:
            process.ask("check", _CHECK_S, file=str(Path(name).absolute()), threads=threads)
        except ValueError as error:
            raise ValueError(_about(name, error)) from None


def memory_mb(path: Path, threads: int = 1) -> float | None:
    """What loading and running a `.tflite` file adds to the memory of a new process, at its peak.

    Weights, their packed copy and tensors. None where the system does not tell; `ValueError` as of
    `check`.
    """
    with Process() as process:
        file = str(path.absolute())
        return process.ask("check", _CHECK_S, file=file, threads=threads)["memory_mb"]


def convert(path: str | Path) -> bytes:
    """The `.tflite` file of a `.keras` file, loaded (in safe mode) and run in another process."""
    path = Path(path)
    return _convert(str(path), *_state(path))


@functools.lru_cache(maxsize=8)
def _convert(name: str, *_: int) -> bytes:
    """`convert` of one state of a file: several targets ask for it."""
    path = Path(name)
    _look_at_archive(path)
    with tempfile.TemporaryDirectory(prefix="nas_litert_") as folder, Process() as process:
        into = Path(folder) / "model.tflite"
        files = {"file": str(path.absolute()), "into": str(into)}
        try:
            process.ask("convert", _CONVERT_S, **files, modules=_layer_modules())
        except ValueError as error:
            raise ValueError(_about(name, error)) from None
        return into.read_bytes()


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does: its size, date and number."""
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return state.st_size, state.st_mtime_ns, state.st_ino


def _layer_modules() -> list[str]:
    """The modules that registered layers with this process's Keras, which a file may name."""
    keras = sys.modules.get("keras")
    if keras is None:
        return []
    modules = {part.__module__ for part in keras.saving.get_custom_objects().values()}
    return sorted(name for name in modules if name.split(".")[0] not in ("keras", "__main__"))


def free_mb() -> float:
    """Memory that can be had without swapping; 2000 MB where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) / 1024
    return 2000.0


def _look_at_archive(path: Path) -> None:
    """Refuses what is no .keras file, or unpacks to more than fits, before Keras sees it."""
    start = _start_of(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _look_at_parts(path, archive)
    except _BROKEN_ZIP as error:
        what = "a damaged .keras file"
        if not start.startswith(b"PK"):
            what = f"not a .keras file: {_looks_like(start)}"
        raise ValueError(f"{path}: {what} ({' '.join(str(error).split())})") from None


def _look_at_parts(path: Path, archive: zipfile.ZipFile) -> None:
    parts = {part.filename: part for part in archive.infolist()}
    missing = sorted(_KERAS_PARTS - parts.keys())
    if missing:
        raise ValueError(f"{path}: not a .keras file: a zip archive without {missing[0]}")
    unpacked_mb = sum(part.file_size for part in parts.values()) / 2**20
    if 2 * unpacked_mb > free_mb():
        raise ValueError(
            f"{path}: unpacks to {unpacked_mb / 1024:.1f} GB, and {free_mb() / 1024:.1f} GB of "
            "memory are free here"
        )
    config_mb = parts["config.json"].file_size / 2**20
    if config_mb > _CONFIG_MB:
        raise ValueError(
            f"{path}: an architecture of {config_mb:.0f} MB; expected at most {_CONFIG_MB}"
        )
    for name in parts:
        with archive.open(name) as part:  # to the end, where its checksum is told
            while part.read(2**20):
                pass
    try:
        json.loads(archive.read("config.json"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: its config.json cannot be read: {error}") from None


def _start_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def _looks_like(start: bytes) -> str:
    known = {
        b"\x89PNG": "a PNG picture",
        b"\xff\xd8\xff": "a JPEG picture",
        b"PK": "a zip archive (.keras and .pt files are)",
        b"\x89HDF": "an HDF5 file (as Keras wrote before .keras)",
        b"\x1f\x8b": "a gzip archive",
        b"%PDF": "a PDF file",
        b"\x7fELF": "a program",
        b"\x80": "a Python pickle",
    }
    for magic, what in known.items():
        if start.startswith(magic):
            return what
    if not start:
        return "an empty file"
    return f"it starts with {start[:8]!r}"


def _about(name: str, error: ValueError) -> str:
    """What is wrong with a file, which is named once and as the user names it."""
    return f"{name}: {str(error).removeprefix(f'{Path(name).absolute()}: ')}"


def _death(code: int, memory_mb: float) -> str:
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return (
        f"LiteRT crashes on it ({how}): a damaged file, or one that needs more than the "
        f"{memory_mb / 1024:.1f} GB that it was given"
    )

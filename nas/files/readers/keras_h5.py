"""Keras' networks in HDF5 (.h5, .hdf5), of Keras 2 and 3: read, never run, never written.

HDF5's library may crash on a damaged file: another process looks at it first.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from latency.networks import keras_file
from latency.system import worker_process
from latency.system.worker_process import WorkerDied, WorkerTimeout

SUFFIXES = (".h5", ".hdf5")
_WORKER = "nas.files.readers.keras_h5"
_LOOK_S = 60


def read(path: pathlib.Path) -> Any:
    """The `keras.Model` in a file; `ValueError`, one line, where there is none."""
    from keras.src.legacy.saving import legacy_h5_format

    from nas.files.readers import keras2_config

    stored = look(path)
    with _opened(path) as file:
        described = file.attrs.get("model_config")
        if described is None or "model_weights" not in file:
            raise ValueError(
                f"{path}: weights without a network; give both, as FAMILY:VARIANT,weights={path}"
            )
        model = keras2_config.built(keras2_config.parsed(described, str(path)), stored, str(path))
        try:
            legacy_h5_format.load_weights_from_hdf5_group(file["model_weights"], model)
        except Exception as error:  # whatever is missing or of another shape
            raise ValueError(
                f"{path}: its weights do not fit its layers: {keras_file.cause(error)}"
            ) from error
    return model


def look(path: pathlib.Path) -> int:
    """How many numbers a file stores, all of which another process could read; `ValueError`."""
    start = keras_file.first_bytes(path)
    if not start.startswith(b"\x89HDF\r\n\x1a\n"):
        raise ValueError(f"{path}: not an HDF5 file: {keras_file.format_of(start)}")
    limit_s = _LOOK_S + path.stat().st_size / 2**24
    try:
        answer = worker_process.ask(_WORKER, {"path": str(path.absolute())}, limit_s)
    except WorkerTimeout:
        raise ValueError(f"{path}: HDF5 does not read it within {limit_s:.0f} s") from None
    except WorkerDied as error:
        raise ValueError(f"{path}: a damaged HDF5 file: it crashes HDF5 ({error.cause})") from None
    if "error" in answer:
        raise ValueError(f"{path}: a damaged HDF5 file: {answer['error']}")
    return answer["numbers"]


def _read_all(request: dict[str, Any]) -> dict[str, Any]:
    """In the worker: reads all of a file; how many numbers it holds, or what is wrong with it."""
    import h5py

    path: str = request["path"]
    numbers, free = 0, keras_file.free_mb() * 2**20 / 2
    try:
        with h5py.File(path, "r") as file:
            groups = [file]
            while groups:
                group = groups.pop()
                dict(group.attrs)
                for name in group:
                    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                        raise ValueError(f"{name} is a link")
                    item = group[name]
                    if isinstance(item, h5py.Group):
                        groups.append(item)
                        if len(groups) > 10**6:
                            raise ValueError("its groups go round")
                        continue
                    if item.external or item.is_virtual:
                        raise ValueError(f"{name} lies in another file")
                    numbers += item.size
                    if item.nbytes + 4 * numbers > free:
                        raise ValueError("it unpacks to more than the free memory")
                    item[()]
    except Exception as error:  # whatever HDF5 finds
        return {"error": " ".join(str(error).split())[:300] or type(error).__name__}
    return {"numbers": numbers}


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    import h5py

    with h5py.File(path, "r") as file:
        yield file


if __name__ == "__main__":
    worker_process.serve(_read_all)

"""The state of a training on the disk: one .npz file, replaced as a whole, never a pickle.

It holds the arrays of the engine, those of the best epoch, the history, and which training it is
of.
"""

import dataclasses
import json
import os
import pathlib
import time
import zipfile
from typing import Any

import numpy as np

from latency.system.atomic_write import atomic_write
from latency.system.spared import spared
from nas.training.state import Epoch, State

LARGEST_SHARE = 0.05  # of the time may go into writing, however short the interval


@dataclasses.dataclass
class Checkpoint:
    """Keeps the state of one training in a file, every `seconds` and at the end of each epoch.

    path: of the .npz file. identity: all that decides the result, as JSON: the file of another
    training is refused. seconds: between two times that it is written, apart from epochs.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kept = Checkpoint(pathlib.Path(folder, "a.npz"), {"seed": 0})
    ...     kept.write(State(step=7, arrays=[np.zeros(3)]))
    ...     kept.read().step
    7
    """

    path: pathlib.Path
    identity: dict[str, Any]
    seconds: float = 60.0
    _written: float = dataclasses.field(default_factory=time.monotonic)
    _cost: float = 0.0

    def read(self) -> State | None:
        """The state kept, or None; `ValueError` if it is damaged or of another training."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            content = json.loads(arrays.pop("state").tobytes())
            tuples = [{n: tuple(e[n]) for n in ("losses", "rates")} for e in content["history"]]
            history = [Epoch(**e | t) for e, t in zip(content["history"], tuples, strict=True)]
            parts = {
                part: [arrays[f"{part}_{n}"] for n in range(content[part])]
                for part in ("arrays", "best")
            }
            now = {name: arrays[name].tolist() for name in ("losses", "rates")}
            step, seconds, identity = (content[name] for name in ("step", "seconds", "identity"))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self.path} is damaged ({error}); delete it to begin again"
            ) from error
        expected = json.loads(json.dumps(self.identity))
        if identity != expected:
            raise ValueError(
                f"{self.path} is of another training: {difference(identity, expected)}; "
                "delete it to begin again, or name another --out"
            )
        return State(step=step, seconds=seconds, history=history, **now, **parts)

    def write(self, state: State) -> None:
        """Replace what is kept; where the process is killed in between, the earlier state stays."""
        since = time.monotonic()
        content = {
            "identity": self.identity,
            "step": state.step,
            "seconds": state.seconds,
            "history": [dataclasses.asdict(epoch) for epoch in state.history],
            "arrays": len(state.arrays),
            "best": len(state.best),
        }
        arrays = {f"arrays_{n}": array for n, array in enumerate(state.arrays)}
        arrays |= {f"best_{n}": array for n, array in enumerate(state.best)}
        arrays |= {name: np.array(getattr(state, name), float) for name in ("losses", "rates")}
        arrays["state"] = np.frombuffer(json.dumps(content).encode(), np.uint8)
        kept = spared(f"the checkpoint {self.path}")  # it trains on
        with kept, atomic_write(self.path) as partial, open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        self._written = time.monotonic()
        self._cost = self._written - since

    def due(self) -> bool:
        """Whether it is time to write."""
        least = max(self.seconds, self._cost / LARGEST_SHARE)
        return time.monotonic() - self._written >= least

    def delete(self) -> None:
        """Remove the file, as a training that is finished does."""
        self.path.unlink(missing_ok=True)


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first thing in which two identities differ, in words.

    >>> difference({"seed": 0}, {"seed": 1})
    'seed is 0 there and 1 here'
    """
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            return f"{name} is {found.get(name)!r} there and {expected.get(name)!r} here"
    return "it was written by another version"

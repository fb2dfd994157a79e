"""Every compression method on every network: what each makes smaller, and what it costs."""

import dataclasses
import json
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from compress.method import Method, NotApplicable
from compress.method import compress as run_methods
from latency.system.atomic_write import atomic_write
from latency.system.json_records import write_json
from latency.target import Target, TargetUnavailable
from nas import interruption
from nas.compression import before_and_after
from nas.compression.cell import Cell
from nas.compression.examples import examples
from nas.events import Listener, Message, ignore
from nas.files.writers.written_file import CannotWrite, sizes
from nas.networks import build
from nas.profiling import history
from nas.tasks.task import Task
from nas.training import loop

TRAINING, TUNING = 3, 1  # epochs of a network, and of each compression of it
LEARNING_RATE = 1e-3  # of a compression, and of the same network trained as long without
EXAMPLES = 128  # that methods look at
SAVES = 0.95  # of the original's bytes: a file that is not below it saves nothing
FILE = "matrix.json"  # in the folder: all that is known, after each cell


@dataclasses.dataclass(frozen=True, repr=False)
class Matrix:
    """All cells, networks first; `repr` is a table."""

    cells: tuple[Cell, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """The cells as plain values."""
        return [cell.to_json() for cell in self.cells]

    def __repr__(self) -> str:
        from nas.report.tables import matrix

        return matrix.table(self.cells)


@interruption.interruptible()
def matrix(
    networks: Mapping[str, Any],
    methods: Mapping[str, Method],
    *,
    tasks: Sequence[Callable[[], Task]],
    out: str | pathlib.Path,
    target: Target | None = None,
    on_event: Listener = ignore,
) -> Matrix:
    """Try each method on each network, which is trained for a few epochs before.

    Args:
        networks: Name -> Config.
        methods: Name -> method.
        tasks: Functions that load the tasks; a network is trained on the first that it suits.
        out: The folder that keeps every finished cell and the trained networks: the same call goes
            on where one that was killed ended. What failed, or lacked its data, is tried again.
        target: What to time each .tflite file on, before and after.
        on_event: Called with a `Message` for each cell.
    """
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    finished = _Finished(folder, target)
    loaded: dict[int, Task | ValueError] = {}
    cells = []
    for name, config in networks.items():
        column = _Network(name, config, tasks, loaded, folder, target)
        for method_name, method in methods.items():
            key = f"{name} {method_name}", f"{config!r} {method!r}"
            cell = finished.get(*key)
            if cell is None:
                cell = dataclasses.replace(column.cell(method), method=method_name)
                finished.put(*key, cell)
                on_event(Message(str(cell)))
            cells.append(cell)
    return Matrix(tuple(cells))


class _Finished:
    """The cells in the folder, by what they are of; the file is whole at every moment."""

    def __init__(self, folder: pathlib.Path, target: Target | None) -> None:
        self._path = folder / FILE
        self._suffix = f" {target!r} {TRAINING} {TUNING} {LEARNING_RATE} {EXAMPLES}"
        self._content: dict[str, Any] = {}
        if self._path.exists():
            self._content = json.loads(self._path.read_text())

    def get(self, name: str, identity: str) -> Cell | None:
        """The cell, where it is finished and of the same network, method, target and epochs."""
        found = self._content.get(name)
        if found is None or found["identity"] != identity + self._suffix:
            return None
        cell = Cell(**found["cell"])
        return None if cell.failed or cell.task is None else cell

    def put(self, name: str, identity: str, cell: Cell) -> None:
        self._content[name] = {"identity": identity + self._suffix, "cell": cell.to_json()}
        write_json(self._path, self._content)


class _Network:
    """One network, trained when its first cell is asked for."""

    def __init__(
        self,
        name: str,
        config: Any,
        tasks: Sequence[Callable[[], Task]],
        loaded: dict[int, Task | ValueError],
        folder: pathlib.Path,
        target: Target | None,
    ) -> None:
        self.name, self._config, self._folder, self._target = name, config, folder, target
        self._tasks, self._loaded = tasks, loaded
        self._ready: tuple[Any, Task, dict[str, Any]] | None = None
        self._stem = folder

    def cell(self, method: Method) -> Cell:
        """What `method` makes of the network."""
        empty = Cell(self.name, repr(method))
        try:
            if self._ready is None:
                self._ready = self._trained()
        except ValueError as error:  # its data is not at hand
            return dataclasses.replace(empty, reason=str(error))
        model, task, qualities = self._ready
        empty = dataclasses.replace(empty, task=task.name, **qualities)
        try:
            return dataclasses.replace(empty, **self._compressed(model, task, method))
        except (NotApplicable, CannotWrite) as error:
            return dataclasses.replace(empty, reason=str(error))
        except (ValueError, RuntimeError, TargetUnavailable) as error:
            return dataclasses.replace(empty, failed=f"{type(error).__name__}: {error}")

    def _trained(self) -> tuple[Any, Task, dict[str, Any]]:
        """The network with its weights of the folder, or trained; its task; its qualities."""
        task = suited_task(self._config, _each(self._tasks, self._loaded))
        self._config = build.for_task(self._config, task.fields, task.name)
        model = build.build(self._config)
        name = re.sub(r"\W+", "_", self.name)
        self._stem = self._folder / f"{name}_{build.digest(repr(self._config))}"
        kept, about = (self._stem.with_suffix(end) for end in (".weights.h5", ".json"))
        if kept.exists() and about.exists():
            model.load_weights(kept)
            return model, task, json.loads(about.read_text())
        loop.fit(model, task, TRAINING, 0)
        longer = build.build(self._config)
        longer.set_weights(model.get_weights())
        loop.fit(longer, task, TUNING, 0, learning_rate=LEARNING_RATE)
        qualities = {
            "quality_before": loop.evaluate(model, task),
            "quality_longer": loop.evaluate(longer, task),
        }
        with atomic_write(kept) as partial:
            model.save_weights(partial)
        write_json(about, qualities)
        return model, task, qualities

    def _compressed(self, model: Any, task: Task, method: Method) -> dict[str, Any]:
        def fit(prepared: Any, update: Callable[[int, int], bool]) -> None:
            loop.fit(prepared, task, TUNING, 0, learning_rate=LEARNING_RATE, update=update)

        data = examples(task, model, EXAMPLES, 0)
        done = run_methods(model, [method], fit if method.trains else None, data)
        found: dict[str, Any] = {
            "quality": loop.evaluate(done.model, task),
            "params_ratio": done.model.count_params() / model.count_params(),
        }
        with tempfile.TemporaryDirectory(prefix="nas_matrix_") as folder:
            after = pathlib.Path(folder, "after")

            def file_sizes(suffix: str) -> dict[str, Any]:
                before = self._stem.with_suffix(suffix)
                if not before.exists():
                    before_and_after.write_one(before, model, self._config, None, None)
                written = before_and_after.write_one(
                    after.with_suffix(suffix), done.model, self._config, done.record, data
                )
                return {
                    "container": suffix,
                    "size_ratio": written["bytes"] / sizes(before)[0],
                    "bits_per_weight": written["bits_per_weight"],
                    "note": "; ".join(sorted(set(written["left"].values()))) or None,
                }

            found |= file_sizes(".tflite")
            if found["size_ratio"] > SAVES and done.record.weights:
                found |= _elsewhere(file_sizes)
            if self._target is not None:
                files = {"before": self._stem, "after": after}
                files = {name: file.with_suffix(".tflite") for name, file in files.items()}
                one, two = history.profile(self._target, files)
                found["latency_ratio"] = two.median_ms / one.median_ms
                found["latency_kind"] = str(two.kind)
        return found


def _elsewhere(file_sizes: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The figures of the .mlpackage, where its weights on few values save what .tflite cannot."""
    try:
        found = file_sizes(".mlpackage")
    except (ValueError, ImportError) as error:
        return {"note": f"no bytes saved as .tflite, and no .mlpackage: {error}"}
    return found if found["size_ratio"] <= SAVES else {"note": "no bytes saved in any file"}


def _each(
    tasks: Sequence[Callable[[], Task]], loaded: dict[int, Task | ValueError]
) -> Iterable[Task | ValueError]:
    """The tasks, each loaded once, or the error where its data is not at hand."""
    for place, load in enumerate(tasks):
        if place not in loaded:
            try:
                loaded[place] = load()
            except ValueError as error:
                loaded[place] = error
        yield loaded[place]


def suited_task(config: Any, tasks: Iterable[Task | ValueError]) -> Task:
    """The first task that decides fields which a Config has, and whose outputs its network gives.

    Raises `ValueError`, that of the last task, where there is none.
    """
    from families.layers import shapes_only

    unsuited = ValueError("no task to train on")
    for task in tasks:
        if isinstance(task, ValueError):
            unsuited = task
            continue
        try:
            suited = build.for_task(config, task.fields, task.name)
            with shapes_only():
                loop.check(sys.modules[type(config).__module__].build(suited), task)
            return task
        except ValueError as error:
            unsuited = error
    raise unsuited

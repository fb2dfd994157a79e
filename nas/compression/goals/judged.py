"""Files judged on examples that had no part in making them, one half to choose by, one to prove."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from compress.examples.data import Data, taken
from nas.compression.before_and_after import file_outputs
from nas.compression.examples import examples
from nas.tasks.task import Task
from nas.training.batches import arrays_of, count, prepared

MOST = 1000  # examples of each half
RESAMPLED = 1000  # times, for an interval
INTERVAL = (5, 95)  # percent
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Drop:
    """Quality of a file beside the original's on the same examples.

    points: what is lost, of 100 where the metric is a share, else percent of its value. low, high:
    of a paired bootstrap over the examples, 90 % of them. spread: its standard deviation.
    """

    before: float
    after: float
    points: float
    low: float
    high: float
    spread: float

    def to_json(self) -> dict[str, float]:
        """As plain data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Examples in three parts that share none: to round on, to choose by, to prove with.

    task: the one whose training part is trained and rounded on.
    With labels quality is the task's own. Without, it is the agreement with the original: the
    share of examples with the same answer, or, where outputs are no classes, 1 less the error of
    the outputs, of what they vary by.
    """

    task: Task
    rounding: Data
    parts: tuple[tuple[Any, Any], tuple[Any, Any]]
    metric: str
    percent: bool
    higher_is_better: bool
    score: Callable[[Callable, Any, Any], np.ndarray]
    average: Callable[[np.ndarray], float]
    predict: Callable[[Any], Any]

    def scores(self, file: pathlib.Path | None, part: int, model: Any) -> np.ndarray:
        """Of each example of a part; file: None for the network itself."""
        inputs, targets = self.parts[part]
        run = self.predict if file is None else file_outputs(file, model)
        ready = prepared(model)
        found = []
        for start in range(0, count((inputs, None)), BATCH):
            some = slice(start, start + BATCH)
            outputs: dict[int, Any] = {}

            def predict(given: Any, outputs: dict = outputs) -> Any:
                if id(given) not in outputs:
                    outputs[id(given)] = arrays_of(run(ready(given)))
                return outputs[id(given)]

            found.append(self.score(predict, taken(inputs, some), taken(targets, some)))
        return np.concatenate(found)

    def drop(self, before: np.ndarray, after: np.ndarray, seed: int = 0) -> Drop:
        """What the scores `after` lose against `before`, of the same examples in order."""
        random = np.random.default_rng(seed)
        rows = random.integers(len(before), size=(RESAMPLED, len(before)))
        tried = np.array([self._points(before[row], after[row]) for row in rows])
        low, high = np.percentile(tried, INTERVAL)
        return Drop(
            self.average(before),
            self.average(after),
            self._points(before, after),
            float(low),
            float(high),
            float(tried.std()),
        )

    def _points(self, before: np.ndarray, after: np.ndarray) -> float:
        was, now = self.average(before), self.average(after)
        lost = was - now if self.higher_is_better else now - was
        return 100 * lost if self.percent else 100 * lost / max(abs(was), 1e-12)


def with_more_to_judge(task: Task, seed: int) -> Task:
    """The task with enough examples to judge by: up to 3/4 of all, as few tell no point apart.

    >>> x, y = np.zeros((90, 2), np.float32), np.arange(90) % 3
    >>> more = with_more_to_judge(Task(train=(x, y), valid=(x[:10], y[:10])), seed=0)
    >>> len(more.train[0]), len(more.valid[0])
    (25, 75)
    """
    have, rest = count(task.valid), count(task.train)
    missing = min(2 * MOST, 3 * (have + rest) // 4) - have
    leaves = (task.train[0], task.valid[0])
    if missing <= 0 or not all(_in_memory(one) for one in leaves):
        return task
    order = np.random.default_rng(seed).permutation(rest)
    moved, left = order[:missing], np.sort(order[missing:])
    train: Any = tuple(taken(part, left) for part in task.train)
    valid: Any = tuple(
        None if own is None else _both(own, taken(part, moved))
        for own, part in zip(task.valid, task.train, strict=True)
    )
    return dataclasses.replace(
        task, train=train, valid=valid, recipe=f"{task.recipe}; {missing} more to judge by"
    )


def judged(model: Any, task: Task, examples_count: int, seed: int) -> Judged:
    """The parts of a task's examples; `ValueError` where there are too few to judge by."""
    random = np.random.default_rng(seed)
    if task.labelled:
        inputs, targets = task.valid
        order = random.permutation(count(task.valid))[: 2 * MOST]
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        score = _of_task(model, task)
        measure = task.metric, task.percent, task.higher_is_better
        average = task.average
    else:
        inputs = task.train[0]  # without labels it may be judged by the same, so is not added
        order = random.permutation(count((inputs, None)))
        quarter = min(len(order) // 4, MOST)
        halves = order[:quarter], order[quarter : 2 * quarter]
        rest = taken(inputs, order[2 * quarter :])
        task = dataclasses.replace(task, train=(rest, None), valid=(rest, None))
        targets = None
        score, average, name = _agreement(model)
        measure = name, True, True
    if min(map(len, halves)) < 10:
        raise ValueError(
            f"{len(order)} examples to judge by; a goal needs 40, better 400: some to round on,"
            " some to choose by, some to prove it"
        )
    first, second = ((taken(inputs, half), taken(targets, half)) for half in halves)
    data = examples(task, model, examples_count, seed)
    assert data is not None  # there is a task
    return Judged(
        task, data, (first, second), *measure, score, average, lambda x: model(x, training=False)
    )


def _of_task(model: Any, task: Task) -> Callable[[Callable, Any, Any], np.ndarray]:
    def score(predict: Callable, inputs: Any, targets: Any) -> np.ndarray:
        return np.asarray(task.scorer(model, predict)(inputs, targets), np.float64)

    return score


def _agreement(model: Any) -> tuple[Callable, Callable[[np.ndarray], float], str]:
    """(scores, their average, what it is called) of outputs beside those of the network itself."""
    import keras

    outputs = keras.tree.flatten(model.output)
    classes = len(outputs) == 1 and len(outputs[0].shape) == 2 and (outputs[0].shape[1] or 0) > 1

    def both(predict: Callable, inputs: Any) -> list[tuple[np.ndarray, ...]]:
        own = keras.tree.flatten(arrays_of(model(prepared(model)(inputs), training=False)))
        found = keras.tree.flatten(predict(inputs))
        return [
            (np.asarray(a, np.float64), np.asarray(b, np.float64))
            for a, b in zip(own, found, strict=True)
        ]

    def same_answer(predict: Callable, inputs: Any, targets: Any) -> np.ndarray:
        ((own, found),) = both(predict, inputs)
        return (own.argmax(1) == found.argmax(1)).astype(np.float64)

    def errors(predict: Callable, inputs: Any, targets: Any) -> np.ndarray:
        """(examples, outputs, 2): squared errors, and squares about the mean of the batch."""
        rows = []
        for own, found in both(predict, inputs):
            axes = tuple(range(1, own.ndim))
            wrong = np.square(own - found).mean(axes)
            spread = np.square(own - own.mean(0)).mean(axes)
            rows.append(np.stack([wrong, spread], -1))
        return np.stack(rows, 1)

    def likeness(scores: np.ndarray) -> float:
        wrong, spread = scores.mean(0).T
        return float(1 - np.sqrt(np.mean(wrong / np.maximum(spread, 1e-12))))

    if classes:
        return same_answer, lambda scores: float(scores.mean()), "same answers"
    return errors, likeness, "likeness of outputs"


def _in_memory(tree: Any) -> bool:
    leaves = list(tree.values()) if isinstance(tree, dict) else [tree]
    return all(isinstance(one, np.ndarray) for one in leaves)


def _both(first: Any, second: Any) -> Any:
    if isinstance(first, dict):
        return {name: np.concatenate([np.asarray(first[name]), second[name]]) for name in first}
    return np.concatenate([np.asarray(first), np.asarray(second)])

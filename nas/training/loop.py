"""The one training loop: the proxy training of a search, and `nas train`.

What costs time in a small network is tracing and small operations, not arithmetic: so the step is
one function of our own, on TensorFlow (nas/training/tensorflow_engine.py) and on JAX
(nas/training/jax_engine.py).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from compress.examples.data import taken
from nas import interruption
from nas.interruption import Interrupted
from nas.tasks.scoring.classes import is_classification
from nas.tasks.task import Task, Tree, are_probabilities
from nas.training.batches import (
    arrays_of,
    count,
    in_float32,
    labels,
    mapped,
    prepared,
    single,
    valid_batch,
)
from nas.training.checkpoint import Checkpoint
from nas.training.engines import Engine, Judge, engine
from nas.training.recipe import Recipe, identity, recipe_of
from nas.training.state import Epoch, Now, State

__all__ = [
    "Epoch",
    "Interrupted",
    "Now",
    "Recipe",
    "State",
    "Training",
    "evaluate",
    "fit",
    "identity",
    "recipe_of",
]

PARTS = 50  # of an epoch, whose means are kept
Judgement = Callable[[], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Training:
    """Result of `fit`: the epoch whose weights the model has now, and all of them; seconds."""

    kept: Epoch
    history: tuple[Epoch, ...]
    seconds: float
    phases: dict[str, float]  # seconds of "trace" (with each first run), "train", "evaluate"

    @property
    def quality(self) -> float:
        return self.kept.quality

    @property
    def curve(self) -> tuple[float, ...]:
        """Quality 0..1 after every epoch."""
        return tuple(epoch.quality for epoch in self.history)


def fit(
    model: Any,
    task: Task,
    epochs: int | None,
    seed: int,
    *,
    recipe: Recipe | None = None,
    minutes: float | None = None,
    on_epoch: Callable[[int, float], bool] | None = None,
    watch: Callable[[Now], None] | None = None,
    update: Callable[[int, int], bool] | None = None,
    checkpoint: Checkpoint | None = None,
    **changes: Any,
) -> Training:
    """Train `model` in place on `task`, for `epochs`, or for `minutes`, whichever ends first.

    model: a flat Functional `keras.Model`, with the inputs and outputs that the task needs.
    recipe: the task's unless given; `changes` are fields of it, e.g. learning_rate=1e-2.
    on_epoch: (epoch, quality) -> whether to stop, after every epoch; the first is 1.
    watch: is called after every step, and after every epoch.
    update: (step, steps) -> whether it changed weights, before every step; the first is 0. It may
        look at the weights of the model and assign to them.
    checkpoint: keeps the state, and may hold the one to go on from.

    Raises `ValueError` where model and task do not fit.

    >>> from families import mnasnet
    >>> from nas.tasks import digits
    >>> task = digits.load(size=8)
    >>> config = dataclasses.replace(mnasnet.VARIANTS["tiny"], **task.fields)
    >>> len(fit(mnasnet.build(config), task, epochs=1, seed=0).history)
    1

    The order of the examples depends on `seed` only. The same model, weights included (seed them
    with `keras.utils.set_random_seed` before building), gives the same curve, bit for bit, on the
    same machine with the same number of threads, interrupted or not; with `minutes`, the time that
    steps take decides the learning rates.
    """
    recipe = dataclasses.replace(recipe or recipe_of(task), **changes)
    check(model, task, epochs, minutes)
    loop = _Loop(model, task, recipe, epochs, seed, minutes)
    started = time.perf_counter()
    with engine(model, task, recipe, loop.batch_size, loop.steps()) as step:
        loop.seconds["trace"] = time.perf_counter() - started
        return loop.run(step, on_epoch, watch, update, checkpoint)


class _Loop:
    """One training: epochs of steps, each epoch judged."""

    def __init__(
        self,
        model: Any,
        task: Task,
        recipe: Recipe,
        epochs: int | None,
        seed: int,
        minutes: float | None,
    ):
        self.model, self.task, self.recipe, self.seed = model, task, recipe, seed
        self.epochs, self.limit = epochs, math.inf if minutes is None else 60 * minutes
        self.batch_size = min(recipe.batch_size, count(task.train))
        self.per_epoch = count(task.train) // self.batch_size
        self.seconds = {"trace": 0.0, "train": 0.0, "evaluate": 0.0}
        self.state = State()
        self.since = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return self.state.seconds + time.perf_counter() - self.since

    def steps(self) -> int:
        """How many steps there will be; of a time limit, from the speed so far."""
        most = math.inf if self.epochs is None else self.epochs * self.per_epoch
        if self.limit < math.inf:
            done = max(self.state.step, 1)
            most = min(most, max(done, round(done * self.limit / max(self.elapsed, 1e-3))))
        return int(most)

    def run(
        self,
        engine: Engine,
        on_epoch: Callable[[int, float], bool] | None,
        watch: Callable[[Now], None] | None,
        update: Callable[[int, int], bool] | None,
        checkpoint: Checkpoint | None,
    ) -> Training:
        started = time.perf_counter()
        if checkpoint is not None and (found := checkpoint.read()) is not None:
            self.state = found
            engine.restore(found.arrays)
        self.since = time.perf_counter()
        quality_and_loss = judge(
            self.model, self.task, engine, valid_batch(self.model, self.task, self.recipe)
        )
        state, stop = self.state, False
        try:
            while not stop and not self._over():
                self._steps(engine, watch, update, checkpoint)
                epoch = self._judge(engine, quality_and_loss)
                if watch is not None:
                    last = epoch.rates[-1]
                    watch(Now(epoch.number, state.step, self.steps(), epoch.loss, last, epoch))
                stop = on_epoch is not None and on_epoch(epoch.number, epoch.quality)
                if checkpoint is not None and not stop and not self._over():
                    self._keep(engine, checkpoint)
        except Interrupted:
            if checkpoint is not None:
                interruption.hand_over()
                self._keep(engine, checkpoint)
            raise
        kept = state.history[-1]
        if self.recipe.patience:
            kept = min(state.history, key=lambda epoch: epoch.valid_loss)
        engine.finish(state.best or None)
        spent = time.perf_counter() - started + self.seconds["trace"]
        return Training(kept, tuple(state.history), spent, self.seconds)

    def _steps(
        self,
        engine: Engine,
        watch: Callable[[Now], None] | None,
        update: Callable[[int, int], bool] | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        """The steps left of this epoch."""
        state, since = self.state, time.perf_counter()
        epoch = len(state.history) + 1
        first = state.step - (epoch - 1) * self.per_epoch
        order = batches(count(self.task.train), self.batch_size, self.seed, epoch)
        for number, chosen in enumerate(order):
            if number < first:
                continue
            if state.losses and self.elapsed > self.limit:
                break
            rate = self.recipe.rate(state.step, self.steps())
            inputs, targets = (taken(part, chosen) for part in self.task.train)
            generator = np.random.default_rng((self.seed, epoch, number))
            if self.task.augment is not None:
                inputs, targets = self.task.augment(inputs, targets, generator)
            if update is not None:
                engine.put_back()
                if update(state.step, self.steps()):
                    engine.take_over()
            loss = engine.step(inputs, targets, rate)
            state.step += 1
            state.losses.append(loss)
            state.rates.append(rate)
            if watch is not None:
                watch(Now(epoch, state.step, self.steps(), loss, rate))
            interruption.check()
            if checkpoint is not None and checkpoint.due():
                self._keep(engine, checkpoint)
        self.seconds["train"] += time.perf_counter() - since

    def _judge(self, engine: Engine, quality_and_loss: Judgement) -> Epoch:
        """Judge the weights; the epoch, which has ended then."""
        state, since = self.state, time.perf_counter()
        with engine.averaged():
            quality, valid_loss = quality_and_loss()
            if self.recipe.patience and self._is_best(valid_loss):
                state.best = engine.weights()
        self.seconds["evaluate"] += time.perf_counter() - since
        losses = [float(np.asarray(loss)) for loss in state.losses]
        parts = min(PARTS, len(losses))
        epoch = Epoch(
            number=len(state.history) + 1,
            step=state.step,
            loss=float(np.mean(losses)),
            valid_loss=valid_loss,
            quality=quality,
            seconds=self.elapsed,
            losses=tuple(float(np.mean(part)) for part in np.array_split(losses, parts)),
            rates=tuple(float(np.mean(part)) for part in np.array_split(state.rates, parts)),
        )
        state.history.append(epoch)
        state.losses, state.rates = [], []
        return epoch

    def _over(self) -> bool:
        history = self.state.history
        if not history:
            return False
        best = min(history, key=lambda epoch: epoch.valid_loss)
        late = self.recipe.patience and len(history) - best.number >= self.recipe.patience
        return bool(late) or len(history) == self.epochs or self.elapsed > self.limit

    def _is_best(self, loss: float) -> bool:
        return all(loss < epoch.valid_loss for epoch in self.state.history)

    def _keep(self, engine: Engine, checkpoint: Checkpoint) -> None:
        state = self.state
        state.losses = [float(np.asarray(loss)) for loss in state.losses]
        checkpoint.write(dataclasses.replace(state, seconds=self.elapsed, arrays=engine.state()))


def evaluate(model: Any, task: Task) -> float:
    """Quality 0..1 of a `keras.Model` on the validation part of `task`.

    >>> from families import mnasnet
    >>> from nas.tasks import digits
    >>> task = digits.load(size=8)
    >>> config = dataclasses.replace(mnasnet.VARIANTS["tiny"], **task.fields)
    >>> 0 <= evaluate(mnasnet.build(config), task) <= 1
    True
    """
    return measure(model, task)[0]


def measure(model: Any, task: Task, run: Callable[[Any], Any] | None = None) -> tuple[float, float]:
    """Quality 0..1 and mean loss of `model` on the validation part of `task`.

    run: gives the outputs of inputs in the model's place, such as a file that was made of it.
    """
    check(model, task)
    size = valid_batch(model, task, recipe_of(task))
    return judge(model, task, _Eager(model, task, run), size)()


def judge(model: Any, task: Task, engine: Judge, batch_size: int) -> Judgement:
    """A function that gives quality and validation loss of the weights."""
    last: dict[str, Any] = {}

    def predict(inputs: Any) -> Any:
        """The outputs that the loss was taken of, where a scorer asks for the same."""
        outputs = last["outputs"] if inputs is last.get("inputs") else engine.predict(inputs)
        return arrays_of(outputs)

    score = task.scorer(model, predict)

    def quality_and_loss() -> tuple[float, float]:
        scores, losses = [], []
        total = count(task.valid)
        for start in range(0, total, batch_size):
            interruption.check()
            first = min(start, total - batch_size)  # the last batch overlaps: one shape only
            chosen = slice(first, first + batch_size)
            inputs, targets = (taken(part, chosen) for part in task.valid)
            last["outputs"], loss = engine.judge(inputs, targets)
            last["inputs"] = inputs
            losses.append(np.asarray(loss, np.float64)[start - first :])
            scores.append(np.asarray(score(inputs, targets), np.float64)[start - first :])
        last.clear()
        return task.average(np.concatenate(scores)), float(np.mean(np.concatenate(losses)))

    return quality_and_loss


class _Eager:
    """What `judge` needs of an engine, without tracing anything."""

    def __init__(self, model: Any, task: Task, run: Callable[[Any], Any] | None):
        self._run = run or (lambda inputs: model(inputs, training=False))
        self._loss, self._prepared = task.loss, prepared(model)

    def predict(self, inputs: Tree) -> Any:
        return self._run(self._prepared(inputs))

    def judge(self, inputs: Tree, targets: Tree) -> tuple[Any, np.ndarray]:
        outputs = in_float32(self.predict(inputs))
        return outputs, np.asarray(self._loss(outputs, labels(targets)))


def batches(total: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Index arrays of one epoch, all of `batch_size`: what is left over waits for another epoch."""
    order = np.random.default_rng((seed, epoch)).permutation(total)
    for start in range(0, total - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def check(model: Any, task: Task, epochs: int | None = 1, minutes: float | None = None) -> None:
    """Raise `ValueError`, saying how to fix it, unless `model` can be trained on `task`.

    A classification needs at least as many outputs as there are classes, logits or probabilities.
    """
    if epochs is None and minutes is None:
        raise ValueError("epochs and minutes are both missing; expected one of them")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs={epochs}; expected at least 1")
    if minutes is not None and not 0 < minutes < math.inf:
        raise ValueError(f"minutes={minutes}; expected a time above 0")
    if not count(task.train) or not count(task.valid):
        raise ValueError(f"task {task.name} has no examples to train on or to be judged on")
    if not task.labelled:
        raise ValueError(
            f"task {task.name} has no labels (y): its examples serve to calibrate only"
        )
    found = mapped(single(model.input), lambda tensor: tuple(tensor.shape))
    needed = mapped(task.train[0], lambda array: (None, *array.shape[1:]))
    made = mapped(single(model.output), lambda tensor: tuple(tensor.shape))
    if is_classification(task.loss):
        classes = _classes(task)
        fits = isinstance(made, tuple) and len(made) == 2 and (made[1] or 0) >= classes
        wanted = f" to (None, {classes})"
        remedy = ", or give the nas.Task a loss and a scorer of its own"
    else:
        fits, wanted, remedy = True, "", ""
    batches = {tensor.shape[0] for tensor in model.inputs} - {None}
    if batches:
        raise ValueError(
            f"the model is built for batches of {batches.pop()}, which training changes; build it"
            " on keras.Input(SHAPE) without a batch"
        )
    if found != needed or not fits:
        raise ValueError(
            f"the model maps {found} to {made}, the task {task.name} needs {needed}{wanted}: "
            f"build it for these shapes, or set {' and '.join(task.fields)} of its Config where it"
            f" has one{remedy}"
        )


def gives_probabilities(model: Any, task: Task) -> bool:
    """Whether a classification's network ends in softmax, judged by its outputs of 8 examples."""
    if not is_classification(task.loss):
        return False
    inputs = prepared(model)(taken(task.valid[0], slice(0, 8)))
    return bool(are_probabilities(model(inputs, training=False)))


def _classes(task: Task) -> int:
    """How many classes there are at least: what the task says, and its labels."""
    found = [np.asarray(part[1]) for part in (task.train, task.valid)]
    for one in found:
        if one.ndim != 1 or one.dtype.kind not in "iub" or one.min() < 0:
            raise ValueError(
                f"task {task.name}: labels are {one.dtype} {one.shape}; expected integers"
                " from 0 on, (count,): for other targets give the nas.Task a loss and a scorer"
            )
    return max(task.fields.get("classes", 0), *(int(one.max()) + 1 for one in found))

"""A supernet: one network trained once, in which every network of a space is judged in a moment.

Weights are shared as in "Once-for-All" (arXiv 1908.09791), sampled uniformly as in Guo et al.
(arXiv 1904.00420), after TuNAS's warm-up of operations and filters (arXiv 2008.06120).
"""

import dataclasses
import functools
import importlib
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from compress.examples.data import taken
from latency.system.atomic_write import atomic_write
from nas import interruption
from nas.networks import build
from nas.tasks.task import Task
from nas.training.batches import count, labels, prepared
from nas.training.recipe import Recipe, recipe_of

# Share of the steps in which more is on than was sampled, ever less often (TuNAS, appendix).
WARM_UP = 0.25
# Random networks whose choices are those of the space: of 20, one is missing in one of 10^11.
DRAWN = 500
# Of the validation part, that a candidate is judged on, at most: networks differ by so little that
# fewer rank them by chance.
EXAMPLES = 5000
BATCH = 500  # of which the statistics normalize
CALIBRATION = 2000  # examples of which inherited networks take the averages of their norms


class Drawn:
    """Suggests at random, as an Optuna trial does, of a `generator`: a space without a study."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        choices = tuple(choices)
        return self._kept(name, lambda: choices[self._generator.integers(len(choices))])

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> Any:
        return self._kept(
            name, lambda: int(low + step * self._generator.integers((high - low) // step + 1))
        )

    def suggest_float(
        self, name: str, low: float, high: float, *, step: Any = None, log: bool = False
    ) -> Any:
        return self._kept(name, lambda: float(self._generator.uniform(low, high)))

    def _kept(self, name: str, draw: Callable[[], Any]) -> Any:
        if name not in self.params:
            self.params[name] = draw()
        return self.params[name]


def drawn(sample: Callable[[Any], Any], *seed: int) -> Any:
    """A random Config of a space, which follows from the seed."""
    return sample(Drawn(np.random.default_rng(seed)))


# A family has a supernet where a module of this folder, of its name, gives the outline of a Config.
FAMILIES = tuple(
    path.stem
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py"))
    if "\ndef outline(config: Config)" in path.read_text()
)


def outline(config: Any) -> Any:
    """The `Outline` of a Config; ValueError if no supernet has such a network."""
    family = type(config).__module__.rpartition(".")[2]
    if family not in FAMILIES:
        raise ValueError(
            f"no supernet of {family} networks (there is: {', '.join(FAMILIES)}): --evaluator train"
        )
    return importlib.import_module(f"nas.supernets.{family}").outline(config)


class Supernet:
    """The shared weights of a space, and the qualities of its networks with them.

    `sample` makes an Optuna trial, or a `Drawn`, a Config that `task` can train.
    """

    def __init__(self, sample: Callable[[Any], Any], task: Task, *, seed: int = 0) -> None:
        import keras

        from nas.supernets import network

        self._network = network
        self.task, self.seed = task, seed
        self.sample = lambda trial: build.for_task(sample(trial), task.fields, task.name)
        configs = [drawn(self.sample, seed, number) for number in range(DRAWN)]
        keras.utils.set_random_seed(seed)
        self.model = network.build(map(outline, configs))
        (self._choice,) = (
            weight for weight in self.model.weights if weight.path == "choice/choice"
        )
        self.traces = 0  # how often a graph was made to judge a network
        self.largest = network.largest(self.model)

    def choose(self, rows: np.ndarray) -> None:
        """Make `model` the network that the rows of `Supernet.rows` say."""
        self._choice.assign(rows)

    def rows(self, config: Any) -> np.ndarray:
        """What `choose` takes for a Config."""
        return self._network.choice(outline(config))

    def quality(self, config: Any, examples: int = EXAMPLES) -> float:
        """Quality 0..1 of a Config with its part of the shared weights, untouched."""
        self.choose(self.rows(config))
        return self._judged(self.model, self._predict, examples)

    def quality_of(self, model: Any, examples: int = EXAMPLES) -> float:
        """Quality 0..1 of a network by itself, on what `quality` judges on."""
        import keras

        prepare = prepared(model)

        def predict(inputs: Any) -> np.ndarray:
            return keras.ops.convert_to_numpy(model(prepare(inputs), training=False))

        return self._judged(model, predict, examples)

    def _judged(self, model: Any, predict: Callable[[Any], np.ndarray], examples: int) -> float:
        inputs, targets = self.task.valid
        most = min(examples, count(self.task.valid))
        size = min(BATCH, most)
        score = self.task.scorer(model, predict)
        scores = []
        for start in range(0, most - size + 1, size):
            interruption.check()
            chosen = slice(start, start + size)
            batch = [taken(part, chosen) for part in (inputs, targets)]
            scores.append(np.asarray(score(batch[0], labels(batch[1])), np.float64))
        return self.task.average(np.concatenate(scores))

    @functools.cached_property
    def _predict(self) -> Callable[[Any], np.ndarray]:
        """Outputs of a batch: compiled once, for all networks."""
        import keras

        prepare = prepared(self.model)

        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            @functools.partial(tf.function, autograph=False)
            def run(inputs: Any) -> Any:
                self.traces += 1
                return self.model(inputs, training=False)

            return lambda inputs: run(tf.constant(prepare(inputs))).numpy()

        import jax

        @jax.jit
        def stateless(trained: Any, others: Any, inputs: Any) -> Any:
            self.traces += 1
            return self.model.stateless_call(trained, others, inputs, training=False)[0]

        def predict(inputs: Any) -> Any:
            trained = [weight.value for weight in self.model.trainable_variables]
            others = [weight.value for weight in self.model.non_trainable_variables]
            return np.asarray(stateless(trained, others, prepare(inputs)))

        return predict

    def inherited(self, config: Any) -> Any:
        """A network of its own with the weights of `config`, which may be of another input size.

        Its norms have no averages yet: train it, or `calibrate` it.
        """
        model = build.build(config)
        self.inherit(config, model)
        return model

    def inherit(self, config: Any, model: Any) -> None:
        """Give `model`, built of `config`, its part of the weights."""
        self._network.inherit(self.model, outline(config), model)

    def calibrate(self, model: Any) -> None:
        """Give the norms of an inherited network their averages, over training data of the task."""
        import keras

        norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
        before = [norm.momentum for norm in norms]
        inputs, prepare = self.task.train[0], prepared(model)
        most = min(CALIBRATION, count(self.task.train))
        size = min(BATCH, most)
        try:
            for number, start in enumerate(range(0, most - size + 1, size)):
                interruption.check()
                for norm in norms:
                    norm.momentum = number / (number + 1)  # so that it is the mean of all batches
                model(prepare(taken(inputs, slice(start, start + size))), training=True)
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum

    def save(self, path: pathlib.Path) -> None:
        """Write the weights, whole or not at all; `path` ends in .weights.h5."""
        with atomic_write(path) as partial:
            self.model.save_weights(partial)

    def load(self, path: pathlib.Path) -> None:
        """Take the weights that `save` wrote, of the same space; ValueError of another."""
        try:
            with warnings.catch_warnings():  # of each part that does not fit
                warnings.simplefilter("ignore")
                self.model.load_weights(path)
        except Exception as error:  # h5py and Keras raise what they like
            raise ValueError(
                f"{path} holds no weights of this supernet ({error}); delete it to train them anew"
            ) from error

    def choices(self, per_epoch: int) -> Callable[[int, int], bool]:
        """What `nas.training.loop.fit` calls before a step: samples the network that the step
        trains.

        The last step of an epoch trains the largest network, which the epoch is judged by.
        """

        def update(step: int, steps: int) -> bool:
            if (step + 1) % per_epoch == 0:
                self.choose(self.largest)
                return True
            generator = np.random.default_rng((self.seed, 1, step))
            rows = self.rows(self.sample(Drawn(generator)))
            often = 1 - step / (WARM_UP * steps)
            if generator.random() < often:
                rows = self._network.together(self.model, rows)
            if generator.random() < often:
                rows = self._network.widest(self.model, rows)
            self.choose(rows)
            return True

        return update


def train(
    sample: Callable[[Any], Any],
    task: Task,
    *,
    epochs: int | None,
    seed: int = 0,
    minutes: float | None = None,
    checkpoint: Any = None,
    watch: Callable[[Any], None] | None = None,
    **changes: Any,
) -> Supernet:
    """Train the supernet of a space on a task, each step another network of it.

    `sample` is a space's: `functools.partial(search_spaces.mnasnet.sample, base="tiny")`. `epochs`,
    `minutes`, `checkpoint` and `watch` are those of `nas.training.loop.fit`; `changes` are fields
    of its `Recipe`. Then `Supernet.quality(config)` takes a fraction of a second a network.
    """
    from nas.training import loop as training

    supernet = Supernet(sample, task, seed=seed)
    recipe = dataclasses.replace(recipe_of_supernet(task), **changes)
    per_epoch = count(task.train) // min(recipe.batch_size, count(task.train))
    training.fit(
        supernet.model,
        task,
        epochs,
        seed,
        recipe=recipe,
        minutes=minutes,
        update=supernet.choices(per_epoch),
        watch=watch,
        checkpoint=checkpoint,
    )
    return supernet


def recipe_of_supernet(task: Task) -> Recipe:
    """How shared weights are trained: as a network of the task by itself."""
    return recipe_of(task)

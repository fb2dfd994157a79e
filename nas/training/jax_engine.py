"""One training step of any flat Keras model as one compiled JAX function; for GPU and TPU.

The same mathematics as nas/training/tensorflow_engine.py. Weights and moments live outside the
model while it trains, are donated to every step, and are put back when the model is judged.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from nas.tasks.task import Task, Tree
from nas.training import batches
from nas.training.batches import ADAM
from nas.training.recipe import Recipe


@contextlib.contextmanager
def compiled(
    model: keras.Model, task: Task, recipe: Recipe, batch_size: int, steps: float = 0
) -> Iterator["Engine"]:
    """The engine of a training, valid in this context; it ends with the weights in the model."""
    engine = Engine(model, task, recipe)
    try:
        yield engine
    finally:
        engine.put_back()


class Engine:
    """step, judge and predict of a model, and the arrays that a training goes on from."""

    def __init__(self, model: Any, task: Task, recipe: Recipe):
        self._model, self._loss, self._recipe = model, task.loss, recipe
        self._prepared = batches.prepared(model)
        self._decays = [batches.decays(variable) for variable in model.trainable_variables]
        kept = {id(weight) for weight in batches.averaged_weights(model)} if recipe.ema else set()
        variables = model.trainable_variables + model.non_trainable_variables
        self._is_averaged = [id(variable) in kept for variable in variables]
        slots = 1 if recipe.optimizer == "sgd" else 2
        self._live = {
            "trained": [jnp.array(v.value) for v in model.trainable_variables],
            "others": [jnp.array(v.value) for v in model.non_trainable_variables],
            "number": jnp.zeros(()),
            "moments": [
                tuple(jnp.zeros_like(v.value) for _ in range(slots))
                for v in model.trainable_variables
            ],
            "averages": [
                jnp.array(v.value)
                for v, averaged in zip(variables, self._is_averaged, strict=True)
                if averaged
            ],
        }
        self._step = jax.jit(self._train, donate_argnums=0)
        self._judge = jax.jit(self._judged)
        self._predict = jax.jit(self._outputs)

    def step(self, inputs: Tree, targets: Tree, rate: float) -> jax.Array:
        """Change the weights by one step; the mean loss they had before."""
        inputs, targets = self._prepared(inputs), batches.labels(targets)
        self._live, loss = self._step(self._live, np.float32(rate), inputs, targets)
        return loss

    def judge(self, inputs: Tree, targets: Tree) -> tuple[Any, jax.Array]:
        """Outputs, and losses (batch,), of the weights in the model."""
        return self._judge(*self._in_model(), self._prepared(inputs), batches.labels(targets))

    def predict(self, inputs: Tree) -> Any:
        """Outputs of a batch of any size, of the weights in the model."""
        return self._predict(*self._in_model(), self._prepared(inputs))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds the weights to be judged: the average, if the recipe has one."""
        self._assign(self._judged_weights())
        try:
            yield
        finally:
            self.put_back()

    def weights(self) -> list[np.ndarray]:
        """Those that the model holds."""
        return self._model.get_weights()

    def state(self) -> list[np.ndarray]:
        """All that the next step depends on: weights, states of dropout, moments, averages."""
        return [np.asarray(array) for array in jax.tree.leaves(self._live)]

    def restore(self, arrays: list[np.ndarray]) -> None:
        """Go on from `state()`."""
        leaves, structure = jax.tree.flatten(self._live)
        batches.check_shapes([leaf.shape for leaf in leaves], arrays)
        leaves = [jnp.array(a, leaf.dtype) for a, leaf in zip(arrays, leaves, strict=True)]
        self._live = jax.tree.unflatten(structure, leaves)

    def finish(self, weights: list[np.ndarray] | None = None) -> None:
        """Leave in the model `weights`, or those that were judged last."""
        values = self._judged_weights()
        count = len(self._live["trained"])
        self._live = self._live | {"trained": values[:count], "others": values[count:]}
        self.put_back()
        if weights is not None:
            self._model.set_weights(weights)
            self.take_over()

    def put_back(self) -> None:
        """The model holds the weights as the last step left them."""
        self._assign(self._live["trained"] + self._live["others"])

    def take_over(self) -> None:
        """Go on with the weights that the model holds now."""
        self._live["trained"] = [jnp.array(v.value) for v in self._model.trainable_variables]
        self._live["others"] = [jnp.array(v.value) for v in self._model.non_trainable_variables]

    def _assign(self, values: list[jax.Array]) -> None:
        variables = self._model.trainable_variables + self._model.non_trainable_variables
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def _judged_weights(self) -> list[jax.Array]:
        averages = iter(self._live["averages"])
        values = self._live["trained"] + self._live["others"]
        return [
            next(averages) if averaged else value
            for value, averaged in zip(values, self._is_averaged, strict=True)
        ]

    def _in_model(self) -> tuple[list[Any], list[Any]]:
        trained = [variable.value for variable in self._model.trainable_variables]
        return trained, [variable.value for variable in self._model.non_trainable_variables]

    def _outputs(self, trained: Any, others: Any, inputs: Any) -> Any:
        outputs, _ = self._model.stateless_call(trained, others, inputs, training=False)
        return batches.in_float32(outputs)

    def _judged(self, trained: Any, others: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        outputs = self._outputs(trained, others, inputs)
        size = jax.tree.leaves(inputs)[0].shape[0]
        return outputs, batches.per_example(self._loss(outputs, targets), size)

    def _train(
        self, live: dict[str, Any], rate: Any, inputs: Any, targets: Any
    ) -> tuple[dict[str, Any], Any]:
        number = live["number"] + 1

        def objective(trained: Any) -> tuple[Any, tuple[Any, Any]]:
            with _faster_averages(self._model, 9 / (number + 9)):
                outputs, others, extra = self._model.stateless_call(
                    trained, live["others"], inputs, training=True, return_losses=True
                )
            outputs = batches.in_float32(outputs)
            size = jax.tree.leaves(inputs)[0].shape[0]
            loss = jnp.mean(batches.per_example(self._loss(outputs, targets), size))
            return loss + sum(jnp.asarray(one, jnp.float32) for one in extra), (loss, others)

        gradients, (loss, others) = jax.grad(objective, has_aux=True)(live["trained"])
        if self._recipe.clip is not None:
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in gradients))
            gradients = [
                g * (self._recipe.clip / jnp.maximum(norm, self._recipe.clip)) for g in gradients
            ]
        parts = zip(live["trained"], live["moments"], gradients, self._decays, strict=True)
        changed = [self._changed(*part, rate, number) for part in parts]
        trained, moments = (list(part) for part in zip(*changed, strict=True))
        averages = live["averages"]
        if self._recipe.ema:
            share = jnp.maximum(1 - self._recipe.ema, 9 / (number + 9))
            pairs = zip(trained + list(others), self._is_averaged, strict=True)
            now = [value for value, averaged in pairs if averaged]
            averages = [a - share * (a - v) for a, v in zip(averages, now, strict=True)]
        return {
            "trained": trained,
            "others": list(others),
            "number": number,
            "moments": moments,
            "averages": averages,
        }, loss

    def _changed(
        self, weight: Any, moments: Any, gradient: Any, decays: bool, rate: Any, number: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """A weight and its moments after the step."""
        if self._recipe.weight_decay and decays:
            weight = weight - self._recipe.weight_decay * rate * weight
        if self._recipe.optimizer == "sgd":
            speed = moments[0] * self._recipe.momentum - rate * gradient
            return weight + speed, (speed,)
        one, two = ADAM["beta1"], ADAM["beta2"]
        mean = moments[0] + (1 - one) * (gradient - moments[0])
        square = moments[1] + (1 - two) * (gradient * gradient - moments[1])
        rate = rate * jnp.sqrt(1 - two**number) / (1 - one**number)
        return weight - rate * mean / (jnp.sqrt(square) + ADAM["epsilon"]), (mean, square)


@contextlib.contextmanager
def _faster_averages(model: keras.Model, least_share: jax.Array) -> Iterator[None]:
    """While traced, normalizations take at least that share of each batch into their averages.

    As in nas/training/tensorflow_engine.py: otherwise the first epochs would be judged with initial
    values.
    """
    layers = [layer for layer in model.layers if type(layer) is keras.layers.BatchNormalization]
    before = [layer.momentum for layer in layers]
    try:
        for layer, momentum in zip(layers, before, strict=True):
            vars(layer)["momentum"] = jnp.minimum(momentum, 1 - least_share)
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            vars(layer)["momentum"] = momentum

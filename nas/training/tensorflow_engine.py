"""One training step of any flat Keras model as one small TensorFlow graph.

Against `model.fit`: no tf.data, no metrics in the graph, one fused operation per variable for the
optimizer (`ResourceApplyAdam`), batch normalization as one operation instead of fifteen, and in a
short training no graph rewriting, which costs more than it could win back.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from compress.examples.data import taken
from nas.tasks.task import Task, Tree
from nas.training import batches
from nas.training.batches import ADAM
from nas.training.recipe import Recipe

# Steps from which rewriting pays: it takes about a second, and saves a transformer 5 % of its time.
LONG = 2000


@contextlib.contextmanager
def compiled(
    model: keras.Model, task: Task, recipe: Recipe, batch_size: int, steps: float = 0
) -> Iterator["Engine"]:
    """The engine of a training, valid in this context; the model's layers stay stock layers."""
    # Averages with a momentum of 0.99 remember their initial values for hundreds of steps, and the
    # first epochs would be judged with those. So momentum n / (n + 9) at step n, as in
    # tf.train.ExponentialMovingAverage.
    least_share = tf.Variable(1.0)
    as_written = _graphs_as_written() if steps < LONG else contextlib.nullcontext()
    with as_written, fused_normalization(model, least_share):
        yield Engine(model, task, recipe, batch_size, least_share)


class Engine:
    """step, judge and predict of a model, and the arrays that a training goes on from."""

    def __init__(
        self, model: Any, task: Task, recipe: Recipe, batch_size: int, least_share: tf.Variable
    ):
        self._model, self._loss, self._recipe = model, task.loss, recipe
        self._prepared = batches.prepared(model)
        self._number = tf.Variable(0.0)  # of the step, counted from 1
        self._least_share = least_share
        self._trained = [variable.value for variable in model.trainable_variables]
        self._decays = [batches.decays(variable) for variable in model.trainable_variables]
        slots = 1 if recipe.optimizer == "sgd" else 2
        self._moments = [
            tuple(tf.Variable(tf.zeros_like(variable)) for _ in range(slots))
            for variable in self._trained
        ]
        self._averages = []
        if recipe.ema:
            self._averages = [
                (v.value, tf.Variable(v.value)) for v in batches.averaged_weights(model)
            ]
        self._state = [variable.value for variable in model.variables] + [self._number]
        self._state += [slot for slots in self._moments for slot in slots]
        self._state += [average for _, average in self._averages]
        rate = tf.TensorSpec((), tf.float32)
        example = self._specs(task.train, batch_size)
        self._step = tf.function(self._train, autograph=False)
        self._step = self._step.get_concrete_function(rate, *example)
        example = self._specs(task.valid, batches.valid_batch(model, task, recipe))
        self._judge = tf.function(self._judged, autograph=False).get_concrete_function(*example)
        self._predict = tf.function(
            lambda inputs: model(inputs, training=False), autograph=False, reduce_retracing=True
        )

    def step(self, inputs: Tree, targets: Tree, rate: float) -> tf.Tensor:
        """Change the model by one step; the mean loss it had before."""
        return self._step(tf.constant(rate, tf.float32), *self._flat(inputs, targets))

    def judge(self, inputs: Tree, targets: Tree) -> tuple[Any, tf.Tensor]:
        """Outputs, and losses (batch,); a batch of the size that `batches.valid_batch` says."""
        return self._judge(*self._flat(inputs, targets))

    def predict(self, inputs: Tree) -> Any:
        """Outputs of a batch of any size."""
        return self._predict(keras.tree.map_structure(tf.constant, self._prepared(inputs)))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds the weights to be judged: the average, if the recipe has one."""
        before = [variable.numpy() for variable, _ in self._averages]
        self._assign_averages()
        try:
            yield
        finally:
            for (variable, _), value in zip(self._averages, before, strict=True):
                variable.assign(value)

    def weights(self) -> list[np.ndarray]:
        """Those that the model holds."""
        return self._model.get_weights()

    def state(self) -> list[np.ndarray]:
        """All that the next step depends on: weights, states of dropout, moments, averages."""
        return [variable.numpy() for variable in self._state]

    def restore(self, arrays: list[np.ndarray]) -> None:
        """Go on from `state()`."""
        batches.check_shapes([tuple(variable.shape) for variable in self._state], arrays)
        for variable, array in zip(self._state, arrays, strict=True):
            variable.assign(array)

    def finish(self, weights: list[np.ndarray] | None = None) -> None:
        """Leave in the model `weights`, or those that were judged last."""
        self._assign_averages()
        if weights is not None:
            self._model.set_weights(weights)

    def put_back(self) -> None:
        """The model holds the weights as the last step left them: here it always does."""

    def take_over(self) -> None:
        """Go on with the weights that the model holds now: the step reads them there."""

    def _assign_averages(self) -> None:
        for variable, average in self._averages:
            variable.assign(average)

    def _specs(self, part: tuple[Tree, Tree], batch_size: int) -> list[tf.TensorSpec]:
        arrays = [taken(tree, slice(0, 1)) for tree in part]
        flat = self._arrays(*arrays)
        self._inputs = batches.prepared(self._model)(arrays[0])
        self._targets = batches.labels(arrays[1])
        return [tf.TensorSpec((batch_size, *x.shape[1:]), x.dtype) for x in flat]

    def _arrays(self, inputs: Tree, targets: Tree) -> list[np.ndarray]:
        return keras.tree.flatten((self._prepared(inputs), batches.labels(targets)))

    def _flat(self, inputs: Tree, targets: Tree) -> list[tf.Tensor]:
        return [tf.constant(array) for array in self._arrays(inputs, targets)]

    def _packed(self, flat: tuple[Any, ...]) -> tuple[Any, Any]:
        return keras.tree.pack_sequence_as((self._inputs, self._targets), flat)

    def _judged(self, *flat: tf.Tensor) -> tuple[Any, tf.Tensor]:
        inputs, targets = self._packed(flat)
        outputs = batches.in_float32(self._model(inputs, training=False))
        count = flat[0].shape[0]
        return outputs, batches.per_example(self._loss(outputs, targets), count)

    def _train(self, rate: tf.Tensor, *flat: tf.Tensor) -> tf.Tensor:
        inputs, targets = self._packed(flat)
        number = self._number.assign_add(1.0)
        self._least_share.assign(9 / (number + 9))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._trained)
            outputs = batches.in_float32(self._model(inputs, training=True))
            loss = tf.reduce_mean(
                batches.per_example(self._loss(outputs, targets), flat[0].shape[0])
            )
            objective = loss
            if self._model.losses:  # regularizers, and what layers add
                objective += tf.add_n([tf.cast(one, tf.float32) for one in self._model.losses])
        gradients = tape.gradient(objective, self._trained)
        gradients = [g if g is None else tf.convert_to_tensor(g) for g in gradients]
        if self._recipe.clip is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._recipe.clip)
        self._apply(gradients, rate, number)
        if self._recipe.ema:
            share = tf.maximum(1 - self._recipe.ema, 9 / (number + 9))
            for variable, average in self._averages:
                average.assign_sub(share * (average - variable))
        return loss

    def _apply(self, gradients: list[Any], rate: tf.Tensor, number: tf.Tensor) -> None:
        decay = tf.constant(self._recipe.weight_decay) * rate
        momentum = tf.constant(self._recipe.momentum)
        rates = {name: tf.constant(value) for name, value in ADAM.items()}  # once, not per variable
        rates |= {"lr": rate, "beta1_power": ADAM["beta1"] ** number}
        rates |= {"beta2_power": ADAM["beta2"] ** number}
        parts = zip(self._trained, self._moments, gradients, self._decays, strict=True)
        for variable, moments, gradient, decays in parts:
            if gradient is None:
                continue
            if self._recipe.weight_decay and decays:
                variable.assign_sub(decay * variable)
            if self._recipe.optimizer == "sgd":
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=variable.handle,
                    accum=moments[0].handle,
                    lr=rate,
                    grad=gradient,
                    momentum=momentum,
                )
            else:
                mean, square = moments
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle, m=mean.handle, v=square.handle, grad=gradient, **rates
                )


@contextlib.contextmanager
def fused_normalization(
    model: keras.Model, least_share: tf.Variable | None = None
) -> Iterator[None]:
    """Train with one fused operation per `BatchNormalization`; the layers stay stock layers.

    Outputs, gradients and moving averages are those of Keras, but for `least_share`: the averages
    take at least that share of each batch.
    """
    layers = [layer for layer in model.layers if _can_fuse(layer)]
    for layer in layers:
        vars(layer)["call"] = _fused_call(layer, least_share)  # shadows the method of the class
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]


def _can_fuse(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.built
        and layer.input_spec.ndim in (3, 4)
        and layer.axis in (-1, layer.input_spec.ndim - 1)
        and layer.compute_dtype == "float32"
        and layer.trainable
        and not (layer.renorm or layer.synchronized)
    )


def _fused_call(
    layer: keras.layers.BatchNormalization, least_share: tf.Variable | None
) -> Callable[..., Any]:
    stock = layer.call
    channels = layer.moving_mean.shape
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is not None or (training and not inputs.shape.is_fully_defined()):
            return stock(inputs, training=training, mask=mask)
        mean, variance = layer.moving_mean.value, layer.moving_variance.value
        flat = len(inputs.shape) == 3  # a sequence is an image of one row
        inputs = tf.expand_dims(inputs, 1) if flat else inputs
        outputs, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=layer.gamma.value if layer.scale else ones,
            offset=layer.beta.value if layer.center else zeros,
            mean=[] if training else mean,
            variance=[] if training else variance,
            epsilon=layer.epsilon,
            is_training=bool(training),
        )
        if training:
            share = 1 - layer.momentum
            if least_share is not None:
                share = tf.maximum(share, least_share)
            count = inputs.shape.num_elements() // inputs.shape[-1]
            # The operation estimates an unbiased variance, Keras a biased one.
            biased = batch_variance * ((count - 1) / count)
            for average, batch in ((mean, batch_mean), (variance, biased)):
                tf.raw_ops.ResourceApplyGradientDescent(
                    var=average.handle, alpha=share, delta=average - batch
                )
        return tf.squeeze(outputs, 1) if flat else outputs

    return call


@contextlib.contextmanager
def _graphs_as_written() -> Iterator[None]:
    """Without Grappler: on a network that trains for seconds it costs more than it brings."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        restored = {"disable_meta_optimizer": before.get("disable_meta_optimizer", False)}
        tf.config.optimizer.set_experimental_options(restored)

"""One training step of any Keras classifier as one small TensorFlow graph.

Against `model.fit`: no tf.data, no metrics in the graph, one fused operation per variable for the
optimizer (`ResourceApplyAdam`), batch normalization as one operation instead of fifteen, and no
graph rewriting, which costs more than a proxy training can win back.
"""

import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}  # as keras.optimizers.Adam


@contextlib.contextmanager
def compiled(model: keras.Model, batch_size: int) -> Iterator[tuple[Callable, Callable]]:
    """Functions step(inputs, labels, rate) and predict(inputs) -> logits, valid in this context."""
    variables = [variable.value for variable in model.trainable_variables]
    moments = [(tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in variables]
    inputs = tf.TensorSpec((batch_size, *model.input_shape[1:]), tf.float32)
    labels = tf.TensorSpec((batch_size,), tf.int32)
    scalar = tf.TensorSpec((), tf.float32)

    def train(x, y, rate):
        least_share.assign(9 / (number.assign_add(1.0) + 9))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            logits = model(x, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
            loss = tf.reduce_mean(losses)
            if model.losses:  # regularizers and activity losses of layers
                loss += tf.add_n(model.losses)
        gradients = tape.gradient(loss, variables)
        rates = {name: tf.constant(value) for name, value in ADAM.items()}  # once, not per variable
        rates |= {"lr": rate, "beta1_power": ADAM["beta1"] ** number}
        rates |= {"beta2_power": ADAM["beta2"] ** number}
        for variable, (mean, square), gradient in zip(variables, moments, gradients, strict=True):
            if gradient is not None:
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle, m=mean.handle, v=square.handle, grad=gradient, **rates
                )
        return loss

    number = tf.Variable(0.0)  # of the step, counted from 1
    # Averages with a momentum of 0.99 remember their initial values for hundreds of steps, and the
    # first epochs would be judged with those. So momentum n / (n + 9) at step n, as in
    # tf.train.ExponentialMovingAverage.
    least_share = tf.Variable(1.0)
    with _graphs_as_written(), fused_normalization(model, least_share):
        step = tf.function(train, autograph=False).get_concrete_function(inputs, labels, scalar)
        infer = tf.function(lambda x: model(x, training=False), autograph=False)
        infer = infer.get_concrete_function(tf.TensorSpec(model.input_shape, tf.float32))
        yield (
            lambda x, y, rate: step(tf.constant(x), tf.constant(y), tf.constant(rate)),
            lambda x: infer(tf.constant(x)).numpy(),
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
        and layer.input_spec.ndim == 4
        and layer.axis in (-1, 3)
        and layer.compute_dtype == "float32"
        and layer.trainable
        and not (layer.renorm or layer.synchronized)
    )


def _fused_call(
    layer: keras.layers.BatchNormalization, least_share: tf.Variable | None
) -> Callable:
    stock = layer.call
    channels = layer.moving_mean.shape
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)

    def call(inputs, training=None, mask=None):
        if mask is not None or (training and not inputs.shape.is_fully_defined()):
            return stock(inputs, training=training, mask=mask)
        mean, variance = layer.moving_mean.value, layer.moving_variance.value
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
        return outputs

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

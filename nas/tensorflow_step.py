"""One training step of any Keras classifier as one small TensorFlow graph.

Against `model.fit`: no tf.data, no metrics in the graph, one fused operation per variable for the
optimizer (`ResourceApplyAdam`), batch normalization as one operation instead of fifteen, and no
graph rewriting, which costs more than a proxy training can win back.
"""

import contextlib
from collections.abc import Callable, Iterator

import keras
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
        number.assign_add(1.0)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            logits = model(x, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
            loss = tf.reduce_mean(losses)
            if model.losses:  # regularizers and activity losses of layers
                loss += tf.add_n(model.losses)
        gradients = tape.gradient(loss, variables)
        beta1_power, beta2_power = ADAM["beta1"] ** number, ADAM["beta2"] ** number
        for variable, (mean, square), gradient in zip(variables, moments, gradients, strict=True):
            if gradient is not None:
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle,
                    m=mean.handle,
                    v=square.handle,
                    beta1_power=beta1_power,
                    beta2_power=beta2_power,
                    lr=rate,
                    grad=gradient,
                    **ADAM,
                )
        return loss

    number = tf.Variable(0.0)  # of the step, counted from 1
    with _graphs_as_written(), fused_normalization(model, number):
        step = tf.function(train, autograph=False).get_concrete_function(inputs, labels, scalar)
        infer = tf.function(lambda x: model(x, training=False), autograph=False)
        infer = infer.get_concrete_function(tf.TensorSpec(model.input_shape, tf.float32))
        yield (
            lambda x, y, rate: step(tf.constant(x), tf.constant(y), tf.constant(rate)),
            lambda x: infer(tf.constant(x)).numpy(),
        )


@contextlib.contextmanager
def fused_normalization(model: keras.Model, number: tf.Variable | None = None) -> Iterator[None]:
    """Train with one fused operation per `BatchNormalization`; the layers stay stock layers.

    Outputs, gradients and moving averages are those of Keras. With `number`, the step counted
    from 1, the averages follow faster in the beginning: momentum min(momentum, n / (n + 9)), the
    rule of `tf.train.ExponentialMovingAverage`, else the first epochs are judged with averages
    that still remember their initial values.
    """
    layers = [layer for layer in model.layers if _can_fuse(layer)]
    for layer in layers:
        vars(layer)["call"] = _fused_call(layer, number)  # shadows the method of the class
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


def _fused_call(layer: keras.layers.BatchNormalization, number: tf.Variable | None) -> Callable:
    stock = layer.call

    def call(inputs, training=None, mask=None):
        if not training or mask is not None:
            return stock(inputs, training=training, mask=mask)
        mean, variance = layer.moving_mean.value, layer.moving_variance.value
        outputs, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=layer.gamma.value if layer.scale else tf.ones_like(mean),
            offset=layer.beta.value if layer.center else tf.zeros_like(mean),
            mean=[],
            variance=[],
            epsilon=layer.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
        biased = batch_variance * ((count - 1) / count)  # the operation's is unbiased, Keras' not
        momentum = layer.momentum
        if number is not None:
            momentum = tf.minimum(momentum, number / (number + 9))
        mean.assign_sub((mean - batch_mean) * (1 - momentum))
        variance.assign_sub((variance - biased) * (1 - momentum))
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

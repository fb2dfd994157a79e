"""Zero-cost scores: what an untrained network promises, after one look at it instead of a training.

synflow: Tanaka et al., arXiv 2006.05467, as Abdelfattah et al., arXiv 2101.08134, score networks
with it. naswot: Mellor et al., "Neural Architecture Search without Training", arXiv 2006.04647.
flops and params are the baselines that a score has to beat. Higher is better.
"""

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

from compress.rewriting import gradients, graph
from latency.networks.count import count
from nas.tasks.task import Task
from nas.training.batches import decays, prepared

IMAGES = 128  # Mellor et al., section 4, on images of 32 x 32
MOST_PIXELS = IMAGES * 64 * 64  # of all images that naswot looks at, so that large ones fit
FEWEST_IMAGES = 16
# Activations whose output is above 0 exactly where their input is.
RECTIFIERS = {"relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "mish"} | {
    *("silu", "swish", "hard_silu", "hard_swish"),
}


def score(name: str, model: keras.Model, task: Task) -> float:
    """The score `name` of an untrained, flat network for the images of a task; higher is better.

    >>> score("naswot", mnasnet.build(VARIANTS["tiny"]), digits.load(size=32))  # doctest: +SKIP
    """
    if name == "synflow":
        return synflow(model)
    if name == "naswot":
        return naswot(model, minibatch(model, task))
    if name == "flops":
        return 2.0 * count(model).macs
    if name == "params":
        return float(count(model).trainable_params)
    raise ValueError(f"no zero-cost score {name!r} (there is: synflow, naswot, flops, params)")


def minibatch(model: keras.Model, task: Task) -> np.ndarray:
    """Training images (count, height, width, channels) as the network sees them, always the same.

    As many for every network of a task: determinants of kernels of one size only are comparable.
    """
    images = task.train[0]
    if isinstance(images, dict) or images.ndim != 4:
        raise ValueError(f"naswot compares images; task {task.name} has none")
    fitting = MOST_PIXELS // (images.shape[1] * images.shape[2])
    number = min(IMAGES, max(FEWEST_IMAGES, fitting), len(images))
    chosen = np.random.default_rng(0).permutation(len(images))[:number]
    return prepared(model)(images[np.sort(chosen)])


def synflow(model: keras.Model) -> float:
    """Logarithm of the sum over all kernels of |weight * gradient|, of the sum of the outputs.

    An image of ones, absolute weights, and no batch normalization. All values are positive then, so
    activations that let those pass are left out as well, and ReLU6's limit does not cut the flow.
    In double precision: the product over many layers exceeds what float32 holds. -inf where nothing
    flows. Of a network that ends in logits: what a softmax gives always sums to one.
    """
    with _double_precision():
        flow = _flow(model)
        kernels = [variable for variable in flow.trainable_variables if decays(variable)]
        if not kernels:
            raise ValueError(
                f"synflow: {model.name} has no kernel, of a convolution or dense layer"
            )
        ones = [np.ones((1, *tensor.shape[1:])) for tensor in flow.inputs]
        by = gradients.gradient(flow, lambda outputs, _: _total(outputs), kernels)
        found = by(ones[0] if len(ones) == 1 else ones, np.zeros(1))
        parts = zip(kernels, found, strict=True)
        total = sum(
            np.abs(ops.convert_to_numpy(kernel) * ops.convert_to_numpy(change)).sum()
            for kernel, change in parts
        )
    with np.errstate(divide="ignore"):
        return float(np.log(total))


def naswot(model: keras.Model, images: np.ndarray) -> float:
    """Log-determinant of the kernel of binary activations of (count, ...) images.

    Entry (i, j) counts the rectified units, of all layers, that are both on or both off for images
    i and j. Batch normalization takes the statistics of these images, as while it trains; dropout
    is off; the weights of the model, and its averages, stay as they are. -inf where two images
    are not told apart.
    """
    graph.check_flat(model)
    layers = _compiled(lambda batch: _agreements(model, batch))(ops.convert_to_tensor(images))
    if not layers:
        raise ValueError(f"naswot: {model.name} has no rectifier, such as ReLU")
    kernel = sum(ops.convert_to_numpy(layer).astype(np.float64) for layer in layers)
    sign, logarithm = np.linalg.slogdet(kernel)
    return float(logarithm) if sign > 0 else -np.inf


def _agreements(model: keras.Model, images: Any) -> list:
    """For each rectifier the matrix (count, count) of how many of its units agree."""
    now: dict[int, Any] = {id(model.inputs[0]): images}
    left, found = _uses(model), []
    with keras.StatelessScope():  # what is assigned to averages of norms is forgotten
        for node in graph.calls(model):
            call = node.operation
            if isinstance(call, keras.layers.BatchNormalization):
                call = _training(call)
            after = graph.call(call, node, now)
            now |= {id(old): new for old, new in zip(node.output_tensors, after, strict=True)}
            if rectifies(node.operation):
                on = ops.cast(ops.reshape(after[0], (len(images), -1)) > 0, "float32")
                each, both = ops.sum(on, axis=1), ops.matmul(on, ops.transpose(on))
                # Both on, and both off: N - a_i - a_j + both_ij; whole numbers, exact below 2^24.
                found.append(2 * both + on.shape[1] - each[:, None] - each)
            for tensor in node.input_tensors:
                left[id(tensor)] -= 1
                if not left[id(tensor)]:
                    del now[id(tensor)]
    return found


def rectifies(operation: Any) -> bool:
    """Whether the output of a layer, or operation, is above 0 where what it rectifies is."""
    function = getattr(operation, "activation", None)
    name = getattr(function, "__name__", None) or keras.src.utils.naming.to_snake_case(
        type(operation).__name__
    )
    return name.replace("re_lu", "relu") in RECTIFIERS


def _flow(model: keras.Model) -> keras.Model:
    """The network that synflow looks at."""
    graph.check_flat(model)
    made: dict[int, keras.layers.Layer | None] = {}

    def place(node: Any, now: Any) -> Any:
        layer = node.operation
        if id(layer) not in made:
            made[id(layer)] = _positive(layer)
        new = made[id(layer)]
        if new is None:
            return [now[id(node.input_tensors[0])]]
        return graph.call(new, node, now)

    flow = graph.rebuild(model, place)
    for layer in model.layers:
        if (new := made.get(id(layer))) is not None and layer.weights:
            new.set_weights([np.abs(ops.convert_to_numpy(weight)) for weight in layer.weights])
    return flow


def _positive(layer: Any) -> Any:
    """What stands for a layer where all values are positive; None: nothing."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return None
    if not isinstance(layer, keras.layers.Layer):
        return None if rectifies(layer) else layer
    config = layer.get_config() | {"dtype": "float64"}
    config |= {name: "zeros" for name in config if name.endswith("_initializer")}  # set afterwards
    if rectifies(layer):
        if not layer.weights or "activation" not in config:
            return None
        config["activation"] = "linear"
    return type(layer).from_config(config)


def _double_precision() -> Any:
    """A context in which this backend computes in float64 where a layer asks for it."""
    if keras.config.backend() == "jax":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


def _compiled(function: Any) -> Any:
    """One compilation where each operation would be compiled by itself: on JAX."""
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def _total(outputs: Any) -> Any:
    return sum(ops.sum(output) for output in keras.tree.flatten(outputs))


def _training(layer: Any) -> Any:
    return lambda *args, **kwargs: layer(*args, **(kwargs | {"training": True}))


def _uses(model: keras.Model) -> dict[int, int]:
    """Id of a tensor -> how many calls read it."""
    found: dict[int, int] = {}
    for node in graph.calls(model):
        for tensor in node.input_tensors:
            found[id(tensor)] = found.get(id(tensor), 0) + 1
    return found

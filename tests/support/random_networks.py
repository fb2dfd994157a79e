"""Networks drawn at random of some forty kinds of layer, as users put them together."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as L  # noqa: N812
from keras import ops

SIZE, STEPS = 8, 6  # of images, of sequences
MOST = 6  # layers in a row
ACTIVATIONS = (None, "relu", "relu6", "sigmoid", "tanh", "swish", "gelu", "elu", "hard_swish")
PLAIN_ACTIVATIONS = (None, "relu", "relu6", "sigmoid", "tanh", "swish", "hard_sigmoid", "softmax")
ACTIVATIONS += ("hard_sigmoid", "softplus", "softmax", "leaky_relu", "exponential")


class Drawn:
    """One network that is being drawn: `pick` chooses, `numbers` gives arrays."""

    def __init__(self, draw: Callable[[int], int]):
        """draw: n -> one of 0 .. n - 1."""
        self._draw = draw
        self.random = np.random.default_rng(draw(1 << 16))
        self.kinds: set[str] = set()  # what is in it
        self.plain = self.pick(True, False, False)  # of what `convert.assemble` writes only
        self.activations = PLAIN_ACTIVATIONS if self.plain else ACTIVATIONS

    def pick(self, *options: Any) -> Any:
        return options[self._draw(len(options))]

    def numbers(self, *shape: int) -> np.ndarray:
        return self.random.uniform(0.5, 2, shape).astype(np.float32)

    def network(self) -> keras.Model:
        """A Sequential or Functional network, whose weights are as after training."""
        model = self._sequential() if self.pick(*"abc") == "a" else self._functional()
        for layer in model._flatten_layers():
            for weight in () if isinstance(layer, L.Normalization) else layer._trainable_variables:
                self._train(weight)
            for weight in layer._non_trainable_variables if hasattr(layer, "momentum") else ():
                self._train(weight)
        return model

    def _train(self, weight: Any) -> None:
        """Values without the zeros and ones that hide what is left out."""
        spread = 1 / np.sqrt(np.prod(weight.shape[:-1] or (1,)))
        drawn = self.random.normal(0, spread, weight.shape)
        positive = weight.name in ("moving_variance", "gamma")
        weight.assign(np.abs(drawn) + 0.5 if positive else drawn)

    def _sequential(self) -> keras.Model:
        self.kinds.add("Sequential")
        shape = self.pick((SIZE, SIZE, 3), (12,), (STEPS, 5))
        row, x = [keras.Input(shape)], keras.Input(shape)
        for _ in range(1 + self._draw(MOST)):
            kinds = {1: VECTOR, 2: SEQUENCE, 3: IMAGE}[len(x.shape) - 1]
            row.append(self._layer(kinds, x.shape))
            x = row[-1](x)
        if self.pick(True, False) and len(x.shape) > 2:
            row.append(L.Flatten())
        return keras.Sequential([*row, L.Dense(3, activation=self.pick(None, "softmax"))])

    def _functional(self) -> keras.Model:
        inputs, vectors = [], []
        for number in range(self.pick(1, 1, 2)):
            shapes = ((SIZE, SIZE, 3), (SIZE, SIZE, 4), (12,), (STEPS, 5), "words")
            shape = self.pick(*shapes[: 4 if self.plain else None])
            if shape == "words":
                self.kinds.add("Embedding")
                tensor = keras.Input((STEPS,), dtype="int32", name=f"words{number}")
                x = L.Embedding(20, 5)(tensor)
            else:
                tensor = x = keras.Input(shape, name=f"input{number}")
            inputs.append(tensor)
            vectors.append(self._row(x))
        x = vectors[0]
        if len(vectors) > 1:
            x = L.Concatenate()([self._vector(one) for one in vectors])
        outputs = self._outputs(x)
        if self.pick(True, False, False):
            self.kinds.add("dict of outputs")
            outputs = {f"output{n}": tensor for n, tensor in enumerate(outputs)}
        elif len(outputs) == 1:
            outputs = outputs[0]
        return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)

    def _row(self, x: Any) -> Any:
        """Layers and branches one after the other, on a tensor of any rank."""
        for _ in range(1 + self._draw(MOST)):
            kind = self.pick("layer", "layer", "layer", "branch", "constant", "shared", "nested")
            kind = "layer" if kind == "nested" and self.plain else kind
            rank = len(x.shape) - 1
            kinds = {1: VECTOR, 2: SEQUENCE, 3: IMAGE}[rank]
            if kind == "layer":
                x = self._layer(kinds, x.shape)(x)
            elif kind == "branch":
                x = self._branch(x)
            elif kind == "constant":
                x = self._constant(x)
            elif kind == "shared":
                self.kinds.add("shared layer")
                layer = L.Dense(x.shape[-1], activation=self.pick(*self.activations[:5]))
                x = layer(layer(x) if self.pick(True, False) else x) + layer(x)
            else:
                self.kinds.add("nested model")
                inner = keras.Input(x.shape[1:])
                y = L.Dense(x.shape[-1])(self._constant(inner))
                model = keras.Model(inner, y)
                x = model(x) if self.pick(True, False) else L.Add()([model(x), model(x * 0.5)])
        return x

    def _outputs(self, x: Any) -> list:
        outputs = [L.Dense(4, activation=self.pick(None, "softmax", "sigmoid"))(self._vector(x))]
        for kind in ("head", "feature", "twice")[: self._draw(4)]:
            if kind == "head":
                outputs.append(L.Rescaling(100.0)(L.Dense(2)(self._vector(x))))
            elif kind == "feature":
                outputs.append(x)
            else:  # one layer gives two outputs
                self.kinds.add("one layer, two outputs")
                head = L.Dense(2)
                row = self._vector(x)
                outputs += [head(row), head(row * 2.0)]
        return outputs

    def _vector(self, x: Any) -> Any:
        rank = len(x.shape) - 1
        if rank == 3:
            kind = self.pick(L.GlobalAveragePooling2D, L.Flatten, L.GlobalMaxPooling2D)
            kind = L.Flatten if kind is L.GlobalMaxPooling2D and self.plain else kind
        elif rank == 2:
            kind = self.pick(L.GlobalAveragePooling1D, L.GlobalMaxPooling1D, L.Flatten)
            kind = L.Flatten if self.plain else kind
        else:
            return x
        self.kinds.add(kind.__name__)
        return kind()(x)

    def _layer(self, kinds: dict[str, Callable], shape: tuple) -> Any:
        name = self.pick(*(name for name in kinds if name in PLAIN or not self.plain))
        self.kinds.add(name)
        return kinds[name](self, shape)

    def _branch(self, x: Any) -> Any:
        others = () if self.plain else (L.Subtract, L.Maximum, L.Minimum, L.Average)
        kind = self.pick(L.Add, L.Multiply, *others)
        joined = self.pick("merge", "merge", "concatenate", "operator", "gate")
        joined = "operator" if joined == "gate" and self.plain else joined
        y = L.Dense(x.shape[-1], activation=self.pick(*self.activations))(x)
        if joined == "concatenate":
            self.kinds.add("Concatenate")
            return L.Concatenate()([x, y])
        if joined == "operator":
            self.kinds.add("operators on two tensors")
            return self.pick(lambda: x + y, lambda: x - y, lambda: x * y, lambda: x / (y * y + 1))()
        if joined == "gate":
            self.kinds.add("broadcast")
            axes = tuple(range(1, len(x.shape) - 1))
            return x * ops.sigmoid(ops.mean(x, axis=axes, keepdims=True) if axes else y)
        self.kinds.add(kind.__name__)
        return kind()([x, y])

    def _constant(self, x: Any) -> Any:
        """Numbers and arrays in the graph, on either side."""
        channels = x.shape[-1]
        kinds = {
            "x * 2 + 1": lambda: x * 2.0 + 1.0,
            "1 - x / 4": lambda: 1.0 - x / 4.0,
            "x * array": lambda: x * self.numbers(channels),
            "array - x": lambda: ops.subtract(self.numbers(*[1] * (len(x.shape) - 2), channels), x),
            "array over places": lambda: x + self.numbers(*x.shape[1:-1], 1),
            "1 / (x * x + 1)": lambda: 1.0 / (x * x + 1.0),
            "-x": lambda: -x,
            "x ** 2": lambda: (x * 0.5) ** 2,
            "relu": lambda: ops.relu(x - 0.1),
            "maximum": lambda: ops.maximum(x, 0.1),
            "clip": lambda: ops.clip(x, -1.0, 1.0),
            "abs": lambda: ops.sqrt(ops.abs(x) + 0.5),
            "slice": lambda: x[..., : max(channels // 2, 1)],
            "exp": lambda: ops.exp(-ops.square(x)),
        }
        name = self.pick(*list(kinds)[: 6 if self.plain else None])
        self.kinds.add(name)
        return kinds[name]()


def _conv(drawn: Drawn, shape: tuple) -> Any:
    strides = drawn.pick(1, 1, 2)
    dilation = 1 if strides > 1 else drawn.pick(1, 1, 2)
    groups = drawn.pick(1, 1, 2) if shape[-1] % 2 == 0 and not drawn.plain else 1
    return L.Conv2D(
        4, drawn.pick(1, 3, (1, 3)), strides=strides, padding="same", dilation_rate=dilation,
        groups=groups, activation=drawn.pick(*drawn.activations), use_bias=drawn.pick(True, False),
    )  # fmt: skip


def _adapted(drawn: Drawn, shape: tuple) -> Any:
    layer = L.Normalization()
    layer.adapt(drawn.random.normal(2, 3, (16, *shape[1:])))
    return layer


def _norm(drawn: Drawn, _: tuple) -> Any:
    return L.BatchNormalization(scale=drawn.pick(True, False), center=drawn.pick(True, False))


def _activation(drawn: Drawn, _: tuple) -> Any:
    return L.Activation(drawn.pick(*drawn.activations[1:]))


def _relu(drawn: Drawn, _: tuple) -> Any:
    others = {"max_value": 1.5}, {"negative_slope": 0.1}, {"threshold": 0.3}
    return L.ReLU(**drawn.pick({}, {"max_value": 6.0}, *(() if drawn.plain else others)))


def _rescaling(drawn: Drawn, shape: tuple) -> Any:
    return L.Rescaling(drawn.pick(0.5, 2.0), offset=drawn.pick(0.0, -1.0))


def _einsum(drawn: Drawn, shape: tuple) -> Any:
    places = "wxyz"[: len(shape) - 1]
    equation = f"{places}a,ab->{places}b"
    return L.EinsumDense(equation, (*shape[1:-1], 4), bias_axes="b")


_ANY: dict[str, Callable] = {
    "Dense": lambda d, _: L.Dense(
        5, activation=d.pick(*d.activations), use_bias=d.pick(True, False)
    ),
    "BatchNormalization": _norm,
    "LayerNormalization": lambda d, _: L.LayerNormalization(),
    "UnitNormalization": lambda d, _: L.UnitNormalization(),
    "Normalization": _adapted,
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": lambda d, _: L.LeakyReLU(0.2),
    "PReLU": lambda d, _: L.PReLU(),
    "ELU": lambda d, _: L.ELU(),
    "Softmax": lambda d, _: L.Softmax(),
    "Rescaling": _rescaling,
    "Dropout": lambda d, _: L.Dropout(0.3),
    "GaussianNoise": lambda d, _: L.GaussianNoise(0.1),
    "EinsumDense": _einsum,
}
VECTOR = _ANY | {"RepeatVector": lambda d, _: L.RepeatVector(STEPS)}
SEQUENCE = _ANY | {
    "Conv1D": lambda d, _: L.Conv1D(
        4, 3, padding=d.pick("same", "causal"), dilation_rate=d.pick(1, 2), activation="relu"
    ),
    "SeparableConv1D": lambda d, _: L.SeparableConv1D(4, 3, padding="same"),
    "MaxPooling1D": lambda d, _: L.MaxPooling1D(2, padding="same"),
    "UpSampling1D": lambda d, _: L.UpSampling1D(2),
    "TimeDistributed": lambda d, _: L.TimeDistributed(L.Dense(4)),
    "Permute": lambda d, _: L.Permute((2, 1)),
    "LSTM": lambda d, _: L.LSTM(4, return_sequences=True),
    "GRU": lambda d, _: L.GRU(4, return_sequences=d.pick(True, False)),
    "Bidirectional": lambda d, _: L.Bidirectional(L.LSTM(3, return_sequences=True)),
}
IMAGE = _ANY | {
    "Conv2D": _conv,
    "DepthwiseConv2D": lambda d, _: L.DepthwiseConv2D(
        3, strides=d.pick(1, 2), padding="same", depth_multiplier=d.pick(1, 2)
    ),
    "SeparableConv2D": lambda d, _: L.SeparableConv2D(4, 3, padding="same", activation="relu"),
    "Conv2DTranspose": lambda d, _: L.Conv2DTranspose(4, 3, strides=d.pick(1, 2), padding="same"),
    "MaxPooling2D": lambda d, _: L.MaxPooling2D(2, padding="same"),
    "AveragePooling2D": lambda d, _: L.AveragePooling2D(2, padding="same"),
    "UpSampling2D": lambda d, _: L.UpSampling2D(2, interpolation=d.pick("nearest", "bilinear")),
    "ZeroPadding2D": lambda d, _: L.ZeroPadding2D(d.pick(1, ((0, 1), (1, 0)))),
    "SpatialDropout2D": lambda d, _: L.SpatialDropout2D(0.2),
    "GroupNormalization": lambda d, _: L.GroupNormalization(1),
    "Permute": lambda d, _: L.Permute((2, 1, 3)),
    "Reshape": lambda d, shape: L.Reshape((shape[1] * shape[2], shape[3])),
}
PLAIN = {  # what `convert.assemble` writes
    "Activation", "AveragePooling2D", "BatchNormalization", "Conv2D", "Dense", "DepthwiseConv2D",
    "Dropout", "MaxPooling2D", "ReLU", "Rescaling", "Reshape", "Softmax", "ZeroPadding2D",
}  # fmt: skip

"""What a layer multiplies its kernels with: seen while the layer runs, whatever kind it is.

Every product of Keras ends in one of a few functions of its backend. While a layer is watched these
tell which of its kernels they got, and with which inputs: so a cell within a wrapper, a gated
projection and a user's own layer are seen as a Dense layer is.
"""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src import backend  # where all layers and `keras.ops` end

from compress.rewriting.weights import Kernel


@dataclasses.dataclass(frozen=True)
class View:
    """A kernel as matrices (groups, inputs, outputs).

    Groups share no input: those of a grouped convolution, experts, the channels of a depthwise one.
    split: the kernel's shape, the groups of its last axis apart. groups, inputs, outputs: which
    axes of it are which.
    """

    kernel: Kernel
    split: tuple[int, ...]
    groups: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, inputs, outputs)."""
        groups, inputs, outputs = (
            math.prod(self.split[axis] for axis in axes)
            for axes in (self.groups, self.inputs, self.outputs)
        )
        return groups, inputs, outputs

    def apply(self, array: np.ndarray) -> np.ndarray:
        """(groups, inputs, outputs) of an array of the kernel's shape."""
        order = (*self.groups, *self.inputs, *self.outputs)
        return array.reshape(self.split).transpose(order).reshape(self.shape)

    def restore(self, matrices: np.ndarray) -> np.ndarray:
        """An array of the kernel's shape; of (groups, 1, outputs): 1 along its input axes."""
        order = (*self.groups, *self.inputs, *self.outputs)
        whole = np.broadcast_to(matrices, self.shape)
        whole = whole.reshape([self.split[axis] for axis in order])
        whole = whole.transpose(np.argsort(order)).reshape(self.kernel.shape)
        if matrices.shape[1] == self.shape[1]:
            return whole
        first = (0 if axis in self.kernel.input_axes else None for axis in range(whole.ndim))
        return whole[tuple(slice(None if one is None else 1) for one in first)]


@dataclasses.dataclass(frozen=True)
class Product:
    """One product with a kernel.

    rows: a function of a count: what the first so many samples of the batch were multiplied with,
        (blocks, rows, inputs). owner: the group of each block; None: they are the groups, in order.
    places: rows of one sample.
    """

    view: View
    rows: Callable[[int], Any]
    places: int
    owner: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Known:
    """What a tensor stands for: a kernel, or experts of it that were picked.

    tensor: itself where nobody else keeps it, so that no other takes its id.
    """

    kernel: Kernel
    owner: np.ndarray | None = None
    tensor: Any = None


@contextlib.contextmanager
def watched(kernels: dict[int, Kernel], seen: Callable[[Product], None]) -> Iterator[None]:
    """Tell `seen` of each product with one of the kernels, in order, while the block runs.

    kernels: by the ids of the variables and values that stand for them.
    """
    known = {key: Known(kernel) for key, kernel in kernels.items()}
    busy = False

    def watch(find: Callable, function: Callable) -> Callable:
        def watching(*args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy:  # rows are made by products, which are none of the layer's
                return function(*args, **kwargs)
            busy = True
            try:
                product = find(known, function, *args, **kwargs)
                if product is not None:
                    seen(product)
            finally:
                busy = False
            return function(*args, **kwargs)

        return watching

    def watch_take(function: Callable) -> Callable:
        def taking(x: Any, indices: Any, axis: Any = None) -> Any:
            found = function(x, indices, axis)
            if id(x) in known and axis == 0:  # experts, each for the rows that are its own
                owner = ops.convert_to_numpy(indices)
                known[id(found)] = Known(known[id(x)].kernel, owner, found)
            return found

        return taking

    with contextlib.ExitStack() as stack:
        take = backend.numpy.take
        stack.callback(setattr, backend.numpy, "take", take)
        backend.numpy.take = watch_take(take)
        for module, name, find in _PRODUCTS:
            function = getattr(module, name)
            stack.callback(setattr, module, name, function)
            setattr(module, name, watch(find, function))
        for name in ("lstm", "gru"):  # fused, where a backend has such: Keras then goes by steps
            stack.callback(setattr, backend, name, getattr(backend, name))
            setattr(backend, name, _no_fused)
        if keras.config.backend() == "jax":
            import jax

            stack.enter_context(jax.disable_jit())  # loops run step by step, and are seen
        yield


def _no_fused(*_: Any, **__: Any) -> Any:
    raise NotImplementedError


def _matmul(
    known: dict[int, Known], function: Callable, x1: Any, x2: Any, *_: Any, **__: Any
) -> Product | None:
    if id(x2) not in known or len(x1.shape) < 2:
        return None
    kernel, owner = known[id(x2)].kernel, known[id(x2)].owner
    x = ops.convert_to_tensor(x1)
    if owner is not None:
        return _experts(x, kernel, owner)
    rank = len(kernel.shape)
    batch = kernel.shape[:-2]
    if kernel.input_axes != (rank - 2,) or (batch and tuple(x.shape[:-2]) != batch):
        return None
    view = View(kernel, kernel.shape, tuple(range(rank - 2)), (rank - 2,), (rank - 1,))
    groups, inputs = view.shape[:2]
    if batch:
        return Product(view, lambda _: ops.reshape(x, (groups, -1, inputs)), 0)
    return Product(
        view, lambda count: ops.reshape(x[:count], (1, -1, inputs)), math.prod(x.shape[1:-1])
    )


def _experts(x: Any, kernel: Kernel, owner: np.ndarray) -> Product | None:
    """x (..., rows, inputs), a kernel for each index of the axes before, chosen by `owner`."""
    if kernel.input_axes != (1,) or len(kernel.shape) != 3:
        return None
    view = View(kernel, kernel.shape, (0,), (1,), (2,))
    inputs = kernel.shape[1]
    blocks = ops.broadcast_to(x, (*owner.shape, *x.shape[owner.ndim :]))
    return Product(view, lambda _: ops.reshape(blocks, (owner.size, -1, inputs)), 0, owner.ravel())


def _einsum(
    known: dict[int, Known], function: Callable, text: str, *operands: Any, **_: Any
) -> Product | None:
    place = next((n for n, one in enumerate(operands) if id(one) in known), None)
    if place is None or len(operands) != 2 or "->" not in text:
        return None
    kernel, x = known[id(operands[place])].kernel, ops.convert_to_tensor(operands[1 - place])
    sides, result = text.replace(" ", "").split("->")
    terms = sides.split(",")
    mine, other = terms[place], terms[1 - place]
    if "..." in mine:
        return None
    open_axes = len(x.shape) - len(other.replace("...", ""))
    letters = "".join(chr(ord("A") + n) for n in range(open_axes))
    other, result = other.replace("...", letters), result.replace("...", letters)
    inputs = [letter for letter in mine if letter not in result]
    groups = [letter for letter in mine if letter in other and letter in result]
    outputs = [letter for letter in mine if letter not in other and letter in result]
    places = [letter for letter in other if letter not in mine and letter in result]
    axes = tuple(mine.index(letter) for letter in inputs)
    if kernel.input_axes != axes or not set(inputs) <= set(other) or not outputs:
        return None
    order = "".join([*groups, *places, *inputs])
    view = View(
        kernel,
        kernel.shape,
        tuple(mine.index(letter) for letter in groups),
        axes,
        tuple(mine.index(letter) for letter in outputs),
    )
    shape = (view.shape[0], -1, view.shape[1])
    first = bool(places) and other[0] == places[0]

    def rows(count: int) -> Any:
        return ops.reshape(function(f"{other}->{order}", x[:count] if first else x), shape)

    sizes = dict(zip(other, x.shape, strict=True))
    return Product(view, rows, math.prod(sizes[n] for n in places[1:]) if first else 0)


# (shape of a kernel, channels of what is convolved) -> the axes of its `View`, and a kernel that
# passes each of its inputs on.
Form = Callable[[tuple[int, ...], int], tuple[tuple, np.ndarray]]


def _convolution(form: Form) -> Callable:
    """What finds the product of a convolution: its rows come of the convolution itself."""

    def find(
        known: dict[int, Known], function: Callable, inputs: Any, kernel: Any, *args: Any, **kw: Any
    ) -> Product | None:
        if id(kernel) not in known:
            return None
        found = known[id(kernel)].kernel
        kw = _options(function, 2, args, kw)
        x = ops.convert_to_tensor(inputs)
        first = kw.get("data_format") == "channels_first"
        axes, unit = form(found.shape, x.shape[1 if first else -1])
        view = View(found, *axes)
        groups, size, _ = view.shape

        def rows(count: int) -> Any:
            made = function(x[:count], ops.convert_to_tensor(unit), **kw)
            made = ops.moveaxis(made, 1, -1) if first else made
            return ops.transpose(ops.reshape(made, (-1, groups, size)), (1, 0, 2))

        return Product(view, rows, _places(x, first))

    return find


def _unit(window: tuple[int, ...], depth: int) -> np.ndarray:
    """(*window, depth, window * depth): an output for each input."""
    size = math.prod(window) * depth
    return np.eye(size, dtype=np.float32).reshape(*window, depth, size)


def _plain(shape: tuple[int, ...], channels: int) -> tuple[tuple, np.ndarray]:
    *window, depth, count = shape
    groups, rank = channels // depth, len(shape)
    split = (*shape[:-1], groups, count // groups)
    axes = split, (rank - 1,), tuple(range(rank - 1)), (rank,)
    return axes, np.tile(_unit(tuple(window), depth), groups)


def _transposed(shape: tuple[int, ...], channels: int) -> tuple[tuple, np.ndarray]:
    *window, _, depth = shape
    rank = len(shape)
    axes = shape, (), (*range(rank - 2), rank - 1), (rank - 2,)
    return axes, np.moveaxis(_unit(tuple(window), depth), -1, -2)


def _by_channel(shape: tuple[int, ...], channels: int) -> tuple[tuple, np.ndarray]:
    *window, depth, _ = shape
    rank = len(shape)
    axes = shape, (rank - 2,), tuple(range(rank - 2)), (rank - 1,)
    return axes, np.repeat(_unit(tuple(window), 1), depth, axis=-2)


def _separable(
    known: dict[int, Known],
    function: Callable,
    inputs: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    *args: Any,
    **kw: Any,
) -> Product | None:
    """The pointwise part, which holds nearly all weights; the depthwise one stays at 8 bits."""
    if id(pointwise_kernel) not in known:
        return None
    found = known[id(pointwise_kernel)].kernel
    kw = _options(function, 3, args, kw)
    first = kw.get("data_format") == "channels_first"
    kernel = ops.convert_to_tensor(depthwise_kernel)
    x = ops.depthwise_conv(inputs, kernel, **kw)
    rank, size = len(found.shape), found.shape[-2]
    view = View(found, found.shape, (), tuple(range(rank - 1)), (rank - 1,))

    def rows(count: int) -> Any:
        part = ops.moveaxis(x[:count], 1, -1) if first else x[:count]
        return ops.reshape(part, (1, -1, size))

    return Product(view, rows, _places(x, first))


def _options(function: Callable, given: int, args: tuple, kw: dict) -> dict[str, Any]:
    """The arguments after the first `given` ones, all by name."""
    return dict(zip(list(inspect.signature(function).parameters)[given:], args, strict=False)) | kw


def _places(x: Any, first: bool) -> int:
    """Rows of a sample, about: strides and paddings make them fewer or more."""
    return math.prod(x.shape[2:] if first else x.shape[1:-1])


_PRODUCTS = (
    (backend.numpy, "matmul", _matmul),
    (backend.numpy, "dot", _matmul),
    (backend.numpy, "einsum", _einsum),
    (backend.nn, "conv", _convolution(_plain)),
    (backend.nn, "conv_transpose", _convolution(_transposed)),
    (backend.nn, "depthwise_conv", _convolution(_by_channel)),
    (backend.nn, "separable_conv", _separable),
)

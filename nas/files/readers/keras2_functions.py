"""TensorFlow's functions in graphs of Keras 2 networks, as operations of Keras 3 (keras.ops)."""

from collections.abc import Callable
from typing import Any

_NUMPY, _CORE, _MATH, _NN, _IMAGE = (
    f"keras.src.ops.{name}" for name in ("numpy", "core", "math", "nn", "image")
)
_Options = dict[str, Any]
# How a function's arguments by name become an operation's, None where it has not all of them.
_Arguments = Callable[[_Options], _Options | None]


def _as(**renamed: str) -> _Arguments:
    """Each argument under the name that the operation has for it."""

    def options(given: _Options) -> _Options | None:
        if not given.keys() <= renamed.keys():
            return None
        return {renamed[name]: value for name, value in given.items()}

    return options


_NONE, _REDUCED = _as(), _as(axis="axis", keepdims="keepdims")


def _argmax(given: _Options) -> _Options | None:
    given = {name: one for name, one in given.items() if name != "output_type"}
    return {"axis": 0} | given if given.keys() <= {"axis"} else None  # NumPy: of all of it


def _resized(given: _Options) -> _Options | None:
    given = {name: one for name, one in given.items() if one is not False}
    how = given.pop("method", "bilinear")
    if given.keys() != {"size"} or how not in ("bilinear", "nearest", "bicubic"):
        return None
    return {"size": given["size"], "interpolation": how, "data_format": "channels_last"}


def _padded(given: _Options) -> _Options | None:
    mode = str(given.get("mode", "CONSTANT")).lower()
    if given.get("constant_values", 0) or given.keys() - {"paddings", "mode", "constant_values"}:
        return None
    return {"pad_width": given["paddings"], "mode": mode}


def _cast(given: _Options) -> _Options | None:
    dtype = str(given.get("dtype")).removeprefix("<dtype: '").removesuffix("'>")
    return {"dtype": dtype} if given.keys() == {"dtype"} else None


def _split(given: _Options) -> _Options | None:
    sizes = given.get("num_or_size_splits")
    if given.keys() - {"num_or_size_splits", "axis"} or sizes is None:
        return None
    if isinstance(sizes, list):  # NumPy wants the places between the parts
        if not all(isinstance(one, int) and one > 0 for one in sizes):
            return None
        sizes = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
    return {"indices_or_sections": sizes, "axis": given.get("axis", 0)}


def _normalized(given: _Options) -> _Options | None:
    if given.keys() != {"axis"} or not isinstance(given["axis"], int):
        return None
    return {"axis": given["axis"], "epsilon": 1e-6}  # TensorFlow's 1e-12 is of the square


def _transposed(given: _Options) -> _Options | None:
    return None if given.get("conjugate") else {"axes": given.get("perm")}


# Of one tensor, or of a list of them: function -> operation and its options.
_ONE: dict[str, tuple[str, str, _Arguments]] = {
    **{
        f"math.reduce_{name}": (_NUMPY, kind, _REDUCED)
        for name, kind in (
            ("mean", "Mean"), ("sum", "Sum"), ("max", "Max"), ("min", "Min"), ("prod", "Prod"),
            ("std", "Std"), ("variance", "Var"),
        )
    },
    **{
        f"math.{name}": (_NUMPY, kind, _NONE)
        for name, kind in (
            ("abs", "Absolute"), ("exp", "Exp"), ("log", "Log"), ("log1p", "Log1p"),
            ("sqrt", "Sqrt"), ("square", "Square"), ("negative", "Negative"), ("sin", "Sin"),
            ("cos", "Cos"), ("floor", "Floor"), ("ceil", "Ceil"), ("sign", "Sign"),
            ("reciprocal", "Reciprocal"), ("logical_not", "LogicalNot"),
        )
    },
    "math.reduce_logsumexp": (_MATH, "Logsumexp", _REDUCED),
    "math.rsqrt": (_MATH, "Rsqrt", _NONE),
    "math.erf": (_MATH, "Erf", _NONE),
    "math.argmax": (_NUMPY, "Argmax", _argmax),
    "math.argmin": (_NUMPY, "Argmin", _argmax),
    "math.l2_normalize": (_NN, "Normalize", _normalized),
    "expand_dims": (_NUMPY, "ExpandDims", _as(axis="axis")),
    "squeeze": (_NUMPY, "Squeeze", _as(axis="axis")),
    "reshape": (_NUMPY, "Reshape", _as(shape="newshape")),
    "transpose": (_NUMPY, "Transpose", _transposed),
    "concat": (_NUMPY, "Concatenate", _as(axis="axis")),
    "stack": (_NUMPY, "Stack", _as(axis="axis")),
    "tile": (_NUMPY, "Tile", _as(multiples="repeats")),
    "split": (_NUMPY, "Split", _split),
    "pad": (_NUMPY, "Pad", _padded),
    "cast": (_CORE, "Cast", _cast),
    "stop_gradient": (_CORE, "StopGradient", _NONE),
    "clip_by_value": (_NUMPY, "Clip", _as(clip_value_min="x_min", clip_value_max="x_max")),
    "one_hot": (_NN, "OneHot", _as(depth="num_classes")),
    "nn.leaky_relu": (_NN, "LeakyRelu", _as(alpha="negative_slope")),
    "nn.softmax": (_NN, "Softmax", _as(axis="axis")),
    "nn.log_softmax": (_NN, "LogSoftmax", _as(axis="axis")),
    "image.resize": (_IMAGE, "Resize", _resized),
}  # fmt: skip
# Of two: the second, "y" or "b", is a tensor, an array or a number, and so may be the first.
_TWO = {
    "math.add": "Add",
    "math.subtract": "Subtract",
    "math.multiply": "Multiply",
    "math.truediv": "TrueDivide",
    "math.divide": "TrueDivide",
    "math.maximum": "Maximum",
    "math.minimum": "Minimum",
    "math.pow": "Power",
    "math.floordiv": "FloorDivide",
    "math.floormod": "Mod",
    "math.greater": "Greater",
    "math.greater_equal": "GreaterEqual",
    "math.less": "Less",
    "math.less_equal": "LessEqual",
    "math.equal": "Equal",
    "math.not_equal": "NotEqual",
    "math.logical_and": "LogicalAnd",
    "math.logical_or": "LogicalOr",
    "linalg.matmul": "Matmul",
}
_OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "truediv"}
_DEFAULTS: dict[str, _Options] = {
    "nn.leaky_relu": {"alpha": 0.2},
    "concat": {"axis": 0},
    "stack": {"axis": 0},
}


def operation(function: str, first: Any, given: _Options) -> tuple[str, str, _Options, list] | None:
    """Module, class, options and tensors of the operation that does what a function does.

    first: its first argument; given: the others, by name; both with tensors as Keras 3 writes
    them. None where there is no such operation.
    """
    function = function.removeprefix("compat.v1.")
    if (name := function.removeprefix("__operators__.")) in _OPERATORS:
        function = f"math.{_OPERATORS[name]}"
    flags = ("transpose_a", "transpose_b", "adjoint_a", "adjoint_b", "a_is_sparse", "b_is_sparse")
    given = {n: one for n, one in given.items() if one is not False or n not in flags}
    if function in _TWO and given.keys() in ({"y"}, {"b"}):
        second = next(iter(given.values()))
        return _NUMPY, _TWO[function], {}, [_constant(first), _constant(second)]
    if function == "linalg.matmul" and given.pop("transpose_b", None) and given.keys() == {"b"}:
        return _NUMPY, "Einsum", {"subscripts": "...ij,...kj->...ik"}, [first, given["b"]]
    if function == "__operators__.getitem" and given.keys() == {"slice_spec"}:
        return _NUMPY, "GetItem", {}, [first, _key(given["slice_spec"])]
    if function == "where" and given.keys() == {"x", "y"}:
        return _NUMPY, "Where", {}, [first, _constant(given["x"]), _constant(given["y"])]
    if function == "math.add_n" and not given and isinstance(first, list) and len(first) == 2:
        return _NUMPY, "Add", {}, first
    if function not in _ONE or any(_holds_tensor(one) for one in given.values()):
        return None
    module, kind, arguments = _ONE[function]
    options = arguments(_DEFAULTS.get(function, {}) | given)
    return None if options is None else (module, kind, options, [first])


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_tensor, value))
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"


def _constant(value: Any) -> Any:
    """An array as Keras 3 writes it; numbers and tensors as they are."""
    if not isinstance(value, list):
        return value
    return {"class_name": "__numpy__", "config": {"value": value, "dtype": "float32"}}


def _key(spec: Any) -> Any:
    """What stands in brackets, as Keras 3 writes it."""
    if isinstance(spec, list):
        return [_key(one) for one in spec]
    if isinstance(spec, dict) and "start" in spec:
        return {"class_name": "__slice__", "config": spec}
    if spec == "Ellipsis" or isinstance(spec, dict):
        return {"class_name": "__ellipsis__", "config": {}}
    return spec

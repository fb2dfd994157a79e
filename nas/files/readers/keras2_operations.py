"""Graphs of Keras 2 networks, as JSON: TensorFlow's operations in them become layers of Keras 3."""

from collections.abc import Callable, Iterator
from typing import Any

from nas.files.readers import keras2_functions

KINDS = {"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"}
MODELS = {"Functional", "Model", "Sequential"}
ADD = {"math.add", "__operators__.add", "add"}
SUBTRACT = {"math.subtract", "__operators__.sub", "subtract"}
MULTIPLY = {"math.multiply", "__operators__.mul", "multiply"}
DIVIDE = {"math.truediv", "math.divide", "__operators__.truediv", "divide", "realdiv"}
ACTIVATIONS = {
    "nn.relu": "relu",
    "nn.relu6": "relu6",
    "nn.elu": "elu",
    "nn.gelu": "gelu",
    "nn.selu": "selu",
    "nn.silu": "silu",
    "nn.swish": "silu",
    "nn.softmax": "softmax",
    "nn.sigmoid": "sigmoid",
    "nn.tanh": "tanh",
    "math.sigmoid": "sigmoid",
    "math.tanh": "tanh",
    "math.softplus": "softplus",
    "nn.softplus": "softplus",
}
CONSTANT = "_CONSTANT_VALUE"


def plain(config: dict[str, Any], source: str) -> dict[str, Any]:
    """A Functional network's description in which everything is a layer that Keras 3 knows.

    Names lose the slashes that Keras 3 forbids; calls of networks within it count from 0.
    """
    layers = [
        _layer(one, source) if one.get("class_name") in KINDS else dict(one)
        for one in _without_batches(config["layers"])
    ]
    models = {one["name"] for one in layers if one.get("class_name") in MODELS}
    ends = [config.get(name) for name in ("input_layers", "output_layers")]
    first: dict[str, int] = {}
    for reference in _references([[one.get("inbound_nodes") for one in layers], ends]):
        first[reference[0]] = min(first.get(reference[0], reference[1]), reference[1])

    def moved(reference: list) -> list:
        name, call, *rest = reference
        return [named(name), call - first[name] if name in models else call, *rest]

    for one in layers:
        _merge(one)
        calls = one.get("inbound_nodes", [])
        one["inbound_nodes"] = [_call_of(_mapped(call, moved)) for call in calls]
        one["name"] = named(one["name"])
        one["config"] = one["config"] | {"name": one["name"]}
    changed = {
        name: _mapped(config[name], moved)
        for name in ("input_layers", "output_layers")
        if name in config
    }
    return config | changed | {"layers": layers}


def _without_batches(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers with -1 for tf.shape(x)[0], a batch that a reshape is told."""

    def function(one: dict[str, Any]) -> str:
        config = one.get("config")
        return str(config.get("function", "")) if isinstance(config, dict) else ""

    shapes = {one["name"] for one in layers if function(one).removeprefix("compat.v1.") == "shape"}
    batches = {
        one["name"]
        for one in layers
        for node in one.get("inbound_nodes", [])
        if function(one) == "__operators__.getitem" and _is_reference(node) and len(node) > 3
        if node[0] in shapes and node[3].get("slice_spec") == 0
    }
    found = []
    for one in layers:
        nodes = one.get("inbound_nodes", [])
        if function(one) == "reshape" and len(nodes) == 1 and _is_reference(nodes[0]):
            *reference, given = nodes[0]
            first, *rest = given.get("shape") or [None]
            if isinstance(first, list) and first and first[0] in batches and -1 not in rest:
                nodes = [[*reference, given | {"shape": [-1, *rest]}]]
        found.append(one | {"inbound_nodes": nodes})
    for names in (batches, shapes):  # the second are read by the first
        read = {reference[0] for one in found for reference in _references(one["inbound_nodes"])}
        found = [one for one in found if one["name"] not in names - read]
    return found


def named(name: str) -> str:
    """The name that Keras 3 allows for a layer."""
    return name.replace("/", "_")


def _is_reference(value: Any) -> bool:
    """Whether this is [name of a layer, number of its call, number of its output, ...]."""
    return (
        isinstance(value, list)
        and len(value) >= 3
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and isinstance(value[2], int)
    )


def _references(value: Any) -> Iterator[list[Any]]:
    if _is_reference(value):
        yield value
        value = value[3:]
    if isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _references(one)


def _mapped(value: Any, change: Callable[[list[Any]], Any]) -> Any:
    """The same with each reference changed."""
    if _is_reference(value):
        return change(value[:3] + _mapped(value[3:], change))
    if isinstance(value, list):
        return [_mapped(one, change) for one in value]
    if isinstance(value, dict):
        return {name: _mapped(one, change) for name, one in value.items()}
    return value


def _merge(one: dict[str, Any]) -> None:
    """Makes x + y of Keras 3, which its reader takes for a layer of that name, that layer."""
    calls = one.get("inbound_nodes", [])
    if "module" in one or one.get("class_name") not in ("Add", "Subtract", "Multiply"):
        return
    if calls and all(isinstance(c, dict) and len(c.get("args", ())) == 2 for c in calls):
        if all(isinstance(arg, dict) for call in calls for arg in call["args"]):
            one["inbound_nodes"] = [call | {"args": [call["args"]]} for call in calls]
        elif len(calls) == 1 and isinstance(calls[0]["args"][1], (int, float)):
            tensor, number = calls[0]["args"]
            scale = number if one["class_name"] == "Multiply" else 1.0
            offset = {"Add": number, "Subtract": -number, "Multiply": 0.0}[one["class_name"]]
            one["class_name"] = "Rescaling"
            one["config"] = one["config"] | {"scale": scale, "offset": offset}
            one["inbound_nodes"] = [{"args": [tensor], "kwargs": {}}]


def _call_of(node: Any) -> Any:
    """A call as Keras 3 writes it where tensors are named arguments, which its reader of old ones
    overlooks."""
    references = node if isinstance(node, list) else []
    if not references or not all(_is_reference(one) for one in references):
        return node
    named_ones = references[-1][3] if len(references[-1]) > 3 else {}
    if not isinstance(named_ones, dict) or not any(
        True for _ in _references(list(named_ones.values()))
    ):
        return node
    tensors = [_tensor(one) for one in references]
    options = {name: _mapped(value, _tensor) for name, value in named_ones.items()}
    return {"args": tensors if len(tensors) == 1 else [tensors], "kwargs": options}


def _tensor(reference: list) -> dict[str, Any]:
    history = {"shape": [None], "dtype": "float32", "keras_history": reference[:3]}
    return {"class_name": "__keras_tensor__", "config": history}


def _layer(one: dict[str, Any], source: str) -> dict[str, Any]:
    """The layer that does what an operation does; `ValueError` where there is none."""
    function = one["config"].get("function", one["class_name"])
    calls, kinds = [], []
    for node in one.get("inbound_nodes", []):
        found = _call(function, node)
        if found is None:
            return _operation(one, function, source)
        kind, options, inputs = found
        kinds.append((kind, options))
        calls.append([[*reference[:3], {}] for reference in inputs])
    if not kinds or any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"{source}: {one['name']!r} ({function}) is called in different ways")
    kind, options = kinds[0]
    return {
        "class_name": kind,
        "config": {"name": one["name"], "trainable": True, "dtype": "float32"} | options,
        "name": one["name"],
        "inbound_nodes": calls,
    }


def _operation(one: dict[str, Any], function: str, source: str) -> dict[str, Any]:
    """The operation of Keras 3 that does what one of TensorFlow does; `ValueError` where none."""
    calls, kinds = [], []
    for node in one.get("inbound_nodes", []):
        several = isinstance(node, list) and node and all(map(_is_reference, node))
        first, *rest = node if several else [node]
        is_call = isinstance(first, list) and len(first) == 4 and isinstance(first[3], dict)
        given = first[3] if is_call else {}
        given = {name: _mapped(value, _tensor) for name, value in given.items() if name != "name"}
        given = {name: value for name, value in given.items() if value is not None}
        begin = first[2] if is_call and first[0] == CONSTANT else _tensor(first[:3])
        begin = [begin, *(_tensor(reference) for reference in rest)] if several else begin
        found = keras2_functions.operation(function, begin, given) if is_call else None
        if found is None:
            raise ValueError(
                f"{source}: {one['name']!r} is the TensorFlow operation {function} on {node!r:.80},"
                " for which Keras 3 has no layer; use one (keras.layers.Add, Rescaling, ...)"
            )
        module, kind, options, tensors = found
        kinds.append((module, kind, options))
        calls.append({"args": tensors, "kwargs": {}})
    if not kinds or any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"{source}: {one['name']!r} ({function}) is called in different ways")
    module, kind, options = kinds[0]
    return {
        "class_name": kind,
        "module": module,
        "config": {"name": one["name"]} | options,
        "registered_name": kind,
        "name": one["name"],
        "inbound_nodes": calls,
    }


def _call(function: str, node: Any) -> tuple[str, dict, list] | None:
    """Class of a layer, its options and the tensors it takes; None where there is no layer."""
    if not (isinstance(node, list) and len(node) == 4 and isinstance(node[3], dict)):
        return None
    given = {name: value for name, value in node[3].items() if value is not None}
    given.pop("name", None)
    if function in ACTIVATIONS:
        known = not given or (given == {"axis": -1} and function == "nn.softmax")
        return ("Activation", {"activation": ACTIVATIONS[function]}, [node]) if known else None
    if set(given) != {"y"}:
        return None
    y = given["y"]
    if node[0] != CONSTANT and _is_reference(y):
        pairs = ((ADD, "Add"), (SUBTRACT, "Subtract"), (MULTIPLY, "Multiply"))
        kind = next((kind for names, kind in pairs if function in names), None)
        return None if kind is None else (kind, {}, [node, y])
    number = node[2] if node[0] == CONSTANT else y
    tensor = y if node[0] == CONSTANT else node
    if not isinstance(number, (int, float)) or not _is_reference(tensor):
        return None
    first = node[0] == CONSTANT  # number - tensor
    if function in ADD:
        factor, offset = 1.0, number
    elif function in SUBTRACT:
        factor, offset = (-1.0, number) if first else (1.0, -number)
    elif function in MULTIPLY:
        factor, offset = number, 0.0
    elif function in DIVIDE and not first and number:
        factor, offset = 1.0 / number, 0.0
    else:
        return None
    return "Rescaling", {"scale": factor, "offset": offset}, [tensor]

"""Rewriting flat Functional models layer by layer: each time a new model, the old one stays."""

import copy as _copy
import inspect
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras

OTHERS = ("float16", "bfloat16", "float64")  # than float32; also as mixed_float16
Change = Callable[[keras.layers.Layer, keras.layers.Layer], keras.layers.Layer | None]


def check_flat(model: keras.Model) -> None:
    """`ValueError` unless `model` is Functional, of leaf layers only."""
    if not isinstance(model, keras.Model) or getattr(model, "_nodes_by_depth", None) is None:
        raise ValueError(
            f"{getattr(model, 'name', model)} is a {type(model).__name__}, not a Functional model: "
            "its layers cannot be rewritten; build it as keras.Model(inputs, outputs)"
        )
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            if getattr(layer, "_nodes_by_depth", None) is not None:
                raise ValueError(f"layer {layer.name} is a model itself; expected leaf layers only")
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) is a subclassed model: only its"
                " code knows what its layers do; call them in the network itself, or write it as"
                " keras.Model(inputs, outputs)"
            )


def rewrite(model: keras.Model, change: Change) -> keras.Model:
    """A new model: `change(layer, copy)` gives what stands in for each layer.

    `copy` is a new layer with the same configuration and weights; what `change` returns (the copy,
    perhaps changed; another, built or not; None: the layer is left out, its one input goes on) is
    called where the layer was. Weights keep their paths as long as layers keep their names.

    >>> inputs = keras.Input((8,))
    >>> x = keras.layers.Dropout(0.5, name="noise")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(x))
    >>> calm = rewrite(model, lambda layer, copy: None if layer.name == "noise" else copy)
    >>> [layer.name for layer in calm.layers[1:]]
    ['head']
    """
    check_flat(model)
    made: dict[int, keras.layers.Layer | None] = {}

    def place(node: Any, now: dict[int, Any]) -> list:
        layer = node.operation
        if id(layer) not in made:
            made[id(layer)] = change(layer, copy(layer))
        new = made[id(layer)]
        return [now[id(node.input_tensors[0])]] if new is None else call(new, node, now)

    return rebuild(model, place)


def rebuild(model: keras.Model, place: Callable[[Any, dict[int, Any]], list]) -> keras.Model:
    """A new model of the same inputs: `place(node, now)` gives what stands for a call's outputs.

    `now`: id of a tensor of `model` -> what stands for it.
    """
    now: dict[int, Any] = inputs(model)
    for node in calls(model):
        for before, after in zip(node.output_tensors, place(node, now), strict=True):
            now[id(before)] = after
    ends = keras.tree.map_structure(lambda tensor: now[id(tensor)], (model.input, model.output))
    return keras.Model(*ends, name=model.name)


def calls(model: keras.Model) -> Iterator:
    """The calls of layers (Keras nodes), each after those that it needs."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if node.input_tensors)


def inputs(model: keras.Model) -> dict[int, keras.KerasTensor]:
    """Id of an input -> a new one of the same shape, type and name."""
    found = {}
    for tensor in model.inputs:
        old = tensor._keras_history.operation
        found[id(tensor)] = keras.Input(batch_shape=old.batch_shape, dtype=old.dtype, name=old.name)
    return found


def call(layer: Callable, node: Any, now: dict[int, Any]) -> list:
    """The outputs of a layer on what stands for the inputs of a call."""
    args, kwargs = keras.tree.map_structure(
        lambda value: now.get(id(value), value), (node.arguments.args, node.arguments.kwargs)
    )
    return keras.tree.flatten(called(layer, args, kwargs))


def called(layer: Callable, args: Any, kwargs: Any) -> Any:
    """What a layer gives; `ValueError`, with its name and class, where it cannot be called."""
    try:
        return layer(*args, **kwargs)
    except Exception as error:  # whatever a layer of the user's raises
        raise ValueError(
            f"{_named(layer)} cannot be called on {_tensors(args, kwargs)}: "
            f"{_line(error)}; its call() must work on symbolic tensors, or the class needs a "
            "compute_output_spec()"
        ) from error


def own_method(layer: keras.layers.Layer, name: str) -> Callable | None:
    """The method by which a layer says what only it knows (families/layers/__init__.py), if any.

    None where a subclass overrides `call`, and so computes something else, but not the method.
    """
    for kind in type(layer).__mro__:
        if callable(vars(kind).get(name)):
            return getattr(layer, name)
        if "call" in vars(kind):
            break
    return None


def copy(layer: keras.layers.Layer, float32: bool = False) -> keras.layers.Layer:
    """A layer of the same configuration and weights, under the same paths.

    float32: one of half or double precision computes, and keeps its weights, in float32.
    """
    # A Parametrized layer is not copied: its variables belong to the methods that made them.
    if hasattr(layer, "parametrizations"):
        return layer
    if not isinstance(layer, keras.layers.Layer):  # an operation, such as x + 1
        return layer
    if isinstance(layer, keras.layers.Lambda):  # code, without state
        return layer
    try:
        return _copied(layer, float32)
    except Exception as error:  # whatever a layer of the user's raises
        raise ValueError(
            f"{_named(layer)} cannot be copied: {_line(error)}; its get_config() must return the "
            "arguments of its __init__, and its build() must make the same weights again"
        ) from error


def has_lora(layer: keras.layers.Layer) -> bool:
    """Whether a layer adds a product of two small matrices to its kernel (Keras' enable_lora)."""
    return bool(getattr(layer, "lora_enabled", False))


def _copied(layer: keras.layers.Layer, float32: bool) -> keras.layers.Layer:
    config = layer.get_config()
    merged = has_lora(layer)
    if merged:
        config = {k: v for k, v in config.items() if k not in ("lora_rank", "lora_alpha")}
    new = _from_config(layer, _in_float32(config) if float32 else config)
    build_config = layer.get_build_config() if layer.built else None
    if build_config and not new.built:  # some build themselves from their configuration
        new.build_from_config(build_config)
        new.built = True
    if layer.weights:
        paths = [weight.path for weight in layer.weights]
        if merged:  # `_copy_state` adds the product to the kernel, as Keras does in files
            paths = [next(p for p in paths if p.endswith(f"/{one.name}")) for one in new.weights]
        else:
            new.set_weights(layer.get_weights())
        for weight, path in zip(new.weights, paths, strict=True):
            weight._path = path  # what is read within a wrapper would lack its name
    _copy_state(layer, new)
    return new


def _from_config(layer: keras.layers.Layer, config: dict[str, Any]) -> keras.layers.Layer:
    """A layer of this configuration, of which derived entries are left out.

    Some layers of KerasHub write more than their constructor takes: sizes that follow from its
    arguments. A layer made without them must write the same configuration again.
    """
    kind = type(layer)
    try:
        return kind.from_config(config)
    except TypeError:
        known = _arguments(kind)
        if known >= config.keys():
            raise
        new = kind.from_config({name: value for name, value in config.items() if name in known})
        if new.get_config() != config:
            raise
        whole, derived = new.get_config, config.keys() - known
        # Files are to be loaded again, and copies are to be copied.
        new.get_config = lambda: {k: v for k, v in whole().items() if k not in derived}
        return new


def _arguments(kind: type) -> set[str]:
    """The names that the constructors of a layer's class, and of those that it is made of, take."""
    made = [vars(one)["__init__"] for one in kind.__mro__ if "__init__" in vars(one)]
    return {name for one in made for name in inspect.signature(one).parameters}


def _tensors(args: Any, kwargs: Any) -> str:
    shapes = [one.shape for one in keras.tree.flatten((args, kwargs)) if hasattr(one, "shape")]
    return f"tensors of {', '.join(str(tuple(shape)) for shape in shapes[:4])}"


def _named(layer: Any) -> str:
    return f"layer {layer.name!r} ({type(layer).__name__})"


def _line(error: Exception) -> str:
    """What an error says, in one line, without what Keras says around it."""
    text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
    text = text.rpartition("Error encountered: ")[2].partition(" Arguments received by ")[0]
    text = re.sub(r"Exception encountered when calling \S+\(\)\. ", "", text)
    return text[:300] or type(error).__name__


def _in_float32(config: Any) -> Any:
    """A configuration in which all policies of another precision are float32."""
    if isinstance(config, dict):
        policy = config.get("dtype")
        if isinstance(policy, dict) and policy.get("class_name") == "DTypePolicy":
            policy = policy["config"]["name"]
        other = isinstance(policy, str) and policy.removeprefix("mixed_") in OTHERS
        return {
            key: "float32" if key == "dtype" and other else _in_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(map(_in_float32, config))
    return config


def copy_operation(operation: Any, name: str) -> Any:
    """The same operation, such as x + 1, under another name."""
    new = _copy.copy(operation)
    new.name, new._inbound_nodes, new._outbound_nodes = name, [], []
    return new


def _copy_state(layer: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """State beyond the weights: what layers write to .keras files by methods of their own."""
    for source, part in zip(layer._flatten_layers(), new._flatten_layers(), strict=False):
        if type(part).load_own_variables is not keras.layers.Layer.load_own_variables:
            store: dict[str, Any] = {}
            source.save_own_variables(store)
            part.load_own_variables(store)
        if hasattr(part, "load_assets"):
            with tempfile.TemporaryDirectory(prefix="nas_assets_") as folder:
                source.save_assets(folder)
                part.load_assets(folder)

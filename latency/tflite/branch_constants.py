"""Constants of conditional branches: put into the branch that uses them, where they can be folded.

TensorFlow hands a branch the weights that it uses as if they were computed; LiteRT's fast kernels
want constants, and multiply with anything else several times slower.
"""

from typing import Any

CONDITIONS = ("If", "StatelessIf")
BRANCHES = ("then_branch", "else_branch")


def with_own_constants(function: Any) -> Any:
    """A frozen concrete function whose branches hold the constants that they were captured.

    What is computed from constants alone, such as a part of one, is a constant, too.
    """
    import tensorflow as tf  # noqa: PLC0415

    operations = [one for one in function.graph.get_operations() if one.type in CONDITIONS]
    captured = [t for one in operations for t in one.inputs[1:] if _is_constant(t, set())]
    if not captured:
        return function
    values = function.prune([], captured)()
    constants = dict(zip((tensor.ref() for tensor in captured), values, strict=True))
    graph = function.graph.as_graph_def()
    nodes = {node.name: node for node in graph.node}
    library = {definition.signature.name: definition for definition in graph.library.function}
    branches = []
    for operation in operations:
        node, given = nodes[operation.name], operation.inputs[1:]
        found = {n: constants[t.ref()] for n, t in enumerate(given) if t.ref() in constants}
        for branch in BRANCHES:
            new = type(graph.library.function[0])()
            new.CopyFrom(library[node.attr[branch].func.name])
            new.signature.name += f"_of_{node.name.replace('/', '_')}"
            _embed(new, {number: tf.make_tensor_proto(value) for number, value in found.items()})
            node.attr[branch].func.name = new.signature.name
            branches.append(new)
        names, types = list(node.input), list(node.attr["Tin"].list.type)
        del node.input[1:], node.attr["Tin"].list.type[:]
        node.input.extend(names[n + 1] for n in range(len(given)) if n not in found)
        node.input.extend(name for name in names if name.startswith("^"))
        node.attr["Tin"].list.type.extend(t for n, t in enumerate(types) if n not in found)
    graph.library.function.extend(branches)
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    inputs, outputs = (
        [wrapped.graph.as_graph_element(tensor.name) for tensor in tensors]
        for tensors in (function.inputs, function.outputs)
    )
    return wrapped.prune(inputs, outputs)


def _is_constant(tensor: Any, seen: set[str]) -> bool:
    """Whether a tensor of a graph depends on constants only; `seen`: what is known to."""
    operation = tensor.op
    if operation.type == "Const" or operation.name in seen:
        return True
    if not operation.inputs or operation.type in CONDITIONS:
        return False
    if all(_is_constant(one, seen) for one in operation.inputs):
        seen.add(operation.name)
        return True
    return False


def _embed(definition: Any, inside: dict[int, Any]) -> None:
    """Arguments of a function, by number, become constants in it, unless it does not read them."""
    arguments = [argument.name for argument in definition.signature.input_arg]
    read = {name for node in definition.node_def for name in node.input} | {
        *definition.ret.values()
    }
    places = {}
    for number, value in inside.items():
        name = arguments[number]
        if name not in read:
            continue
        node = definition.node_def.add(name=f"{name}_constant", op="Const")
        node.attr["dtype"].type = value.dtype
        node.attr["value"].tensor.CopyFrom(value)
        places[name] = f"{node.name}:output:0"
    for node in definition.node_def:
        for n, name in enumerate(node.input):
            node.input[n] = places.get(name, name)
    for name, source in definition.ret.items():
        definition.ret[name] = places.get(source, source)
    for number in sorted(inside, reverse=True):
        del definition.signature.input_arg[number]
    definition.arg_attr.clear()
    definition.resource_arg_unique_id.clear()

"""What a `.tflite` file takes, and the same file with fixed shapes, or with one signature only.

Format: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from latency.networks.input_shape import Input
from latency.system.silent_stderr import silent_stderr
from latency.tflite.graph import AlignedBuilder

Shapes = Mapping[str, tuple[int, ...]]
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
_RESHAPE, _INT32 = schema.BuiltinOperator.RESHAPE, schema.TensorType.INT32
_SAME = 1e-4  # of the largest value of an output: the same kernels on other blocks of a batch


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a file, or one part of it, takes: `others` are the signatures that it has beside."""

    name: str | None
    inputs: tuple[Input, ...]
    others: tuple[str, ...] = ()

    def missing(self) -> list[Input]:
        """Inputs with an open size that is not just the batch, which is 1 unless it is given.

        Where all inputs are vectors, of which nobody can say whether they are a batch of numbers
        or one example, their length is missing, too.
        """
        vectors = all(len(one.shape) < 2 for one in self.inputs)
        return [one for one in self.inputs if None in one.shape[0 if vectors else 1 :]]


def read(tflite: bytes, signature: str | None = None) -> Signature:
    """What a file takes, by its signature of this name; None: by that of its main graph.

    `ValueError` where there is no such signature, or the file cannot be read.
    """
    try:
        model = schema.Model.GetRootAs(tflite)
        named = {
            _text(one.SignatureKey()): one
            for one in map(model.SignatureDefs, range(model.SignatureDefsLength()))
        }
        if signature is not None and signature not in named:
            raise ValueError(
                f"no signature {signature!r} in it; it has {', '.join(named) or 'none'}"
            )
        main = (name for name, one in named.items() if one.SubgraphIndex() == 0)
        name = next(main, None) if signature is None else signature
        chosen = named.get(name) if name is not None else None
        graph = model.Subgraphs(0 if chosen is None else chosen.SubgraphIndex())
        names = {index: _text(graph.Tensors(index).Name()) for index in _list(graph, "Inputs")}
        if chosen is not None:
            maps = map(chosen.Inputs, range(chosen.InputsLength()))
            names |= {one.TensorIndex(): _text(one.Name()) for one in maps}
        inputs = tuple(
            Input(names[index], _shape(graph.Tensors(index)), _TYPES[graph.Tensors(index).Type()])
            for index in _list(graph, "Inputs")
        )
        return Signature(name, inputs, tuple(one for one in named if one != name))
    except ValueError:
        raise
    except Exception as error:  # flatbuffers raises what it likes on a damaged file
        raise ValueError(f"not a readable LiteRT file: {error}") from error


def at_batch(found: Signature, size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of inputs that take `size` examples at once, by name."""
    return {
        one.name: (size, *(n or 1 for n in one.shape[1:]))
        for one in found.inputs
        if one.shape[:1] in ((1,), (None,))
    }


def fixed(tflite: bytes, shapes: Shapes, signature: str | None = None) -> bytes:
    """The file with inputs of these shapes, by name; open batches that are not named become 1.

    signature: the part of the file that is kept; None: that of its main graph. A batch may be given
    to a file that was written for one example, too. What comes of it is run beside the original on
    random inputs. `ValueError` where a shape does not fit, sizes are missing, or it computes
    something else.
    """
    found = read(tflite, signature)
    wanted = _wanted(found, shapes)
    rows = wanted[0][0] if _is_larger_batch(found, wanted) else 1
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite))
    if any(buffer.offset for buffer in model.buffers):
        raise ValueError("its weights lie behind its graph, which cannot be rewritten")
    if found.name is not None:
        _keep(model, found.name)
    original = _packed(model)
    if rows > 1:
        _free_batches(model)
    runner = _resized(_packed(model), wanted, delegate=False)
    random = np.random.default_rng(0)
    values = [_drawn(one, shape, random) for one, shape in zip(found.inputs, wanted, strict=True)]
    _run(runner, values)
    shapes_now = {one["index"]: one["shape"] for one in runner.get_tensor_details()}
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        if model.buffers[tensor.buffer].data is None and index in shapes_now:
            tensor.shape, tensor.shapeSignature = shapes_now[index], None
    made = _packed(model)
    ours = _run(_resized(made, wanted), values)
    if rows > 1:
        one_by_one = _resized(original, [(1, *shape[1:]) for shape in wanted])
        each = [_run(one_by_one, [value[n : n + 1] for value in values]) for n in range(rows)]
        theirs = [np.concatenate(outputs) for outputs in zip(*each, strict=True)]
    else:
        theirs = _run(_resized(original, wanted), values)
    if not all(map(_equal, ours, theirs)):
        raise ValueError(f"with the shapes {wanted} it computes something else than before")
    return made


def _wanted(found: Signature, shapes: Shapes) -> list[tuple[int, ...]]:
    """The shape of each input, in the file's order."""
    if unknown := set(shapes) - {one.name for one in found.inputs}:
        names = ", ".join(one.name for one in found.inputs)
        raise ValueError(f"no input {unknown.pop()!r} in it; its inputs are {names}")
    if missing := [one for one in found.missing() if one.name not in shapes]:
        raise ValueError(missing[0].question())
    wanted = []
    for one in found.inputs:
        shape = tuple(shapes.get(one.name, [size or 1 for size in one.shape]))
        fits = len(shape) == len(one.shape) and all(
            size in (None, given) for size, given in zip(one.shape[1:], shape[1:], strict=True)
        )
        if not fits or (one.shape[:1] not in ((None,), (1,)) and shape[:1] != one.shape[:1]):
            raise ValueError(
                f"input {one.name!r}: got the shape {shape}; the file fixes it to {one.shape}, in"
                " which only sizes of None, and a batch of 1, can be given"
            )
        wanted.append(shape)
    return wanted


def _is_larger_batch(found: Signature, wanted: list[tuple[int, ...]]) -> bool:
    """Whether inputs that are written for one example get several, all as many."""
    larger = [
        one.shape[:1] == (1,) and shape[0] > 1
        for one, shape in zip(found.inputs, wanted, strict=True)
        if shape
    ]
    if any(larger) and len({shape[:1] for shape in wanted}) > 1:
        raise ValueError(f"inputs of batches of different sizes: {wanted}")
    return any(larger)


def _keep(model: schema.ModelT, name: str) -> None:
    """Leaves one signature, whose graph becomes the main one, and the graphs that it calls."""
    (chosen,) = (one for one in model.signatureDefs if _text(one.signatureKey) == name)
    kept = [chosen.subgraphIndex]
    for number in kept:  # grows
        for _, _, called in _calls(model.subgraphs[number]):
            if called not in kept:
                kept.append(called)
    graphs = [model.subgraphs[number] for number in kept]
    for graph in graphs:
        for options, field, called in list(_calls(graph)):
            setattr(options, field, kept.index(called))
    model.subgraphs, model.signatureDefs = graphs, [chosen]
    chosen.subgraphIndex = 0


def _calls(graph: schema.SubGraphT) -> Iterator[tuple[Any, str, int]]:
    """(options of an operator, field in them, number of a graph) of all graphs that one calls."""
    for operator in graph.operators or ():
        for options in (operator.builtinOptions, operator.builtinOptions2):
            for field, value in vars(options).items() if options is not None else ():
                if field.endswith("SubgraphIndex") or field == "subgraph":
                    yield options, field, value


def _free_batches(model: schema.ModelT) -> None:
    """Constants that RESHAPE to one example take as many as there are."""
    for operator in model.subgraphs[0].operators or ():
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) != _RESHAPE:
            continue
        if len(operator.inputs) < 2:
            continue
        shape = model.subgraphs[0].tensors[operator.inputs[1]]
        data = model.buffers[shape.buffer].data
        if data is None or shape.type != _INT32:
            continue
        sizes = np.frombuffer(bytes(data), np.int32).copy()
        if sizes.size and sizes[0] == 1 and -1 not in sizes:
            sizes[0] = -1
            model.buffers.append(schema.BufferT(data=np.frombuffer(sizes.tobytes(), np.uint8)))
            shape.buffer = len(model.buffers) - 1
            if operator.builtinOptions is not None:
                operator.builtinOptions.newShape = sizes


def _resized(tflite: bytes, shapes: list[tuple[int, ...]], delegate: bool = True) -> Interpreter:
    kind = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with silent_stderr():  # it announces its delegate
            runner = Interpreter(model_content=tflite, experimental_op_resolver_type=kind)
            for detail, shape in zip(runner.get_input_details(), shapes, strict=True):
                if tuple(detail["shape"]) != shape:
                    runner.resize_tensor_input(detail["index"], shape)
            runner.allocate_tensors()
    except RuntimeError as error:
        raise ValueError(f"it does not take the shapes {shapes}: {_line(error)}") from error
    return runner


def _run(runner: Interpreter, values: list[np.ndarray]) -> list[np.ndarray]:
    for detail, value in zip(runner.get_input_details(), values, strict=True):
        runner.set_tensor(detail["index"], value)
    try:
        runner.invoke()
    except RuntimeError as error:
        raise ValueError(f"it cannot run: {_line(error)}") from error
    return [runner.get_tensor(detail["index"]) for detail in runner.get_output_details()]


def _drawn(one: Input, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Numbers from 0 to 1; integers are 0, which every look-up has."""
    return random.random(shape, np.float32).astype(np.dtype(one.dtype))


def _equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if ours.dtype.kind not in "fc":
        return bool(np.mean(ours != theirs) < 0.01 if ours.size else True)  # codes at a boundary
    scale = np.nan_to_num(np.abs(theirs)).max(initial=0)
    return np.allclose(ours, theirs, rtol=_SAME, atol=_SAME * scale, equal_nan=True)


def _packed(model: schema.ModelT) -> bytes:
    builder = AlignedBuilder(4096 + sum(len(b.data) for b in model.buffers if b.data is not None))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _list(table: Any, name: str) -> list[int]:
    count = getattr(table, f"{name}Length")()
    return [int(getattr(table, name)(index)) for index in range(count)]


def _shape(tensor: Any) -> tuple[int | None, ...]:
    sizes = _list(tensor, "ShapeSignature") or _list(tensor, "Shape")
    return tuple(None if size < 0 else size for size in sizes)


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace")

"""Core ML packages (.mlpackage): weights as look-up tables, integers and bit masks, exact codes.

Written on any system; what is in them is read back and compared. They run on macOS and iOS only.
Forms of a network (`record.variants`) become functions of one package, which share equal weights.
"""

import contextlib
import io
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from compress.examples.data import Data
from compress.rewriting import graph
from compress.rewriting.record import Record, Weight
from latency.apple import coreml, worker
from latency.system.atomic_write import atomic_write
from latency.system.silent_stderr import silent_stderr
from nas.files.writers.mlpackage import mil_constants
from nas.files.writers.written_file import REPORT, CannotWrite, WrittenFile, sizes

MAIN = "main"  # what Core ML calls a package's one function
NOT_EXECUTED = "not executed: Core ML runs on macOS only"


def write(
    path: str | pathlib.Path,
    model: Any,
    record: Record,
    data: Data | None = None,
    precision: str = "float16",
    batch_size: int = 1,
) -> WrittenFile:
    """The package of `model`, and of its variants; whole or not there.

    `precision` is that of computation and of weights without codes. Needs coremltools and Keras on
    TensorFlow: `ValueError` elsewhere, and where a network has no Core ML form.
    """
    path = pathlib.Path(path)
    _check_possible(path, precision)
    with tempfile.TemporaryDirectory(prefix="nas_coreml_") as name, _without_output():
        folder = pathlib.Path(name)
        models = {MAIN: model} | record.variants
        done = {
            key: _save(one, record, folder / f"{key}.mlpackage", precision, batch_size)
            for key, one in models.items()
        }
        made = folder / f"{MAIN}.mlpackage"
        if record.variants:
            made = _joined(folder, list(models))
        program = _program(made)
        stored = [one for _, found in done.values() for one in found]
        if set(program.functions) != set(models):
            raise CannotWrite(f"{path}: has functions {', '.join(program.functions)}{REPORT}")
        checked = _check(program, stored, path)
        with atomic_write(path) as partial:
            shutil.copytree(made, partial)
    bits = mil_constants.bits_of(program)
    before = sum(one for one, _ in done.values())
    notes: tuple[str, ...] = ()
    if stored and bits >= before:
        notes = (
            f"larger than with float weights, {bits:,} bits against {before:,}: the network is too"
            " small to make up for the tables of its codes",
        )
    kinds, left = _kinds(model, record, stored, precision)
    return WrittenFile(path, *sizes(path), bits / model.count_params(), kinds, left, checked, notes)


def _check_possible(path: pathlib.Path, precision: str) -> None:
    """`ValueError` where nothing can be written."""
    import keras

    coreml.check("all", precision, 1)
    if (lacking := coreml.missing()) is not None:
        raise ValueError(lacking)
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Core ML files are written from Keras on TensorFlow, and this is Keras on "
            f"{keras.backend.backend()}: run with KERAS_BACKEND=tensorflow"
        )
    if path.suffix != ".mlpackage":
        raise ValueError(f"{path}: a Core ML package is named .mlpackage")
    if path.exists() and not (path / "Manifest.json").is_file():
        raise ValueError(f"{path} exists and is no .mlpackage")


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Without the progress bars and warnings of coremltools."""
    import logging

    logger = logging.getLogger("coremltools")
    level = logger.level
    with silent_stderr(), contextlib.redirect_stderr(io.StringIO()):
        import coremltools  # noqa: F401 (its first import talks)

        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _save(
    model: Any, record: Record, package: pathlib.Path, precision: str, batch_size: int
) -> tuple[int, list[mil_constants.CodedConstant]]:
    """Saves one network; (bits of its constants as floats, what became codes)."""
    import coremltools as ct
    from coremltools.models.utils import _apply_graph_pass

    compressed = bool(record.weights or record.variants)
    # 18: weights as blocks of codes below 8 bits, and several functions in a package.
    target = ct.target.iOS18 if compressed else ct.target.iOS17
    program = worker.converted(_unrolled(model), batch_size, precision, target)
    packing = _packing(_known(model, record))
    if compressed:
        program = _apply_graph_pass(
            program, packing, spec_version=target.value, skip_model_load=True
        )
    program.save(str(package))
    return packing.before, packing.stored


def _known(model: Any, record: Record) -> dict[str, tuple[np.ndarray, Weight]]:
    """Path -> (values, what the record knows) of the weights of a model that are as recorded."""
    known = {}
    for weight in model.weights:
        one = record.weights.get(weight.path)
        value = np.asarray(weight, np.float32)
        if one is None or (one.codes is None and one.mask is None):
            continue
        array = one.mask if one.codes is None else one.codes
        if (
            array is not None
            and array.shape == value.shape
            and (one.codes is None or np.allclose(one.dense(), value, atol=1e-6))
        ):
            known[weight.path] = (value, one)
    return known


def _packing(known: dict[str, tuple[np.ndarray, Weight]]) -> Any:
    """The pass that stores constants as the codes they are."""
    from coremltools.converters.mil.mil import Builder, types
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.helper import block_context_manager

    class Packing(AbstractGraphPass):
        def __init__(self):
            super().__init__()
            self.before, self.stored = 0, []

        def apply(self, program):
            self.before = mil_constants.bits_of(program)
            weights = mil_constants.KnownWeights(known)
            for operation in list(mil_constants.constants(program)):
                value = operation.outputs[0].val
                if operation.op_type != "const" or not isinstance(value, np.ndarray):
                    continue
                one = weights.codes_of(value)
                if one is not None and one.stored_bits < 8 * value.nbytes:
                    self._replace(operation, one)
                    self.stored.append(one)

        @staticmethod
        @block_context_manager
        def _within(block, operation, one):
            old = operation.outputs[0]
            new = one.built(Builder, types, f"{old.name}_packed", operation)
            block.replace_uses_of_var_after_op(
                anchor_op=operation, old_var=old, new_var=new, force_replace=True
            )
            block.remove_ops([operation])

        def _replace(self, operation, one):
            self._within(operation.enclosing_block, operation, one)

    return Packing()


def _unrolled(model: Any) -> Any:
    """The same network with recurrent layers step by step: coremltools knows no loop of Keras."""
    import keras

    def change(layer, copy):
        config = _step_by_step(layer)
        if config is None:
            return copy
        sequence = keras.tree.flatten(layer.input)[0]  # a state to begin with may follow
        if sequence.shape[1] is None:
            raise ValueError(
                f"layer {layer.name}: Core ML takes a recurrent layer of a known length only"
            )
        new = type(layer).from_config(config)
        new.build(sequence.shape)
        new.set_weights(layer.get_weights())
        return new

    if any(_step_by_step(layer) is not None for layer in model.layers):
        return graph.rewrite(model, change)
    return model


def _step_by_step(layer: Any) -> dict[str, Any] | None:
    """The configuration of a recurrent layer without its loop; None of one that has no loop."""
    import keras

    if not isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)):
        return None
    config = layer.get_config()
    parts = [config]
    if isinstance(layer, keras.layers.Bidirectional):
        parts = [config["layer"]["config"], config["backward_layer"]["config"]]
    if all(part.get("unroll", True) for part in parts):
        return None
    for part in parts:
        part["unroll"] = True
    return config


def _joined(folder: pathlib.Path, names: list[str]) -> pathlib.Path:
    """One package with all networks as functions; the first is its default."""
    import coremltools as ct

    functions = ct.utils.MultiFunctionDescriptor()
    for name in names:
        functions.add_function(str(folder / f"{name}.mlpackage"), MAIN, name)
    functions.default_function_name = names[0]
    made = folder / "joined.mlpackage"
    ct.utils.save_multifunction(functions, str(made))
    return made


def _program(package: pathlib.Path) -> Any:
    """The program that lies in a package, read from the disk."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    return load(spec, spec.specificationVersion, model.weights_dir)


def _check(program: Any, stored: list[mil_constants.CodedConstant], path: pathlib.Path) -> str:
    """Compares what was read back with the record; in words; CannotWrite where it differs."""
    there: dict[tuple[Any, ...], list[Any]] = {}
    for operation in mil_constants.constants(program):
        value = operation.outputs[0].val
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not _finite(value):
            raise CannotWrite(
                f"{path}: constant {operation.name} is not finite; train again, or give "
                "precision='float32'"
            )
        codes = mil_constants.packed_codes(operation)
        if codes is not None:
            there.setdefault(_key(*codes), []).append(operation)
    count = 0
    for one in stored:
        values = one.like if one.codes is None else one.codes
        kept = values if one.mask is None else values[one.mask]
        same = there.get(_key(kept, one.mask))
        if not same:
            raise CannotWrite(f"{path}: {one.path} has other codes when read back{REPORT}")
        count += kept.size
        # Equal codes may be of several weights: one of them has these values.
        near = min(_distance(operation, one.like) for operation in same)
        if not near < 5e-3:
            raise CannotWrite(f"{path}: {one.path} differs by {near:.2g} when read back{REPORT}")
    functions = (
        f" in functions {', '.join(sorted(program.functions))}"
        if len(program.functions) > 1
        else ""
    )
    return f"{count} codes equal{functions}; {NOT_EXECUTED}"


def _finite(value: np.ndarray) -> bool:
    """No NaN; -inf is a mask of attention."""
    return not np.isnan(value).any()


def _key(values: np.ndarray, mask: np.ndarray | None) -> tuple[Any, ...]:
    values = np.asarray(values)
    values = values.astype(np.float32) if values.dtype.kind == "f" else values.astype(np.uint8)
    return (
        values.tobytes(),
        values.shape if mask is None else mask.shape,
        None if mask is None else mask.astype(bool).tobytes(),
    )


def _distance(operation: Any, expected: np.ndarray) -> float:
    """How far what an operation unpacks is from what was there, of its largest value."""
    value = np.asarray(operation.materialized_val_inference(), np.float32)
    if value.shape != expected.shape:
        return np.inf
    expected = expected.astype(np.float32)
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def _kinds(
    model: Any, record: Record, stored: list[mil_constants.CodedConstant], precision: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Path -> how the file stores a weight; path -> why in more bits than the record has."""
    done = {one.path: one for one in stored}
    kinds, left = {}, {}
    for weight in model.weights:
        one, known = done.get(weight.path), record.weights.get(weight.path)
        kinds[weight.path] = precision if one is None else one.kind
        if known is None or (known.codes is None and known.mask is None):
            continue
        if one is None:
            left[weight.path] = "Core ML's conversion merges it with others, or codes save nothing"
        elif one.codes is not None and one.bits > known.bits:
            left[weight.path] = f"Core ML has no look-up tables of {known.bits} bits"
    return kinds, left

"""Compression as a choice of a search: each --method is one, made as `nas compress` makes it.

A candidate with methods is timed and weighed as the `.tflite` file that it will be: of a network
that is not trained yet, compressed at once. It is trained and compressed in one training.
"""

import dataclasses
import functools
import pathlib
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from compress.examples.data import Data
from compress.method import Compressed, Method, NotApplicable, compress
from latency.system.atomic_write import atomic_write
from nas.compression import examples
from nas.files.writers import config_file
from nas.networks import build
from nas.profiling import history
from nas.searching.candidate import NONE, Alternatives, Candidate

GLANCE = 4  # examples that some methods see where there is no training
Update = Callable[[int, int], bool]
Fit = Callable[[Any, Update], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """The network of a candidate, as it is kept and written.

    compressed: None without methods. data: what the methods looked at. epochs: of its training.
    """

    candidate: Candidate
    model: Any
    compressed: Compressed | None = None
    data: Data | None = None
    epochs: int = 0


def choice(alternatives: Alternatives, trial: Any) -> tuple[str, ...]:
    """The names of the methods that an Optuna trial chooses: parameters method1, method2, ..."""
    chosen = (
        trial.suggest_categorical(f"method{number}", tuple(methods))
        if len(methods) > 1
        else next(iter(methods))
        for number, methods in enumerate(alternatives, 1)
    )
    return tuple(name for name in chosen if name != NONE)


def method(alternatives: Alternatives, name: str) -> Method:
    """The method of a name."""
    for methods in alternatives:
        if (found := methods.get(name)) is not None:
            return found
    raise ValueError(f"no method {name!r} in this search")


def key(network: str, alternatives: Alternatives, names: Sequence[str]) -> str:
    """The name of the network called `network` after its methods."""
    methods = [_identity(name, method(alternatives, name)) for name in names]
    return build.digest(f"{network} {methods}")


def _identity(name: str, method: Method) -> str:
    """Equal methods, equal texts; other contents of a file in a method's name, other texts."""
    files = [part for part in re.split("[:,=]", name)[1:] if part and pathlib.Path(part).is_file()]
    return " ".join([build.identity_of(method), *map(history.digest, files)])


def product(
    candidate: Candidate,
    model: Any,
    methods: Sequence[Method],
    task: Any,
    seed: int,
    *,
    epochs: int = 0,
    fit: Fit | None = None,
) -> Product:
    """`model` after its methods; `fit` trains it, without it they see a few examples."""
    import keras

    data = examples.examples(task, model, examples.EXAMPLES, seed)
    assert data is not None  # there is a task
    if fit is None:  # to be timed and weighed: no codes are cheaper than others
        methods = [_to_the_nearest(one) for one in methods]
    keras.utils.set_random_seed(seed)
    fit = fit or functools.partial(_glance, data)
    found = compress(model, methods, fit, data)
    return Product(candidate, found.model, found, data, epochs)


def _to_the_nearest(method: Method) -> Method:
    """The method that looks at no data for codes, where it is one that does."""
    if getattr(method, "rounding", None) != "auto":
        return method
    given: Any = method  # every method is a dataclass
    return dataclasses.replace(given, rounding="nearest")


def _glance(data: Data, model: Any, update: Update) -> None:
    """A training of one step in which nothing is learned: some methods need to have seen one."""
    update(0, 1)
    inputs, _ = next(data.batches(GLANCE))
    model(inputs, training=True)


def write_tflite(path: pathlib.Path, product: Product) -> Any:
    """Write the `.tflite` file of a network as it is deployed; the `keras.Model` that is in it.

    Raises `NotApplicable` where there can be no such file.
    """
    from nas.files.writers import litert

    assert product.compressed is not None
    model, methods = product.model, " ".join(product.candidate.methods)
    try:
        form = build.deployed(model, product.candidate.config)
    except ValueError as error:  # of other widths, or fewer experts, than the Config says
        raise NotApplicable(f"{methods}: the deployed form cannot follow: {error}") from error
    # The examples are inputs of the trained form.
    data = product.data if form is model else None
    try:
        with atomic_write(path) as partial:
            litert.write(partial, form, product.compressed.record, data)
    except ValueError as error:  # what such a file cannot hold
        raise NotApplicable(f"{methods}: {error}") from error
    return form


def as_python(product: Product, command: Sequence[str] | None) -> str:
    """The Config and the methods as Python; `command` makes the same of a variant "found"."""
    candidate = product.candidate
    text = f"{config_file.as_python(candidate.config)}methods = {candidate.methods!r}\n"
    if command is None:
        return text
    return (
        f'{text}\n# With VARIANTS["found"] = config in its family, this makes it again:\n'
        f"# {shlex.join(command)}\n"
    )


def command(product: Product, task: str, seed: int, learning_rate: float) -> list[str]:
    """The words of the `nas compress` that makes the network again, once it is a variant."""
    candidate, epochs = product.candidate, product.epochs
    family = type(candidate.config).__module__.rpartition(".")[2]
    words = ["nas", "compress", f"{family}:found", "--task", task]
    if epochs:
        words += ["--epochs", str(epochs), "--learning-rate", str(learning_rate)]
    words += ["--seed", str(seed)]
    for name in candidate.methods:
        words += ["--method", name]
    return [*words, "--out", "found.tflite"]

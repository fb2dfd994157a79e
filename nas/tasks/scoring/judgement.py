"""The loss and the metric of a network on given targets, as the user, its file or shapes say."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from nas.tasks import task as tasks
from nas.tasks.scoring.classes import BALANCED, mean_of_classes
from nas.tasks.scoring.keras_metric import by_example, fields_of, name_of
from nas.tasks.task import Score

WEIGHTS = "sample_weight"  # among targets: what each example counts in the loss
CLASSES, SOFT, SIGMOID, NUMBERS = "classes", "soft labels", "sigmoid", "numbers"
PROBABLE = ("sigmoid", "hard_sigmoid", "softmax")
ACCURACIES = ("accuracy", "sparse_categorical_accuracy", "categorical_accuracy")
PASSED = ("Reshape", "Flatten", "Dropout", "Identity", "Permute", "Cropping2D", "ZeroPadding2D")


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """How one output is trained and judged.

    loss: (outputs, targets) -> (batch,). outputs: what they are: "classes", "soft labels",
    "sigmoid" or "numbers". score: (outputs, targets) -> rows of numbers (batch, ...); average: of
    all rows. metric: its name; percent: whether it is a share. chance: (targets) -> what a constant
    answer gets, None where that is unknown. targets: (targets) -> as the loss takes them.
    """

    loss: Callable[[Any, Any], Any]
    loss_name: str
    outputs: str
    score: Callable[[Any, Any], np.ndarray]
    average: Callable[[np.ndarray], float]
    metric: str
    higher_is_better: bool
    percent: bool
    chance: Callable[[np.ndarray], float | None]
    targets: Callable[[np.ndarray], np.ndarray]
    reason: str


def judgement(
    output: Any, targets: np.ndarray, loss: Any = None, metric: Any = None, compiled: Any = None
) -> Judgement:
    """The judgement of an output, a Keras tensor, on targets (count, ...).

    loss, metric: of Keras, by name, as an object or as a function (targets, outputs); None: those
    of `compiled`, a pair of the same kinds, else what the shapes and types say.

    Raises `ValueError` where the targets fit neither.

    >>> import keras
    >>> inputs = keras.Input((4,))
    >>> output = keras.layers.Dense(1, activation="sigmoid")(inputs)
    >>> found = judgement(output, np.array([0, 1, 1]))
    >>> found.loss_name, found.metric, found.reason
    ('binary_crossentropy', 'accuracy', 'output sigmoid (None, 1) and targets 0/1')
    """
    shape, ending = tuple(output.shape[1:]), activation(output)
    what = f"output {ending or 'of any kind'} {(None, *shape)}"
    reason, given = "", loss
    if loss is not None:
        reason = "as given"
    elif compiled is not None and compiled[0] is not None:
        given, reason = compiled[0], "compiled in the network"
    # Quantiles of one target, (time, event) of one risk: only a loss of one's own knows what fits.
    foreign = given is not None and not _of_keras(given)
    own = foreign and not _same(targets.shape[1:], shape)
    if given is not None:
        try:
            kind = NUMBERS if own else _kind_of_loss(name_of(given), shape, targets)
            if not own:
                _check(kind, shape, targets, what)
            if foreign:
                few = targets[:2] if own else _converter(kind, shape)(targets[:2])
                _check_runs(given, shape, few, what)
        except ValueError as error:
            if foreign or loss is not None:
                raise ValueError(f"loss {name_of(given)}: {error}") from error
            given, reason = None, f"the compiled {name_of(given)} does not fit; "
    if given is None:
        kind = _kind(shape, ending, targets, what)
        reason += f"{what} and targets {_in_words(kind, targets)}"
    if metric is None and compiled is not None and loss is None:
        metric = compiled[1]
        if kind == NUMBERS and metric is not None and name_of(metric) in ACCURACIES:
            metric = None
    name, function = _loss(kind, given, ending)
    if own and metric is None:
        scored = _of_loss(name, function)
    else:
        scored = _metric(kind, shape, ending, metric, name)
    return Judgement(
        loss=function,
        loss_name=name,
        outputs=kind,
        targets=(lambda targets: targets) if own else _converter(kind, shape),
        reason=reason,
        **scored,
    )


def activation(output: Any) -> str | None:
    """The function that a tensor of Keras comes out of, by name; None where that is unknown.

    >>> import keras
    >>> inputs = keras.Input((4,))
    >>> activation(keras.layers.Softmax()(keras.layers.Dense(3)(inputs)))
    'softmax'
    """
    while True:
        layer = output._keras_history.operation
        found = getattr(layer, "activation", None)
        if callable(found) and hasattr(found, "__name__"):
            return found.__name__
        kind = type(layer).__name__
        if kind in ("Softmax", "Sigmoid"):
            return kind.lower()
        if kind in ("Conv2D", "Conv1D", "Conv2DTranspose", "Dense"):
            return "linear"
        if kind not in PASSED or not layer._inbound_nodes:
            return None
        output = layer._inbound_nodes[0].input_tensors[0]


def _kind(shape: tuple[Any, ...], ending: str | None, targets: np.ndarray, what: str) -> str:
    """What outputs (batch, *shape) are, as their targets tell."""
    width = shape[-1] if shape else 1
    whole = _whole(targets)
    one_of = ending == "sigmoid" and whole and targets.ndim == 1 and (width or 1) > 1
    if one_of and int(targets.max(initial=0)) < (width or 0):
        return SIGMOID
    if (width or 0) >= 2 and whole and _same(targets.shape[1:], shape[:-1]):
        _check(CLASSES, shape, targets, what)
        return CLASSES
    if not _same(targets.shape[1:], shape):
        _check(NUMBERS, shape, targets, what)
    if ending == "softmax":
        _check(SOFT, shape, targets, what)
        return SOFT
    if (ending in PROBABLE or ending == "linear") and np.isin(targets, (0, 1)).all():
        return SIGMOID
    return NUMBERS


def _kind_of_loss(name: str, shape: tuple[Any, ...], targets: np.ndarray) -> str:
    if name.startswith("sparse"):
        return CLASSES
    if name.startswith("categorical") or name == "kl_divergence":
        return SOFT if _same(targets.shape[1:], shape) and len(targets.shape) > 1 else CLASSES
    return SIGMOID if name.startswith("binary") else NUMBERS


def _check(kind: str, shape: tuple[Any, ...], targets: np.ndarray, what: str) -> None:
    """`ValueError` where targets are none of outputs of this kind."""
    found = f"the targets are {targets.dtype} {(None, *targets.shape[1:])}"
    if kind == CLASSES:
        if not _whole(targets) or not _same(targets.shape[1:], shape[:-1]):
            raise ValueError(f"{found}, the {what}; expected integers from 0 on, (count,)")
        least, most = int(targets.min(initial=0)), int(targets.max(initial=0))
        if least < 0 or most >= (shape[-1] or 0):
            raise ValueError(
                f"labels go from {least} to {most}, but the network has {shape[-1]} outputs, for "
                f"0 to {(shape[-1] or 0) - 1}; expected other data, or a network of {most + 1}"
            )
    elif kind == SIGMOID and targets.ndim == 1 and shape and (shape[-1] or 1) > 1:
        if int(targets.max(initial=0)) >= shape[-1]:
            raise ValueError(f"labels go up to {targets.max()}, the {what} has {shape[-1]} outputs")
    elif not _same(targets.shape[1:], shape):
        hint = (
            f", as classes, (count{', ...' if len(shape) > 1 else ''})" if shape[-1:] > (1,) else ""
        )
        integers = f"integers from 0 on{hint}, or " if hint else ""
        raise ValueError(f"{found}, the {what}; expected {integers}targets of the output's shape")
    elif kind == SOFT:
        if targets.min(initial=0) < 0 or not np.allclose(targets.sum(-1), 1, atol=1e-3):
            raise ValueError(f"{found} and no probabilities of sum 1 as the {what} gives")
    elif kind == SIGMOID and (targets.min(initial=0) < 0 or targets.max(initial=0) > 1):
        raise ValueError(f"{found} from {targets.min():g} to {targets.max():g}; expected 0 to 1")


def _of_keras(loss: Any) -> bool:
    """Whether a loss is one of Keras itself, which says what targets it takes."""
    function = getattr(loss, "fn", loss)  # Keras' own objects wrap a function
    kind = function if callable(function) and hasattr(function, "__name__") else type(function)
    return isinstance(loss, str) or kind.__module__.partition(".")[0] == "keras"


def _check_runs(loss: Any, shape: tuple[Any, ...], targets: np.ndarray, what: str) -> None:
    """`ValueError` unless a loss gives a number for each output of this shape and its targets."""
    outputs = np.zeros((len(targets), *(size or 1 for size in shape)), np.float32)
    try:
        found = np.asarray(_loss(NUMBERS, loss, None)[1](outputs, targets))
    except Exception as error:  # whatever a function of the user's raises
        raise ValueError(
            f"it fails on targets {targets.dtype} {(None, *targets.shape[1:])} and the {what}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    if found.shape != outputs.shape[:1]:
        raise ValueError(f"it gives {found.shape} for {len(outputs)} examples; expected one each")


def _of_loss(name: str, loss: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """The fields of a `Judgement` that are the metric's, where the loss is all that is known."""
    return {
        "metric": name,
        "score": lambda outputs, targets: np.asarray(loss(outputs, targets)),
        "average": tasks.mean,
        "higher_is_better": False,
        "percent": False,
        "chance": lambda targets: None,
    }


def _whole(targets: np.ndarray) -> bool:
    return targets.dtype.kind in "iub"


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether shapes are equal but for open axes and a last axis of 1."""
    one, other = (shape[:-1] if shape[-1:] == (1,) else shape for shape in (one, other))
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(None in pair or pair[0] == pair[1] for pair in pairs)


def _in_words(kind: str, targets: np.ndarray) -> str:
    if kind == SIGMOID:
        return "0/1"
    if kind == CLASSES:
        return f"integers {(None, *targets.shape[1:])}"
    return f"{targets.dtype} {(None, *targets.shape[1:])}"


def _converter(kind: str, shape: tuple[Any, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Targets as int32 (batch, ...), or float32 of the shape of the outputs."""

    def convert(targets: np.ndarray) -> np.ndarray:
        if kind == CLASSES:
            squeezed = targets.reshape(targets.shape[:-1]) if targets.ndim > len(shape) else targets
            return squeezed.astype(np.int32)
        if kind == SIGMOID and targets.ndim == 1 and shape and (shape[-1] or 1) > 1:
            return np.eye(shape[-1], dtype=np.float32)[targets]
        if targets.ndim == len(shape) and shape[-1:] == (1,):
            targets = targets[..., np.newaxis]
        elif targets.ndim == len(shape) + 2 and targets.shape[-1] == 1:
            targets = targets[..., 0]
        return targets.astype(np.float32)

    return convert


def _loss(kind: str, given: Any, ending: str | None) -> tuple[str, Callable[[Any, Any], Any]]:
    """(name, (outputs, targets) -> losses (batch,))."""
    import keras
    from keras import ops

    name = name_of(given) if given is not None else ""
    logits = ending not in PROBABLE
    if kind == CLASSES and name in (
        "",
        "sparse_categorical_crossentropy",
        "categorical_crossentropy",
    ):
        return "sparse_categorical_crossentropy", lambda y, t: _each(tasks.classification(y, t))
    if kind == SOFT and name in ("", "categorical_crossentropy"):

        def soft(outputs: Any, targets: Any) -> Any:
            logarithms = ops.log(ops.maximum(outputs, tasks.LEAST))
            found = ops.where(tasks.are_probabilities(outputs), logarithms, outputs)
            return _each(-ops.sum(targets * ops.log_softmax(found, -1), -1))

        return "categorical_crossentropy", soft
    if kind == SIGMOID and (not name or (isinstance(given, str) and name == "binary_crossentropy")):

        def binary(outputs: Any, targets: Any) -> Any:
            return _each(ops.binary_crossentropy(targets, outputs, from_logits=logits))

        return "binary_crossentropy", binary
    function = keras.losses.get(given if given is not None else "mean_squared_error")
    call = function.call if isinstance(function, keras.losses.Loss) else function
    return name or "mean_squared_error", lambda y, t: _each(call(t, y))


def _each(losses: Any) -> Any:
    """The mean of losses (batch, ...) over all axes but the first."""
    from keras import ops

    return ops.mean(losses, tuple(range(1, len(losses.shape)))) if len(losses.shape) > 1 else losses


def _metric(
    kind: str, shape: tuple[Any, ...], ending: str | None, metric: Any, loss: str
) -> dict[str, Any]:
    """The fields of a `Judgement` that are the metric's."""
    name = name_of(metric) if metric is not None else ""
    name = BALANCED if name == BALANCED.replace(" ", "_") else name
    dense = len(shape) >= 3
    if not name:
        if kind == NUMBERS:
            name = (
                "mean_absolute_error"
                if loss == "mean_absolute_error"
                else "root_mean_squared_error"
            )
        else:
            name = "mean_iou" if dense and kind != SOFT else "accuracy"
    border = 0.5 if ending in PROBABLE else 0.0
    count = max(shape[-1] or 1, 2) if shape else 2

    def chosen(outputs: Any) -> np.ndarray:
        return np.argmax(outputs, -1) if kind in (CLASSES, SOFT) else np.asarray(outputs) > border

    def true(targets: Any) -> np.ndarray:
        return np.argmax(targets, -1) if kind == SOFT else np.asarray(targets)

    def right(outputs: Any, targets: Any) -> np.ndarray:
        return by_example(chosen(outputs) == true(targets))

    def majority(targets: np.ndarray) -> float:
        if kind == SIGMOID:
            shares = np.mean(targets.reshape(len(targets), -1), 0)
            return float(np.mean(np.maximum(shares, 1 - shares)))
        labels = true(targets).astype(np.int64)
        return float(np.bincount(labels.ravel()).max() / labels.size)

    share = {"higher_is_better": True, "percent": True}
    binary = kind == SIGMOID and name == "binary_accuracy"
    if (name in ACCURACIES or binary) and kind != NUMBERS:
        return share | {
            "metric": "accuracy",
            "score": right,
            "average": tasks.mean,
            "chance": majority,
        }
    if name == BALANCED and kind == CLASSES and not shape[:-1]:
        return share | {
            "metric": BALANCED,
            "score": lambda y, t: np.stack([np.asarray(t), chosen(y) == true(t)], 1),
            "average": mean_of_classes,
            "chance": lambda targets: 1 / len(np.unique(targets)),
        }
    if name in ("mean_iou", "mean_io_u", "iou", "binary_iou") and kind in (CLASSES, SIGMOID):
        classes = 2 if kind == SIGMOID else count

        def confusion(outputs: Any, targets: Any) -> np.ndarray:
            pairs = true(targets).astype(np.int64) * classes + chosen(outputs).astype(np.int64)
            each = [np.bincount(one.ravel(), minlength=classes**2) for one in pairs]
            return np.stack(each)

        def iou(counts: np.ndarray) -> float:
            table = counts.sum(0).reshape(classes, classes)
            hits, union = np.diag(table), table.sum(0) + table.sum(1) - np.diag(table)
            return float(np.mean(hits[union > 0] / union[union > 0]))

        return share | {
            "metric": "mean IoU",
            "score": confusion,
            "average": iou,
            "chance": lambda targets: majority(targets) / max(len(np.unique(targets)), 1),
        }
    if name == "root_mean_squared_error" and kind == NUMBERS:
        return {
            "metric": "RMSE",
            "score": lambda y, t: by_example(np.square(np.asarray(y, np.float64) - t)),
            "average": lambda scores: float(np.sqrt(np.mean(scores))),
            "higher_is_better": False,
            "percent": False,
            "chance": lambda t: float(np.sqrt(np.mean(np.var(np.asarray(t, np.float64), 0)))),
        }
    return fields_of(metric if metric is not None else name, name, shape)


def scorer(scores: Callable[[Any, Any], np.ndarray]) -> tasks.Scorer:
    """The scorer of a task, of a function (outputs, targets) -> scores."""

    def of_model(model: Any, predict: Callable[[Any], Any]) -> Score:
        return lambda inputs, targets: scores(predict(inputs), targets)

    return of_model

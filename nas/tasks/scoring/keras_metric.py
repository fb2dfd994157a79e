"""A metric of Keras, by its name, as an object or as a function, as a task scores with it."""

from typing import Any

import numpy as np

LOWER = ("error", "loss", "mse", "mae", "msle", "mape", "entropy", "divergence", "perplexity")


def name_of(given: Any) -> str:
    """What a loss or metric is called, as Keras writes it: mean_squared_error, binary_accuracy."""
    short = {"mse": "mean_squared_error", "mae": "mean_absolute_error", "acc": "accuracy"}
    short |= {"bce": "binary_crossentropy", "rmse": "root_mean_squared_error", "r2": "r2_score"}
    if isinstance(given, str):
        text = given
    elif isinstance(given, type) or not hasattr(given, "get_config"):
        text = getattr(given, "__name__", type(given).__name__)
    else:
        text = type(given).__name__
    if text != text.lower() and text.upper() != text:
        letters = (f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(text))
        text = "".join(letters)
    return short.get(text.lower(), text.lower())


def by_example(numbers: np.ndarray) -> np.ndarray:
    """The mean of each example."""
    return np.mean(np.asarray(numbers).reshape(len(numbers), -1), 1)


def fields_of(metric: Any, name: str, shape: tuple[Any, ...]) -> dict[str, Any]:
    """Fields of a `Judgement`, of a metric of Keras or a function (targets, outputs) -> numbers."""
    import keras

    found = metric
    if isinstance(metric, str):
        classes = {
            name_of(one): one for one in vars(keras.metrics).values() if isinstance(one, type)
        }
        if name not in classes:
            raise ValueError(
                f"metric {metric!r}: not one of Keras, such as accuracy, balanced_accuracy, auc,"
                " mean_iou, rmse, r2_score, mean_absolute_error; expected one, or in Python an"
                " object or function"
            )
        try:
            found = classes[name]()
        except TypeError as error:
            raise ValueError(
                f"metric {metric!r} needs arguments; expected an object, in Python: {error}"
            ) from error
    label = name if isinstance(metric, str) else getattr(metric, "name", None) or name
    lower = any(word in name for word in LOWER)
    if isinstance(found, type):
        found = found()
    if isinstance(found, keras.metrics.Metric):
        lower = getattr(found, "_direction", "down" if lower else "up") == "down"

        def score(outputs: Any, targets: Any) -> np.ndarray:
            sides = (np.asarray(side, np.float64) for side in (targets, outputs))
            return np.concatenate([side.reshape(len(side), -1) for side in sides], 1)

        def average(rows: np.ndarray) -> float:
            size = int(np.prod([axis for axis in shape if axis])) if shape else 1
            outputs = rows[:, -size:].reshape(len(rows), *shape)
            targets = rows[:, :-size]
            if targets.shape[1] == size:
                targets = targets.reshape(outputs.shape)
            elif len(shape) > 2:
                targets = targets.reshape(outputs.shape[:-1])
            found.reset_state()
            found.update_state(targets.astype(np.float32), outputs.astype(np.float32))
            return float(np.mean(keras.ops.convert_to_numpy(found.result())))
    elif callable(found):

        def score(outputs: Any, targets: Any) -> np.ndarray:
            return by_example(keras.ops.convert_to_numpy(found(targets, outputs)))

        def average(rows: np.ndarray) -> float:
            return float(np.mean(rows))
    else:
        raise ValueError(
            f"metric is a {type(metric).__name__}; expected a name, object or function"
        )
    return {
        "metric": {"mean_absolute_error": "MAE"}.get(label, label),
        "score": score,
        "average": average,
        "higher_is_better": not lower,
        "percent": False,
        "chance": lambda targets: None,
    }

"""The loss and metrics that a Keras network was compiled with, read without running its code."""

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

Compiled = tuple[Any, Any]  # loss and first metric, each as Keras takes it; None where unknown


def compiled_of(network: Any, read_from: pathlib.Path | None = None) -> Compiled | None:
    """Loss and metric of a `keras.Model` in memory, or of the .keras file `read_from`.

    Each is a name, an object of Keras, or a dict of them by output. A loss of the user's own in a
    file is unknown, for it would have to be run. None where nothing was compiled.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> compiled_of(model)
    >>> model.compile("adam", "mse", metrics=["mae"])
    >>> compiled_of(model)
    ('mse', 'mae')
    """
    if read_from is not None:
        config = _in_file(read_from)
    elif getattr(network, "compiled", False):
        config = network.get_compile_config() or {}
        if not isinstance(network.loss, str) and network.loss is not None:
            config = config | {"loss": network.loss}
    else:
        config = {}
    loss = _known(config.get("loss"))
    metrics = config.get("metrics") or config.get("weighted_metrics")
    if loss is None and metrics is None:
        return None
    return loss, _first(metrics)


def _in_file(path: pathlib.Path) -> Mapping[str, Any]:
    if path.suffix != ".keras" or not path.is_file():
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read("config.json")).get("compile_config")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}
    return found if isinstance(found, dict) else {}


def _first(metrics: Any) -> Any:
    if isinstance(metrics, dict) and "class_name" not in metrics:
        return {name: _first(one) for name, one in metrics.items()}
    while isinstance(metrics, (list, tuple)):
        metrics = next((one for one in metrics if one not in (None, [])), None)
    return _known(metrics)


def _known(given: Any) -> Any:
    """A name, or an object of Keras or a registered one, made of its config; None for another's."""
    import keras

    if isinstance(given, (list, tuple)):
        return [_known(one) for one in given]
    if not isinstance(given, dict):
        return given
    if "class_name" not in given:
        return {name: _known(one) for name, one in given.items()}
    module, kind = str(given.get("module")), given["class_name"]
    name = str(given.get("config" if kind == "function" else "registered_name"))
    registered = keras.saving.get_registered_object(name)
    if kind == "function":  # of Keras: known by name
        return name if hasattr(keras.losses, name) or hasattr(keras.metrics, name) else registered
    if registered is not None:
        return registered.from_config(given["config"])
    if module not in ("keras.losses", "keras.metrics") or not hasattr(
        getattr(keras, module.partition(".")[2]), kind
    ):
        return None
    try:
        return getattr(getattr(keras, module.partition(".")[2]), kind).from_config(given["config"])
    except (TypeError, ValueError):
        return None

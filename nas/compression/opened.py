"""A user's network and data as compression takes them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from compress.method import Method
from nas.compression import given_tflite
from nas.files.flatten import with_open_batch
from nas.files.given_shapes import Shapes
from nas.files.open_network import Network, open_network
from nas.tasks.scoring.compiled import compiled_of
from nas.tasks.task import Task
from nas.training.batches import named_inputs
from nas.training.network_task import network_task


def opened(
    network: Any,
    methods: Sequence[Method],
    task: Task | None,
    *,
    out: Sequence[str | pathlib.Path] = (),
    loss: Any = None,
    metric: Any = None,
    target_is_input: bool = False,
    shapes: Shapes = (),
) -> tuple[Network, Task | None, list[str]]:
    """The network as methods take it, the task as it judges it, and by what that is; of `compress`.

    >>> import keras
    >>> inputs = keras.Input((2,))
    >>> network, task, notes = opened(keras.Model(inputs, keras.layers.Dense(3)(inputs)), [], None)
    >>> network.model.count_params(), task, notes
    (9, None, [])
    """
    given, network = network, open_network(network, shapes)
    if network.keras_model is None:
        network = given_tflite.opened(network, methods, out)
    judged_by: list[str] = []
    if task is not None and (size := network.model.inputs[0].shape[0]) is not None:
        note = f"built for batches of {size}, open here; a .tflite file takes one example at a time"
        model, notes = with_open_batch(network.model), (*network.notes, note)
        network = dataclasses.replace(network, keras_model=model, notes=notes)
    if task is not None:
        compiled = compiled_of(getattr(given, "keras_model", given), network.read_from)
        task, judged_by = network_task(
            task,
            network.model,
            compiled=compiled,
            loss=loss,
            metric=metric,
            target_is_input=target_is_input,
            trained=True,
        )
    elif loss is not None or metric is not None or target_is_input:
        raise ValueError("a loss, a metric or targets without data; expected --data or --task")
    if task is not None and isinstance(task.train[0], dict):
        network = dataclasses.replace(network, keras_model=named_inputs(network.model))
    return network, task, judged_by

"""A network as files hold it: its Config, and an array for every weight path."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from latency.networks.keras_file import free_mb


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Config of a family, and `weights`: path -> array, read when it is asked for."""

    config: Any
    weights: Mapping[str, np.ndarray]
    source: str  # for messages: where it is from

    def network(self) -> Any:
        """The `keras.Model` of the Config with these weights, float32."""
        module = sys.modules[type(self.config).__module__]
        self.refuse_too_large()
        model = module.build(self.config)
        self.fill(model)
        return model

    def fill(self, model: Any) -> None:
        """Set all weights of `model`; ValueError where one lacks, is over, or is not finite."""
        lacking = {weight.path for weight in model.weights} - set(self.weights)
        over = set(self.weights) - {weight.path for weight in model.weights}
        for names, what in ((lacking, "no"), (over, "an unexpected")):
            if names:
                raise ValueError(
                    f"{self.source} has {what} weight {sorted(names)[0]!r} for {self.config}"
                )
        for weight in model.weights:
            value = np.asarray(self.weights[weight.path], np.float32)
            if value.shape != tuple(weight.shape):
                raise ValueError(
                    f"{self.source}: weight {weight.path!r} is {value.shape}; expected "
                    f"{tuple(weight.shape)} for {self.config}"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"{self.source}: weight {weight.path!r} is not finite everywhere")
            weight.assign(value)

    def refuse_too_large(self) -> None:
        """ValueError unless the network fits into the free memory."""
        from families.layers.shapes import shapes_only

        with shapes_only():
            model = sys.modules[type(self.config).__module__].build(self.config)
        needed_mb = 4 * model.count_params() / 2**20
        if needed_mb > free_mb():
            raise ValueError(
                f"{self.source}: its weights take {needed_mb / 1024:.1f} GB as float32, and "
                f"{free_mb() / 1024:.1f} GB of memory are free here"
            )

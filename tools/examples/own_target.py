"""A device of your own: whatever can tell milliseconds is a target, here a datasheet.

$ python own_target.py
$ nas profile mnasnet:tiny --target ./own_target.py:Board,gmacs=2   # the same
"""

import dataclasses
from typing import Any, ClassVar

import keras

import nas
from latency.networks.count import count
from latency.target import Timing


@dataclasses.dataclass(frozen=True)
class Board(nas.Target):
    """A chip that does `gmacs` billion multiply-adds a second and reads `gbs` GB of weights."""

    kinds: ClassVar[frozenset[nas.Kind]] = frozenset({nas.Kind.PREDICTED})  # never "measured"
    gmacs: float = 1.0
    gbs: float = 0.5

    @property
    def device(self) -> str:
        return f"a board of {self.gmacs} GMAC/s"

    def identity(self) -> dict[str, Any]:  # an earlier figure holds while this stays the same
        return {"device": self.device, "gbs": self.gbs}

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        cost = count(model)  # a real one would send the network to the device and time `runs` runs
        ms = 1e3 * max(cost.macs / (self.gmacs * 1e9), 4 * cost.total_params / (self.gbs * 1e9))
        return Timing((ms * batch_size,), {"runtime": "datasheet"}, nas.Kind.PREDICTED)


if __name__ == "__main__":
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256), keras.layers.Dense(10)])
    print(nas.profile([model, "mnasnet:tiny"], [Board(), Board(gmacs=4)]))

"""One method on one network: a cell of `nas.compression.matrix`."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one method made of one network, or why nothing.

    Qualities are of the task's metric: `quality_before` of the network as it was, `quality_longer`
    of the network trained as long as the method trains, without any. Ratios are to the network as
    it was; `container` is the file whose bytes they count. `reason`: why the method does not apply;
    `failed`: the error, where it should have; `note`: what else is to say.
    """

    network: str
    method: str
    task: str | None = None
    quality_before: float | None = None
    quality_longer: float | None = None
    quality: float | None = None
    container: str = ".tflite"
    size_ratio: float | None = None
    params_ratio: float | None = None
    bits_per_weight: float | None = None
    latency_ratio: float | None = None
    latency_kind: str | None = None
    reason: str | None = None
    failed: str | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are known."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        found = self.reason or self.failed or f"x{self.size_ratio:.2f} of the {self.container}"
        return f"{self.network} {self.method}: {found}"

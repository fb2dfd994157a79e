"""What a user asks of a compressed file."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Goal:
    """Limits that a `.tflite` file must keep; what is left open is made as good as can be.

    max_drop: points of quality that may be lost: of 100 where the metric is a share, else percent
        of its value. max_bytes: of the file. budget_ms: median latency on the target. faster: with
        max_drop: the least latency within it, rather than the fewest bytes.
    minutes: after which nothing further is tried.

    >>> Goal(max_drop=1).wanted
    'bytes'
    >>> Goal(max_bytes=120e3).wanted
    'quality'
    """

    max_drop: float | None = dataclasses.field(
        default=None, metadata={"help": "points of quality that may be lost", "metavar": "POINTS"}
    )
    max_bytes: float | None = dataclasses.field(
        default=None, metadata={"help": "of the .tflite file", "metavar": "N"}
    )
    budget_ms: float | None = dataclasses.field(
        default=None, metadata={"help": "median latency on the --target", "metavar": "MS"}
    )
    faster: bool = dataclasses.field(
        default=False,
        metadata={"help": "with --max-drop: the fastest on the --target, not the smallest"},
    )
    minutes: float = dataclasses.field(
        default=15.0, metadata={"help": "after which nothing further is tried (15)"}
    )

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in ("max_drop", "max_bytes", "budget_ms")}
        given = {name: value for name, value in limits.items() if value is not None}
        if not given:
            raise ValueError("a goal without a limit; expected max_drop, max_bytes or budget_ms")
        for name, value in {**given, "minutes": self.minutes}.items():
            if not (math.isfinite(value) and (value > 0 or (name == "max_drop" and value == 0))):
                raise ValueError(f"{name}={value}; expected a number above 0")
        if self.faster and self.max_drop is None:
            raise ValueError("faster: the fastest of what? give max_drop, too")

    @property
    def timed(self) -> bool:
        """Whether files are to be timed on a target."""
        return self.faster or self.budget_ms is not None

    @property
    def wanted(self) -> str:
        """What is made as good as can be within the limits: "ms", "bytes" or "quality"."""
        if self.max_drop is None:
            return "quality"
        return "ms" if self.faster else "bytes"

    def __str__(self) -> str:
        best = {"ms": "the fastest", "bytes": "the smallest", "quality": "the best"}[self.wanted]
        limits = []
        if self.max_drop is not None:
            limits.append(f"that loses at most {self.max_drop:g} points")
        if self.max_bytes is not None:
            limits.append(f"of at most {self.max_bytes:,.0f} bytes")
        if self.budget_ms is not None:
            limits.append(f"within {self.budget_ms:g} ms")
        return f"{best} file {', '.join(limits)}"

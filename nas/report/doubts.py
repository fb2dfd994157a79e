"""What makes figures of a search or a compression suspicious, in words for tables and pages."""

from collections.abc import Sequence

FEW = 3  # figures of which no two need differ


def of_qualities(metric: str, qualities: Sequence[float], best: float | None = None) -> list[str]:
    """Doubts about qualities of different networks, or epochs: all 0, or all the same.

    best: what the metric is at most, where all may be the same.

    >>> of_qualities("accuracy", [0.25, 0.25, 0.25])
    ['accuracy is 0.25 throughout: nothing that was changed moves it']
    """
    if not qualities or len(set(qualities)) > 1 or qualities[0] == best:
        return []
    if qualities[0] == 0:
        return [f"{metric} is 0 throughout: do targets and outputs match?"]
    if len(qualities) < FEW:
        return []
    return [f"{metric} is {qualities[0]:.4g} throughout: nothing that was changed moves it"]


def of_latencies(target: str, latencies_ms: Sequence[float]) -> list[str]:
    """Doubts about latencies of different networks on one target.

    >>> of_latencies("cpu", [2.0, 2.0, 2.0])
    ['all 3 networks take 2 ms on cpu: it does not tell them apart, and a budget steers nothing']
    """
    if len(latencies_ms) < FEW or len(set(latencies_ms)) > 1:
        return []
    return [
        f"all {len(latencies_ms)} networks take {latencies_ms[0]:.4g} ms on {target}: it does not"
        " tell them apart, and a budget steers nothing"
    ]

"""What networks cost on paper: counted without memory for their weights."""

import dataclasses
import sys
from typing import Any


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one network costs; None where a family has no such form."""

    name: str
    params: int
    active_params: int
    macs: int
    prefill_macs: int | None
    step_macs: int | None
    kv_bytes: int | None
    float32_bytes: int
    bfloat16_bytes: int
    tokens: int | None
    batch: int
    uncounted: tuple[str, ...]


def count(config: Any, *, name: str = "", tokens: int | None = None, batch: int = 1) -> Counts:
    """What the network of a Config costs; no weight is allocated.

    Args:
        config: A Config of any family.
        name: What the network is called in the result.
        tokens: Of a text; None: the Config's length.
        batch: Examples at once: MACs and the KV cache are those of all.

    Raises:
        ValueError: Tokens or a batch below 1.

    >>> from families import mnasnet
    >>> count(mnasnet.VARIANTS["a1"]).params
    3920526
    """
    for what, value in (("tokens", tokens), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{what} {value}; expected at least 1")
    family = sys.modules[type(config).__module__]
    is_text = hasattr(family, "kv_bytes")
    if tokens is not None and is_text:
        config = dataclasses.replace(config, length=tokens)
    length = config.length if is_text else None
    whole, active = _cost(family, config)
    prefill = step = None
    if hasattr(family, "prefill"):
        prefill = _cost(family, family.prefill(config))[0].macs * batch
    if hasattr(family, "deploy"):
        step = _cost(family, family.deploy(config))[0].macs * batch
    return Counts(
        name=name,
        params=whole.total_params,
        active_params=active,
        macs=whole.macs * batch,
        prefill_macs=prefill,
        step_macs=step,
        kv_bytes=family.kv_bytes(config, length, batch) if is_text else None,
        float32_bytes=4 * whole.total_params,
        bfloat16_bytes=2 * whole.total_params,
        tokens=length,
        batch=batch,
        uncounted=whole.uncounted,
    )


def _cost(family: Any, config: Any) -> tuple[Any, int]:
    """The `latency.networks.count.Cost` of a network and its active parameters."""
    from families.layers import shapes_only
    from latency.networks import count as cost

    with shapes_only():
        model = family.build(config)
    counted = cost.count(model)
    unused = sum(
        layer.count_params() - layer.active_params()
        for layer in model.layers
        if hasattr(layer, "active_params")
    )
    return counted, counted.total_params - unused

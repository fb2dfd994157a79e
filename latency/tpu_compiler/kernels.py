"""What the operations of a compiled TPU program compute: the layers' multiply-adds, placed.

A fused operation tells the names of the products within it, and `latency.networks.count` what these
multiply:
so the sum is the network's, whatever the compiler made of a convolution.
"""

import re
from typing import Any

from latency.networks import count as cost
from latency.roofline import kernel_times
from latency.roofline.kernel_times import Kernel

_COPIES = re.compile(r"(copy|slice|pad|reshape|transpose|concatenate|bitcast|dynamic|reverse)")


def kernels(record: dict[str, Any], model: Any, batch_size: int) -> tuple[list[Kernel], list[str]]:
    """A kernel for each operation of `TPU.compile`'s record, and notes on them.

    Bytes are those that an operation itself moves to and from HBM, as padded as they lie there.
    One that does the products of several layers has a class of theirs, "depthwise+matmul".
    Multiply-adds that belong to no operation come last, as kernels that move nothing.
    """
    share = batch_size / record["devices"]
    classes: dict[str, str] = {}
    macs: dict[str, float] = {}
    for node, row in zip(cost.calls(model), cost.count(model).layers, strict=True):
        open_batch = tuple(node.outputs[0].shape)[:1] == (None,)
        macs[row.name] = macs.get(row.name, 0.0) + row.macs * (share if open_batch else 1)
        classes[row.name] = kernel_times.class_of(node.operation, row) or "copy"
    operations = record["operations"]
    placed = [0.0] * len(operations)
    within: list[list[str]] = [[] for _ in operations]  # the layers whose products it does
    missing = {}
    for layer, count in macs.items():
        if not count:
            continue
        places = _places(operations, layer)
        for place in places:
            placed[place] += count / len(places)
            within[place].append(layer)
        if not places:
            missing[layer] = count
    found = []
    for operation, count, layers in zip(operations, placed, within, strict=True):
        layer = operation["layer"] if operation["layer"] in layers else next(iter(layers), "")
        name = layer or operation["layer"]
        moves = operation["overlapped"] or _COPIES.match(operation["name"])
        op_class = classes.get(name, "copy")
        if not layer and (moves or not operation["type"]):
            op_class = "copy"
        elif not layer and op_class in ("conv", "depthwise", "matmul"):
            op_class = "elementwise"  # beside the product itself
        elif len(layers) > 1:  # products of several layers in one
            op_class = "+".join(dict.fromkeys(sorted(classes[one] for one in layers)))
        kind = operation["type"] if layer else re.sub(r"[._\d]+$", "", operation["name"])
        moved = float(operation["hbm_bytes"] * operation["times"])
        found.append(Kernel(name, kind or "XLA", op_class, count, moved))
    found += [
        Kernel(layer, "not found", classes[layer], count, 0.0) for layer, count in missing.items()
    ]
    notes = ["bytes are of HBM, as padded as arrays lie there; what stays on the chip moves none"]
    if record["unknown_loops"]:
        notes.append(
            f"{record['unknown_loops']} loops of the schedule have no known count and are counted "
            "once: theirs may take longer"
        )
    if missing:
        lost = sum(missing.values()) / sum(macs.values())
        notes.append(f"{lost:.1%} of the FLOPs are in no operation by name: {', '.join(missing)}")
    return found, notes


def _places(operations: list[dict[str, Any]], layer: str) -> list[int]:
    """The operations that do the products of a layer; else the longest one of its name."""
    named = [i for i, one in enumerate(operations) if layer in one["products"]]
    if named:
        return named
    own = [i for i, one in enumerate(operations) if one["layer"] == layer and not one["overlapped"]]
    return sorted(own, key=lambda i: -(operations[i]["cycles"] or 0))[:1]

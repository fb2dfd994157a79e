"""Several resources at once, all of them or none: placement groups of Ray (Pathways' gangs)."""

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Bundle = Mapping[str, float]  # resources of one node, as {"CPU": 4, "GPU": 1, "phone:SERIAL": 1}


@contextlib.contextmanager
def gang(ray: Any, bundles: Sequence[Bundle]) -> Iterator[Any]:
    """A placement group, waiting for its resources; removed at the end, whoever ended meanwhile.

    To be used in the driver: a group that an actor makes is not freed when that actor is killed.
    `ValueError` where the cluster has not so much, for Ray would wait for ever.
    """
    check(ray, bundles)
    name = f"gang-{uuid.uuid4().hex}"
    group = ray.util.placement_group([dict(bundle) for bundle in bundles], name=name)
    try:
        yield group
    finally:
        ray.util.remove_placement_group(group)


def check(ray: Any, bundles: Sequence[Bundle]) -> None:
    """`ValueError` where these bundles do not fit on the nodes that there are, were they idle."""
    if fitting(ray, bundles, 1):
        return
    total = {name: amount for name, amount in ray.cluster_resources().items() if _named(name)}
    words = "; ".join(_words(bundle) for bundle in bundles)
    raise ValueError(
        f"the Ray cluster has no room for {words} at once: it has {_words(total)} on"
        f" {sum(node['Alive'] for node in ray.nodes())} nodes; ask for less, or start nodes"
    )


def fitting(ray: Any, bundles: Sequence[Bundle], most: int) -> int:
    """How many times these bundles fit on the nodes, were they idle; at most `most`."""
    rooms = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for count in range(most):
        if not _place(rooms, list(bundles)):
            return count
    return most


def _place(rooms: list[dict[str, float]], bundles: Sequence[Bundle]) -> bool:
    """Whether each bundle finds a room, tried in all ways; it is taken from `rooms` then."""
    if not bundles:
        return True
    bundle, *others = bundles
    for room in rooms:
        if all(room.get(name, 0) >= amount for name, amount in bundle.items()):
            for name, amount in bundle.items():
                room[name] = room.get(name, 0) - amount
            if _place(rooms, others):
                return True
            for name, amount in bundle.items():
                room[name] += amount
    return False


def _named(name: str) -> bool:
    """Whether a resource is one that a user counts."""
    own = name.startswith("node:") or "_group_" in name  # of Ray itself
    return not own and name not in ("memory", "object_store_memory")


def _words(bundle: Bundle) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in sorted(bundle.items())) or "nothing"

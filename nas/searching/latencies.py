"""Latencies of candidates: measured once for all studies, never measured and estimated at once."""

from collections.abc import Callable, Sequence
from typing import Any

from latency.target import Target, TargetUnavailable
from nas import cache
from nas.networks import build
from nas.profiling import history
from nas.searching.failures import OtherKind
from nas.searching.form import Form


def latency_of(target: Target, form: Form, runs: int) -> dict[str, Any]:
    """The record of a latency without its samples, which stay in the cache; "cached": it was."""
    identity = {
        "network": form.network,
        "target": build.identity_of(target),
        "on": target.identity(),
    }
    identity["record"] = "with a kind"  # earlier records have none

    def compute() -> dict[str, Any]:
        (latency,) = history.profile(
            target, {form.name: form.artifact}, networks=[form.network], runs=runs
        )
        return latency.to_json() | {"transient": not latency.conditions.get("stable", True)}

    record, known = cache.remember("latency", identity, compute)
    summary = {name: value for name, value in record.items() if name != "samples_ms"}
    return summary | {"cached": known}


def measured_again(
    targets: Sequence[Target],
    device: Callable[[str], Target],
    artifact: Any,
    name: str,
    *,
    networks: Sequence[str] | None,
    runs: int,
) -> list[dict[str, Any]]:
    """Latency records, with their samples, of a `keras.Model` or a file, one a target.

    Where a target only stands for a device, the device itself, of its name, is asked; if it cannot
    be reached, the prediction stays one, and "unchecked" says why.
    """

    def timed(target: Target) -> dict[str, Any]:
        found = history.profile(target, {name: artifact}, networks=networks, runs=runs)
        return found[0].to_json()

    records = []
    for target in targets:
        unchecked = {}
        try:
            if target.learned_from is not None:
                records.append(timed(device(target.learned_from)))
                continue
        except TargetUnavailable as error:
            unchecked = {"unchecked": str(error)}
        records.append(timed(target) | unchecked)
    return records


def refuse_other_kinds(
    targets: Sequence[Target], latencies: Sequence[dict[str, Any]], kinds: Sequence[str | None]
) -> None:
    """`OtherKind` where a figure is of another kind than those that the study began with."""
    for target, latency, kind in zip(targets, latencies, kinds, strict=False):
        if kind is not None and latency["kind"] != kind:
            raise OtherKind(
                f"{target!r} gives {latency['kind']} figures now, this study began with "
                f"{kind} ones: go on where the device is as it was, or name a new --study"
            )

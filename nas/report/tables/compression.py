"""A compression in a terminal: before and after, side by side, and what was left alone."""

import textwrap
from collections.abc import Mapping

from nas.report.tables.latency import WIDTH, align

TOP = 12  # untouched layers of one reason that are named; the .json has all


def table(record: Mapping) -> str:
    """The record of `nas compress` as text."""
    before, after = record["before"], record["after"]
    cells = [["", "before", "after", ""]]
    if record["metric"]:
        gained = 100 * (after["quality"] - before["quality"])
        pair = [f"{100 * side['quality']:.2f} %" for side in (before, after)]
        cells.append([record["metric"], *pair, f"{gained:+.2f} points"])
        cells.append(["loss", *[f"{side['loss']:.4f}" for side in (before, after)], ""])
    for name, what in (("params", "parameters"), ("nonzeros", "non-zeros")):
        cells.append([what, *_counts(before[name], after[name])])
    for file in record["files"]:
        was, now = file["before"], file["after"]
        kind = file["path"].rpartition(".")[2]
        if now.get("quality") is not None:
            pair = [f"{100 * side['quality']:.2f} %" for side in (was, now)]
            gained = 100 * (now["quality"] - was["quality"])
            cells.append([f".{kind} {record['metric']}", *pair, f"{gained:+.2f} points"])
        cells.append([f".{kind} bytes", *_counts(was["bytes"], now["bytes"])])
        cells.append(["  zipped", *_counts(was["zipped_bytes"], now["zipped_bytes"])])
        bits = [f"{side['bits_per_weight']:.2f}" for side in (was, now)]
        cells.append(["  bits a weight", *bits, ""])
    for target, was in before.get("latency", {}).items():
        now = after["latency"][target]
        pair = [f"{side['median_ms']:.4g} ms" for side in (was, now)]
        cells.append([target, *pair, f"x{now['median_ms'] / was['median_ms']:.3f}, {now['kind']}"])
    lines = [*align(cells), ""]
    lines += _left(record)
    lines += [file["path"] for file in record["files"]]
    lines += [record["plot"]] if "plot" in record else []
    return "\n".join(lines)


def _counts(was: int, now: int) -> list[str]:
    return [f"{was:,}", f"{now:,}", f"x{now / max(was, 1):.3f}" if was != now else ""]


def _left(record: Mapping) -> list[str]:
    """What no method touched, and what a file stores wider than it could be, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in record["untouched"].items():
        reasons.setdefault(f"untouched, {reason}", []).append(name)
    for file in record["files"]:
        kind = file["path"].rpartition(".")[2]
        for name, reason in file["after"]["left"].items():
            reasons.setdefault(f".{kind}: {reason}", []).append(name)
    lines = []
    for reason, names in reasons.items():
        told = ", ".join(names[:TOP]) + (f" and {len(names) - TOP} more" if names[TOP:] else "")
        lines += textwrap.wrap(f"{reason}: {told}", WIDTH, subsequent_indent="  ")
    return lines

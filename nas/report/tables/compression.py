"""A compression in a terminal: before and after, side by side, and what was left alone."""

from collections.abc import Mapping
from typing import Any

from nas.report.format import figure, gain, percent, quality
from nas.report.tables import goal
from nas.report.tables.columns import columns, paragraph

TOP = 12  # untouched layers of one reason that are named; the .json has all


def table(record: Mapping[str, Any]) -> str:
    """The record of `nas compress` as text."""
    before, after = record["before"], record["after"]
    cells = [["", "before", "after", ""]]
    if record["metric"]:
        pair = [quality(side["quality"], record) for side in (before, after)]
        gained = gain(before["quality"], after["quality"], record)
        cells.append([record["metric"], *pair, gained])
        if "balanced_accuracy" in before:
            pair = [f"{percent(side['balanced_accuracy'])} %" for side in (before, after)]
            cells.append(["balanced accuracy", *pair, "the mean of the classes' own"])
        cells.append(["loss", *[f"{side['loss']:.4f}" for side in (before, after)], ""])
    if record.get("output_error") is not None:
        off = f"{percent(record['output_error'])} %"
        cells.append(["output error", "", off, "of what outputs vary by"])
    for name, what in (("params", "parameters"), ("nonzeros", "non-zeros")):
        cells.append([what, *_counts(before[name], after[name])])
    for file in record["files"]:
        was, now = file["before"], file["after"]
        kind = file["path"].rpartition(".")[2]
        if now.get("quality") is not None:
            pair = [quality(side["quality"], record) for side in (was, now)]
            gained = gain(was["quality"], now["quality"], record)
            cells.append([f".{kind} {record['metric']}", *pair, gained])
        if now.get("output_error") is not None:
            off = f"{percent(now['output_error'])} %"
            cells.append([f".{kind} output error", "", off, "of what outputs vary by"])
        if now.get("same_answers") is not None:
            cells.append([f".{kind} same answers", "", f"{percent(now['same_answers'])} %", ""])
        cells.append([f".{kind} bytes", *_counts(was["bytes"], now["bytes"])])
        cells.append(["  zipped", *_counts(was["zipped_bytes"], now["zipped_bytes"])])
        bits = [f"{side['bits_per_weight']:.2f}" for side in (was, now)]
        cells.append(["  bits a weight", *bits, ""])
    for target, was in before.get("latency", {}).items():
        now = after["latency"][target]
        pair = [f"{figure(side['median_ms'], 4, zeros=False)} ms" for side in (was, now)]
        cells.append([target, *pair, f"x{now['median_ms'] / was['median_ms']:.3f}, {now['kind']}"])
    warnings = [line for one in record.get("warnings", ()) for line in paragraph(f"WARNING: {one}")]
    lines = [*warnings, *(goal.lines(record["goal"]) if "goal" in record else ())]
    lines += [*columns(cells, right=(1, 2)), ""]
    lines += [line for one in record.get("judged_by", ()) for line in paragraph(one)]
    lines += _notes(record)
    lines += _left(record)
    lines += [file["path"] for file in record["files"]]
    lines += [record[name] for name in ("plot", "goal_plot") if name in record]
    return "\n".join(lines)


def _counts(was: int, now: int) -> list[str]:
    return [f"{was:,}", f"{now:,}", f"x{now / max(was, 1):.3f}" if was != now else ""]


def _notes(record: Mapping[str, Any]) -> list[str]:
    """What was changed as the network was opened, what stood before, what a file is."""
    lines = [line for note in record.get("notes", ()) for line in paragraph(f"note: {note}")]
    copies = []
    for file in record["files"]:
        kind, was = file["path"].rpartition(".")[2], file["before"]
        if "dtype" not in was:
            copies.append(f".{kind}")
        else:
            more = was["optimizer_bytes"]
            state = f", {more:,} bytes of them an optimizer's state" if more else ""
            lines += paragraph(f".{kind} before: {was['path']} as it is, {was['dtype']}{state}")
        for side, found in file["after"].get("ends", {}).items():
            for name, end in found.items():
                shown = f"{end['scale']:.6g} * ({end['dtype']} - {end['zero_point']})"
                lines += paragraph(f".{kind} {side.removesuffix('s')} {name!r} is {shown}")
        for note in file["after"].get("notes", ()):
            lines += paragraph(f"warning: .{kind}: {note}")
    if copies:
        lines += paragraph(f"{', '.join(copies)} before: float32, made of the network here")
    return lines


def _left(record: Mapping[str, Any]) -> list[str]:
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
        listed = ", ".join(names[:TOP]) + (f" and {len(names) - TOP} more" if names[TOP:] else "")
        lines += paragraph(f"{reason}: {listed}")
    return lines

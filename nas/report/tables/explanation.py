"""Where the time of networks goes and what bounds it, in a terminal; networks side by side."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from latency.roofline.device_limits import DeviceLimits
from latency.roofline.explanation import Explanation, Operation, Part
from latency.target import Kind
from nas.report.format import figure, ratio, share
from nas.report.tables.columns import columns, paragraph
from nas.report.tables.latency import NAME, kind_word

TOP = 15  # operations that are listed; --json has all
_FAR = 1.5  # times between two figures from which on they get a sentence
_IDLE = 0.5  # of what is attainable: below it something else holds an operation
_ON_CHIP = 100  # times the ridge: so few bytes are as good as none
_HEAVY = 0.1  # of the time, from which on a class of operations gets a sentence


_WORDS = {"launch": "launches", "none": "none of them (copies on the chip)"}
_ESTIMATED = {
    Kind.COMPILED: "times of operations are of the compiler's schedule, and efficiency is that of "
    "the schedule: no operation was measured",
    Kind.PREDICTED: "times of operations are a model's, and efficiency is what the model assumes: "
    "no operation was measured",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows {"model", "spec", "latency", "why"}: each alone, then side by side."""
    lines: list[str] = []
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines += ["", *explanation(row["model"], row["spec"], row["why"])]
        groups.setdefault((row["spec"], row["why"].batch_size), []).append(row)
    for (spec, batch), group in groups.items():
        if len(group) > 1:
            lines += ["", *side_by_side(spec, batch, {row["model"]: row["why"] for row in group})]
    return "\n".join(lines)


def explanation(model: str, spec: str, explained: Explanation) -> list[str]:
    """One network: its device's limits, what was found, classes, bounds, the slowest operations."""
    total, word = explained.total, kind_word(explained.kind)
    batch = f", batch {explained.batch_size}" if explained.batch_size > 1 else ""
    lines = paragraph(
        f"{model} on {spec}{batch}: {_number(explained.latency_ms)} ms "
        f"{kind_word(explained.latency_kind)}; its {total.count} operations take "
        f"{_number(total.ms)} ms {word}"
    )
    lines += paragraph(limits(explained.limits), "  ")
    if explained.kind is not Kind.MEASURED:
        lines += paragraph(f"note: {_ESTIMATED[explained.kind]}", "  ")
    for note in explained.notes:
        lines += paragraph(f"note: {note}", "  ")
    for sentence in findings(explained):
        lines += paragraph(f"- {sentence}", "  ")
    lines += ["", *sums("class", explained.classes, total), ""]
    lines += [*sums("bound by", explained.bounds, total), ""]
    timed = sorted(explained.operations, key=lambda one: -(one.ms or 0.0))
    head = ["operation", "type", "MFLOPs", "MB", "FLOPs/B", "bound", f"ms {word}", "attainable"]
    cells = [[*head, "efficiency", "share"]]
    for one in timed[:TOP]:
        cells.append(
            [
                operation_name(one)[:NAME],
                one.type[:28],
                _number(one.flops / 1e6),
                _number(one.bytes / 1e6),
                intensity(one),
                one.bound,
                _number(one.ms),
                _number(one.attainable_ms),
                share(one.efficiency),
                share((one.ms or 0.0) / (total.ms or 1.0)),
            ]
        )
    lines += columns(cells)
    if len(timed) > TOP:
        lines.append(f"{len(timed) - TOP} more, of which --json has all")
    return lines


def operation_name(one: Operation) -> str:
    """An operation's name, without what its type tells again."""
    return one.name.removesuffix(f"/{one.type.lower()}")


def limits(device: DeviceLimits) -> str:
    """What a device can do at most, and where that is known from."""
    launch = f", {device.launch_us:.2g} us to begin an operation" if device.launch_us else ""
    near = max(speed for _, speed in device.bandwidths)
    cached = f" ({near:,.0f} from caches)" if near > 1.2 * device.bandwidth_gbs else ""
    peak = device.peak_tflops
    highest = f"{peak:,.4g} TFLOP/s" if peak >= 10 else f"{peak * 1e3:,.4g} GFLOP/s"
    return (
        f"at most {highest} and {device.bandwidth_gbs:,.4g} GB/s"
        f"{cached}{launch}: below {device.ridge:.3g} FLOPs a byte memory bounds ({device.source})"
    )


def findings(explained: Explanation) -> list[str]:
    """What the figures say, in sentences: classes far from the best one, bounds, what is lost."""
    total = explained.total
    if not total.ms:
        return []
    sentences = []
    products = [(one, one.tflops) for one in explained.classes if one.flops and one.tflops]
    best, fastest = max(products, key=lambda pair: pair[1], default=(total, 0.0))
    for one, tflops in products:
        if one is best or one.ms < _HEAVY * total.ms or fastest < _FAR * tflops:
            continue
        sentences.append(
            f"{one.name}: {share(one.ms / total.ms)} of the time for "
            f"{share(one.flops / total.flops)} of the FLOPs; {_place(one, explained.limits)}, and "
            f"a FLOP takes {fastest / tflops:.3g} times as long as in {best.name}"
        )
    for one in explained.classes:
        if not one.flops and one.ms >= _HEAVY * total.ms:
            sentences.append(
                f"{one.name}: {share(one.ms / total.ms)} of the time without a product"
            )
    shares = [
        f"{share(one.ms / total.ms)} by {_WORDS.get(one.name, one.name)}"
        for one in explained.bounds
        if one.ms >= 0.0005 * total.ms
    ]
    sentences.append(
        f"the time is bound {', '.join(shares)}; if all operations took what they can attain, they "
        f"would take {_number(total.attainable_ms)} ms, {share(total.efficiency)} of it"
    )
    slow: dict[str, float] = collections.defaultdict(float)  # class -> ms
    for operation in explained.operations:
        if (operation.efficiency or 1.0) < _IDLE:
            slow[operation.op_class] += operation.ms or 0.0
    slow_ms = sum(slow.values())
    if slow_ms >= _HEAVY * total.ms:
        most, ms = max(slow.items(), key=lambda item: item[1])
        sentences.append(
            f"{share(slow_ms / total.ms)} of it is in operations below {_IDLE:.0%} of what they "
            f"can attain, {share(ms / slow_ms)} of that in {most}: neither the peak nor memory "
            "holds them, but units that are not filled, or that wait"
        )
    return sentences


def _place(one: Part, limits: DeviceLimits) -> str:
    """Where a class of operations lies below the limits."""
    if one.intensity is None or one.intensity > _ON_CHIP * limits.ridge:
        return "its tensors stay on the chip"
    where = f"{intensity(one)} FLOPs a byte"
    if one.bound == "launch":
        return f"{where}, and too small for it to matter: bound by launches"
    if one.intensity >= limits.ridge:
        return f"{where} are above the ridge"
    if one.bound == "memory":
        return f"{where} are below the ridge: bound by memory"
    return f"{where} are below the ridge, though caches hold its tensors"


def sums(title: str, found: Sequence[Part], total: Part) -> list[str]:
    """Sums of operations as a table."""
    head = [title, "count", "GFLOPs", "of FLOPs", "MB", "FLOPs/B", "GFLOP/s", "efficiency", "ms"]
    cells = [[*head, "share"]]
    for one in (*found, total):
        cells.append(
            [
                one.name,
                str(one.count),
                _number(one.flops / 1e9),
                share(one.flops / total.flops) if total.flops else "",
                _number(one.bytes / 1e6),
                intensity(one),
                _gflops(one),
                share(one.efficiency),
                _number(one.ms),
                share(one.ms / total.ms) if total.ms else "",
            ]
        )
    return columns(cells)


def side_by_side(spec: str, batch: int, found: Mapping[str, Explanation]) -> list[str]:
    """Networks on one target by stage and by class; each against the first one."""
    names = list(found)
    first = found[names[0]]
    legend = ", ".join(f"{letter(index)} is {name}" for index, name in enumerate(names))
    lines = paragraph(f"side by side on {spec}, batch {batch}: {legend}")
    for title, field in (("stage", "stages"), ("class", "classes")):
        each: list[dict[str, Part]] = [
            {one.name: one for one in getattr(explained, field)} for explained in found.values()
        ]
        rows = list(dict.fromkeys(name for named in each for name in named))
        for named, explained in zip(each, found.values(), strict=True):
            named["total"] = explained.total
        if title == "stage":
            rows = _in_order(rows)
        head = [title]
        for label, _ in _COMPARED:
            head += [f"{label} {letter(index)}" for index in range(len(names))]
            ratios = [f"{label} {letter(i)}/A" for i in range(1, len(names))]
            head += ratios if label in _RATIOS else []
        cells = [head]
        for name in (*rows, "total"):
            mine = [named.get(name) for named in each]
            line = [name]
            for label, value in _COMPARED:
                values = [None if one is None else value(one) for one in mine]
                write = intensity if label == "FLOPs/B" else _number
                line += ["" if one is None else write(one) for one in values]
                if label in _RATIOS:
                    line += [ratio(one or 0, values[0] or 0) for one in values[1:]]
            cells.append(line)
        lines += ["", *columns(cells)]
    lines.append("")
    for name in names[1:]:
        lines += paragraph(f"- {verdict(names[0], first, name, found[name])}", "")
    return lines


_COMPARED = (
    ("GFLOPs", lambda one: one.flops / 1e9),
    ("FLOPs/B", lambda one: one),
    ("GFLOP/s", lambda one: one.tflops and 1e3 * one.tflops),
    ("ms", lambda one: one.ms),
)
_RATIOS = ("GFLOPs", "ms")


def verdict(name: str, one: Explanation, other_name: str, other: Explanation) -> str:
    """Which of two networks is faster on a device, and by what."""
    a, b = one.total, other.total
    times, flops = other.latency_ms / one.latency_ms, b.flops / a.flops
    word = "faster" if times < 1 else "slower"
    text = (
        f"{other_name} is {max(times, 1 / times):.2f} times {word} than {name} "
        f"({kind_word(other.latency_kind)}) with {flops:.2f} times its FLOPs: "
    )
    text += (
        f"{_gflops(b)} GFLOP/s against {_gflops(a)}, "
        f"{intensity(b)} FLOPs a byte against {intensity(a)}, "
        f"{_number(b.bytes / 1e6)} MB moved against {_number(a.bytes / 1e6)}"
    )
    change: dict[str, float] = {}
    for sign, explained in ((-1, one), (1, other)):
        for part in explained.stages:
            change[part.name] = change.get(part.name, 0.0) + sign * part.ms
    most = sorted(change.items(), key=lambda item: item[1], reverse=times > 1)[:3]
    return f"{text}. Most of it: " + ", ".join(f"{stage} {ms:+.3g} ms" for stage, ms in most)


def letter(index: int) -> str:
    """A, B, ...: what columns call a network."""
    return chr(ord("A") + index)


def _number(value: float | None) -> str:
    return figure(value, zeros=False, missing="")


def _gflops(one: Part) -> str:
    return _number(one.tflops and 1e3 * one.tflops)


def intensity(one: Operation | Part) -> str:
    """FLOPs a byte; in words where products move nothing that counts."""
    if one.intensity is None:
        return "on chip" if one.flops else ""
    return _number(one.intensity) if one.intensity < 1e5 else f"{one.intensity:.1e}"


def _in_order(stages: Sequence[str]) -> list[str]:
    """Stem, blocks by their number, head, and what else there is."""

    def place(name: str) -> tuple[int, int]:
        digits = "".join(filter(str.isdigit, name))
        kinds = {"stem": 0, "head": 2}
        return kinds.get(name, 1 if digits else 3), int(digits or 0)

    return sorted(stages, key=place)

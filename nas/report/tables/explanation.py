"""Where the time of networks goes and what bounds it, in a terminal; networks side by side."""

import collections
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from latency.roofline.device_limits import Roof
from latency.roofline.explain import Explanation, Operation, Part
from latency.target import Kind
from nas.report.tables.latency import NAME, WIDTH, align

TOP = 15  # operations that are listed; --json has all
_FAR = 1.5  # times between two figures from which on they are worth a sentence
_IDLE = 0.5  # of what is attainable: below it something else holds an operation
_ON_CHIP = 100  # times the ridge: so few bytes are as good as none
_HEAVY = 0.1  # of the time, from which on a class of operations is worth a sentence


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


def explanation(model: str, spec: str, why: Explanation) -> list[str]:
    """One network: its device's roof, what was found, classes, bounds, the slowest operations."""
    total, word = why.total, figure(why.kind)
    batch = f", batch {why.batch_size}" if why.batch_size > 1 else ""
    lines = wrapped(
        f"{model} on {spec}{batch}: {number(why.latency_ms)} ms {figure(why.latency_kind)}; its "
        f"{total.count} operations take {number(total.ms)} ms {word}"
    )
    lines += wrapped(roof(why.roof), "  ")
    if why.kind is not Kind.MEASURED:
        lines += wrapped(f"note: {_ESTIMATED[why.kind]}", "  ")
    for note in why.notes:
        lines += wrapped(f"note: {note}", "  ")
    for sentence in findings(why):
        lines += wrapped(f"- {sentence}", "  ")
    lines += ["", *parts("class", why.classes, total), ""]
    lines += [*parts("bound by", why.bounds, total), ""]
    timed = sorted(why.operations, key=lambda one: -(one.ms or 0.0))
    head = ["operation", "type", "MFLOPs", "MB", "FLOPs/B", "bound", f"ms {word}", "attainable"]
    cells = [[*head, "efficiency", "share"]]
    for one in timed[:TOP]:
        cells.append(
            [
                _short(one)[:NAME],
                one.type[:28],
                number(one.flops / 1e6),
                number(one.bytes / 1e6),
                intensity(one),
                one.bound,
                number(one.ms),
                number(one.attainable_ms),
                percent(one.efficiency),
                percent((one.ms or 0.0) / (total.ms or 1.0)),
            ]
        )
    lines += align(cells)
    if len(timed) > TOP:
        lines.append(f"{len(timed) - TOP} more, of which --json has all")
    return lines


def _short(one: Operation) -> str:
    """An operation's name, without what its type tells again."""
    return one.name.removesuffix(f"/{one.type.lower()}")


def roof(about: Roof) -> str:
    """What a device can do at most, and where that is known from."""
    launch = f", {about.launch_us:.2g} us to begin an operation" if about.launch_us else ""
    near = max(speed for _, speed in about.bandwidths)
    cached = f" ({near:,.0f} from caches)" if near > 1.2 * about.bandwidth_gbs else ""
    peak = about.peak_tflops
    told = f"{peak:,.4g} TFLOP/s" if peak >= 10 else f"{peak * 1e3:,.4g} GFLOP/s"
    return (
        f"at most {told} and {about.bandwidth_gbs:,.4g} GB/s"
        f"{cached}{launch}: below {about.ridge:.3g} FLOPs a byte memory bounds ({about.source})"
    )


def findings(why: Explanation) -> list[str]:
    """What the figures say, in sentences: classes far from the best one, bounds, what is lost."""
    total = why.total
    if not total.ms:
        return []
    told = []
    products = [one for one in why.classes if one.flops and one.ms]
    best = max(products, key=lambda one: one.tflops or 0.0, default=None)
    for one in products:
        if one is best or one.ms < _HEAVY * total.ms or best.tflops < _FAR * one.tflops:
            continue
        told.append(
            f"{one.name}: {percent(one.ms / total.ms)} of the time for "
            f"{percent(one.flops / total.flops)} of the FLOPs; {_place(one, why.roof)}, and a FLOP "
            f"takes {best.tflops / one.tflops:.3g} times as long as in {best.name}"
        )
    for one in why.classes:
        if not one.flops and one.ms >= _HEAVY * total.ms:
            told.append(f"{one.name}: {percent(one.ms / total.ms)} of the time without a product")
    shares = [
        f"{percent(one.ms / total.ms)} by {_WORDS.get(one.name, one.name)}"
        for one in why.bounds
        if one.ms >= 0.0005 * total.ms
    ]
    told.append(
        f"the time is bound {', '.join(shares)}; if all operations took what they can attain, they "
        f"would take {number(total.attainable_ms)} ms, {percent(total.efficiency)} of it"
    )
    slow = [one for one in why.operations if (one.efficiency or 1.0) < _IDLE]
    slow_ms = sum(one.ms for one in slow)
    if slow_ms >= _HEAVY * total.ms:
        classes = collections.Counter()
        for one in slow:
            classes[one.op_class] += one.ms
        most, ms = classes.most_common(1)[0]
        told.append(
            f"{percent(slow_ms / total.ms)} of it is in operations below {_IDLE:.0%} of what they "
            f"can attain, {percent(ms / slow_ms)} of that in {most}: neither the peak nor memory "
            "holds them, but units that are not filled, or that wait"
        )
    return told


def _place(one: Part, roof: Roof) -> str:
    """Where a class of operations lies below the roof."""
    if one.intensity is None or one.intensity > _ON_CHIP * roof.ridge:
        return "its tensors stay on the chip"
    where = f"{intensity(one)} FLOPs a byte"
    if one.bound == "launch":
        return f"{where}, and too small for it to matter: bound by launches"
    if one.intensity >= roof.ridge:
        return f"{where} are above the ridge"
    if one.bound == "memory":
        return f"{where} are below the ridge: bound by memory"
    return f"{where} are below the ridge, though caches hold its tensors"


def parts(title: str, found: Sequence[Part], total: Part) -> list[str]:
    """Sums of operations as a table."""
    head = [title, "count", "GFLOPs", "of FLOPs", "MB", "FLOPs/B", "GFLOP/s", "efficiency", "ms"]
    cells = [[*head, "share"]]
    for one in (*found, total):
        cells.append(
            [
                one.name,
                str(one.count),
                number(one.flops / 1e9),
                percent(one.flops / total.flops) if total.flops else "",
                number(one.bytes / 1e6),
                intensity(one),
                number(one.tflops and one.tflops * 1e3),
                percent(one.efficiency),
                number(one.ms),
                percent(one.ms / total.ms) if total.ms else "",
            ]
        )
    return align(cells)


def side_by_side(spec: str, batch: int, found: Mapping[str, Explanation]) -> list[str]:
    """Networks on one target by stage and by class; each against the first one."""
    names = list(found)
    first = found[names[0]]
    told = ", ".join(f"{letter(index)} is {name}" for index, name in enumerate(names))
    lines = wrapped(f"side by side on {spec}, batch {batch}: {told}")
    for title, field in (("stage", "stages"), ("class", "classes")):
        each = [{one.name: one for one in getattr(why, field)} for why in found.values()]
        rows = list(dict.fromkeys(name for parts_ in each for name in parts_))
        if title == "stage":
            rows = _in_order(rows)
        head = [title]
        for label, _ in _COMPARED:
            head += [f"{label} {letter(index)}" for index in range(len(names))]
            ratios = [f"{label} {letter(i)}/A" for i in range(1, len(names))]
            head += ratios if label in _RATIOS else []
        cells = [head]
        for name in (*rows, "total"):
            mine = [why.total for why in found.values()] if name == "total" else None
            mine = mine or [parts_.get(name) for parts_ in each]
            line = [name]
            for label, value in _COMPARED:
                values = [None if one is None else value(one) for one in mine]
                tell = intensity if label == "FLOPs/B" else number
                line += ["" if one is None else tell(one) for one in values]
                if label in _RATIOS:
                    line += [
                        f"x{one / values[0]:.2f}" if one and values[0] else "" for one in values[1:]
                    ]
            cells.append(line)
        lines += ["", *align(cells)]
    lines.append("")
    for name in names[1:]:
        lines += wrapped(f"- {verdict(names[0], first, name, found[name])}", "")
    return lines


_COMPARED = (
    ("GFLOPs", lambda one: one.flops / 1e9),
    ("FLOPs/B", lambda one: one),
    ("GFLOP/s", lambda one: one.tflops and one.tflops * 1e3),
    ("ms", lambda one: one.ms),
)
_RATIOS = ("GFLOPs", "ms")


def verdict(name: str, one: Explanation, other_name: str, other: Explanation) -> str:
    """Which of two networks is faster on a device, and by what."""
    a, b = one.total, other.total
    times, flops = other.latency_ms / one.latency_ms, b.flops / a.flops
    word = "faster" if times < 1 else "slower"
    told = (
        f"{other_name} is {max(times, 1 / times):.2f} times {word} than {name} "
        f"({figure(other.latency_kind)}) with {flops:.2f} times its FLOPs: "
    )
    told += (
        f"{number(b.tflops * 1e3)} GFLOP/s against {number(a.tflops * 1e3)}, "
        f"{intensity(b)} FLOPs a byte against {intensity(a)}, "
        f"{number(b.bytes / 1e6)} MB moved against {number(a.bytes / 1e6)}"
    )
    change: dict[str, float] = {}
    for sign, why in ((-1, one), (1, other)):
        for part in why.stages:
            change[part.name] = change.get(part.name, 0.0) + sign * part.ms
    most = sorted(change.items(), key=lambda item: item[1], reverse=times > 1)[:3]
    return f"{told}. Most of it: " + ", ".join(f"{stage} {ms:+.3g} ms" for stage, ms in most)


def letter(index: int) -> str:
    """A, B, ...: what columns call a network."""
    return chr(ord("A") + index)


def figure(kind: Kind) -> str:
    """What sort of figure it is; only a measured one is written small."""
    return "measured" if kind is Kind.MEASURED else str(kind).upper()


def number(value: float | None) -> str:
    """Three digits; nothing where there is no figure."""
    return "" if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def intensity(one: Operation | Part) -> str:
    """FLOPs a byte; in words where products move nothing that counts."""
    if one.intensity is None:
        return "on chip" if one.flops else ""
    return number(one.intensity) if one.intensity < 1e5 else f"{one.intensity:.1e}"


def percent(share: float | None) -> str:
    """A share, to two digits below ten."""
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most the terminal's width."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _in_order(stages: Sequence[str]) -> list[str]:
    """Stem, blocks by their number, head, and what else there is."""

    def place(name: str) -> tuple[int, int]:
        digits = "".join(filter(str.isdigit, name))
        kinds = {"stem": 0, "head": 2}
        return kinds.get(name, 1 if digits else 3), int(digits or 0)

    return sorted(stages, key=place)

"""What libtpu made of a program: its operations with cycles and memory traffic, read from its text.

Two sources. The optimized HLO (`compiled.as_text()`) lists the operations in the order in which
they run, their layouts and memory spaces, the layer each comes from, and the compiler's
`estimated_cycles`. The LLO dump has the final VLIW schedule of each distinct operation, a line a
bundle (one cycle), with its loops: an unofficial format, read as far as it is understood.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

_FREE = {
    "parameter",
    "constant",
    "bitcast",
    "tuple",
    "get-tuple-element",
    "after-all",
    "partition-id",
}
_SLICES = {"dynamic-slice", "slice", "gather"}
_PRODUCTS = {"convolution", "dot"}
_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|\d+)\s+(?:([A-Z]{2})\s*)?:\s*(>*)\s*\{")
_EXIT = re.compile(r"totalorder [^,;]+, (\d+) /\* loop exit test")
_COMPARES = re.compile(r"%(\w+) = scmp\.ge\.s32\.totalorder [^,;]+, (\d+)")
_BACK = re.compile(r"sbr\.rel \(!%(\w+)\)")
_IDLE = re.compile(r"\s*(?:%\w+ = )?(?:vnop|vdelay \d+)?\s*\}")
_FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program."""

    name: str
    source: str  # the name that JAX gave: "jit(network)/layer/primitive", "weights[0][3]", ...
    cycles: int | None  # of its schedule
    estimated_cycles: int | None  # by the compiler's choice of windows
    hbm_bytes: int  # that it reads and writes
    times: int = 1  # it runs, in a loop
    overlapped: bool = False  # a copy that runs beside others
    products: tuple[str, ...] = ()  # names, as `source`, of the matrix products within it


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else None


Computations = dict[str, list[Instruction]]  # by name


@dataclasses.dataclass(frozen=True)
class Schedules:
    """The static cycles of the operations that a dump folder knows."""

    cycles: dict[str, int]
    unknown_loops: int  # loops whose count the dump lacks: counted once


def operations(hlo: str, schedules: Schedules) -> list[Operation]:
    """The operations of a compiled program, in order; those that cost nothing are left out."""
    computations, entry = _computations(hlo)
    return list(_walk(entry, computations, schedules.cycles, 1))


def _walk(
    name: str, computations: Computations, cycles: dict[str, int], times: int
) -> Iterator[Operation]:
    instructions = computations[name]
    shapes = {one.name: one.shape for one in instructions}
    for one in instructions:
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            continue
        if one.opcode == "while":
            trips = int(one.attribute(r'"known_trip_count":\{"n":"(\d+)"') or 1)
            body = one.attribute(r"body=%([\w.\-]+)") or ""
            yield from _walk(body, computations, cycles, times * trips)
            continue
        if one.opcode in ("call", "conditional"):
            branches = re.findall(r"%([\w.\-]+)", one.attributes.partition("metadata=")[0])
            branches = [branch for branch in branches if branch in computations]
            costs = [list(_walk(b, computations, cycles, times)) for b in branches]
            yield from max(costs, key=len, default=[])
            continue
        estimated = one.attribute(r'"estimated_cycles":"(\d+)"')
        started = one.opcode.endswith("-start")
        yield Operation(
            name=one.name,
            source=one.attribute(r'op_name="([^"]*)"') or "",
            cycles=cycles.get(one.name),
            estimated_cycles=int(estimated) if estimated else None,
            hbm_bytes=_moved(one.shape) if started else _traffic(one, shapes, computations),
            times=times,
            overlapped=started,
            products=tuple(_products(one, computations)),
        )


def _products(one: Instruction, computations: Computations) -> Iterator[str]:
    """JAX's names of the convolutions and matrix products of an operation, fused ones too."""
    if one.opcode in _PRODUCTS:
        yield one.attribute(r'op_name="([^"]*)"') or ""
    for inner in computations.get(one.attribute(r"calls=%([\w.\-]+)") or "", ()):
        yield from _products(inner, computations)


def _computations(hlo: str) -> tuple[Computations, str]:
    """The instructions of each computation, and the name of the one where the program begins."""
    found: Computations = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").removeprefix("%")
            name = re.split(r"[^\w.\-]", name, maxsplit=1)[0]
            current = found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif current is not None and (one := _instruction(line)):
            current.append(one)
    if not entry:
        raise ValueError("the compiled program has no ENTRY computation")
    return found, entry


def _instruction(line: str) -> Instruction | None:
    start = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    if opcode == "parameter":
        operands = (rest[:end],)  # its number
    return Instruction(start.group(1), shape, opcode, operands, rest[end + 1 :])


def _closing(text: str) -> int:
    """The index of the parenthesis that closes the one at index 0."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return index
    return len(text) - 1


def _traffic(one: Instruction, shapes: dict[str, str], computations: Computations) -> int:
    """The bytes that an operation reads from HBM and writes to it.

    Of an operand that is only sliced, the slices; of an output that is an operand with one part
    overwritten (a cache), the part, twice.
    """
    fused = computations.get(one.attribute(r"calls=%([\w.\-]+)") or "", [])
    within = {int(line.operands[0]): line.name for line in fused if line.opcode == "parameter"}
    root = fused[-1] if fused else one
    total, overwritten = hbm_bytes(one.shape), None
    if root.opcode == "dynamic-update-slice":
        known = {line.name: line.shape for line in fused} or shapes
        total = min(total, 2 * array_bytes(known.get(root.operands[1], "")))
        overwritten = root.operands[0]
    for index, operand in enumerate(one.operands):
        name = within.get(index, operand)
        if name == overwritten:
            continue
        size = hbm_bytes(shapes.get(operand, ""))
        users = [line for line in fused if name in line.operands and line.opcode != "parameter"]
        if users and all(user.opcode in _SLICES for user in users):
            size = min(size, sum(array_bytes(user.shape) for user in users))
        total += size
    return total


def _moved(shape: str) -> int:
    """The HBM bytes of an asynchronous copy, by its (destination, source, state) or the like."""
    arrays = [found for found in _ARRAY.finditer(shape) if "S(2)" not in (found.group(3) or "")]
    if not arrays:
        return 0
    ends = sum(_in_hbm(found) for found in arrays[:2])
    return min(map(_padded_bytes, arrays[:2])) * ends


def hbm_bytes(shape: str) -> int:
    """The bytes of those arrays of an HLO shape that lie in HBM, padded as they lie there.

    >>> hbm_bytes("bf16[8,10]{1,0:T(8,128)(2,1)}"), hbm_bytes("f32[4]{0:T(128)S(1)}")
    (2048, 0)
    """
    return sum(_padded_bytes(found) for found in _ARRAY.finditer(shape) if _in_hbm(found))


def array_bytes(shape: str) -> int:
    """The padded bytes of the arrays of an HLO shape, wherever they lie."""
    return sum(map(_padded_bytes, _ARRAY.finditer(shape)))


def _in_hbm(array: re.Match) -> bool:
    return "S(" not in (array.group(3) or "")


def _padded_bytes(array: re.Match) -> int:
    kind, dims, layout = array.group(1), array.group(2), array.group(3) or ""
    bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or ["32"])[0])
    sizes = [int(size) for size in dims.split(",") if size]
    order, _, tiles = layout.partition(":")
    minor_first = [int(axis) for axis in order.split(",") if axis.isdigit()]
    if len(minor_first) == len(sizes):
        sizes = [sizes[axis] for axis in reversed(minor_first)]
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if tile and sizes:
        for back, unit in enumerate(reversed(tile.group(1).split(",")), 1):
            if back <= len(sizes):
                sizes[-back] = -(-sizes[-back] // int(unit)) * int(unit)
    return math.prod(sizes) * bits // 8


def read_dump(folder: Path) -> Schedules:
    """The static cycles of each operation that libtpu dumped into `folder`, twins included."""
    cycles, unknown = {}, 0
    for path in sorted(folder.glob("*-final_bundles.txt")):
        found = _FILE.fullmatch(path.name)
        if not found or "schedule-analysis" in path.name:
            continue
        cycles[found.group(1)], loops = static_cycles(path.read_text())
        unknown += loops
    for path in folder.glob("*deduplication-map.txt"):
        key = None
        for line in path.read_text().splitlines():
            if line.startswith("key:"):
                key = line.removeprefix("key:")
            elif line.startswith("  ") and key in cycles:
                cycles.setdefault(line.strip(), cycles[key])
    return Schedules(cycles, unknown)


def static_cycles(bundles: str) -> tuple[int, int]:
    """The cycles of a schedule: bundles times the trips of their loops; and loops without a count.

    The first and last trips of a pipelined loop only fetch or only store: a loop of n steps and 2
    further stages has n + 2 trips.
    """
    stack = [_Loop()]
    unknown = 0

    def close() -> None:
        nonlocal unknown
        loop = stack.pop()
        trips = loop.trips or loop.bounds.get(loop.branch)
        unknown += trips is None
        stack[-1].cycles += loop.cycles * (1 if trips is None else max(1, trips - loop.stages))

    for line in bundles.splitlines():
        found = _BUNDLE.match(line)
        if not found:
            continue
        tag, depth = found.group(1), len(found.group(2))
        if _IDLE.match(line, found.end()) and not tag:
            depth = len(stack) - 1  # bundles between regions are printed as if outside the loop
        while len(stack) - 1 > depth or (tag == "LB" and len(stack) - 1 == depth > 0):
            close()
        while len(stack) - 1 < depth:
            stages = [int(stage) for stage in re.findall(r"stage = (\d+)", line)]
            stack.append(_Loop(stages=max(stages, default=0)))
        stack[-1].read(line)
    while len(stack) > 1:
        close()
    return stack[0].cycles, unknown


@dataclasses.dataclass
class _Loop:
    """An open loop of a schedule, or what is outside of all."""

    cycles: int = 0
    trips: int | None = None
    stages: int = 0
    bounds: dict[str, int] = dataclasses.field(default_factory=dict)  # of counters, by predicate
    branch: str = ""  # the predicate of the last conditional branch: of the one back, in the end

    def read(self, line: str) -> None:
        self.cycles += 1
        if exit_test := _EXIT.search(line):
            self.trips = int(exit_test.group(1))
        for predicate, bound in _COMPARES.findall(line):
            self.bounds[predicate] = int(bound)
        if back := _BACK.search(line):
            self.branch = back.group(1)

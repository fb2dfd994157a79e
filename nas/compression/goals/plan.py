"""Towards a goal: files are made, judged and timed until none that is better is in reach.

What needs no training comes first. How many bytes, or channels, a network can lose is found by
bisection, since quality falls with them; what was tried is kept, and the same call goes on with it.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compress.distill import Distill
from compress.method import Compressed, Method, NotApplicable, compress
from compress.prune_channels import PruneChannels
from compress.ptq import PTQ
from latency.system.json_records import write_json
from latency.target import Target
from nas import interruption
from nas.compression import before_and_after
from nas.compression.goals import bits
from nas.compression.goals.goal import Goal
from nas.compression.goals.judged import Drop, Judged
from nas.events import Listener, Message
from nas.files.open_network import Network
from nas.files.writers.written_file import CannotWrite
from nas.profiling import history

STEPS = 6  # of a bisection
MARGIN = 0.25  # standard deviations of a drop that a choice keeps below its limit
RUNS = 50  # timed runs of a file

Train = Callable[[Any, Sequence[Method]], Compressed]  # a network, what to train it with


@dataclasses.dataclass(frozen=True)
class Tried:
    """A file that was made: how, and what it is.

    drop: on the examples to choose by. within: whether it keeps every limit.
    """

    words: str
    methods: tuple[Method, ...]
    trained: bool
    bytes: int
    zipped_bytes: int
    drop: Drop
    ms: float | None
    within: bool

    def to_json(self) -> dict[str, Any]:
        """As plain data; methods by their names."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return found | {"methods": [repr(one) for one in self.methods], "drop": self.drop.to_json()}


class Plan:
    """The search for one network and goal; `run` gives what it chose."""

    def __init__(
        self,
        network: Network,
        goal: Goal,
        examples: Judged,
        *,
        name: str,
        target: Target | None,
        train: Train | None,
        kept: pathlib.Path | None,
        front: pathlib.Path | None,
        identity: dict[str, Any],
        on_event: Listener,
    ):
        self.network, self.goal, self.examples, self.name = network, goal, examples, name
        self.target, self.train, self.front, self.on_event = target, train, front, on_event
        self.tried: list[Tried] = []
        self.widths: dict[tuple[Method, ...], dict[str, int]] = {}  # of mixed ones, by path
        self._kept = _Kept(kept, identity)
        self._until = time.monotonic() + 60 * goal.minutes
        self._stack = contextlib.ExitStack()

    def run(self) -> Tried:
        """Try until the goal is met as well as can be; `NotApplicable` where it cannot be met."""
        with self._stack:
            temporary = tempfile.TemporaryDirectory(prefix="nas_goal_")
            self.folder = pathlib.Path(self._stack.enter_context(temporary))
            self._before()
            self._say(f"looking for {self.goal}")
            if self.goal.timed:
                self._by_speed()
            else:
                self._by_bytes()
            best = self._best()
            if self.front is not None:
                self._leave_front()
        return best

    def front_of_tried(self) -> list[Tried]:
        """Those of which none other is better in both quality and bytes (or ms, where timed)."""

        def cost(one: Tried) -> float:
            return one.bytes if one.ms is None else one.ms

        best: list[Tried] = []
        for one in sorted(self.tried, key=lambda one: (cost(one), one.drop.points)):
            if not best or one.drop.points < best[-1].drop.points:
                best.append(one)
        return best

    def bits_of(self, chosen: Tried) -> dict[str, dict[str, float]]:
        """Of each kernel of a mixed file: its bits, and what these and fewer cost alone."""
        widths = self.widths.get(chosen.methods)
        kept = self._kept.find("bits")
        if widths is None or kept is None:
            return {}
        found = {}
        for path, some in kept["table"].items():
            place = next(n for n, one in enumerate(some) if one[0] == widths[path])
            found[path] = {"bits": widths[path], "moves": some[place][2]}
            if place + 1 < len(some):
                found[path]["fewer_would_move"] = some[place + 1][2]
        return found

    def _before(self) -> None:
        model = self.network.model
        self.scores = [self.examples.scores(None, part, model) for part in (0, 1)]
        floats = self.folder / "float.tflite"
        written = before_and_after.write_one(floats, model, self.network.config, None, None)
        self.float_bytes, self.float_file = written["bytes"], floats

    def _by_bytes(self) -> None:
        """Fewer and fewer bits, where they cost least; then the same trained."""
        eight = self._try("8 bits", [PTQ(8, activations=None)])
        self._try("4 bits", [PTQ(4, activations=None)])
        table = self._table()
        least = sum(min(one.bytes for one in some) for some in table.values())
        most = sum(some[0].bytes for some in table.values())  # the widest come first
        rest = eight.bytes - most if eight is not None else 0.0
        low, high = least, most
        if self.goal.max_bytes is not None:
            high = min(high, self.goal.max_bytes - rest)
            if high < least:
                self._by_channels(PTQ(4, activations=None))
                return
            self._mixed(table, high)
        if self.goal.max_drop is not None:
            for _ in range(STEPS):
                if high - low < 0.02 * most or self._late():
                    break
                middle = (low * high) ** 0.5
                found = self._mixed(table, middle)
                if found is None or not found.within:
                    low = middle
                else:
                    high = middle
        self._trained(table, high)

    def _by_speed(self) -> None:
        """Integer arithmetic, then fewer channels, trained where there are labels."""
        if self.target is None:
            raise ValueError("a limit of latency without a device; give --target (targets=)")
        self._try("8 bits, integer activations", [PTQ(8)])
        self._try("8 bits", [PTQ(8, activations=None)])
        fast = min(self.tried, key=lambda one: one.ms or 0.0, default=None)
        if fast is None:
            return
        if self.goal.budget_ms is not None and fast.within and not self.goal.faster:
            return
        self._by_channels(fast.methods[0])

    def _by_channels(self, last: Method) -> None:
        low, high = 0.0, 0.9
        for _ in range(STEPS):
            if self._late() or high - low < 0.03:
                break
            share = round((low + high) / 2, 3)
            methods, words = [PruneChannels(share), last], f"{100 * share:.0f} % of the channels"
            found = self._try(f"{words} pruned, {_words(last)}", methods)
            if self.train is not None and (found is None or not found.within) and not self._late():
                more = self._try(f"{words} pruned, trained, {_words(last)}", methods, trained=True)
                found = more or found
            if found is None or self._too_much(found):
                high = share
            else:
                low = share

    def _too_much(self, found: Tried) -> bool:
        """Whether fewer channels are to be pruned: the limits on size are kept with room."""
        goal = self.goal
        if goal.max_drop is not None and not self._holds(found.drop):
            return True
        sizes = (goal.budget_ms, found.ms), (goal.max_bytes, found.bytes)
        kept = all(limit is None or (value or 0.0) <= limit for limit, value in sizes)
        return kept and not goal.faster

    def _trained(self, table: bits.Table, size: float) -> None:
        """What rounding alone does not reach, by training with the original as the teacher."""
        if self.train is None or self._late():
            return
        chosen = bits.choose(table, size if self.goal.max_drop is None else 0.8 * size)
        if chosen is None:
            return
        words = f"{bits.average(self.network.model, chosen):.2f} bits, trained"
        teacher = Distill(teacher=self.network.model, named="itself")
        methods = [*bits.training(chosen), teacher]
        self.widths[tuple(methods)] = chosen
        self._try(words, methods, trained=True)

    def _table(self) -> bits.Table:
        """What each kernel costs alone at each width, measured once for all goals."""
        kept = self._kept.find("bits")
        if kept is not None:
            return {
                path: [bits.Option(*one) for one in some] for path, some in kept["table"].items()
            }
        self._say("measuring what each kernel costs at fewer bits")
        last = [time.monotonic()]

        def progress(done: int, total: int) -> None:
            interruption.check()
            if time.monotonic() - last[0] > 10:
                last[0] = time.monotonic()
                self._say(f"measured {done} of {total}")

        table = bits.options(self.network.model, self.examples.rounding, True, progress)
        rows = {
            path: [[o.bits, o.bytes, o.divergence] for o in some] for path, some in table.items()
        }
        self._kept.add("bits", {"table": rows})
        return table

    def _mixed(self, table: bits.Table, size: float) -> Tried | None:
        chosen = bits.choose(table, size)
        if chosen is None:
            return None
        words = f"{bits.average(self.network.model, chosen):.2f} bits, mixed"
        methods = bits.rounding(chosen, None)
        self.widths[tuple(methods)] = chosen
        return self._try(words, methods)

    def _try(self, words: str, methods: Sequence[Method], trained: bool = False) -> Tried | None:
        """Make a file, judge it, time it where that counts; None where it cannot be made."""
        interruption.check()
        same = next((one for one in self.tried if one.methods == tuple(methods)), None)
        if same is not None and same.trained == trained:
            return same
        key = _key(methods, trained)
        known = self._kept.find(key)
        try:
            if known is None:
                known = self._measured(methods, trained)
                self._kept.add(key, known)
        except (NotApplicable, CannotWrite) as error:
            self._say(f"{words}: {error}")
            return None
        drop = Drop(**known["drop"])
        found = Tried(
            words, tuple(methods), trained, known["bytes"], known["zipped_bytes"], drop,
            known["ms"], self._within(known["bytes"], known["ms"], drop),
        )  # fmt: skip
        self.tried.append(found)
        ms = "" if found.ms is None else f", {found.ms:.4g} ms"
        kept = "" if found.within else " (over a limit)"
        self._say(f"{words}: {found.bytes:,} bytes{ms}, loses {drop.points:.2f} points{kept}")
        return found

    def _file(self, methods: Sequence[Method], trained: bool) -> pathlib.Path:
        return self.folder / f"{_key(methods, trained)}.tflite"

    def _measured(self, methods: Sequence[Method], trained: bool) -> dict[str, Any]:
        path = self._file(methods, trained)
        model, data = self.network.model, self.examples.rounding
        if trained and self.train is not None:
            done = self.train(self.network, methods)
        else:
            done = compress(model, methods, None, data)
        written = before_and_after.write_one(  # with its card, as it will be handed over
            path, done.model, self.network.config, done.record, data,
            origin=before_and_after.origin_of(
                self.network, self.name, list(map(repr, methods)), self.examples.task
            ),
        )  # fmt: skip
        after = self.examples.scores(path, 0, done.model)
        drop = self.examples.drop(self.scores[0], after)
        ms = None
        if self.target is not None:
            files = {"float": self.float_file, "now": path}
            ms = history.profile(self.target, files)[1].median_ms
        sizes = {name: written[name] for name in ("bytes", "zipped_bytes")}
        return sizes | {"drop": drop.to_json(), "ms": ms}

    def _within(self, size: int, ms: float | None, drop: Drop) -> bool:
        goal = self.goal
        return (
            (goal.max_bytes is None or size <= goal.max_bytes)
            and (goal.budget_ms is None or (ms is not None and ms <= goal.budget_ms))
            and (goal.max_drop is None or self._holds(drop))
        )

    def _holds(self, drop: Drop) -> bool:
        most = self.goal.max_drop
        return most is None or drop.points + MARGIN * drop.spread <= most

    def _best(self) -> Tried:
        within = [one for one in self.tried if one.within]
        if not within:
            nearest = min(self.tried, key=lambda one: one.drop.points, default=None)
            tried = f"{len(self.tried)} files were tried"
            near = "" if nearest is None else (
                f"; the best of them, {nearest.words}, has {nearest.bytes:,} bytes"
                f"{'' if nearest.ms is None else f', takes {nearest.ms:.4g} ms'}"
                f" and loses {nearest.drop.points:.2f} points"
            )  # fmt: skip
            more = "" if self.train is not None else "; with labels it could be trained, too"
            raise NotApplicable(f"no file is {self.goal}: {tried}{near}{more}")
        costs = {
            "bytes": lambda one: (one.bytes, one.drop.points),
            "ms": lambda one: (one.ms, one.bytes),
            "quality": lambda one: (one.drop.points, one.bytes),
        }
        return min(within, key=costs[self.goal.wanted])

    def _leave_front(self) -> None:
        assert self.front is not None
        self.front.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(self.front_of_tried()):
            made = self._file(one.methods, one.trained)
            if not made.exists():  # judged in an earlier run
                self._measured(one.methods, one.trained)
            name = f"{number}_{one.bytes}_bytes_drop_{one.drop.points:.2f}.tflite"
            (self.front / name).write_bytes(made.read_bytes())

    def _late(self) -> bool:
        return time.monotonic() > self._until

    def _say(self, text: str) -> None:
        self.on_event(Message(text))


class _Kept:
    """What was measured already, in a file beside the result: rows of the same network and data."""

    def __init__(self, path: pathlib.Path | None, identity: dict[str, Any]):
        text = json.dumps(identity, sort_keys=True, default=str)
        self._path, self._of = path, hashlib.sha256(text.encode()).hexdigest()[:16]
        self._rows: dict[str, Any] = {}
        if path is not None and path.exists():
            with contextlib.suppress(ValueError):
                kept = json.loads(path.read_text())
                if kept.get("of") == self._of:
                    self._rows = kept["rows"]

    def find(self, key: str) -> Any:
        return self._rows.get(key)

    def add(self, key: str, row: dict[str, Any]) -> None:
        self._rows[key] = row
        if self._path is not None:
            write_json(self._path, {"of": self._of, "rows": self._rows})


def _key(methods: Sequence[Method], trained: bool) -> str:
    return hashlib.sha256(repr((list(methods), trained)).encode()).hexdigest()[:16]


def _words(method: Method) -> str:
    assert isinstance(method, PTQ)
    integers = "" if method.activations is None else ", integer activations"
    return f"{method.bits} bits{integers}"


def proven(plan: Plan, file: pathlib.Path, model: Any) -> Drop:
    """The drop of a file on the examples that nothing was chosen by."""
    after = plan.examples.scores(file, 1, model)
    return plan.examples.drop(plan.scores[1], after)


def summary(plan: Plan, chosen: Tried, proof: Drop) -> dict[str, Any]:
    """The plan as JSON, for table, plot and report."""
    front = plan.front_of_tried()
    rows = [
        one.to_json() | {"chosen": one is chosen, "on_front": any(one is other for other in front)}
        for one in plan.tried
    ]
    return {
        "goal": dataclasses.asdict(plan.goal),
        "words": str(plan.goal),
        "metric": plan.examples.metric,
        "percent": plan.examples.percent,
        "float_bytes": plan.float_bytes,
        "examples": {
            "rounded_on": len(plan.examples.rounding),
            "chosen_by": len(np.atleast_1d(plan.scores[0])),
            "proven_on": len(np.atleast_1d(plan.scores[1])),
        },
        "tried": rows,
        "bits": plan.bits_of(chosen),
        "proof": proof.to_json(),
    }

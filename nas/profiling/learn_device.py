"""Learns a device: probe networks are timed on it, and a predictor of its latencies is fitted.

The next probe is the one that the predictor is least sure of (uncertainty sampling), after a first
handful that lie far apart. Every probe is kept as soon as it is timed: the same command continues.
"""

import collections
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency import predicted
from latency.prediction import operation_features, predictor, probe_networks
from latency.prediction.operation_features import Work
from latency.prediction.predictor import Predictor
from latency.system.json_records import utc_now
from latency.target import Kind, Latency, Target
from nas import interruption
from nas.events import Listener, Message, ignore
from nas.networks.build import build
from nas.profiling import history
from nas.profiling.wait_for_device import wait_for_device

PROBES = 40
_FIRST = 8  # probes that lie far apart
_REFIT = 4  # probes between fits
_GENERIC, _SPACE = 48, 8  # candidates to choose from: written directly, built by Keras (a second)
_RUNS = 30
_FAILED = 5  # probes in a row


@dataclasses.dataclass(frozen=True)
class Report:
    """What was learned. Errors are relative; `foretold` has those of probes before their timing."""

    name: str
    directory: Path
    probes: int
    kind: Kind  # of the probes' figures
    held_out: dict[str, float]
    foretold: tuple[float, ...]
    finished: bool

    def __str__(self) -> str:
        held = self.held_out
        lines = [
            f"learned    {self.name}: {self.probes} probe networks, {self.kind}",
            f"held out   median error {held['median_error']:.1%}, "
            f"{held['within_10_percent']:.0%} within 10 %, Spearman {held['spearman']:.3f}",
        ]
        if self.foretold:
            within = np.mean(np.array(self.foretold) < 0.1)
            lines.append(
                f"predicted  {len(self.foretold)} probes before they were timed, the least sure "
                f"ones: median error {np.median(self.foretold):.1%}, {within:.0%} within 10 %"
            )
        lines.append(f"kept in    {self.directory}")
        lines.append(f"use it     --target predicted:{self.name}")
        if not self.finished:
            lines.append("stopped before its last probe: the same command continues")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidate:
    """A network that may be timed next."""

    key: str
    works: tuple[Work, ...]
    called: list[tuple[str, str]]  # type and name of each operation
    model: Any  # a Keras model, or the bytes of a file


@interruption.interruptible()
def learn(
    name: str,
    target: Target,
    *,
    spaces: Mapping[str, Any],
    spec: str | None = None,
    probes: int = PROBES,
    on_event: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
    warmup: int = 5,
    runs: int = _RUNS,
) -> Report:
    """Learns `target` as the device `name`: afterwards `predicted:NAME` answers for it.

    Half of the probes come from `spaces` at the sizes users deploy, half from
    `latency.prediction.probe_networks`. While the device is away it waits.

    Args:
        spaces: search spaces by name, modules with `sample` and, where there are several, `BASES`.
        spec: how the command line names the target; it is kept, so that a search can ask the
            device itself.
        probes: networks to time in all; those timed before count.
        on_event: is called with a `nas.events.Message` on each probe.
        stop: is asked before each probe; where it says so, the fit is of the probes so far.

    Raises:
        ValueError: where `name` is another device already, or the target's figures are not its own.
    """
    spec = spec or repr(target)
    if probes < predictor.LEAST:
        raise ValueError(f"probes={probes}: expected at least {predictor.LEAST}")
    if target.kinds == {Kind.PREDICTED}:
        raise ValueError(f"{spec} is predicted itself: there is nothing to learn from it")
    options = {"warmup": warmup, "runs": runs, "details": True}
    return _Learning(name, target, spec, spaces, on_event, options).run(probes, stop)


class _Learning:
    """The probes of one device so far, and the predictor fitted to them."""

    def __init__(
        self,
        name: str,
        target: Target,
        spec: str,
        spaces: Mapping[str, Any],
        on_event: Listener,
        options: dict[str, Any],
    ):
        self.name, self.target, self.spec, self.options = name, target, spec, options
        self.say = lambda text: on_event(Message(text))
        self.directory = predicted.directory(name)
        self.rows = _read(self.directory / "probes.jsonl")
        self.tried = {row["key"] for row in self.rows}
        self._check()
        self.rows = [row for row in self.rows if "ms" in row]
        self.known = {
            other: predictor.load(predicted.directory(other))
            for other in predicted.names()
            if other != name
        }
        self.candidates = _Candidates(spaces, self.tried)
        self.fitted: Predictor | None = None
        self.fitted_with = 0

    def run(self, wanted: int, stop: Callable[[], bool]) -> Report:
        if self.rows:
            self.say(f"{len(self.rows)} probes are timed already")
        started, before, failures = time.monotonic(), len(self.rows), 0
        while len(self.rows) < wanted and not stop():
            candidate = self._choose()
            predicted_ms = None
            if self.fitted:
                predicted_ms = float(self.fitted.many([candidate.works])[0][0])
            try:
                latency = wait_for_device(functools.partial(self._measure, candidate), self.say)
            except ValueError as error:
                failures += 1
                self.say(f"probe {candidate.key} failed: {error}")
                self._keep({"key": candidate.key, "failed": str(error)})
                if failures == _FAILED:
                    raise
                continue
            failures = 0
            self._accept(latency.kind)
            self.rows.append(self._row(candidate, latency, predicted_ms))
            self._keep(self.rows[-1])
            each = (time.monotonic() - started) / (len(self.rows) - before)
            self._report(candidate, latency, predicted_ms, wanted, each)
            if len(self.rows) >= _FIRST and len(self.rows) - self.fitted_with >= _REFIT:
                self._fit()
        if len(self.rows) < predictor.LEAST:
            raise ValueError(
                f"{len(self.rows)} probes were timed, at least {predictor.LEAST} are needed"
            )
        return Report(
            self.name,
            self.directory,
            len(self.rows),
            Kind(self.rows[0]["kind"]),
            self._fit().held_out,
            tuple(abs(r["foretold"] / r["ms"] - 1) for r in self.rows if r["foretold"]),
            len(self.rows) >= wanted,
        )

    def _check(self) -> None:
        """Probes of one device are one device's."""
        mine = repr(self.target)
        others = {row["target"] for row in self.rows if "ms" in row} - {mine}
        if others:
            raise ValueError(
                f"{self.name!r} is learned from {others.pop()} already, not from {mine}: "
                f"take another name, or remove {self.directory}"
            )

    def _choose(self) -> _Candidate:
        """The most informative candidate; spaces and generic probes take turns."""
        generic = sum(row["key"].startswith("probe:") for row in self.rows)
        pool = self.candidates.pool(spaces=2 * generic > len(self.rows))
        if self.fitted:
            _, errors = self.fitted.many([candidate.works for candidate in pool])
            chosen = pool[int(np.argmax(errors))]
        else:
            chosen = pool[_farthest([c.works for c in pool], [_works(r) for r in self.rows])]
        self.candidates.take(chosen)
        return chosen

    def _measure(self, candidate: _Candidate) -> Latency:
        with tempfile.TemporaryDirectory() as folder:
            model = candidate.model
            if isinstance(model, bytes):
                model = Path(folder) / "probe.tflite"
                model.write_bytes(candidate.model)
            latency = history.profile(self.target, {candidate.key: model}, **self.options)[0]
            if not latency.conditions.get("stable", True):  # once more; the better one counts
                again = history.profile(self.target, {candidate.key: model}, **self.options)[0]
                latency = again if again.conditions.get("stable", True) else latency
        return latency

    def _accept(self, kind: Kind) -> None:
        """Figures of one kind only, and none that are a model's own."""
        kinds = {row["kind"] for row in self.rows} - {str(kind)}
        if kind is Kind.PREDICTED:
            raise ValueError(f"{self.spec} gives predicted figures: nothing to learn from")
        if kinds:
            raise ValueError(
                f"{self.spec} gives {kind} figures now, the probes so far are {kinds.pop()}: "
                f"take another name, or remove {self.directory}"
            )

    def _row(
        self, candidate: _Candidate, latency: Latency, predicted_ms: float | None
    ) -> dict[str, Any]:
        per_op = operation_features.times(candidate.called, latency.per_op)
        estimated = latency.per_op_kind is not Kind.MEASURED
        return {
            "key": candidate.key,
            "ms": latency.median_ms,
            "foretold": predicted_ms,
            "kind": str(latency.kind),
            "target": latency.target,
            "device": latency.device,
            "runtime": str(latency.conditions.get("runtime", "")),
            "stable": latency.conditions.get("stable", True),
            "date": latency.conditions.get("date") or utc_now(),
            "works": [[work.kind, *work.features] for work in candidate.works],
            "per_op": None if per_op is None or estimated else _plain(per_op),
        }

    def _keep(self, row: dict) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "probes.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def _fit(self) -> Predictor:
        if self.fitted is not None and self.fitted_with == len(self.rows):
            return self.fitted
        last = self.rows[-1]
        about = {
            "name": self.name,
            "spec": self.spec,
            "target": last["target"],
            "device": last["device"],
            "runtime": last["runtime"],
            "date": last["date"],
            "kind": last["kind"],
            "probes": len(self.rows),
            "sources": collections.Counter(r["key"].partition(":")[0] for r in self.rows),
        }
        per_op = [None if r["per_op"] is None else np.array(r["per_op"], float) for r in self.rows]
        self.fitted = predictor.fit(
            [_works(row) for row in self.rows],
            [row["ms"] for row in self.rows],
            per_op,
            self.known,
            about,
        )
        self.fitted_with = len(self.rows)
        self.fitted.save(self.directory)
        return self.fitted

    def _report(
        self,
        candidate: _Candidate,
        latency: Latency,
        predicted_ms: float | None,
        wanted: int,
        each_s: float,
    ) -> None:
        count, ms = len(self.rows), latency.median_ms
        text = f"{count:{len(str(wanted))}}/{wanted}  {candidate.key:28} {ms:8.3f} ms"
        if predicted_ms:
            text += f", predicted {predicted_ms:8.3f} ({predicted_ms / ms - 1:+.0%})"
        if self.fitted:
            held = self.fitted.held_out
            text += f" | held out: {held['median_error']:.1%} median error"
        minutes, seconds = divmod(round(each_s * (wanted - count)), 60)
        unstable = "" if latency.conditions.get("stable", True) else " | not stable"
        self.say(f"{text} | {minutes}:{seconds:02} left{unstable}")


class _Candidates:
    """Networks to choose from; a network that was tried never comes again."""

    def __init__(self, spaces: Mapping[str, Any], tried: set[str]):
        self.spaces, self.tried = spaces, tried
        self._open: dict[str, list[_Candidate]] = {source: [] for source in ("probe", *spaces)}
        self._next = dict.fromkeys(self._open, 0)

    def pool(self, spaces: bool) -> list[_Candidate]:
        if not spaces or not self.spaces:
            return self._filled("probe", _GENERIC)
        each = max(1, _SPACE // len(self.spaces))
        return [candidate for space in self.spaces for candidate in self._filled(space, each)]

    def take(self, candidate: _Candidate) -> None:
        self.tried.add(candidate.key)
        self._open[candidate.key.partition(":")[0]].remove(candidate)

    def _filled(self, source: str, count: int) -> list[_Candidate]:
        found = self._open[source]
        while len(found) < count:
            number = self._next[source]
            self._next[source] += 1
            key = f"probe:{number}" if source == "probe" else f"{source}:{number}"
            if key in self.tried:
                continue
            interruption.check()
            if source == "probe":
                model = probe_networks.network(number)
            else:
                model = sampled(self.spaces[source], number)
            found.append(_Candidate(key, *operation_features.read(model), model))
        return found


def sampled(space: Any, number: int) -> Any:
    """Network `number` of a space: a base, choices, an input size and classes at random."""
    import optuna

    random = np.random.default_rng([number, 1])
    sampler = optuna.samplers.RandomSampler(seed=number)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        trial = optuna.create_study(sampler=sampler).ask()
    finally:
        optuna.logging.set_verbosity(verbosity)
    bases = [base for base in getattr(space, "BASES", ()) if base != "tiny"]
    options = {"base": str(random.choice(bases))} if bases else {}
    config = space.sample(trial, **options)
    fields = {field.name for field in dataclasses.fields(config)}
    size = int(random.choice(probe_networks.RESOLUTIONS))
    changes = {"input_shape": (size, size, 3), "classes": int(random.choice((10, 100, 1000)))}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if k in fields})
    return build(config)


def _farthest(pool: list[Sequence[Work]], chosen: list[Sequence[Work]]) -> int:
    """The network of `pool` that lies farthest from all of `chosen`; the median one at first."""
    kinds = sorted({work.kind for works in [*pool, *chosen] for work in works})
    points = np.array([_point(works, kinds) for works in [*pool, *chosen]])
    points = (points - points.mean(axis=0)) / np.maximum(points.std(axis=0), 0.05)
    ours, theirs = points[: len(pool)], points[len(pool) :]
    if not len(theirs):
        return int(np.argmin((ours**2).sum(axis=1)))
    return int(np.argmax(((ours[:, None] - theirs) ** 2).sum(axis=2).min(axis=1)))


def _point(works: Sequence[Work], kinds: list[str]) -> list[float]:
    """A network as the logarithm of its size, and the share of each kind in what is written."""
    written = dict.fromkeys(kinds, 0.0)
    for work in works:
        written[work.kind] += work.elements
    total = sum(written.values())
    macs = sum(work.macs for work in works)
    return [np.log(macs), np.log(total), *(size / total for size in written.values())]


def _works(row: dict) -> tuple[Work, ...]:
    return tuple(Work(kind, tuple(features)) for kind, *features in row["works"])


def _plain(per_op: np.ndarray) -> list[float | None]:
    return [None if np.isnan(ms) else float(ms) for ms in per_op]


def _read(path: Path) -> list[dict]:
    """The rows kept so far; a last line that was cut off by a kill is dropped."""
    if not path.is_file():
        return []
    rows, good = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
        good += len(line)
    with open(path, "r+b") as file:
        file.truncate(good)
        if rows and not path.read_bytes().endswith(b"\n"):
            file.seek(0, 2)
            file.write(b"\n")
    return rows

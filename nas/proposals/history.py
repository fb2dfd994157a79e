"""What every controller knows: the finished trials in order, the pending ones, and nothing else.

A proposal is a pure function of (seed, history, pending), so a killed search goes on exactly where
it was. `History` reads a study incrementally: a read costs what changed, never all trials. `Space`
turns parameters into small integers. `FromHistory` is the common part of our own samplers.
"""

import bisect
import math
import re
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.proposals import limits
from nas.proposals.blas import one_blas_thread

MOST_EXACT = 64  # a numeric parameter with more steps than this is searched in BINS bins
BINS = 16
Number = IntDistribution | FloatDistribution
READ_ALL_ABOVE = 32  # that many new trials are fetched with one call


def sequence(seed: int, *context: int | str) -> np.random.SeedSequence:
    """What seeds one place of one proposal: equal arguments, equal seeds."""
    words = [zlib.crc32(c.encode()) if isinstance(c, str) else c for c in context]
    return np.random.SeedSequence([seed, *words])


def generator(seed: int, *context: int | str) -> np.random.Generator:
    """The random stream of one place of one proposal."""
    return np.random.Generator(np.random.PCG64(sequence(seed, *context)))


def draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """One uniform value of `distribution`."""
    space = Space({"": distribution})
    return space.decode(space.random(rng), rng)[""]


class Space:
    """The parameters of a study as columns of small integers, in natural order of their names.

    Categorical and small stepped parameters are exact: a code is one value. Wider numeric ones are
    cut into `BINS` equal bins (in log where the distribution is); a value is drawn within the bin.
    """

    def __init__(self, distributions: dict[str, BaseDistribution]) -> None:
        self.names = sorted(distributions, key=_natural)
        self.distributions = {name: distributions[name] for name in self.names}
        self.sizes = np.array([_size(d)[0] for d in self.distributions.values()], dtype=np.int64)
        self.exact = all(_size(d)[1] for d in self.distributions.values())
        self.cardinality = math.prod(int(size) for size in self.sizes)

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, params: dict[str, Any]) -> np.ndarray:
        """Codes (d,) of `params`, which must hold every name of the space."""
        codes = [_code(d, params[name]) for name, d in self.distributions.items()]
        return np.array(codes, dtype=np.int64)

    def decode(self, codes: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Parameters of `codes` (d,); `rng` places a value within a bin."""
        pairs = zip(self.distributions.items(), codes, strict=True)
        return {name: _value(d, int(code), rng) for (name, d), code in pairs}

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Uniform codes (d,)."""
        return rng.integers(self.sizes)


class History:
    """The trials of one study that a proposal may depend on: `read` for a trial, then `encode`.

    After `read`:
        finished: trials in state COMPLETE or PRUNED that have parameters, by number; never FAIL.
        pending: trials of lower number still RUNNING or WAITING (other workers, the same round).
        count: how many of both have a lower number than the asking trial: where in its random
            streams a search stands. Unlike `trial.number` it does not move when a trial fails,
            unless its proposal describes no candidate at all.
        distributions: the parameters that all finished trials have in common, those with a choice.
    After `encode`:
        codes: int (len(finished), d).
        values: float (len(finished), m), more is better in every column (minimized ones negated);
            NaN for pruned trials.
        minimized: bool (m,), the objectives that were negated.
        pending_codes: int (p, d), of those pending trials whose parameters are known.
        unchanged: how many leading rows are the same as after the previous `encode`.
    """

    def __init__(self) -> None:
        self._study: tuple[Any, int] | None = None
        self._reset()

    def _reset(self) -> None:
        self.finished: list[FrozenTrial] = []
        self.pending: list[FrozenTrial] = []
        self.count = 0
        self.unchanged = 0
        self.distributions: dict[str, BaseDistribution] = {}
        self._numbers: list[int] = []
        self._limited: list[FrozenTrial] = []  # those of `finished` that limits are known of
        self._evaluated = 0
        self._nothing: list[int] = []  # of proposals that describe nothing
        self._open: dict[int, int] = {}  # number -> trial id
        self._next = 0  # lowest number never looked at
        self._read_for: int | None = None
        self._intersected = False
        self.space: Space | None = None
        self._encoded = 0
        self._forget_codes(0, 0)

    def read(self, study: Study, trial: FrozenTrial) -> "History":
        """Brings all up to date as `trial` sees it; a second read for the same trial is free."""
        storage, study_id = study._storage, study._study_id
        if self._study is None or self._study[0] is not storage or self._study[1] != study_id:
            self._reset()
            self._study = (storage, study_id)
            self._directions = study.directions
        if self._read_for == trial._trial_id:
            return self
        self._read_for = trial._trial_id
        pending = []
        for candidate in self._fetch(storage, study_id, trial.number):
            number = candidate.number
            if not candidate.state.is_finished():
                self._open[number] = candidate._trial_id
                if number < trial.number:
                    pending.append(candidate)
                continue
            self._open.pop(number, None)
            if candidate.state != TrialState.FAIL and candidate.params:
                self._insert(candidate)
            elif "failures" in candidate.user_attrs and "round" not in candidate.user_attrs:
                bisect.insort(self._nothing, number)  # else it would be proposed again, for ever
        self.pending = sorted(pending, key=lambda t: t.number)
        past = (self._numbers, self._nothing)
        self.count = len(pending) + sum(bisect.bisect_left(one, trial.number) for one in past)
        return self

    def _fetch(self, storage: Any, study_id: int, below: int) -> list[FrozenTrial]:
        new = range(self._next, below)
        self._next = max(self._next, below)
        if len(new) + len(self._open) > READ_ALL_ABOVE:
            trials = storage.get_all_trials(study_id, deepcopy=False)
            return [t for t in trials if t.number in new or t.number in self._open]
        ids = [storage.get_trial_id_from_study_id_trial_number(study_id, n) for n in new]
        return [storage.get_trial(trial_id) for trial_id in [*self._open.values(), *ids]]

    def _insert(self, trial: FrozenTrial) -> None:
        at = bisect.bisect(self._numbers, trial.number)
        self._numbers.insert(at, trial.number)
        self.finished.insert(at, trial)
        self._evaluated += trial.state == TrialState.COMPLETE
        if trial.constraints:
            bisect.insort(self._limited, trial, key=lambda one: one.number)
        self._encoded = min(self._encoded, at)
        if not self._intersected:
            self._intersected = True
            self.distributions = {n: d for n, d in trial.distributions.items() if not d.single()}
            return
        common = {n: d for n, d in self.distributions.items() if trial.distributions.get(n) == d}
        if len(common) < len(self.distributions):
            self.distributions = common

    def encode(self, distributions: dict[str, BaseDistribution]) -> Space:
        """The space of `distributions`; brings the arrays up to date with `finished` in it."""
        if self.space is None or self.space.distributions != distributions:
            self.space = Space(distributions)
            self._forget_codes(len(self.space), len(self._directions))
        total = len(self.finished)
        while total > len(self._codes):
            self._codes = np.concatenate([self._codes, np.zeros_like(self._codes)])
            self._values = np.concatenate([self._values, np.zeros_like(self._values)])
        self.unchanged = self._encoded
        for row in range(self._encoded, total):
            trial = self.finished[row]
            self._codes[row] = self.space.encode(trial.params)
            complete = trial.state == TrialState.COMPLETE
            self._values[row] = self._signs * trial.values if complete else np.nan
            self._seen.add(self._codes[row].tobytes())
        self._encoded = total
        self.codes, self.values = self._codes[:total], self._values[:total]
        self.pending_codes = self._encode_pending(self.space)
        self._seen_pending = {codes.tobytes() for codes in self.pending_codes}
        return self.space

    _codes: np.ndarray
    _values: np.ndarray
    _signs: np.ndarray
    _seen: set[bytes]
    _seen_pending: set[bytes]

    def _forget_codes(self, decisions: int, objectives: int) -> None:
        self._codes = np.zeros((64, decisions), dtype=np.int64)
        self._values = np.zeros((64, objectives))
        self.codes, self.values = self._codes[:0], self._values[:0]
        self.pending_codes = self._codes[:0]
        self._seen = set()
        self._seen_pending = set()
        self._encoded = 0
        if objectives:
            self.minimized = np.array([d == StudyDirection.MINIMIZE for d in self._directions])
            self._signs = np.where(self.minimized, -1.0, 1.0)

    def _encode_pending(self, space: Space) -> np.ndarray:
        rows = []
        for trial in self.pending:
            # A proposal that was given back waits with its parameters in Optuna's "fixed_params".
            params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            if all(name in params for name in space.names):
                rows.append(space.encode(params))
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(space))

    def seen(self, codes: np.ndarray) -> bool:
        """Whether exactly these codes were proposed before (finished or pending)."""
        key = np.asarray(codes, dtype=np.int64).tobytes()
        return key in self._seen or key in self._seen_pending

    def unseen(
        self, propose: Callable[[], np.ndarray], rng: np.random.Generator, tries: int = 50
    ) -> np.ndarray:
        """The first of `tries` proposals that is new; else a random point nobody proposed yet.

        Only when every point of the space was proposed, one is proposed again.
        """
        assert self.space is not None
        codes = propose()
        if not self.space.exact:
            return codes
        for _ in range(tries - 1):
            if not self.seen(codes):
                return codes
            codes = propose()
        if self.space.cardinality <= len(self._seen) + len(self._seen_pending - self._seen):
            return codes
        codes = self.space.random(rng)
        while self.seen(codes):  # counts up from a random point: ends after at most len(seen) steps
            for column, size in enumerate(self.space.sizes):
                codes[column] = (codes[column] + 1) % size
                if codes[column]:
                    break
        return codes

    def within_limits(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """These codes, or others that probably keep to the limits of the search (limits.py)."""
        space = self.space
        assert space is not None  # after `encode`
        return limits.repaired(
            codes,
            self._limited[-limits.LAST :],
            evaluated=self._evaluated,
            sizes=space.sizes,
            encode=space.encode,
            seen=self.seen,
            rng=rng,
        )


class FromHistory:
    """Mix-in for a sampler whose proposals depend on its seed and the `History`: define `propose`.

    Parameters that not all trials share (and the first trials) are sampled uniformly.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._history = History()
        self._lock = threading.RLock()

    def propose(
        self, study: Study, history: History, space: Space, rng: np.random.Generator
    ) -> np.ndarray:
        """Codes (d,) of the next trial; `history` is read and encoded in `space`."""
        raise NotImplementedError

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What all finished trials chose from."""
        with self._lock:
            return dict(self._history.read(study, trial).distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal of `propose`."""
        if not search_space:
            return {}
        with self._lock, one_blas_thread():
            history = self._history.read(study, trial)
            space = history.encode(search_space)
            rng = generator(self._seed, history.count)
            codes = self.propose(study, history, space, rng)
            return space.decode(history.within_limits(codes, rng), rng)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A uniform value."""
        with self._lock:
            count = self._history.read(study, trial).count
        return draw(param_distribution, generator(self._seed, count, param_name))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _steps(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return None


def _size(distribution: BaseDistribution) -> tuple[int, bool]:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices), True
    if distribution.single():
        return 1, True
    steps = _steps(distribution)
    return (steps, True) if steps is not None and steps <= MOST_EXACT else (BINS, False)


def _code(distribution: BaseDistribution, value: Any) -> int:
    internal = distribution.to_internal_repr(value)
    if isinstance(distribution, CategoricalDistribution):
        return int(internal)
    assert isinstance(distribution, Number)
    size, exact = _size(distribution)
    if size == 1:
        return 0
    if exact:
        return round((internal - distribution.low) / (distribution.step or 1))
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        low, high, internal = math.log(low), math.log(high), math.log(internal)
    return min(int((internal - low) / (high - low) * size), size - 1)


def _value(distribution: BaseDistribution, code: int, rng: np.random.Generator) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[code]
    assert isinstance(distribution, Number)
    size, exact = _size(distribution)
    integer = isinstance(distribution, IntDistribution)
    if size == 1:
        return distribution.low
    if exact:
        value = distribution.low + code * (distribution.step or 1)
        return int(value) if integer else float(min(value, distribution.high))
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        low, high = math.log(low), math.log(high)
    value = low + (high - low) * (code + rng.random()) / size
    value = math.exp(value) if distribution.log else value
    if distribution.step is not None:
        steps = round((value - distribution.low) / distribution.step)
        value = distribution.low + steps * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if integer else float(value)

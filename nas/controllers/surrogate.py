"""Our default: a small model of quality and log cost, and the networks that promise most.

Two Gaussian processes over the choices (nas/proposals/gaussian_process.py), expected improvement of
value or reward or of the front's hypervolume (nas/proposals/expected_improvement.py). Costs of
networks that were only profiled train the cost model; once profiled, `select` picks the most
promising one.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas import pareto
from nas.proposals.blas import one_blas_thread
from nas.proposals.expected_improvement import (
    Costs,
    HypervolumeGain,
    Pool,
    Quality,
    RewardGain,
    ValueGain,
    within_budgets,
)
from nas.proposals.history import FromHistory, History, Space, generator
from nas.proposals.records import MOST_FITTED, SPENT, Records, choices_of, spent_on, thinned

MOST_KNOWN = 300  # networks that a model is conditioned on
RANDOM, MUTATED, CROSSED, REFINED = 100, 150, 50, 150  # candidates
ELITES = 20
SCOUTS = 32  # proposals whose cost may turn out right, where not all that is profiled is trained
WORTH_A_ROUND = 1e-6  # gain of a network left out of its round; of one over budget it is below
AGAIN = 300  # networks that were profiled, not trained, and may promise more by now


@dataclasses.dataclass
class _Models:
    """All that follows from the first `length` records."""

    length: int
    quality: Quality
    costs: Costs | None
    gain: Callable
    pool: Pool | None  # None: nothing is left to propose


class Surrogate(FromHistory, BaseSampler):
    """Proposes where a probabilistic model expects the greatest improvement.

    One objective: of `reward(quality, costs)` where given and known, else of the trial values.
    Several: of the hypervolume of (quality, *costs), the study's objectives in this order. Random
    until `startup` networks are evaluated. `candidates` restricts a search to these parameter sets
    (a tabular benchmark that knows few networks of a large space).
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        reward: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        startup: int = 10,
        candidates: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if startup < 2:
            raise ValueError(f"startup={startup}: a model needs at least 2 evaluated networks")
        super().__init__(seed)
        self._reward = None if reward is None else within_budgets(reward)
        self._startup, self._candidates = startup, candidates
        self._forget()

    def _forget(self) -> None:
        self._records = Records()
        self._space: Any = None  # a `Space` from the first read on
        self._models: _Models | None = None
        self._fitted: tuple[int, list[np.ndarray]] | None = None
        self._regarding: tuple[Any, Pool] | None = None

    # --- Optuna's interface; the rest of it is in FromHistory -----------------------------------

    def propose(
        self, study: Study, history: History, space: Space, rng: np.random.Generator
    ) -> np.ndarray:
        """The first of the pool that nobody proposed; random before there is a model."""
        models = self._current(study, history, space)
        if models is not None:
            pending = {codes.tobytes() for codes in history.pending_codes}
            pool = self._proposals(models, history.pending_codes)
            for codes in () if pool is None else iter(pool):
                key = codes.tobytes()
                if self._records.total[key] < SPENT and key not in pending:
                    return codes
        if self._allowed is not None:
            unseen = [codes for codes in self._allowed if not history.seen(codes)]
            return unseen[rng.integers(len(unseen))] if unseen else rng.choice(self._allowed)
        return history.unseen(lambda: space.random(rng), rng)

    def _proposals(self, models: _Models, pending: np.ndarray) -> Pool | None:
        """The pool; where older proposals are pending (other workers), with regard to them."""
        if models.pool is None:
            return None
        older = [codes for codes in pending if codes.tobytes() not in models.pool.members]
        if not older:
            return models.pool
        key = (models.length, *(codes.tobytes() for codes in older))
        if self._regarding is None or self._regarding[0] != key:
            self._regarding = (key, models.pool.regarding(np.array(older)))
        return self._regarding[1]

    def select(self, study: Study, trials: Sequence[FrozenTrial]) -> int:
        """Index of the one of these profiled, running trials that promises most."""
        with self._lock, one_blas_thread():
            history = self._history.read(study, max(trials, key=lambda trial: trial.number))
            costs = np.array([trial.user_attrs["profile"]["costs"] for trial in trials], float)
            models = None
            if all(set(history.distributions) <= set(trial.params) for trial in trials):
                space = history.encode(dict(history.distributions))
                models = self._current(study, history, space)
            if models is None:
                return self._select_first(study, costs)
            codes = np.array([self._encode(space, trial) for trial in trials])
            posterior = models.quality.process.posterior(codes)
            known = models.costs.exact(costs) if models.costs else None
            return int(np.argmax(models.gain(posterior, known)))

    # --- From history to records ----------------------------------------------------------------

    def _current(self, study: Study, history: History, space: Space) -> _Models | None:
        self._read(study, history, space)
        records = self._records
        if not records.renewals:
            return None
        if self._models is None or self._models.length != records.renewals[-1]:
            self._models = self._renew(study, records.renewals[-1])
        return self._models

    def _read(self, study: Study, history: History, space: Space) -> None:
        if space is not self._space:
            self._forget()
            self._space, self._choices = space, choices_of(space)
            self._allowed = None
            if self._candidates is not None:
                self._allowed = np.array(
                    [space.encode(dict(params)) for params in self._candidates]
                )
        same = min(history.unchanged, len(self._records.codes))
        if same < len(self._records.codes):
            self._records.cut(same)
            if self._models is not None and self._models.length > same:
                self._models = self._regarding = None
            if self._fitted is not None and self._fitted[0] > same:
                self._fitted = None
        several = history.values.shape[1] > 1
        for row in range(same, len(history.finished)):
            trial = history.finished[row]
            quality, costs = self._what(trial, history.values[row], several)
            codes = self._encode(space, trial)
            spent = spent_on(history.codes[row], codes, math.isnan(quality) and costs is not None)
            self._records.add(codes, quality, costs, spent, self._startup)

    def _what(
        self, trial: FrozenTrial, values: np.ndarray, several: bool
    ) -> tuple[float, np.ndarray | None]:
        """Quality (NaN: unknown) and costs (None: unknown) of a finished trial."""
        profile = trial.user_attrs.get("profile")
        if profile is not None and (several or self._reward is not None):
            if "duplicate_of" in profile:  # a copy, no second observation
                return math.nan, None
            evaluation = trial.user_attrs.get("evaluation")
            quality = math.nan if evaluation is None else float(evaluation["quality"])
            costs = profile.get("costs")
            return quality, np.asarray(costs, float) if costs else None
        return float(values[0]), -values[1:] if several and not np.isnan(values[0]) else None

    def _encode(self, space: Space, trial: FrozenTrial) -> np.ndarray:
        """Codes of what was evaluated, which may be another point than was proposed."""
        params = trial.user_attrs.get("profile", {}).get("canonical") or trial.params
        return space.encode(dict(params))

    # --- From records to models -----------------------------------------------------------------

    def _evaluated(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        records = self._records
        quality = np.array(records.quality[:length])
        rows = np.flatnonzero(~np.isnan(quality))
        values = quality[rows]
        finite = np.isfinite(values)
        if not finite.all():  # infinite values: as bad, or as good, as any other
            low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0, 0)
            values = np.clip(values, low, high)
        known = [records.costs[row] for row in rows]
        costs = None if any(c is None for c in known) else _finite(np.array(known))
        return np.array([records.codes[row] for row in rows]), values, costs

    def _profiled(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        records = self._records
        rows = [row for row in range(length) if records.costs[row] is not None]
        costs = np.array([records.costs[row] for row in rows])
        return np.array([records.codes[row] for row in rows]), _finite(costs)

    def _renew(self, study: Study, length: int) -> _Models:
        rng = generator(self._seed, length, "models")
        codes, values, costs = self._evaluated(length)
        fitted = self._hyperparameters(max(mark for mark in self._records.refits if mark <= length))
        kept = thinned(len(values), MOST_KNOWN)
        quality = Quality(self._choices, codes[kept], values[kept])
        quality.process.condition(fitted[0])
        models: Costs | None = None
        gain: Any = None
        if costs is not None:
            known, measured = self._profiled(length)
            sample = thinned(len(known), MOST_KNOWN)
            models = Costs(self._choices, known[sample], measured[sample])
            for process, hyperparameters in zip(models.processes, fitted[1:], strict=True):
                process.condition(hyperparameters)
        if models is None or costs is None:
            best = np.argsort(-values, kind="stable")[:ELITES]
            gain = ValueGain(quality, codes[kept])
        elif len(study.directions) == 1 and self._reward is not None:
            best = np.argsort(-self._reward(values, costs), kind="stable")[:ELITES]
            gain = RewardGain(quality, self._reward, codes[kept], costs[kept])
        else:
            best = pareto.front(np.column_stack([-values, costs]))
        start = self._start(codes[best], rng)
        if models is not None and costs is not None and gain is None:
            # The front may reach beyond what was measured, as far as the model can be believed.
            guess = models.predict(start)
            guess = np.clip(guess.values(guess.mean), *_margin(measured))
            reach = np.concatenate([measured, guess])
            gain = HypervolumeGain(
                quality, values, costs, reach.min(axis=0), reach.max(axis=0), rng
            )
        pool = self._pool(quality, models, gain, start, length, rng)
        return _Models(length, quality, models, gain, pool)

    def _hyperparameters(self, length: int) -> list[np.ndarray]:
        """Of the quality model and every cost model, fitted to the first `length` records."""
        if self._fitted is not None and self._fitted[0] == length:
            return self._fitted[1]
        codes, values, costs = self._evaluated(length)
        kept = thinned(len(values), MOST_FITTED)
        found = [Quality(self._choices, codes[kept], values[kept]).process.fit()]
        if costs is not None:
            known, measured = self._profiled(length)
            kept = thinned(len(known), MOST_FITTED)
            models = Costs(self._choices, known[kept], measured[kept])
            found += [process.fit() for process in models.processes]
        self._fitted = (length, found)
        return found

    # --- From models to proposals ---------------------------------------------------------------

    def _random(self, count: int, rng: np.random.Generator) -> np.ndarray:
        if self._allowed is not None:
            return self._allowed[rng.integers(len(self._allowed), size=count)]
        return rng.integers(self._space.sizes, size=(count, len(self._space)))

    def _mutated(self, parents: np.ndarray, count: int, most: int, rng: Any) -> np.ndarray:
        """Children that differ from a parent in 1..`most` decisions."""
        children = parents[rng.integers(len(parents), size=count)]
        decisions = children.shape[1]
        changes = rng.integers(1, min(most, decisions) + 1, size=count)
        order = np.argsort(rng.random(children.shape), axis=1)
        changed = order < changes[:, None]
        step = 1 + rng.integers(np.maximum(self._space.sizes - 1, 1), size=children.shape)
        return np.where(changed, (children + step) % self._space.sizes, children)

    def _start(self, elites: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Candidates: anywhere, near the best, between two of them; all there are where few are."""
        if self._allowed is not None:
            return self._allowed
        mates = elites[rng.integers(len(elites), size=(2, CROSSED))]
        mixed = np.where(rng.random(mates[0].shape) < 0.5, mates[0], mates[1])
        mutated = self._mutated(elites, MUTATED, 3, rng)
        return np.concatenate([self._random(RANDOM, rng), mutated, mixed])

    def _pool(
        self, quality: Any, models: Any, gain: Any, start: Any, length: Any, rng: Any
    ) -> Pool | None:
        """Networks that were not trained, the best first; of those profiled the cost is known."""
        seen: Counter[bytes] = Counter()
        for spent in self._records.spent[:length]:
            seen.update(spent)

        def score(codes: np.ndarray) -> Any:
            codes = np.unique(codes, axis=0)
            codes = codes[[row.tobytes() not in seen for row in codes]]
            posterior = quality.process.posterior(codes)
            costs = None if models is None else models.predict(codes)
            return codes, posterior, costs, gain(posterior, costs)

        near = start
        codes, posterior, costs, gains = score(start)
        if self._allowed is None and len(codes):
            best = codes[np.argsort(-gains, kind="stable")[:REFINED]]
            near = self._mutated(best[:ELITES], REFINED, 1, rng)
            codes, posterior, costs, gains = score(np.concatenate([best, near]))
        scouts = None
        again = [] if models is None else self._profiled_only(length, seen)
        if again:
            known = models.exact(_finite(np.array([self._records.costs[row] for row in again])))
            waiting = np.array([self._records.codes[row] for row in again])
            most = float(gain(quality.process.posterior(waiting), known).max())
            if most > WORTH_A_ROUND and isinstance(gain, RewardGain):
                # Whatever is profiled need not be trained: look for costs that turn out right.
                if self._allowed is None:
                    near = np.concatenate([start, near])
                    scouted = gain.scout(
                        quality.process.posterior(near), models.predict(near), most
                    )
                    best = near[np.argsort(-scouted, kind="stable")[:ELITES]]
                    codes = np.concatenate([codes, start, self._mutated(best, REFINED, 1, rng)])
                    codes, posterior, costs, gains = score(codes)
                scouted = gain.scout(posterior, costs, most)
                positive = int((scouted > 0).sum())
                scouts = np.argsort(-scouted, kind="stable")[: min(SCOUTS, positive)]
            codes = np.concatenate([codes, waiting])
            costs = costs.join(known)
            posterior = quality.process.posterior(codes)
            gains = gain(posterior, costs)
        return Pool(codes, posterior, costs, gains, gain, scouts) if len(codes) else None

    def _profiled_only(self, length: int, seen: Counter[bytes]) -> list[int]:
        """Rows of the newest networks that were profiled, once, and not trained."""
        rows: list[int] = []
        for row in range(length - 1, -1, -1):
            waits = math.isnan(self._records.quality[row]) and self._records.costs[row] is not None
            if waits and seen[self._records.codes[row].tobytes()] < SPENT:
                rows.append(row)
                if len(rows) == AGAIN:
                    break
        return rows

    # --- Before there is a model ----------------------------------------------------------------

    def _select_first(self, study: Study, costs: np.ndarray) -> int:
        if self._reward is not None and len(study.directions) == 1:
            return int(np.argmax(self._reward(np.full(len(costs), 0.5), costs)))
        both = zip(self._records.costs, self._records.quality, strict=True)
        known = [cost for cost, quality in both if cost is not None and not math.isnan(quality)]
        if not known:
            return 0
        logs = np.log(np.maximum(costs, 1e-12))
        apart = np.abs(logs[:, None] - np.log(np.maximum(np.array(known), 1e-12)))
        return int(np.argmax(apart.max(axis=2).min(axis=1)))


def _finite(costs: np.ndarray) -> np.ndarray:
    finite = np.isfinite(costs)
    if finite.all():
        return costs
    return np.clip(costs, *((costs[finite].min(), costs[finite].max()) if finite.any() else (0, 0)))


def _margin(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = measured.min(axis=0), measured.max(axis=0)
    if (low > 0).all():
        return low / 2, high * 2
    return low - (high - low) / 2, high + (high - low) / 2

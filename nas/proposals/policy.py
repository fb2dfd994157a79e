"""What the policy gradients share: batches of finished trials, rewards, and the replay of updates.

The policy after k updates is a pure function of the first k * batch trained trials by number. A
process keeps the newest states, so a trial that finishes late rolls back an update or two; a fresh
process replays all. Proposals come from a pool drawn once per update: the next new point of it,
from a place that depends on how many trials there are.

Pruned trials teach nothing. With the worst reward for them, a search on NAS-Bench-201 asked 0.6 of
the trials for 200 trained ones, yet its best was worse (mean regret 1.1 against .8 points):
profiling is the cheap part.
"""

from typing import Any

import numpy as np
from optuna.study import Study

from nas.proposals.history import FromHistory, History, Space, generator

KEPT = 8  # newest states in memory: enough for KEPT * batch trials in flight
POOL = 32  # proposals drawn at once
CLIP = 3.0  # robust deviations


class PolicyGradient(FromHistory):
    """Mix-in for a sampler that is a stochastic policy: define `initial`, `update` and `sample`.

    Several objectives become one reward per update: the Chebyshev scalar of the objectives, each
    scaled to its range so far (positive minimized ones in log), with weights drawn per update.
    """

    def __init__(self, seed: int | None, batch: int) -> None:
        if batch < 2:
            raise ValueError(f"batch must be at least 2 trials, got {batch}")
        super().__init__(seed)
        self._batch = batch
        self._space: Any = None  # a `Space` from the first read on
        self._states: dict[int, Any] = {}  # update -> policy state; always has 0
        self._pool: tuple[int, np.ndarray] | None = None

    def initial(self, space: Space, rng: np.random.Generator) -> Any:
        """State of an untrained policy."""
        raise NotImplementedError

    def update(
        self, state: Any, codes: np.ndarray, rewards: np.ndarray, rng: np.random.Generator
    ) -> Any:
        """A new state, from codes (batch, d) and rewards (batch,) in units of their deviation."""
        raise NotImplementedError

    def sample(self, state: Any, count: int, rng: np.random.Generator) -> np.ndarray:
        """Codes (count, d) drawn from the policy."""
        raise NotImplementedError

    def propose(
        self, study: Study, history: History, space: Space, rng: np.random.Generator
    ) -> np.ndarray:
        """The next point of the policy's pool that was never proposed."""
        updates = self._replay(history, space)
        state = self._states[updates]
        if self._pool is None or self._pool[0] != updates:
            stream = generator(self._seed, "pool", updates)
            self._pool = updates, self.sample(state, POOL, stream)
        points = iter(np.roll(self._pool[1], -history.count, axis=0))

        def following() -> np.ndarray:
            return next(points).copy()

        return history.unseen(following, rng, tries=POOL)

    def _replay(self, history: History, space: Space) -> int:
        """Brings `_states` up to the last full batch; returns its number."""
        if self._space is not space:
            self._space = space
            self._states = {0: self.initial(space, generator(self._seed, "initial"))}
            self._pool = None
        complete = np.flatnonzero(~np.isnan(history.values[:, 0]))
        valid = np.searchsorted(complete, history.unchanged) // self._batch
        for late in [k for k in self._states if k > valid]:
            del self._states[late]
            self._pool = None
        updates = len(complete) // self._batch
        for newest in range(max(self._states) + 1, updates + 1):
            rng = generator(self._seed, "update", newest)
            known = complete[: newest * self._batch]
            rewards = _standard(_rewards(history.values[known], history.minimized, rng))
            batch = known[-self._batch :]
            self._states[newest] = self.update(
                self._states[newest - 1], history.codes[batch], rewards[-self._batch :], rng
            )
            for old in [k for k in self._states if 0 < k <= newest - KEPT]:
                del self._states[old]
        return updates


def _standard(rewards: np.ndarray) -> np.ndarray:
    """Rewards (n,) in robust deviations from their median, within +-CLIP.

    Few networks fail badly; unclipped, avoiding those is all that a policy learns.
    """
    middle = np.median(rewards)
    deviation = 1.4826 * np.median(np.abs(rewards - middle))  # of a normal distribution
    return np.clip((rewards - middle) / max(deviation, 1e-12), -CLIP, CLIP)


def _rewards(values: np.ndarray, minimized: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One reward (n,) per row of values (n, m), more is better in every column."""
    if values.shape[1] == 1:
        return np.nan_to_num(values[:, 0])
    scaled = np.empty_like(values)
    for column, (value, negated) in enumerate(zip(values.T, minimized, strict=True)):
        if negated and (value < 0).all():
            value = -np.log(-value)
        low, high = value.min(), value.max()
        scaled[:, column] = (value - low) / (high - low if high > low else 1.0)
    weights = rng.dirichlet(np.ones(values.shape[1]))
    return -(weights * (1.0 - scaled)).max(axis=1)

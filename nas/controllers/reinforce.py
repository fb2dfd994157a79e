"""REINFORCE with one independent softmax per decision: TuNAS (Bender et al. 2020, section 3).

As there: moving-average baseline, Adam without momentum, no update while it warms up. The learning
rate is not theirs (3e-4, for 1e5 updates beside weight training): a trial here costs minutes.
"""

import dataclasses

import numpy as np
from optuna.samplers import BaseSampler

from nas.proposals.history import Space
from nas.proposals.policy import PolicyGradient


@dataclasses.dataclass(frozen=True)
class _State:
    logits: np.ndarray  # (d, choices of the widest decision), -inf where a decision has fewer
    second: np.ndarray  # Adam's second moment
    updates: int
    baseline: float


class Reinforce(PolicyGradient, BaseSampler):
    """Factorized policy; one step of Adam for every `batch` trained trials.

    `baseline` is the decay of the moving average of rewards, `entropy` the weight of an entropy
    bonus per decision, `warmup` the number of trials that only move the baseline.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        lr: float = 0.3,
        batch: int = 5,
        baseline: float = 0.95,
        entropy: float = 0.0,
        warmup: int = 0,
    ) -> None:
        super().__init__(seed, batch)
        self._lr = lr
        self._baseline = baseline
        self._entropy = entropy
        self._warmup = warmup

    def initial(self, space: Space, rng: np.random.Generator) -> _State:
        """Uniform."""
        open_choices = np.arange(space.sizes.max())[None] < space.sizes[:, None]
        logits = np.where(open_choices, 0.0, -np.inf)
        return _State(logits, np.zeros_like(logits), 0, 0.0)

    def update(
        self, state: _State, codes: np.ndarray, rewards: np.ndarray, rng: np.random.Generator
    ) -> _State:
        """One step of Adam (b1=0, b2=.999)."""
        mean = rewards.mean()
        step = state.updates + 1
        # The average of what was seen so far, not of that and zero: as Adam corrects its moments.
        decay = self._baseline * (1 - self._baseline**state.updates) / (1 - self._baseline**step)
        baseline = decay * state.baseline + (1 - decay) * mean
        if step * self._batch <= self._warmup:
            return dataclasses.replace(state, updates=step, baseline=baseline)
        probs = _softmax(state.logits)
        chosen = codes[:, :, None] == np.arange(probs.shape[1])
        advantage = rewards - baseline
        gradient = (advantage[:, None, None] * (chosen - probs)).mean(axis=0)
        log = np.log(np.maximum(probs, 1e-12))
        spread = -(probs * log).sum(axis=1, keepdims=True)
        gradient -= self._entropy * probs * (log + spread)
        second = 0.999 * state.second + 0.001 * gradient**2
        scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        return _State(state.logits + self._lr * gradient / scale, second, step, baseline)

    def sample(self, state: _State, count: int, rng: np.random.Generator) -> np.ndarray:
        """Every decision by itself."""
        cumulative = _softmax(state.logits).cumsum(axis=1)
        draws = rng.random((count, len(cumulative), 1))
        return (draws > cumulative[:, :-1]).sum(axis=2)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)

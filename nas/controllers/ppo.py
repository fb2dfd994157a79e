"""MnasNet's controller (Tan et al. 2019, section 3.3): NASNet's recurrent policy, trained by PPO.

One LSTM layer reads the previous token and emits the next decision from a softmax of its own (Zoph
et al. 2018); updates maximize the clipped surrogate of Schulman et al. 2017. The backward pass is
written out in NumPy: a search starts without a second framework and resumes bit for bit.
"""

import dataclasses

import numpy as np
from optuna.samplers import BaseSampler

from nas.proposals.history import Space
from nas.proposals.policy import PolicyGradient


@dataclasses.dataclass(frozen=True)
class _State:
    weights: dict[str, np.ndarray]
    first: dict[str, np.ndarray]  # Adam's moments
    second: dict[str, np.ndarray]
    steps: int
    baseline: float
    updates: int


class PPO(PolicyGradient, BaseSampler):
    """Autoregressive LSTM policy; `epochs` steps of Adam for every `batch` trained trials.

    `clip` bounds the ratio to the policy that sampled, `entropy` weighs the entropy bonus per
    decision and `baseline` is the decay of the moving average of rewards. NASNet has lr 3.5e-4 and
    batch 20 for 20,000 samples; the defaults are for some hundreds.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        lr: float = 1.5e-2,
        batch: int = 10,
        epochs: int = 3,
        hidden: int = 32,
        clip: float = 0.2,
        entropy: float = 3e-2,
        baseline: float = 0.8,
    ) -> None:
        super().__init__(seed, batch)
        self._lr = lr
        self._epochs = epochs
        self._hidden = hidden
        self._clip = clip
        self._entropy = entropy
        self._baseline = baseline

    def initial(self, space: Space, rng: np.random.Generator) -> _State:
        """Weights uniform in +-0.1 as in NASNet, heads zero: the first policy is uniform."""
        d, hidden, widest = len(space), self._hidden, int(space.sizes.max())
        tokens = 1 + int(space.sizes.sum())  # the first token starts a sequence

        def uniform(*shape: int) -> np.ndarray:
            return rng.uniform(-0.1, 0.1, shape)

        weights = {
            "embed": uniform(tokens, hidden),
            "input": uniform(hidden, 4 * hidden),
            "recurrent": uniform(hidden, 4 * hidden),
            "bias": np.zeros(4 * hidden),
            "head": np.zeros((d, hidden, widest)),
            "head_bias": np.zeros((d, 1, widest)),
        }
        zeros = {name: np.zeros_like(weight) for name, weight in weights.items()}
        return _State(weights, zeros, zeros, 0, 0.0, 0)

    def update(
        self, state: _State, codes: np.ndarray, rewards: np.ndarray, rng: np.random.Generator
    ) -> _State:
        """`epochs` steps on the whole batch."""
        count = state.updates + 1
        decay = self._baseline * (1 - self._baseline**state.updates)
        decay /= 1 - self._baseline**count  # the average of what was seen, without the zero
        baseline = decay * state.baseline + (1 - decay) * rewards.mean()
        advantage = rewards - baseline
        weights, first, second = dict(state.weights), dict(state.first), dict(state.second)
        steps, sampled = state.steps, None
        for _ in range(self._epochs):
            _, gradient, logs = surrogate(
                weights, codes, self._space.sizes, advantage, sampled, self._clip, self._entropy
            )
            sampled = logs if sampled is None else sampled
            steps += 1
            for name, slope in gradient.items():  # Adam
                first[name] = 0.9 * first[name] + 0.1 * slope
                second[name] = 0.999 * second[name] + 0.001 * slope**2
                scale = np.sqrt(second[name] / (1 - 0.999**steps)) + 1e-8
                weights[name] = weights[name] + self._lr / (1 - 0.9**steps) * first[name] / scale
        return _State(weights, first, second, steps, baseline, count)

    def sample(self, state: _State, count: int, rng: np.random.Generator) -> np.ndarray:
        """One decision after the other."""
        weights, sizes = state.weights, self._space.sizes
        inputs, recurrent = _scaled(weights)
        starts = _token_starts(sizes)
        hidden = cell = np.zeros((count, self._hidden))
        tokens = np.zeros(count, dtype=np.int64)
        codes = np.empty((count, len(sizes)), dtype=np.int64)
        draws = rng.random((len(sizes), count, 1))
        for t, size in enumerate(sizes):
            hidden, cell, _ = _lstm(inputs[tokens] + hidden @ recurrent, cell)
            logits = hidden @ weights["head"][t, :, :size] + weights["head_bias"][t, :, :size]
            powers = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
            codes[:, t] = (draws[t] * powers[:, -1:] > powers[:, :-1]).sum(axis=1)
            tokens = starts[t] + codes[:, t]
        return codes


def surrogate(
    weights: dict[str, np.ndarray],
    codes: np.ndarray,
    sizes: np.ndarray,
    advantage: np.ndarray,
    sampled: np.ndarray | None,
    clip: float,
    entropy: float,
) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """PPO's objective per token, its gradient, and the log-probabilities (d, n) of codes (n, d).

    `sampled` are the log-probabilities under the policy that drew them; None: under this one.
    """
    n, d = codes.shape
    width = len(weights["recurrent"])
    tokens = np.zeros((d, n), dtype=np.int64)
    tokens[1:] = (codes + _token_starts(sizes)).T[:-1]
    inputs, recurrent = _scaled(weights)
    given = inputs[tokens]
    states, cells = np.zeros((d + 1, n, width)), np.zeros((d + 1, n, width))
    gates = np.empty((d, n, 4, width))
    for t in range(d):
        states[t + 1], cells[t + 1], gates[t] = _lstm(given[t] + states[t] @ recurrent, cells[t])
    logits = states[1:] @ weights["head"] + weights["head_bias"]
    exists = np.arange(logits.shape[2]) < sizes[:, None, None]
    logits = np.where(exists, logits, -1e9)
    log = _log_softmax(logits)
    probs = np.exp(log)
    chosen = codes.T[:, :, None] == np.arange(log.shape[2])
    logs = log[chosen].reshape(d, n)
    ratio = np.exp(logs - (logs if sampled is None else sampled))
    clipped = np.clip(ratio, 1 - clip, 1 + clip)
    gain = np.minimum(ratio * advantage, clipped * advantage)
    spread = -(probs * log).sum(axis=2, keepdims=True)
    objective = (gain + entropy * spread[:, :, 0]).sum() / n

    flows = ratio * advantage <= clipped * advantage
    slope = (np.where(flows, ratio, 0.0) * advantage)[:, :, None] * (chosen - probs)
    slope = (slope - entropy * probs * (log + spread)) / n
    gradient = {
        "head": states[1:].transpose(0, 2, 1) @ slope,
        "head_bias": slope.sum(axis=1, keepdims=True),
    }
    from_heads = slope @ weights["head"].transpose(0, 2, 1)
    new, enter, forget, leave = np.moveaxis(gates, 2, 0)
    squashed = np.tanh(cells[1:])
    to_cell = leave * (1 - squashed**2)
    factors = gates * (1 - gates)  # slopes of the logistic gates
    factors[:, :, 0] = enter * (1 - new**2)
    factors[:, :, 1] *= new
    factors[:, :, 2] *= cells[:-1]
    factors[:, :, 3] *= squashed
    pre = np.empty_like(gates)
    back, back_cell = np.zeros((n, width)), np.zeros((n, width))
    for t in reversed(range(d)):
        into = from_heads[t] + back
        back_cell += into * to_cell[t]
        np.multiply(factors[t, :, :3], back_cell[:, None], out=pre[t, :, :3])
        np.multiply(factors[t, :, 3], into, out=pre[t, :, 3])
        back = pre[t].reshape(n, 4 * width) @ weights["recurrent"].T
        back_cell *= forget[t]
    # Batches of small products: too small for BLAS to split, so equal bits for any thread count.
    flat = pre.reshape(d, n, 4 * width)
    gradient["recurrent"] = (states[:-1].transpose(0, 2, 1) @ flat).sum(axis=0)
    by_choice = chosen[:-1].transpose(0, 2, 1).astype(float) @ flat[1:]
    to_inputs = np.zeros_like(inputs)
    to_inputs[0] = flat[0].sum(axis=0)
    to_inputs[1 : 1 + sizes[:-1].sum()] = by_choice[exists[:-1, 0]]
    gradient["embed"] = to_inputs @ weights["input"].T
    gradient["input"] = weights["embed"].T @ to_inputs
    gradient["bias"] = to_inputs.sum(axis=0)
    return objective, gradient, logs


def _token_starts(sizes: np.ndarray) -> np.ndarray:
    return 1 + np.concatenate([[0], np.cumsum(sizes)[:-1]])


def _scaled(weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each token's part of the pre-activations, and the recurrent weights, halved for `_lstm`."""
    half = np.repeat([1.0, 0.5, 0.5, 0.5], len(weights["recurrent"]))
    inputs = weights["embed"] @ weights["input"] + weights["bias"]
    return inputs * half, weights["recurrent"] * half


def _lstm(pre: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step: hidden (n, h), cell (n, h), gates (n, 4, h): new, enter, forget, leave.

    The pre-activations (n, 4 h) of the last three are halved: logistic(x) = (1 + tanh(x / 2)) / 2.
    """
    gates = np.tanh(pre).reshape(len(cell), 4, -1)
    logistic = gates[:, 1:]
    logistic *= 0.5
    logistic += 0.5
    cell = gates[:, 2] * cell
    cell += gates[:, 1] * gates[:, 0]
    return gates[:, 3] * np.tanh(cell), cell, gates


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

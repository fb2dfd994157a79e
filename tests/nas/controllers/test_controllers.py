"""Our controllers: many workers, cost, and what they learn; see tests/nas/testing too."""

import importlib.util
import warnings

import numpy as np
import optuna
import pytest
from calls import counted
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from nas import registry
from nas.controllers.ppo import PPO, surrogate
from nas.controllers.reinforce import Reinforce
from nas.proposals.history import BINS, FromHistory, Space, generator
from nas.testing.controllers import (
    choose,
    one_trial,
    open_study,
    proposals,
    quality_and_cost,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)

NAMES = sorted(registry.listing("controller"))
OURS = [name for name in NAMES if name in {"ppo", "reinforce", "evolution", "surrogate"}]


def make(name: str, seed: int | None = 0, options: str = ""):
    if name == "gp" and importlib.util.find_spec("torch") is None:
        pytest.skip("gp needs torch, which is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return registry.controller(name + options, seed=seed)


# --- Purity: the same proposals in any order ----------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_trials_that_finish_out_of_order_are_replayed_in_order(name, tmp_path):
    study = open_study(tmp_path / "s.log", ["maximize"], make(name))
    rng = np.random.default_rng(1)
    open_trials, total = [], 24 if name == "surrogate" else 60
    for _ in range(total):
        open_trials.append(study.ask())
        choose(open_trials[-1])
        if len(open_trials) == 4:  # four workers, the fastest at random
            done = open_trials.pop(rng.integers(4))
            study.tell(done, quality_and_cost(list(done.params.values()))[0])
    for trial in open_trials:
        study.tell(trial, quality_and_cost(list(trial.params.values()))[0])
    again = open_study(tmp_path / "s.log", ["maximize"], make(name))
    expected = choose(study.ask())
    study.tell(total, state=TrialState.FAIL)
    assert choose(again.ask()) == expected


@pytest.mark.parametrize("name", OURS)
def test_no_proposal_is_repeated_even_in_parallel(name):
    study = optuna.create_study(directions=["maximize"], sampler=make(name))

    def objective(trial):
        return sum(trial.suggest_categorical(f"c{i}", (0, 1, 2)) for i in range(4))

    running = [study.ask() for _ in range(3)]
    for trial in running:
        study.tell(trial, objective(trial))
    for _ in range(26):  # rounds of three: 3 + 78 = all 81 points of the space
        running = [study.ask() for _ in range(3)]
        values = [objective(trial) for trial in running]
        for trial, value in zip(running, values, strict=True):
            study.tell(trial, value)
    distinct = {tuple(sorted(t.params.items())) for t in study.trials[3:]}
    assert len(distinct) == 78


@pytest.mark.parametrize("name", ["nsgaii", "nsgaiii"])
def test_a_genetic_search_resumes_at_the_first_trial_of_a_generation(name, tmp_path):
    """The kill that Optuna's own samplers do not survive: parents chosen, first child lost."""
    directions, options = ["maximize", "minimize"], ":population=5"
    whole = open_study(tmp_path / "whole.log", directions, make(name, 0, options))
    for _ in range(21):
        one_trial(whole, prune=False)
    for cut in (5, 10, 15, 20, 21):
        study = open_study(tmp_path / "killed.log", directions, make(name, 0, options))
        for leftover in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            study.tell(leftover.number, state=TrialState.FAIL)
        while len(proposals(study)) < cut:
            one_trial(study, prune=False)
        if cut < 21:
            choose(study.ask())
    assert proposals(study) == proposals(whole)


def test_a_proposal_given_back_leaves_the_search_as_if_nothing_happened():
    studies = [optuna.create_study(direction="maximize", sampler=make("evolution")) for _ in "ab"]
    for study in studies:
        for _ in range(25):
            one_trial(study, prune=False)
    lost = studies[1].ask()
    choose(lost)
    studies[1].tell(lost, state=TrialState.FAIL)
    studies[1].enqueue_trial(lost.params)
    for study in studies:
        for _ in range(10):
            one_trial(study, prune=False)
    assert proposals(studies[0]) == proposals(studies[1])


# --- Codes of parameters -----------------------------------------------------------------------


def test_space_puts_names_in_natural_order_and_exact_values_come_back():
    space = Space(
        {
            "block10/kernel": CategoricalDistribution((3, 5)),
            "block2/se": FloatDistribution(0.0, 0.5, step=0.25),
            "block2/repeats": IntDistribution(-1, 1),
        }
    )
    assert space.names == ["block2/repeats", "block2/se", "block10/kernel"]
    assert space.sizes.tolist() == [3, 3, 2] and space.cardinality == 18 and space.exact
    params = {"block2/repeats": -1, "block2/se": 0.25, "block10/kernel": 5}
    codes = space.encode(params)
    assert codes.tolist() == [0, 1, 1]
    assert space.decode(codes, generator(0)) == params


def test_a_wide_parameter_is_cut_into_bins_in_log():
    distribution = FloatDistribution(1e-4, 1.0, log=True)
    space = Space({"lr": distribution})
    assert space.sizes.tolist() == [BINS] and not space.exact
    rng = generator(0)
    for code in range(BINS):
        value = space.decode(np.array([code]), rng)["lr"]
        low, high = 10 ** (-4 + 4 * code / BINS), 10 ** (-4 + 4 * (code + 1) / BINS)
        assert low <= value <= high * (1 + 1e-12)
        assert space.encode({"lr": value}).tolist() == [code]


# --- Learning ----------------------------------------------------------------------------------


def test_gradient_of_the_surrogate_matches_finite_differences():
    rng = np.random.default_rng(0)
    space = Space(
        {f"c{i}": CategoricalDistribution(tuple(range(k))) for i, k in enumerate((2, 4, 3))}
    )
    controller = PPO(seed=0, hidden=4)
    shapes = controller.initial(space, rng).weights
    weights = {name: rng.normal(0, 0.5, w.shape) for name, w in shapes.items()}
    codes = np.stack([space.random(rng) for _ in range(6)])
    advantage = rng.normal(size=6)
    _, _, logs = surrogate(weights, codes, space.sizes, advantage, None, 0.2, 0.1)
    sampled = logs + rng.normal(0, 0.3, logs.shape)  # some ratios beyond the clip, some within

    def objective() -> float:
        return surrogate(weights, codes, space.sizes, advantage, sampled, 0.2, 0.1)[0]

    _, gradient, _ = surrogate(weights, codes, space.sizes, advantage, sampled, 0.2, 0.1)
    for name, weight in weights.items():
        numeric = np.zeros_like(weight)
        for at in np.ndindex(weight.shape):
            kept = weight[at]
            weight[at] = kept + 1e-5
            above = objective()
            weight[at] = kept - 1e-5
            numeric[at] = (above - objective()) / 2e-5
            weight[at] = kept
        np.testing.assert_allclose(gradient[name], numeric, atol=1e-8, err_msg=name)


def test_log_probabilities_are_those_of_the_samples():
    rng = np.random.default_rng(0)
    space = Space({"a": CategoricalDistribution((0, 1)), "b": CategoricalDistribution((0, 1, 2))})
    controller = PPO(seed=0, hidden=4)
    state = controller.initial(space, rng)
    state.weights["head"][:] = rng.normal(0, 3, state.weights["head"].shape)
    state.weights["embed"][:] *= 20
    controller._space = space
    drawn = controller.sample(state, 20000, rng)
    grid = np.array([[a, b] for a in range(2) for b in range(3)])
    logs = surrogate(state.weights, grid, space.sizes, np.zeros(6), None, 0.2, 0.0)[2]
    expected = np.exp(logs.sum(axis=0))
    assert expected.sum() == pytest.approx(1.0) and expected.std() > 0.03
    shares = [(drawn == point).all(axis=1).mean() for point in grid]
    np.testing.assert_allclose(shares, expected, atol=0.015)


def test_reinforce_step_by_hand():
    space = Space({"a": CategoricalDistribution((0, 1))})
    controller = Reinforce(seed=0, lr=0.5, batch=2)
    state = controller.initial(space, generator(0))
    state = controller.update(state, np.array([[0], [1]]), np.array([1.0, 0.0]), generator(0))
    # Baseline .5, advantages +-.5, gradient (.25, -.25); Adam without momentum: a step of +-lr.
    assert state.baseline == pytest.approx(0.5)
    np.testing.assert_allclose(state.logits, [[0.5, -0.5]], rtol=1e-5)


class Uniform(FromHistory, optuna.samplers.BaseSampler):
    """Random search without repetition: what a controller must beat."""

    def propose(self, study, history, space, rng):
        return history.unseen(lambda: space.random(rng), rng)


@pytest.mark.parametrize("name", ["ppo", "reinforce", "evolution"])
def test_beats_random_on_nas_bench_macro(name, shared_data):
    table = np.load(shared_data / "nas" / "nasbench_macro.npz")
    accuracy = {
        tuple(a): acc for a, acc in zip(table["arch"].tolist(), table["test_acc"], strict=True)
    }

    def regret(sampler, seed: int) -> float:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        noise = np.random.default_rng(seed)
        for _ in range(120):
            trial = study.ask()
            arch = tuple(trial.suggest_categorical(f"block{i}", (0, 1, 2)) for i in range(8))
            study.tell(trial, float(accuracy[arch][noise.integers(3)]))
        best = tuple(study.best_params[f"block{i}"] for i in range(8))
        return float(max(a.mean() for a in accuracy.values()) - accuracy[best].mean())

    seeds = range(6)
    ours = np.mean([regret(make(name, seed), seed) for seed in seeds])
    random = np.mean([regret(Uniform(seed), seed) for seed in seeds])
    assert ours < 0.8 * random, f"mean regret {ours:.3f} against {random:.3f} of random search"


# --- Cost --------------------------------------------------------------------------------------


def study_of(count: int, sampler) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    names = [f"block{i // 4}/{'abcd'[i % 4]}" for i in range(16)]
    distribution = CategoricalDistribution((0, 1, 2))
    codes = np.random.default_rng(0).integers(3, size=(count, len(names)))
    study.add_trials(
        optuna.trial.create_trial(
            params=dict(zip(names, row.tolist(), strict=True)),
            distributions=dict.fromkeys(names, distribution),
            value=float(row.sum()),
        )
        for row in codes
    )
    return study


def calls_of_a_trial(study: optuna.Study, trials: int = 10) -> float:
    """Functions called for a trial, after the first, which replays."""

    def one():
        trial = study.ask()
        choices = [
            trial.suggest_categorical(f"block{i // 4}/{'abcd'[i % 4]}", (0, 1, 2))
            for i in range(16)
        ]
        study.tell(trial, float(sum(choices)))

    one()
    with counted() as calls:
        for _ in range(trials):
            one()
    return calls[0] / trials


@pytest.mark.parametrize("name", ["evolution", "reinforce", "ppo"])
def test_cost_does_not_grow_with_the_number_of_trials(name):
    random = calls_of_a_trial(study_of(200, optuna.samplers.RandomSampler(seed=0)))
    few, many = (calls_of_a_trial(study_of(count, make(name))) for count in (200, 1500))
    assert many < 1.1 * few, f"{few} calls for a trial after 200 trials, {many} after 1,500"
    assert many < 1.5 * random, f"{many} calls for a trial, {random} by random search"

"""The surrogate: its models, its schedule, and that it finds more with fewer networks."""

import numpy as np
import optuna
import pytest
from calls import counted
from optuna.trial import TrialState

from nas import pareto, registry
from nas.controllers.surrogate import Surrogate
from nas.proposals.expected_improvement import Costs, HypervolumeGain, Quality, within_budgets
from nas.proposals.gaussian_process import Choices, GaussianProcess
from nas.searching.reward import Reward
from nas.searching.table_evaluator import TableEvaluator
from nas.tasks.table import load

optuna.logging.set_verbosity(optuna.logging.WARNING)

CHOICES = Choices((3, 3, 2, 4), (0, 0, 1, 2), ((3, 5, 7), (3, 5, 7), None, None))


def codes_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(CHOICES.sizes, size=(count, 4))


# --- Models --------------------------------------------------------------------------------------


def test_gradient_of_the_hyperparameters_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    process = GaussianProcess(CHOICES, codes_of(25), rng.normal(size=25))
    at = process.prior + 0.1 * rng.normal(size=len(process.prior))
    step = 1e-5
    numeric = [
        (process._loss(at + step * e)[0] - process._loss(at - step * e)[0]) / (2 * step)
        for e in np.eye(len(at))
    ]
    np.testing.assert_allclose(process._loss(at)[1], numeric, atol=1e-6)


def test_posterior_equals_the_textbook_formula():
    rng = np.random.default_rng(1)
    codes, targets, new = codes_of(20), rng.normal(size=20), codes_of(5, seed=2)
    process = GaussianProcess(CHOICES, codes, targets).condition(
        GaussianProcess(CHOICES, codes, targets).prior
    )
    prior = process.covariance(process._features, process._features)
    noisy = prior + (process.noise**2 + 1e-6) * np.eye(20)
    posterior = process.posterior(new)
    cross = process.covariance(process._features, posterior.features)
    own = process.covariance(posterior.features, posterior.features)
    np.testing.assert_allclose(posterior.mean, cross.T @ np.linalg.solve(noisy, targets))
    expected = np.diag(own - cross.T @ np.linalg.solve(noisy, cross))
    np.testing.assert_allclose(posterior.variance, expected, atol=1e-10)


def test_believing_a_candidate_is_observing_its_mean():
    codes, targets, new = codes_of(20), np.random.default_rng(1).normal(size=20), codes_of(6, 5)
    process = GaussianProcess(CHOICES, codes, targets)
    posterior = process.condition(process.prior).posterior(new)
    posterior.believe(2)
    more = GaussianProcess(CHOICES, codes, targets)
    # The same features: counts are scaled, and the linear part centred, by the first twenty.
    more._set(process.prior)
    features = np.vstack([process._features, posterior.features[2:3]])
    kernel = process.covariance(features, features) + (process.noise**2 + 1e-6) * np.eye(21)
    cross = process.covariance(features, posterior.features)
    own = np.diag(process.covariance(posterior.features, posterior.features))
    expected = own - (cross * np.linalg.solve(kernel, cross)).sum(axis=0)
    np.testing.assert_allclose(posterior.variance, expected, atol=1e-9)


def test_quality_model_maps_back():
    values = np.array([0.1, 0.5, 0.6, 0.7, 0.72])
    model = Quality(CHOICES, codes_of(5), values)
    back = model.values(model.process.targets)
    np.testing.assert_allclose(back[1:], values[1:])
    assert back[0] == pytest.approx(0.72 - 5 * (0.72 - 0.6))  # hopeless is hopeless


def test_only_what_is_within_the_budgets_is_wanted():
    reward = Reward("absolute", (10.0,), -0.01)
    penalized = within_budgets(reward)
    quality, costs = np.array([0.7, 0.71, 0.9]), np.array([[9.0], [10.0], [10.1]])
    assert np.argmax(reward(quality, costs)) == 2
    assert np.argmax(penalized(quality, costs)) == 1
    assert within_budgets(len) is len  # any other function is taken as it is


def test_a_network_that_was_only_profiled_may_come_back_once():
    reward = Reward("absolute", (4.0,), -1.0)
    sampler = Surrogate(seed=0, reward=reward)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(12):
        step(study, reward)
    left_out = {
        f"block{i}/{name}": 5 if name == "kernel" else 3 for i in range(4) for name in KINDS
    }
    proposed = []
    for turn in range(12):
        if turn == 0:
            study.enqueue_trial(left_out)
        trial = study.ask()
        objective(trial)
        proposed.append(trial.params)
        # Whatever was measured first costs just the budget: worth training, yet never trained.
        cost = 4.0 if trial.params == left_out else 9.0
        trial.set_user_attr("profile", {"key": str(trial.params), "costs": [cost]})
        study.tell(trial, state=TrialState.PRUNED)
    assert proposed.count(left_out) <= 2
    assert all(proposed.count(params) <= 2 for params in proposed)


def test_hypervolume_gain_is_the_mean_gain_of_simulated_networks():
    rng = np.random.default_rng(0)
    codes = codes_of(30)
    values = 0.5 + 0.1 * codes.sum(axis=1) / 10 + 0.01 * rng.normal(size=30)
    costs = np.exp(0.2 * codes[:, :1] + 0.1 * codes[:, 1:2])
    quality, models = Quality(CHOICES, codes, values), Costs(CHOICES, codes, costs)
    quality.process.condition(quality.process.prior)
    models.processes[0].condition(models.processes[0].prior)
    low, high = costs.min(axis=0), costs.max(axis=0) * 1.5
    gain = HypervolumeGain(quality, values, costs, low, high, rng)
    new = codes_of(4, seed=9)
    posterior, known = quality.process.posterior(new), np.array([[1.2], [1.4], [1.6], [1.8]])
    expected = gain(posterior, models.exact(known))
    # By simulation: the hypervolume with a simulated network, less that without.
    reference = [-values.min(), high[0]]
    before = pareto.hypervolume(np.column_stack([-values, costs]), reference)
    found = []
    for mean, variance, cost in zip(posterior.mean, posterior.variance, known, strict=True):
        draws = quality.values(mean + np.sqrt(variance) * rng.normal(size=400))
        after = [
            pareto.hypervolume(
                np.vstack([np.column_stack([-values, costs]), [-draw, cost[0]]]), reference
            )
            for draw in draws
        ]
        found.append((np.mean(after) - before) / (high - low)[0])
    np.testing.assert_allclose(expected, found, rtol=0.15, atol=2e-4)


# --- A search ------------------------------------------------------------------------------------


KINDS = ("kernel", "expand")


def objective(trial) -> tuple[float, float]:
    x = [trial.suggest_categorical(f"block{i}/kernel", (3, 5, 7)) for i in range(4)]
    e = [trial.suggest_categorical(f"block{i}/expand", (1, 3, 6)) for i in range(4)]
    cost = 1 + sum(a * b for a, b in zip(x, e, strict=True)) / 20
    quality = 0.9 - 0.5 / (1 + sum(e) / 6 + sum(x) / 10 + 0.3 * (x[0] == 7) * (e[0] == 6))
    return quality, cost


def step(study, reward=None):
    trial = study.ask()
    quality, cost = objective(trial)
    trial.set_user_attr("profile", {"key": str(trial.params), "costs": [cost]})
    trial.set_user_attr("evaluation", {"quality": quality})
    value = None if reward is None else float(reward([quality], [[cost]])[0])
    study.tell(trial, [quality, cost] if reward is None else value)
    return trial


def test_never_proposes_twice_and_covers_a_small_space():
    study = optuna.create_study(sampler=Surrogate(seed=0))
    for _ in range(27):
        trial = study.ask()
        values = [trial.suggest_categorical(name, ("a", "b", "c")) for name in "xyz"]
        study.tell(trial, values.count("b"))
    assert len({tuple(t.params.items()) for t in study.trials}) == 27
    trial = study.ask()  # nothing is left: it still answers
    assert trial.suggest_categorical("x", ("a", "b", "c")) in "abc"


@pytest.mark.parametrize("scalar", [True, False])
def test_goes_on_when_a_space_is_used_up(scalar):
    reward = Reward("absolute", (2.0,), -0.1) if scalar else None
    study = optuna.create_study(
        directions=["maximize"] if scalar else ["maximize", "minimize"],
        sampler=Surrogate(seed=0, reward=reward),
    )
    for _ in range(24):  # 16 networks
        trial = study.ask()
        x = [trial.suggest_categorical(f"x{i}", (0, 1)) for i in range(4)]
        trial.set_user_attr("profile", {"key": str(x), "costs": [1.0 + sum(x)]})
        trial.set_user_attr("evaluation", {"quality": sum(x) / 5})
        study.tell(trial, sum(x) / 5 if scalar else [sum(x) / 5, 1.0 + sum(x)])
    assert len({tuple(t.params.items()) for t in study.trials}) == 16


def test_workers_at_once_get_different_proposals():
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=Surrogate(seed=1))
    for _ in range(15):
        step(study)
    pending = [study.ask() for _ in range(30)]
    for trial in pending:
        objective(trial)
    assert len({tuple(t.params.items()) for t in pending}) == 30
    fresh = optuna.create_study(directions=["maximize", "minimize"], sampler=Surrogate(seed=1))
    fresh.add_trials(study.trials[:15])
    again = [fresh.ask() for _ in range(30)]
    for trial in again:
        objective(trial)
    assert [t.params for t in again] == [t.params for t in pending]


def test_proposals_keep_away_from_what_other_workers_are_at():
    sampler = Surrogate(seed=3)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(20):
        step(study)
    objective(study.ask())
    models = sampler._models
    base = sampler._proposals(models, sampler._history.pending_codes)
    assert base is models.pool  # its own proposals are regarded already
    before = models.gain(base._posterior, base._costs)
    near = base._codes[int(np.argmax(before))].copy()
    finished = {row.tobytes() for row in sampler._history.codes}
    sizes = sampler._history.space.sizes
    outside = next(  # a neighbour of the best proposal that is no proposal itself
        other
        for column in range(len(near))
        for value in range(sizes[column])
        for other in [np.where(np.arange(len(near)) == column, value, near)]
        if other.tobytes() not in base.members | finished
    )
    regarding = sampler._proposals(models, outside[None])
    assert sampler._proposals(models, outside[None]) is regarding
    fresh = regarding._posterior.process.posterior(regarding._codes)
    assert (regarding._posterior.variance < fresh.variance).all()
    best = int((regarding._codes == near).all(axis=1).argmax())
    assert regarding._posterior.variance[best] < 0.9 * fresh.variance[best]


def test_select_takes_the_candidate_whose_known_cost_fits():
    reward = Reward("absolute", (4.0,), -1.0)
    sampler = Surrogate(seed=0, reward=reward)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(14):
        step(study, reward)
    asked = [study.ask() for _ in range(5)]
    for number, trial in enumerate(asked):
        objective(trial)
        cost = 4.0 if number == 3 else 40.0 + number  # measured otherwise than any model thinks
        trial.set_user_attr("profile", {"key": str(trial.params), "costs": [cost]})
    frozen = [study._storage.get_trial(trial._trial_id) for trial in asked]
    assert sampler.select(study, frozen) == 3
    assert Surrogate(seed=7, reward=reward).select(study, frozen) == 3  # of a fresh process too


def test_select_without_a_model_spreads_costs():
    sampler = Surrogate(seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    step(study)
    cost = study.trials[0].user_attrs["profile"]["costs"][0]
    asked = [study.ask() for _ in range(3)]
    for factor, trial in zip((1.1, 3.0, 0.9), asked, strict=True):
        objective(trial)
        trial.set_user_attr("profile", {"key": str(trial.params), "costs": [cost * factor]})
    frozen = [study._storage.get_trial(trial._trial_id) for trial in asked]
    assert sampler.select(study, frozen) == 1


def test_learns_costs_from_pruned_trials():
    """Profiles of pruned networks steer: with them the budget is met by the first proposals."""
    reward = Reward("absolute", (3.0,), -1.0)
    distance = {}
    for pruned in (0, 120):
        sampler = Surrogate(seed=0, reward=reward)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        rng = np.random.default_rng(0)
        for _ in range(pruned):
            fixed = {f"block{i}/kernel": int(rng.choice((3, 5, 7))) for i in range(4)}
            fixed |= {f"block{i}/expand": int(rng.choice((1, 3, 6))) for i in range(4)}
            study.enqueue_trial(fixed)
            trial = study.ask()
            cost = objective(trial)[1]
            trial.set_user_attr("profile", {"key": str(trial.params), "costs": [cost]})
            study.tell(trial, state=TrialState.PRUNED)
        for _ in range(10):
            step(study, reward)
        proposed = [step(study, reward).user_attrs["profile"]["costs"][0] for _ in range(12)]
        distance[pruned] = np.abs(np.array(proposed) / 3.0 - 1).mean()
    assert distance[120] < distance[0]
    assert distance[120] < 0.1


def test_what_was_evaluated_is_learned_not_what_was_proposed():
    table_params = {f"block{i}/{n}": c for i in range(4) for n, c in (("kernel", 3), ("expand", 1))}
    sampler = Surrogate(seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(12):
        trial = study.ask()
        quality, cost = objective(trial)
        record = {"key": "k", "costs": [cost], "canonical": table_params}
        trial.set_user_attr("profile", record)
        trial.set_user_attr("evaluation", {"quality": quality})
        study.tell(trial, [quality, cost])
    objective(study.ask())
    space = sampler._history.space
    assert all((row == space.encode(table_params)).all() for row in sampler._records.codes)


def test_three_objectives_and_infinite_values():
    sampler = Surrogate(seed=0)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    for number in range(30):
        trial = study.ask()
        quality, cost = objective(trial)
        study.tell(
            trial,
            [
                float("-inf") if number == 3 else quality,
                cost,
                float("inf") if number == 5 else 1 / cost,
            ],
        )
    assert sampler._models is not None


@pytest.mark.parametrize("startup", [0, 1])
def test_startup_must_leave_something_to_model(startup):
    with pytest.raises(ValueError, match="startup"):
        Surrogate(startup=startup)


# --- What it is for ------------------------------------------------------------------------------


def share(table, rows) -> float:
    losses = np.column_stack([-table.observed.mean(axis=1), table.known_costs[:, 0]])
    reference = losses.max(axis=0)
    return pareto.hypervolume(losses[rows], reference) / pareto.hypervolume(losses, reference)


def looked_up(table, trial):
    """The row of a trial, which keeps the records of a search."""
    evaluator = TableEvaluator(table)
    candidate = evaluator.candidate(trial)
    trial.set_user_attr("profile", evaluator.profile(candidate))
    trial.set_user_attr("evaluation", evaluator.train(candidate))
    return candidate.config


def trained_rows(table, name: str, count: int, seed: int) -> list[int]:
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=registry.controller(name, seed=seed)
    )
    rows = []
    for _ in range(count):
        trial = study.ask()
        config = looked_up(table, trial)
        study.tell(trial, [table.quality(config), *table.costs(config)])
        rows.append(config.row)
    return rows


def test_finds_more_of_the_front_than_random_with_twice_the_networks(shared_data):
    ours, theirs = [], []
    for device in ("1080ti_1", "gold_6226"):
        table = load(shared_data / "nas" / "nasbench201_cifar100.npz", cost=device)
        for seed in range(2):
            ours.append(share(table, trained_rows(table, "surrogate", 60, seed)))
            theirs.append(share(table, trained_rows(table, "random", 120, seed)))
    assert np.mean(ours) > np.mean(theirs) + 0.01


def test_lands_on_a_budget(shared_data):
    table = load(shared_data / "nas" / "nasbench201_cifar100.npz", cost="1080ti_1")
    quality, costs = table.observed[:, 0], table.known_costs[:, 0]
    front = np.sort(costs[pareto.front(np.column_stack([-quality, costs]))])
    target = float(front[len(front) // 2])
    reward = Reward("absolute", (target,))
    sampler = registry.controller("surrogate", seed=0, reward=reward)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    rows = []
    for _ in range(120):
        trial = study.ask()
        config = looked_up(table, trial)
        study.tell(trial, float(reward([table.quality(config)], [table.costs(config)])[0]))
        rows.append(config.row)
    picked = rows[pareto.winner(quality[rows], costs[rows][:, None], [target])]
    assert abs(costs[picked] / target - 1) <= 0.03
    assert quality[picked] >= quality[costs <= target].max() - 0.003


def test_cost_of_a_proposal_does_not_grow():
    """Functions called by ask and tell, beside what random calls on an equal study."""
    rng = np.random.default_rng(0)
    names = [f"block{i}/{n}" for i in range(5) for n in "abcdef"]
    places = optuna.distributions.CategoricalDistribution((0, 1, 2))
    past = []
    for _ in range(2000):
        params = {name: int(rng.integers(3)) for name in names}
        values = [sum(params.values()) / 60, 1.0 + params[names[0]]]
        past.append(
            optuna.trial.create_trial(
                params=params, distributions=dict.fromkeys(names, places), values=values
            )
        )
    studies = {
        name: optuna.create_study(
            directions=["maximize", "minimize"], sampler=registry.controller(name, seed=0)
        )
        for name in ("surrogate", "random")
    }
    called = dict.fromkeys(studies, 0)
    for study in studies.values():
        study.add_trials(past)
    for turn in range(21):
        for name, study in studies.items():
            with counted() as calls:
                trial = study.ask(dict.fromkeys(names, places))
                study.tell(trial, [sum(trial.params.values()) / 60, 1.0 + trial.params[names[0]]])
            if turn:  # the first reads the history
                called[name] += calls[0]
    assert called["surrogate"] < 1.5 * called["random"]

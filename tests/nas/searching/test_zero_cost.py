"""Zero-cost scores against hand and NumPy, and as a filter of a search."""

import dataclasses
import json

import keras
import numpy as np
import optuna
import pytest
from keras import layers

from nas import registry
from nas.cli.command_line import main
from nas.locks import Flock
from nas.networks import build
from nas.searching import zero_cost
from nas.searching.candidate import Candidate
from nas.searching.leases import Worker
from nas.searching.loop import explore, trained
from nas.searching.objective import Objective
from nas.searching.reward import Reward
from nas.searching.storage import open_storage
from nas.tasks.task import Task
from nas.training import loop

optuna.logging.set_verbosity(optuna.logging.ERROR)


# --- synflow ------------------------------------------------------------------------------------


def two_layers(activation: str, norm: bool) -> keras.Model:
    inputs = keras.Input((2,))
    x = layers.Dense(2, name="one")(inputs)
    x = layers.BatchNormalization(name="norm")(x) if norm else x
    x = layers.Activation(activation)(x)
    model = keras.Model(inputs, layers.Dense(1, name="two")(x))
    model.get_layer("one").set_weights([np.array([[1, -2], [3, 0.5]]), np.array([-1.0, 0])])
    model.get_layer("two").set_weights([np.array([[-1.0], [2]]), np.array([5.0])])
    if norm:
        weights = [np.array(pair) for pair in ([7.0, -7], [1.0, 2], [3.0, 4], [0.1, 0.2])]
        model.get_layer("norm").set_weights(weights)
    return model


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "swish", "relu6"])
def test_synflow_is_what_a_hand_finds(activation, norm):
    """Ones give (1+3+1, 2+.5) = (5, 2.5); kernels: 5*1 + 2.5*2 = 10, and (1+3)*1 + (2+.5)*2 = 9."""
    model = two_layers(activation, norm)
    before = model.get_weights()
    assert zero_cost.synflow(model) == pytest.approx(np.log(10 + 9), rel=1e-12)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_synflow_of_a_convolution_with_a_shortcut():
    """A 2 x 2 image of ones, 1x1 kernels of -2 and 3, and the input added between: 1 + 2 = 3."""
    inputs = keras.Input((2, 2, 1))
    x = layers.Conv2D(1, 1, use_bias=False, activation="relu", name="one")(inputs)
    x = layers.Add()([x, inputs])
    model = keras.Model(inputs, layers.Conv2D(1, 1, use_bias=False, name="two")(x))
    model.set_weights([np.full((1, 1, 1, 1), -2.0), np.full((1, 1, 1, 1), 3.0)])
    # Of the sum over 4 pixels of 3 * (1 + 2): by 3 it is 36, by 2 it is 24.
    assert zero_cost.synflow(model) == pytest.approx(np.log(36 + 24), rel=1e-12)


def test_synflow_of_a_deep_network_exceeds_single_precision():
    inputs = x = keras.Input((10,))
    for _ in range(40):
        x = layers.Dense(10, use_bias=False, activation="relu")(x)
    model = keras.Model(inputs, x)
    model.set_weights([np.full((10, 10), -10.0) for _ in range(40)])
    # Each layer makes 100 of 1, and each has the whole flow, 10 * 100^40 = 10^81.
    assert zero_cost.synflow(model) == pytest.approx(np.log(40) + 81 * np.log(10), rel=1e-9)


def test_where_nothing_flows():
    model = two_layers("relu", norm=True)
    model.get_layer("two").set_weights([np.zeros((2, 1)), np.ones(1)])
    assert zero_cost.synflow(model) == -np.inf


# --- naswot -------------------------------------------------------------------------------------


def convolutional(activation: str = "relu") -> keras.Model:
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(3, 3, name="conv")(inputs)
    x = layers.BatchNormalization(epsilon=1e-3, name="norm")(x)
    x = layers.Activation(activation)(x)
    x = layers.Flatten()(layers.Dropout(0.9)(x))
    x = layers.Dense(5, activation=activation, name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    generator = np.random.default_rng(0)
    model.get_layer("conv").set_weights([generator.normal(size=(3, 3, 1, 3)), np.ones(3)])
    model.get_layer("hidden").set_weights([generator.normal(size=(12, 5)), np.zeros(5)])
    return model


def reference(model: keras.Model, images: np.ndarray) -> float:
    """By the definition: units less the Hamming distance, of codes found in NumPy."""
    kernel, bias = model.get_layer("conv").get_weights()
    windows = np.lib.stride_tricks.sliding_window_view(images[..., 0], (3, 3), axis=(1, 2))
    x = np.einsum("nijhw,hwc->nijc", windows, kernel[:, :, 0]) + bias
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3)
    x = np.maximum(x, 0).reshape(len(images), -1)
    hidden = x @ model.get_layer("hidden").get_weights()[0]
    codes = np.concatenate([x > 0, hidden > 0], axis=1)
    agree = codes.shape[1] - (codes[:, None] != codes[None]).sum(axis=2)
    return np.linalg.slogdet(agree)[1]


def test_naswot_is_what_numpy_finds():
    model, images = convolutional(), np.random.default_rng(1).normal(size=(6, 4, 4, 1))
    before = model.get_weights()
    found = zero_cost.naswot(model, images.astype(np.float32))
    assert found == pytest.approx(reference(model, images), rel=1e-6)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_images_that_look_alike_have_no_volume():
    images = np.random.default_rng(1).normal(size=(6, 4, 4, 1)).astype(np.float32)
    images[3] = images[0]
    assert zero_cost.naswot(convolutional(), images) == -np.inf


def test_a_smooth_rectifier_has_the_pattern_of_its_input():
    """The first layer's codes do not depend on the function; without the second they are all."""
    images = np.random.default_rng(1).normal(size=(6, 4, 4, 1)).astype(np.float32)
    scores = []
    for activation in ("relu", "swish", "hard_swish", "gelu", "relu6", "leaky_relu"):
        model = convolutional(activation)
        model.get_layer("hidden").activation = keras.activations.tanh
        scores.append(zero_cost.naswot(model, images))
    assert scores == pytest.approx([scores[0]] * 6, rel=1e-9)
    assert scores[0] != pytest.approx(zero_cost.naswot(convolutional(), images), rel=1e-3)


def test_what_has_no_rectifier_is_refused():
    inputs = keras.Input((4, 4, 1))
    with pytest.raises(ValueError, match="has no rectifier"):
        zero_cost.naswot(
            keras.Model(inputs, layers.Flatten()(inputs)), np.zeros((2, 4, 4, 1), np.float32)
        )


# --- Of a task ----------------------------------------------------------------------------------


def a_task(count: int, side: int) -> Task:
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 1)).astype(np.uint8)
    part = (images, np.zeros(count, np.int32))
    return Task(part, part, "some", {"input_shape": (side, side, 1), "classes": 10}, "some")


def test_the_minibatch_depends_on_the_task_only():
    model = convolutional()
    batch = zero_cost.minibatch(model, a_task(500, 32))
    assert batch.shape == (128, 32, 32, 1) and batch.dtype == np.float32
    assert 0.9 < batch.max() <= 1.0
    np.testing.assert_array_equal(batch, zero_cost.minibatch(convolutional(), a_task(500, 32)))
    assert len(zero_cost.minibatch(model, a_task(500, 224))) == 16
    assert len(zero_cost.minibatch(model, a_task(40, 32))) == 40
    with pytest.raises(ValueError, match="no zero-cost score 'guess'"):
        zero_cost.score("guess", model, a_task(2, 4))


@pytest.mark.parametrize("family", ["mnasnet", "mobilenet_v2", "efficientnet"])
def test_families_have_scores_and_train_as_without(family):
    """Scored between building and training, a network trains to the same bits."""
    _, config = registry.network(f"{family}:tiny")
    task = a_task(64, 32)
    config = build.for_task(config, task.fields, "some")
    curves = []
    for scored in (False, True):
        model = build.build(config)
        if scored:
            found = {n: zero_cost.score(n, model, task) for n in ("synflow", "naswot", "flops")}
            assert all(np.isfinite(value) and value > 0 for value in found.values()), found
        curves.append(loop.fit(model, task, 1, 0).history[-1].valid_loss)
    assert curves[0] == curves[1]


def of_fixed_weights():
    """synflow and naswot of a network with weights that NumPy draws."""
    family, config = registry.network("mnasnet:tiny")
    config = dataclasses.replace(config, blocks=config.blocks[:3])
    model = family.build(config)
    generator = np.random.default_rng(0)
    model.set_weights(
        [
            np.ones(weight.shape)
            if "var" in weight.path
            else generator.normal(size=weight.shape) / 8
            for weight in model.weights
        ]
    )
    images = generator.uniform(size=(32, *config.input_shape)).astype("float32")
    return zero_cost.synflow(model), zero_cost.naswot(model, images)


@pytest.mark.slow
def test_backends_agree(on_jax):
    """The same weights on each backend."""
    (flow, patterns), (flow_jax, patterns_jax) = of_fixed_weights(), on_jax(of_fixed_weights)
    assert flow == pytest.approx(flow_jax, rel=1e-9)
    # A unit that is 0 up to rounding may be on in one and off in the other.
    assert patterns == pytest.approx(patterns_jax, rel=1e-4)


# --- As a filter --------------------------------------------------------------------------------


class Towers:
    """Networks of three layers of width 1..5: cost is their sum, quality grows with the last."""

    def candidate(self, trial):
        names = [f"width{i}" for i in range(3)]
        return Candidate(tuple(trial.suggest_categorical(name, (1, 2, 3, 4, 5)) for name in names))

    def key(self, candidate):
        return "-".join(map(str, candidate.config))

    def profile(self, candidate):
        return {"key": self.key(candidate), "costs": [float(sum(candidate.config))]}

    def train(self, candidate, **_):
        return {"quality": candidate.config[2] / 10, "curve": [], "stopped": False}

    def forget(self):
        pass


def rounds(folder, controller: str, reward: str | None, score, trials: int = 12):
    """What was asked in each round: [(config, record, whether it was trained)]."""
    objective = Objective((9.0,), Reward(reward, (9.0,)) if reward else None)
    study = optuna.create_study(
        study_name="s",
        storage=open_storage(folder),
        sampler=registry.controller(controller, seed=0, reward=objective.reward),
        directions=objective.directions,
        load_if_exists=True,
    )
    worker = Worker(Flock(folder / "locks"), "s")
    try:
        options = {"trials": trials, "worker": worker, "profiles": 4, "score": score}
        explore(study, Towers(), objective, **options)
    finally:
        worker.leave()
    assert len(trained(study)) == trials
    found: dict[str, list] = {}
    for trial in study.trials:
        record = trial.user_attrs["profile"]
        if "duplicate_of" not in record and not objective.hopeless(record):
            config = Towers().candidate(optuna.trial.FixedTrial(trial.params)).config
            part = (config, record, "evaluation" in trial.user_attrs)
            found.setdefault(trial.user_attrs["round"], []).append(part)
    return list(found.values())


def last_width(candidate) -> float:
    return float(candidate.config[2])


def test_without_an_opinion_of_the_controller_the_best_score_within_budget_is_trained(tmp_path):
    chosen = 0
    for part in rounds(tmp_path, "random", "absolute", last_width):
        assert all(record["score"] == config[2] for config, record, _ in part)
        fitting = [one for one in part if sum(one[0]) <= 9]
        (picked,) = [config for config, _, was_trained in part if was_trained]
        if fitting:
            assert sum(picked) <= 9 and picked[2] == max(config[2] for config, _, _ in fitting)
            chosen += len({config[2] for config, _, _ in fitting}) > 1
    assert chosen > 5  # times that the score had something to decide


def test_a_controller_chooses_among_the_better_half(tmp_path):
    halves, not_best = 0, 0
    for part in rounds(
        tmp_path, "surrogate", "absolute", lambda candidate: -last_width(candidate), 25
    ):
        fitting = [config for config, _, _ in part if sum(config) <= 9]
        (picked,) = [config for config, _, was_trained in part if was_trained]
        if len(fitting) > 1:
            better = sorted(config[2] for config in fitting)[: (len(fitting) + 1) // 2]
            assert picked[2] <= better[-1]
            halves += 1
            not_best += picked[2] > better[0]
    assert halves > 5 and not_best > 0


def test_without_a_scalar_the_front_of_score_and_cost_is_left(tmp_path):
    dominated = 0
    for part in rounds(tmp_path, "nsgaii", None, last_width):
        points = [(config[2], sum(config)) for config, _, _ in part]
        (picked,) = [(config[2], sum(config)) for config, _, was_trained in part if was_trained]
        beaten = [
            any(s >= score and c <= cost and (s, c) != (score, cost) for s, c in points)
            for score, cost in points
        ]
        assert not beaten[points.index(picked)]
        dominated += sum(beaten)
    assert dominated > 5


def test_the_filter_resumes_with_its_scores(tmp_path):
    """What a study of 12 does is what one of 5 does that goes on to 12."""
    whole = rounds(tmp_path / "a", "evolution", "absolute", last_width)
    rounds(tmp_path / "b", "evolution", "absolute", last_width, trials=5)
    again = rounds(tmp_path / "b", "evolution", "absolute", last_width)
    assert sum(again, []) == sum(whole, [])


@pytest.mark.slow
def test_search_with_a_filter(tmp_path, capsys):
    search = ["search", "--out", str(tmp_path), "--study", "s", "--task", "digits"]
    search += ["--target", "cpu:threads=1", "--budget-ms", "5", "--epochs", "1"]
    search += ["--finalists", "0", "--controller", "random", "--profiles", "2", "--json"]
    assert main([*search, "--filter", "naswot", "--trials", "1"]) == 0
    assert json.loads(capsys.readouterr().out)
    study = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "s"))
    scores = [trial.user_attrs["profile"]["score"] for trial in study.trials]
    (picked,) = [i for i, trial in enumerate(study.trials) if "evaluation" in trial.user_attrs]
    assert len(scores) == 2 and scores[picked] == max(scores)
    assert main([*search, "--filter", "synflow", "--trials", "2"]) == 2
    assert "filter was naswot, now synflow" in capsys.readouterr().err


def test_a_filter_that_cannot_be_is_refused(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("a,quality,cost\n1,0.5,1\n2,0.6,2\n")
    out = ["search", "--out", str(tmp_path), "--budget-ms", "2", "--trials", "1"]
    assert main([*out, "--task", f"table:{tmp_path}/t.csv", "--filter", "synflow"]) == 2
    assert "has figures only" in capsys.readouterr().err
    assert main([*out, "--task", "digits", "--filter", "guess"]) == 2
    assert "--filter guess: expected one of synflow, naswot, flops, params" in (
        capsys.readouterr().err
    )

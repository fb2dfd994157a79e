"""Each check of nas.testing catches plug-ins that are broken in the ways plug-ins break."""

import dataclasses
import itertools
import random
import sys
import types
from typing import ClassVar

import keras
import numpy as np
import optuna
import pytest

from compress.method import LOSS, Method, NotApplicable
from compress.rewriting import graph
from families import mnasnet
from latency.target import Kind, Target, Timing
from nas import testing
from nas.tasks.task import Task
from nas.testing.families import _check_configs
from search_spaces import mnasnet as mnasnet_space

# --- Families ----------------------------------------------------------------------------------

FAMILY = """
import dataclasses
import keras


@dataclasses.dataclass(frozen=True)
class Config:
    input_shape: tuple[int, ...] = (6, 6, 1)
    classes: int = 3
    filters: int = 4


VARIANTS = {"tiny": Config(), "wide": Config(filters=8)}


class Own(keras.layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


def build(config):
    inputs = keras.Input(config.input_shape, name="image")
    x = keras.layers.Conv2D(config.filters, 3, name="conv")(inputs)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(config.classes, name="head")(x)
    return keras.Model(inputs, outputs, name="mine")
"""
_numbers = itertools.count()


@pytest.fixture
def family():
    """A function: the module of FAMILY with some of its text replaced."""
    made = []

    def make(old="", new=""):
        assert old in FAMILY
        module = types.ModuleType(f"broken_family_{next(_numbers)}")
        made.append(module.__name__)
        sys.modules[module.__name__] = module
        exec(FAMILY.replace(old, new, 1), vars(module))
        return module

    yield make
    for name in made:
        del sys.modules[name]


def test_a_sound_family_passes(family):
    testing.check_family(family())


HEAD = 'outputs = keras.layers.Dense(config.classes, name="head")(x)'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def build(config)", "def builds(config)", "has no build"),
        ('"tiny": Config()', '"small": Config()', "has no 'tiny'"),
        ("(frozen=True)", "", "no frozen dataclass"),
        ("(6, 6, 1)", "dataclasses.field(default_factory=lambda: [6, 6, 1])", "has no hash"),
        ("(frozen=True)", "(frozen=True, repr=False)", "is no program"),
        ("filters: int = 4", "filters: int = dataclasses.field(default=4, repr=False)", "another"),
        ("Config(filters=8)", "Config()", "2 names of 1 networks"),
        (
            HEAD,
            'outputs = keras.Sequential([keras.layers.Dense(3)], name="head")(x)',
            "leaf layers",
        ),
        (
            HEAD,
            "outputs = keras.layers.TimeDistributed(keras.layers.Dense(3))(x[:, None])",
            "holds layers of its own",
        ),
        ('name="relu"', "name=None", "name every layer|expected a path"),
        ('name="relu"', 'name="ReLU-1"', "expected a path of words"),
        ('name="head"', 'name="head", activation="softmax"', "expected logits"),
        ("Dense(config.classes", "Dense(4", r"expected \(8, 3\)"),
        ("keras.layers.ReLU(", "Own(", "does not load|nothing says what"),
        ("(6, 6, 1)", "(None, None, 1)", r"expected \(None, sizes\)"),
        ("ReLU(", "Lambda(lambda x: keras.ops.stop_gradient(x * 0 + 1e9), ", "does not load|loss"),
    ],
)
def test_broken_families_are_caught(family, old, new, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        testing.check_family(family(old, new))


def test_an_alias_of_another_network_is_caught(family):
    module = family()
    module.ALIASES = {"wide": "tiny"}
    with pytest.raises(AssertionError, match="their Configs differ"):
        _check_configs(module, "mine")


def test_a_deployed_form_with_other_weights_is_caught(family):
    module = family()
    module.deploy = lambda config: dataclasses.replace(config, filters=5)
    with pytest.raises(AssertionError, match="is not in the trained network"):
        testing.check_family(module)


# --- Spaces ------------------------------------------------------------------------------------

TINY = mnasnet.VARIANTS["tiny"]


def _with_head(trial, filters):
    return dataclasses.replace(TINY, head_filters=filters)


def _nothing(trial):
    return TINY


def _changing(trial):
    wide = trial.suggest_categorical("wide", (False, True))
    return _with_head(trial, trial.suggest_categorical("head", (64, 128) if wide else (8, 16)))


def _of_the_trial(trial):
    return _with_head(trial, trial.suggest_categorical(f"head{trial.number}", (8, 16)))


def _drawn(trial):
    trial.suggest_categorical("head", (8, 16))
    return _with_head(trial, random.choice(range(8, 800, 8)))


def _unused(trial):
    trial.suggest_categorical("head", (8, 16))
    return TINY


def _of_tuples(trial):
    return _with_head(trial, trial.suggest_categorical("head", ((8, 1), (16, 2)))[0])


def _single(trial):
    trial.suggest_categorical("stem", (3,))
    return _with_head(trial, trial.suggest_categorical("head", (8, 16)))


def _no_config(trial):
    return {"head": trial.suggest_categorical("head", (8, 16))}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (_nothing, "chooses nothing"),
        (_changing, "dynamic value space"),
        (_of_the_trial, "lead to other ones"),
        (_drawn, "the same choices"),
        (_unused, "all gave"),
        (_of_tuples, r"offers \(8, 1\)"),
        (_single, "stem has one value only"),
        (_no_config, "dict is no frozen dataclass"),
    ],
)
@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_broken_spaces_are_caught(sample, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_space(sample)


def test_a_baseline_of_another_family_is_caught():
    from families import vit

    with pytest.raises(AssertionError, match="the baseline is a families.vit network"):
        testing.check_space(mnasnet_space.sample, vit.VARIANTS["tiny"])


# --- Tasks -------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 4, 4, 1)).astype("float32")
Y = np.arange(60) % 3


def _task(x=X, y=Y, valid=slice(40, None), **fields):
    return Task((x[:40], y[:40]), (x[valid], y[valid]), **fields)


def test_a_sound_task_passes():
    testing.check_task(_task())
    testing.check_task(_task)


def _endless(array):
    changed = array.copy()
    changed[3] = np.nan
    return changed


def _brighter_in_place(inputs, targets, generator):
    inputs += 1
    return inputs, targets


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _task(fields={"input_shape": (4, 4, 1), "classes": 2}), "from 0 to 2; expected 0"),
        (lambda: _task(fields={"input_shape": (4, 4, 3), "classes": 3}), "fields say input_shape"),
        (lambda: _task(y=Y - 1), "from -1 to"),
        (lambda: _task(x=_endless(X)), "not finite"),
        (lambda: _task(x=X.astype("float64")), "array of float64"),
        (lambda: _task(valid=slice(0, 20)), "all examples of valid are in train"),
        (lambda: _task(training={"epoch": 3}), "epoch"),
        (lambda: _task(loss=lambda outputs, labels: outputs.mean()), r"loss gave \(\)"),
        (lambda: _task(loss=lambda outputs, labels: outputs[:, 0] * 0), "expected a lower loss"),
        (
            lambda: _task(scorer=lambda model, predict: lambda x, y: predict(x).sum(-1)),
            "on average from 0 to 1",
        ),
        (lambda: _task(augment=_brighter_in_place), "augment changes the arrays"),
        (lambda: _task(augment=lambda x, y, generator: (x[:, :2], y)), "augment makes"),
        (lambda: Task((X, Y), (X[:, :2], Y)), "expected the same"),
        (lambda: "digits", "load gave a str"),
    ],
)
def test_broken_tasks_are_caught(make, message):
    with pytest.raises((AssertionError, ValueError, TypeError), match=message):
        made = make()
        testing.check_task(made if isinstance(made, Task) else make)


def test_a_task_that_is_another_each_time_is_caught():
    generator = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="loaded twice"):
        testing.check_task(lambda: _task(x=generator.normal(size=X.shape).astype("float32")))


# --- Targets -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Board(Target):
    """A made-up board, a millisecond for a thousand weights."""

    factor: float = 1.0
    kinds: ClassVar = frozenset({Kind.PREDICTED})

    @property
    def device(self):
        return "board"

    def identity(self):
        return {}

    def measure(self, model, batch_size, warmup, runs, details):
        return Timing((self.factor * model.count_params() / 1000,) * runs, {}, Kind.PREDICTED)


class Measuring(Board):
    def measure(self, model, batch_size, warmup, runs, details):
        return dataclasses.replace(super().measure(model, 1, 0, runs, False), kind=Kind.MEASURED)


class Few(Measuring):
    kinds: ClassVar = frozenset({Kind.MEASURED})

    def measure(self, model, batch_size, warmup, runs, details):
        return super().measure(model, 1, 0, 1, False)


class Shrinking(Board):
    def measure(self, model, batch_size, warmup, runs, details):
        return Timing((1 / model.count_params(),) * runs, {}, Kind.PREDICTED)


class Unsaved(Board):
    def measure(self, model, batch_size, warmup, runs, details):
        return Timing((float(model.count_params()),), {"at": object()}, Kind.PREDICTED)


class Restless(Board):
    def identity(self):
        return {"at": next(_numbers)}


class Ambiguous(Board):
    kinds: ClassVar = frozenset({Kind.PREDICTED, Kind.MEASURED})


class OfFiles(Board):
    runs_tflite: ClassVar[bool] = True


class Nameless(Board):
    device = ""


@dataclasses.dataclass
class Thawed(Board.__base__):
    kinds: ClassVar = frozenset({Kind.PREDICTED})
    device = "board"
    identity = Board.identity
    measure = Board.measure


def test_a_sound_target_passes():
    testing.check_target(Board())
    testing.check_target(Board(2.0), keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Board(0.0), "expected times above 0"),
        (Board(float("nan")), "makes another one|is no program"),
        (Measuring(), "gave a measured figure"),
        (Few(), "1 samples of 5 runs"),
        (Shrinking(), "of a far larger one"),
        (Unsaved(), "JSON cannot keep its conditions"),
        (Restless(), r"identity\(\) is"),
        (Ambiguous(), "does not say which they are now"),
        (OfFiles(), "count_params"),
        (Nameless(), "expected what the device says"),
        (Thawed(), "no frozen dataclass"),
        (object(), "is no latency.target.Target"),
    ],
)
def test_broken_targets_are_caught(target, message):
    with pytest.raises((AssertionError, AttributeError), match=message):
        testing.check_target(target)


# --- Methods -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Halving(Method):
    """Halves the kernels of a copy."""

    factor: float = 0.5

    def kernels(self, model):
        found = [weight for weight in model.trainable_weights if len(weight.shape) > 1]
        if not found:
            raise NotApplicable("no kernels to halve")
        return found

    def copied(self, model):
        return graph.rewrite(model, lambda layer, copy: copy)

    def finalize(self, model, data, record):
        copy = self.copied(model)
        for weight in self.kernels(copy):
            weight.assign(weight * self.factor)
        return copy


class InPlace(Halving):
    def copied(self, model):
        return model


class Idle(Halving):
    def finalize(self, model, data, record):
        self.kernels(model)
        return self.copied(model)


class Silent(Halving):
    def kernels(self, model):
        return [weight for weight in model.trainable_weights if len(weight.shape) > 1]


class Crashing(Halving):
    def kernels(self, model):
        found = [weight for weight in model.trainable_weights if len(weight.shape) > 1]
        return [found[0], *found[1:]]


class Noisy(Halving):
    def finalize(self, model, data, record):
        copy = self.copied(model)
        for weight in self.kernels(copy):
            weight.assign(weight + np.random.default_rng().normal(size=weight.shape))
        return copy


class Headless(Halving):
    def finalize(self, model, data, record):
        return keras.Model(model.input, model.layers[-2].output)


class Nested(Halving):
    def finalize(self, model, data, record):
        inputs = keras.Input(model.input.shape[1:], name="image")
        return keras.Model(inputs, super().finalize(model, data, record)(inputs))


class Lying(Halving):
    def finalize(self, model, data, record):
        from compress.rewriting.record import Weight

        weight = self.kernels(model)[0]
        record.weights[weight.path] = Weight(mask=np.zeros(weight.shape, bool))
        return super().finalize(model, data, record)


class Exploding(Halving):
    def __init__(self):
        super().__init__(float("inf"))

    def __repr__(self):
        return "Exploding()"


class Staged(Halving):
    stage: ClassVar[int] = LOSS + 1


@dataclasses.dataclass(frozen=True)
class Required(Method):
    factor: float


def test_a_sound_method_passes():
    testing.check_method(Halving())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (InPlace(), "changes the model that it is given"),
        (Idle(), "changes nothing and says nothing"),
        (Silent(), "does nothing to a network without weights"),
        (Crashing(), "IndexError.*expected compress.method.NotApplicable"),
        (Noisy(), "done twice"),
        (Headless(), "the output is"),
        (Nested(), "holds layers of its own"),
        (Lying(), "pruned values are not 0"),
        (Exploding(), "not finite"),
        (Staged(), "stage 3"),
        (Required(1.0), "'factor' has no default"),
        (object(), "is no compress.method.Method"),
    ],
)
def test_broken_methods_are_caught(method, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        testing.check_method(method)


# --- Controllers -------------------------------------------------------------------------------


class Drawing(optuna.samplers.BaseSampler):
    """Random search, from a generator that the sampler has: not of the study."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, name, distribution):
        return distribution.choices[self.rng.integers(len(distribution.choices))]


class OfTheTrial(Drawing):
    """Pure: a generator for each trial, of the seed and how many there were."""

    def __init__(self, seed):
        self.seed = seed

    def sample_independent(self, study, trial, name, distribution):
        done = [one for one in study.get_trials(deepcopy=False) if one.state.name != "FAIL"]
        rng = np.random.default_rng([self.seed or 0, len(done), *name.encode()])
        return distribution.choices[rng.integers(len(distribution.choices))]


def test_a_pure_controller_passes():
    testing.check_controller(OfTheTrial, trials=12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Drawing, "resumed after trial"),
        (lambda seed: Drawing(None), "resumed after trial"),
        (lambda seed: OfTheTrial(0), "seeds 0 and 1 both begin"),
        (lambda seed: object(), "is no optuna.samplers.BaseSampler"),
    ],
)
def test_broken_controllers_are_caught(make, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_controller(make, objectives=[("maximize",)], trials=12)


# --- Layers ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("checks")
class Times(keras.layers.Layer):
    """x times kernel, of a size."""

    def __init__(self, units=3, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.scale = scale

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def call(self, inputs):
        return self.scale * keras.ops.matmul(inputs, self.kernel)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def macs(self, shape):
        return int(np.prod(shape)) * self.units

    def kernels(self):
        return {"kernel": ("dense", 1, (0,))}

    def channels(self, graph, node, labels):
        outputs = graph.fresh(self.units, self.name)
        graph.slot(self, "kernel", 0, labels[0], "in", node.input_tensors[0])
        graph.slot(self, "kernel", 1, outputs, "out")
        return [outputs]

    def litert(self, graph, inputs, shape):
        kernel = graph.constant(self.scale * self.get_weights()[0].T, f"{self.name}/kernel")
        bias = graph.constant(np.zeros(self.units), f"{self.name}/bias")
        return graph.add("FULLY_CONNECTED", [*inputs, kernel, bias], shape, self.name, {})

    def get_config(self):
        return super().get_config() | {"units": self.units, "scale": self.scale}


def _broken(**members):
    kind = type("Broken", (Times,), members | {"__module__": __name__})
    return keras.saving.register_keras_serializable("checks", f"Broken{next(_numbers)}")(kind)


EXAMPLES = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")


def test_a_sound_layer_passes():
    testing.check_layer(Times(3, scale=2.0), EXAMPLES)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"get_config": lambda self: keras.layers.Layer.get_config(self) | {"units": 3}},
            "lacks scale",
        ),
        (
            {"get_config": lambda self: Times.get_config(self) | {"scale": self.scale + 1}},
            "changes scale",
        ),
        ({"compute_output_shape": lambda self, shape: (*shape, 3)}, "compute_output_shape says"),
        ({"macs": lambda self, shape: 1.5}, "expected a whole number"),
        ({"kernels": lambda self: {"weight": ("dense", 1, (0,))}}, "no weight of the layer"),
        ({"kernels": lambda self: {"kernel": ("flat", 1, (0,))}}, "kind 'flat'"),
        ({"kernels": lambda self: {"kernel": ("dense", 1, (1,))}}, "the output's not among"),
        ({"channels": lambda self, graph, node, labels: [labels[0]]}, r"gave labels \(5,\)"),
        (
            {"litert": lambda self, graph, inputs, shape: Times.litert(
                type("Half", (), {"scale": 0.5, "units": 3, "name": "half",
                                  "get_weights": self.get_weights})(), graph, inputs, shape)},
            "litert: output .* off by",
        ),
    ],
)  # fmt: skip
def test_broken_layers_are_caught(members, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_layer(_broken(**members)(3), EXAMPLES)


def test_layers_that_files_cannot_name_are_caught():
    class Unregistered(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    with pytest.raises(AssertionError, match="is not registered"):
        testing.check_layer(Unregistered(), EXAMPLES)


def test_layers_of_layers_are_caught():
    class Composite(Times):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = keras.layers.Dense(3)

    keras.saving.register_keras_serializable("checks", "Composite")(Composite)
    with pytest.raises(AssertionError, match="holds layers of its own"):
        testing.check_layer(Composite(), EXAMPLES)

"""Things of the user's: in files, in modules, in an installed package; on every command."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]

FILES = {
    "my_layers.py": '''
        """A layer of the user's."""

        import math

        import keras


        @keras.saving.register_keras_serializable("mine")
        class Scale(keras.layers.Layer):
            """x times a weight of each channel."""

            def build(self, shape):
                self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

            def call(self, inputs):
                return inputs * self.factor

            def macs(self, shape):
                return math.prod(shape)
        ''',
    "my_family.py": '''
        """A family of the user's."""

        import dataclasses

        import keras
        from my_layers import Scale


        @dataclasses.dataclass(frozen=True)
        class Config:
            input_shape: tuple[int, ...] = (8, 8, 1)
            classes: int = 10
            filters: int = 8


        VARIANTS = {"tiny": Config(), "wide": Config(filters=16)}


        def build(config):
            inputs = keras.Input(config.input_shape, name="image")
            x = keras.layers.Conv2D(config.filters, 3, padding="same", name="conv")(inputs)
            x = Scale(name="scaled")(x)
            x = keras.layers.ReLU(name="relu")(x)
            x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
            return keras.Model(inputs, keras.layers.Dense(config.classes, name="head")(x))
        ''',
    "my_space.py": '''
        """A space of the user's."""

        import dataclasses

        from my_family import VARIANTS


        def baseline(base="tiny"):
            return VARIANTS[base]


        def sample(trial, base="tiny"):
            filters = trial.suggest_categorical("filters", (4, 8, 12))
            return dataclasses.replace(VARIANTS[base], filters=filters)
        ''',
    "my_task.py": '''
        """A task of the user's."""

        import numpy as np

        from nas.tasks.task import Task


        def load(size=8, seed=0):
            y = np.arange(120) % 10
            x = np.random.default_rng(seed).normal(size=(120, size, size, 1)).astype("float32")
            x += y[:, None, None, None].astype("float32")
            return Task((x[:80], y[:80]), (x[80:], y[80:]), "mine", training={"epochs": 1})
        ''',
    "my_board.py": '''
        """A board of the user's."""

        import dataclasses
        from typing import ClassVar

        from latency.target import Kind, Target, Timing


        @dataclasses.dataclass(frozen=True)
        class Board(Target):
            """`factor` milliseconds for a thousand bytes of the file."""

            factor: float = 1.0
            kinds: ClassVar = frozenset({Kind.PREDICTED})
            runs_tflite: ClassVar[bool] = True

            @property
            def device(self):
                return "my board"

            def identity(self):
                return {}

            def measure(self, model, batch_size, warmup, runs, details):
                from latency.tflite import convert

                ms = self.factor * len(convert.bytes_of(model)) / 1000
                return Timing((ms,) * runs, {}, Kind.PREDICTED)


        def helper():
            pass
        ''',
    "rounding.py": '''
        """A method of the user's."""

        import dataclasses

        import numpy as np

        from compress.method import Method, NotApplicable
        from compress.rewriting import graph


        @dataclasses.dataclass(frozen=True)
        class Tiny(Method):
            """Rounds kernels to multiples of `step`."""

            step: float = 0.1

            def finalize(self, model, data, record):
                copy = graph.rewrite(model, lambda layer, copy: copy)
                kernels = [weight for weight in copy.trainable_weights if len(weight.shape) > 1]
                if not kernels:
                    raise NotApplicable("no kernels to round")
                for weight in kernels:
                    weight.assign(np.round(np.asarray(weight) / self.step) * self.step)
                return copy


        class Other(Tiny):
            """A second one."""
        ''',
    "my_search.py": '''
        """A controller of the user's."""

        import numpy as np
        from optuna.samplers import BaseSampler


        class Walk(BaseSampler):
            """Random, of the seed and the number of trials."""

            def __init__(self, seed=0):
                self.seed = seed

            def infer_relative_search_space(self, study, trial):
                return {}

            def sample_relative(self, study, trial, search_space):
                return {}

            def sample_independent(self, study, trial, name, distribution):
                done = [t for t in study.get_trials(deepcopy=False) if t.state.name != "FAIL"]
                rng = np.random.default_rng([self.seed or 0, len(done), *name.encode()])
                return distribution.choices[rng.integers(len(distribution.choices))]
        ''',
}


def write(folder: pathlib.Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(textwrap.dedent(text).lstrip())


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folder of the user's files, and another to work in."""
    mine, work = tmp_path_factory.mktemp("mine"), tmp_path_factory.mktemp("work")
    write(mine)
    return mine, work


def run(work: pathlib.Path, *arguments: str, code: int = 0, path: str = "") -> str:
    """`python -m nas` in another folder; what it prints on both streams."""
    environment = os.environ | {"NAS_CACHE": str(work / "cache"), "PYTHONPATH": path}
    environment |= {"NAS_PROFILES": f"sqlite:///{work}/profiles.sqlite"}
    done = subprocess.run(
        [sys.executable, "-m", "nas", *arguments],
        cwd=work, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_family_in_a_file_is_counted_timed_trained_and_compressed(places):
    mine, work = places
    family = f"{mine}/my_family.py"
    assert "178" in run(work, "count", family)
    assert "0 s" in run(work, "train", f"{family}:tiny", "--task", "digits:8", "--epochs", "1",
                        "--out", "x.keras")  # fmt: skip
    board = f"{mine}/my_board.py:Board,factor=2"
    found = run(work, "profile", family, "x.keras", "--import", f"{mine}/my_layers.py",
                "--target", board)  # fmt: skip
    assert "my board" in found and "PREDICTED" in found
    method = f"{mine}/rounding.py:Tiny,0.2"
    run(work, "compress", family, "--method", method, "--out", "x.tflite")
    assert (work / "x.tflite").stat().st_size > 500


@pytest.mark.slow
def test_a_network_with_own_layers_is_read_with_import(places):
    mine, work = places
    if not (work / "x.keras").exists():
        run(work, "train", f"{mine}/my_family.py", "--task", "digits:8", "--epochs", "1", "--out",
            "x.keras")  # fmt: skip
    x = np.random.default_rng(0).random((80, 8, 8, 1), "float32")
    np.savez(work / "train.npz", x=x, y=np.arange(80) % 10)
    run(work, "compress", "x.keras", "--import", f"{mine}/my_layers.py", "--method", "qat:4",
        "--data", "train.npz", "--epochs", "1", "--out", "a.tflite")  # fmt: skip
    # Without, the layer and the remedy are named: by this process and by the one that converts.
    for command in (["profile", "x.keras"], ["compress", "x.keras", "--method", "ptq:8", "--out",
                                             "b.tflite"]):  # fmt: skip
        text = run(work, *command, code=2)
        assert "'Scale'" in text and "--import my_layers.py" in text, text


@pytest.mark.slow
def test_a_search_of_own_files(places):
    mine, work = places
    board, method = f"{mine}/my_board.py:Board,factor=2", f"{mine}/rounding.py:Tiny,0.2"
    run(
        work, "search", "--space", f"{mine}/my_space.py", "--task", f"{mine}/my_task.py",
        "--target", board, "--method", method,
        "--controller", f"{mine}/my_search.py", "--trials", "3", "--finalists", "1",
        "--out", "runs", "--study", "mine",
    )  # fmt: skip
    config = (work / "runs" / "mine" / "config.py").read_text()
    assert "my_family.py" in config and "from my_family import Config" in config
    assert (work / "runs" / "mine" / "best.tflite").is_file()
    # What the winner's config.py says runs in a new process, in another folder.
    code = f"exec(open({str(work / 'runs' / 'mine' / 'config.py')!r}).read()); print(config)"
    done = subprocess.run([sys.executable, "-c", code], cwd=mine.parent, capture_output=True,
                          text=True)  # fmt: skip
    assert done.stdout.startswith("Config(input_shape=(8, 8, 1)"), done.stderr


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The user's files in a folder, from which this process may import; it forgets them after."""
    write(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_errors_name_what_there_is(here):
    from nas import registry

    for call, text, message in [
        (registry.target, f"{here}/my_board.py:Bord,factor=2", "no 'Bord'; did you mean 'Board'"),
        (registry.target, f"{here}/my_board.py:Tower,2", "it defines: Board, helper"),
        (registry.target, f"{here}/my_board.py:3,factor=2", "factor is given twice"),
        (registry.target, f"{here}/my_board.py:Board,speed=2", "no option 'speed'.*factor"),
        (registry.target, f"{here}/no_board.py", "no file"),
        (registry.method, f"{here}/rounding.py", "has Tiny, Other"),
        (registry.task, f"{here}/my_board.py", "expected a function load"),
        (registry.network, f"{here}/my_task.py", "expected a function build"),
        (registry.network, f"{here}/my_family.py:Config", "one of its VARIANTS"),
        (registry.network, f"{here}/my_family.py:huge", "there is: tiny, wide"),
        (registry.network, f"{here}/my_family.py:tiny,width=2", "its Config has: .*filters"),
        (registry.task, "no_such.module", "cannot import no_such.module: ModuleNotFoundError"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(text)


def test_files_that_cannot_be_modules_are_refused(here):
    from nas import registry

    (here / "my-task.py").write_text("def load(): pass")
    with pytest.raises(ValueError, match="rename the file"):
        registry.load_file(here / "my-task.py")
    (here / "random.py").write_text("")
    with pytest.raises(ValueError, match="there is another module 'random'"):
        registry.load_file(here / "random.py")
    (here / "broken_task.py").write_text("import numpy\n1 / 0\n")
    with pytest.raises(ValueError, match=r"ZeroDivisionError: division by zero .*line 2"):
        registry.load_file(here / "broken_task.py")


def test_a_file_in_a_package_is_its_module(here):
    from nas import registry

    package = here / "my_package" / "tasks"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "inner.py").write_text("from .. import tasks\nVALUE = tasks.__name__\n")
    module = registry.load_file(package / "inner.py")
    assert module.__name__ == "my_package.tasks.inner" and module.VALUE == "my_package.tasks"
    from families import mnasnet

    assert registry.module("family", mnasnet.__file__) is mnasnet  # not a second one
    for name in ("my_package", "my_package.tasks", "my_package.tasks.inner"):
        del sys.modules[name]


def test_opened_by_its_file(here):
    import nas

    network = nas.open(f"{here}/my_family.py:wide")
    assert network.config.filters == 16 and network.model.count_params() == 346
    assert nas.open(f"{here}/my_family.py").config.filters == 8


def test_the_code_of_a_family_is_in_its_key(here):
    """An edited build() meets no figures of the old one; ours keep the keys that they had."""
    from compress.qat import QAT
    from families import mnasnet
    from nas import registry
    from nas.networks.build import digest, identity_of, key

    tiny = mnasnet.VARIANTS["tiny"]
    assert key(tiny) == digest(f"families.mnasnet.{tiny!r}") and identity_of(QAT()) == repr(QAT())

    def keys() -> dict[str, str]:
        for name in FILES:
            sys.modules.pop(name.removesuffix(".py"), None)
        _, config = registry.network(f"{here}/my_family.py")
        board = registry.target(f"{here}/my_board.py:Board")
        method = registry.method(f"{here}/rounding.py:Tiny,0.2")
        return {"family": key(config), "board": identity_of(board), "method": identity_of(method)}

    first = keys()
    assert keys() == first and "Tiny(step=0.2) source=" in first["method"]
    for name, kind in (("my_layers.py", "family"), ("my_family.py", "family"),
                       ("my_board.py", "board"), ("rounding.py", "method")):  # fmt: skip
        (here / name).write_text((here / name).read_text() + "\nCHANGED = 1\n")
        now = keys()
        assert [one for one in now if now[one] != first[one]] == [kind], name
        first = now


PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "my-nas-plugin"
version = "1.0"

[project.entry-points]
"nas.families" = { mine = "my_plugin.my_family" }
"nas.spaces" = { mine_wide = "my_plugin.my_space" }
"nas.tasks" = { mine_task = "my_plugin.my_task" }
"nas.targets" = { my_board = "my_plugin.my_board:Board" }
"nas.controllers" = { walk = "my_plugin.my_search:Walk" }
"nas.methods" = { rounding = "my_plugin.rounding:Tiny" }
"nas.layers" = { mine = "my_plugin.my_layers" }

[tool.setuptools]
packages = ["my_plugin"]
"""
CHECKS = """
import nas
from nas import registry, testing
from my_plugin import my_layers
import numpy as np

testing.check_family(registry.module("family", "mine"))
testing.check_space(*registry.space("mine_wide"))
testing.check_task(lambda: registry.task("mine_task"))
testing.check_target(registry.target("my_board:2"))
testing.check_method(registry.method("rounding:0.2"))
testing.check_controller(lambda seed: registry.controller("walk", seed=seed), trials=12)
testing.check_layer(my_layers.Scale(), np.ones((2, 3), "float32"))
print("passed")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with an installed plug-in package of one thing of each kind."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    package = project / "my_plugin"
    package.mkdir()
    write(package)
    for file in package.iterdir():  # in a package, imports name it
        text = file.read_text()
        for name in ("my_layers", "my_family"):
            text = text.replace(f"from {name} import", f"from my_plugin.{name} import")
        file.write_text(text)
    # What the package imports costs `nas list` nothing.
    (package / "__init__.py").write_text('"""A plug-in."""\n\nimport keras\n')
    (project / "pyproject.toml").write_text(PYPROJECT)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
               "--no-build-isolation", "--target", str(site), str(project)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return site


@pytest.mark.slow
def test_an_installed_package_is_listed_and_named_in_flags(places, site):
    _, work = places
    listed = json.loads(run(work, "list", "--json", path=str(site)))
    for kind, name in (("family", "mine"), ("space", "mine_wide"), ("task", "mine_task"),
                       ("target", "my_board"), ("controller", "walk"),
                       ("method", "rounding")):  # fmt: skip
        assert listed[kind][name].startswith("A ") and "[my-nas-plugin]" in listed[kind][name]
    assert "did you mean 'mine_task'" in run(
        work, "train", "mine", "--task", "mine_tsk", "--out", "p.keras", code=2, path=str(site)
    )
    run(work, "train", "mine:tiny", "--task", "mine_task", "--out", "p.keras", path=str(site))
    # No --import: its layers are known by the entry point, also where it is converted.
    text = run(work, "profile", "p.keras", "--target", "my_board:2", path=str(site))
    assert "my board" in text
    run(work, "compress", "p.keras", "--method", "rounding:0.2", "--out", "p.tflite",
        path=str(site))  # fmt: skip


@pytest.mark.slow
def test_an_installed_package_passes_nas_testing(site, tmp_path):
    done = subprocess.run([sys.executable, "-c", CHECKS], cwd=tmp_path, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(site)}, text=True)  # fmt: skip
    assert done.stdout.endswith("passed\n"), done.stderr[-3000:]


HEAVY = ("keras", "tensorflow", "jax", "optuna", "numpy", "scipy", "matplotlib")


@pytest.mark.parametrize(
    "code",
    [
        "import nas; dir(nas)",
        "from nas.cli.command_line import main; main(['list'])",
        "from nas.cli.command_line import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "list", "help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code, site):
    """Nor by listing a package whose own modules import Keras."""
    code += f"\nimport sys\nprint(*(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(site)}, check=True)  # fmt: skip
    assert done.stderr.split() == []

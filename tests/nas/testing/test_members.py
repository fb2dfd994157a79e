"""Every family, space, task, target, controller, method and leaf of ours holds its contract."""

import importlib.util
import inspect
import sys

import keras
import numpy as np
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from families import decoder, layers, mobile_vmoe
from families.layers import shapes_only
from latency.target import TargetUnavailable
from nas import registry, testing
from nas.networks.build import deploy

RANDOM = np.random.default_rng(0)
CONTROLLERS = sorted(registry.listing("controller"))
# No two parameters are sampled together; in a genetic sampler not before its second generation.
INDEPENDENT = {"random", "nsgaii", "nsgaiii"}
LEAVES = [
    name
    for name, kind in vars(layers).items()
    if inspect.isclass(kind) and issubclass(kind, keras.layers.Layer) and not name.startswith("_")
]


@pytest.mark.parametrize("name", registry.listing("family"))
def test_family(name):
    testing.check_family(registry.module("family", name))


@pytest.mark.parametrize("name", registry.listing("space"))
def test_space(name):
    testing.check_space(*registry.space(name))


def _random_examples(folder) -> str:
    examples = RANDOM.random((60, 8, 8, 1), "float32")
    np.savez(folder / "examples.npz", x=examples, y=np.arange(60) % 5)
    return f"npz:{folder}/examples.npz"


def _text(folder) -> str:
    words = RANDOM.choice(["to", "be", "or", "not", "that", "is", "question"], 2000)
    (folder / "words.txt").write_text(" ".join(words))
    return f"text:{folder}/words.txt,length=16"


def _photos(folder) -> str:
    from PIL import Image

    for label in ("cats", "dogs"):
        (folder / label).mkdir()
        for number in range(30):
            pixels = RANDOM.integers(0, 255, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return f"image_folder:{folder},size=8"


TASKS = {
    "digits": lambda folder: "digits:8",
    "fashion_mnist": lambda folder: "fashion_mnist:limit=600,augmented=true",
    "image_folder": _photos,
    "npz": _random_examples,
    "data_file": lambda folder: _random_examples(folder).replace("npz:", "data_file:"),
    "routed": lambda folder: "routed:digits,size=8",
    "text": _text,
    "detection": lambda folder: "detection:bccd,size=64",
    "fsdd": lambda folder: "fsdd:frames=40",
}
OF_SHARED_DATA = {"fashion_mnist", "detection", "fsdd"}


@pytest.mark.parametrize("name", sorted(registry.listing("task").keys() - {"table"}))
def test_task(name, tmp_path, request, monkeypatch):
    if name in OF_SHARED_DATA:
        monkeypatch.setenv("NAS_DATA", str(request.getfixturevalue("shared_data")))
    text = TASKS[name](tmp_path)
    outputs = _routed if name == "routed" else None
    testing.check_task(lambda: registry.task(text), outputs)


def _routed(labels):
    logits = 10 * np.eye(10)[labels]
    return {"logits": logits, "router": logits}


TARGETS = {"cpu": "cpu:threads=1", "gpu": "gpu:h100", "tpu": "tpu:v4"}
# Those that need a device, or what was learned of one, hold the same in the tests beside them.
ELSEWHERE = {"android", "ssh", "predicted", "ray"} | ({"macos", "iphone"} - {sys.platform})


@pytest.mark.parametrize("name", sorted(registry.listing("target").keys() - ELSEWHERE))
def test_target(name):
    try:
        testing.check_target(registry.target(TARGETS.get(name, name)))
    except TargetUnavailable as error:
        pytest.skip(str(error))


def _decoder() -> keras.Model:
    keras.utils.set_random_seed(0)
    return decoder.build(decoder.VARIANTS["tiny"])


def _experts() -> keras.Model:
    keras.utils.set_random_seed(0)
    return mobile_vmoe.build(mobile_vmoe.VARIANTS["tiny"])


NETWORKS = {"share_kv": _decoder, "drop_experts": _experts}


@pytest.mark.parametrize("name", registry.listing("method"))
def test_method(name):
    network = NETWORKS.get(name)
    testing.check_method(registry.method(name), None if network is None else network())


def _sampler(name: str, options: str = ""):
    if name == "gp" and importlib.util.find_spec("torch") is None:
        pytest.skip("gp needs torch, which is not installed")
    return lambda seed=None: registry.controller(name + options, seed=seed)


@pytest.mark.parametrize("objectives", [("maximize",), ("maximize", "minimize")], ids=["1", "2"])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_controller(name, objectives):
    testing.check_controller(_sampler(name), objectives=[objectives])


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class Contract:
    """Optuna's own, of samplers."""

    @pytest.fixture(params=CONTROLLERS)
    def sampler(self, request):
        return _sampler(request.param)


class TestBasic(Contract, BasicSamplerTestCase):
    pass


class TestMultiObjective(Contract, MultiObjectiveSamplerTestCase):
    pass


class TestRelative(Contract, RelativeSamplerTestCase):
    @pytest.fixture(params=[name for name in CONTROLLERS if name not in INDEPENDENT])
    def sampler(self, request):
        # As Optuna tests its own: no random trials first.
        return _sampler(request.param, ":startup=0" if request.param in {"tpe", "gp"} else "")


@pytest.fixture(scope="module")
def calls():
    """Name of a leaf -> the first in a tiny network, and shapes and types of its inputs."""
    found = {}
    for name in registry.listing("family"):
        family = registry.module("family", name)
        config = family.VARIANTS["tiny"]
        for form in dict.fromkeys((config, deploy(config))):
            with shapes_only():
                model = family.build(form)
            for layer in model.layers:
                tensors = layer._inbound_nodes[0].input_tensors
                specs = [(tensor.shape[1:], tensor.dtype) for tensor in tensors]
                found.setdefault(type(layer).__name__, (layer, specs))
    return found


# Leaves that are in no tiny network: only some options of Configs, or some methods, use them.
OTHERS = {
    "HeadNormalization": (layers.HeadNormalization(2), [((5, 8), "float32")]),
    "MaskPredictor": (layers.MaskPredictor(2, 4, 2), [((5, 8), "float32")]),
    "MaskedFeedForward": (
        layers.MaskedFeedForward(8, 6, 4),
        [((5, 6), "float32"), ((1, 4), "float32")],
    ),
    "LabelContext": (layers.LabelContext(2), [((4, 8), "float32")]),
    "SpaceToDepth": (layers.SpaceToDepth(), [((5, 6, 3), "float32")]),
    "DepthToSpace": (layers.DepthToSpace((6, 6)), [((3, 3, 8), "float32")]),
    "DepthToBatch": (layers.DepthToBatch(), [((3, 3, 8), "float32")]),
    "BatchToDepth": (layers.BatchToDepth(), [((3, 3, 2), "float32")]),
    "LogMel": (layers.LogMel(sample_rate=8000, mels=20), [((2000,), "float32")]),
    "FrameAttention": (
        layers.FrameAttention(heads=2, causal=True, left=4),
        [((2, 8), "float32"), ((6, 8), "float32"), ((6, 8), "float32")],
    ),
}


@pytest.mark.parametrize("name", LEAVES)
def test_leaf(name, calls):
    layer, specs = calls[name] if name in calls else OTHERS[name]
    arrays = [
        RANDOM.integers(0, 2, (4, *shape)).astype(dtype)
        if "int" in dtype
        else RANDOM.normal(size=(4, *shape)).astype(dtype)
        for shape, dtype in specs
    ]
    testing.check_layer(layer, *arrays)

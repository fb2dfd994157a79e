"""Every method on every network, and any two methods in both orders: no cell empty, none silent."""

import dataclasses
import functools
import itertools
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from compress.drop_experts import DropExperts
from compress.method import NotApplicable, compress
from compress.palettize import Palettize
from compress.prune import Prune
from compress.ptq import PTQ
from families import mnasnet, mobile_vmoe
from latency.networks.random_inputs import random_inputs
from nas import registry
from nas.cli import matrix as matrix_command
from nas.compression import examples, matrix
from nas.training import loop

METHODS = list(registry.listing("method"))
NETWORKS = [*registry.listing("family"), *matrix_command.VARIANTS]


def _few(task, count=32):
    def part(pair):
        return tuple(keras.tree.map_structure(lambda array: array[:count], tree) for tree in pair)

    return dataclasses.replace(task, train=part(task.train), valid=part(task.valid))


@pytest.fixture(scope="module")
def networks(tmp_path_factory, shared_data):
    """Name -> (model, task) of a network, the first time it is asked for."""
    text, found = tmp_path_factory.mktemp("matrix") / "text.txt", {}

    def network(name):
        if name not in found:
            module, config = registry.network(name if ":" in name else f"{name}:tiny")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("NAS_DATA", str(shared_data))
                tasks = (load() for load in matrix_command.tasks(text))
                task = _few(matrix.suited_task(config, tasks))
            keras.utils.set_random_seed(0)
            found[name] = module.build(dataclasses.replace(config, **task.fields)), task
        return found[name]

    return network


def _compressed(model, task, methods):
    """The result of two epochs of training."""
    data = examples.examples(task, model, 16, 0)

    def fit(prepared, update):
        loop.fit(prepared, task, 2, 0, batch_size=16, learning_rate=1e-3, update=update)

    return compress(model, methods, fit, data)


def _changed(before, done):
    """Whether the network is another: in its weights, its layers, or what is known of it."""
    old = {weight.path: np.asarray(weight) for weight in before.weights}
    new = {weight.path: np.asarray(weight) for weight in done.model.weights}
    if old.keys() != new.keys() or done.record.variants:
        return True
    return any(not np.array_equal(old[path], new[path]) for path in old)


def _finite(model):
    outputs = keras.tree.flatten(model(random_inputs(model, 2), training=False))
    return all(np.isfinite(np.asarray(output)).all() for output in outputs)


@pytest.mark.matrix
@pytest.mark.parametrize("method", METHODS)
def test_each_method_does_something_on_each_network_or_says_why_not(networks, method):
    """What does not apply is what the method itself says; it has to apply to some network."""
    made = []
    for name in NETWORKS:
        model, task = networks(name)
        before = [np.asarray(weight) for weight in model.weights]
        try:
            done = _compressed(model, task, [registry.method(method)])
        except NotApplicable as error:
            reason = str(error)
            # A sentence about this network, not of another method: there is none.
            assert model.name in reason and "another method" not in reason, (name, reason)
        else:
            made.append(name)
            assert _changed(model, done) and _finite(done.model), name
            assert repr(registry.method(method)) in done.record.details or done.record.weights
        for weight, value in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(np.asarray(weight), value)
    assert made


@pytest.fixture(scope="module")
def small():
    """A network on which every method has something to do but for shared keys, and its task."""
    task = _few(registry.task("digits:8"))
    config = dataclasses.replace(
        mobile_vmoe.VARIANTS["tiny"],
        **task.fields,
        patch=4,
        stem=(),
        layers=2,
        dim=16,
        heads=2,
        hidden=32,
        expert_hidden=16,
        experts=4,
        moe_blocks=(2,),
    )
    keras.utils.set_random_seed(0)
    return mobile_vmoe.build(config), task


def _pairs():
    """Ordered pairs; of methods of two stages one order, as `compress` prepares by stage."""
    stages = {name: registry.method(name).stage for name in METHODS if name != "share_kv"}
    return [
        pair for pair in itertools.permutations(stages, 2) if stages[pair[0]] <= stages[pair[1]]
    ]


@pytest.mark.matrix
@pytest.mark.parametrize("pair", _pairs(), ids="+".join)
def test_any_two_methods_compose_in_both_orders(small, pair):
    """Each applies alone; where they exclude each other, the second says that the first is why."""
    model, task = small
    methods = [registry.method(name) for name in pair]
    try:
        done = _compressed(model, task, methods)
    except NotApplicable as error:
        reason = str(error)
        named = all(name in reason for name in pair)
        assert named or "another method" in reason or "already" in reason, reason
        for method in methods:
            assert _changed(model, _compressed(model, task, [method]))
        return
    assert _changed(model, done) and list(done.record.check(done.model)) == []
    assert _finite(done.model)


@pytest.fixture
def quick(monkeypatch):
    """A network of 100 examples and one epoch: {name: config}, [the function that loads it]."""
    monkeypatch.setattr(matrix, "TRAINING", 1)
    task = _few(registry.task("digits:8"), 64)
    config = dataclasses.replace(mnasnet.VARIANTS["tiny"], **task.fields)
    return {"small": config}, [lambda: task]


def test_what_is_finished_stays_when_it_ends_early(quick, tmp_path):
    networks, tasks = quick
    methods = {"half": Prune(0.5), "ptq": PTQ(8), "experts": DropExperts(0.5)}
    events = []

    def stop(event):
        events.append(event.text)
        raise KeyboardInterrupt

    run = functools.partial(matrix.matrix, networks, methods, tasks=tasks, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(on_event=stop)
    found = run(on_event=lambda event: events.append(event.text))
    assert [event.split(":")[0] for event in events] == ["small half", "small ptq", "small experts"]
    half, ptq, experts = found.cells
    assert half.quality_longer is not None and half.quality_longer == ptq.quality_longer
    assert ptq.container == ".tflite" and 0.2 < ptq.size_ratio < 0.6
    assert "no mixture of experts" in experts.reason and experts.size_ratio is None
    text = repr(found)
    assert "trained as long" in text and "[1] " in text and experts.reason in text
    events.clear()
    again = run(on_event=lambda event: events.append(event.text))
    assert again == found and not events
    methods["ptq"] = PTQ(4)  # another method of the same name
    run(on_event=lambda event: events.append(event.text))
    assert [event.split(":")[0] for event in events] == ["small ptq"]


def test_a_cell_that_failed_is_tried_again(quick, tmp_path, monkeypatch):
    networks, tasks = quick
    run = functools.partial(matrix.matrix, networks, {"ptq": PTQ(8)}, tasks=tasks, out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PTQ, "prepare", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        (cell,) = run().cells
        assert cell.failed == "RuntimeError: broken" and "FAILED" in repr(run())
    (cell,) = run().cells
    assert cell.failed is None and cell.size_ratio < 0.6


def test_without_its_data_a_network_says_so(quick, tmp_path):
    def absent():
        raise ValueError("no data here")

    networks, tasks = quick
    run = functools.partial(matrix.matrix, networks, {"ptq": PTQ(8)}, out=tmp_path)
    assert run(tasks=[absent]).cells[0].reason == "no data here"
    assert run(tasks=[absent, *tasks]).cells[0].reason is None


@pytest.mark.slow
def test_what_only_an_mlpackage_saves_is_counted_there(quick, tmp_path, monkeypatch):
    networks, tasks = quick
    methods = {"tables": Palettize(2)}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "coremltools", None)
        (cell,) = matrix.matrix(networks, methods, tasks=tasks, out=tmp_path / "without").cells
        assert cell.container == ".tflite" and "coremltools" in cell.note
    pytest.importorskip("coremltools")
    (cell,) = matrix.matrix(networks, methods, tasks=tasks, out=tmp_path / "with").cells
    assert cell.container == ".mlpackage" and cell.size_ratio < 0.8


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(tmp_path):
    words = ["--family", "mnasnet", "--method", "ptq:8", "--method", "drop_experts"]
    command = [sys.executable, "-m", "nas", "matrix", *words, "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    first = next(line for line in process.stderr if line.startswith("mnasnet ptq:8: x"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert first not in done.stderr and "no mixture of experts" in done.stderr + done.stdout

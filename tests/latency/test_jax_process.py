"""JAX in a process of its own: what it answers, and every way in which it can fail to."""

import os
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from latency.jax_runtime import process, timing
from latency.jax_runtime import worker as jax_worker
from latency.target import TargetUnavailable

CPU = {"JAX_PLATFORMS": "cpu"}
TIME = {
    "operation": "time",
    "platform": "cpu",
    "dtype": "float32",
    "batch_size": 2,
    "warmup": 1,
    "runs": 5,
}
OWN_LAYER = '''
import keras

@keras.saving.register_keras_serializable("tests")
class Decay(keras.layers.Layer):
    """Half of the state, and some of the input."""

    def call(self, image, state):
        return 0.5 * state + keras.ops.mean(image, axis=(1, 2))
'''


@pytest.fixture
def jax_is(tmp_path, monkeypatch):
    """Puts a `jax` of these lines before the real one, for the worker."""

    def install(source: str):
        folder = tmp_path / "shim"
        folder.mkdir()
        (folder / "jax.py").write_text(source)
        return CPU | {"PYTHONPATH": str(folder)}

    return install


def alive(pid: int) -> bool:
    """Whether a process runs: one that ended and was not yet waited for does not."""
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_model_with_a_layer_and_a_state_of_its_own_is_timed(tmp_path, monkeypatch):
    """The caller is on whatever backend; the worker imports the layer's module and donates."""
    pytest.importorskip("jax")
    import keras

    (tmp_path / "decay_layer.py").write_text(OWN_LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    from decay_layer import Decay

    image, state = keras.Input((8, 8, 4), name="image"), keras.Input((4,), name="state")
    features = keras.layers.Conv2D(4, 3, padding="same")(image)
    outputs = {"state": Decay()(features, state), "logits": keras.layers.Dense(3)(state)}
    model = keras.Model({"image": image, "state": state}, outputs)
    answer = process.ask(TIME, model, environment=CPU, limit_s=120)
    assert len(answer["samples_ms"]) == 5 and min(answer["samples_ms"]) > 0
    told = answer["conditions"]
    assert told["device_kind"] == "cpu" and told["donated_inputs"] == 1
    assert 0 < told["back_to_back_ms"] < 1000 and told["warmup_runs"] >= 10
    arguments = 4 * (2 * (8 * 8 * 4 + 4) + 3 * 3 * 4 * 4 + 4 + 4 * 3 + 3)
    assert answer["memory_mb"] > arguments / 1e6


def test_without_jax_it_says_how_to_get_it(jax_is):
    missing = jax_is("raise ModuleNotFoundError(\"No module named 'jax'\")")
    for platform, extra in (("tpu", "nas[tpu]"), ("cuda", "nas[gpu]")):
        with pytest.raises(TargetUnavailable, match="No module named 'jax'.*pip install") as error:
            process.ask(
                {"operation": "devices", "platform": platform}, environment=missing, limit_s=60
            )
        assert extra in str(error.value) and "\n" not in str(error.value)


def test_a_platform_without_a_device_is_unavailable():
    pytest.importorskip("jax")
    with pytest.raises(TargetUnavailable, match="JAX sees no tpu device"):
        process.ask({"operation": "devices", "platform": "tpu"}, environment=CPU, limit_s=60)


@pytest.mark.parametrize(
    "source, told",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; print('{\"x\": 1}', flush=True); os._exit(3)", 'exit code 3.*{"x": 1}'),
        ("import sys, os; sys.stderr.write('last\\nwords\\n'); os._exit(0)", "words: words$"),
    ],
)
def test_a_worker_that_dies_is_unavailable(jax_is, source, told):
    """Also one that prints what looks like an answer."""
    with pytest.raises(TargetUnavailable, match=told):
        process.ask(TIME, environment=jax_is(source), limit_s=60)


def test_another_failure_brings_the_traceback_of_the_worker():
    pytest.importorskip("jax")
    with pytest.raises(RuntimeError, match="(?s)no_such.x failed.*ModuleNotFoundError"):
        process.ask({"operation": "no_such.x"}, environment=CPU, limit_s=60)


SLEEPS = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def test_the_time_limit_ends_all_processes(jax_is, tmp_path):
    pids = tmp_path / "pids"
    with pytest.raises(TargetUnavailable, match="within 3 s"):
        process.ask(TIME, environment=jax_is(SLEEPS) | {"PIDS": str(pids)}, limit_s=3)
    for pid in map(int, pids.read_text().split()):
        assert wait_for(lambda pid=pid: not alive(pid))


def test_ctrl_c_ends_all_processes(jax_is, tmp_path):
    pids = tmp_path / "pids"

    def interrupt():
        wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2, 60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        process.ask(TIME, environment=jax_is(SLEEPS) | {"PIDS": str(pids)}, limit_s=120)
    for pid in map(int, pids.read_text().split()):
        assert wait_for(lambda pid=pid: not alive(pid))


def test_the_worker_does_not_outlive_a_killed_caller(jax_is, tmp_path):
    pids = tmp_path / "pids"
    code = "from latency.jax_runtime import process as j; j.ask({'operation': 'time'}, "
    code += f"environment={jax_is(SLEEPS) | {'PIDS': str(pids)}!r}, limit_s=600)"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=os.getcwd())
    try:
        assert wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2, 60)
    finally:
        caller.kill()
        caller.wait()
    worker, grandchild = map(int, pids.read_text().split())
    assert wait_for(lambda: not alive(worker))
    os.kill(grandchild, signal.SIGKILL)


def test_bad_files_are_named_in_one_line(tmp_path):
    """What is no model to JAX is said before a process is started."""
    for name in ("model.tflite", "model.h5"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match="JAX targets need a .keras file or a catalog model"):
            process.ask(TIME, tmp_path / name, environment=CPU, limit_s=60)
    with pytest.raises(ValueError, match="absent.keras: No such file"):
        process.ask(TIME, tmp_path / "absent.keras", environment=CPU, limit_s=60)
    pytest.importorskip("jax")
    path = tmp_path / "bad.keras"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match="bad.keras: a damaged .keras file") as error:
        process.ask(TIME, path, environment=CPU, limit_s=60)
    assert "\n" not in str(error.value)


def test_code_in_a_model_file_is_not_run(tmp_path):
    pytest.importorskip("jax")
    import keras

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs))
    path = tmp_path / "lambda.keras"
    model.save(path)
    with pytest.raises(ValueError, match="(?i)lambda|unsafe"):
        process.ask(TIME, path, environment=CPU, limit_s=120)


def test_layers_of_the_main_module_are_refused():
    layer = type("Own", (), {"__module__": "__main__"})()
    model = types.SimpleNamespace(name="net", _flatten_layers=lambda: [layer])
    with pytest.raises(ValueError, match="defined in __main__: move them to a module"):
        process.ask(TIME, model, environment=CPU, limit_s=60)


@pytest.mark.parametrize(
    "text, needed, available",
    [
        ("for HLO temporaries (18.26G) exceeds available HBM (15.75G).", 19606.5, 16911.4),
        ("memory space hbm. Used 32.00G of 15.75G hbm. Exceeded", 34359.7, 16911.4),
        ("Out of memory while trying to allocate 17179869184 bytes.", 17179.9, None),
        ("Failed to allocate request for 512.5MiB (537395200B) on device", 537.4, None),
        ("something new", None, None),
    ],
)
def test_the_sizes_of_out_of_memory_are_read(text, needed, available):
    found = jax_worker.out_of_memory("RESOURCE_EXHAUSTED: " + text)
    assert found["needed_mb"] == (needed and pytest.approx(needed, abs=0.1))
    assert found["available_mb"] == (available and pytest.approx(available, abs=0.1))
    assert found["message"].startswith("does not fit: ")


def test_inputs_are_paired_with_outputs_of_their_shape():
    def of(shape, kind):
        return types.SimpleNamespace(shape=shape, dtype=np.dtype(kind))

    image, state, step = of((2, 8), "f4"), of((2, 4), "f4"), of((2, 4), "i4")
    assert timing._alike([image, state, step], [step, state, state]) == {1: 1, 2: 0}
    assert timing._alike([state, state], [state]) == {0: 0}

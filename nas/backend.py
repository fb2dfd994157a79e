"""Which Keras backend this machine wants, decided before Keras is imported.

On 2 CPU cores TensorFlow trains small convolutional networks about ten times as fast as JAX, whose
CPU compiler is slow at depthwise convolutions; on GPU and TPU it is JAX's compiler that wins.
"""

import importlib.util
import os
import pathlib
import sys
from typing import Any

from latency.networks import keras_file
from latency.system.silent_stderr import silent_stderr
from nas import registry

BACKENDS = ("tensorflow", "jax")  # those that have a training step (nas/training/engines.py)
ACCELERATORS = ("nvidia0", "accel0", "vfio/0")  # below /dev: NVIDIA GPU, TPU v4, TPU v5 and later

keras_file.register_layers("families.layers")  # latency may not know of families


def choose() -> str:
    """Set KERAS_BACKEND unless the user did; returns the backend that Keras has or will have.

    "jax" where a GPU or TPU is visible and JAX is installed, else "tensorflow". From then on files
    may name the layers of installed packages (entry points `nas.layers`), here and in processes
    that read files for this one.
    """
    for module in registry.installed_layers():
        keras_file.register_layers(module)
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend()
    if "KERAS_BACKEND" not in os.environ:
        fast = accelerator() and importlib.util.find_spec("jax") is not None
        os.environ["KERAS_BACKEND"] = "jax" if fast else "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's C++ logs: errors only
    # oneDNN is off by default on CPUs without AVX512-VNNI; there, too, it trains a third faster.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    return os.environ["KERAS_BACKEND"]


def load() -> Any:
    """Choose the backend, import Keras without TensorFlow's greetings, and return the module.

    Raises `ValueError` where Keras runs, or is to run, on a backend that has no training step.
    """
    name = choose()
    if name not in BACKENDS:
        raise ValueError(
            f"Keras is on the backend {name}; expected {' or '.join(BACKENDS)}: set"
            f" KERAS_BACKEND={BACKENDS[0]} before Keras is imported, or leave it out"
        )
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"KERAS_BACKEND={name} is not installed; pip install {name}")
    with silent_stderr():
        import keras
    return keras


def accelerator() -> bool:
    """Whether an NVIDIA GPU or a TPU is visible; looks at device files and imports nothing."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    devices = ACCELERATORS[1:] if hidden else ACCELERATORS
    return any(pathlib.Path("/dev", name).exists() for name in devices)


def threads(count: int) -> None:
    """Limit what one worker process computes with to `count` threads; call before Keras is used.

    Two workers of one thread train a third more networks per hour than one worker of two.
    """
    if count < 1:
        raise ValueError(f"threads={count}; expected at least 1")
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(count)
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"

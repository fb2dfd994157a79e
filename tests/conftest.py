"""Fixtures shared by all tests."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Directory of the real data sets: NAS_DATA, or shared/data beside the checkout."""
    directory = pathlib.Path(os.environ.get("NAS_DATA", ROOT.parent / "shared" / "data"))
    if not directory.is_dir():
        pytest.skip(f"no data in {directory}; set NAS_DATA to a directory that holds it")
    return directory


@pytest.fixture
def passes_on_jax():
    """A function (file, expression): its tests of these names pass with Keras on JAX."""

    def check(file: str, names: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
        run = subprocess.run(
            [*command, file, "-k", names], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0 and "passed" in run.stdout, run.stdout[-3000:]

    return check

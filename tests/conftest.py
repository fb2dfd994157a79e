"""Fixtures shared by all tests."""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jax_process import JaxProcess, run_tests

ROOT = pathlib.Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes of pytest (-n 2 --dist loadgroup), one has all tests with JAX."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if "jax_process" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("jax"))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Directory of the real data sets: NAS_DATA, or shared/data beside the checkout."""
    directory = pathlib.Path(os.environ.get("NAS_DATA", ROOT.parent / "shared" / "data"))
    if not directory.is_dir():
        pytest.skip(f"no data in {directory}; set NAS_DATA to a directory that holds it")
    return directory


@pytest.fixture(scope="session")
def jax_process() -> Iterator[JaxProcess]:
    """The one process with Keras on JAX."""
    pytest.importorskip("jax", reason="needs Keras on JAX")
    process = JaxProcess()
    yield process
    process.end()


@pytest.fixture
def on_jax(jax_process: JaxProcess) -> Callable[..., Any]:
    """(function, *arguments) -> its result in a process with Keras on JAX."""
    return jax_process.run


@pytest.fixture
def passes_on_jax(jax_process: JaxProcess) -> Callable[[str, str], None]:
    """A function (file, expression): its fast tests of these names pass with Keras on JAX."""

    def check(file: str, names: str) -> None:
        assert jax_process.run(run_tests, file, names), f"no test is called {names}"

    return check

"""One process with Keras on JAX, in which all tests that need it run their functions.

To start one costs as much as a dozen of these tests: JAX, Keras and TensorFlow are imported.
"""

import contextlib
import importlib.util
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}


class JaxProcess:
    """Runs functions of test modules in the other process, which the first call starts."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function at the top level of a file gives there; both ways by pickle.

        It sees this process's current directory and NAS_... variables. An error in it fails the
        test with the traceback from there.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        variables = {name: text for name, text in os.environ.items() if name.startswith("NAS_")}
        request = (function.__code__.co_filename, function.__name__, arguments)
        with contextlib.suppress(BrokenPipeError):  # it ended; what it wrote says why
            pickle.dump((os.getcwd(), variables, request), process.stdin)
            process.stdin.flush()
        try:
            error, result = pickle.load(process.stdout)
        except EOFError:
            self._process = None
            self._stderr.seek(0)
            words = self._stderr.read()[-3000:].decode(errors="replace")
            pytest.fail(f"the process with JAX ended with {process.wait()}: {words}")
        if error is not None:
            pytest.fail(f"with Keras on JAX:\n{error}", pytrace=False)
        return result

    def end(self) -> None:
        """End the process; the next call starts another."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        path = [str(ROOT), str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH")]
        return subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        )


class _Outcomes:
    """A plugin of pytest that notes which tests passed, and what the others say."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}\n{report.longreprtext}")
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}\n{report.longreprtext}")


def run_tests(file: str, names: str) -> list[str]:
    """The tests of a file with these names, as `pytest -k NAMES`; `AssertionError` if one fails."""
    outcomes = _Outcomes()
    # As in pyproject.toml, without its choice of marks.
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    pytest.main([*options, "-m", "not slow and not matrix", file, "-k", names], plugins=[outcomes])
    assert not outcomes.failed, "\n".join(outcomes.failed)[-3000:]
    return outcomes.passed


def _answer(file: str, name: str, arguments: tuple[Any, ...]) -> Any:
    path = pathlib.Path(file)
    if path.stem not in sys.modules:
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # tests of one folder share functions
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(sys.modules[path.stem], name)(*arguments)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the functions print goes to stderr
    while True:
        try:
            folder, variables, request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        os.chdir(folder)
        os.environ.update(variables)
        try:
            answer = pickle.dumps((None, _answer(*request)))
        except BaseException:
            answer = pickle.dumps((traceback.format_exc(), None))
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    _serve()

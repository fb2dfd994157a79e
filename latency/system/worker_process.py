"""A worker process: requests and answers are lines of JSON, and a crash does not end the caller.

Both sides are here: `WorkerProcess` of the caller, `serve` of the module that runs in the worker.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import Any, Self

from latency.system.end_with_parent import end_with_parent


class WorkerDied(Exception):
    """The worker ended without an answer; the text continues "the process "."""

    def __init__(self, code: int, stderr: str):
        self.cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if code < 0:
            how = f"was killed by {self.cause}"
            if -code == signal.SIGKILL:
                how += " (out of memory on this machine?)"
        else:
            how = f"ended with {self.cause} and no answer"
        last = [line.strip() for line in stderr.splitlines() if line.strip()][-1:]
        super().__init__(how + (f"; its last words: {last[0][:300]}" if last else ""))


class WorkerTimeout(Exception):
    """The worker gave no answer within the time limit, and was killed."""


class WorkerProcess:
    """Runs `python -m MODULE`, whose `main` calls `serve`; a worker that died is started anew.

    It imports what this process can import, and nothing that happens to lie in the current
    directory. It has a session of its own, so one signal ends all processes that it started; its
    stdin stays open, so it ends when this process does.

    Args:
        module: dotted name of the module to run.
        environment: variables put over those of this process; a PYTHONPATH comes before its own.
    """

    def __init__(self, module: str, environment: dict[str, str] | None = None):
        self._module = module
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def pid(self) -> int | None:
        """The process's number, while it runs."""
        return None if self._process is None else self._process.pid

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """The worker's answer to `request`; raises `WorkerDied` or `WorkerTimeout`."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            _kill(process)

        timer = threading.Timer(limit_s, end)
        try:
            timer.start()
            with contextlib.suppress(BrokenPipeError):  # it died at once; its stderr says why
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except BaseException:  # Ctrl-C
            self._end()
            raise
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return json.loads(line)
        stderr = self._end()
        if timed_out.is_set():
            raise WorkerTimeout(f"no answer within {limit_s:g} s")
        raise WorkerDied(process.returncode, stderr)

    def _start(self) -> subprocess.Popen[bytes]:
        path = [self._environment.get("PYTHONPATH"), *sys.path]
        given = {"TF_CPP_MIN_LOG_LEVEL": "3"} | self._environment
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_end`
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, *_parent()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | given | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
            start_new_session=True,
        )

    def _end(self) -> str:
        """Ends the process; what it wrote to stderr."""
        process, self._process = self._process, None
        if process is None:
            return ""
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # one that dies has time to say how; one that waits ends with stdin
        _kill(process)
        process.wait()
        process.stdout.close()
        with self._stderr as stderr:
            stderr.seek(0)
            return stderr.read().decode(errors="replace")


def ask(
    module: str, request: dict[str, Any], limit_s: float, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """The answer of a new worker to one request: `WorkerProcess.ask`.

    >>> ask("latency.system.worker_process", {"a": [1, 2.5]}, limit_s=60)
    {'echo': {'a': [1, 2.5]}}
    """
    with WorkerProcess(module, environment) as worker:
        return worker.ask(request, limit_s)


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until the caller has no more or is gone; never returns.

    What libraries print goes to stderr. `answer` runs in the main thread.
    """
    if sys.argv[1:]:
        end_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            requests.put(line)
        os._exit(0)  # also in the middle of an answer: there is nobody to read it

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            print(json.dumps(answer(json.loads(requests.get()))), file=answers, flush=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # runtimes may end slowly, or crash when they do


def _parent() -> list[str]:
    """What tells a worker whom to end with; of a thread, its end would count as this process's."""
    main = threading.current_thread() is threading.main_thread()
    return [str(os.getpid())] if main else []


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, AttributeError):  # Windows has no killpg
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


if __name__ == "__main__":
    serve(lambda request: {"echo": request})

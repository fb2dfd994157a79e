"""The other processes of a search on this machine: waited for, and ended with it."""

import contextlib
import subprocess
import time
from collections.abc import Sequence

from nas import interruption

_ASK_S = 0.2
_END_S = 4.0  # a worker ends between two steps, and what takes longer is killed

Workers = Sequence[subprocess.Popen[bytes]]


def wait(workers: Workers) -> None:
    """Return when all have ended; `Interrupted` on Ctrl-C."""
    while any(worker.poll() is None for worker in workers):
        interruption.sleep(_ASK_S)


def end(workers: Workers) -> None:
    """SIGTERM to all, and SIGKILL to those that do not end in seconds."""
    for worker in workers:
        worker.terminate()
    until = time.monotonic() + _END_S
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(0.0, until - time.monotonic()))
        worker.kill()
        worker.wait()

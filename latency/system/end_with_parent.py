"""A process that ends with the one that started it, however that one ends."""

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, a process number, ends; on Linux.

    It counts as ended with the thread that started this process: call it for a process that the
    main thread started.
    """
    with contextlib.suppress(AttributeError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)

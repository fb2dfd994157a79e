"""Locks on devices: one measurement at a time, whatever the user, the cache and the process.

A lock is a file of this machine that the kernel unlocks when its holder dies (flock). Containers
share the locks of their host where its folder is mounted: `docker run -v /run/lock:/run/lock`.
"""

import contextlib
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TypeVar

from latency.target import TargetUnavailable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BUSY_S = 900.0  # for another process that measures on the same device
_AGAIN_S = 0.01
_Result = TypeVar("_Result")
# Open to every user, and the same for all of them; TMPDIR may differ from one to the other.
_PLACES = (Path("/run/lock"), Path("/tmp"))
# What excludes other machines, too: a lock of a database that they share (`beyond`).
_beyond: list[Callable[[str], AbstractContextManager[None]]] = []


@contextlib.contextmanager
def beyond(lock: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """Within, a device that other machines can reach is also locked by `lock("device/NAME")`."""
    _beyond.append(lock)
    try:
        yield
    finally:
        _beyond.remove(lock)


@contextlib.contextmanager
def alone(device: str, title: str, *, anywhere: bool = False) -> Iterator[None]:
    """Wait until nobody else measures on a device, and keep others waiting meanwhile.

    device: what tells it from all others. title: its name in messages. anywhere: whether `device`
    names it on every machine, as a serial number does and "core0" does not. `TargetUnavailable`
    where it stays busy for 15 minutes.

    >>> with alone("example", "the example"):
    ...     try_lock("example") is None
    True
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(wait_for(lambda: try_lock(device), title))
        for lock in _beyond if anywhere else ():
            stack.enter_context(lock(f"device/{device}"))
        yield


def wait_for(attempt: Callable[[], _Result | None], title: str) -> _Result:
    """The result of the first attempt that has one; `TargetUnavailable` after 15 minutes."""
    started = time.monotonic()
    while (result := attempt()) is None:
        if time.monotonic() - started > BUSY_S:
            raise TargetUnavailable(
                f"{title} is busy: other processes have measured on it for {BUSY_S / 60:.0f} min"
            )
        time.sleep(_AGAIN_S)
    return result


def try_lock(device: str) -> IO[bytes] | None:
    """A lock on a device, held until it is closed; None while another process measures on it."""
    held = _opened(device)
    if fcntl is None:
        return held
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(held.fileno()).st_nlink:  # not removed meanwhile, which would make it another
            return held
    except BlockingIOError:
        pass
    held.close()
    return None


def _file(device: str) -> Path:
    """Where the lock of a device lies."""
    # What a device calls itself may be "..", or long: never a path.
    plain = re.fullmatch(r"[a-z][a-z0-9]{0,31}", device)
    name = device if plain else hashlib.sha256(device.encode()).hexdigest()[:16]
    for place in _PLACES:  # writable for everybody, not only for this user: all are to agree
        with contextlib.suppress(OSError):
            if place.stat().st_mode & stat.S_IWOTH and os.access(place, os.W_OK):
                return place / f"nas-{name}.lock"
    return Path(tempfile.gettempdir()) / f"nas-{name}.lock"


def _opened(device: str) -> IO[bytes]:
    """The file of a lock, for reading: that is all another user may do, and all that it takes."""
    path = _file(device)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        try:
            return os.fdopen(os.open(path, flags), "rb")
        except FileNotFoundError:
            _create(path)
        except OSError as error:
            raise TargetUnavailable(
                f"{path}, by which processes take turns on a device, cannot be read:"
                f" {error.strerror}; remove it"
            ) from error


def _create(path: Path) -> None:
    """Make an empty file that every user may read, whatever the umask: never there without that."""
    try:
        descriptor, partial = tempfile.mkstemp(prefix=".nas-", dir=path.parent)
    except OSError as error:
        raise TargetUnavailable(
            f"no lock can be made in {path.parent}, by which processes take turns on a device:"
            f" {error.strerror}; make it writable for everybody (chmod 1777)"
        ) from error
    try:
        os.chmod(partial, 0o644)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(partial, path)
    finally:
        os.close(descriptor)
        os.unlink(partial)

"""Named locks that die with their holder: of one machine, or of all that share a PostgreSQL.

Nothing is timed out, so no clock has to be right: the kernel unlocks the files of a process that
ends, however it ends, and PostgreSQL the session of a connection that does.
"""

import abc
import contextlib
import fcntl
import hashlib
import os
import pathlib
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

AGAIN_S = 0.005  # between two looks at a file that another process has locked
LONGEST_NAME = 200  # of a file, in bytes; file systems allow 255


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold an exclusive lock on a file among all processes of this machine."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Locks(abc.ABC):
    """Locks by name, for exclusion and as a sign of life.

    While one is held nobody else gets it, not even the process that holds it.
    """

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Wait for a lock and hold it."""
        while not self._take(name, wait=True):
            pass
        try:
            yield
        finally:
            self._release(name)

    @contextlib.contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        """Hold a lock if it is free; whether it is held, as the value of `with`."""
        taken = self._take(name, wait=False)
        try:
            yield taken
        finally:
            if taken:
                self._release(name)

    @abc.abstractmethod
    def held(self, name: str) -> bool:
        """Whether anybody, this process or another, holds a lock."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything."""

    @abc.abstractmethod
    def _take(self, name: str, *, wait: bool) -> bool:
        """Take a lock if it is free, or becomes free in less than a second of waiting."""

    @abc.abstractmethod
    def _release(self, name: str) -> None:
        """Let go of a lock that `_take` took."""


class Flock(Locks):
    """Locks among the processes of one machine: files of a folder, there while they are held.

    >>> import tempfile
    >>> locks = Flock(tempfile.mkdtemp())
    >>> with locks.lock("study/ask"), locks.try_lock("study/ask") as second:
    ...     locks.held("study/ask"), second
    (True, False)
    >>> locks.held("study/ask")
    False
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, int] = {}

    def held(self, name: str) -> bool:
        """Whether anybody holds a lock; for this instant it is nobody else's to take."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # Of a killed process. Whoever has just opened it, too, sees that it is gone.
            with contextlib.suppress(OSError):
                self._path(name).unlink()
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of everything."""
        for name in list(self._open):
            self._release(name)

    def _take(self, name: str, *, wait: bool) -> bool:
        descriptor = self._opened(self._path(name))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:  # else it was let go of, and removed, meanwhile
                self._open[name] = descriptor
                return True
        except BlockingIOError:
            pass
        os.close(descriptor)
        if wait:
            time.sleep(AGAIN_S)
        return False

    def _release(self, name: str) -> None:
        descriptor = self._open.pop(name, None)
        if descriptor is not None:
            with contextlib.suppress(OSError):  # another user's, in a folder of all users
                self._path(name).unlink()
            os.close(descriptor)

    def _path(self, name: str) -> pathlib.Path:
        file = urllib.parse.quote(name, safe="") + ".lock"
        if len(file) > LONGEST_NAME:
            file = hashlib.sha256(name.encode()).hexdigest() + ".lock"
        return self._folder / file

    def _opened(self, path: pathlib.Path) -> int:
        """A file, made where it is missing; for reading only where no more is allowed.

        NFS locks only what may be written, and Linux lets nobody open with O_CREAT what another
        user made in a folder of all users.
        """
        while True:
            try:
                return os.open(path, os.O_RDWR)
            except PermissionError:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)


# Of a PostgreSQL. A connection that broke is made again so often, and so soon after its server has
# started nobody takes a lock but who had it before: a restart loses none that is in use.
PING_S = 1.0
SETTLE_S = 4.0
PATIENCE_S = 120.0  # for a server that is away after it was there
# A host that vanished without a word (power, network) is dead after 30 + 3 * 10 seconds.
SESSION = (
    "SET lock_timeout = '250ms'",
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 10",
    "SET tcp_keepalives_count = 3",
)
LOCK_NOT_AVAILABLE = "55P03"
HELD = (
    "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND ((classid::bigint << 32) | objid::bigint) = :key)"
)


class Advisory(Locks):
    """Locks among all machines that use one PostgreSQL database: its session advisory locks.

    They hang on one connection of its own, which is never one of a pool. url: SQLAlchemy's.
    Raises SQLAlchemy's errors where the server cannot be reached.

    >>> locks = Advisory("postgresql+psycopg://db/nas")  # doctest: +SKIP
    """

    def __init__(self, url: str):
        import sqlalchemy

        self._sql: Any = sqlalchemy
        self._engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": 10},
        )
        self._names: set[str] = set()  # a session could take a lock twice
        self._one_at_a_time = threading.RLock()
        self._connection: Any = None
        self._connect(settle_s=0.0)
        self._closed = threading.Event()
        threading.Thread(target=self._keep_alive, daemon=True, name="nas-locks").start()

    def held(self, name: str) -> bool:
        """Whether anybody holds a lock."""
        return name in self._names or self._ask(HELD, name)

    def close(self) -> None:
        """Let go of everything."""
        self._closed.set()
        with self._one_at_a_time:
            self._names.clear()
            self._connection.close()

    def _take(self, name: str, *, wait: bool) -> bool:
        with self._one_at_a_time:
            if name not in self._names:
                try:
                    if wait:
                        self._ask("SELECT pg_advisory_lock(:key)", name)
                    elif not self._ask("SELECT pg_try_advisory_lock(:key)", name):
                        return False
                    self._names.add(name)
                    return True
                except self._sql.exc.DBAPIError as error:
                    if _state(error) != LOCK_NOT_AVAILABLE:
                        raise
                    return False
        if wait:
            time.sleep(AGAIN_S)
        return False

    def _release(self, name: str) -> None:
        # Where the connection breaks, or is broken, it is free without being asked for.
        with self._one_at_a_time, contextlib.suppress(self._sql.exc.SQLAlchemyError):
            if name in self._names:
                self._names.discard(name)  # first: a new connection is not to take it again
                self._scalar("SELECT pg_advisory_unlock(:key)", name)

    def _ask(self, question: str, name: str = "") -> Any:
        """The one value that PostgreSQL answers; asked again where the connection broke."""
        with self._one_at_a_time:
            until = time.monotonic() + PATIENCE_S
            while True:
                try:
                    if self._connection.invalidated:
                        self._connect()
                    return self._scalar(question, name)
                except self._sql.exc.DBAPIError:
                    if not self._connection.invalidated or time.monotonic() > until:
                        raise
                time.sleep(PING_S / 2)

    def _scalar(self, question: str, name: str = "") -> Any:
        values = {"key": _key(name)} if ":key" in question else {}
        return self._connection.execute(self._sql.text(question), values).scalar()

    def _connect(self, settle_s: float = SETTLE_S) -> None:
        """Connect, take again what was held, and wait until all others could do so, too."""
        connection = self._engine.connect()
        for setting in SESSION:
            connection.exec_driver_sql(setting)
        self._connection = connection
        for name in self._names:
            self._scalar("SELECT pg_try_advisory_lock(:key)", name)
        age = self._scalar("SELECT extract(epoch FROM now() - pg_postmaster_start_time())")
        time.sleep(max(settle_s, SETTLE_S - float(age)))

    def _keep_alive(self) -> None:
        """Notice a broken connection at once, not when the next lock is asked for."""
        while not self._closed.wait(PING_S):
            with self._one_at_a_time, contextlib.suppress(self._sql.exc.DBAPIError):
                if self._connection.invalidated:
                    self._connect()
                elif not self._closed.is_set():
                    self._scalar("SELECT 1")


def _key(name: str) -> int:
    """The 64 bits, signed, by which PostgreSQL knows a lock."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _state(error: Any) -> str | None:
    """The SQLSTATE of an error of psycopg or psycopg2."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)

"""Where the trials of a study are kept: a journal in its folder, or an SQL database by its URL.

On PostgreSQL any number of machines work on one study; what nobody may do twice at a time is
decided there, too (`nas.locks`).
"""

import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError

from nas.locks import PATIENCE_S, Advisory, Flock, Locks
from nas.searching.journal import JOURNAL, Journal
from nas.searching.journal_snapshot import SnapshotStorage

DRIVER = "psycopg"  # of the extra [postgresql]
_OTHERS = 10  # times that other processes may be just making the tables
_EXPECTED = "expected postgresql://USER@HOST/DATABASE, sqlite:///FILE, or none: a journal"


def open_storage(location: str | os.PathLike[str]) -> optuna.storages.BaseStorage:
    """Open the journal of a run folder, or a database by its URL; `ValueError` where it cannot be.

    A connection that breaks later is made again, for as long as `nas.locks.PATIENCE_S`.
    """
    if "://" not in str(location):
        folder = pathlib.Path(location)
        folder.mkdir(parents=True, exist_ok=True)
        return SnapshotStorage(Journal(folder / JOURNAL))
    url = str(location)
    with one_line(url):
        storage = _database(url)
    _connect_patiently(storage.engine)
    return storage


def _database(url: str) -> optuna.storages.RDBStorage:
    """Optuna's tables in a database, made if they are missing."""
    import sqlalchemy

    make = functools.partial(
        optuna.storages.RDBStorage, _driven(url), engine_kwargs={"pool_pre_ping": True}
    )
    for _ in range(_OTHERS):
        try:
            return make()
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            time.sleep(0.2)  # another process was just making them, too
    return make()


def locks_of(location: str | None, folder: pathlib.Path) -> Locks:
    """What excludes all others that work on a study: those of this machine, or of a PostgreSQL."""
    if location is None:
        return Flock(folder / "locks")
    backend, database = _url(location).get_backend_name(), _url(location).database
    if backend == "postgresql":
        with one_line(location):
            return Advisory(_driven(location))
    if backend == "sqlite":
        if database in (None, "", ":memory:"):
            return Flock(folder / "locks")
        if not pathlib.Path(database).parent.is_dir():
            raise ValueError(
                f"--storage {location}: there is no folder {pathlib.Path(database).parent}; make it"
                " first, or name a file in one that there is"
            )
        return Flock(f"{database}.locks")
    raise ValueError(f"--storage {without_password(location)}: {_EXPECTED}")


def refuse_more_than_one_worker(location: str | None) -> None:
    """`ValueError` of SQLite, which gives one trial to two workers now and then."""
    if location is not None and _url(location).get_backend_name() == "sqlite":
        raise ValueError(
            f"--storage {without_password(location)}: more than one worker at a time on SQLite,"
            " which would give one trial to two of them; leave --storage out (a journal, for one"
            " machine), or expected postgresql://USER@HOST/DATABASE"
        )


def without_password(location: str) -> str:
    """A URL as it may be shown and kept.

    >>> without_password("postgresql://me:secret@db/nas")
    'postgresql://me@db/nas'
    """
    url = _url(location)
    rest = {key: value for key, value in url.query.items() if key not in ("password", "passfile")}
    return url._replace(password=None, query=rest).render_as_string()


@contextlib.contextmanager
def one_line(location: str) -> Iterator[None]:
    """Within, what SQLAlchemy, its drivers and Optuna raise of a database is one `ValueError`."""
    import sqlalchemy

    try:
        yield
    except ImportError:
        raise ValueError(
            f"--storage {without_password(location)}: its driver {_url(location).drivername} is not"
            f" installed; expected {DRIVER}: pip install 'nas[postgresql]'"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise ValueError(
            f"--storage {without_password(location)}: {reason(error)}; {_remedy(error, location)}"
        ) from error


def _url(location: str) -> Any:
    import sqlalchemy

    try:
        return sqlalchemy.make_url(location)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        scheme = location.partition("://")[0]  # the rest may hold a password
        raise ValueError(f"--storage {scheme}://...: no URL of a database; {_EXPECTED}") from None


def _driven(location: str) -> str:
    """The URL with our driver where it names none: SQLAlchemy's own choice has changed."""
    url = _url(location)
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername=f"postgresql+{DRIVER}")
    return url.render_as_string(hide_password=False)


def reason(error: BaseException) -> str:
    """What a driver says, without the statement and its values, in one line."""
    import sqlalchemy

    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.NoSuchModuleError):
        return "SQLAlchemy knows no such database"
    known = getattr(error, "orig", None) or error
    return " ".join(str(known).split("\n(Background")[0].split())


def _remedy(error: BaseException, location: str) -> str:
    said = reason(error).lower()
    if "password" in said or "authentication" in said:
        return "give the password in the URL, in PGPASSWORD or in ~/.pgpass"
    if "does not exist" in said:
        return "create it first (createdb), or name one that there is"
    if _url(location).get_backend_name() == "sqlite":
        return "name a file that is one of SQLite, in a folder that can be written"
    if "no such database" in said:
        return _EXPECTED
    return "is the server there, and reachable from this machine? The same command goes on then"


def _connect_patiently(engine: Any) -> None:
    """From now on a server that is away, because it restarts, is waited for."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.dbapi.OperationalError:
                if time.monotonic() > until:
                    raise
            time.sleep(1.0)

"""A real PostgreSQL for the tests: a private server on loopback, all of it in one folder.

By hand, `python tests/support/postgresql.py` prints its URL, and runs until Ctrl-C.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

_PLACES = [*map(str, sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin")))]
INITDB = shutil.which("initdb") or shutil.which("initdb", path=os.pathsep.join(_PLACES))
USER = "nas"
PASSWORD = "s3cret-of-the-test"
_SETTINGS = ("fsync=off", "max_connections=200", "listen_addresses=127.0.0.1", "log_statement=none")


class PostgreSQL:
    """A server; `url` is what a user would name, with the password in it."""

    def __init__(self, folder: pathlib.Path):
        assert INITDB is not None
        self._binaries = pathlib.Path(INITDB).resolve().parent
        self._data, self._folder, self._process = folder / "data", folder, None
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            shutil.chown(folder, "nobody")
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "scram-sha-256", "--pwfile", secret)
        self.start()

    @property
    def url(self) -> str:
        """Of the database that every server has."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [f"unix_socket_directories={self._folder}", f"port={self.port}", *_SETTINGS]
        words = [word for setting in settings for word in ("-c", setting)]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*self._command("postgres"), "-D", str(self._data), *words], stdout=log, stderr=log
            )
        ready = [*self._command("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready).returncode:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.05)

    def stop(self, mode: str = "fast") -> None:
        """Stop it, as an administrator ("fast") or a power cut ("immediate") does."""
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")
        self._process.wait(60)

    def _run(self, *words: object) -> None:
        name, *arguments = map(str, words)
        subprocess.run([*self._command(name), *arguments], check=True, stdout=subprocess.DEVNULL)

    def _command(self, name: str) -> list[str]:
        command = [str(self._binaries / name)]
        return ["runuser", "-u", "nobody", "--", *command] if os.getuid() == 0 else command


@contextlib.contextmanager
def running() -> Iterator[PostgreSQL]:
    """A new server in a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="nas_postgresql_") as folder:
        server = PostgreSQL(pathlib.Path(folder))
        try:
            yield server
        finally:
            server.stop("immediate")


if __name__ == "__main__":
    with running() as one, contextlib.suppress(KeyboardInterrupt):
        print(one.url, flush=True)
        time.sleep(1e9)

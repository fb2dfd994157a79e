"""Boards over the OpenSSH client: one connection a board, scripts and data to it, its failures.

man ssh, ssh_config. What the user names is checked and reaches ssh as arguments of a process, or
the board as data on standard input; scripts for the board's shell are made of fixed words and
numbers only.
"""

import atexit
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from latency.target import TargetUnavailable

ANSWER_S = 20.0  # a board answers a small script within a second, one that swaps within some
_CONNECT_S = 10
_ALIVE_S, _ALIVE_COUNT = 5, 4  # a network that falls silent is noticed within these 20 s
_LINK_BYTES_S = 200_000  # the slowest link to wait for: poor Wi-Fi
_PREFIX = "nas-ssh-"
_PIECE = 1 << 20
_OUTPUT = re.compile(r"(?:\A|.*?\n)nas-begin\r?\n(.*)nas-status (\d+)\s*\Z", re.DOTALL)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")
# Our own command line wins over the user's configuration: nothing is asked, forwarded or run.
_OPTIONS = {
    "BatchMode": "yes",
    "ServerAliveInterval": _ALIVE_S,
    "ServerAliveCountMax": _ALIVE_COUNT,
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ControlPersist": "no",
}
# What ssh prints, and the remedy; {ssh} is the command to try by hand.
_DIAGNOSES = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        "its host key is not the one that you accepted before: another machine, or the board was "
        "set up anew; in the latter case `{forget}`, then `{ssh}`",
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        "its host key is not known yet: connect once by hand and compare it, `{ssh}`",
    ),
    (
        r"Permission denied|Too many authentication failures|no such identity",
        "it does not let you in: `{copy_id}` gives it your key (`ssh-add` where the key has a "
        "passphrase); is {user} right?",
    ),
    (r"Could not resolve hostname", "there is no host of this name: is it spelt right and on?"),
    (
        r"Connection refused",
        "it is there but no ssh server listens on that port: start one on it (`sudo systemctl "
        "enable --now ssh`), or name its port, ssh:USER@HOST:PORT",
    ),
    (
        r"timed out|No route to host|Network is unreachable|Host is down",
        "it does not answer: is it on, and on this network?",
    ),
    (
        r"Bad configuration option|Can't open user config|Bad owner or permissions|bad configura",
        "ssh rejects its configuration",
    ),
    (
        r"Unable to negotiate|invalid format|kex_exchange_identification|Connection closed by",
        "what listens there speaks no ssh that this client knows, or hangs up: try `{ssh} -v`",
    ),
)


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a board is: what `ssh` is given. `config` is a file in the place of ~/.ssh/config."""

    host: str
    user: str | None = None
    port: int | None = None
    config: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        name = f"{self.user}@{host}" if self.user else host
        return f"{name}:{self.port}" if self.port else name

    def words(self) -> list[str]:
        """The arguments that name the board: none of them can be read as another option."""
        words = [] if self.config is None else ["-F", str(Path(self.config).absolute())]
        words += ["-p", str(self.port)] if self.port else []
        return [*words, "--", f"{self.user}@{self.host}" if self.user else self.host]

    def by_hand(self, command: str = "ssh") -> str:
        """The command line to try in a terminal."""
        return shlex.join([command, *(word for word in self.words() if word != "--")])


def address(text: str, port: int | None = None, config: str | None = None) -> Address:
    """The address in `[user@]host[:port]`, or a name of ~/.ssh/config; `ValueError` if it is none.

    An IPv6 address with a port is written in brackets, `pi@[fe80::1]:22`. `config` is by default
    what NAS_SSH_CONFIG names, else ssh's own.
    """
    user, at, rest = text.rpartition("@")
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?", rest)
    plain = re.fullmatch(r"([^:]*):(\d{1,5})", rest)
    found = bracketed or plain
    host, named_port = found.groups() if found else (rest, None)
    if (at and not _USER.fullmatch(user)) or not _HOST.fullmatch(host):
        raise ValueError(f"host={text!r}: expected user@host, host, or either with :port")
    if named_port and port and int(named_port) != port:
        raise ValueError(f"host={text!r} and port={port}: expected one port")
    port = port or (int(named_port) if named_port else None)
    if port is not None and (not isinstance(port, int) or not 1 <= port <= 65535):
        raise ValueError(f"port={port!r}: expected 1 to 65535")
    config = config or os.environ.get("NAS_SSH_CONFIG")
    if config is not None and not Path(config).is_file():
        raise ValueError(f"config={config}: expected a file as ~/.ssh/config, found none")
    return Address(host, user or None, port, config)


class Board:
    """A board that a connection is open to."""

    def __init__(self, where: Address, connect_s: float = _CONNECT_S):
        """Connects; `TargetUnavailable` says why it cannot, and what to do about it."""
        self.where = where
        self._options = [f"-o{name}={value}" for name, value in _OPTIONS.items()]
        self._options.append(f"-oConnectTimeout={max(1, round(connect_s))}")
        _sweep()
        self._folder = tempfile.mkdtemp(prefix=_PREFIX, dir=_short_folder())
        self._log = open(f"{self._folder}/log", "w+b")  # noqa: SIM115 (closed with the board)
        self._greeting: list[str] = []
        self._answered = threading.Event()
        # It ends when we do: where this process is killed, `cat` reads the end of its input.
        command = "exec sh -c 'echo nas-ready; exec cat'"
        try:
            self._master = self._start(["-M"], command, subprocess.PIPE, self._log)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        reading = threading.Thread(target=self._read_greeting, daemon=True)
        reading.start()
        try:
            # Connecting may take `connect_s` for each of two addresses; then keys are exchanged.
            answered = self._answered.wait(2 * connect_s + 2)
            if self._greeting[-1:] != ["nas-ready"]:
                if answered:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._master.wait(2)
                raise TargetUnavailable(f"board {where}: {self._why()}")
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as can be known without asking the board."""
        return self._master.poll() is None

    def run(
        self, script: str, data: Iterable[bytes] = (), limit_s: float = ANSWER_S
    ) -> tuple[int, str]:
        """Runs a script of fixed words: its exit status, and all it printed.

        `data` is what it reads. Its input then stays open until it ends: what runs on the board can
        tell by the end of it that this side is gone. Raises `TargetUnavailable` where the
        connection is lost meanwhile, `TimeoutError` after `limit_s`.
        """
        assert "'" not in script and "\\" not in script, "every login shell must understand it"
        if not self.alive:  # else ssh would connect anew by itself
            raise self._lost("")
        command = f"exec sh -c 'echo nas-begin\n({script}\n) 2>&1\necho nas-status $?'"
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = self._start(["-oControlMaster=no"], command, output, errors)
            feeding = threading.Thread(
                target=_feed, args=(_stream(process.stdin), data), daemon=True
            )
            feeding.start()
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"board {self.where} took over {limit_s:.0f} s") from None
            finally:
                process.kill()
                process.wait()
                feeding.join()
                with contextlib.suppress(OSError):
                    _stream(process.stdin).close()
            output.seek(0)
            found = _OUTPUT.fullmatch(output.read().decode(errors="replace"))
            if found:
                return int(found[2]), found[1].replace("\r\n", "\n")
            errors.seek(0)
            raise self._lost(errors.read().decode(errors="replace"))

    def ask(self, script: str, data: Iterable[bytes] = ()) -> str:
        """What a script prints that cannot fail; `TargetUnavailable` where it does."""
        try:
            status, output = self.run(script, data)
        except TimeoutError as error:
            raise TargetUnavailable(f"{error} to answer: is it overloaded?") from error
        if status:
            raise TargetUnavailable(f"board {self.where} refused a command: {_last(output)}")
        return output

    def send(self, file: Path, destination: str) -> None:
        """Copies a file to a path of ours on the board."""
        size = file.stat().st_size
        try:
            status, output = self.run(
                f"head -c {size} > {destination}", pieces(file), ANSWER_S + size / _LINK_BYTES_S
            )
        except TimeoutError as error:
            raise TargetUnavailable(f"{error} to take {size / 1e6:.1f} MB") from error
        full = re.search("No space left|File too large|quota|size limit", output, re.IGNORECASE)
        if full or status == 128 + 25:  # SIGXFSZ: more than this user's files may have
            raise TargetUnavailable(
                f"board {self.where} has no room for {size / 1e6:.1f} MB: free some on its disk"
            )
        if status:
            raise TargetUnavailable(f"board {self.where} cannot take a file: {_last(output)}")

    def close(self) -> None:
        """Ends the connection."""
        self._master.terminate()
        try:
            self._master.wait(2)
        except subprocess.TimeoutExpired:
            self._master.kill()
            self._master.wait()
        for stream in (self._master.stdin, self._master.stdout, self._log):
            with contextlib.suppress(OSError):
                _stream(stream).close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(
        self, options: list[str], command: str, output: Any, errors: Any
    ) -> subprocess.Popen[bytes]:
        words = ["ssh", "-T", "-S", f"{self._folder}/socket", *options, *self._options]
        try:
            return subprocess.Popen(
                [*words, *self.where.words(), command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for us: the board is cleaned up first
            )
        except FileNotFoundError as error:
            raise TargetUnavailable(
                "ssh is not installed: `apt-get install openssh-client` or www.openssh.com"
            ) from error

    def _read_greeting(self) -> None:
        """Until the board is ready; a login shell may have said something before."""
        with contextlib.suppress(OSError, ValueError):
            for line in _stream(self._master.stdout):
                self._greeting.append(line.decode(errors="replace").strip())
                if self._greeting[-1] == "nas-ready":
                    break
        self._answered.set()

    def _why(self) -> str:
        """Why the connection is not there."""
        self._log.seek(0)
        output = "\n".join(self._greeting) + "\n" + self._log.read().decode(errors="replace")
        return diagnosis(self.where, output)

    def _lost(self, output: str) -> TargetUnavailable:
        """Why a command broke off."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._master.wait(1)
        if self.alive:
            return TargetUnavailable(f"board {self.where} broke off a command: {_last(output)}")
        self._log.seek(0)
        reason = _last(self._log.read().decode(errors="replace") or output)
        return TargetUnavailable(
            f"lost board {self.where}: {reason}; what is left on it is removed when it is back"
        )


_boards: dict[Address, Board] = {}
_opening = threading.Lock()


def connected(where: Address) -> Board:
    """The board, over the connection of this process to it, which is opened where there is none."""
    with _opening:
        board = _boards.get(where)
        if board is not None and not board.alive:
            del _boards[where]
            board.close()
            board = None
        if board is None:
            board = _boards[where] = Board(where)
        return board


@atexit.register
def disconnect() -> None:
    """Ends the connections of this process."""
    with _opening:
        while _boards:
            _boards.popitem()[1].close()


def pieces(file: Path) -> Iterator[bytes]:
    """What a file holds, piece by piece."""
    with open(file, "rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece


def diagnosis(where: Address, output: str) -> str:
    """What ssh said when it did not connect, in one line with the remedy."""
    known = f"[{where.host}]:{where.port}" if where.port not in (None, 22) else where.host
    forget = re.search(r"ssh-keygen (-f \S+ )?-R \S+", output)
    remedies = {
        "ssh": where.by_hand(),
        "copy_id": where.by_hand("ssh-copy-id"),
        "forget": forget[0] if forget else shlex.join(["ssh-keygen", "-R", known]),
        "user": f"the user {where.user}" if where.user else "the user (ssh:USER@HOST)",
    }
    for pattern, remedy in _DIAGNOSES:
        found = re.search(pattern, output)
        if found:
            line = (
                output[output.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0].strip(" @\r")
            )
            return f"{remedy.format(**remedies)} ({line[:200]})"
    return f"the connection ended: {_last(output)}; try `{where.by_hand()}`"


def _last(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def _stream(pipe: IO[bytes] | None) -> IO[bytes]:
    """A pipe of a process that was started with one."""
    assert pipe is not None
    return pipe


def _feed(stream: IO[bytes], data: Iterable[bytes]) -> None:
    """Writes to a process, which may end before it has read all."""
    with contextlib.suppress(OSError, ValueError):
        for piece in data:
            stream.write(piece)
            stream.flush()


def _short_folder() -> str:
    """Where a socket can be: its path has about 100 characters, of which ssh adds 17."""
    folder = tempfile.gettempdir()
    return folder if len(folder) < 60 else "/tmp"


def _sweep() -> None:
    """Removes the folders of processes that were killed: their ssh ended and took its socket."""
    for folder in Path(_short_folder()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if not (folder / "socket").exists() and time.time() - folder.stat().st_mtime > 300:
                shutil.rmtree(folder, ignore_errors=True)

"""A real sshd for the tests, on loopback: own port, keys and configuration, all in one folder.

Its sessions are commands of this machine with PATH, HOME and TMPDIR in that folder, and the board's
sensors (/sys, /proc/device-tree) read from there. By hand, `python tests/support/sshd.py` prints
how to name it, and runs until Ctrl-C.
"""

import contextlib
import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
_SESSION = """#!/bin/sh
# What a client asks for, with this board's sensors.
printf "%s\\n" "$SSH_ORIGINAL_COMMAND" >> "$NAS_BOARD/commands"
[ -f "$NAS_BOARD/limit" ] && ulimit -f "$(cat "$NAS_BOARD/limit")"
exec sh -c "$(printf %s "$SSH_ORIGINAL_COMMAND" | sed \\
  "s#/sys/#$NAS_BOARD/sys/#g; s#/proc/device-tree#$NAS_BOARD/device-tree#g")"
"""
_CONFIG = """ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
ForceCommand {folder}/session
SetEnv NAS_BOARD={folder} HOME={folder}/home TMPDIR={folder}/tmp PATH={folder}/bin:/usr/bin:/bin
"""
_CLIENT = """Host *
  IdentityFile {folder}/client
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  GlobalKnownHostsFile none
"""


class Sshd:
    """A server; `host` is what a user would name, `config` the client's own configuration."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self._process = folder, None
        for name in ("home", "tmp", "bin", "device-tree"):
            (folder / name).mkdir(parents=True)
        for name in ("host", "client"):
            make_key(folder / name)
        shutil.copy(folder / "client.pub", folder / "authorized")
        (folder / "session").write_text(_SESSION)
        (folder / "session").chmod(0o755)
        (folder / "device-tree/model").write_bytes(b"Test Board Rev 1.0\0")
        self.config = folder / "config"
        self.config.write_text(_CLIENT.format(folder=folder))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.host = f"{getpass.getuser()}@127.0.0.1:{self.port}"
        self.trust(folder / "host.pub")
        for core in sorted(os.sched_getaffinity(0)):  # the last one is the fast one
            clocks = folder / f"sys/devices/system/cpu/cpu{core}/cpufreq"
            clocks.mkdir(parents=True)
            highest = 1_800_000 if core == max(os.sched_getaffinity(0)) else 1_500_000
            for name in ("cpuinfo_max_freq", "scaling_max_freq", "scaling_cur_freq"):
                (clocks / name).write_text(f"{highest}\n")
            (clocks / "scaling_governor").write_text("ondemand\n")
        self.heat(45)
        self.start()

    def start(self) -> None:
        """Raises `RuntimeError` with the server's own words where it does not start."""
        (self.folder / "sshd_config").write_text(_CONFIG.format(folder=self.folder, port=self.port))
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # sshd insists on this folder
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 10
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.02)
        raise RuntimeError(f"sshd does not start: {(self.folder / 'log').read_text()[-300:]}")

    def stop(self) -> None:
        """Ends the server and all that its sessions started."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def cut(self, everything: bool = False) -> None:
        """Ends the sessions' servers as a cable pulled would, or with `everything` in them."""
        running = self.processes() if everything else []
        for ending in (signal.SIGSTOP, signal.SIGKILL):  # at once: none sees that another is gone
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, ending)
        for process in _sessions(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def processes(self) -> list[int]:
        """What runs on the board now: all that was started in a session."""
        mark, found = f"NAS_BOARD={self.folder}\0".encode(), []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
        return found

    def trust(self, public: pathlib.Path | None) -> None:
        """What the client knows as this server's key."""
        key = "" if public is None else " ".join(public.read_text().split()[:2])
        line = f"[127.0.0.1]:{self.port} {key}\n" if key else ""
        (self.folder / "known").write_text(line)

    def heat(self, celsius: float) -> None:
        """The temperature that its sensor tells; beside it one that always tells 100."""
        for number, (name, value) in enumerate((("cpu-thermal", celsius), ("PMIC-Die", 100))):
            zone = self.folder / f"sys/class/thermal/thermal_zone{number}"
            zone.mkdir(parents=True, exist_ok=True)
            (zone / "type").write_text(f"{name}\n")
            partial = zone / "partial"
            partial.write_text(f"{value * 1000:.0f}\n")
            partial.replace(zone / "temp")

    def throttle(self, bits: int) -> None:
        """What a Raspberry Pi's `vcgencmd get_throttled` tells."""
        self.program("vcgencmd", f"#!/bin/sh\necho throttled={bits:#x}\n")

    def program(self, name: str, script: str) -> pathlib.Path:
        """Installs a program on the board's PATH."""
        path = self.folder / "bin" / name
        path.write_text(script)
        path.chmod(0o755)
        return path

    def python(self) -> pathlib.Path:
        """Installs this Python, which has LiteRT, as the board's."""
        return self.program("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')

    @property
    def commands(self) -> list[str]:
        """What was run on the board."""
        path = self.folder / "commands"
        return path.read_text().split("exec sh -c")[1:] if path.exists() else []

    def left(self) -> list[pathlib.Path]:
        """What lies on the board."""
        return [*(self.folder / "tmp").iterdir(), *(self.folder / "home").iterdir()]


def make_key(path: pathlib.Path) -> pathlib.Path:
    """A new key pair; the public half is returned."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=20
    )
    return path.with_suffix(".pub")


def _sessions(parent: int) -> list[int]:
    """The processes of sshd under another one; not what they run."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith("sshd") and int(rest.split()[1]) == parent:
                found += [int(entry.name), *_sessions(int(entry.name))]
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        served = Sshd(pathlib.Path(place) / "board")
        served.python()
        print(f"ssh:{served.host},config={served.config}", flush=True)
        for ending in (signal.SIGINT, signal.SIGTERM):  # a shell's `&` ignores the first
            signal.signal(ending, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
        served.stop()

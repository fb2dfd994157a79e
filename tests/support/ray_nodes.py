"""Real nodes of Ray on this machine: a process group each, which is killed as a whole."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

RAY = pathlib.Path(sys.executable).with_name("ray")
_STORE = 100_000_000  # bytes of shared memory, about the least that Ray takes


class RayNodes:
    """A cluster whose nodes are started and killed by name; the first one is its head."""

    def __init__(self, cpus: int = 4):
        # A short path: that of a socket has at most 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        self._groups: dict[str, int] = {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        head = ["--head", f"--port={self.port}", f"--temp-dir={self._folder}"]
        self._start("head", [*head, "--include-dashboard=false"], cpus, {}, {})

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, name: str, cpus: int, resources: Mapping[str, float], **environment: str) -> None:
        """Start another node; `environment` is put over this process's own."""
        words = [f"--address={self.address}", "--dashboard-agent-listen-port=0"]
        self._start(name, words, cpus, resources, environment)

    def kill(self, name: str) -> None:
        """The whole node at once, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._groups.pop(name), signal.SIGKILL)

    def stop(self) -> None:
        """All nodes, the head last; nothing is left."""
        for name in reversed(list(self._groups)):
            self.kill(name)
        time.sleep(0.2)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, name, words, cpus, resources, environment) -> None:
        command = [str(RAY), "start", *words, f"--num-cpus={cpus}", "--disable-usage-stats"]
        command += [f"--object-store-memory={_STORE}", f"--resources={json.dumps(resources)}"]
        settings = os.environ | {"RAY_DISABLE_IMPORT_WARNING": "1"} | environment
        settings.pop("RAY_ADDRESS", None)
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command, env=settings, stdout=log, stderr=log, start_new_session=True
            )
            self._groups[name] = process.pid
            if process.wait(120):
                log.seek(0)
                raise RuntimeError(log.read().decode()[-2000:])

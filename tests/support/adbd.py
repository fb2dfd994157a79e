"""An adbd for the tests: the real adb client talks to it over TCP on loopback.

It is no phone. Its shell runs real commands of this machine with /data/local/tmp, /sys/ and the
Android programs (`getprop`, `dumpsys`, `settings`) taken from a folder.
Protocol: packages/modules/adb, docs protocol.txt, SYNC.TXT and shell_service.h.
"""

import contextlib
import os
import pathlib
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading

_AUTH, _CNXN, _OPEN, _OKAY, _CLSE, _WRTE = (
    struct.unpack("<I", name)[0] for name in (b"AUTH", b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
_VERSION, _MOST = 0x01000001, 256 * 1024
_BANNER = b"device::ro.product.name=sandbox;ro.product.model=Sandbox;features="
_FEATURES = b"shell_v2,stat_v2,cmd"

PROPERTIES = {
    "ro.product.manufacturer": "Test",
    "ro.product.model": "adbd sandbox",
    "ro.board.platform": "loopback",
    "ro.build.version.release": "14",
    "ro.build.fingerprint": "test/sandbox/1",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a",
}
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  status: 2
  present: true
  level: 81
  scale: 100
  voltage: 4123
  temperature: {tenths}
  technology: Li-ion
"""
# In the form that a phone with Android 14 prints (shortened).
THERMAL = """IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=84.208, mType=3, mName=SKIN, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=57.9, mType=0, mName=CPU, mStatus=0}}
\tTemperature{{mValue=31.5, mType=3, mName=SKIN, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
Temperature static thresholds from HAL:
\tTemperatureThreshold{{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, 39.0]}}
"""


class Adbd:
    """One device on a port of loopback; its files lie in `root`."""

    def __init__(self, root: pathlib.Path, mode: str = "device"):
        self.root, self.mode = root, mode  # "device", "unauthorized", or "silent": offline
        self.features = _FEATURES  # none: as phones before Android 7
        self.room = 1 << 30  # bytes that may still be pushed
        self.commands: list[str] = []
        self._connections: set[socket.socket] = set()
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.tmp = root / "data/local/tmp"
        self.tmp.mkdir(parents=True)
        self._install()
        self.port = 0
        self.plug()

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def plug(self) -> None:
        """Listens, again on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def unplug(self) -> None:
        """Closes everything at once, as a cable that is pulled; what runs goes on running."""
        with self._lock:
            # shutdown: close alone leaves a thread in accept or recv, and the port taken.
            for one in (self._listener, *self._connections):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self._connections.clear()

    def stop(self) -> None:
        """Unplugs and ends what still runs on the device."""
        self.unplug()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def heat(self, celsius: float, status: int = 0) -> None:
        """What `dumpsys` tells from now on: whole, also to one who reads it just now."""
        for name, text in (
            ("battery", BATTERY.format(tenths=round(celsius * 10))),
            ("thermalservice", THERMAL.format(status=status)),
        ):
            partial = self.root / f"{name}.partial"
            partial.write_text(text)
            partial.replace(self.root / "dumpsys" / name)

    def _install(self) -> None:
        for name in ("bin", "dumpsys"):
            (self.root / name).mkdir()
        listed = "".join(f"[{key}]: [{value}]\n" for key, value in PROPERTIES.items())
        (self.root / "properties").write_text(listed)
        for name, script in (
            ("getprop", f'cat "{self.root}/properties"'),
            ("dumpsys", f'cat "{self.root}/dumpsys/$1"'),
            ("settings", "echo 0"),
        ):
            program = self.root / "bin" / name
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        self.heat(29.5)
        cores = sorted(os.sched_getaffinity(0))
        for number in cores:  # the last one is the big core
            folder = self.root / f"sys/devices/system/cpu/cpu{number}/cpufreq"
            folder.mkdir(parents=True)
            highest = 2_850_000 if number == cores[-1] else 1_800_000
            (folder / "cpuinfo_max_freq").write_text(f"{highest}\n")
            (folder / "scaling_max_freq").write_text(f"{highest}\n")
            (folder / "scaling_governor").write_text("schedutil\n")

    def _inside(self, text: str) -> str:
        for prefix in ("/data/local/tmp", "/sys/"):
            text = text.replace(prefix, f"{self.root}{prefix}")
        return text

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Reads packets and hands them to the streams, each of which has a thread."""
        streams: dict[int, Stream] = {}
        sending = threading.Lock()

        def send(command: int, first: int, second: int, data: bytes = b"") -> None:
            header = struct.pack(
                "<6I", command, first, second, len(data), sum(data), command ^ 0xFFFFFFFF
            )
            with sending, contextlib.suppress(OSError):
                connection.sendall(header + data)

        with contextlib.suppress(OSError, EOFError):
            while True:
                command, first, second, size, _, _ = struct.unpack("<6I", _exactly(connection, 24))
                data = _exactly(connection, size)
                if self.mode == "silent":
                    continue
                if command in (_CNXN, _AUTH):
                    if self.mode == "unauthorized":
                        if command == _CNXN or first == 2:  # 2: a signature, of an unknown key
                            send(_AUTH, 1, 0, os.urandom(20))
                    else:
                        send(_CNXN, _VERSION, _MOST, _BANNER + self.features)
                elif command == _OPEN:
                    stream = Stream(len(streams) + 1, first, send)
                    streams[stream.number] = stream
                    service = data.rstrip(b"\0").decode()
                    threading.Thread(target=self._run, args=(stream, service), daemon=True).start()
                elif second in streams:
                    streams[second].incoming.put((command, data))
        for stream in streams.values():
            stream.incoming.put((_CLSE, b""))

    def _run(self, stream: "Stream", service: str) -> None:
        try:
            with contextlib.suppress(EOFError):
                if service.startswith("shell"):
                    stream.accept()
                    self._shell(stream, *service.split(":", 1))
                elif service.startswith("sync:"):
                    stream.accept()
                    self._sync(stream)
        finally:
            stream.close()

    def _shell(self, stream: "Stream", kind: str, command: str) -> None:
        """shell_v2 tells stdout, stderr and the exit status apart; the old shell is one stream."""
        framed = kind.startswith("shell,v2")
        self.commands.append(command)
        process = subprocess.Popen(
            ["/bin/sh", "-c", self._inside(command)],
            cwd=self.root,
            env={"PATH": f"{self.root}/bin:/usr/bin:/bin", "HOME": str(self.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.add(process)

        def copy(pipe, kind: int) -> None:
            with contextlib.suppress(EOFError):
                while data := pipe.read1(1 << 16):
                    stream.write(struct.pack("<BI", kind, len(data)) + data if framed else data)

        copies = [
            threading.Thread(target=copy, args=(pipe, kind), daemon=True)
            for kind, pipe in ((1, process.stdout), (2, process.stderr))
        ]
        for one in copies:
            one.start()
        for one in copies:
            one.join()
        status = process.wait()
        if framed:
            stream.write(struct.pack("<BIB", 3, 1, status & 0xFF))

    def _sync(self, stream: "Stream") -> None:
        while True:
            request, size = struct.unpack("<4sI", stream.read(8))
            if request == b"QUIT":
                return
            name = stream.read(size).decode()
            if request == b"SEND":
                self._receive(stream, *name.rsplit(",", 1))
                continue
            path = pathlib.Path(self._inside(name))
            found = path.stat() if path.exists() else None
            if request == b"STAT":
                told = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
                stream.write(b"STAT" + struct.pack("<3I", *told))
            elif request in (b"STA2", b"LST2"):
                told = (
                    (0, *found[1:3], found[0], found[3], *found[4:10])
                    if found
                    else (2,) + 10 * (0,)
                )
                error, ino, dev, mode, links, uid, gid, length, *times = told
                stream.write(
                    request
                    + struct.pack(
                        "<IQQIIIIQ3q", error, dev, ino, mode, links, uid, gid, length, *times
                    )
                )
            elif request == b"RECV" and found:
                data = path.read_bytes()
                for start in range(0, len(data), 1 << 16):
                    part = data[start : start + (1 << 16)]
                    stream.write(b"DATA" + struct.pack("<I", len(part)) + part)
                stream.write(b"DONE" + struct.pack("<I", 0))
            else:
                _fail(stream, "No such file or directory")

    def _receive(self, stream: "Stream", name: str, mode: str) -> None:
        """SEND: DATA until DONE. A failure is told at once and the rest is read away."""
        path = pathlib.Path(self._inside(name))
        failed = not name.startswith("/data/local/tmp/") or not path.parent.is_dir()
        if failed:
            _fail(stream, "couldn't create file: No such file or directory")
        with contextlib.ExitStack() as stack:
            file = None if failed else stack.enter_context(open(path, "wb"))
            while True:
                kind, size = struct.unpack("<4sI", stream.read(8))
                if kind == b"DONE":
                    break
                data = stream.read(size)
                if failed:
                    continue
                self.room -= len(data)
                if self.room < 0:
                    failed = True
                    path.unlink()
                    _fail(stream, "write failed: No space left on device")
                else:
                    file.write(data)
        if not failed:
            path.chmod(int(mode) & 0o777)
            stream.write(b"OKAY" + struct.pack("<I", 0))


class Stream:
    """One stream of a connection: a write waits for the other side's OKAY to the one before."""

    def __init__(self, number: int, other: int, send):
        self.number, self._other, self._send = number, other, send
        self.incoming: queue.Queue = queue.Queue()
        self._buffer = b""
        self._ready = threading.Semaphore(1)
        self._closed = False
        self._received: queue.Queue = queue.Queue()
        self._writing = threading.Lock()
        threading.Thread(target=self._sort, daemon=True).start()

    def accept(self) -> None:
        self._send(_OKAY, self.number, self._other)

    def write(self, data: bytes) -> None:
        with self._writing:
            for start in range(0, len(data), _MOST):
                self._ready.acquire()
                if self._closed:
                    self._ready.release()
                    raise EOFError
                self._send(_WRTE, self.number, self._other, data[start : start + _MOST])

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self._received.get()
            if data is None:
                raise EOFError
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def close(self) -> None:
        self._send(_CLSE, self.number, self._other)
        self.incoming.put((_CLSE, b""))

    def _sort(self) -> None:
        while True:
            command, data = self.incoming.get()
            if command == _OKAY:
                self._ready.release()
            elif command == _WRTE:
                self._received.put(data)
                self._send(_OKAY, self.number, self._other)
            elif command == _CLSE:
                self._closed = True
                self._received.put(None)
                self._ready.release()
                return


def _fail(stream: Stream, message: str) -> None:
    stream.write(b"FAIL" + struct.pack("<I", len(message)) + message.encode())


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        data = connection.recv(size - len(parts))
        if not data:
            raise EOFError
        parts += data
    return parts


TOOL = f'''#!{sys.executable}
"""Runs a .tflite file with LiteRT on this machine and prints as benchmark_model does."""
import sys, time
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
start = time.perf_counter()
import numpy as np
from ai_edge_litert.interpreter import Interpreter
print("STARTING!")
if "use_gpu" in options:
    print("Though GPU delegate is explicitly applied, the model graph will not be executed by the delegate.")
interpreter = Interpreter(options["graph"], num_threads=int(options["num_threads"]))
interpreter.allocate_tensors()
init_us = (time.perf_counter() - start) * 1e6
items = [item.split(",") for item in options.get("input_layer_value_range", "").split(":")]
ranges = dict((item[0], item[-1]) for item in items)
details = interpreter.get_input_details()
if "input_layer" in options:
    shapes = ":".join(",".join(map(str, entry["shape"])) for entry in details)
    given = options["input_layer"], options["input_layer_shape"]
    assert given == (",".join(entry["name"] for entry in details), shapes), given
for entry in details:
    value = int(ranges.get(entry["name"], 99)) if entry["dtype"] == np.int32 else 1
    interpreter.set_tensor(entry["index"], np.full(entry["shape"], value, entry["dtype"]))
def timed(runs, least_s):
    times, begin = [], time.perf_counter()
    while len(times) < runs or time.perf_counter() - begin < least_s:
        before = time.perf_counter_ns()
        interpreter.invoke()
        times.append((time.perf_counter_ns() - before) // 1000)
    if min(times) == max(times):
        print(f"count={{len(times)}} curr={{times[-1]}}" + "(all same)" * (len(times) > 1))
    else:
        print(f"count={{len(times)}} first={{times[0]}} curr={{times[-1]}} min={{min(times)}} "
              f"max={{max(times)}} avg={{np.mean(times):g}} std={{np.std(times):.0f}}")
    return times
warm = timed(int(options["warmup_runs"]), float(options["warmup_min_secs"]))
times = timed(int(options["num_runs"]), float(options["min_secs"]))
print(f"Inference timings in us: Init: {{init_us:.0f}}, First inference: {{warm[0]}}, "
      f"Warmup (avg): {{np.mean(warm):g}}, Inference (avg): {{np.mean(times):g}}")
print("Memory footprint delta from the start of the tool (MB): init=1.5 overall=2.5")
if "enable_op_profiling" in options:
    print("Operator-wise Profiling Info for Regular Benchmark Runs:")
    print("=" * 30 + " Run Order " + "=" * 30)
    print("\\t[node type]\\t[first]\\t[avg ms]\\t[%]\\t[cdf%]\\t[mem KB]\\t[times called]\\t[Name]")
    share = np.mean(times) / 1e3 / len(interpreter._get_ops_details())
    for op in interpreter._get_ops_details():  # its place is real, its time an equal share
        name = f"{{op['op_name']}}:{{op['index']}}"
        print(f"\\t{{op['op_name']}}\\t{{share:.3f}}\\t{{share:.3f}}\\t1%\\t1%\\t0.000\\t1\\t{{name}}")
'''  # noqa: E501


def install_tool(place: pathlib.Path, script: str = TOOL) -> pathlib.Path:
    """Writes a tool to be pushed: not the real benchmark_model, which the tests cannot have."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(script)
    return place

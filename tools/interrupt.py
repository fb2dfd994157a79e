"""Ctrl-C at random moments of every journey: each must end soon, keep what it has, and go on.

    nice python tools/interrupt.py                          # 40 of them: half an hour on idle cores
    nice python tools/interrupt.py --only train --seed 3    # of one journey, at other moments

A course is one folder: the same command is started there, interrupted in the named phase after a
random time, started again, interrupted in the next, and at last runs to its end. Of each interrupt:
seconds until the process was gone (and those of CPU time that took: on a busy machine the first
says little), exit status, whether a traceback was printed, which files were there, how many
processes were left 5 s later. Exit 1 where one broke a rule: 10 s, longer on cores that more
processes want than there are. A row each goes to --out.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

LIMIT_S = 10.0  # from Ctrl-C to the end
ORPHAN_S = 5.0
MARK = "NAS_INTERRUPTED_COURSE"  # a variable that tells whose child a process is
TRAINED = r"^ *\d+/\d+ +trial"


@dataclasses.dataclass(frozen=True)
class Phase:
    """After a line on stderr that matches `after` (None: from the start), within `spread` seconds.

    files: what must be there then, of the course's folder.
    """

    name: str
    after: str | None
    spread_s: float
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Course:
    """The interrupts of one command, in order; before: a command to run first."""

    journey: str
    command: str
    phases: tuple[Phase, ...]
    before: str | None = None


BEST = ("s/best.keras", "s/best.tflite", "s/result.json", "s/report.html")
SEARCH = Course(
    "search",
    "search --space mnasnet:tiny --task digits:8 --epochs 1 --trials 4 --finalists 1 --profiles 1"
    " --out . --study s",
    (
        Phase("start", None, 8),
        Phase("base network", "measuring the base network", 8),
        Phase("candidate", "^study ", 10),
        Phase("candidate", TRAINED, 10, BEST),
        Phase("finalist", "training trial", 5, BEST),
        Phase("report", "^finalist ", 10, BEST),
    ),
)
SCALE = Course(
    "scale",
    "scale mnasnet:tiny --task digits --budget-ms 0.012,0.02 --trials 2 --epochs 1 --out family",
    (
        Phase("landing", "", 10),
        Phase("candidate", "single-objective scaling", 15),
        Phase("second rung", r"^0\.02 ms", 10, ("family/family.py", "family/result.json")),
    ),
)
TRAIN = Course(
    "train",
    "train mnasnet:tiny --task digits:16 --epochs 40 --out a.keras",
    (
        Phase("start", None, 8),
        *[Phase("steps", r"examples, batches of|going on at", 8)] * 2,
        *[Phase("epochs", r"epoch +\d+", 5, ("a.checkpoint.npz",))] * 2,
    ),
)
COMPRESS = Course(
    "compress",
    "compress a.keras --method prune:0.5 --method qat:4 --task digits:16 --epochs 20"
    " --no-sensitivity --out small.tflite",
    (
        Phase("start", None, 8),
        Phase("calibration", "parameters in", 5),
        *[Phase("training", r"epoch +\d+", 4, ("small.checkpoint.npz",))] * 2,
        Phase("writing", "writing ", 4),
    ),
    before="train mnasnet:tiny --task digits:16 --epochs 1 --out a.keras",
)
DEVICE = Course(
    "device add",
    "device add quick --target cpu:threads=1 --probes 8",
    (
        Phase("start", None, 8),
        Phase("first probe", None, 25),
        *[Phase("probes", r"^ *\d+/8", 5, ("cache/devices/quick/probes.jsonl",))] * 3,
    ),
)
COURSES = [SEARCH, SEARCH, SEARCH, SCALE, SCALE, TRAIN, COMPRESS, COMPRESS, DEVICE]


class Process:
    """A command in a folder, its lines of stderr as they come."""

    def __init__(self, command: str, folder: pathlib.Path):
        self.mark = uuid.uuid4().hex
        root = pathlib.Path(__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nas", *command.split()],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"NAS_CACHE": str(folder / "cache"), "PYTHONPATH": str(root), MARK: self.mark},
            start_new_session=True,
            # Python that a shell starts in the background ignores Ctrl-C, and so would its child.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[str] = []
        self._new: queue.Queue[str | None] = queue.Queue()
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._out)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._new.put(line)
        self._new.put(None)

    def _out(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.read()

    def wait_for(self, pattern: str) -> bool:
        """Whether a line came that matches; False where it ended before."""
        while (line := self._new.get()) is not None:
            if re.search(pattern, line):
                return True
        return False

    def cpu_s(self) -> float:
        """Seconds of CPU time so far, also of a process that has ended and was not waited for."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def interrupt(self) -> tuple[float, float]:
        """Ctrl-C: seconds until it was gone, and of CPU time in between."""
        started, before = time.monotonic(), self.cpu_s()
        os.killpg(self.process.pid, signal.SIGINT)
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return time.monotonic() - started, self.cpu_s() - before

    def end(self) -> int:
        """Its exit status, when it has ended."""
        code = self.process.wait()
        for thread in self._threads:
            thread.join()
        return code

    def left(self) -> list[int]:
        """Processes that it started, or it itself, which are there after `ORPHAN_S`."""
        end = time.monotonic() + ORPHAN_S
        while found := [pid for pid in _pids() if _has(pid, f"{MARK}={self.mark}")]:
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _has(pid: int, text: str) -> bool:
    try:
        return text.encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def run(course: Course, chance: random.Random, tell: Callable[[dict[str, Any]], None]) -> None:
    """One course: each interrupt is told as a row; the last row is of the run to the end."""
    with tempfile.TemporaryDirectory(prefix="nas_interrupt_") as name:
        folder = pathlib.Path(name)
        if course.before is not None:
            Process(course.before, folder).end()
        for phase in course.phases:
            process = Process(course.command, folder)
            reached = phase.after is None or process.wait_for(phase.after)
            delay = chance.uniform(0, phase.spread_s)
            if reached:
                time.sleep(delay)
            row: dict[str, Any] = {"journey": course.journey, "phase": phase.name}
            if process.process.poll() is None:
                row["after_s"] = round(delay, 2)
                seconds, cpu_s = process.interrupt()
                row |= {"seconds": round(seconds, 1), "cpu_s": round(cpu_s, 1)}
                row["load"] = round(os.getloadavg()[0], 1)
            row |= judged(process, folder, phase.files if "seconds" in row else ())
            tell(row)
            if row["exit"] == 0:
                break  # it was quicker than its interrupt
        process = Process(course.command, folder)
        row = {"journey": course.journey, "phase": "to the end"} | judged(process, folder, ())
        row["broken"] += [] if row["exit"] == 0 else ["it does not go on"]
        tell(row)


def judged(process: Process, folder: pathlib.Path, files: tuple[str, ...]) -> dict[str, Any]:
    """How a process ended, and what rules that broke."""
    code, text = process.end(), "".join(process.lines)
    left = process.left()
    broken = [f"{file} is missing" for file in files if not (folder / file).exists()]
    broken += [] if code in (0, 128 + signal.SIGINT) else [f"exit status {code}"]
    broken += ["a traceback"] if "Traceback" in text else []
    broken += [f"{len(left)} processes left"] if left else []
    if broken:
        print(text[-3000:], file=sys.stderr)
    return {"exit": code, "left": len(left), "broken": broken}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="search, scale, train, compress or device add")
    parser.add_argument("--courses", type=int, help="so many of them at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="file that rows are appended to")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    rows: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        limit = LIMIT_S * max(1.0, row.get("load", 0.0) / (os.cpu_count() or 1))
        slow = row.get("seconds", 0.0) > limit
        row["broken"] += [f"more than {limit:.0f} s"] if slow else []
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.out is not None:
            with open(arguments.out, "a") as file:
                file.write(json.dumps(row) + "\n")

    chosen = [one for one in COURSES if arguments.only in (None, one.journey)]
    for course in chosen[: arguments.courses]:
        run(course, chance, tell)
    sent = [row for row in rows if "seconds" in row]
    broken = sum(bool(row["broken"]) for row in rows)
    if sent:
        longest = max(row["seconds"] for row in sent)
        print(f"{len(sent)} interrupts, the longest {longest} s to its end; {broken} broke a rule")
    return 1 if broken or not sent else 0


if __name__ == "__main__":
    sys.exit(main())

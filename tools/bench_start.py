"""What it costs to start: `import nas`, `nas --help`, `nas list`, in seconds of the clock.

    python tools/bench_start.py

Each runs several times in new processes, and the fastest counts: the others were disturbed. The
marks are 0.1 s for the import and 0.3 s for the commands, on a quiet machine.
"""

import os
import pathlib
import subprocess
import sys
import time

RUNS = 7
COMMANDS = {
    "python": ["-c", "pass"],
    "import nas": ["-c", "import nas"],
    "nas --help": ["-m", "nas", "--help"],
    "nas list": ["-m", "nas", "list"],
}


def seconds(arguments: list[str]) -> float:
    """The fastest of several runs of Python with these arguments."""
    found = []
    for _ in range(RUNS):
        started = time.perf_counter()
        root = pathlib.Path(__file__).parents[1]
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=root)
        found.append(time.perf_counter() - started)
    return min(found)


if __name__ == "__main__":
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for name, arguments in COMMANDS.items():
        print(f"{name:12} {seconds(arguments):.3f} s")

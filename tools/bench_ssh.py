"""What a measurement over ssh costs, how well it repeats, and whether both runtimes agree.

    python tools/bench_ssh.py ssh:pi@raspberrypi --repeat 10

Without a board: `python tests/support/sshd.py` serves this machine as one, and
prints how to name it.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time

import numpy as np

from latency.boards import openssh
from latency.measuring import reference_networks
from latency.target import TargetUnavailable
from nas import registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--runs", type=int, default=50)
    arguments = parser.parse_args()
    target = registry.target(arguments.target)
    with tempfile.TemporaryDirectory() as folder:
        models = {
            name: pathlib.Path(folder) / f"{name}.tflite" for name in reference_networks.NAMES
        }
        for name, path in models.items():
            path.write_bytes(reference_networks.network(name))
        print(f"{target.device}: {arguments.repeat} measurements of {arguments.runs} runs")
        openssh.disconnect()
        say("connection", seconds(lambda: target.device))
        say("identity, connected", min(seconds(target.identity) for _ in range(3)))
        smallest = {"warmup": 0, "runs": 1}
        cost = min(seconds(lambda: target.profile(models["small"], **smallest)) for _ in range(3))
        say("measurement of one run, connected", cost)
        for runtime in ("python", "benchmark_model"):
            for name, path in models.items():
                try:
                    repeat(dataclasses.replace(target, runtime=runtime), name, path, arguments)
                except TargetUnavailable as error:
                    print(f"{runtime}: {error}")
                    break


def repeat(target, name: str, path: pathlib.Path, arguments: argparse.Namespace) -> None:
    """Prints medians and fastest runs of several measurements of one network."""
    latencies = [target.profile(path, runs=arguments.runs) for _ in range(max(2, arguments.repeat))]
    stable = sum(latency.conditions["stable"] for latency in latencies)
    line = f"{target.runtime:16s} {name:6s} stable {stable} of {len(latencies)}"
    rows = {"median": [latency.median_ms for latency in latencies]}
    rows["fastest"] = [min(latency.samples_ms) for latency in latencies]
    if "cpu_median_ms" in latencies[0].conditions:
        rows["CPU time"] = [latency.conditions["cpu_median_ms"] for latency in latencies]
    for label, values in rows.items():
        spread = np.std(values) / np.mean(values)
        line += f"; {label} {np.mean(values):.3f} ms, deviates by {spread:.1%}"
    print(line, flush=True)


def seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def say(what: str, took_s: float) -> None:
    print(f"{what}: {took_s:.2f} s", flush=True)


if __name__ == "__main__":
    main()

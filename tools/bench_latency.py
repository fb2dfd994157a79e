"""How repeatable the CPU target is over fresh processes, and how the direct writer compares.

    python tools/bench_latency.py repeatability --processes 10 --runs 50
    python tools/bench_latency.py opmin --processes 10
    python tools/bench_latency.py pair --processes 10
    python tools/bench_latency.py conversion

`repeatability` times three networks in fresh processes, with this machine as it is and with one
more core kept busy, and prints how far the medians of single processes lie from the common one.
`opmin`: in fresh processes, the sum of the fastest time of each operation, by LiteRT's profiler.
`pair`: in fresh processes with the other core kept busy, the ratio of two networks that take turns.
`conversion` compares the direct writer with the official converter: seconds, operations, latency.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


USUAL = ("mnasnet:tiny", "mnasnet:a1_x0.35 @ 96", "mobilenet_v2 @ 160")  # 0.1, 0.7 and 4 ms


def models(names=USUAL) -> dict:
    """Networks by name: FAMILY:VARIANT @ RESOLUTION, the variant's own where none is given."""
    from nas import registry

    made = {}
    for name in names:
        network, _, resolution = name.partition(" @ ")
        family, _, variant = network.partition(":")
        module = registry.module("family", family)
        config = module.VARIANTS[variant or next(iter(module.VARIANTS))]
        if resolution:
            shape = (int(resolution), int(resolution), 3)
            classes = 10 if int(resolution) < 128 else config.classes
            config = dataclasses.replace(config, input_shape=shape, classes=classes)
        made[name] = module.build(config)
    return made


def profile(arguments) -> None:
    """Times files in this process and prints a JSON line: what the other commands start."""
    from latency.cpu import CPU

    target = CPU(threads=arguments.threads)
    target.identity()  # establishes the nominal times if they are not known yet
    rows = []
    for files in [arguments.files] if arguments.together else [[file] for file in arguments.files]:
        started = time.perf_counter()
        found = target.compare(files, runs=arguments.runs, details=arguments.details)
        seconds = (time.perf_counter() - started) / len(files)
        rows += [latency.to_json() | {"seconds": seconds} for latency in found]
    print(json.dumps(rows))


def repeatability(arguments) -> None:
    """Fresh processes, alternately idle and with one core kept busy by another process."""
    from latency.tflite import convert

    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, model in models().items():
            files.append(Path(folder) / f"{name.replace(' ', '').replace(':', '_')}.tflite")
            files[-1].write_bytes(convert.assemble(model))
        found: dict[str, list] = {"as it is": [], "a core kept busy": []}
        for _ in range(arguments.processes):
            for mode, rows in found.items():
                busy = []
                if mode != "as it is":
                    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])]
                try:
                    rows.append(_fresh(files, arguments))
                finally:
                    for process in busy:
                        process.kill()
                        process.wait()
    print(f"{arguments.processes} processes each, runs={arguments.runs}")
    print(f"load average {os.getloadavg()[0]:.1f}; deviations from the median over all processes")
    for position, path in enumerate(files):
        everything = [rows[position]["median_ms"] for all_ in found.values() for rows in all_]
        centre = np.median(everything)
        for mode, processes in found.items():
            rows = [rows[position] for rows in processes]
            away = np.array([row["median_ms"] for row in rows]) / centre - 1
            raw = np.array([row["conditions"]["raw_median_ms"] for row in rows])
            drift = [row["conditions"]["drift"] for row in rows]
            print(
                f"{path.stem:22} {mode:17} {centre:8.4f} ms"
                f"  worst {100 * np.abs(away).max():4.1f} %  sd {100 * away.std():4.1f} %"
                f"  | wall median {100 * (raw.min() / centre - 1):+.0f}"
                f"...{100 * (raw.max() / centre - 1):+.0f} %"
                f"  drift {min(drift):.2f}...{max(drift):.2f}"
                f"  not stable {sum(not row['conditions']['stable'] for row in rows)}"
                f"  {np.median([row['seconds'] for row in rows]):.2f} s"
            )


def _fresh(files, arguments, *options) -> list[dict]:
    command = [sys.executable, __file__, "profile", *map(str, files)]
    command += ["--runs", str(arguments.runs), "--threads", str(arguments.threads), *options]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def opmin(arguments) -> None:
    """The sum of per-operation minima in fresh processes: how far apart, beside the medians."""
    names = arguments.networks.split(",")
    rows = _profiles(names, arguments, "--details")
    print(f"{arguments.processes} fresh processes, load average {os.getloadavg()[0]:.1f}")
    for number, name in enumerate(names):
        found = [row[number] for row in rows]
        known = [row["op_min_ms"] for row in found if row["op_min_ms"] is not None]
        _print_apart(f"{name:20} per-op minimum ({len(known)})", known)
        _print_apart(f"{name:20} median", [row["median_ms"] for row in found])
        raw = [row["conditions"]["raw_median_ms"] for row in found]
        _print_apart(f"{name:20} wall median", raw)
        print(f"  e.g. {found[0]['conditions']['per_op']}, {found[0]['seconds']:.1f} s")


def pair(arguments) -> None:
    """The ratio of two networks that take turns, with the other core kept busy."""
    for names in (
        ["mnasnet:a1 @ 224", "mobilenet_v2 @ 224"],
        ["mnasnet:a1_x0.35 @ 96", "mobilenet_v2 @ 160"],
    ):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])]
        try:
            rows = _profiles(names, arguments, "--together")
        finally:
            for process in busy:
                process.kill()
                process.wait()
        print(f"{' / '.join(names)}, load average {os.getloadavg()[0]:.1f}")
        for what, of in (
            ("medians", lambda row: row["median_ms"]),
            ("wall medians", lambda row: row["conditions"]["raw_median_ms"]),
        ):
            _print_apart(f"  ratio of {what}", [of(first) / of(second) for first, second in rows])
            for number, name in enumerate(names):
                _print_apart(f"    {name}", [of(row[number]) for row in rows])


def _profiles(names, arguments, *options) -> list[list[dict]]:
    """What `profile` prints in each of the fresh processes, which take the networks in turns."""
    from latency.tflite import convert

    made = models(names)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, name in enumerate(names):
            files.append(Path(folder) / f"{number}.tflite")
            files[-1].write_bytes(convert.assemble(made[name]))
        rows = []
        for number in range(arguments.processes):
            rows.append(_fresh(files, arguments, *options))
            told = [
                (round(row["median_ms"], 4), row["op_min_ms"] or row["conditions"].get("per_op"))
                for row in rows[-1]
            ]
            print(f"process {number}: medians and per-op minima {told}", flush=True)
        return rows


def _print_apart(what: str, values: list[float]) -> None:
    values = np.array(values)
    apart = values.max() / values.min() - 1
    print(f"{what:46} {np.median(values):9.4f}  max/min - 1 = {100 * apart:6.1f} %")


def conversion(arguments) -> None:
    """Direct writer against the official converter, and the converter's slower route."""
    from latency.cpu import CPU
    from latency.tflite import convert
    from latency.tflite.graph import operations

    for name, model in models().items():
        convert.assemble(model)
        direct, direct_s = _timed(convert.assemble, model)
        official, official_s = _timed(convert.convert, model)
        _, saved_s = _timed(_through_saved_model, model)
        inputs = np.random.default_rng(0).random((1, *model.input_shape[1:]), np.float32)
        difference = np.abs(convert.run(direct, inputs) - convert.run(official, inputs)).max()
        latencies = []
        with tempfile.TemporaryDirectory() as folder:
            for position, tflite in enumerate((direct, official)):
                path = Path(folder) / f"{position}.tflite"
                path.write_bytes(tflite)
                latencies.append(CPU().profile(path, runs=arguments.runs).median_ms)
        print(
            f"{name:20} direct {1e3 * direct_s:6.1f} ms, converter {official_s:5.2f} s,"
            f" through SavedModel {saved_s:5.2f} s;"
            f" same operations {operations(direct) == operations(official)},"
            f" outputs differ {difference:.1e}; latency {latencies[0]:.4f} / {latencies[1]:.4f} ms"
            f" = {latencies[0] / latencies[1]:.3f}"
        )


def _timed(function, model):
    started = time.perf_counter()
    return function(model), time.perf_counter() - started


def _through_saved_model(model) -> bytes:
    import keras
    import tensorflow as tf

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda x: model(x, training=False),
        input_signature=[tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)],
    )
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for function in (repeatability, opmin, pair, conversion, profile):
        command = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
        command.set_defaults(function=function)
        command.add_argument("--runs", type=int, default=50)
        command.add_argument("--threads", type=int, default=1)
        if function in (repeatability, opmin, pair):
            command.add_argument("--processes", type=int, default=10)
        if function is opmin:
            usual = "mnasnet:tiny,mnasnet:a1 @ 224,mobilenet_v2 @ 224"
            command.add_argument("--networks", default=usual, help="separated by commas")
        if function is profile:
            command.add_argument("files", nargs="+")
            command.add_argument("--details", action="store_true")
            command.add_argument("--together", action="store_true")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()

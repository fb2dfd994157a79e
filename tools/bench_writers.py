"""How small and fast compressed weights are in LiteRT: an FC-heavy network, products, convolutions.

    python tools/bench_writers.py bits [--width 4096] [--layers 2] [--rounds 50]
    python tools/bench_writers.py sparse [--width 2048]
    python tools/bench_writers.py kernels

`bits`: layers of width x width as float32 and with the levels of 8, 4 and 2 bits. `sparse`: one
layer with blocks of 1x4 or scattered values pruned. `kernels`: what `prefer` decides by, for each
kind of kernel. Random weights; batch 1, one thread, the files in turns, the least of all rounds.
"""

import argparse
import os
import pathlib
import tempfile
import time

import numpy as np

from nas import backend

keras = backend.load()

from keras import layers  # noqa: E402

from compress.rewriting.record import Record, Weight  # noqa: E402
from latency.tflite import convert  # noqa: E402
from nas.files.writers.litert import write  # noqa: E402

LEVELS = {
    8: np.arange(-127, 128, dtype=np.float32),
    4: np.arange(-7, 8, dtype=np.float32),
    2: np.array([-1.5, -0.5, 0.5, 1.5], np.float32),
}


def main() -> None:
    """Print one line per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, width in (("bits", 4096), ("sparse", 2048), ("kernels", 0)):
        command = commands.add_parser(name)
        command.add_argument("--rounds", type=int, default=50)
        if width:
            command.add_argument("--width", type=int, default=width)
    commands.choices["bits"].add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{os.uname().machine}, 1 thread, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        globals()[arguments.command](arguments, pathlib.Path(folder) / "small.tflite")


def bits(arguments, path: pathlib.Path) -> None:
    """The gate of issue 5: 2 bits at least 12x smaller than float32 and at least 5x faster."""
    model = products(arguments.width, arguments.layers)
    files = {"float32": convert.file_of(model)}
    for width in LEVELS:
        record = quantize(model := products(arguments.width, arguments.layers), width)
        told = write(path, model, record)
        files[f"{width} bits"] = path.read_bytes()
        print(f"{width} bits: {told.bits_per_weight:.3f} bits a weight; {told.checked}", flush=True)
    report(files, arguments.rounds)


def sparse(arguments, path: pathlib.Path) -> None:
    """The gate of issue 5: 1x4 blocks at 90 % at least 2x faster."""
    for block, name in ((4, "1x4 blocks"), (1, "scattered")):
        files = {}
        for share in (0.0, 0.5, 0.8, 0.9, 0.95):
            model = products(arguments.width, 1)
            record = prune(model, share, block)
            told = write(path, model, record)
            kind = told.weights["dense0/kernel"]
            files[f"{name} {share:.0%}: {kind}"] = path.read_bytes()
        report(files, arguments.rounds)


def kernels(arguments, path: pathlib.Path) -> None:
    """One layer each, all widths, by size and by speed."""
    made = {
        "3x3 convolution": lambda: one(layers.Conv2D(64, 3, padding="same"), (16, 16, 64)),
        "1x1 convolution": lambda: one(layers.Conv2D(128, 1), (16, 16, 64)),
        "depthwise": lambda: one(layers.DepthwiseConv2D(3, padding="same"), (16, 16, 128)),
        "transposed": lambda: one(layers.Conv2DTranspose(32, 3, strides=2), (8, 8, 32)),
        "product": lambda: one(layers.Dense(512), (512,)),
    }
    for name, make in made.items():
        files = {f"{name} float32": convert.file_of(make())}
        for width in LEVELS:
            for prefer in ("size", "speed"):
                model = make()
                told = write(path, model, quantize(model, width), prefer=prefer)
                kind = next(kind for weight, kind in told.weights.items() if "kernel" in weight)
                files[f"{name} {width} bits, {prefer}: {kind}"] = path.read_bytes()
        report(files, arguments.rounds)


def products(width: int, count: int) -> keras.Model:
    """`count` layers of width x width."""
    inputs = x = keras.Input((width,), name="features")
    for number in range(count):
        x = layers.Dense(width, "relu" if number < count - 1 else None, name=f"dense{number}")(x)
    return keras.Model(inputs, x)


def one(layer, shape: tuple[int, ...]) -> keras.Model:
    """A network of one layer."""
    inputs = keras.Input(shape, name="features")
    return keras.Model(inputs, layer(inputs))


def quantize(model: keras.Model, width: int) -> Record:
    """Rounds the kernels to levels of so many bits, a scale per output channel."""
    record, levels = Record(original=model), LEVELS[width]
    for variable in model.weights:
        value = np.asarray(variable)
        if value.ndim < 2:
            continue
        axes = (0, 1) if "depthwise" in variable.path else tuple(range(value.ndim - 1))
        scale = np.abs(value).max(axes, keepdims=True) / levels.max()
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, value / scale).astype(np.uint8)
        record.weights[variable.path] = Weight(width, codes, levels[None], scale)
        variable.assign(record.weights[variable.path].dense())
    return record


def prune(model: keras.Model, share: float, block: int) -> Record:
    """Sets a share of the kernels' blocks of inputs to 0."""
    record, generator = Record(original=model), np.random.default_rng(0)
    for variable in model.weights:
        value = np.asarray(variable)
        if value.ndim == 2:
            rows = generator.random((value.shape[0] // block, value.shape[1])) >= share
            mask = np.repeat(rows, block, 0)
            variable.assign(value * mask)
            record.weights[variable.path] = Weight(mask=mask)
    return record


def report(files: dict[str, bytes], rounds: int) -> None:
    """Kilobytes and microseconds of each file, and how much less than the first."""
    runs = {name: convert.runner(tflite) for name, tflite in files.items()}
    times = {name: [] for name in files}
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # its weights back into the cache
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    first = next(iter(files))
    for name, tflite in files.items():
        size, least = len(tflite), min(times[name])
        print(
            f"{name:36} {size / 1024:9.1f} KB {len(files[first]) / size:6.2f}x smaller"
            f" {least * 1e6:8.1f} us {min(times[first]) / least:6.2f}x faster",
            flush=True,
        )


if __name__ == "__main__":
    main()

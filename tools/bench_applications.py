"""Every network of keras.applications through opening, profiling, compression and export.

    python tools/bench_applications.py [--only MobileNet ResNet50] [--minutes 30] [--again]
    python tools/bench_applications.py --table

Random weights, the smallest input that a network takes; MobileNetV3 once more with open height and
width. A row is appended to `tools/results/applications.jsonl` as a network is done: the same
command goes on with the others. A cell is "ok" with its figure, or the reason in words. Each
network runs in a process of its own, which gives its memory back. A small one takes 15 seconds to
3 minutes on 2 busy cores.
"""

import argparse
import multiprocessing
import os
import pathlib
import tempfile
import time

from rows import append, read

RESULTS = pathlib.Path(__file__).parent / "results" / "applications.jsonl"
CHIP = "rtx4090"
# One small member of each architecture, then the others by size.
NETWORKS = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Small open", "EfficientNetB0"),
    *("EfficientNetV2B0", "ResNet50", "ResNet50V2", "DenseNet121", "NASNetMobile", "Xception"),
    *("InceptionV3", "ConvNeXtTiny", "VGG16", "MobileNetV3Large", "EfficientNetB1"),
    *("EfficientNetB2", "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetB3"),
    *("EfficientNetV2B3", "DenseNet169", "DenseNet201", "EfficientNetV2S", "EfficientNetB4"),
    *("ResNet101", "ResNet101V2", "ConvNeXtSmall", "InceptionResNetV2", "VGG19"),
    *("EfficientNetB5", "EfficientNetV2M", "EfficientNetB6", "ResNet152", "ResNet152V2"),
    *("EfficientNetB7", "NASNetLarge", "ConvNeXtBase", "EfficientNetV2L", "ConvNeXtLarge"),
    "ConvNeXtXLarge",
)
PIXELS = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}  # 32 for all others
CELLS = ("open", "cpu", "gpu", "ptq:8", "prune_channels:.25", "export")


def main() -> None:
    """Append a row for each network that has none; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no network after these")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    arguments = parser.parse_args()
    found = {row["network"]: row for row in read(RESULTS)}
    until = time.monotonic() + 60 * arguments.minutes
    for name in () if arguments.table else arguments.only:
        if (name in found and not arguments.again) or time.monotonic() > until:
            continue
        found[name] = in_process(name)
        append(RESULTS, found[name])  # of several rows of a network the last counts
        print(name, found[name]["cells"], flush=True)
    print(table([found[name] for name in NETWORKS if name in found]))


def in_process(name: str) -> dict:
    """The row of a network, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_row, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        reason = f"the process ended with {process.exitcode} (-9: killed, of memory perhaps)"
        return {"network": name, "pixels": 0, "params": 0, "cells": dict.fromkeys(CELLS, reason)}
    finally:
        process.join()


def send_row(name: str, connection) -> None:
    """In a process of its own: all cells of a network."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras  # noqa: PLC0415

    kind, _, open_size = name.partition(" ")
    pixels = PIXELS.get(kind, 32)
    size = None if open_size else pixels
    model = getattr(keras.applications, kind)(
        input_shape=(size, size, 3), include_top=not open_size, weights=None
    )
    cells = Cells(model, pixels)
    done: dict[str, str] = {}
    for cell, find in zip(
        CELLS,
        (cells.open, cells.cpu, cells.gpu, cells.rounded, cells.pruned, cells.export),
        strict=True,
    ):
        start = time.monotonic()
        try:
            done[cell] = f"ok, {find()}"
        except Exception as error:  # the row says why, whatever it is
            words = " ".join(str(error).split())[:300]
            done[cell] = f"{type(error).__name__}: {words}"
        print(f"  {name} {cell} {time.monotonic() - start:.0f} s: {done[cell]}", flush=True)
    connection.send(
        {"network": name, "pixels": pixels, "params": model.count_params(), "cells": done}
    )


class Cells:
    """What is tried with one network: each method returns a figure, or raises the reason."""

    def __init__(self, model, pixels: int):
        """pixels: of an input whose size the network leaves open, where one is needed."""
        self.model, self.pixels = model, pixels
        self.flat = None

    def open(self) -> str:
        """Flat and equal to the original, on random inputs; copies of all layers are equal, too.

        The others run on the opened network, one of open size with its size set.
        """
        import keras  # noqa: PLC0415

        import nas  # noqa: PLC0415
        from nas.files.flatten import check_copies  # noqa: PLC0415

        network = nas.open(self.model)
        if None in self.model.input_shape[1:]:
            fixed = keras.Input((self.pixels, self.pixels, 3))
            network = nas.open(keras.Model(fixed, self.model(fixed), name=self.model.name))
        self.flat = network.model
        check_copies(self.flat)
        return f"{len(self.flat.layers)} layers"

    def network(self):
        if self.flat is None:
            raise ValueError("not opened")
        return self.flat

    def cpu(self) -> str:
        """Milliseconds on one thread; the file is compared with Keras before it is timed."""
        from latency.cpu import CPU  # noqa: PLC0415

        return f"{CPU(threads=1).profile(self.network(), runs=5).median_ms:.2f} ms"

    def gpu(self) -> str:
        """The estimate from the layers: of the same kind wherever this runs."""
        from latency.gpu import GPU  # noqa: PLC0415

        latency = GPU(chip=CHIP, how="layers").profile(self.network())
        return f"{latency.median_ms:.3f} ms"

    def rounded(self) -> str:
        """Kernels on levels; activations in float, without data."""
        from compress.ptq import PTQ  # noqa: PLC0415

        done = self.compressed(PTQ(bits=8, activations=None))
        return f"{len(done.record.weights)} kernels"

    def pruned(self) -> str:
        """Share of the parameters that stays; the network left must run."""
        import numpy as np  # noqa: PLC0415

        from compress.prune_channels import PruneChannels  # noqa: PLC0415
        from latency.networks.random_inputs import random_inputs  # noqa: PLC0415

        small = self.compressed(PruneChannels(0.25)).model
        outputs = np.asarray(small(random_inputs(small, 1), training=False))
        if not np.isfinite(outputs).all():
            raise ValueError("the outputs of the network that is left are not finite")
        return f"{small.count_params() / self.network().count_params():.0%} of the parameters"

    def compressed(self, method):
        from compress.method import compress  # noqa: PLC0415

        return compress(self.network(), [method])

    def export(self) -> str:
        """The .tflite file that a user is given, read back and compared with Keras."""
        import nas  # noqa: PLC0415
        from compress.ptq import PTQ  # noqa: PLC0415

        small = nas.compress(self.network(), [PTQ(8, activations=None)], by_layer=False)
        with tempfile.TemporaryDirectory(prefix="nas_applications_") as folder:
            written = small.write(pathlib.Path(folder) / "network.tflite")
        return f"{written['after']['bytes'] / 1e6:.1f} MB"


def table(found: list[dict]) -> str:
    """The rows as markdown."""
    lines = ["| network | pixels | parameters | " + " | ".join(CELLS) + " |"]
    lines.append("|---" * (len(CELLS) + 3) + "|")
    for row in found:
        cells = [row["cells"][cell].removeprefix("ok, ") for cell in CELLS]
        start = [row["network"], str(row["pixels"]), f"{row['params'] / 1e6:.1f}M"]
        lines.append("| " + " | ".join(start + cells) + " |")
    failed = sum(not row["cells"][cell].startswith("ok") for row in found for cell in CELLS)
    return "\n".join([*lines, "", f"{len(found)} networks, {failed} failed cells"])


if __name__ == "__main__":
    main()

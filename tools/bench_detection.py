"""A detector trained from new weights on the blood cells, judged on the official test images.

python tools/bench_detection.py                     D0 at 160 pixels, 60 epochs
python tools/bench_detection.py --network efficientdet:tiny,anchor_scale=2.0 --size 96 --epochs 30

Trains on the 205 training images by `nas train`; the 87 validation images choose the epoch whose
averaged weights are kept, by their loss; the 72 test images are looked at once, at the end. Prints
COCO's mean average precision (overlaps .5 to .95, and .5 alone) on both and of each class, writes
the deployed form (boxes after suppression) as one .tflite, runs that on all test images, and prints
its precision and by how much its boxes and scores differ from those of Keras.

Interrupted or killed, the same command goes on; what is done is in --out. A row of figures is
appended to detection.jsonl there.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import statistics
import sys
import time

import numpy as np
from rows import append, read

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from nas import backend, registry
from nas.cli import command_line as command
from nas.tasks import detection
from nas.tasks.scoring import average_precision

NETWORK = "efficientdet:d0,anchor_scale=2.0"  # at 160 pixels platelets have 10: anchors from 16


def main() -> int:
    """Train, judge, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default=NETWORK)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=detection.TRAINING["epochs"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="bench_detection", help="folder of what is made")
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    backend.threads(arguments.threads)
    folder = pathlib.Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", f"{arguments.network} {arguments.size} {arguments.epochs}")
    file = folder / f"{name}-seed{arguments.seed}.keras"
    known = folder / "detection.jsonl"
    settings = ("network", "size", "epochs", "seed")
    for row in read(known):
        if all(row[setting] == getattr(arguments, setting) for setting in settings):
            print(json.dumps(row, indent=1))
            return 0
    options = {"task": f"detection:bccd,size={arguments.size}", "epochs": arguments.epochs}
    options |= {"seed": arguments.seed, "out": file, "patience": arguments.epochs}
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    if code := command.main(["train", arguments.network, *flags]):
        return code
    row = {setting: getattr(arguments, setting) for setting in settings}
    row |= {"threads": arguments.threads, "load": os.getloadavg()[0]}
    row |= judged(file, arguments)
    row["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    append(known, row)
    print(json.dumps(row, indent=1))
    return 0


def judged(file: pathlib.Path, arguments: argparse.Namespace) -> dict:
    """Precisions of the trained network and of its .tflite file, and how far these are apart."""
    from families.layers import copy_weights
    from families.objectives import boxes
    from latency.networks import keras_file
    from latency.tflite import convert
    from nas.networks import build

    record = json.loads(file.with_suffix(".json").read_text())
    row = {"params": record["params"], "train_minutes": record["seconds"] / 60}
    row["loss"] = [epoch["loss"] for epoch in (record["history"][0], record["history"][-1])]
    tasks = {
        "val": detection.load(size=arguments.size),
        "test": detection.load(size=arguments.size, test=True),
    }
    family, config = registry.network(arguments.network)
    deployed = build.build(build.deploy(build.for_task(config, tasks["val"].fields, "")))
    copy_weights(keras_file.load(file), deployed)
    found = {part: of_keras(deployed, task.valid[0]) for part, task in tasks.items()}
    tflite = convert.convert(deployed)
    file.with_suffix(".tflite").write_bytes(tflite)
    row["tflite_mb"] = len(tflite) / 2**20
    found["test, .tflite"] = of_file(tflite, tasks["test"].valid[0], row)
    for part, objects in found.items():
        rows = average_precision.rows(tasks[part.split(",")[0]].valid[1]["boxes"], objects)
        precision = average_precision.precision(rows)
        row[part] = {"AP": precision.mean, "AP50": precision.at_50, "AP75": precision.at_75}
        row[part]["of_class"] = precision.of_class
    alike = [
        boxes.largest_difference(*({k: v[i : i + 1] for k, v in found[p].items()} for p in pair))
        for pair in [("test", "test, .tflite")]
        for i in range(len(tasks["test"].valid[0]))
    ]
    row["apart"] = {
        "images": len(alike),
        "within_1e-3": int(np.sum(np.array(alike) <= 1e-3)),
        "largest": max(alike),
    }
    row["objects_found"] = int(np.sum(found["test"]["classes"] >= 0))
    return row


def of_keras(model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Objects in images, in batches."""
    import keras
    import tensorflow as tf

    from nas.tasks.task import pixels

    run = tf.function(lambda batch: model(batch, training=False), autograph=False)
    parts = [run(pixels(images[i : i + 8])) for i in range(0, len(images), 8)]
    return {
        name: np.concatenate([keras.ops.convert_to_numpy(part[name]) for part in parts])
        for name in parts[0]
    }


def of_file(tflite: bytes, images: np.ndarray, row: dict) -> dict[str, np.ndarray]:
    """Objects in images, one by one; the milliseconds of each go into `row`."""
    from latency.tflite import convert
    from nas.tasks.task import pixels

    session, parts, times = convert.Session(tflite), [], []
    for image in images:
        started = time.perf_counter()
        parts.append(session({"image": pixels(image[None])}))
        times.append(1e3 * (time.perf_counter() - started))
    row["tflite_median_ms"] = statistics.median(times)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    raise SystemExit(main())

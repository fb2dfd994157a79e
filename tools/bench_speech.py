"""The spoken digits: a streaming transducer trained here, judged as a whole, by chunks, exported.

python tools/bench_speech.py                     trains conformer:tiny, then measures
python tools/bench_speech.py --model x.keras     measures a network of `nas train`

Prints the digits right of takes 0-4 (the others train) and the minutes of training; whether every
text is the same decoded by chunks and as a whole; and, of the streaming encoder, the prediction
network and the joint as .tflite files on one thread of this CPU, the real-time factor: seconds of
computing for a second of speech.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from nas import backend
from nas.tasks import fsdd

FRAME_S = fsdd.HOP_MS / 1000


def main() -> None:
    """Train, decode, export, time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a trained .keras file instead of training")
    parser.add_argument("--epochs", type=int, default=fsdd.TRAINING["epochs"])
    parser.add_argument("--units", choices=fsdd.UNITS, default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=4, help="encoded frames (of 40 ms) a chunk")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", help="folder for the .keras and .tflite files")
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    backend.threads(arguments.threads)
    keras = backend.load()
    from families import conformer
    from nas.training.loop import evaluate, fit

    task = fsdd.load(units=arguments.units)
    config = dataclasses.replace(conformer.VARIANTS["tiny"], **task.fields)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, {arguments.threads} thread(s), load {load:.1f} at the start")
    if arguments.model:
        model = keras.saving.load_model(arguments.model)
        print(f"{arguments.model}: {100 * evaluate(model, task):.2f} % of digits right")
    else:
        keras.utils.set_random_seed(arguments.seed)
        model = conformer.build(config)
        cpu = time.process_time()
        done = fit(model, task, arguments.epochs, arguments.seed, on_epoch=show)
        cpu = time.process_time() - cpu
        print(
            f"trained {arguments.epochs} epochs of {len(task.train[0]['frames'])} clips in "
            f"{done.seconds / 60:.1f} minutes ({cpu / 60:.1f} CPU minutes), "
            f"{model.count_params()} parameters: {100 * done.quality:.2f} % of digits right"
        )
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(arguments.out or scratch)
        out.mkdir(parents=True, exist_ok=True)
        model.save(out / "speech.keras")
        networks = forms(conformer, config, model, arguments.chunk)
        offline = decoded_whole(networks, task)
        by_chunks = decoded_by_chunks(networks, task, arguments.units, offline)
        exported(networks, task, out, by_chunks, arguments.units)


def show(epoch: int, quality: float) -> bool:
    """A line per epoch."""
    print(f"  epoch {epoch}: {100 * quality:.2f} %", flush=True)
    return False


def forms(conformer, config, model, chunk: int) -> dict:
    """The Keras models of the parts, all with the weights of `model`."""
    from families.layers import copy_weights

    found = {}
    for name, fields in {
        "encoder": {"part": "encoder"},
        "stream": {"part": "encoder", "chunk": chunk},
        "prediction": {"part": "prediction"},
        "joint": {"part": "joint"},
    }.items():
        found[name] = conformer.build(dataclasses.replace(config, **fields))
        copy_weights(model, found[name])
    return found


def compiled(model):
    """As one TensorFlow function for each batch size."""
    import tensorflow as tf

    from families.objectives import streaming

    return streaming.of_keras(model, lambda run: tf.function(run, autograph=False))


def decoded_whole(networks, task) -> list[list[int]]:
    """Labels of all validation clips, encoded as a whole."""
    from families.objectives import decoding, streaming

    inputs, _ = task.valid
    encoder = compiled(networks["encoder"])
    parts = streaming.parts_of(compiled(networks["prediction"]), compiled(networks["joint"]))
    given = {name: inputs[name] for name in encoder.inputs}
    encoded = encoder.run(given)["encoded"]
    ratio = round(inputs["features"].shape[1] / encoded.shape[1])
    return decoding.greedy(encoded, -(-inputs["frames"] // ratio), parts).labels


def decoded_by_chunks(networks, task, units: str, offline) -> list[list[int]]:
    """Labels of all validation clips, chunk by chunk; compared with those of the whole."""
    from families.objectives import streaming

    inputs, targets = task.valid
    encoder = compiled(networks["stream"])
    parts = streaming.parts_of(compiled(networks["prediction"]), compiled(networks["joint"]))
    *_, last = streaming.stream(encoder, parts, inputs["features"], inputs["frames"])
    same = sum(a == b for a, b in zip(last.labels, offline, strict=True))
    right = share_right(last.labels, targets, units)
    size = encoder.inputs["features"][0][0]
    print(
        f"by chunks of {10 * size} ms: {same} of {len(offline)} texts as offline, "
        f"{100 * right:.2f} % right"
    )
    return last.labels


def share_right(labels, targets, units: str) -> float:
    """Share of texts that are what was said."""
    pairs = zip(labels, targets["labels"], strict=True)
    return statistics.mean(fsdd.text(a, units) == fsdd.text(b, units) for a, b in pairs)


def exported(networks, task, out: pathlib.Path, expected, units: str) -> None:
    """The parts as .tflite files: their sizes, texts and times."""
    from families.objectives import streaming
    from latency.tflite import convert

    runs = {}
    for name in ("stream", "prediction", "joint"):
        file = out / f"speech_{name}.tflite"
        file.write_bytes(convert.convert(networks[name]))
        runs[name] = litert_network(file)
        print(f"{file.name}: {file.stat().st_size / 1024:.0f} KiB")
    seconds = dict.fromkeys(runs, 0.0)
    timed = {name: stopwatch(network, name, seconds) for name, network in runs.items()}
    parts = streaming.parts_of(timed["prediction"], timed["joint"])
    inputs, targets = task.valid
    labels, started = [], time.perf_counter()
    for features, frames in zip(inputs["features"], inputs["frames"], strict=True):
        *_, last = streaming.stream(timed["stream"], parts, features[None], np.array([frames]))
        labels += last.labels
    wall = time.perf_counter() - started
    speech = float(inputs["frames"].sum()) * FRAME_S
    same = sum(a == b for a, b in zip(labels, expected, strict=True))
    right = share_right(labels, targets, units)
    print(
        f".tflite: {same} of {len(expected)} texts as Keras by chunks, {100 * right:.2f} % right; "
        f"{speech:.0f} s of speech in {wall:.1f} s: real-time factor {wall / speech:.4f} with the "
        f"search in Python, {sum(seconds.values()) / speech:.4f} in the networks ("
        + ", ".join(f"{name} {spent / speech:.4f}" for name, spent in seconds.items())
        + f"); load {os.getloadavg()[0]:.1f}"
    )


def litert_network(file: pathlib.Path):
    """A .tflite file on one thread, batch 1."""
    from families.objectives import streaming
    from latency.tflite import convert

    session = convert.Session(file)
    inputs = {name: (shape[1:], dtype) for name, (shape, dtype) in session.inputs.items()}
    return streaming.Network(session, inputs, frozenset(session.outputs))


def stopwatch(network, name: str, seconds: dict[str, float]):
    """The network, its time added to `seconds`."""

    def run(inputs):
        started = time.perf_counter()
        outputs = network.run(inputs)
        seconds[name] += time.perf_counter() - started
        return outputs

    return dataclasses.replace(network, run=run)


if __name__ == "__main__":
    main()

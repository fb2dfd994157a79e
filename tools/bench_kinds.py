"""Networks that are no classifiers of images, each beside the TFLite converter's and tfmot's files.

    python -m venv /tmp/tfmot
    /tmp/tfmot/bin/pip install tensorflow-model-optimization tf-keras tensorflow
    NAS_DATA=... python tools/bench_kinds.py --tfmot-python /tmp/tfmot/bin/python [--seeds 0 1 2]
    python tools/bench_kinds.py --table

An autoencoder, a binary classifier, a regression, a U-Net and a network of two inputs, each trained
on real data for a minute at most and judged in its own metric, on data that nothing was trained or
calibrated on. Through `nas.compress`: ptq:8, qat:4, prune:.75, and distill: half as wide, with the
trained network as its teacher. Beside them, of the same trained network and the same examples: the
converter's float file, its dynamic ranges and its full integers; tfmot's 75 % zeros, as long and
with the same steps, of a twin with the same weights, converted for sparsity; and the half as wide
network trained as long without a teacher. tfmot needs tf_keras, so it runs in an environment of
its own; without --tfmot-python its rows are left out. "Keras" is the quality before the file is
made. Rows are appended to `tools/results/kinds.jsonl`: the same command goes on with the others.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from kinds import TASKS, network
from rows import append, read

RESULTS = pathlib.Path(__file__).parent / "results" / "kinds.jsonl"
SPARSITY = 0.75
RATE, FINE = 6e-3, 1.5e-3  # FINE: a quarter, as `nas compress` has it
BATCH = {"autoencoder": 64, "binary": 64, "regression": 64, "unet": 16, "two_inputs": 64}
EPOCHS = {"autoencoder": 8, "binary": 10, "regression": 40, "unet": 8, "two_inputs": 12}
CALIBRATION = 512  # training examples that both quantizers see: the default of `nas.compress`
METRICS = {  # of each kind, and whether more is better
    "autoencoder": ("RMSE", False),
    "binary": ("accuracy", True),
    "regression": ("MAE", False),
    "unet": ("mean IoU", True),
    "two_inputs": ("accuracy", True),
}
OURS = ("ptq:8", "qat:4", "prune:.75", "distill")
ORDER = ("float file", "ptq:8", "converter dynamic", "converter integers", "qat:4", "prune:.75")
ORDER += ("tfmot prune .75", "distill", "no teacher")  # of the table
PEERS = ("float file", "converter dynamic", "converter integers", "tfmot prune .75", "no teacher")


def main() -> None:
    """Append the rows that are not there; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tfmot-python", help="a Python that has tensorflow_model_optimization")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return prune_with_tfmot(arguments.worker)
    for seed in () if arguments.table else arguments.seeds:
        for kind in arguments.only:
            done = {
                row["row"] for row in read(RESULTS) if (row["kind"], row["seed"]) == (kind, seed)
            }
            wanted = [row for row in (*OURS, *PEERS) if row not in done]
            if not arguments.tfmot_python and "tfmot prune .75" in wanted:
                wanted.remove("tfmot prune .75")
            if wanted:
                run(kind, seed, wanted, arguments.tfmot_python)
    print(table(read(RESULTS)))


def compiled(keras, kind: str, model, rate: float, steps: int):
    """Compiled with its own loss and metric; the rate falls as a cosine."""
    losses = {"autoencoder": "mse", "binary": "binary_crossentropy", "regression": "mae"}
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    metrics = {"autoencoder": keras.metrics.RootMeanSquaredError(), "regression": "mae"}
    if kind == "unet" and hasattr(keras, "ops"):
        metrics["unet"] = keras.metrics.MeanIoU(4, sparse_y_pred=False)
    loss = losses.get(kind, "sparse_categorical_crossentropy")
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=[metrics.get(kind, "accuracy")])
    return model


def quality(kind: str, outputs: np.ndarray, right: np.ndarray) -> float:
    """In the kind's own metric, by numpy."""
    if kind == "autoencoder":
        return float(np.sqrt(np.mean((outputs - right) ** 2)))
    if kind == "binary":
        return float(np.mean((outputs > 0.5) == right))
    if kind == "regression":
        return float(np.mean(np.abs(outputs - right)))
    found = outputs.argmax(-1)
    if kind == "two_inputs":
        return float(np.mean(found == right))
    both = np.histogram2d(right.ravel(), found.ravel(), bins=np.arange(5) - 0.5)[0]
    return float(np.mean(np.diag(both) / (both.sum(0) + both.sum(1) - np.diag(both))))


def from_file(content: bytes, inputs) -> np.ndarray:
    """Outputs of a .tflite file by LiteRT, one example after the other."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()
    arrays = inputs if isinstance(inputs, dict) else {"": inputs}
    (out,), found = interpreter.get_output_details(), []
    for row in range(len(next(iter(arrays.values())))):
        for array in arrays.values():
            same = [one for one in details if tuple(one["shape"][1:]) == array.shape[1:]]
            interpreter.set_tensor(same[0]["index"], array[row : row + 1])
        interpreter.invoke()
        found.append(interpreter.get_tensor(out["index"]))
    return np.concatenate(found)


def run(kind: str, seed: int, wanted: list[str], tfmot_python: str | None) -> None:
    """The network is trained; then each row that is wanted."""
    from nas import backend

    keras = backend.load()
    train, held = TASKS[kind]()
    epochs = EPOCHS[kind]
    steps = epochs * -(-len(train[1]) // BATCH[kind])
    keras.utils.set_random_seed(seed)
    model = compiled(keras, kind, network(keras, kind), RATE, steps)
    model.fit(*train, batch_size=BATCH[kind], epochs=epochs, verbose=0)
    before = quality(kind, model.predict(held[0], verbose=0), held[1])
    shared = {"kind": kind, "seed": seed, "metric": METRICS[kind][0], "before": before}
    shared |= {"params": model.count_params()}
    for row in wanted:
        started = time.monotonic()
        if row in OURS:
            found = ours(row, kind, seed, model, train, held)
        elif row == "tfmot prune .75":
            found = tfmot(tfmot_python, kind, seed, model, train, held)
        elif row == "no teacher":
            found = student(kind, seed, train, held)
        else:
            content = converted(model, row, train[0])
            found = {
                "bytes": len(content),
                "file": quality(kind, from_file(content, held[0]), held[1]),
            }
            found["keras"] = before
        found["seconds"] = round(time.monotonic() - started, 1)
        append(RESULTS, shared | {"row": row} | found)
        print(kind, seed, row, found, flush=True)


def ours(row: str, kind: str, seed: int, model, train, held) -> dict:
    """Through the door, as a user has it: the file is judged here again."""
    import keras

    import nas
    from compress.distill import Distill
    from compress.prune import Prune
    from compress.ptq import PTQ
    from compress.qat import QAT

    methods = {"ptq:8": PTQ(8), "qat:4": QAT(4), "prune:.75": Prune(SPARSITY)}
    method = methods.get(row) or Distill(teacher=model)
    if row == "distill":
        keras.utils.set_random_seed(seed)
        model = compiled(keras, kind, network(keras, kind, width=8), RATE, 1)
    recipe = nas.Recipe(batch_size=BATCH[kind], learning_rate=RATE if row == "distill" else FINE)
    small = nas.compress(
        model, method, train, valid=held, seed=seed, by_layer=False, recipe=recipe,
        epochs=0 if row == "ptq:8" else EPOCHS[kind], examples_count=CALIBRATION,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "small.tflite")
        small.write(file)
        content = file.read_bytes()
    outputs = small.model.predict(held[0], verbose=0)
    return {
        "bytes": len(content),
        "keras": quality(kind, outputs, held[1]),
        "file": quality(kind, from_file(content, held[0]), held[1]),
        "told": small.after["quality"],
        "metric told": small.record["metric"],
    }


def student(kind: str, seed: int, train, held) -> dict:
    """What distill's student learns in the same time by itself, in a float file of ours."""
    import keras

    import nas
    from latency.tflite import convert

    keras.utils.set_random_seed(seed)
    model = compiled(keras, kind, network(keras, kind, width=8), RATE, 1)
    recipe = nas.Recipe(batch_size=BATCH[kind], learning_rate=RATE)
    nas.train(model, train, valid=held, epochs=EPOCHS[kind], seed=seed, recipe=recipe)
    content = convert.file_of(model)
    outputs = model.predict(held[0], verbose=0)
    return {
        "bytes": len(content),
        "keras": quality(kind, outputs, held[1]),
        "file": quality(kind, from_file(content, held[0]), held[1]),
    }


def converted(model, row: str, inputs) -> bytes:
    """By TensorFlow's own converter, its options as its guide has them."""
    import keras
    import tensorflow as tf

    arrays = inputs if isinstance(inputs, dict) else {model.inputs[0].name: inputs}
    signature = [
        tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=tensor.name)
        for tensor in model.inputs
    ]
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", model.call, [signature] if len(signature) > 1 else signature)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if row != "float file":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if row == "converter integers":
            names = [tensor.name for tensor in model.inputs]
            seen = min(CALIBRATION, len(arrays[names[0]]))
            converter.representative_dataset = lambda: (
                {name: arrays[name][one : one + 1] for name in names} for one in range(seen)
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return converter.convert()


def tfmot(python: str, kind: str, seed: int, model, train, held) -> dict:
    """The row of tfmot, from the other environment."""
    with tempfile.TemporaryDirectory() as folder:
        weights = {f"weight{number}": one for number, one in enumerate(model.get_weights())}
        np.savez(pathlib.Path(folder, "weights.npz"), **weights)
        job = {"kind": kind, "seed": seed}
        pathlib.Path(folder, "job.json").write_text(json.dumps(job))
        subprocess.run([python, __file__, "--worker", folder], check=True, stdout=sys.stderr)
        content = pathlib.Path(folder, "pruned.tflite").read_bytes()
        outputs = np.load(pathlib.Path(folder, "outputs.npy"))
    return {
        "bytes": len(content),
        "keras": quality(kind, outputs, held[1]),
        "file": quality(kind, from_file(content, held[0]), held[1]),
    }


def prune_with_tfmot(folder: pathlib.Path) -> None:
    """In the other environment: zeros by tfmot, as its guide has them; the file and its outputs."""
    import tensorflow as tf
    import tensorflow_model_optimization as optimization
    import tf_keras

    job = json.loads((folder / "job.json").read_text())
    kind, sparsity = job["kind"], optimization.sparsity.keras
    train, held = TASKS[kind]()
    tf_keras.utils.set_random_seed(job["seed"])
    model = network(tf_keras, kind)
    with np.load(folder / "weights.npz") as arrays:
        model.set_weights([arrays[f"weight{number}"] for number in range(len(arrays.files))])
    steps = EPOCHS[kind] * -(-len(train[1]) // BATCH[kind])
    schedule = sparsity.PolynomialDecay(0.0, SPARSITY, 0, round(0.7 * steps), frequency=10)
    model = sparsity.prune_low_magnitude(model, schedule)
    compiled(tf_keras, kind, model, FINE, steps)
    update = [sparsity.UpdatePruningStep()]
    model.fit(*train, BATCH[kind], EPOCHS[kind], verbose=0, callbacks=update)
    model = sparsity.strip_pruning(model)
    np.save(folder / "outputs.npy", model.predict(held[0], verbose=0))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    (folder / "pruned.tflite").write_bytes(converter.convert())


def table(rows: list[dict]) -> str:
    """Means of seeds as markdown."""
    lines = ["| network | metric | row | Keras | file | bytes | of the float file |"]
    lines.append("|---" * 7 + "|")
    for kind, (metric, higher) in METRICS.items():
        each = {
            name: [r for r in rows if (r["kind"], r["row"]) == (kind, name)]
            for name in (*PEERS, *OURS)
        }
        if not any(each.values()):
            continue

        def mean(name, field, each=each):
            return float(np.mean([row[field] for row in each[name]]))

        for name in ORDER:
            if not each[name]:
                continue
            size = mean(name, "bytes")
            share = f"{size / mean('float file', 'bytes'):.3f}" if each["float file"] else ""
            lines.append(
                f"| {kind} | {metric}, {'more' if higher else 'less'} is better | {name} | "
                f"{mean(name, 'keras'):.4f} | {mean(name, 'file'):.4f} | {size:,.0f} | {share} |"
            )
    seeds = sorted({row["seed"] for row in rows})
    return "\n".join([*lines, "", f"seeds {', '.join(map(str, seeds))}"])


if __name__ == "__main__":
    main()

"""Magnitude pruning against tfmot: the same networks, first weights, batches, schedule, optimizer.

    python -m venv /tmp/tfmot
    /tmp/tfmot/bin/pip install tensorflow-model-optimization tf-keras tensorflow
    python tools/bench_prune.py --tfmot-python /tmp/tfmot/bin/python [--seeds 3] [--epochs 30]

On the handwritten digits as they are, 8x8: an MLP 64-128-128-10 and a CNN. Of each seed (which is
also the split's) the accuracy on 360 images it was not trained on. tfmot needs tf_keras, so it runs
in an environment of its own, which gets arrays and gives accuracies; without --tfmot-python only
ours runs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

MODELS = ("mlp", "cnn")
# name -> options of Prune; what tfmot is told for the same.
RUNS = {
    "dense": None,
    "90 %": {"sparsity": 0.9},
    "95 %": {"sparsity": 0.95},
    "1x4 90 %": {"sparsity": 0.9, "pattern": "1x4"},
    "2:4": {"sparsity": 0.5, "pattern": "2:4"},
}
OURS_ONLY = {"global 95 %": {"sparsity": 0.95, "scope": "global"}}
BATCH, RATE = 64, 3e-3
BEGIN, END, EVERY = 0.1, 0.7, 5  # shares of the training; steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tfmot-python", help="a Python that has tensorflow_model_optimization")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(pathlib.Path(arguments.worker))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for kind in arguments.models:
            for seed in range(arguments.seeds):
                found |= ours(kind, seed, arguments.epochs, folder)
        if arguments.tfmot_python:
            command = [arguments.tfmot_python, __file__, "--worker", str(folder)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            theirs = json.loads((folder / "found.json").read_text())
            found |= {tuple(key.split("|")): values for key, values in theirs.items()}
    show(found, arguments)


def show(found: dict, arguments) -> None:
    print(f"digits 8x8, {arguments.seeds} seeds, {arguments.epochs} epochs, adam {RATE}, masks")
    print(f"every {EVERY} steps from {BEGIN:.0%} to {END:.0%} of the training; accuracy in %")
    print(f"{'':20}{'ours':>8}{'tfmot':>8}{'margin':>8}  each seed, ours and tfmot; zeros")
    for kind in arguments.models:
        for name in RUNS | OURS_ONLY:
            rows = {
                side: [found.get((side, kind, name, str(s))) for s in range(arguments.seeds)]
                for side in ("ours", "tfmot")
            }
            rows = {side: values for side, values in rows.items() if None not in values}
            means = {
                side: 100 * np.mean([quality for quality, _ in values])
                for side, values in rows.items()
            }
            line = f"{kind + ' ' + name:20}" + "".join(
                f"{means[side]:8.2f}" if side in means else " " * 8 for side in ("ours", "tfmot")
            )
            margin = f"{means['ours'] - means['tfmot']:+8.2f}" if len(means) == 2 else " " * 8
            each = "  ".join(
                " ".join(f"{100 * quality:.2f}" for quality, _ in values)
                for values in rows.values()
            )
            zeros = ", ".join(f"{np.mean([z for _, z in values]):.4f}" for values in rows.values())
            print(f"{line}{margin}  {each}; {zeros}")


def network(keras, kind: str):
    """The same in Keras 3 and in tf_keras."""
    layers = keras.layers
    image = keras.Input((8, 8, 1))
    if kind == "mlp":
        x = layers.Flatten()(image)
        x = layers.Dense(128, activation="relu")(x)
        x = layers.Dense(128, activation="relu")(x)
    else:
        x = layers.Conv2D(16, 3, padding="same", activation="relu")(image)
        x = layers.MaxPooling2D()(x)
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
        x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10)(x))


def zeros(weights) -> float:
    """Share of zeros among the numbers of kernels."""
    kernels = [weight for weight in weights if weight.ndim > 1]
    return float(sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels))


def ours(kind: str, seed: int, epochs: int, folder: pathlib.Path) -> dict:
    """{("ours", kind, run, seed): (accuracy, zeros)}; leaves the job for tfmot in `folder`."""
    from nas import backend

    keras = backend.load()
    from compress.method import compress
    from compress.prune import Prune
    from nas.tasks import digits
    from nas.training.loop import batches, evaluate, fit
    from nas.training.recipe import Recipe

    task = digits.load(size=8, seed=seed)
    recipe = Recipe(batch_size=BATCH, learning_rate=RATE, schedule="constant", warm_up=0)
    steps = len(task.train[0]) // BATCH * epochs
    begin = round(BEGIN * steps)
    end = begin + round((END - BEGIN) * steps) // EVERY * EVERY  # a turn of both
    keras.utils.set_random_seed(seed)
    model = network(keras, kind)
    order = [list(batches(len(task.train[0]), BATCH, seed, e + 1)) for e in range(epochs)]
    arrays = {f"weight{i}": weight for i, weight in enumerate(model.get_weights())}
    arrays |= {"x": task.train[0], "y": task.train[1], "order": np.array(order)}
    arrays |= {"valid_x": task.valid[0], "valid_y": task.valid[1], "end": end, "begin": begin}
    np.savez(folder / f"{kind}_{seed}.npz", **arrays)
    found = {}
    for name, options in (RUNS | OURS_ONLY).items():
        if options is None:
            trained = keras.models.clone_model(model)
            trained.set_weights(model.get_weights())
            fit(trained, task, epochs, seed, recipe=recipe)
        else:
            method = Prune(**options, begin=begin, end=end, every=EVERY)
            trained = compress(
                model,
                [method],
                lambda prepared, update: fit(
                    prepared, task, epochs, seed, recipe=recipe, update=update
                ),
            ).model
        result = (evaluate(trained, task), zeros(trained.get_weights()))
        found["ours", kind, name, str(seed)] = result
        print("ours", kind, name, seed, *result, file=sys.stderr)
    return found


def work(folder: pathlib.Path) -> None:
    """In the other environment: the runs of all jobs in `folder` by tfmot."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    sparsity, found = tfmot.sparsity.keras, {}
    for job in sorted(folder.glob("*.npz")):
        kind, seed = job.stem.split("_")
        data = np.load(job)
        weights = [data[f"weight{i}"] for i in range(sum("weight" in f for f in data.files))]
        for name, options in RUNS.items():
            if name.startswith("1x4") and kind == "cnn":
                continue  # tfmot's blocks are for matrices only
            model = network(tf_keras, kind)
            model.set_weights(weights)
            callbacks = []
            if options is not None:
                # tfmot counts the first step as 1.
                begin, end = int(data["begin"]) + 1, int(data["end"]) + 1
                schedule = sparsity.PolynomialDecay(0.0, options["sparsity"], begin, end, 3, EVERY)
                more = {"1x4": {"block_size": (4, 1)}, "2:4": {"sparsity_m_by_n": (2, 4)}}
                more = more.get(options.get("pattern"), {})
                if "sparsity_m_by_n" in more:
                    schedule = sparsity.ConstantSparsity(0.5, begin, end, EVERY)
                model = sparsity.prune_low_magnitude(model, schedule, **more)
                callbacks = [sparsity.UpdatePruningStep()]
            loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(tf_keras.optimizers.Adam(RATE), loss, metrics=["accuracy"])
            for order in data["order"]:
                chosen = order.ravel()
                model.fit(
                    data["x"][chosen],
                    data["y"][chosen],
                    BATCH,
                    shuffle=False,
                    verbose=0,
                    callbacks=callbacks,
                )
            if callbacks:
                model = sparsity.strip_pruning(model)
            logits = model.predict(data["valid_x"], verbose=0)
            quality = float(np.mean(logits.argmax(1) == data["valid_y"]))
            found[f"tfmot|{kind}|{name}|{seed}"] = quality, zeros(model.get_weights())
            print("tfmot", kind, name, seed, *found[f"tfmot|{kind}|{name}|{seed}"])
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

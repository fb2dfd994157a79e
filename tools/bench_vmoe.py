"""What experts are worth: Mobile V-MoE on Fashion-MNIST, and the forms of `Experts` by time.

    NAS_DATA=... python tools/bench_vmoe.py train [--seeds 0 1 2] [--epochs 30] [--networks ...]
    python tools/bench_vmoe.py forms

`train`: `mobile_vmoe:tiny` with its router taught super-classes ("routed"), without ("end_to_end"),
with tokens routed ("token"), and the dense twin of equal active multiply-adds ("dense"), all by one
recipe, on the training part of the task; judged on test images that no training has seen. `forms`:
the comment at the top of families/layers/experts.py.
"""

import argparse
import dataclasses
import statistics
import time

import fashion
import numpy as np

from nas import backend

keras = backend.load()

from ai_edge_litert.interpreter import Interpreter  # noqa: E402

from families import mobile_vmoe  # noqa: E402
from families.layers import Experts, experts, gelu  # noqa: E402
from families.objectives.super_classes import super_classes  # noqa: E402
from latency.networks.count import count  # noqa: E402
from latency.tflite.convert import convert  # noqa: E402
from nas import registry  # noqa: E402
from nas.tasks.routed import routed  # noqa: E402
from nas.tasks.task import pixels  # noqa: E402
from nas.training.loop import fit  # noqa: E402
from nas.training.recipe import Recipe  # noqa: E402

SHIFT = 2  # pixels
RECIPE = Recipe(learning_rate=3e-3, optimizer="adamw", weight_decay=0.05, ema=0.998)
EPOCHS = 30
NETWORKS = ("dense", "routed", "end_to_end", "token")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    training.add_argument("--epochs", type=int, default=EPOCHS)
    training.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS[:2])
    commands.add_parser("forms")
    arguments = parser.parse_args()
    if arguments.command == "forms":
        training_forms()
        litert_forms()
    else:
        compare(arguments)


def compare(arguments) -> None:
    task = registry.task(f"fashion_mnist:path={fashion.DATA}")
    task = dataclasses.replace(task, augment=moved)
    images, labels = fashion.test()
    test = pixels(images), labels
    print(f"{task.recipe}\n{RECIPE}, {arguments.epochs} epochs, moved and mirrored")
    found = {name: [] for name in arguments.networks}
    for seed in arguments.seeds:
        for name in arguments.networks:
            found[name].append(trained(name, task, test, arguments.epochs, seed))
    print()
    for name, accuracies in found.items():
        print(
            f"{name:10} mean {100 * statistics.mean(accuracies):.2f} %, "
            f"least {100 * min(accuracies):.2f} %"
        )
        if name != "dense" and "dense" in found:
            gains = np.array(accuracies) - np.array(found["dense"])
            told = ", ".join(f"{100 * gain:+.2f}" for gain in gains)
            print(f"{'':10} against dense: {told}; mean {100 * gains.mean():+.2f} %")


def moved(images: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> tuple:
    """Images moved by up to 2 pixels, half of them mirrored."""
    images = images[..., 0]
    count, side, _ = images.shape
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
    rows, columns = generator.integers(0, 2 * SHIFT + 1, (2, count))
    chosen = windows[np.arange(count), rows, columns]
    mirrored = generator.random(count) < 0.5
    return np.where(mirrored[:, None, None], chosen[:, :, ::-1], chosen)[..., None], labels


def network(name: str) -> mobile_vmoe.Config:
    config = mobile_vmoe.VARIANTS["tiny_token" if name == "token" else "tiny"]
    return mobile_vmoe.dense_twin(config) if name == "dense" else config


def trained(name: str, task, test, epochs: int, seed: int) -> float:
    """Test accuracy of one network after one training; prints what it costs and uses."""
    config = network(name)
    if name == "routed":
        task = routed(task, super_classes(np.eye(task.classes), config.experts))
        config = dataclasses.replace(config, **task.fields)
    keras.utils.set_random_seed(seed)
    model = mobile_vmoe.build(config)
    done = fit(model, task, epochs, seed, recipe=RECIPE)
    images, labels = test
    outputs = predicted(model, images)
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    accuracy = float((logits.argmax(-1) == labels).mean())
    print(
        f"seed {seed} {name:10} test {100 * accuracy:.2f} %, "
        f"validation {100 * done.quality:.2f} %, {done.seconds:.0f} s, "
        f"{model.count_params():,} parameters, {count(model).macs:,} MACs"
        f"{used(model, config, images)}",
        flush=True,
    )
    return accuracy


def predicted(model, images, batch: int = 500):
    parts = [model(images[i : i + batch], training=False) for i in range(0, len(images), batch)]
    return keras.tree.map_structure(
        lambda *tensors: np.concatenate([np.asarray(t) for t in tensors]), *parts
    )


def used(model, config, images) -> str:
    """Which share of all choices each expert gets, in words."""
    if config.experts == 1:
        return ""
    told = []
    if config.routing == "image":
        routers = {"all": model.get_layer("router").output}
    else:
        routers = {}
        for layer in model.layers:
            if isinstance(layer, Experts):
                tokens = layer.input
                routers[layer.name] = keras.ops.matmul(tokens, layer.router.value)
    for name, output in routers.items():
        logits = predicted(keras.Model(model.input, output), images)
        logits = logits.reshape(-1, config.experts)
        chosen = np.argsort(-logits, -1)[:, : config.top_k]
        shares = np.bincount(chosen.ravel(), minlength=config.experts) / chosen.size
        told.append(f"{name}: {' '.join(f'{100 * share:.0f}' for share in shares)} %")
    return f"; choices of experts, {', '.join(told)}"


def training_forms(images=64, tokens=50, dim=64, hidden=128, number=10, top_k=2) -> None:
    """Milliseconds of one forward and backward pass, on all cores."""
    import tensorflow as tf

    x = tf.constant(np.random.default_rng(0).normal(size=(images, tokens, dim)), tf.float32)
    inputs = keras.Input((tokens, dim))
    wide = keras.layers.Dense(top_k * hidden, activation=gelu)(inputs)
    models = {"dense MLP": (keras.Model(inputs, keras.layers.Dense(dim)(wide)), {})}
    for name, options, constants in (
        ("_grouped", {}, {"FEW": 0, "GATHER": 10**6}),
        ("_grouped, blocks of 256", {}, {"FEW": 0, "GATHER": 10**6, "BLOCK": 256}),
        ("_everywhere", {}, {"FEW": 10**6, "GATHER": 10**6}),
        ("_gathered, whole images", {"routing": "image"}, {}),
    ):
        layer = Experts(number, hidden, top_k, **options)
        models[name] = (keras.Model(inputs, layer(inputs)), constants)
    print(
        f"forward and backward, {images} x {tokens} tokens, "
        f"{top_k} of {number} experts of {dim} x {hidden}"
    )
    for name, (model, constants) in models.items():
        with form(constants):
            variables = [variable.value for variable in model.trainable_variables]

            @tf.function(autograph=False)
            def step(x, model=model, variables=variables):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(model(x, training=True)))
                return [
                    tf.convert_to_tensor(g) for g in tape.gradient(loss, variables) if g is not None
                ]

            print(f"  {name:25} {1e3 * median(lambda step=step: step(x)[0].numpy()):7.1f} ms")


def litert_forms() -> None:
    """Milliseconds of LiteRT at batch 1, on one core."""
    print("LiteRT, batch 1, 1 thread")
    for tokens, dim, hidden, number, options in (
        (197, 192, 768, 10, {}),
        (197, 192, 768, 10, {"routing": "image"}),
        (1, 256, 768, 8, {}),
        (1, 256, 768, 32, {}),
    ):
        forms = {"_gathered": {"FEW": 0, "GATHER": 0}}
        if not options:
            forms["_everywhere"] = {"FEW": 10**6, "GATHER": 10**6}
            forms["_grouped"] = {"FEW": 0, "GATHER": 10**6}
        if tokens > 1 and not options:
            del forms["_gathered"]  # a copy of the kernels for each token
        for name, constants in forms.items():
            inputs = keras.Input((tokens, dim))
            layer = Experts(number, hidden, 2, **options)
            with form(constants):
                tflite = convert(keras.Model(inputs, layer(inputs)))
            run = Interpreter(model_content=tflite, num_threads=1)
            run.allocate_tensors()
            place = run.get_input_details()[0]["index"]
            run.set_tensor(
                place, np.random.default_rng(0).normal(size=(1, tokens, dim)).astype("float32")
            )
            what = f"{tokens} tokens, 2 of {number} experts of {dim} x {hidden}"
            told = f"{what}, {options.get('routing', 'token')}, {name}"
            print(f"  {told:65} {1e3 * median(run.invoke):7.3f} ms", flush=True)


class form:
    """The constants by which `Experts` chooses a form, changed for a while."""

    def __init__(self, constants: dict):
        self.constants = constants

    def __enter__(self):
        self.before = {name: getattr(experts, name) for name in self.constants}
        vars(experts).update(self.constants)

    def __exit__(self, *_):
        vars(experts).update(self.before)


def median(function, runs: int = 20) -> float:
    function()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()

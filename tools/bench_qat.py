"""What few bits cost: QAT, PTQ and palettes against the float network and against peers.

    NAS_DATA=... python tools/bench_qat.py [--tasks digits fashion_mnist fsdd] [--networks mlp cnn]
        [--seeds 0 1 2] [--rows float qat2 ...] [--longer 1] [--scale 1] [--out qat.jsonl]

A float network is trained by the task's recipe, then made small by each method: QAT trains as many
epochs again, times --longer ("float_longer" does so without quantization), the others see 256
training examples or none. All kernels have these bits, the first and the last layer's, too. Peers:
Keras's GPTQ and AWQ, whose classes are given the inputs of one Dense layer after the other, and
ai-edge-quantizer, run in LiteRT. Where a peer does not run, its row says why. Every row is the
accuracy on images or clips that no training has seen; rows are appended to --out as they come, and
the same command goes on where it was stopped. `--scale 0.1` trains a tenth of the epochs.
"""

import argparse
import dataclasses
import pathlib
import statistics
import time

import numpy as np
from rows import append, read

from nas import backend

keras = backend.load()

from compress.distill import Distill  # noqa: E402
from compress.examples.data import Data  # noqa: E402
from compress.method import compress  # noqa: E402
from compress.palettize import Palettize  # noqa: E402
from compress.ptq import PTQ  # noqa: E402
from compress.qat import QAT  # noqa: E402
from compress.rewriting.graph import rewrite  # noqa: E402
from nas import registry  # noqa: E402
from nas.tasks.task import classification, pixels  # noqa: E402
from nas.training.loop import evaluate, fit  # noqa: E402

TASKS = {"digits": "digits:size=8", "fashion_mnist": "fashion_mnist", "fsdd": "fsdd"}
EPOCHS = {"digits": 30, "fashion_mnist": 15, "fsdd": 20}
TRAINED = {
    "qat2": ([QAT(2)], {}),
    "qat2_fixed": ([QAT(2, fixed=True)], {}),
    "qat2_ema": ([QAT(2)], {"ema": 0.99}),
    "qat2_distill": ([QAT(2), Distill()], {}),
    "qat2_edges8": ([QAT(2, edges=8)], {}),
    "qat3": ([QAT(3)], {}),
    "qat4": ([QAT(4)], {}),
}
AT_ONCE = {
    "ptq2": PTQ(2),
    "ptq2_octav": PTQ(2, clip="octav"),
    "ptq2_maxabs": PTQ(2, clip="maxabs"),
    "ptq4": PTQ(4),
    "ptq8": PTQ(8),
    "palettize2": Palettize(2),
    "palettize3.5": Palettize(3.5),
    "palettize4": Palettize(4),
}
PEERS = {
    "keras_gptq2": lambda model, data: keras_layerwise(model, data, "gptq", 2),
    "keras_gptq4": lambda model, data: keras_layerwise(model, data, "gptq", 4),
    "keras_awq4": lambda model, data: keras_layerwise(model, data, "awq", 4),
    "edge_minmax2": lambda model, data: edge(model, "dynamic_wi2c_afp32"),
    "edge_octav2": lambda model, data: edge(model, "dynamic_wi2c_afp32", "OCTAV"),
    "edge_minmax4": lambda model, data: edge(model, "dynamic_wi4c_afp32"),
    "edge_octav4": lambda model, data: edge(model, "dynamic_wi4c_afp32", "OCTAV"),
    "edge_minmax8": lambda model, data: edge(model, "dynamic_wi8c_afp32"),
}
ROWS = ["float", "float_longer", *TRAINED, *AT_ONCE, *PEERS]
CALIBRATION = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--networks", nargs="+", choices=("mlp", "cnn"), default=["mlp", "cnn"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--longer", type=float, default=1.0, help="epochs of QAT / of float")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("qat.jsonl"))
    options = parser.parse_args()
    found = {tuple(row["key"]): row for row in read(options.out)}
    for name in options.tasks:
        for network in options.networks:
            for seed in options.seeds:
                one_network(name, network, seed, options, found)
    table(found, options)


def one_network(name, network, seed, options, found) -> None:
    """All rows of one float network that are missing."""
    wanted = [row for row in options.rows if key_of(name, network, seed, row, options) not in found]
    if not wanted:
        return
    task = task_of(name)
    epochs = max(1, round(EPOCHS[name] * options.scale))
    keras.utils.set_random_seed(seed)
    model = (mlp if network == "mlp" else cnn)(task)
    fit(model, task, epochs, seed)
    inputs, targets = (part[:CALIBRATION] for part in task.train)
    data = Data(pixels(inputs), targets.astype(np.int32), classification)
    for row in wanted:
        started, key = time.perf_counter(), key_of(name, network, seed, row, options)
        result = {"key": key, "parameters": model.count_params()}
        try:
            again = max(1, round(epochs * options.longer))
            result["accuracy"] = one_row(row, model, task, data, again, seed)
        except Exception as error:
            if row not in PEERS:
                raise
            text = str(error).strip().splitlines() or [""]
            result["does_not_run"] = f"{type(error).__name__}: {text[-1][:200]}"
        result["seconds"] = round(time.perf_counter() - started, 1)
        found[key] = result
        append(options.out, result)
        told = result.get("does_not_run") or f"{100 * result['accuracy']:6.2f} %"
        print(f"{name:14}{network:5}{seed:2} {row:13} {told}  {result['seconds']} s", flush=True)


def key_of(name, network, seed, row, options) -> tuple:
    """What a row's accuracy depends on."""
    trained_again = row in TRAINED or row == "float_longer"
    return name, network, seed, row, options.scale, options.longer if trained_again else 0


def one_row(row, model, task, data, epochs, seed) -> float:
    if row == "float":
        return evaluate(model, task)
    if row == "float_longer":
        longer = rewrite(model, lambda _, copy: copy)
        fit(longer, task, epochs, seed + 100)
        return evaluate(longer, task)
    if row in TRAINED:
        methods, changes = TRAINED[row]

        def train(prepared, update):
            fit(prepared, task, epochs, seed + 100, update=update, **changes)

        return evaluate(compress(model, methods, fit=train, data=data).model, task)
    if row in AT_ONCE:
        return evaluate(compress(model, [AT_ONCE[row]], data=data).model, task)
    predict = PEERS[row](rewrite(model, lambda _, copy: copy), data)
    inputs, labels = task.valid
    return float(np.mean(np.argmax(predict(pixels(inputs)), -1) == labels))


def task_of(name):
    """The task; spoken digits as images of features, of which one of ten classes is asked."""
    task = registry.task(TASKS[name])
    if name != "fsdd":
        return task
    parts = [
        (inputs["features"][..., None], targets["labels"][:, 0].astype(np.int32) - 1)
        for inputs, targets in (task.train, task.valid)
    ]
    shape = parts[0][0].shape[1:]
    return dataclasses.replace(
        registry.task("digits"),
        name="fsdd",
        train=parts[0],
        valid=parts[1],
        fields={"input_shape": shape, "classes": 10},
        recipe=task.recipe,
    )


def mlp(task):
    x = inputs = keras.Input(task.input_shape)
    x = keras.layers.Flatten()(x)
    for number, units in enumerate((96, 80, 64)):  # Keras's AWQ errs where a kernel is square
        x = keras.layers.Dense(units, activation="relu", name=f"hidden{number}")(x)
    return keras.Model(inputs, keras.layers.Dense(task.classes, name="head")(x))


def cnn(task):
    x = inputs = keras.Input(task.input_shape)
    for number, filters in enumerate((24, 48, 64)):
        strides = 2 if number or min(task.input_shape[:2]) > 8 else 1
        x = keras.layers.Conv2D(
            filters, 3, strides, "same", use_bias=False, name=f"convolution{number}"
        )(x)
        x = keras.layers.BatchNormalization(name=f"norm{number}")(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(task.classes, name="head")(x))


def keras_layerwise(model, data, algorithm, bits):
    """Keras's GPTQ or AWQ of each layer on what the quantized layers before it give.

    `model.quantize` wants texts and a tokenizer; the classes behind it take any inputs of a layer.
    """
    from keras.src.quantizers.awq import AWQ
    from keras.src.quantizers.awq_config import AWQConfig
    from keras.src.quantizers.gptq import GPTQ
    from keras.src.quantizers.gptq_config import GPTQConfig

    others = [x.name for x in model.layers if x.weights and hasattr(x, "kernel_size")]
    if others:
        raise ValueError(f"Keras's {algorithm} has no convolutions ({', '.join(others)})")
    for layer in [x for x in model.layers if isinstance(x, keras.layers.Dense)]:
        before = keras.Model(model.input, layer.input)
        seen = keras.ops.convert_to_tensor(before.predict(data.inputs, verbose=0))
        common = {"dataset": None, "tokenizer": None, "group_size": -1}
        if algorithm == "gptq":
            config = GPTQConfig(weight_bits=bits, symmetric=False, **common)
            layer.quantize("gptq", config=config)
            run = GPTQ(layer, config)
            run.update_hessian_with_batch(seen)
            run.quantize_and_correct_layer()
        else:
            config = AWQConfig(**common)
            layer.quantize("awq", config=config)
            run = AWQ(layer, config)
            run.update_activation_magnitudes(seen)
            run.quantize_layer()
        run.free()
    return lambda inputs: np.asarray(model(inputs, training=False))


def edge(model, recipe, algorithm=None):
    """ai-edge-quantizer's weights of few bits, activations quantized on the fly, in LiteRT."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    from latency.tflite import convert

    if "wi2" in recipe and any(hasattr(layer, "kernel_size") for layer in model.layers):
        raise ValueError("LiteRT's convolutions of 2 bits give NaN")
    rules = getattr(recipes, recipe)()
    if algorithm:
        rules = [rule | {"algorithm_key": algorithm} for rule in rules]
    work = quantizer.Quantizer(convert.convert(model), rules)
    file = bytes(work.quantize().quantized_model)
    return lambda inputs: convert.run(file, inputs)


def table(found, options) -> None:
    """Means over the seeds, and the distance to the float network."""
    for name in options.tasks:
        for network in options.networks:
            print(f"\n{name} {network}: mean of seeds {options.seeds}, points from float")
            rows = {
                row: [
                    found.get(key_of(name, network, seed, row, options)) for seed in options.seeds
                ]
                for row in options.rows
            }
            accuracies = {
                row: [one["accuracy"] for one in ones]
                for row, ones in rows.items()
                if all(one and "accuracy" in one for one in ones)
            }
            for row in options.rows:
                if row not in accuracies:
                    print(f"{row:13} {(rows[row][0] or {}).get('does_not_run')}")
                    continue
                mean = statistics.mean(accuracies[row])
                points = ""
                if "float" in accuracies:
                    points = f"{100 * (mean - statistics.mean(accuracies['float'])):+7.2f}"
                print(f"{row:13} {100 * mean:6.2f} % {points}")


if __name__ == "__main__":
    main()

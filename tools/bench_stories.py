"""stories260K in 2 and 4 bits: what rounding, training and adapters lose, on text it says itself.

    NAS_DATA=... python tools/bench_stories.py [--only 'float;naive2'] [--epochs 4] [--out FOLDER]

No training data: the network generates what it is trained and judged on, at temperature 1, from
different seeds. "foreign" is text that it was not made for (Shakespeare), so its loss is high.
The same command again goes on where it was ended: texts, trainings and figures are kept in FOLDER.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import tempfile
import time

import numpy as np

from nas import backend, interruption

keras = backend.load()

from compress.distill import Distill  # noqa: E402
from compress.method import compress  # noqa: E402
from compress.ptq import PTQ  # noqa: E402
from compress.qat import QAT  # noqa: E402
from compress.recover import Recover  # noqa: E402
from compress.rewriting import graph  # noqa: E402
from compress.rewriting.record import Record  # noqa: E402
from compress.rewriting.weights import kernels  # noqa: E402
from families import decoder  # noqa: E402
from families.layers import copy_weights  # noqa: E402
from latency.system.atomic_write import atomic_write  # noqa: E402
from nas.cli.training_line import Line  # noqa: E402
from nas.files.readers import llama2c  # noqa: E402
from nas.tasks.task import Task, geometric_mean  # noqa: E402
from nas.tasks.text import likelihood, next_token  # noqa: E402
from nas.text import tokenizer_files  # noqa: E402
from nas.training.checkpoint import Checkpoint  # noqa: E402
from nas.training.loop import fit, measure  # noqa: E402
from nas.training.recipe import Recipe  # noqa: E402
from nas.training.state import TrainingBegins  # noqa: E402

DATA = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data"))
START = 1  # the token that begins a story
TOGETHER = 128  # stories that are generated at once
HELD = 256  # windows to judge on
FOREIGN = 64


def methods(arguments) -> dict[str, list | None]:
    """Name -> the methods; None: rounded as LiteRT's quantizer does by default."""
    four = {"activations": None, "embeddings": 4}
    recover = Recover(arguments.rank, start=arguments.start)
    distill = Distill(weight=arguments.weight, temperature=arguments.temperature)
    return {
        "float": [],
        "ptq4": [PTQ(4, **four)],
        "ptq4, embedding 8": [PTQ(4, activations=None, embeddings=8)],
        "ptq4+recover": [PTQ(4, **four), Recover(arguments.rank)],
        "qat4+distill": [QAT(4), distill],
        "qat4+distill, embedding 8": [QAT(4, embeddings=8), distill],
        "qat4+recover+distill": [QAT(4, embeddings=8), recover, distill],
        "naive2": None,
        "minmax2": [PTQ(2, clip="maxabs", **four)],
        "ptq2": [PTQ(2, **four)],
        "ptq2+recover": [PTQ(2, **four), Recover(arguments.rank)],
        "qat2": [QAT(2)],
        "qat2+distill": [QAT(2), distill],
        "qat2+recover": [QAT(2), recover],
        "qat2+recover+distill": [QAT(2), recover, distill],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names of rows, with ; between; all if not given")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--windows", type=int, default=2048, help="of text to train on")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--start", type=float, help="the share of the training before adapters")
    parser.add_argument("--weight", type=float, default=1.0, help="of the teacher")
    parser.add_argument("--temperature", type=float, help="of the teacher; 2 if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=f"{tempfile.gettempdir()}/bench_stories")
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = methods(arguments)
    chosen = list(rows) if arguments.only is None else arguments.only.split(";")
    source = llama2c.read(DATA / "checkpoints" / "stories260K.bin")
    model = decoder.build(dataclasses.replace(source.config, length=arguments.length))
    source.fill(model)
    task, foreign = tasks(model, source.config, arguments, out)
    print(f"{task.recipe}; {arguments.epochs} epochs, {recipe_of(arguments)}")
    print(f"{'':22}{'loss':>8}{'ppl':>8}{'ppl/float':>10}{'foreign':>9}{'KB':>7}{'s':>6}")
    base = measure(model, task)[1]
    for name in chosen:
        found = row(name, rows[name], model, task, foreign, arguments, out)
        print(
            f"{name:22}{found['loss']:8.4f}{math.exp(found['loss']):8.3f}"
            f"{math.exp(found['loss'] - base):10.4f}{found['foreign']:9.4f}{found['kb']:7.1f}"
            f"{found['seconds']:6.0f}",
            flush=True,
        )


def recipe_of(arguments) -> Recipe:
    return Recipe(batch_size=arguments.batch, learning_rate=arguments.rate, clip=1.0)


def tasks(model, config, arguments, out: pathlib.Path) -> tuple[Task, Task]:
    """What the network says, to train on and to be judged on; and the same with foreign text."""
    length = arguments.length
    file = out / f"said_{arguments.windows}_{length}.npz"
    if not file.exists():
        since = time.monotonic()
        parts = {
            "train": said(model, config, arguments.windows, length + 1, seed=1),
            "valid": said(model, config, HELD, length + 1, seed=2),
        }
        with atomic_write(file) as partial:
            np.savez(partial, **parts)
        print(f"{sum(p.size for p in parts.values()):,} tokens in {time.monotonic() - since:.0f} s")
    with np.load(file) as found:
        train, valid = found["train"], found["valid"]
    tokenizer = tokenizer_files.read(DATA / "checkpoints" / "tok512.bin")
    text = (DATA / "text" / "tinyshakespeare.txt").read_text()[: 8 * FOREIGN * length]
    tokens = np.array(tokenizer.encode(text), np.int32)[: FOREIGN * length]
    tokens = tokens[: len(tokens) // length * length].reshape(-1, length)
    tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=START)
    made = Task(
        name="stories",
        train=(train[:, :-1], train[:, 1:]),
        valid=(valid[:, :-1], valid[:, 1:]),
        fields={"vocabulary": config.vocabulary, "length": length},
        recipe=f"stories of {len(train)} and {len(valid)} windows of {length} tokens",
        loss=next_token,
        scorer=likelihood,
        average=geometric_mean,
        metric="1 / perplexity",
    )
    return made, dataclasses.replace(made, valid=(tokens[:, :-1], tokens[:, 1:]))


def said(model, config, count: int, length: int, seed: int) -> np.ndarray:
    """(count, length) tokens drawn from the network, each row from the start of a story."""
    step = decoder.build(dataclasses.replace(config, length=1, cache=length - 1))
    copy_weights(model, step)
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    run = compiled(step)
    rows = []
    for _ in range(-(-count // TOGETHER)):
        tokens = np.full((TOGETHER, 1), START, np.int32)
        caches = {
            name: np.zeros((TOGETHER, *tensor.shape[1:]), tensor.dtype)
            for name, tensor in step.input.items()
            if "_cache_" in name
        }
        for position in range(length - 1):
            place = np.full((TOGETHER, 1), position, np.int32)
            outputs = dict(run({"tokens": tokens[:, -1:], "position": place} | caches))
            logits = np.asarray(outputs.pop("logits"))[:, 0]
            caches = outputs
            drawn = np.argmax(logits + generator.gumbel(size=logits.shape), axis=-1)
            tokens = np.concatenate([tokens, drawn[:, None].astype(np.int32)], axis=1)
        rows.append(tokens)
    return np.concatenate(rows)[:count]


def compiled(model):
    if keras.config.backend() == "jax":
        import jax

        weights = [[v.value for v in model.trainable_variables]]
        weights += [[v.value for v in model.non_trainable_variables]]
        return jax.jit(lambda inputs: model.stateless_call(*weights, inputs, training=False)[0])
    import tensorflow as tf

    return tf.function(lambda inputs: model(inputs, training=False), autograph=False)


def row(name, chosen, model, task, foreign, arguments, out: pathlib.Path) -> dict:
    """The figures of one row, of the folder if they are there."""
    trains = chosen is not None and any(isinstance(one, QAT) for one in chosen)
    identity = {
        "methods": repr(chosen),
        "task": task.recipe,
        "seed": arguments.seed,
        "epochs": arguments.epochs * trains,
        "recipe": repr(recipe_of(arguments)) if trains else "",
    }
    file = out / f"{name}.json"
    if file.exists():
        found = json.loads(file.read_text())
        if found["identity"] == identity:
            return found
    since = time.monotonic()

    def train(prepared, update):
        checkpoint = Checkpoint(out / f"{name}.checkpoint.npz", identity)
        line = Line(TrainingBegins(task, arguments.batch, arguments.epochs, None))
        with interruption.interruptible():
            fit(
                prepared,
                task,
                arguments.epochs,
                arguments.seed,
                recipe=recipe_of(arguments),
                update=update,
                watch=line,
                checkpoint=checkpoint,
            )
        checkpoint.delete()

    keras.utils.set_random_seed(arguments.seed)
    if chosen is None:
        finished, record = rounded_narrowly(model)
    else:
        done = compress(model, chosen, train if trains else None)
        finished, record = done.model, done.record
    seconds = time.monotonic() - since
    found = {
        "identity": identity,
        "loss": measure(finished, task)[1],
        "foreign": measure(finished, foreign)[1],
        "kb": kilobytes(finished, record),
        "seconds": seconds,
    }
    file.write_text(json.dumps(found, indent=1))
    return found


def rounded_narrowly(model):
    """2 bits as {-1, 0, 1} times the largest weight of an output; embeddings: 4 bits."""
    finished = graph.rewrite(model, lambda _, copy: copy)
    weights = {weight.path: weight for weight in finished.weights}
    record = Record(original=model)
    for kernel in kernels(finished):
        most = 7 if kernel.kind == "embedding" else 1
        value = np.asarray(weights[kernel.path])
        scale = np.abs(value).max(kernel.input_axes, keepdims=True) / most
        weights[kernel.path].assign(np.rint(value / scale) * scale)
        record.details[kernel.path] = {"bits": 4 if most == 7 else 2, "scales": scale.size}
    return finished, record


def kilobytes(model, record) -> float:
    """Codes, float32 scales, adapters in float16, all else in float32."""
    bits = 0
    for weight in model.weights:
        size = math.prod(weight.shape)
        stored, narrow = record.weights.get(weight.path), record.details.get(weight.path)
        if stored is not None and stored.codes is not None:
            bits += size * stored.bits + 32 * stored.scale.size
        elif narrow is not None:
            bits += size * narrow["bits"] + 32 * narrow["scales"]
        else:
            bits += size * (16 if "_adapter_" in weight.path else 32)
    return bits / 8192


if __name__ == "__main__":
    main()

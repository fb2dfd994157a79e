"""The decoder on tiny Shakespeare, against plain Keras: `model.fit` on networks of the same size.

    NAS_DATA=... python tools/bench_decoder.py [--epochs 2] [--seed 0] [--rounds 5]

Two references: "layers" is of stock layers, `GroupQueryAttention` among them, and so has learned
positions, as Keras has no rotary ones; "operations" is the same function as ours, its attention
written in `keras.ops` as one would. All get the same batches in the same order, the same optimizer
and learning rates. Speed is measured twice: of all in turns, and of the trainings.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import time

import numpy as np

from nas import backend

keras = backend.load()

from families import decoder  # noqa: E402
from nas import registry  # noqa: E402
from nas.training.engines import engine  # noqa: E402
from nas.training.loop import batches, fit  # noqa: E402
from nas.training.recipe import Recipe  # noqa: E402

RECIPE = Recipe(batch_size=32, learning_rate=3e-3, clip=1.0)
STEPS = 20  # of one turn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each network; 0: none")
    arguments = parser.parse_args()
    data = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data"))
    task = registry.task(f"text:{data}/text/tinyshakespeare.txt")
    config = dataclasses.replace(decoder.VARIANTS["tiny"], **task.fields)
    print(f"{config}\n{task.recipe}\n{RECIPE}")
    if arguments.rounds:
        turns(config, task, arguments.rounds)
    ours = train_ours(config, task, arguments.epochs, arguments.seed)
    print()
    for kind in REFERENCES:
        theirs = train_reference(kind, config, task, arguments.epochs, arguments.seed)
        print(
            f"against {kind}: validation loss {ours[0]:.4f} and {theirs[0]:.4f}, "
            f"{100 * (ours[0] / theirs[0] - 1):+.2f} %; "
            f"tokens/s {ours[1]:,.0f} and {theirs[1]:,.0f}, x{ours[1] / theirs[1]:.3f}\n"
        )


def reference(kind: str, config: decoder.Config) -> keras.Model:
    """The network as plain Keras, its attention of the given kind."""
    tokens = keras.Input((config.length,), dtype="int32")
    embed = keras.layers.ReversibleEmbedding(config.vocabulary, config.dim)
    x = embed(tokens)
    if kind == "layers":
        place = keras.layers.Embedding(config.length, config.dim)
        x = x + place(keras.ops.arange(config.length)[None])
    for _ in range(config.layers):
        normed = keras.layers.RMSNormalization(epsilon=config.norm_epsilon)(x)
        x = x + REFERENCES[kind](normed, config)
        normed = keras.layers.RMSNormalization(epsilon=config.norm_epsilon)(x)
        gate = keras.layers.Dense(config.hidden, activation="silu", use_bias=False)(normed)
        up = keras.layers.Dense(config.hidden, use_bias=False)(normed)
        x = x + keras.layers.Dense(config.dim, use_bias=False)(gate * up)
    x = keras.layers.RMSNormalization(epsilon=config.norm_epsilon)(x)
    return keras.Model(tokens, embed(x, reverse=True))


def stock_attention(x, config: decoder.Config):
    attention = keras.layers.GroupQueryAttention(
        config.head_width, config.heads, config.key_value_heads, use_bias=False
    )
    return attention(x, x, use_causal_mask=True)


def rotary_attention(x, config: decoder.Config):
    width = config.head_width

    def heads(count):
        projected = keras.layers.Dense(count * width, use_bias=False)(x)
        return keras.ops.reshape(projected, (-1, config.length, count, width))

    rates = config.rope_theta ** (-np.arange(0, width, 2) / width)
    angles = (np.arange(config.length)[:, None] * rates)[:, None]
    cos, sin = np.cos(angles).astype("float32"), np.sin(angles).astype("float32")

    def turned(heads):
        first, second = keras.ops.split(heads, 2, axis=-1)
        parts = [first * cos - second * sin, second * cos + first * sin]
        return keras.ops.concatenate(parts, axis=-1)

    query, key = turned(heads(config.heads)), turned(heads(config.key_value_heads))
    value = heads(config.key_value_heads)
    shared = config.heads // config.key_value_heads
    key, value = (keras.ops.repeat(one, shared, axis=2) for one in (key, value))
    context = keras.ops.dot_product_attention(query, key, value, is_causal=True)
    context = keras.ops.reshape(context, (-1, config.length, config.heads * width))
    return keras.layers.Dense(config.dim, use_bias=False)(context)


REFERENCES = {"layers": stock_attention, "operations": rotary_attention}


class Rates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rates of `RECIPE`, one for each step."""

    def __init__(self, steps: int):
        self.rates = np.array([RECIPE.rate(step, steps) for step in range(steps)], "float32")

    def __call__(self, step):
        return keras.ops.take(self.rates, keras.ops.cast(step, "int32"))

    def get_config(self):
        return {"steps": len(self.rates)}


def compiled_reference(kind: str, config: decoder.Config, steps: int) -> keras.Model:
    model = reference(kind, config)
    model.compile(
        keras.optimizers.Adam(Rates(steps), global_clipnorm=RECIPE.clip),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def train_ours(config, task, epochs: int, seed: int) -> tuple[float, float]:
    """Validation loss, and tokens a second of the training steps."""
    keras.utils.set_random_seed(seed)
    model = decoder.build(config)
    result = fit(model, task, epochs, seed, recipe=RECIPE)
    seconds = result.phases["train"]
    tokens = result.kept.step * RECIPE.batch_size * config.length
    for epoch in result.history:
        print(f"epoch {epoch.number}: loss {epoch.loss:.4f}, validation {epoch.valid_loss:.4f}")
    print(f"decoder:tiny, {model.count_params():,} parameters: {seconds:.1f} s", flush=True)
    return result.kept.valid_loss, tokens / seconds


def train_reference(kind: str, config, task, epochs: int, seed: int) -> tuple[float, float]:
    """The same of `model.fit`; its first steps, in which it traces, are not timed."""
    keras.utils.set_random_seed(seed)
    orders = [
        np.concatenate(list(batches(len(task.train[0]), RECIPE.batch_size, seed, epoch)))
        for epoch in range(1, epochs + 1)
    ]
    steps = sum(map(len, orders)) // RECIPE.batch_size
    model = compiled_reference(kind, config, steps)
    weights = model.get_weights()
    options = {"batch_size": RECIPE.batch_size, "shuffle": False, "verbose": 0}
    first = [part[: RECIPE.batch_size] for part in task.train]
    model.fit(*first, **options)  # traces
    model.set_weights(weights)
    for variable in model.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
    seconds = 0.0
    for order in orders:
        inputs, targets = (np.ascontiguousarray(part[order]) for part in task.train)
        since = time.perf_counter()
        seen = model.fit(inputs, targets, **options).history["loss"][0]
        seconds += time.perf_counter() - since
        loss = model.evaluate(*task.valid, batch_size=RECIPE.batch_size, verbose=0)
        print(f"epoch: loss {seen:.4f}, validation {loss:.4f}")
    print(f"{kind}, {model.count_params():,} parameters: {seconds:.1f} s", flush=True)
    return loss, steps * RECIPE.batch_size * config.length / seconds


def turns(config, task, rounds: int):
    """Tokens a second, and seconds of the processor, of both in turns: a busy machine hits both."""
    size = RECIPE.batch_size
    inputs, targets = (np.ascontiguousarray(part[: size * STEPS]) for part in task.train)
    model = decoder.build(config)
    figures = {"decoder:tiny": []} | {kind: [] for kind in REFERENCES}
    with engine(model, task, RECIPE, size) as step:

        def ours():
            for start in range(0, len(inputs), size):
                part = slice(start, start + size)
                loss = step.step(inputs[part], targets[part], RECIPE.learning_rate)
            float(loss)

        def fitted(kind):
            theirs = compiled_reference(kind, config, 10**4)
            options = {"batch_size": size, "shuffle": False, "verbose": 0}
            return lambda: theirs.fit(inputs, targets, **options)

        runs = [ours, *map(fitted, REFERENCES)]
        for number in range(rounds + 1):
            for name, run in zip(figures, runs, strict=True):
                since, used = time.perf_counter(), time.process_time()
                run()
                if number:  # the first traces
                    spent = time.perf_counter() - since, time.process_time() - used
                    figures[name].append(spent)
    print(f"\nin turns, {rounds} times {STEPS} steps, medians:")
    tokens = STEPS * size * config.length
    for name, spent in figures.items():
        wall, used = (statistics.median(column) for column in zip(*spent, strict=True))
        print(
            f"  {name:13} {tokens / wall:8,.0f} tokens/s, "
            f"{1e6 * used / tokens:.1f} us of processor time a token",
            flush=True,
        )


if __name__ == "__main__":
    main()

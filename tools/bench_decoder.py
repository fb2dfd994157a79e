"""The decoder on tiny Shakespeare, against the same network of stock Keras layers in `model.fit`.

    NAS_DATA=... python tools/bench_decoder.py [--epochs 3] [--seed 0] [--rounds 5]

Both get the same batches in the same order, the same optimizer and learning rates. The network of
stock layers has learned positions, as Keras has no rotary ones, and so a few more parameters.
Speed is measured twice: of both networks in turns, and of the two trainings.
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
from nas import spec  # noqa: E402
from nas.recipe import Recipe  # noqa: E402
from nas.step import engine  # noqa: E402
from nas.train import batches, fit  # noqa: E402

RECIPE = Recipe(batch_size=32, learning_rate=3e-3, clip=1.0)
STEPS = 20  # of one turn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each network; 0: none")
    arguments = parser.parse_args()
    data = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data"))
    task = spec.task(f"text:{data}/text/tinyshakespeare.txt")
    config = dataclasses.replace(decoder.VARIANTS["tiny"], **task.fields)
    print(f"{config}\n{task.recipe}\n{RECIPE}")
    if arguments.rounds:
        turns(config, task, arguments.rounds)
    ours = train_ours(config, task, arguments.epochs, arguments.seed)
    theirs = train_reference(config, task, arguments.epochs, arguments.seed)
    print(
        f"\nvalidation loss {ours[0]:.4f}, reference {theirs[0]:.4f}: "
        f"{100 * (ours[0] / theirs[0] - 1):+.2f} %\n"
        f"tokens/s {ours[1]:,.0f}, reference {theirs[1]:,.0f}: x{ours[1] / theirs[1]:.3f}"
    )


def reference(config: decoder.Config) -> keras.Model:
    """The network in stock Keras layers, position embeddings learned."""
    tokens = keras.Input((config.length,), dtype="int32")
    embed = keras.layers.ReversibleEmbedding(config.vocabulary, config.dim)
    place = keras.layers.Embedding(config.length, config.dim)
    x = embed(tokens) + place(keras.ops.arange(config.length)[None])
    for _ in range(config.layers):
        normed = keras.layers.RMSNormalization(epsilon=config.norm_epsilon)(x)
        attention = keras.layers.GroupQueryAttention(
            config.head_width, config.heads, config.key_value_heads, use_bias=False
        )
        x = x + attention(normed, normed, use_causal_mask=True)
        normed = keras.layers.RMSNormalization(epsilon=config.norm_epsilon)(x)
        gate = keras.layers.Dense(config.hidden, activation="silu", use_bias=False)(normed)
        up = keras.layers.Dense(config.hidden, use_bias=False)(normed)
        x = x + keras.layers.Dense(config.dim, use_bias=False)(gate * up)
    x = keras.layers.RMSNormalization(epsilon=config.norm_epsilon)(x)
    return keras.Model(tokens, embed(x, reverse=True))


class Rates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rates of `RECIPE`, one for each step."""

    def __init__(self, steps: int):
        self.rates = np.array([RECIPE.rate(step, steps) for step in range(steps)], "float32")

    def __call__(self, step):
        return keras.ops.take(self.rates, keras.ops.cast(step, "int32"))

    def get_config(self):
        return {"steps": len(self.rates)}


def compiled_reference(config: decoder.Config, steps: int) -> keras.Model:
    model = reference(config)
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


def train_reference(config, task, epochs: int, seed: int) -> tuple[float, float]:
    """The same of `model.fit`; its first steps, in which it traces, are not timed."""
    keras.utils.set_random_seed(seed)
    orders = [
        np.concatenate(list(batches(len(task.train[0]), RECIPE.batch_size, seed, epoch)))
        for epoch in range(1, epochs + 1)
    ]
    steps = sum(map(len, orders)) // RECIPE.batch_size
    model = compiled_reference(config, steps)
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
    print(f"reference, {model.count_params():,} parameters: {seconds:.1f} s", flush=True)
    return loss, steps * RECIPE.batch_size * config.length / seconds


def turns(config, task, rounds: int):
    """Tokens a second, and seconds of the processor, of both in turns: a busy machine hits both."""
    size = RECIPE.batch_size
    inputs, targets = (np.ascontiguousarray(part[: size * STEPS]) for part in task.train)
    model = decoder.build(config)
    theirs = compiled_reference(config, 10**4)
    figures = {"decoder:tiny": [], "reference": []}
    with engine(model, task, RECIPE, size) as step:

        def ours():
            for start in range(0, len(inputs), size):
                part = slice(start, start + size)
                loss = step.step(inputs[part], targets[part], RECIPE.learning_rate)
            float(loss)

        def fitted():
            theirs.fit(inputs, targets, batch_size=size, shuffle=False, verbose=0)

        for number in range(rounds + 1):
            for name, run in zip(figures, (ours, fitted), strict=True):
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

"""A search that subclasses nothing: a function of an Optuna trial, two arrays, a budget.

$ python search_plain_function.py    # again: goes on with the study
"""

import dataclasses

from sklearn.datasets import load_digits

import nas
from families.mnasnet import VARIANTS, Block, Config
from latency.cpu import CPU

digits = load_digits()
x, y = digits.images[..., None].astype("float32") / 16, digits.target


def sample(trial) -> Config:
    """What may be chosen, as in any Optuna study; input shape and classes come from the data."""
    blocks = tuple(
        Block(
            op=trial.suggest_categorical(f"op{number}", ["conv", "depthwise"]),
            kernel=trial.suggest_categorical(f"kernel{number}", [3, 5]),
            stride=number,
            filters=trial.suggest_int(f"filters{number}", 8, 32, step=8),
            repeats=1,
        )
        for number in (1, 2)
    )
    return dataclasses.replace(VARIANTS["tiny"], stem_stride=1, blocks=blocks, head_filters=64)


study = nas.search(
    sample, (x, y), CPU(threads=1), budget_ms=0.01, trials=3, epochs=2, finalists=1, out="runs/mine"
)
print(study)
winner = study.winner
print(winner, [path.name for path in winner.files])
print(winner.config)  # paste it into your code, or go on with winner.model, a keras.Model

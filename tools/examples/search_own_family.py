"""A search among networks of your own: residual_mlp.py, beside this file, says how to build them.

$ python search_own_family.py
$ nas profile ./residual_mlp.py:large     # a family's file is a name everywhere
"""

from residual_mlp import Config
from sklearn.datasets import load_digits

import nas
from latency.cpu import CPU

digits = load_digits()
x, y = digits.data.astype("float32") / 16, digits.target


def sample(trial) -> Config:
    return Config(
        width=trial.suggest_categorical("width", [16, 32, 64, 128]),
        depth=trial.suggest_int("depth", 1, 6),
    )


study = nas.search(
    sample,
    nas.Task(name="digits", train=(x[:1400], y[:1400]), valid=(x[1400:], y[1400:])),
    CPU(threads=1),
    baseline=Config(width=128, depth=4),  # beside it; the budget is 0.8 of what it takes
    trials=3,
    epochs=4,
    finalists=1,
    out="runs/mlp",
)
print(study)
for found in study.front:
    print(found, found.config)

# %% [markdown]
# Open as a notebook (VS Code, Spyder, `jupytext`): each cell's last value displays itself.

# %%
import functools

import nas
from latency.cpu import CPU
from nas.tasks import digits
from search_spaces import mnasnet

space = functools.partial(mnasnet.sample, base="tiny")  # 432 choices for every block
task = digits.load(size=16)

# %% A search: the table and the front as a picture
study = nas.search(
    space, task, CPU(threads=1), budget_ms=0.05, trials=2, epochs=1, finalists=1, out="runs/nb"
)
study

# %% The winner, timed again beside the published network
nas.profile({"winner": study.winner.model, "tiny": "mnasnet:tiny"}, CPU(threads=1), runs=20)

# %% Trained for longer: its curves
trained = nas.train(study.winner.config, task, epochs=2)
trained

# %% In 8-bit integers: before and after, and which layers bear it least
from compress.ptq import PTQ

small = nas.compress(trained.model, PTQ(bits=8), data=task, examples_count=64)
small

# %%
small.write("winner.tflite")["after"]["bytes"]

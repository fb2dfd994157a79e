"""Networks that are numbers: an evaluator whose candidates fail as they are told to."""

import math
import os
import pathlib
import signal
import time

from nas.searching.candidate import Candidate


class Line:
    """Networks 0..39: some fail, by their last digit; all trainings are written into folder/log."""

    def __init__(self, folder: pathlib.Path, poison=(), seconds: float = 0.0):
        self.log, self.poison, self.seconds = folder / "log", dict(poison), seconds

    def candidate(self, trial):
        x = trial.suggest_int("x", 0, 9)
        if self.poison.get(x) == "describe":
            raise ValueError("no such network")
        return Candidate(trial.suggest_int("y", 0, 3) * 10 + x)

    def key(self, candidate):
        return str(candidate.config)

    def profile(self, candidate):
        kind = self.poison.get(candidate.config % 10)
        if kind == "convert":
            raise ValueError("no operator\nfor this")
        return {"key": self.key(candidate), "costs": [math.nan if kind == "cost" else 1.0]}

    def train(self, candidate, on_epoch=None, keep=None):
        kind = self.poison.get(candidate.config % 10)
        time.sleep(self.seconds)
        with open(self.log, "a") as log:
            log.write(f"{candidate.config}\n")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "float":
            raise FloatingPointError("underflow")
        quality = math.nan if kind == "nan" else candidate.config / 100
        if keep is not None:
            keep(lambda: None, {"quality": quality, "stopped": False})
        return {"quality": quality, "curve": [], "stopped": False}

    def forget(self):
        pass

"""One-shot search: candidates are timed as themselves and judged in a supernet.

`nas search --evaluator supernet[:EPOCHS][,examples=N]`. All else is as with `--evaluator train`:
spaces, controllers, rewards, studies. Those that are handed over inherit their weights and are
trained further by themselves.
"""

import dataclasses
import functools
import gc
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from nas import locks, registry
from nas.searching.networks import Fitted, Networks
from nas.supernets.supernet import EXAMPLES, Supernet, outline, recipe_of_supernet
from nas.training.batches import count

STEPS = 6000  # of the supernet's training, where its epochs are not given
SHARE = 0.4  # of the minutes of a search, which it may take
# Of the learning rate of a training from the beginning: inherited weights are nearly good.
FINE_TUNING = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Inherited:
    """A network as it was judged in the supernet; made when it is saved."""

    config: Any


@dataclasses.dataclass
class SupernetNetworks(Networks):
    """Networks of a family, judged with shared weights that are kept in the folder of the study.

    evaluator: its spec: "supernet[:EPOCHS][,examples=N]", the epochs of the supernet's training, as
    many as make `STEPS` steps unless given, and how much of the validation part a candidate is
    judged on. folder: of the study.
    """

    evaluator: str = "supernet"
    folder: pathlib.Path = pathlib.Path()

    def __post_init__(self):
        named = registry.parse(self.evaluator)
        self._options = {"epochs": named.value, **dict(named.options)}
        for name, value in self._options.items():
            if name not in ("epochs", "examples"):
                raise ValueError(
                    f"--evaluator supernet has no option {name!r} (it has: epochs, examples)"
                )
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"--evaluator supernet: {name}={value!r}; expected a whole number >= 1"
                )

    def check(self, config: Any) -> None:
        """Also refuses networks that no supernet has."""
        outline(config)
        super().check(config)

    @property
    def _path(self) -> pathlib.Path:
        return self.folder / "supernet.weights.h5"

    def prepare(self, minutes: float, say: Callable[[str], None]) -> None:
        """Train the supernet, or go on with it, unless this study has it already.

        `minutes` are those of the whole search. Of several workers one trains, the others wait.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locks.locked(self.folder / "supernet.lock"):
            if not self._path.exists():
                self._train_supernet(SHARE * minutes, say)

    def _train_supernet(self, minutes: float, say: Callable[[str], None]) -> None:
        from nas.supernets import supernet
        from nas.training import loop
        from nas.training.checkpoint import Checkpoint
        from nas.training.progress_line import Line

        recipe = recipe_of_supernet(self.task)
        examples = count(self.task.train)
        batch = min(recipe.batch_size, examples)
        epochs = self._options["epochs"] or math.ceil(STEPS / (examples // batch))
        minutes = minutes if minutes < math.inf else None
        identity = {
            "task": self.task.recipe,
            "epochs": epochs,
            "seed": self.seed,
            **dataclasses.asdict(recipe),
        }
        checkpoint = Checkpoint(self.folder / "supernet.checkpoint.npz", identity)
        line = Line(self.task, batch, epochs, minutes)
        say(f"training the supernet, the weights that all networks share: at most {epochs} epochs")
        found = checkpoint.read()
        if found is not None:
            say(f"going on at step {found.step}, after {found.seconds:.0f} s of training")
        try:
            with checkpoint.interruptible():
                trained = supernet.train(
                    self.sample,
                    self.task,
                    epochs=epochs,
                    seed=self.seed,
                    minutes=minutes,
                    checkpoint=checkpoint,
                    watch=line,
                )
        except loop.Interrupted:
            line.end()
            say(f"interrupted at step {line.step}: the same command goes on from there")
            raise
        except FloatingPointError as error:  # what is kept may be spoiled as well
            checkpoint.delete()
            raise ValueError(f"the supernet: {error}") from error
        trained.save(self._path)
        checkpoint.delete()
        vars(self)["supernet"] = trained

    @functools.cached_property
    def supernet(self) -> Supernet:
        """The trained supernet of this study; ValueError before there is one."""
        if not self._path.exists():
            raise ValueError(
                f"{self._path} is missing: the supernet of this study is not trained; run its "
                "`nas search` again"
            )
        found = Supernet(self.sample, self.task, seed=self.seed)
        found.load(self._path)
        return found

    def new(self, config: Any) -> Any:
        """A network of any weights: to seed them, TensorFlow forgets every graph it has prepared.

        To prepare the supernet's again would take longer than to judge ten networks.
        """
        return sys.modules[type(config).__module__].build(config)

    def train(
        self,
        config: Any,
        epochs: int | None = None,
        on_epoch: Callable[[int, float], bool] | None = None,
        keep: Callable[[Any, dict], None] | None = None,
        final: bool = False,
    ) -> dict:
        """Judge a network in the supernet; `final`: inherit its weights and train it by itself."""
        if final:
            return super().train(config, epochs, on_epoch, keep, final)
        started = time.perf_counter()
        small = self.as_trained(config, self.task)
        quality = self.supernet.quality(small, self._options.get("examples", EXAMPLES))
        seconds = time.perf_counter() - started
        record = {"quality": quality, "curve": [quality], "stopped": False, "train_s": seconds}
        if keep is not None:
            keep(Inherited(config), record)
        return record

    def fitted(self, config: Any, task: Any, epochs: int, on_epoch: Callable | None) -> Fitted:
        """Fine-tune a network from its inherited weights."""
        from nas.training import loop
        from nas.training.recipe import recipe_of

        model = self.supernet.inherited(config)
        rate = FINE_TUNING * recipe_of(task).learning_rate
        return Fitted(
            model,
            loop.fit(model, task, epochs, self.seed, on_epoch=on_epoch, learning_rate=rate),
        )

    def untrained(self, config: Any) -> Any:
        """A network for `write`, with inherited weights."""
        from families.layers import copy_weights

        small = self.as_trained(config, self.task)
        model = self.new(small)
        self.supernet.inherit(small, model)
        self.supernet.calibrate(model)
        if small == config:
            return model
        resized = self.new(config)
        copy_weights(model, resized)
        return resized

    def save(self, network: Any, stem: pathlib.Path) -> None:
        if isinstance(network, Inherited):
            network = self.untrained(network.config)
        super().save(network, stem)

    def forget(self) -> None:
        """Free the networks of a round; the supernet stays."""
        self._built.clear()
        gc.collect()

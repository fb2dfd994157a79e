"""The weights of a one-shot search: those of a supernet, kept in the folder of the study."""

import dataclasses
import functools
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from nas.events import Listener, Message
from nas.locks import locked
from nas.supernets.one_shot import NotReady, OneShot, aside, stepped_aside
from nas.supernets.supernet import EXAMPLES, Supernet, outline, recipe_of_supernet
from nas.training.batches import count
from nas.training.state import Now

STEPS = 6000  # of the supernet's training, where its epochs are not given
SHARE = 0.4  # of the minutes of a search, which it may take
# The share of its steps before which it cannot tell networks apart; it is looked at after so much
# of its time, when its pace is known.
READY, LOOK = 0.25, 0.3
FEW = 10  # steps, of which the pace is not known


@dataclasses.dataclass
class SharedWeights:
    """Networks take their weights from a supernet, in which they are judged as well.

    sample: Optuna trial -> Config. task: that candidates are judged on, at their size. folder: of
    the study, which keeps the supernet. seed: of its training.
    """

    sample: Callable[[Any], Any]
    task: Any
    folder: pathlib.Path
    options: OneShot = OneShot()
    seed: int = 0
    # Inherited weights are nearly good.
    learning_rate: float = 0.5
    repeatable: bool = False
    _first: tuple[int, float] | None = None  # step seen of the supernet's training, and when

    def check(self, config: Any) -> None:
        """`ValueError` of networks that no supernet has."""
        outline(config)

    @property
    def _path(self) -> pathlib.Path:
        return self.folder / "supernet.weights.h5"

    def prepare(self, minutes: float, on_event: Listener) -> None:
        """Train the supernet, or go on with it, unless this study has it already.

        `minutes` are those of the whole search. Of several workers one trains, the others wait.
        Raises `NotReady`, for ever, where that is too little time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "supernet.lock"):
            if stepped_aside(self.folder):
                raise NotReady(aside(self.folder).read_text())
            if not self._path.exists():
                self._train(SHARE * minutes, on_event)

    def _train(self, minutes: float, on_event: Listener) -> None:
        from nas.training import journey
        from nas.training.checkpoint import Checkpoint
        from nas.training.state import TrainingBegins

        recipe = recipe_of_supernet(self.task)
        examples = count(self.task.train)
        batch = min(recipe.batch_size, examples)
        epochs = self.options.epochs or math.ceil(STEPS / (examples // batch))
        limit = minutes if minutes < math.inf else None
        identity = {
            "task": self.task.recipe,
            "epochs": epochs,
            "seed": self.seed,
            **dataclasses.asdict(recipe),
        }
        self._first = None
        checkpoint = Checkpoint(self.folder / "supernet.checkpoint.npz", identity)
        on_event(
            Message(
                f"training the supernet, the weights that all networks share: at most {epochs}"
                " epochs"
            )
        )
        on_event(TrainingBegins(self.task, batch, epochs, limit))
        trained = Supernet(self.sample, self.task, seed=self.seed)
        try:
            journey.fit(
                trained.model,
                self.task,
                checkpoint,
                functools.partial(self._look, on_event, epochs * (examples // batch), limit),
                epochs=epochs,
                seed=self.seed,
                recipe=recipe,
                minutes=limit,
                update=trained.choices(examples // batch),
            )
        except ValueError as error:
            raise ValueError(f"the supernet: {error}") from error
        except NotReady as error:
            checkpoint.delete()
            aside(self.folder).write_text(str(error))
            raise
        trained.save(self._path)
        checkpoint.delete()
        vars(self)["supernet"] = trained

    def _look(self, on_event: Listener, steps: int, limit: float | None, event: Any) -> None:
        """Pass an event on; `NotReady` as soon as it shows that the time is too short."""
        on_event(event)
        if not isinstance(event, Now) or limit is None or self.options.epochs is not None:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (event.step, now)
        done, spent = event.step - self._first[0], now - self._first[1]
        last = event.judged is not None and event.step >= event.steps
        if event.steps < READY * steps and (last or (done >= FEW and spent > LOOK * 60 * limit)):
            needed = spent / max(done, 1) * steps / 60 / SHARE
            raise NotReady(
                f"the supernet would take {event.steps:,} of {steps:,} steps in its"
                f" {limit:.3g} minutes, too few to tell networks apart: candidates are trained by"
                f" themselves (--minutes {math.ceil(READY * needed)} would do at least,"
                f" --minutes {math.ceil(needed)} for all steps)"
            )

    @functools.cached_property
    def supernet(self) -> Supernet:
        """The trained supernet of this study; `ValueError` before there is one."""
        if not self._path.exists():
            raise ValueError(
                f"{self._path} is missing: the supernet of this study is not trained; run its "
                "`nas search` again"
            )
        found = Supernet(self.sample, self.task, seed=self.seed)
        found.load(self._path)
        return found

    def counted(self, config: Any) -> Any:
        """A network with any weights: to seed them, TensorFlow drops every graph it has prepared.

        To prepare the supernet's again would take longer than to judge ten networks.
        """
        return sys.modules[type(config).__module__].build(config)

    def initial(self, config: Any) -> Any:
        """A network with inherited weights; its norms have no averages yet."""
        return self.supernet.inherited(config)

    def untrained(self, config: Any) -> Any:
        """A network with inherited weights, its norms' averages taken over training data."""
        model = self.counted(config)
        self.supernet.inherit(config, model)
        self.supernet.calibrate(model)
        return model

    def calibrate(self, model: Any) -> None:
        """The averages of a network's norms anew: compression has changed what they see."""
        self.supernet.calibrate(model)

    def quality(self, config: Any, compressed: Callable[[], Any] | None) -> float | None:
        """Judged in the supernet; what is compressed, as it is, on the same examples."""
        examples = self.options.examples or EXAMPLES
        if compressed is None:
            return self.supernet.quality(config, examples)
        return self.supernet.quality_of(compressed(), examples)

    def forget(self) -> None:
        """The supernet stays."""

"""What a search for a scaled network evaluates: depth and resolution chosen, the width measured."""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

from nas.networks import build
from nas.profiling.wait_for_device import wait_for_device
from nas.scaling.compound_scaling import Factors
from nas.scaling.width_search import Lander, Landing
from nas.searching import networks
from nas.searching.networks import Networks

# Around single-objective scaling: half to twice its depth, 0.7 to 1.4 times its resolution.
DEPTHS = (-4, 4)  # quarters of an octave
RESOLUTIONS = (-4, 4)  # eighths of an octave
TASKS = 3  # sizes of images that are held at once
SILENCE = 20  # seconds without a word, at most, while networks are timed


@dataclasses.dataclass
class ScaledNetworks(Networks):
    """Networks scaled from `base` that land on `budget_ms`, each trained at its own resolution.

    `sized(pixels)` loads the task at a size. `around` is where the choices lie: single-objective
    scaling for the same budget. `say` is told what was found of a trial.
    """

    base: Any = None
    sized: Callable[[int], Any] | None = None
    budget_ms: float = math.inf
    around: Factors = Factors()
    say: Callable[[str], None] = lambda text: None
    _records: dict = dataclasses.field(default_factory=dict)
    _told: list[float] = dataclasses.field(default_factory=lambda: [time.monotonic()])

    def lander(self) -> Lander:
        """Finds what lands, by the latencies of this target."""
        return Lander(self.base, self.cost)

    def cost(self, config: Any) -> float:
        """Milliseconds of a network; endless where the target has no room for it."""
        costs = wait_for_device(lambda: self.profile(config), self.say)["costs"]
        self._built.clear()
        cost = costs[0] if costs else 1e9
        if time.monotonic() > self._told[0] + SILENCE:
            self._told[0] = time.monotonic()
            self.say(f"timed {len(self._records)} networks, the last takes {cost:.4g} ms")
        return cost

    def profile(self, config: Any) -> dict:
        key = self.key(config)
        if key not in self._records:
            self._records[key] = super().profile(config)
        return self._records[key]

    def config(self, trial) -> Any:
        """The network of a trial; its factors stay with the trial, for they were measured."""
        depth = trial.suggest_int("depth", *DEPTHS) / 4
        resolution = trial.suggest_int("resolution", *RESOLUTIONS) / 8
        factors = trial.user_attrs.get("factors")
        if factors is None:
            landing = self.land(depth, resolution)
            factors = dataclasses.asdict(landing.factors)
            trial.set_user_attr("factors", factors)
            self.say(f"trial {trial.number}: {told(landing, self.base)}")
        return Factors(**factors).of(self.base)

    def land(self, depth: float, resolution: float) -> Landing:
        """The network so many octaves from single-objective scaling that lands by its width."""
        around = self.around
        if depth == resolution == 0:  # itself, not one beside it that lands too
            return self.lander().at(around)
        return self.lander().width(
            around.depth * 2**depth,
            around.resolution * 2**resolution,
            self.budget_ms,
            # Where multiply-adds are what costs, the width that keeps them.
            around.width * 2 ** (-depth / 2 - resolution),
        )

    def suited(self, config: Any) -> Any:
        """A Config with the classes and channels of the task, at its own size."""
        shape = (*config.input_shape[:2], self.task.fields["input_shape"][2])
        return build.suited(config, self.fields | {"input_shape": shape}, self.task.name)

    def train(self, config: Any, *arguments, **options) -> dict:
        task = self.sized(config.input_shape[0])
        here = dataclasses.replace(self, task=task, final_task=lambda: task)
        return super(ScaledNetworks, here).train(config, *arguments, **options)

    def fitted(self, config: Any, task: Any, epochs: int, on_epoch: Callable | None):
        """With another seed, other weights to begin with as well as another order of examples."""
        if not self.seed:
            return super().fitted(config, task, epochs, on_epoch)
        import keras

        from nas.training import loop

        keras.utils.set_random_seed(int(build.digest(f"{self.key(config)} {self.seed}")[:7], 16))
        model = sys.modules[type(config).__module__].build(config)
        fit = loop.fit(model, task, epochs, self.seed, on_epoch=on_epoch)
        return networks.Fitted(model, fit)


def told(landing: Landing, base: Any) -> str:
    """A landing in words."""
    factors = landing.factors
    pixels = round(base.input_shape[0] * factors.resolution)
    return (
        f"depth x{factors.depth:.2f}, width x{factors.width:.2f}, {pixels} px:"
        f" {landing.cost:.4g} ms"
    )


def tasks(load: Callable[[int], Any]) -> Callable[[int], Any]:
    """`load(pixels)`, that keeps the last few: a search changes between a handful of sizes."""
    return functools.lru_cache(TASKS)(load)

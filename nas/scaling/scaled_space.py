"""The search space of one budget: depth and resolution are chosen, the width is measured."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

from nas.profiling.wait_for_device import wait_for_device
from nas.scaling.compound_scaling import Factors
from nas.scaling.width_search import Lander, Landing
from nas.searching.candidate import Candidate
from nas.searching.networks import Networks

# Around single-objective scaling: half to twice its depth, 0.7 to 1.4 times its resolution.
DEPTHS = (-4, 4)  # quarters of an octave
RESOLUTIONS = (-4, 4)  # eighths of an octave
TASKS = 3  # sizes of images that are held at once
SILENCE = 20  # seconds between two messages, at most, while networks are timed
NO_ROOM_MS = 1e9  # the latency of what does not fit into the device


@dataclasses.dataclass
class ScaledSpace:
    """Networks scaled from `base` that land on a budget: they take what they may, hardly less.

    networks: what times them, once each (`Networks.known`). budget_ms: of the first target.
    around: where the choices lie: single-objective scaling for the same budget. say: gets a
    line for each network that was found.
    """

    networks: Networks
    base: Any
    budget_ms: float
    say: Callable[[str], None]
    around: Factors = Factors()
    _said: float = dataclasses.field(default_factory=time.monotonic)

    def lander(self) -> Lander:
        """Finds what lands, by the latencies of the target."""
        return Lander(self.base, self.cost)

    def cost(self, config: Any) -> float:
        """Milliseconds of a network; `NO_ROOM_MS` where it does not fit into the device."""
        candidate = Candidate(config)
        costs = wait_for_device(lambda: self.networks.profile(candidate), self.say)["costs"]
        cost = costs[0] if costs else NO_ROOM_MS
        if time.monotonic() > self._said + SILENCE:
            self._said = time.monotonic()
            timed = len(self.networks.known or ())
            self.say(f"timed {timed} networks, the last takes {cost:.4g} ms")
        return cost

    def sample(self, trial: Any) -> Any:
        """The network of a trial; its factors stay with the trial, for they were measured."""
        depth = trial.suggest_int("depth", *DEPTHS) / 4
        resolution = trial.suggest_int("resolution", *RESOLUTIONS) / 8
        factors = trial.user_attrs.get("factors")
        if factors is None:
            landing = self.land(depth, resolution)
            factors = dataclasses.asdict(landing.factors)
            trial.set_user_attr("factors", factors)
            self.say(f"trial {trial.number}: {described(landing, self.base)}")
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


def described(landing: Landing, base: Any) -> str:
    """A landing in words."""
    factors = landing.factors
    pixels = round(base.input_shape[0] * factors.resolution)
    return (
        f"depth x{factors.depth:.2f}, width x{factors.width:.2f}, {pixels} px:"
        f" {landing.cost:.4g} ms"
    )


def few_tasks(load: Callable[[int], Any]) -> Callable[[int], Any]:
    """`load(pixels)`, that keeps the last few: a search changes between a handful of sizes."""
    return functools.lru_cache(TASKS)(load)

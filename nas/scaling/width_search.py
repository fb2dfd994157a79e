"""Networks that cost what they may: the last factor of a scaling is found by measuring.

A network is expensive to train and cheap to time. So depth and resolution are chosen, and the width
at which the network takes the time allowed is found by bisection on its latency on the target; for
single-objective scaling it is phi. Widths, layers and pixels are whole numbers: what they leave
over is made up by a pixel or two, and by the width.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from nas.scaling.compound_scaling import Factors, PowerLaw

# Timed again a network may be slower by 1 or 2 %: so it is to take a little less than it may.
AIM = 0.98
# What is between these shares of the budget has landed.
LANDED = (0.955, 1.0)
STEP = 1 / 64  # of the base-2 logarithm of a factor: below what one channel makes of 64
WIDEST, NARROWEST = 3.0, -4.0  # base-2 logarithms of widths
PHI = (-12.0, 12.0)
PIXELS = (0, 1, -1)  # beside the wanted ones, that may be tried
MORE_PIXELS = (*PIXELS, 2, -2)


@dataclasses.dataclass(frozen=True)
class Landing:
    """A scaled network and what it costs, in the unit of the budget."""

    factors: Factors
    config: Any
    cost: float

    def landed(self, budget: float) -> bool:
        """Whether it takes what it may, no more and hardly less."""
        return LANDED[0] <= self.cost / budget <= LANDED[1]

    def miss(self, budget: float) -> tuple[bool, float]:
        """Orders landings: within the budget first, then by nearness to it."""
        return self.cost > budget, abs(math.log(self.cost / (AIM * budget)))


@dataclasses.dataclass(frozen=True)
class Lander:
    """Finds the scaled networks of `base` that land on a budget; `cost(config)` is measured.

    `smallest` is the least number of pixels a task can have.
    """

    base: Any
    cost: Callable[[Any], float]
    smallest: int = 8

    def at(self, factors: Factors) -> Landing:
        """The network with these factors, and its cost; of whole pixels."""
        side = self.base.input_shape[0]
        pixels = max(self.smallest, round(side * factors.resolution))
        factors = dataclasses.replace(factors, resolution=pixels / side)
        config = factors.of(self.base)
        return Landing(factors, config, self.cost(config))

    def width(
        self,
        depth: float,
        resolution: float,
        budget: float,
        start: float = 1.0,
        beside: tuple[int, ...] = PIXELS,
    ) -> Landing:
        """The network of this depth and (nearly) this resolution whose width makes it land.

        The nearest there is, where none lands.
        """
        side = self.base.input_shape[0]
        pixels, found = max(self.smallest, round(side * resolution)), []
        for more in beside:
            if pixels + more < self.smallest:
                continue

            def line(exponent: float, side_now: Any = pixels + more) -> Landing:
                return self.at(Factors(depth, 2**exponent, side_now / side))

            found.append(solve(line, budget, math.log2(start), (NARROWEST, WIDEST), slope=1.5))
            if found[-1].landed(budget):
                break
            start = found[-1].factors.width
        return min(found, key=lambda landing: landing.miss(budget))

    def compound(self, law: PowerLaw, budget: float) -> tuple[float, Landing]:
        """(phi, network) of single-objective scaling: the phi at which it lands.

        Where layers are so few that no phi lands, the last phi before the budget gives depth and
        resolution, and its width makes up for the rest.
        """
        phis: dict[Landing, float] = {}

        def line(phi: float) -> Landing:
            landing = self.at(law(phi))
            phis[landing] = phi
            return landing

        below = self.at(Factors())
        start = math.log2(AIM * budget / below.cost)
        found = solve(line, budget, min(max(start, PHI[0]), PHI[1]), PHI, slope=1.0)
        phi = phis[found]
        if found.landed(budget):
            return phi, found
        widened = self.width(
            found.factors.depth,
            found.factors.resolution,
            budget,
            found.factors.width,
            MORE_PIXELS,
        )
        return phi, min(found, widened, key=lambda landing: landing.miss(budget))


def solve(
    line: Callable[[float], Landing],
    budget: float,
    start: float,
    span: tuple[float, float],
    slope: float,
) -> Landing:
    """The landing on `line`, whose cost grows with its argument, that is nearest to the budget.

    Begins at `start`, guesses the next place from the `slope` of log2 cost, and halves what is left
    between a place below and one above; ends where one has landed, or they are a step apart.
    """
    aim = AIM * budget
    low, high = (math.ceil(end / STEP) for end in span)
    place = min(max(round(start / STEP), low), high)
    below: tuple[int, Landing] | None = None
    above: tuple[int, Landing] | None = None
    while True:
        landing = line(place * STEP)
        if landing.landed(budget):
            return landing
        if landing.cost <= aim:
            below = (place, landing)
        else:
            above = (place, landing)
        if below and above:
            if above[0] - below[0] <= 1 or below[1].config == above[1].config:
                break
            place = _between(below, above, aim)
            continue
        if (below and place == high) or (above and place == low):
            break
        distance = math.log2(aim / landing.cost) / slope / STEP
        # Beyond the goal, so that the next place probably lies on its other side; never so far
        # that a network is built that is too large for the machine.
        distance = math.copysign(min(max(abs(distance) * 1.2, 4), 1 / STEP), distance)
        place = min(max(place + round(distance), low), high)
    ends = [end[1] for end in (below, above) if end]
    return min(ends, key=lambda landing: landing.miss(budget))


def _between(below: tuple[int, Landing], above: tuple[int, Landing], aim: float) -> int:
    """The place where the line between two logarithms of costs meets the aim, not near an end."""
    (first, low), (last, high) = below, above
    share = math.log(aim / low.cost) / math.log(high.cost / low.cost)
    inside = first + round(min(max(share, 0.2), 0.8) * (last - first))
    return min(max(inside, first + 1), last - 1)

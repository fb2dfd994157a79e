"""Where the weights of a search's networks come from, and so how candidates are judged."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from nas.events import Listener
from nas.networks import build


class Weights(Protocol):
    """New weights for each network (`NewWeights`), or shared ones (nas/supernets)."""

    @property
    def learning_rate(self) -> float:
        """Of the task's own: less where a training begins with weights that are nearly good."""

    @property
    def repeatable(self) -> bool:
        """Whether a training from the Config alone gives the same network."""

    def check(self, config: Any) -> None:
        """`ValueError` where networks like this one cannot have such weights."""

    def prepare(self, minutes: float, on_event: Listener) -> None:
        """What must be done once before the first network; `minutes` are the whole search's."""

    def counted(self, config: Any) -> Any:
        """A network whose weights do not matter, to be counted and timed."""

    def initial(self, config: Any) -> Any:
        """A network to be trained."""

    def untrained(self, config: Any) -> Any:
        """A network as it can be used without a training of its own."""

    def calibrate(self, model: Any) -> None:
        """Renews what a network, compressed without a training, keeps of data: its averages."""

    def quality(self, config: Any, compressed: Callable[[], Any] | None) -> float | None:
        """Quality 0..1 without a training of its own; None where there must be one.

        compressed: makes the network that its methods make of it, where there are methods.
        """

    def forget(self) -> None:
        """Free the networks of a round that is over."""


@dataclasses.dataclass
class NewWeights:
    """Each network begins with random weights, drawn for its Config, and is trained.

    seed: other weights for the same Config; 0: those that `nas.networks.build.build` draws.
    remember: keep what was counted until it is trained, for to build it again would take as long.
    """

    seed: int = 0
    remember: bool = True
    learning_rate: float = 1.0
    repeatable: bool = True
    _built: dict[str, Any] = dataclasses.field(default_factory=dict)  # counted, not trained yet

    def check(self, config: Any) -> None:
        """Every network can have new weights."""

    def prepare(self, minutes: float, on_event: Listener) -> None:
        """Nothing to do."""

    def counted(self, config: Any) -> Any:
        """A network with new weights."""
        model = build.build(config)
        if self.remember:
            self._built[build.key(config)] = model
        return model

    def initial(self, config: Any) -> Any:
        """The one that was counted, or a new one."""
        model = self._built.pop(build.key(config), None)
        self._built.clear()
        if self.seed:
            seed = int(build.digest(f"{build.key(config)} {self.seed}")[:7], 16)
            return build.build(config, seed)
        return model or build.build(config)

    def untrained(self, config: Any) -> Any:
        """A network with new weights."""
        return self._built.get(build.key(config)) or build.build(config)

    def calibrate(self, model: Any) -> None:
        """Nothing to do: its weights mean nothing yet."""

    def quality(self, config: Any, compressed: Callable[[], Any] | None) -> float | None:
        """None: it must be trained."""
        return None

    def forget(self) -> None:
        """Frees what was counted and not trained, and the backend's graphs."""
        import keras

        self._built.clear()
        keras.backend.clear_session()

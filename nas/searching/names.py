"""What Python objects are called in the records of a study."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from nas.searching.study import Settings


def sampler_maker(controller: Any, by_name: Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    """A function that makes the sampler from `seed`, `reward` and `candidates`, and its name.

    controller: a sampler or its class; None: what `by_name` makes of the default one's name.
    """
    if controller is None:
        return functools.partial(by_name, Settings.controller), Settings.controller
    if not isinstance(controller, type):
        return lambda **_: controller, type(controller).__name__.lower()
    accepted = inspect.signature(controller).parameters

    def make(**options: Any) -> Any:
        return controller(**{name: value for name, value in options.items() if name in accepted})

    return make, controller.__name__.lower()


def of_function(function: Any) -> str:
    """What a function of the user's is called in the records of a study."""
    if isinstance(function, functools.partial):
        options = [*map(repr, function.args), *(f"{k}={v!r}" for k, v in function.keywords.items())]
        return f"{of_function(function.func)}({', '.join(options)})"
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"

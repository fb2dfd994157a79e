"""Hardware-aware neural architecture search and compression for Keras, with measured latency.

Five functions take objects and return results: `nas.search`, `nas.compress`, `nas.profile`,
`nas.train` and `nas.scale`; `nas.open` reads any network. Nothing heavy is imported before one of
them, or another of the names below, is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {  # name -> module that defines it
    "search": "nas.api",
    "compress": "nas.api",
    "profile": "nas.api",
    "train": "nas.api",
    "scale": "nas.api",
    "open": "nas.api",
    "Study": "nas.searching.result",
    "Compressed": "nas.compression.journey",
    "Goal": "nas.compression.goals.goal",
    "Profiles": "nas.profiling.results",
    "Trained": "nas.training.journey",
    "Family": "nas.scaling.result",
    "Network": "nas.files.open_network",
    "Candidate": "nas.searching.candidate",
    "Task": "nas.tasks.task",
    "Recipe": "nas.training.recipe",
    "Latency": "latency.target",
    "Kind": "latency.target",
    "Target": "latency.target",
    "Method": "compress.method",
    "Message": "nas.events",
    "Progress": "nas.cli.progress",
    "TargetUnavailable": "latency.target",
    "DoesNotFit": "latency.target",
    "NotApplicable": "compress.method",
    "CannotWrite": "nas.files.writers.written_file",
}
__all__ = [*_NAMES, "__version__"]

if TYPE_CHECKING:
    from compress.method import Method as Method
    from compress.method import NotApplicable as NotApplicable
    from latency.target import DoesNotFit as DoesNotFit
    from latency.target import Kind as Kind
    from latency.target import Latency as Latency
    from latency.target import Target as Target
    from latency.target import TargetUnavailable as TargetUnavailable
    from nas.api import compress as compress
    from nas.api import open as open
    from nas.api import profile as profile
    from nas.api import scale as scale
    from nas.api import search as search
    from nas.api import train as train
    from nas.cli.progress import Progress as Progress
    from nas.compression.goals.goal import Goal as Goal
    from nas.compression.journey import Compressed as Compressed
    from nas.events import Message as Message
    from nas.files.open_network import Network as Network
    from nas.files.writers.written_file import CannotWrite as CannotWrite
    from nas.profiling.results import Profiles as Profiles
    from nas.scaling.result import Family as Family
    from nas.searching.candidate import Candidate as Candidate
    from nas.searching.result import Study as Study
    from nas.tasks.task import Task as Task
    from nas.training.journey import Trained as Trained
    from nas.training.recipe import Recipe as Recipe


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(
            f"module 'nas' has no attribute {name!r} (it has: {', '.join(_NAMES)})"
        )
    from nas import backend

    backend.choose()  # before Keras is imported
    found = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)

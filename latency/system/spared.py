"""What is kept for next time, in the user's cache: where that fails, the result is not lost."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latency.system.json_records import write_json
from latency.target import cache_directory

_said: set[str] = set()


@contextlib.contextmanager
def spared(what: str | None = None) -> Iterator[None]:
    """Within, a disk that is full or read-only ends the block and is said once: nothing else.

    what: that is not kept; None: the user's cache.

    >>> with spared("an example"):
    ...     raise OSError(28, "No space left on device")
    """
    try:
        yield
    except OSError as error:
        say(error.strerror or str(error), f"{what} is not kept" if what else None)


def say(reason: str, lost: str | None = None) -> None:
    """A warning on stderr, the first time: what is lost (None: what the cache holds) and why."""
    remedy = "" if lost else "; no result is lost, NAS_CACHE=FOLDER names another place"
    lost = lost or f"nothing is kept in {cache_directory()}"
    if lost not in _said:
        _said.add(lost)
        print(f"warning: {lost}: {reason}{remedy}", file=sys.stderr, flush=True)


def keep_json(path: Path, content: Any) -> None:
    """Write a JSON file of the cache, where that is possible."""
    with spared():
        write_json(path, content)

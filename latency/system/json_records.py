"""The date of a record, and JSON files that are written whole or not at all."""

import datetime
import json
from pathlib import Path
from typing import Any

from latency.system.atomic_write import atomic_write


def utc_now() -> str:
    """The time in UTC, to the second, as every record holds it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all, and the folders that it lies in."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=1, default=repr))

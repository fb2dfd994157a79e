"""Records that are kept: their date, and JSON files that are written whole or not at all."""

import datetime
import json
import os
from pathlib import Path
from typing import Any


def utc_now() -> str:
    """The time in UTC, to the second, as every record holds it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=1, default=repr))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

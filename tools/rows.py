"""Rows of a bench that goes on where it was stopped: a line of JSON each, in one file."""

import json
import pathlib
import sys


def append(path: pathlib.Path, row: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: pathlib.Path) -> list[dict]:
    """The rows so far; what a kill cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            print(f"left out, cut off: {line[:60]}", file=sys.stderr)
    return rows

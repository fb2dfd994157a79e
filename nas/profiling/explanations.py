"""Why networks take their time on a target: the part of `nas profile` that --why asks for."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latency.target import Target, TargetUnavailable

SUFFIXES = (".png", ".svg")


def plot_file(text: str) -> Path:
    """Where the plot goes; `ValueError` where it is not a picture's name."""
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {text}: expected a file that ends in {' or '.join(SUFFIXES)}")
    return path


def explained(
    rows: Sequence[dict[str, Any]],
    targets: Mapping[str, Target],
    models: Mapping[str, Any],
    failures: list[str],
) -> list[dict[str, Any]]:
    """The rows with their explanation as "why"; those that have none are told in `failures`."""
    found = []
    for row in rows:
        name, spec = row["model"], row["spec"]
        print(f"explaining {name} on {spec}", file=sys.stderr, flush=True)
        try:
            found.append(row | {"why": targets[spec].explain(models[name], row["latency"])})
        except (ValueError, TargetUnavailable) as error:
            failures.append(f"{name} on {spec}: {' '.join(str(error).split())}")
    return found

"""A network by its name: a file or folder, or FAMILY:VARIANT[,field=value...][,weights=FILE]."""

import dataclasses
import pathlib

from nas import backend, registry
from nas.files.open_network import EXPECTED, Network, from_config, open_network


def open_by_name(text: str) -> Network:
    """The network in a file or folder, or of a family: `mnasnet:tiny,weights=FILE`.

    Raises `ValueError`, one line, where there is none, as `nas.files.open_network` does.

    >>> open_by_name("mnasnet:tiny").source
    'mnasnet:tiny, not trained'
    """
    path = pathlib.Path(text).expanduser()
    if path.exists() and path.suffix != ".py":
        return open_network(path)
    named = registry.parse(text)
    if ":" not in text and (path.suffix or "/" in text) and path.suffix != ".py":
        raise ValueError(f"no file {text}; {EXPECTED}")
    registry.known("family", named.name)
    options = dict(named.options)
    weights = options.pop("weights", None)
    backend.load()
    bare = dataclasses.replace(named, options=tuple(options.items()))
    _, config = registry.network(str(bare))
    return from_config(config, None if weights is None else str(weights))

"""Networks by the names of the catalog: `family[:variant][,field=value...][,weights=FILE]`."""

import importlib.util
import pathlib
from typing import Any

from nas import backend, registry


def is_name(source: Any) -> bool:
    """Whether something is a name of the catalog rather than a network or the path of one.

    A Python file is a family's, and so a name.

    >>> is_name("mnasnet:tiny"), is_name("."), is_name("./my_family.py")
    (True, False, True)
    """
    if not isinstance(source, str):
        return False
    return source.endswith(".py") or not pathlib.Path(source).expanduser().exists()


def config_and_weights(text: str) -> tuple[Any, str | None]:
    """The Config that a name says, and the file that its `weights` name. Loads Keras.

    Raises `ValueError` where there is no such family, variant, field or file.

    >>> config, weights = config_and_weights("mnasnet:tiny,classes=3")
    >>> config.classes, weights
    (3, None)
    """
    named = registry.parse(text)
    known = named.name in registry.listing("family") or ".py" in text or _is_module(named.name)
    if not known and (pathlib.Path(text).suffix or "/" in text):
        from nas.files.open_network import open_network

        open_network(text)  # says that there is no such file
    registry.known("family", named.name)
    backend.load()
    options = dict(named.options)
    weights = options.pop("weights", None)
    bare = registry.Spec(named.name, named.value, tuple(options.items()), named.attribute)
    return registry.network(str(bare))[1], weights


def _is_module(name: str) -> bool:
    """Whether a dotted name is that of a module that may be there, as `my_package.my_family`."""
    top, *parts = name.split(".")
    return bool(parts) and top.isidentifier() and importlib.util.find_spec(top) is not None

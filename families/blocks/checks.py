"""How the fields of a Config are checked, and given one spelling for equal networks."""

from typing import Any


def check(network: str, holds: bool, field: str, value: Any, expected: str) -> None:
    """`ValueError` saying which field, what came and what was expected, unless it `holds`.

    >>> check("ViT", 3 % 2 == 0, "heads", 3, "an even number")
    Traceback (most recent call last):
        ...
    ValueError: ViT heads: got 3, expected an even number
    """
    if not holds:
        raise ValueError(f"{network} {field}: got {value!r}, expected {expected}")


def spell(config: Any, values: dict[str, Any]) -> None:
    """Set fields of a frozen Config, from its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(config, name, value)

"""`--shape`: sizes for the inputs of networks that leave them open."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

_SHAPE = re.compile(r"(?:(?P<name>.+)=)?(?P<sizes>\d+(?:[,x]\d+)*)")


def add(parser: argparse.ArgumentParser) -> None:
    """The flag; it may be repeated."""
    parser.add_argument(
        "--shape",
        action="append",
        metavar="[INPUT=]SIZES",
        help="sizes of an input that leaves them open, batch first, as image=1,224,224,3; without"
        " a name where there is one input; repeat for several",
    )


def parsed(texts: Sequence[str] | None) -> Any:
    """What `nas.open` takes as shapes.

    >>> parsed(["ids=1,128", "mask=1,128"])
    {'ids': (1, 128), 'mask': (1, 128)}
    >>> parsed(["1,224,224,3"])
    (1, 224, 224, 3)
    """
    found: dict[str | None, tuple[int, ...]] = {}
    for text in texts or ():
        match = _SHAPE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"--shape {text}: expected SIZES or INPUT=SIZES, as image=1,224,224,3")
        name = match["name"]
        if name in found:
            raise ValueError(f"--shape {text}: a second shape of {name or 'the only input'}")
        found[name] = tuple(map(int, re.split("[,x]", match["sizes"])))
    if None in found:
        if len(found) > 1:
            raise ValueError(
                f"--shape {','.join(map(str, found[None]))}: without the name of an input, beside"
                " others that have one; expected INPUT=SIZES"
            )
        return found[None]
    return found

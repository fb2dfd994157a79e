"""A model card into a file that is handed over, and `use.py` beside it."""

import json
import pathlib
import zipfile
from typing import Any

from latency.system.atomic_write import atomic_write
from nas.files.hand_over import use
from nas.files.hand_over.use import CARD, LABELS

SCRIPT = "use.py"
_FIRST = '"""Runs the network beside this file'  # how ours begins, of any version


def attach(path: pathlib.Path, card: dict[str, Any]) -> None:
    """Write a card into a .keras, .tflite or .mlpackage file; other formats stay as they are."""
    if path.suffix == ".tflite":
        from nas.files.writers.tflite.metadata import with_metadata

        content = with_metadata(path.read_bytes(), card)
        with atomic_write(path) as partial:
            partial.write_bytes(content)
    elif path.suffix == ".keras":
        add_to_zip(path, card)
    elif path.suffix == ".mlpackage":
        from nas.files.writers.mlpackage.metadata import add_metadata

        add_metadata(path, card)


def card_in(path: pathlib.Path) -> dict[str, Any] | None:
    """The model card in a .tflite or .keras file; None where there is none."""
    try:
        return use.read_card(path)
    except ValueError:
        return None


def add_to_zip(path: pathlib.Path, card: dict[str, Any]) -> None:
    """Add a card to the archive that a .keras file is."""
    with zipfile.ZipFile(path, "a") as archive:
        plain = {name: value for name, value in card.items() if name != "labels"}
        archive.writestr(zipfile.ZipInfo(CARD), json.dumps(plain, ensure_ascii=False))
        if card.get("labels"):
            archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(card["labels"]))


def write_script(folder: pathlib.Path) -> pathlib.Path:
    """Write use.py into a folder; a file of that name that is not ours stays, ours gets another.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_script(pathlib.Path(folder)).name
    'use.py'
    """
    path = folder / SCRIPT
    if path.exists() and not path.read_text(errors="replace").startswith(_FIRST):
        path = folder / "use_network.py"
    with atomic_write(path) as partial:
        partial.write_text(pathlib.Path(use.__file__).read_text())
    return path

"""What a Core ML package says of itself: description, version, class names, preprocessing.

https://apple.github.io/coremltools/docs-guides/source/mlmodel-utilities.html
"""

import json
import pathlib
from typing import Any

from latency.system.atomic_write import atomic_write

# Not the whole package again: weights lie beside it.
PROGRAM = pathlib.Path("Data", "com.apple.CoreML", "model.mlmodel")


def add_metadata(package: pathlib.Path, card: dict[str, Any]) -> None:
    """Write a model card (`nas.files.hand_over.model_card`) into a package's metadata.

    Class names are user-defined metadata "classes", one a line: a package with a class label as its
    output would give other outputs than the network.
    """
    from coremltools.proto import Model_pb2

    file = package / PROGRAM
    model = Model_pb2.Model.FromString(file.read_bytes())
    found, made = model.description.metadata, card["made"]
    found.shortDescription = f"{card['name']}, made by nas of {made['of']}"
    found.versionString = made["version"]
    plain = {name: value for name, value in card.items() if name != "labels"}
    found.userDefined["model_card"] = json.dumps(plain, ensure_ascii=False)
    if card.get("labels"):
        found.userDefined["classes"] = "\n".join(card["labels"])
    with atomic_write(file) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))

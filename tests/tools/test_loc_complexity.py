"""Adding one family, leaf, space, method, target, controller or task changes no other file."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
LEAF = '''"""A leaf."""
import keras

@keras.saving.register_keras_serializable("nas")
class Mine(keras.layers.Layer):
    """Mine, as in families.layers.mine."""
'''
METHOD = '''"""A method."""
from compress.method import Method

class Tiny(Method):
    """Tiny."""
'''


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "loc_complexity", ROOT / "tools/loc_complexity.py"
    )
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # where dataclasses look up the names of their types
    spec.loader.exec_module(module)
    return module


def test_adding_one_thing_is_adding_one_file(tool):
    found = tool.things()
    assert {"family", "space", "task", "target", "controller", "method", "leaf"} <= {
        thing.kind for thing in found
    }
    costs, excused = tool.cost(tool.mentions(found))
    assert not costs, tool.table(found, costs)
    idle = [subject for subject, lines in excused.items() if not lines]
    assert not idle, "entries of SUBJECTS that excuse nothing: delete them"


@pytest.mark.parametrize(
    ("place", "source", "lines"),
    [
        ("compress/prune.py", "from families.layers import Mine\nisinstance(1, Mine)", 2),
        ("compress/rewriting/a.py", "from families.layers.mine import Mine as It\nx = (It,)", 2),
        ("latency/a.py", "import families.layers as them\nthem.Mine", 1),
        ("latency/a.py", "from families import layers\nlayers.Mine()\nlayers.Mine()", 2),
        ("latency/a.py", 'WRITERS = {"nas>Mine": 1}', 1),
        ("nas/a.py", 'if type(layer).__name__ == "Mine":\n    pass', 1),
        ("nas/a.py", 'NAMES = (\n    "prune",\n    "tiny",\n)', 1),
        ("nas/a.py", "from compress import tiny\ntiny.Tiny()", 2),
        ("nas/a.py", 'import_module("compress.tiny")', 1),
        ("nas/a.py", '"""Of Mine and families.layers.mine."""\n# Mine, tiny\nfamilies = "mine"', 0),
        ("families/a.py", "from families.layers import Mine\nMine()", 0),  # made of leaves
    ],
)
def test_a_line_that_names_a_thing_is_counted(tool, tmp_path, place, source, lines):
    for path, text in (
        ("families/layers/mine.py", LEAF),
        ("compress/tiny.py", METHOD),
        (place, source),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = tool.things(tmp_path)
    assert {thing.name for thing in found} >= {"mine", "tiny"}
    costs, _ = tool.cost(tool.mentions(found, tmp_path))
    assert len(costs) == lines
    assert {cost.path for cost in costs} <= {place}

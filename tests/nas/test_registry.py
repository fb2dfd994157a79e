"""The spec grammar, and the folder as the registry."""

import sys

import pytest

from nas import registry


@pytest.mark.parametrize(
    ("text", "name", "value", "options"),
    [
        ("cpu", "cpu", None, ()),
        ("mnasnet:a1", "mnasnet", "a1", ()),
        ("cpu:threads=4", "cpu", None, (("threads", 4),)),
        ("android:SERIAL,threads=4", "android", "SERIAL", (("threads", 4),)),
        ("tpu:v3,schedule=false", "tpu", "v3", (("schedule", False),)),
        ("ppo:learning_rate=3e-4", "ppo", None, (("learning_rate", 3e-4),)),
        ("image_folder:/a b/c,size=64", "image_folder", "/a b/c", (("size", 64),)),
        ("digits,size=8", "digits", None, (("size", 8),)),
        ("./my_space.py", "./my_space.py", None, ()),
        ("./my_space.py:tiny,deep=2", "./my_space.py", "tiny", (("deep", 2),)),
        ("boards.pi:factor=2", "boards.pi", None, (("factor", 2),)),
    ],
)
def test_grammar(text, name, value, options):
    parsed = registry.parse(text)
    assert parsed == registry.Spec(name, value, options)
    assert registry.parse(str(parsed)) == parsed


def test_a_file_or_module_may_name_what_is_meant_in_it():
    parsed = registry.parse("./rounding.py:Tiny,0.2,axis=1")
    assert parsed == registry.Spec("./rounding.py", 0.2, (("axis", 1),), "Tiny")
    assert registry.parse(str(parsed)) == parsed
    assert registry.target("latency.cpu:CPU,threads=1") == registry.target("cpu:threads=1")
    with pytest.raises(ValueError, match="'0.2 ' is no name|0.2 is no name"):
        registry.parse("./rounding.py:0.2,3")


def test_nothing_is_given_twice():
    with pytest.raises(ValueError, match="size is given twice"):
        registry.task("digits:8,size=16")


@pytest.mark.parametrize("text", ["", ":", "cpu:", "cpu:a,b"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="cannot read"):
        registry.parse(text)


def test_listing_imports_nothing_and_knows_every_kind():
    before = set(sys.modules)
    found = {kind: registry.listing(kind) for kind in registry.KINDS}
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & {"keras", "optuna"}
    assert {"mnasnet", "mobilenet_v2"} <= set(found["family"])
    assert "mnasnet" in found["space"] and "cpu" in found["target"]
    assert {"digits", "fashion_mnist", "image_folder", "table"} <= set(found["task"])
    ours = {"surrogate", "ppo", "reinforce", "evolution"}
    assert ours | {"random", "tpe", "nsgaii", "nsgaiii", "gp"} == set(found["controller"])
    for entries in found.values():
        assert all(line for line in entries.values())


def test_unknown_names_and_options_name_what_there_is():
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        registry.task("digit")
    with pytest.raises(ValueError, match="has no option 'thread'.*threads"):
        registry.target("cpu:thread=1")
    with pytest.raises(ValueError, match="needs path"):
        registry.task("image_folder")


def test_an_example_in_a_docstring_is_no_entry():
    example = '"""The contract.\n\n    >>> class Board(Target): ...\n"""\n'
    assert not registry.KINDS["target"].defined_in(example)
    assert registry.KINDS["target"].defined_in(example + "class Board(Target):\n    pass\n")
    assert "target" not in registry.listing("target")

"""The rules of the house: who may import whom, how big a file gets, what names are not used."""

import ast
import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
OURS = ("families", "search_spaces", "latency", "compress", "nas")
MAY_IMPORT = {
    "families": {"families"},
    "latency": {"latency"},
    "search_spaces": {"search_spaces", "families"},
    "compress": {"compress", "families.layers", "families.ops"},
    "nas": set(OURS),
}
HEAVY = {"tensorflow", "keras", "jax", "matplotlib", "sklearn", "scipy", "optuna", "numpy", "PIL"}
FILES = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        if name.split(".")[0] in (*OURS, "tools", "tests"):
            allowed = any((name + ".").startswith(a + ".") for a in MAY_IMPORT[package])
            assert allowed, f"{path} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path):
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), f"{path} has no docstring"
    assert len(source.splitlines()) <= 420, f"{path} is too long to be read in one go"
    banned = {"utils", "base", "manager", "helper", "helpers", "factory", "handler", "misc"}
    assert path.stem not in banned


def test_only_targets_say_what_a_figure_is():
    """Measured, compiled or predicted: said where it is taken, never changed elsewhere."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert called != "Latency" or path.name == "target.py", f"{path} makes a Latency"
            in_latency = path.relative_to(ROOT).parts[0] == "latency"
            assert called != "Timing" or in_latency, f"{path} makes a Timing"
            keywords = {keyword.arg for keyword in node.keywords}
            assert called != "replace" or not keywords & {"kind", "samples_ms"}, path


def test_the_command_line_imports_nothing_heavy():
    for name in ("__init__", "__main__", "api", "registry", "events", "cli/command_line"):
        tree = ast.parse((ROOT / "nas" / f"{name}.py").read_text())
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {n.name.split(".")[0] for node in top for n in node.names} | {
            node.module.split(".")[0] for node in top if isinstance(node, ast.ImportFrom)
        }
        assert not names & HEAVY, f"nas/{name}.py imports {names & HEAVY} before it is needed"


def import_circles() -> list[list[str]]:
    """Groups of modules that import one another in a circle; imports inside functions count."""
    modules = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    direct: dict[str, set[str]] = {}
    for name, path in modules.items():
        imported = imports(path)
        found = {one if one in modules else one.rpartition(".")[0] for one in imported}
        direct[name] = found & modules.keys() - {name}
    reached: dict[str, set[str]] = {}
    for name in modules:
        reached[name], ahead = set(), [name]
        while ahead:
            new = direct[ahead.pop()] - reached[name]
            reached[name] |= new
            ahead += new
    circles = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in modules
        if name in reached[name]
    }
    return sorted(map(list, circles))


@pytest.mark.parametrize("package", OURS)
def test_no_module_imports_itself_in_a_circle(package):
    """Two modules that need each other are one, or a third is missing."""
    found = [one for one in import_circles() if one[0].split(".")[0] == package]
    assert not found, "\n".join(" <-> ".join(one) for one in found)


# Runs on boards with Python 3.6, which reads no annotation as `int | None`.
WITHOUT_TYPES = {ROOT / "latency" / "boards" / "python_script.py"}


def without_types(body: list[ast.stmt], in_class: bool = False) -> list[str]:
    """Public functions and methods with an argument or a result of no type, as "name, line"."""
    found = []
    for node in body:
        if isinstance(node, ast.If):
            found += without_types([*node.body, *node.orelse], in_class)
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            found += without_types(node.body, in_class=True)
            continue
        static = "staticmethod" in {getattr(each, "id", "") for each in node.decorator_list}
        ours = [*node.args.posonlyargs, *node.args.args][1 if in_class and not static else 0 :]
        ours += [*node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        if node.returns is None or any(each and each.annotation is None for each in ours):
            found.append(f"{node.name}, line {node.lineno}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_has_types(path):
    if path not in WITHOUT_TYPES:
        assert not without_types(ast.parse(path.read_text()).body)


def test_functions_without_types_are_found():
    source = "def f(a, *, b: int) -> int: ...\nclass A:\n    def g(self, x: int): ...\n"
    source += "    def h(self, *names: str) -> None: ...\n    def _i(self, y): ...\n"
    assert without_types(ast.parse(source).body) == ["f, line 1", "g, line 3"]


def test_the_type_checker_sees_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert set(settings["packages"]) == set(OURS) and "exclude" not in settings
    assert settings["check_untyped_defs"] and settings["disallow_incomplete_defs"]
    (line,) = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "mypy" in line]
    assert line.split() == ["mypy"]

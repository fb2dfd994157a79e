"""The examples run as printed, outside the package; README and setup.cfg say what is so."""

import ast
import importlib
import inspect
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from nas.cli import command_line

ROOT = pathlib.Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "tools" / "examples"
PACKAGES = ("nas", "latency", "compress", "families", "search_spaces")
PAGES = ("README.md", "CONTRIBUTING.md", "tools/results/README.md")
BESIDE = {"residual_mlp.py"}  # what an example imports
slow = pytest.mark.slow

# Script -> what it must print, as regular expressions, and what it must leave.
SCRIPTS = {
    "own_target.py": (["mnasnet:tiny +Board.*PREDICTED", "runtime datasheet"], []),
    "own_method.py": (["non-zeros .* x0.", r"\[-0.3, -0.25.*0.25, 0.3\]"], ["small.keras"]),
    "own_data_and_task.py": ([r"share within 0.1 \d.\d+, validation loss"], ["net.keras"]),
    "profile_and_compare.py": (["dense on CPU.*measured", "figure is measured"], []),
    "compress_my_keras_model.py": (
        [r"\.tflite bytes .* x0\.1", r"\d+\.\d% -> \d+\.\d%"],
        ["small.tflite", "small.keras"],
    ),
    "search_plain_function.py": (
        [r"budget +0\.010* ms on CPU\(threads=1\)", "best.tflite", r"Config\(input_shape=\(8, 8"],
        ["runs/mine/best.keras", "runs/mine/config.py", "runs/mine/report.html"],
    ),
    "search_own_family.py": (
        ["baseline", r"trial \d+: quality .* ms Config\(.*width="],
        ["runs/mlp/best.tflite", "runs/mlp/config.py"],
    ),
}
SLOW = {"profile_and_compare.py", "compress_my_keras_model.py"}  # and all searches

# Runs a file of `# %%` cells and shows the last value of each cell as a notebook does.
NOTEBOOK = """
import ast, re, sys
names = {"__name__": "__main__"}
for cell in re.split("(?m)^# %%.*$", open(sys.argv[1]).read()):
    if not (parsed := ast.parse(cell).body):
        continue
    *body, last = parsed
    if isinstance(last, ast.Expr):
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        print(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))
    else:
        exec(compile(ast.Module([*body, last], []), "cell", "exec"), names)
"""


def run(folder: pathlib.Path, *arguments: str) -> str:
    """What a Python process in `folder` prints; it must end well."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A folder outside the package with the examples in it."""
    return pathlib.Path(shutil.copytree(EXAMPLES, tmp_path / "mine"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=slow) if name in SLOW or name.startswith("search") else name
        for name in SCRIPTS
    ],
)
def test_an_example_runs_as_printed(name, folder):
    patterns, files = SCRIPTS[name]
    printed = run(folder, name)
    for pattern in patterns:
        assert re.search(pattern, printed), f"{name} printed no {pattern!r}:\n{printed}"
    for file in files:
        assert (folder / file).stat().st_size, f"{name} left an empty {file}"


@slow
def test_the_commands_of_the_examples_run(folder):
    """What their docstrings show of the command line, on the same files."""
    run(folder, "own_method.py")  # leaves small.keras
    shown = "\n".join(path.read_text() for path in sorted(folder.glob("*.py")))
    commands = re.findall(r"^\$ nas (.*)$", shown, re.MULTILINE)
    assert len(commands) == 4
    printed = [run(folder, "-m", "nas", *shlex.split(text, comments=True)) for text in commands]
    data, method, target, family = printed
    assert re.search(r"share within 0.1 \d.\d+", data) and (folder / "other.keras").exists()
    assert "non-zeros" in method and (folder / "smaller.keras").exists()
    assert "PREDICTED" in target and "residual_mlp.py:large" in family


@slow
def test_a_notebook_shows_tables_and_pictures(folder):
    printed = run(folder, "-c", NOTEBOOK, "notebook.py")
    assert printed.count("<svg") >= 4  # the front, the latencies, the curves, what layers bear
    assert (folder / "winner.tflite").stat().st_size == int(printed.split()[-1])


def test_there_are_eight_short_scripts():
    scripts = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(scripts) - BESIDE == {*SCRIPTS, "notebook.py"}
    assert len(scripts) - len(BESIDE) == 8
    assert max(scripts.values()) <= 40, scripts


@slow
def test_what_the_tools_use_is_there():
    """A rename that forgets a benchmark is seen before somebody needs the benchmark."""
    for path in sorted((ROOT / "tools").glob("*.py")):
        tree, modules = ast.parse(path.read_text()), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
                package = importlib.import_module(str(node.module))
                for alias in node.names:
                    if not hasattr(package, alias.name):  # a module of a package, else an error
                        importlib.import_module(f"{node.module}.{alias.name}")
                    modules[alias.asname or alias.name] = getattr(package, alias.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = modules.get(node.value.id)
                if inspect.ismodule(owner):
                    assert hasattr(owner, node.attr), f"{path.name}: {node.value.id}.{node.attr}"


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_readme_is_a_door():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 180 and max(map(len, lines)) <= 110
    assert "pip install . && nas search " in "\n".join(lines)
    assert "pip install '.[test]' && pytest -n 2" in "\n".join(lines)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert "://" in link or ((ROOT / page).parent / link).exists(), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_pages_show_are_commands(page):
    """Every `nas ...` line is one that the parser takes."""
    texts = "\n".join(blocks(page, "sh")) + "\n".join(
        path.read_text() for path in EXAMPLES.glob("*")
    )
    commands = re.findall(r"^(?:\$ )?(nas .*)$", texts.replace("\\\n", " "), re.MULTILINE)
    assert commands or page != "README.md"
    for command in commands:
        for words in (shlex.split(part, comments=True) for part in command.split("&&")):
            command_line.parser().parse_args(words[1:])  # SystemExit where it is none


@slow
def test_python_in_the_readme_runs(folder):
    """As one session, from top to bottom."""
    (folder / "readme.py").write_text("\n".join(blocks("README.md", "python")))
    assert "measured" in run(folder, "readme.py")


def third_party(folders: tuple[str, ...]) -> set[str]:
    """What the sources of packages import that is neither ours nor of Python itself."""
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


def declared() -> tuple[set[str], set[str]]:
    """Modules of the distributions that setup.cfg requires: always, and with an extra."""
    import configparser

    names = {"pillow": "pil", "scikit-learn": "sklearn"}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")

    def modules(text: str) -> set[str]:
        found = re.findall(r"^([A-Za-z][\w-]*)", text, re.MULTILINE)
        return {names.get(name.lower(), name.lower().replace("-", "_")) for name in found}

    always = modules(setup["options"]["install_requires"])
    extras = setup["options.extras_require"]
    return always, set().union(*(modules(extras[name]) for name in extras if name != "test"))


def test_what_is_imported_is_declared():
    always, extras = declared()
    imported = {name.lower() for name in third_party(PACKAGES)}
    assert imported - always - extras - {"jaxlib"} == set()  # jaxlib comes with jax
    assert always - imported == set(), "declared, and imported nowhere"

"""The structure of a checkout in figures: modules, lines, import circles, arrows, probes.

    python tools/structure.py                     # this checkout
    python tools/structure.py --beside ../before  # and another one beside it

Only reads the sources. Types and examples are counted by `mypy` and `pytest --doctest-modules`.
"""

import argparse
import ast
import pathlib
import re

PACKAGES = ("nas", "latency", "compress", "families", "search_spaces")
ROOT = pathlib.Path(__file__).resolve().parent.parent
# What is asked of an evaluator, a candidate or a sampler instead of being written down.
ASKED = re.compile(
    r"(hasattr|getattr|isinstance)\((evaluator|sampler|study\.sampler|self\.evaluator)"
)
CANDIDATE = re.compile(r"isinstance\([^()]*(Candidate|Finished|Inherited)\b")
SPEC = re.compile(r"\b(?:spec|registry)\.(?:parse|network|space|target|task|controller|method)\(")


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name of a module -> its file, of the five packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(known: dict[str, pathlib.Path]) -> dict[str, set[str]]:
    """Module -> the modules of `known` that it imports, anywhere in it."""
    graph = {}
    for name, path in known.items():
        used = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                used |= {one if one in known else node.module for one in full}
        graph[name] = {one for one in used if one in known and one != name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (Tarjan, SIAM J. Comput. 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = []
            while True:
                group.append(stack.pop())
                if group[-1] == name:
                    break
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def figures(root: pathlib.Path) -> dict[str, int]:
    """What the table shows of a checkout."""
    known = modules(root)
    graph = imports(known)
    text = {name: path.read_text() for name, path in known.items()}
    rooms = {name: name.rpartition(".")[0] or name for name in known}
    arrows = {(rooms[a], rooms[b]) for a, used in graph.items() for b in used}
    below = [name for name in known if name.startswith("nas.") and not _is_shell(name)]
    return {
        "modules at the top of nas/": len(list((root / "nas").glob("*.py"))),
        "modules at the top of latency/": len(list((root / "latency").glob("*.py"))),
        "modules": len(known),
        "source lines": sum(content.count("\n") for content in text.values()),
        "longest file, lines": max(content.count("\n") for content in text.values()),
        "import circles": len(circles(graph)),
        "arrows between folders": sum(a != b for a, b in arrows),
        "evaluators asked by hasattr, getattr, isinstance": sum(
            len(ASKED.findall(text[name])) for name in known if name.startswith("nas.")
        ),
        "candidates asked by isinstance": sum(
            len(CANDIDATE.findall(text[name])) for name in known if name.startswith("nas.")
        ),
        "files that read a spec below the command line": sum(
            bool(SPEC.search(text[name])) for name in below
        ),
    }


def _is_shell(name: str) -> bool:
    """Whether strings may become objects here."""
    shells = (
        "nas.cli",
        "nas.main",
        "nas.spec",
        "nas.registry",
        "nas.api",
        "nas.catalog",
        "nas.testing",
    )
    return name.startswith(shells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beside", type=pathlib.Path, help="root of another checkout")
    arguments = parser.parse_args()
    here = figures(ROOT)
    other = figures(arguments.beside) if arguments.beside else {}
    for name, value in here.items():
        before = f"{other[name]:>8,}" if other else ""
        print(f"{name:52} {before} {value:>8,}")


if __name__ == "__main__":
    main()

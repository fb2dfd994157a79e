"""What adding one thing costs outside its own file, in lines and files: LoC-complexity.

After Lee et al., "AXLearn: Modular Large Model Training on Heterogeneous Infrastructure", arXiv
2507.05411, section 4.1: modularity is the number of lines that a feature changes elsewhere. Every
family, leaf layer, space, method, target, controller, task and probe is taken for one that was just
added: a line of the five packages outside its own file that names it is a line that had to be
written for it. Naming is to import its module or what it defines, to use what was imported, or a
text with its name or the name of its class. Comments and docstrings do not count.

    python tools/loc_complexity.py            # a table; exit status 1 where anything costs a line

Two things are no cost. A thing may be *used* by what is made of such things (`MADE_OF`): a family
of leaves, a space of a family. And some lines are about one thing by their subject (`SUBJECTS`,
each with its reason); the tool fails where one of these entries excuses nothing any more.
"""

import ast
import collections
import dataclasses
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("families", "search_spaces", "latency", "compress", "nas")
# Kind -> what is made of such things, and so may use them.
MADE_OF = {
    "leaf": ("families/", "nas/tasks/"),
    "family": ("families/", "search_spaces/"),
    "space": ("search_spaces/",),
    "task": ("nas/tasks/",),
    "controller": ("nas/controllers/",),
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """What can be added as one file: its kind, its file, and the names that mean it."""

    kind: str
    path: str
    defines: frozenset[str]
    texts: frozenset[str]

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".")

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]


@dataclasses.dataclass(frozen=True)
class Subject:
    """Files (or folders, that end in /) that may name some things of a kind, and the reason.

    homonym: only texts are excused, never an import: the word means something else there.
    """

    kind: str
    names: tuple[str, ...]
    files: tuple[str, ...]
    reason: str
    homonym: bool = False

    def excuses(self, mention: "Mention") -> bool:
        about = mention.thing.kind == self.kind and mention.thing.name in self.names
        return (
            about and mention.path.startswith(self.files) and (mention.is_text or not self.homonym)
        )


def _subject(kind: str, names: str, files: str, reason: str, homonym: bool = False) -> Subject:
    return Subject(kind, tuple(names.split()), tuple(files.split()), reason, homonym)


SUBJECTS = (
    _subject(
        "leaf",
        "experts activations",
        "compress/drop_experts.py compress/experts/",
        "drop_experts is about mixtures of experts, and computes what each of them gives",
    ),
    _subject(
        "leaf",
        "attention cached rotary",
        "compress/share_kv.py",
        "share_kv is about attention, its cache and the rotation of its queries",
    ),
    _subject(
        "leaf",
        "instruction_mask",
        "compress/instruction_pruning.py",
        "the layers are what instruction_pruning puts into a network",
    ),
    _subject(
        "leaf",
        "rotary",
        "nas/files/readers/llama2c.py",
        "files of llama2.c have the columns of rotary kernels in another order",
    ),
    _subject(
        "leaf",
        "lstm",
        "latency/roofline/file_kernels.py",
        "LiteRT's operators of that name",
        homonym=True,
    ),
    _subject(
        "family",
        "decoder",
        "nas/files/readers/ nas/text/ nas/cli/generate.py",
        "checkpoints of language models become networks of the one family that generates text",
    ),
    _subject(
        "family",
        "mnasnet efficientnet",
        "nas/supernets/mnasnet.py nas/supernets/efficientnet.py",
        "one file a family that has a supernet, found by its name",
    ),
    _subject(
        "family",
        "mnasnet",
        "nas/searching/study.py nas/cli/search.py nas/cli/devices.py",
        "the default space",
    ),
    _subject(
        "space",
        "mnasnet",
        "nas/searching/study.py nas/cli/search.py nas/cli/devices.py nas/cli/command_line.py",
        "the default space",
    ),
    _subject("space", "mnasnet", "nas/supernets/ families/", "the family's name", homonym=True),
    _subject(
        "space",
        "conformer decoder efficientdet",
        "families/ nas/cli/generate.py nas/text/",
        "the family's name",
        homonym=True,
    ),
    _subject(
        "task",
        "digits",
        "nas/searching/study.py nas/cli/search.py nas/cli/command_line.py",
        "the default task",
    ),
    _subject(
        "task",
        "digits fsdd",
        "nas/cli/matrix.py nas/compression/matrix.py",
        "the tasks that the table of all methods is made on, unless others are given",
    ),
    _subject(
        "task",
        "table",
        "nas/cli/search.py nas/searching/ nas/api.py",
        "a table of measured networks needs no training: it has an evaluator of its own",
    ),
    _subject(
        "controller",
        "random",
        "nas/searching/",
        "random search is what a controller is compared with, and draws networks for others",
    ),
    _subject(
        "controller",
        "random",
        "compress/experts/criteria.py nas/report/ nas/testing/",
        "a criterion of that name, the key of that comparison, and random examples",
        homonym=True,
    ),
    _subject(
        "controller",
        "surrogate",
        "nas/searching/study.py nas/cli/search.py nas/api.py",
        "the default controller",
    ),
    _subject(
        "target",
        "predicted",
        "nas/profiling/learn_device.py",
        "what is learned of a device is what this target reads",
    ),
    _subject(
        "target",
        "predicted",
        "families/conformer.py latency/target.py",
        "a tensor's name, and a kind of figure",
        homonym=True,
    ),
    _subject(
        "target",
        "android cpu ssh",
        "latency/ray.py latency/ray_cluster/",
        "which of the devices of a node only one process at a time may use",
    ),
    _subject(
        "target",
        "cpu gpu",
        "nas/cli/ray_workers.py nas/ray_cluster/",
        "Ray's resources of that name",
        homonym=True,
    ),
    _subject(
        "target",
        "ray",
        "nas/ray_cluster/",
        "workers that Ray places time on targets of the same cluster",
    ),
    _subject(
        "method",
        "ptq qat distill prune_channels",
        "nas/compression/goals/",
        "what a goal is reached by",
    ),
    _subject(
        "method",
        "float16",
        "nas/compression/given_tflite.py",
        "what can be done to a .tflite file in place",
    ),
    _subject(
        "method",
        "float16",
        "compress/rewriting/ latency/ nas/files/ nas/training/",
        "a type of numbers",
        homonym=True,
    ),
    _subject(
        "task",
        "table",
        "nas/compression/goals/",
        "bits by kernel",
        homonym=True,
    ),
    _subject(
        "task",
        "text",
        "nas/files/hand_over/",
        "a kind of input",
        homonym=True,
    ),
    _subject(
        "task",
        "text",
        "nas/text/",
        "what a language model was trained on says how its text is cut",
    ),
    _subject(
        "target",
        "cpu gpu tpu ssh",
        "latency/",
        "LiteRT's delegates, JAX's platforms, processors in Linux and Core ML, a command",
        homonym=True,
    ),
)


def things(root: pathlib.Path = ROOT) -> list[Thing]:
    """All that the registry's folders hold, and the leaf layers."""
    from nas import registry

    found = []
    for kind, entry in registry.KINDS.items():
        folder = root / entry.package.replace(".", "/")
        for path in sorted(folder.glob("*.py")):
            source = path.read_text()
            if entry.defined_in(source):
                # Functions of a kind have the same name in every file: they are its contract.
                defines = _defined(source, ast.ClassDef) - {"Config", "Block"}
                texts = {path.stem, *(name for name in defines if not entry.function)}
                found.append(_thing(kind, path, root, defines, texts))
    for path in sorted((root / "families/layers").glob("*.py")):
        source = path.read_text()
        if "register_keras_serializable" in source:
            defines = _defined(source, (ast.ClassDef, ast.FunctionDef))
            classes = _defined(source, ast.ClassDef)
            texts = {*classes, *(f"nas>{name}" for name in classes)}
            found.append(_thing("leaf", path, root, defines, texts))
    return found


def _thing(kind: str, path: pathlib.Path, root: pathlib.Path, defines: set, texts: set) -> Thing:
    place = path.relative_to(root).as_posix()
    return Thing(kind, place, frozenset(defines), frozenset(texts))


def _defined(source: str, kinds: type | tuple) -> set[str]:
    tree = ast.parse(source)
    return {n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")}


@dataclasses.dataclass(frozen=True)
class Mention:
    """One line that names a thing; is_text: only by a text."""

    thing: Thing
    path: str
    line: int
    is_text: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def mentions(found: list[Thing], root: pathlib.Path = ROOT) -> list[Mention]:
    """All lines of the five packages that name one of these outside its own file."""
    result = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            place = path.relative_to(root).as_posix()
            names = _Names(path.read_text())
            for thing in found:
                if place == thing.path:
                    continue
                used = names.uses(thing)
                texts = names.texts_of(thing) - used
                result += [Mention(thing, place, line, False) for line in sorted(used)]
                result += [Mention(thing, place, line, True) for line in sorted(texts)]
    return result


class _Names:
    """What one file imports, where it uses it, and the texts in it that are no docstrings."""

    def __init__(self, source: str):
        self.imports: list[tuple[str, str, str, int]] = []  # module, name in it, here, line
        self.lines: dict[str, set[int]] = collections.defaultdict(set)  # of a name
        self.texts: dict[str, set[int]] = collections.defaultdict(set)
        docstrings = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                if node.body and isinstance(node.body[0], ast.Expr):
                    docstrings.add(id(node.body[0].value))
            elif isinstance(node, ast.Import):
                for one in node.names:
                    self.imports.append((one.name, "", one.asname or one.name, node.lineno))
            elif isinstance(node, ast.ImportFrom):
                for one in node.names:
                    here = one.asname or one.name
                    self.imports.append((node.module or "", one.name, here, one.lineno))
            elif isinstance(node, ast.Name):
                self.lines[node.id].add(node.lineno)
            elif isinstance(node, ast.Attribute):
                self.lines[ast.unparse(node)].add(node.lineno)
            elif isinstance(node, ast.Constant) and id(node) not in docstrings:
                self.texts[str(node.value)].add(node.lineno)

    def uses(self, thing: Thing) -> set[int]:
        """Lines that import the module or what it defines, or use what was imported."""
        package, _, module = thing.module.rpartition(".")
        found = set()
        for source, name, here, line in self.imports:
            whole = source == thing.module
            if whole or (source == package and name in (module, *thing.defines)):
                found |= {line} | self.lines[here]
            elif package in (source, f"{source}.{name}"):  # the package itself
                for defined in thing.defines:
                    found |= self.lines[f"{here}.{defined}"]
        return found

    def texts_of(self, thing: Thing) -> set[int]:
        """Lines with a text that is its name, the name of its class, or begins with its module."""
        module = thing.module
        return {
            line
            for text, lines in self.texts.items()
            if text in thing.texts
            or text == module
            or text.startswith((f"{module}.", f"{module}:"))
            for line in lines
        }


def cost(found: list[Mention]) -> tuple[list[Mention], dict[Subject, int]]:
    """(the lines that are a cost, how many lines each of `SUBJECTS` excuses)."""
    left, excused = [], dict.fromkeys(SUBJECTS, 0)
    for mention in found:
        if mention.path.startswith(MADE_OF.get(mention.thing.kind, ("no/",))):
            continue
        excuse = next((one for one in SUBJECTS if one.excuses(mention)), None)
        if excuse is None:
            left.append(mention)
        else:
            excused[excuse] += 1
    return left, excused


def table(found: list[Thing], costs: list[Mention]) -> str:
    """One row a kind: how many things, lines and files outside their own, and where most."""
    rows = [f"{'kind':<12}{'things':>7}{'mean lines':>12}{'max lines':>11}{'max files':>11}  where"]
    for kind in dict.fromkeys(thing.kind for thing in found):
        mine = [thing for thing in found if thing.kind == kind]
        lines = collections.Counter(one.thing for one in costs if one.thing.kind == kind)
        files = {t: len({one.path for one in costs if one.thing == t}) for t in mine}
        most = max(mine, key=lambda thing: lines[thing])
        where = ""
        if lines[most]:
            where = f"{most.name}: " + ", ".join(str(one) for one in costs if one.thing == most)
        rows.append(
            f"{kind:<12}{len(mine):>7}{sum(lines.values()) / len(mine):>12.2f}"
            f"{lines[most]:>11}{max(files.values()):>11}  {where}"
        )
    return "\n".join(rows)


def main() -> int:
    sys.path.insert(0, str(ROOT))
    found = things()
    costs, excused = cost(mentions(found))
    print(table(found, costs))
    print("\nlines about one thing by their subject, which are no cost:")
    for one, lines in excused.items():
        print(f"{lines:>4}  {one.kind} {', '.join(one.names)}: {one.reason}")
    return 1 if costs or not all(excused.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""A Config's text as a table of blocks: read from its syntax, never evaluated."""

import ast
import dataclasses
from html import escape


@dataclasses.dataclass(frozen=True)
class Table:
    """The items of one field that holds several of a kind, a row each."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, object], ...]


def read(config: str | None) -> tuple[dict[str, str], list[Table]]:
    """(plain fields, tables) of a repr like Config(classes=10, blocks=(Block(...), ...))."""
    try:
        call = ast.parse(config or "", mode="eval").body
    except (SyntaxError, ValueError):
        return {}, []
    if not isinstance(call, ast.Call):
        return {}, []
    plain, tables = {}, []
    for field in call.keywords:
        value = field.value
        items = value.elts if isinstance(value, ast.Tuple | ast.List) else []
        calls = [item for item in items if isinstance(item, ast.Call) and item.keywords]
        if calls and len(calls) == len(items):
            rows = tuple({str(k.arg): _value(k.value) for k in one.keywords} for one in calls)
            columns = tuple(dict.fromkeys(name for row in rows for name in row))
            tables.append(Table(str(field.arg), columns, rows))
        else:
            plain[str(field.arg)] = ast.unparse(value)
    return plain, tables


def _value(node: ast.AST) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def html(config: str | None, baseline: str | None) -> str:
    """The blocks as HTML tables; cells that differ from the baseline's are marked."""
    plain, tables = read(config)
    theirs = {table.name: table for table in read(baseline)[1]}
    drawn = []
    for table in tables:
        other = theirs.get(table.name)
        were = other.rows if other and len(other.rows) == len(table.rows) else table.rows
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", *table.columns))
        body = []
        for index, row in enumerate(table.rows):
            cells = [f"<td>{escape(table.name.removesuffix('s'))} {index + 1}</td>"]
            for name in table.columns:
                cells.append(_cell(row.get(name, ""), were[index].get(name), _most(table, name)))
            body.append(f"<tr>{''.join(cells)}</tr>")
        drawn.append(
            f'<div class="panel"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )
    rest = " · ".join(f"{escape(name)} {escape(value)}" for name, value in plain.items())
    marked = ""
    if any(table.name in theirs for table in tables):
        marked = " Bold: differs from the baseline, whose value is in the cell's tooltip."
    return "".join(drawn) + (f'<p class="note">{rest}.{marked}</p>' if rest else "")


def _most(table: Table, name: str) -> float:
    """The largest value of a column of sizes; 0 where a bar would say nothing."""
    sizes = [size for row in table.rows if (size := _size(row.get(name))) is not None]
    return max(sizes) if len(sizes) == len(table.rows) and len(set(sizes)) > 1 else 0


def _size(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    return value


def _cell(value: object, was: object, most: float) -> str:
    changed = " changed" if value != was else ""
    title = f' title="baseline: {escape(str(was))}"' if changed else ""
    size = _size(value)
    if most and size is not None:
        style = f' style="--share:{size / most:.3f}"'
        return f'<td class="fill{changed}"{style}{title}>{escape(str(value))}</td>'
    return f'<td class="{changed.strip()}"{title}>{escape(str(value))}</td>'


def python(config: str, width: int = 100) -> str:
    """The text of a Python expression broken over lines where it is long; same value."""

    def lines(node: ast.AST, indent: str) -> str:
        text = ast.unparse(node)
        if len(indent) + len(text) <= width:
            return text
        inner = indent + "    "
        if isinstance(node, ast.Call):
            parts = [lines(arg, inner) for arg in node.args]
            parts += [f"{key.arg}={lines(key.value, inner)}" for key in node.keywords]
            begin, end = ast.unparse(node.func) + "(", ")"
        elif isinstance(node, ast.Tuple | ast.List):
            parts = [lines(item, inner) for item in node.elts]
            begin, end = ("(", ")") if isinstance(node, ast.Tuple) else ("[", "]")
        else:
            return text
        return begin + "\n" + "".join(f"{inner}{item},\n" for item in parts) + indent + end

    try:
        return lines(ast.parse(config, mode="eval").body, "")
    except (SyntaxError, ValueError):
        return config

"""Generate docs/metrics.md from the docstrings of the reports' fields: each formula is written once, at its field.

    python -m kleash.report.metrics_page docs/metrics.md

Between a line `<!-- fields of MODULE:CLASS -->` and a line `<!-- end -->` the page has a table of the class's own
fields; everything else is unchanged.
"""

from __future__ import annotations

import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from kleash.errors import DataError
from kleash.io import write_text

BLOCK = re.compile(r"(<!-- fields of ([\w.]+):(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with every table written anew.

    Args:
        page: Markdown.

    Raises:
        DataError: a marker names no module or class, or a field has no docstring.
    """

    def table(match: re.Match[str]) -> str:
        rows = [f"| `{name}` | {text} |" for name, text in fields_of(match[2], match[3]).items()]
        return f"{match[1]}| key | formula |\n|---|---|\n" + "\n".join(rows) + f"\n{match[4]}"

    return BLOCK.sub(table, page)


def fields_of(module: str, name: str) -> dict[str, str]:
    """Each field of a class with its docstring in one line, read from the source without importing it.

    Raises:
        DataError: there is no such class, or one of its fields has no docstring.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(f"docs/metrics.md names the module {module}, which does not exist; correct the marker")
    tree = ast.parse(Path(spec.origin).read_text())
    body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if body is None:
        raise DataError(f"docs/metrics.md names {module}:{name}, which does not exist; correct the marker")
    fields = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = _docstring(following, f"{module}:{name}.{node.target.id}")
    return fields


def _docstring(node: ast.stmt | None, field: str) -> str:
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
        raise DataError(f"{field} has no docstring; write its formula below it")
    return " ".join(node.value.value.split()).replace("|", r"\|")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, with_tables(path.read_text()))

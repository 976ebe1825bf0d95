"""The shape of the code base, counted: what a reader meets, and how many places a change touches."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "kleash"
FILES = sorted(SOURCE.rglob("*.py"))

STAGES = {"ppo": 40, "grpo": 35, "dpo": 35, "reward_model": 35, "sft": 25}
"""Stage → most effective lines of its `run`."""

PARTICIPLES = frozenset(
    "found said own told asked given taken seen kept made drawn left shown beside known wanted heard meant tried "
    "counted held got used built begun written read_ sent done_ gone been put heeded bought sold paid learnt taught "
    "travelled opened closed".split()
)
"""Words that do not say what a value is. `chosen` and `rejected` are the field's own."""


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def function(file: Path, name: str) -> ast.FunctionDef:
    return next(node for node in tree(file).body if isinstance(node, ast.FunctionDef) and node.name == name)


def effective_lines(file: Path, name: str) -> list[str]:
    """The lines of a function's body that are code: no docstring, blank line or comment."""
    body = function(file, name).body
    first = body[1] if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else body[0]
    lines = file.read_text().splitlines()[first.lineno - 1 : body[-1].end_lineno]
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def bindings(module: ast.Module) -> list[str]:
    """The names that a module binds: variables, loop targets, arguments."""
    names = [node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return names + [node.arg for node in ast.walk(module) if isinstance(node, ast.arg)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_read_in_one_screen(stage: str) -> None:
    lines = effective_lines(SOURCE / "stages" / f"{stage}.py", "run")
    assert len(lines) <= STAGES[stage], f"{len(lines)} lines"


def test_ppo_imports_few_modules() -> None:
    modules = {
        node.module
        for node in ast.walk(tree(SOURCE / "stages" / "ppo.py"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kleash")
    }
    assert len(modules) <= 18, sorted(modules)


def test_samplers_are_built_in_one_place() -> None:
    places = [str(file.relative_to(SOURCE)) for file in FILES if re.search(r"\bLocalSampler\(", file.read_text())]
    assert len(places) <= 2, places


def test_a_file_name_stands_for_one_thing() -> None:
    names = Counter(file.name for file in FILES if file.name not in ("__init__.py", "__main__.py"))
    assert sum(count > 1 for count in names.values()) <= 2, [name for name, count in names.items() if count > 1]


def test_variables_are_named_by_what_they_hold() -> None:
    counts = Counter(
        f"{file.relative_to(SOURCE)}: {name}" for file in FILES for name in bindings(tree(file)) if name in PARTICIPLES
    )
    assert sum(counts.values()) <= 10, counts.most_common()


def test_reports_are_classes() -> None:
    counts = {str(file.relative_to(SOURCE)): len(re.findall(r"dict\[str, Any\]", file.read_text())) for file in FILES}
    assert sum(counts.values()) <= 60, sorted(((n, f) for f, n in counts.items() if n), reverse=True)

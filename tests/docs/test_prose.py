"""The prose of docs and docstrings: plain sentences with a subject, and lines of at most 100 characters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

WIDTH, CODE_WIDTH = 100, 120

PLAIN = {
    "name the subject: who says it, what does it hold?": r"\b(?:is|are|was|were) (?:said|told)\b",
    "write `only X`": r"\balone(?:[.,;:)]| that\b)",
    "write `is not a`": r"(?<![Tt]here )\b(?:is|are|was|were) no\b(?! (?:longer|more|less|fewer|better|worse|larger))",
    "write `is not one`": r"(?<!there )\b(?:is|are|was|were) none\b(?! of\b)",
}
"""What to do, and the pattern of what is written otherwise."""

DATED = {"docs/log.md", "docs/decisions.md"}
"""Diaries: what was written on a day stays as it was written."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings of modules, classes, functions and fields, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def complaints(text: str) -> list[str]:
    flat = re.sub(r"\s+", " ", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [
        f"{rule}: …{flat[max(0, match.start() - 30) : match.end() + 30]}…"
        for rule, pattern in PLAIN.items()
        for match in re.finditer(pattern, flat)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_written_plainly(page: Path) -> None:
    if str(page.relative_to(ROOT)) not in DATED:
        assert complaints(page.read_text()) == []


def test_docstrings_are_written_plainly() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {complaint}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for line, text in docstrings(path)
        for complaint in complaints(text)
    ]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_at_most_100_wide(page: Path) -> None:
    """But for tables, links, formulas and what a program printed; commands and code are at most 120 wide."""
    fence = ""
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.startswith("```"):
            fence = "" if fence else line
        if fence in ("```", "```text", "```diff") or line.startswith(("|", "#", "<!--", "[!", "![", "    ")):
            continue
        words = re.sub(r"\]\(\S+\)|`[^`]*`", "]", line)
        width, most = (len(line), CODE_WIDTH) if fence else (len(words), WIDTH)
        assert width <= most, f"{page.relative_to(ROOT)}:{number}: {width} characters"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`\]?", "]", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose)
    local = [target for target in targets if not target.startswith("http")]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    "sentence",
    ["That is said in run.json.", "It reads text alone.", "A parent that is no run.", "What is none is sent back."],
)
def test_the_patterns_find_what_they_are_for(sentence: str) -> None:
    assert len(complaints(sentence)) == 1


@pytest.mark.parametrize(
    "sentence",
    ["There is no other.", "It is no longer there.", "Length alone does no better.", "The default is none of them."],
)
def test_the_patterns_do_not_match_plain_english(sentence: str) -> None:
    assert complaints(sentence) == []

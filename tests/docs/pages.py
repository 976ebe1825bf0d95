"""The code blocks of README and docs, and a page's marks of those that are not run.

A comment on the line above a block marks it: `<!-- not run: REASON -->`, or `<!-- exits 1: REASON -->` for a command
that is meant to fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

RUN = ("sh", "bash", "python", "yaml")
"""Languages whose blocks are run; YAML is written to the file that its first line names, and read as what it is."""

SHOWN = ("", "text", "diff", "mermaid", "json")
"""Languages of blocks that show something. Diffs are applied by test_extend.py, pictures drawn by test_architecture."""

MARK = re.compile(r"<!-- (not run|exits (?P<code>\d+)): (?P<reason>.+?) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Of its fence, from 1."""
    language: str
    text: str
    reason: str = ""
    """Why it is not run, or why it fails; empty where it is run and has to succeed."""
    exit_code: int | None = 0
    """What it ends with; None where it is not run."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in RUN and self.exit_code is not None


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text().splitlines()
    numbers = iter(range(len(lines)))
    for start in numbers:
        if not lines[start].lstrip().startswith("```"):
            continue
        language = lines[start].strip().removeprefix("```")
        end = next(number for number in numbers if lines[number].strip() == "```")
        mark = MARK.match(lines[start - 1].strip()) if start else None
        code = 0 if mark is None else None if mark["code"] is None else int(mark["code"])
        text = "\n".join(lines[start + 1 : end]) + "\n"
        yield Block(page, start + 1, language, text, mark["reason"] if mark else "", code)

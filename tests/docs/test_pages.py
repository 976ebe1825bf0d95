"""Every command and snippet of README and docs runs as printed; those that cannot run here are marked on their page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.conftest import Open
from tests.docs.pages import PAGES, ROOT, RUN, SHOWN, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]
RUNNABLE = sorted({block.page for block in BLOCKS if block.is_run}, key=lambda page: -page.stat().st_size)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_is_run_or_says_why_it_is_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language in RUN + SHOWN, f"{block}: nobody runs `{block.language}`"
        assert block.language in RUN or block.exit_code == 0, f"{block}: is never run, so needs no mark"
        assert block.exit_code == 0 or len(block.reason) > 10, f"{block}: give a reason"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_is_in_a_block_that_names_its_language(page: Path) -> None:
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.lstrip().startswith("```"):
            inside = not inside
        assert inside or not line.startswith("    kleash "), f"{name_of(page)}:{number}: put it into a ```sh block"
    for block in blocks(page):
        shown = block.language in ("", "text")
        assert not (shown and block.text.startswith(("kleash ", "make ", "pip "))), f"{block}: ```sh"


@pytest.mark.docs
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_the_blocks_of_a_page_run_as_printed(page: Path, open_workspace: Open) -> None:
    listed = [block for block in blocks(page) if block.is_run]
    workspace = open_workspace("\n".join(block.text for block in listed))
    for block in listed:
        problem = workspace.run(block)
        assert not problem, f"{block}\n{block.text}\n{problem}"

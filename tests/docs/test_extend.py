"""Every diff of docs/extend.md applies to a copy of the repository, is short, and passes its proof."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text()

SECTIONS = {section.splitlines()[0]: section for section in PAGE.split("\n## ")[1:]}

MOST = {"Add a stage": 80, "Add a sampler": 80}
"""Changed lines, proofs apart; 30 for the others."""

DIFF = re.compile(r"^```diff\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def diffs(section: str) -> str:
    return "".join(DIFF.findall(section))


def changed_lines(patch: str) -> int:
    """Lines added or removed outside of tests."""
    files = re.split(r"^(?=--- )", patch, flags=re.MULTILINE)
    source = "".join(file for file in files if "+++ b/tests/" not in file)
    return len(re.findall(r"^[+-](?!\+\+ |-- )", source, flags=re.MULTILINE))


@pytest.mark.parametrize("name", SECTIONS)
def test_a_diff_is_as_short_as_the_page_says(name: str) -> None:
    assert 0 < changed_lines(diffs(SECTIONS[name])) <= MOST.get(name, 30)


@pytest.mark.docs
@pytest.mark.parametrize("name", SECTIONS)
def test_a_diff_applies_and_passes_its_proof(name: str, tmp_path: Path) -> None:
    for part in ("src", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / part)
    patch = diffs(SECTIONS[name])
    applied = subprocess.run(
        ["git", "apply", "--unidiff-zero", "-"], input=patch, text=True, cwd=tmp_path, capture_output=True
    )
    assert applied.returncode == 0, applied.stderr
    proofs = sorted(set(re.findall(r"^\+\+\+ b/(tests/\S+)$", patch, re.MULTILINE)))
    assert proofs, "a diff needs a proof"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *proofs],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]

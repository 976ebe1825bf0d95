"""The faults that `tests/faults.py` plants are in the code as it stands."""

from __future__ import annotations

import pytest

from tests.faults import FAULTS, ROOT, TESTS, Fault


@pytest.mark.parametrize("file", FAULTS)
def test_every_text_that_a_fault_replaces_is_there_once(file: str) -> None:
    source = (ROOT / "src" / "kleash" / file).read_text()
    texts = [entry.old for entry in FAULTS[file] if isinstance(entry, Fault)]
    assert [text for text in texts if source.count(text) != 1] == []
    assert all((ROOT / "tests" / name).exists() for name in TESTS[file].split())

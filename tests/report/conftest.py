from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report import synthetic


@pytest.fixture
def summary() -> dict[str, Any]:
    return synthetic.summary()


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return synthetic.write(tmp_path / "demo")

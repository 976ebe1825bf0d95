"""Programs that some tests need and pip does not bring with kleash: the one way in which a test says so.

A test, fixture or module calls `needs("chromium")` and gets where it is. Where it is missing, the test is skipped and
the end of the run says so, with the command that installs it; with `KLEASH_TEST_STRICT=1`, as in CI, the test fails.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

INSTALL = "make programs"
STRICT = os.environ.get("KLEASH_TEST_STRICT", "0") not in ("", "0")
EXTRA = Path(__file__).parents[1] / ".venv-extra"
"""An environment on top of .venv with packages that only tests and benchmarks use; `.ci/programs` makes it."""


def _postgresql() -> Path | None:
    """The folder of initdb and pg_ctl: Debian's newest, which is on nobody's PATH, or that of the PATH."""
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(versions, key=lambda path: float(path.parent.name))
    path = shutil.which("initdb")
    return Path(path).parent if path else None


def _trl() -> Path | None:
    """The package, from this environment or from the extra one, whose packages then come after this one's own."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = EXTRA / "lib" / version / "site-packages"
    if importlib.util.find_spec("trl") is None and (packages / "trl").is_dir():
        sys.path.append(str(packages))
    package = importlib.util.find_spec("trl")
    return Path(package.origin).parent if package and package.origin else None


def _trackio() -> Path | None:
    """A Python that can import it and kleash."""
    if any(EXTRA.glob("lib/python*/site-packages/trackio")):
        return EXTRA / "bin" / "python"
    return Path(sys.executable) if importlib.util.find_spec("trackio") else None


def _on_path(name: str) -> Path | None:
    path = shutil.which(name)
    return Path(path) if path else None


FINDERS = {
    "chromium": lambda: _on_path("chromium"),
    "postgresql": _postgresql,
    "trl": _trl,
    "trackio": _trackio,
    **{shell: partial(_on_path, shell) for shell in ("bash", "zsh", "fish")},
}


def needs(program: str) -> Path:
    """Return where a program is, or skip the test, fixture or module that asks; fail it where the run is strict."""
    where = FINDERS[program]()
    if where is None:
        message = f"needs {program}, which is not installed; `{INSTALL}` installs it"
        if STRICT:
            pytest.fail(message, pytrace=False)
        pytest.skip(message, allow_module_level=True)
    return where


def missing(reasons: Iterable[str]) -> Counter[str]:
    """How many skips there were for want of each program, from the skips' reasons."""
    names = (re.search(r"needs (\w+), which is not installed", reason) for reason in reasons)
    return Counter(name.group(1) for name in names if name)

"""The pictures of docs/architecture.md show the code as it is."""

from __future__ import annotations

import re
from importlib.util import find_spec

from tests.docs.architecture import HOLDS, PAGE, ROOT, layers, redrawn


def test_the_picture_of_the_layers_is_that_of_pyproject() -> None:
    text = PAGE.read_text()
    assert text == redrawn(text), "redraw it: python -m tests.docs.architecture"


def test_every_package_has_a_layer_and_a_line() -> None:
    names = {name for line in layers() for name in line}
    tree = {
        path.stem
        for path in (ROOT / "src" / "kleash").iterdir()
        if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert tree <= names
    assert tree <= HOLDS.keys()


def test_the_path_of_the_data_names_modules_that_exist() -> None:
    modules = set(re.findall(r"kleash(?:\.\w+)+", PAGE.read_text()))
    assert len(modules) > 10
    assert [module for module in modules if find_spec(module) is None] == []

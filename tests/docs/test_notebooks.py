"""Every notebook of docs/ runs from top to bottom, on the tiny models that stand under the names of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.workspace import Workspace

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

SECONDS = 120
"""What a cell may take, on a busy machine."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra `dev` is not installed")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None), cell.source


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the libraries that run the kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, shelf: Workspace, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the extra `dev` is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra `dev` is not installed")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=dict(shelf.env))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pages = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert any("<svg" in page for page in pages), "a run is shown with its curves"
    assert [output for output in outputs if output.output_type == "error"] == []

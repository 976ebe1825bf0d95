"""A run as Python has it: figures, checks, model; shown in a notebook."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import kleash
from kleash.errors import InputError, ModelError
from kleash.report.run_view import metrics_table

SFT = Callable[..., kleash.Run]


def test_a_run_has_its_figures_checks_and_model(sft: SFT) -> None:
    run = sft()
    assert run.out == run.path
    assert run.metrics == run.metrics() == list(run.metrics)
    assert run.metrics["loss"] == [row["loss"] for row in run.metrics]
    assert list(run.metrics.to_pandas().index) == [1, 2]
    assert {"name", "passed", "finding", "advice"} <= run.checks[0].keys()
    assert run.checks.failed == [check for check in run.checks if check["passed"] is False]
    assert run.model is run.model and not run.model.training
    assert run.tokenizer.eos_token_id is not None


def test_a_run_is_opened_again_and_nothing_is_loaded_or_changed(sft: SFT) -> None:
    run = sft()
    files = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    again = kleash.open_run(str(run.path))
    assert (again.metrics, again.checks, again.results) == (run.metrics, run.checks, run.results)
    assert repr(again).startswith(f"<Run {run.path}: finished")
    again._repr_html_()
    assert "_loaded" not in vars(again)
    assert files == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}


def test_what_is_not_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run; give the `out` of a stage"):
        kleash.open_run(tmp_path)


def test_a_run_without_a_model_says_so(sft: SFT) -> None:
    run = sft()
    for file in (*run.path.glob("config.json"), *run.path.glob("*.safetensors")):
        file.unlink()
    with pytest.raises(ModelError, match="a run of sft holds no model"):
        _ = run.model


def test_the_view_is_html_with_curves_results_and_checks_and_no_script(sft: SFT) -> None:
    run = sft()
    run.record["gates"]["out"]["checks"][0]["finding"] = "<script>alert(1)</script> & more"
    page = run._repr_html_()
    root = ElementTree.fromstring(page.replace("<br>", "<br/>"))
    assert root.find(".//svg") is not None
    text = "".join(root.itertext())
    assert "eval_loss_before" in text and "<script>alert(1)</script> & more" in text
    assert root.find(".//script") is None
    assert not re.search(r"(src|href)=\"(?!#)", page), "nothing is loaded from elsewhere"
    lines = {element.get("id").rpartition("-")[2] for element in root.iter() if element.get("id")}
    assert {"loss", "eval_loss"} <= lines


def test_a_table_of_metrics_has_the_last_rows_and_numbers_only() -> None:
    page = metrics_table([{"step": step, "loss": 1.0 / step, "note": "x", "gap": None} for step in range(1, 31)])
    assert "the last 20 of 30 steps" in page
    assert page.count("<tr>") == 21
    assert "note" not in page and "gap" not in page

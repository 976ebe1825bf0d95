from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kleash.errors import InputError
from kleash.evals.overoptimization import (
    GRID,
    KLCurve,
    Source,
    analyse,
    best_of_n_kl_curve,
    choosing_prompts,
    in_words,
    law_gain,
)
from kleash.evals.report_values import as_json
from kleash.report.overoptimization_report import story, write_page
from tests.records import run_record
from tests.report.test_figures import is_affine, points
from tests.report.test_html import HOSTILE, Page


def record(
    source: Source = "checkpoints", *, turns: bool = True, text: str = "so good . so bad ."
) -> tuple[dict[str, Any], Any]:
    """A finished run's run.json and shown.json; d = 0 … 5, gold of the law of trained policies or rising."""
    rng = np.random.default_rng(0)
    d = np.linspace(0, 5, 9)
    gain = law_gain(d, 1.0, 0.6, "checkpoints") if turns else d / 2
    gold = gain[:, None] + rng.normal(0, 0.3, (9, 80))
    proxy = d[:, None] + rng.normal(0, 0.3, (9, 80))
    kl = (d**2)[:, None] * (1 + 0.2 * rng.normal(0, 1, (9, 80)))
    names = tuple(map(str, range(80)))
    curve = KLCurve("checkpoints", tuple(range(0, 45, 5)), names, gold, proxy, kl)
    pools = best_of_n_kl_curve(names, gold.T[:, :8], proxy.T[:, :8])
    choose = choosing_prompts(names, share=0.5, seed=0)
    analyses = {each.source: analyse(each, choose=choose, resamples=200) for each in (curve, pools)}
    if source == "best-of-n":
        del analyses["checkpoints"]
    curves = {name: as_json(analysis) for name, analysis in analyses.items()}
    answer = {
        "response": text, "finished": False, "proxy": 1.0, "gold": -1.0, "kl": 2.0,
        "pieces": [{"text": text, "drop": 0.4}, {"text": "bad", "drop": -0.2}],
    }  # fmt: skip
    shown = {
        "source": source, "before": curves[source]["peak"]["point"], "after": curves[source]["points"][-1]["point"],
        "prompts": [{"prompt": text, "by": "rule", "before": answer, "after": {**answer, "pieces": []}}],
    }  # fmt: skip
    words = {name: in_words(analysis) for name, analysis in analyses.items()}
    gates = {"in (proxy)": {"passed": False, "finding": text, "forced": True}}
    run = run_record(
        stage="overopt", config={"gold": text, "seed": 0}, versions={"python": "3"}, gates=gates,
        results={"roads": curves, "words": words},
    )  # fmt: skip
    return run, shown


def written(folder: Path, made: tuple[dict[str, Any], Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(made[0], allow_nan=False))
    (folder / "shown.json").write_text(json.dumps(made[1]))
    return write_page(folder).read_text()


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("overoptimization")
    made = record(text=HOSTILE)
    return written(folder, made), folder, made[0]


def test_the_page_has_the_peak_the_law_and_the_recommended_point(turned: tuple[str, Path, dict[str, Any]]) -> None:
    page, _, made = turned
    text = Page(page).text
    for words in made["results"]["words"].values():
        for said in words.values():
            assert " ".join(said.split()) in text
    assert "it pleases the proxy and gets worse" in text and "R(d) = d (α − β′ ln d)" in text
    assert "+0.40" in text and "−0.20" in text, "what the proxy likes is said in numbers"
    assert "cut off" in text and "failed its own checks" in text


def test_nothing_on_the_page_runs_or_is_fetched_whatever_models_wrote(turned: tuple[str, Path, dict[str, Any]]) -> None:
    text, folder, _ = turned
    page = Page(text)
    assert not {"script", "img", "iframe", "a", "object", "form"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert not re.search(r"(https?:)?//\w", text) and "alert(1)" in page.text, "hostile text is shown as text"
    assert "default-src 'none'" in text and "svg" in page.tags
    assert "script" not in Page((folder / "curve.svg").read_text()).tags


def test_the_curve_is_drawn_at_its_distances_with_marks_at_its_points(
    turned: tuple[str, Path, dict[str, Any]],
) -> None:
    page, _, made = turned
    curve = made["results"]["roads"]["checkpoints"]
    for quantity in ("gold", "proxy"):
        drawn = points(page, f"overoptimization-checkpoints-{quantity}")
        assert is_affine(drawn[:, 0], [row["distance"]["value"] for row in curve["points"]])
        assert is_affine(drawn[:, 1], [row[quantity]["mean"] for row in curve["points"]])
        assert len(points(page, f"overoptimization-best-of-n-{quantity}")) == 4
        assert (
            f'id="overoptimization-peak-{quantity}"' in page and f'id="overoptimization-recommended-{quantity}"' in page
        )
    assert len(points(page, "overoptimization-checkpoints-law")) == GRID


def test_the_picture_is_a_file_of_its_own_with_its_colours(turned: tuple[str, Path, dict[str, Any]]) -> None:
    import xml.etree.ElementTree as ElementTree

    text = (turned[1] / "curve.svg").read_text()
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used and all(f"{name}:" in text for name in used)


def test_a_run_without_a_peak_and_only_best_of_n_have_a_page_too(tmp_path: Path) -> None:
    made = record(turns=False)
    assert "Gold has not turned yet" in written(tmp_path / "rises", made)
    made[0]["results"]["roads"]["checkpoints"] |= {"fit": None, "early_fit": None}
    made[0]["results"]["words"]["checkpoints"]["law"] = "The law cannot be fitted."
    assert "The law cannot be fitted." in written(tmp_path / "no-law", made)
    page = written(tmp_path / "pools", record("best-of-n"))
    assert "R(d) = d (α − β′ d)" in page and "overoptimization-checkpoints-gold" not in page


def test_the_story_has_a_line_for_each_point(turned: tuple[str, Path, dict[str, Any]]) -> None:
    results = turned[2]["results"]
    lines = story(results).splitlines()
    assert sum(line.startswith(("step ", "the start")) for line in lines) == 9
    assert sum(line.startswith("best of") for line in lines) == 4 + 1
    assert lines[0] == results["words"]["checkpoints"]["peak_test"]
    assert any(line.endswith("gold is best") or line.endswith("gold is best, recommended") for line in lines)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a finished run of `kleash overopt`"):
        write_page(tmp_path)

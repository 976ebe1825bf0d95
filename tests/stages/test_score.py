from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.cli import _run
from kleash.data.formats import read_groups
from kleash.data.group import Group, Response
from kleash.errors import DataError
from kleash.io import read_jsonl
from kleash.recipe import run_recipe
from kleash.rewards.build import build_reward
from kleash.stages import reward_model, score


def kleash(*words: object) -> int:
    return _run([str(word) for word in words])


TURN = {"role": "user", "content": "x"}
ROWS: list[dict[str, Any]] = [
    {"prompt": "x", "response": "it is 72", "answer": "72", "id": 7, "note": None},
    {"prompt": "x", "responses": ["72", "73", "no"], "answer": "72", "score": [9, 9, 9]},
    {"prompt": "x", "responses": ["72"], "answer": 72},
    {"prompt": [TURN], "completion": [{"role": "assistant", "content": "71"}], "answer": "72"},
    {"messages": [TURN, {"role": "assistant", "content": "72"}], "answer": "72"},
    {"prompt": "x", "response": "", "answer": "72", "finished": False},
]


def test_score_is_added_to_every_row_and_all_else_stays(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data, out = write("rows.jsonl", ROWS), tmp_path / "scored.jsonl"
    with caplog.at_level("INFO"):
        assert kleash("score", "--reward", "number", "--data", data, "--out", out, "--json") == 0
    scored = read_jsonl(out)
    assert [row["score"] for row in scored] == [1, [1, 0, 0], [1], 0, 1, 0]
    assert [{**row, "score": None} for row in scored] == [{**row, "score": None} for row in ROWS]
    assert len(list(read_groups(out))) == len(ROWS), "what was written is read again"
    assert "verifier: 4 right, 2 wrong, 2 unparsable, 0 timed_out" in caplog.text
    printed = json.loads(capsys.readouterr().out)
    assert printed["out"] == str(out)
    assert printed["results"]["verdicts"] == {"right": 4, "wrong": 2, "unparsable": 2, "timed_out": 0}
    assert (printed["results"]["rows"], printed["results"]["responses"]) == (6, 8)
    assert printed["results"]["score"]["mean"] == pytest.approx((1 + 1 / 3 + 1 + 0 + 1 + 0) / 6)


def test_the_score_of_a_row_does_not_depend_on_its_batch(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "GROUPS_AT_ONCE", 2)
    rows = [row for row in ROWS for _ in range(3)]
    kleash("score", "--reward", "number", "--data", write("r.jsonl", rows), "--out", tmp_path / "s.jsonl")
    assert [row["score"] for row in read_jsonl(tmp_path / "s.jsonl")[::3]] == [1, [1, 0, 0], [1], 0, 1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "row 2: is a preference"),
        ({"prompt": "x", "responses": ["a", "b"], "ranks": [0, 1]}, "row 2: is a ranking"),
        ({"prompt": "x"}, "row 2: has no response to score; `kleash generate` adds some"),
        ({"prompt": "x", "response": "a"}, "reads the column 'answer', but the row with prompt 'x' has none"),
    ],
)
def test_rows_that_cannot_be_scored_are_one_line(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], message: str
) -> None:
    data = write("rows.jsonl", [ROWS[0], row])
    assert kleash("score", "--reward", "number", "--data", data, "--out", tmp_path / "s.jsonl") == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "s.jsonl").exists()


def test_a_score_is_never_null(write: Any, tmp_path: Path) -> None:
    config = score.ScoreConfig(reward="r", data=str(write("rows.jsonl", ROWS)), out=tmp_path / "s.jsonl")

    def broken(groups: list[Group]) -> torch.Tensor:
        return torch.full((len(groups), len(groups[0].responses)), float("nan"))

    with pytest.raises(DataError, match="the score of 'it is 72' is nan; a reward must give finite numbers"):
        score.run(config, reward=broken)
    assert not config.out.exists()


def test_a_finished_output_is_not_repeated_and_nothing_else_is_overwritten(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["score", "--data", write("rows.jsonl", ROWS), "--out", tmp_path / "s.jsonl", "--reward"]
    assert kleash(*words, "number") == 0
    written = (tmp_path / "s.jsonl").stat().st_mtime_ns
    assert kleash(*words, "number") == 0 and (tmp_path / "s.jsonl").stat().st_mtime_ns == written
    assert kleash(*words, "exact") == 2
    assert "exists and was written with other settings" in capsys.readouterr().err


def test_generated_samples_are_scored_in_a_recipe_by_a_composition(base: Path, write: Any, tmp_path: Path) -> None:
    write("prompts.jsonl", [{"prompt": f"a {i}", "answer": str(i), "pattern": "(?s).*"} for i in range(6)])
    (tmp_path / "reward.yaml").write_text("parts: [{reward: number}, {reward: regex, weight: 0.5}]")
    (tmp_path / "recipe.yaml").write_text(
        f"out: {tmp_path}/runs\nstages:\n"
        f"  samples: {{stage: generate, model: {base}, data: {tmp_path}/prompts.jsonl, n: 4, max_new_tokens: 5}}\n"
        f"  score: {{data: '@samples', reward: {tmp_path}/reward.yaml}}\n"
    )
    *_, out = run_recipe(tmp_path / "recipe.yaml")
    assert out == tmp_path / "runs" / "score.jsonl"
    rows = read_jsonl(out)
    assert [len(row["score"]) for row in rows] == [4] * 6
    results = json.loads((tmp_path / "runs" / "score.summary.json").read_text())["results"]
    assert results["verdicts"]["number/right"] + results["verdicts"]["number/wrong"] <= 24
    assert results["verdicts"]["regex/right"] + results["verdicts"]["regex/unparsable"] == 24
    mean = sum(map(sum, (row["score"] for row in rows))) / 24
    assert mean == pytest.approx(results["parts"]["number"]["mean"] + 0.5 * results["parts"]["regex"]["mean"])


def test_F8_a_reward_model_gives_the_scores_that_it_gives_everywhere(
    base: Path, comparisons: Path, write: Any, tmp_path: Path
) -> None:
    values = {"model": str(base), "data": str(comparisons), "out": tmp_path / "rm", "max_steps": 1, "centre_samples": 4}
    reward_model.run(reward_model.RewardConfig.make(values | {"centre_max_new_tokens": 4}))
    rows = [{"prompt": "a", "responses": ["z z", "a b c", ""]}, {"prompt": "b c", "response": "z"}]
    data, out = write("rows.jsonl", rows), tmp_path / "s.jsonl"
    assert kleash("score", "--reward", tmp_path / "rm", "--data", data, "--out", out) == 0
    reward = build_reward(str(tmp_path / "rm"))
    first, second = read_jsonl(out)
    for text, value in zip([*rows[0]["responses"]], first["score"], strict=True):
        assert value == pytest.approx(float(reward([Group("a", (Response(text),))])), abs=1e-5)
    assert second["score"] == pytest.approx(float(reward([Group("b c", (Response("z"),))])), abs=1e-5)
    assert len({*first["score"], second["score"]}) == 4


def passes(write: Any, tmp_path: Path, *words: object) -> list[dict[str, Any]]:
    data, out = write("passes.jsonl", PASSES), tmp_path / "passes.out.jsonl"
    assert kleash("score", "--data", data, "--out", out, *words) == 0
    summary = json.loads((tmp_path / "passes.out.summary.json").read_text())["results"]
    return [{**figure, "pass_above": summary["pass_above"]} for figure in summary["metrics"]]


PASSES: list[dict[str, Any]] = [
    {"prompt": "x", "responses": ["72", "73", "71"], "answer": "72"},
    {"prompt": "y", "responses": ["72", "72", "71", "5"], "answer": "72"},
    {"prompt": "z", "responses": ["1", "2", "3"], "answer": "72"},
]


def test_pass_at_k_is_in_the_summary_and_printed(write: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        figures = passes(write, tmp_path, "--reward", "number", "--metric", "pass@1", "pass@2", "mean@3")
    assert [(figure["metric"], figure["pass_above"]) for figure in figures] == [
        ("pass@1", 0.5), ("pass@2", 0.5), ("mean@3", 0.5),
    ]  # fmt: skip
    expected = [(1 / 3 + 1 / 2 + 0) / 3, (2 / 3 + 5 / 6 + 0) / 3, (1 / 3 + 1 / 2 + 0) / 3]
    assert [figure["value"] for figure in figures] == pytest.approx(expected)
    assert all(figure["low"] < figure["value"] < figure["high"] for figure in figures)
    assert "pass@2   0.500 (" in caplog.text


def test_pass_at_k_of_a_score_has_a_threshold(write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "reward.yaml").write_text("parts: [{reward: number, weight: 2.0}]\n")
    data = write("rows.jsonl", PASSES)
    words = ("score", "--reward", tmp_path / "reward.yaml", "--data", data, "--out", tmp_path / "o.jsonl", "--metric")
    assert kleash(*words, "pass@2") == 2
    assert "pass@2 counts right responses, which only a verifier names; give --pass-above" in capsys.readouterr().err
    assert kleash(*words, "mean@2") == 0, "a mean needs no threshold"
    (figure,) = passes(write, tmp_path, *words[1:3], "--metric", "pass@1", "--pass-above", "1.5")
    assert figure["value"] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3) and figure["pass_above"] == 1.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pass@4",), "rows.jsonl row 1: has 3 responses, and pass@4 needs 4; sample more (`kleash generate -n 4`)"),
        (("pass@1", "mean@9"), "rows.jsonl row 1: has 3 responses, and mean@9 needs 9"),
        (("pass@0",), "'metric' is ['pass@0'], but should be pass@K or mean@K with a K of at least 1"),
        (("best@2",), "pass@K or mean@K"),
        (("mean@1", "--pass-above", "1"), "pass_above says which responses pass@K counts; give 'metric' too"),
        (("pass@1", "--pass-above", "nan"), "'pass_above' is 'nan', but should be a finite number"),
    ],
)
def test_a_metric_that_cannot_be_had_is_refused_before_anything_is_scored(
    words: tuple[str, ...], message: str, write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write("rows.jsonl", PASSES), tmp_path / "out.jsonl"
    assert kleash("score", "--reward", "number", "--data", data, "--out", out, "--metric", *words) == 2
    assert message in capsys.readouterr().err and not out.exists()

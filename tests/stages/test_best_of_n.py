from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.cli import _run
from kleash.data.group import Group, Response
from kleash.errors import ConfigError
from kleash.evals.best_of_n_report import best_of_n_curve
from kleash.io import read_jsonl
from kleash.recipe import run_recipe
from kleash.stages import best_of_n


def config(base: Path, prompts: Path, **changes: object) -> best_of_n.BestOfNConfig:
    values = {"model": str(base), "data": str(prompts), "out": base.parent / "best.jsonl", "reward": "letters"}
    return best_of_n.BestOfNConfig.make(values | {"n": 6, "max_new_tokens": 6} | changes)


def letters(groups: list[Group]) -> torch.Tensor:
    """How many different words; many ties."""
    return torch.tensor([[float(len(set(r.text.split()))) for r in group.responses] for group in groups])


def test_the_best_of_each_pool_is_kept_with_its_score_and_the_pool_beside(base: Path, prompts: Path) -> None:
    out = best_of_n.run(config(base, prompts), reward=letters)
    best, pool = read_jsonl(out), read_jsonl(base.parent / "best.pool.jsonl")
    assert len(best) == len(pool) == 30
    for row, all_of_it in zip(best, pool, strict=True):
        assert len(all_of_it["responses"]) == len(all_of_it["score"]) == 6
        assert row["score"] == max(all_of_it["score"])
        assert row["response"] == all_of_it["responses"][all_of_it["score"].index(row["score"])]
        assert row["score"] == len(set(row["response"].split()))
        assert (row["prompt"], row["number"]) == (all_of_it["prompt"], all_of_it["number"])
    results = json.loads((base.parent / "best.summary.json").read_text())["results"]
    curve = results["best_of"]
    assert [point["k"] for point in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[0]["score"] == pytest.approx(results["score"]), "best of one is the mean reward"
    assert curve[-1]["score"]["mean"] == pytest.approx(sum(row["score"] for row in best) / 30)
    assert curve[0]["kl_bound"] == 0 < curve[1]["kl_bound"] < curve[5]["kl_bound"]


def test_gold_is_measured_on_what_the_reward_chooses(base: Path, prompts: Path) -> None:
    out = best_of_n.run(config(base, prompts), reward=letters, gold=lambda groups: -letters(groups))
    curve = json.loads(out.with_name("best.summary.json").read_text())["results"]["best_of"]
    for point in curve:
        assert point["gold"]["mean"] == pytest.approx(-point["score"]["mean"])
        assert point["kl"]["mean"] <= point["kl_bound"] + 1e-9
    assert curve[0]["kl"]["mean"] == pytest.approx(0, abs=1e-9) and curve[-1]["kl"]["mean"] > 0.5


def test_a_missing_gold_reward_is_an_error_before_anything_is_sampled(base: Path, prompts: Path) -> None:
    with pytest.raises(ConfigError, match="reward nowhere: no such folder"):
        best_of_n.run(config(base, prompts, gold="nowhere"), reward=letters)
    assert not (base.parent / "best.pool.jsonl").exists()


def test_equal_texts_tie_in_spite_of_rounding() -> None:
    pool = [Group("a", tuple(Response(text) for text in ("x", "y", "x")))]
    (_, two, three) = best_of_n_curve(pool, [[1.0, 0.0, 1.0 + 1e-7]])
    (_, tied, all_tied) = best_of_n_curve(pool, [[1.0, 0.0, 1.0]])
    assert (two.kl, three.kl) == (tied.kl, all_tied.kl)


def test_a_pool_that_was_sampled_before_an_interruption_is_not_sampled_again(
    base: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(groups: list[Group]) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        best_of_n.run(config(base, prompts), reward=fails)
    assert not (base.parent / "best.jsonl").exists()
    sampled = [row["responses"] for row in read_jsonl(base.parent / "best.pool.jsonl")]

    monkeypatch.setattr(best_of_n.generate, "build_sampler", None)  # sampling again would fail
    write = best_of_n.write_groups

    def write_only_the_pool(groups: Any, path: Path) -> int:
        if path.name == "best.jsonl":
            raise KeyboardInterrupt
        return write(groups, path)

    monkeypatch.setattr(best_of_n, "write_groups", write_only_the_pool)
    with pytest.raises(KeyboardInterrupt):
        best_of_n.run(config(base, prompts), reward=letters)
    monkeypatch.setattr(best_of_n, "write_groups", write)
    best_of_n.run(config(base, prompts), reward=letters)
    assert [row["responses"] for row in read_jsonl(base.parent / "best.pool.jsonl")] == sampled

    monkeypatch.setattr(best_of_n, "score_groups", None)  # nor is anything done again once all is done
    best_of_n.run(config(base, prompts), reward=letters)


def test_the_command_prints_its_figures_and_refuses_to_overwrite_them(
    base: Path, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write("p.jsonl", [{"prompt": "a b", "answer": "3"}, {"prompt": "c", "answer": "4"}])
    words = ["best-of-n", "--model", base, "--data", data, "--out", base.parent / "b.jsonl", "--max-new-tokens", 4]
    assert _run([*map(str, words), "--reward", "number", "-n", "8", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert sum(results["verdicts"].values()) == 16 and len(results["best_of"]) == 8
    assert _run([*map(str, words), "--reward", "number", "-n", "4"]) == 2
    assert "exists and was written with other settings" in capsys.readouterr().err


def test_the_best_are_demonstrations_for_sft(base: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"out: {tmp_path}/runs\nstages:\n"
        f"  best: {{stage: best-of-n, model: {base}, data: {prompts}, reward: exact, n: 2, max_new_tokens: 4}}\n"
        f"  sft: {{model: {base}, data: '@best', max_steps: 1, batch_size: 4}}\n"
    )
    rows = [{**row, "answer": "a"} for row in read_jsonl(prompts)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    best, sft = run_recipe(tmp_path / "recipe.yaml")
    assert best == tmp_path / "runs" / "best.jsonl" and (sft / "model.safetensors").exists()

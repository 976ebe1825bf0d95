"""The demo at reduced size: every link of the chain, on less of everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kleash.data.formats import read_groups
from kleash.data.group import Preference
from kleash.io import read_jsonl
from kleash.lab import demo
from kleash.report.html import story
from kleash.run import read_record

SMALL = demo.Size(
    base_tokens=60_000,
    demonstrations=200,
    pairs=300,
    rollouts=4,
    batch_size=16,
    eval_every=2,
    choose_prompts=12,
    test_prompts=24,
    max_new_tokens=24,
    judge_steps=3,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo.run(folder, size=SMALL)
    return folder


def test_the_demo_leaves_a_report_and_every_figure(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["policies"]) == ["base", "sft", "ppo", "ppo-no-leash"]
    for name, policy in summary["policies"].items():
        for figure in ("gold", "proxy", "kl"):
            assert set(policy[figure]) >= {"mean", "se"}, (name, figure)
    assert summary["policies"]["sft"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert {"step", "gold", "kl"} <= summary["policies"]["ppo"]["gold_peak"].keys()
    assert [point["step"] for point in summary["curves"]["ppo"]] == [0, 2, 4]
    assert isinstance(summary["reward_model"]["noise_ceiling"], float), "the labellers' probabilities are known here"
    assert "<svg" in (out / "report.html").read_text()
    assert len(story(summary).splitlines()) <= 10
    sections = ["base", "sft", "comparisons", "reward", "validation", "ppo", "ppo-no-leash", "grpo", "dpo", "measuring"]
    assert list(summary["stages"]) == sections and list(summary["section_seconds"]) == [*sections, "report"]


def test_every_method_starts_at_the_sft_model_and_lists_its_models(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    models = {name: list(result["models"]) for name, result in summary["roads"].items()}
    assert models == {
        "ppo": ["policy", "reference", "reward", "value", "validation_reward"],
        "grpo": ["policy", "reference", "reward"],
        "dpo": ["policy"],
    }
    start = summary["curves"]["ppo"][0]
    for name, result in summary["roads"].items():
        assert result["curve"][0] == start and len(result["curve"]) >= 2, name
        assert result["seconds"] > 0 and result["peak_memory"] > 1e8
        rows = [row for row in read_jsonl(out / name / "samples.jsonl") if row["split"] == "test"]
        assert {row["prompt"] for row in rows} == {
            row["prompt"] for row in read_jsonl(out / "ppo" / "samples.jsonl") if row["split"] == "test"
        }


def test_the_peak_is_chosen_on_prompts_that_are_not_reported(out: Path) -> None:
    rows = [json.loads(line) for line in (out / "data" / "held_out.jsonl").read_text().splitlines()]
    choose, test = ({row["prompt"] for row in rows if row["split"] == split} for split in ("choose", "test"))
    train = {json.loads(line)["prompt"] for line in (out / "data" / "prompts.jsonl").read_text().splitlines()}
    assert choose and test and not (choose & test) and not ((choose | test) & train)


def test_the_arm_without_kl_penalty_is_otherwise_the_same(out: Path) -> None:
    penalised, free = ((read_record(out / name) or {})["config"] for name in ("ppo", "ppo-no-leash"))
    assert {key for key in penalised if penalised[key] != free[key]} == {"beta", "out"}
    assert free["beta"] == 0


def test_run_again_it_does_nothing_but_write_the_report(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    summary = json.loads((out / "summary.json").read_text())
    again = demo.run(out, size=SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert again["policies"] == summary["policies"]


def test_all_methods_add_best_of_n_online_dpo_and_rlaif(out: Path) -> None:
    before = (out / "summary.json").read_text()
    summary = demo.run(out, size=SMALL, all_methods=True)
    assert list(summary["roads"]) == ["ppo", "grpo", "dpo", "best-of-n", "online-dpo", "rlaif"]
    best = summary["roads"]["best-of-n"]
    assert [point["step"] for point in best["curve"]] == [1, 2, 4, 8, 16]
    proxies = [point["proxy"]["mean"] for point in best["curve"]]
    assert proxies == sorted(proxies) and best["curve"][0]["kl"]["mean"] == pytest.approx(0, abs=1e-9)
    rounds = summary["roads"]["online-dpo"]["curve"]
    assert [point["step"] for point in rounds] == [0, 1, 2, 3]
    assert "online DPO" in (out / "report.html").read_text()
    last = read_record(out / "online-dpo" / "round-3") or {}
    assert last["config"]["reference"] == str(out / "sft"), "all rounds have one reference"
    labels = list(read_groups(out / "rlaif" / "labels.jsonl"))
    assert len(labels) == len(list(read_groups(out / "data" / "comparisons.jsonl")))
    assert all(isinstance(row.label, Preference) and row.label.annotator == "judge-3" for row in labels)
    assert summary["roads"]["rlaif"]["curve"][-1]["step"] == 4 and "RLAIF" in (out / "report.html").read_text()
    (out / "summary.json").write_text(before)

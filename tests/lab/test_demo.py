"""The demo at reduced size: every link of the chain, on less of everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def test_the_peak_is_chosen_on_prompts_that_are_not_reported(out: Path) -> None:
    rows = [json.loads(line) for line in (out / "data" / "held_out.jsonl").read_text().splitlines()]
    choose, test = ({row["prompt"] for row in rows if row["split"] == split} for split in ("choose", "test"))
    trained = {json.loads(line)["prompt"] for line in (out / "data" / "prompts.jsonl").read_text().splitlines()}
    assert choose and test and not (choose & test) and not ((choose | test) & trained)


def test_the_unleashed_arm_has_no_leash_and_is_otherwise_the_same(out: Path) -> None:
    leashed, free = ((read_record(out / name) or {})["config"] for name in ("ppo", "ppo-no-leash"))
    assert {key for key in leashed if leashed[key] != free[key]} == {"beta", "out"}
    assert free["beta"] == 0


def test_run_again_it_does_nothing_but_write_the_report(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    summary = json.loads((out / "summary.json").read_text())
    again = demo.run(out, size=SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert again["policies"] == summary["policies"]

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.cli import _run
from kleash.data.group import Group
from kleash.errors import ConfigError, GateError, InputError
from kleash.evals.overoptimization import analyse, checkpoints_curve, choosing_prompts
from kleash.evals.report_values import as_json
from kleash.io import read_jsonl
from kleash.lab.world import World, gold
from kleash.models.load import load_policy
from kleash.stages import overopt, ppo
from tests.records import run_record


def count(letter: str) -> Any:
    """How often a letter occurs, as a live reward."""

    def reward(groups: list[Group]) -> torch.Tensor:
        return torch.tensor([[float(r.text.split().count(letter)) for r in group.responses] for group in groups])

    return reward


@pytest.fixture
def trained(base: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, prompts: Path) -> Path:
    """A run whose snapshots like the letter z more and more."""
    run = base.parent / "run"
    for step in (2, 4, 6, 8):
        folder = run / "snapshots" / f"step-{step:06d}"
        with torch.no_grad():
            tiny_model.lm_head.weight[tiny_tokenizer.convert_tokens_to_ids("z")] += 0.3
        tiny_model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "kl": 0.1 * s}) + "\n" for s in range(1, 9)))
    config = {
        "model": str(base), "reference": None, "reward": "count:z", "eval_data": str(prompts), "temperature": 0.9,
        "max_new_tokens": 8,
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(run_record(stage="ppo", config=config, results={"step": 8})))
    return run


def config(trained: Path, **changes: object) -> overopt.OveroptConfig:
    values: dict[str, object] = {"run": trained, "gold": "count:a", "out": trained.parent / "overopt", "samples": 2}
    return overopt.OveroptConfig.make(values | {"points": 3, "best_of": 4} | changes)


def measured(settings: overopt.OveroptConfig) -> Any:
    return overopt.run(settings, proxy=count("z"), gold=count("a"))


def test_a_run_and_its_pools_are_measured_and_analysed(trained: Path, prompts: Path) -> None:
    folder = measured(config(trained))
    rows = read_jsonl(folder.path / "samples.jsonl")
    points = {(row["source"], row["step"]) for row in rows}
    assert points == {
        ("checkpoints", 0),
        ("checkpoints", 2),
        ("checkpoints", 4),
        ("checkpoints", 8),
        ("best-of-n", 0),
    }, "evenly in √KL"
    different = {row["prompt"] for row in read_jsonl(prompts)}
    assert len(rows) == len(different) * (4 * 2 + 4)
    assert all(row["proxy"] == row["response"].split().count("z") for row in rows)
    assert all(row["gold"] == row["response"].split().count("a") for row in rows)
    halves = {row["prompt"]: row["half"] for row in rows}
    assert all(halves[row["prompt"]] == row["half"] for row in rows) and set(halves.values()) == {"choose", "report"}
    assert folder.record["config"]["temperature"] == 0.9 and folder.record["config"]["max_new_tokens"] == 8

    curves = folder.record["results"]["roads"]
    assert [point["point"] for point in curves["best-of-n"]["points"]] == [1, 2, 4]
    run = curves["checkpoints"]
    report = [row for row in rows if row["source"] == "checkpoints" and row["step"] == 8 and row["half"] == "report"]
    assert run["points"][-1]["proxy"]["mean"] == pytest.approx(sum(row["proxy"] for row in report) / len(report))
    assert run["points"][0]["kl"]["mean"] == 0 < run["points"][-1]["kl"]["mean"]
    assert run["points"][-1]["proxy"]["mean"] > run["points"][0]["proxy"]["mean"]
    assert run == as_json(
        analyse(  # the same analysis from rows alone
            checkpoints_curve([row for row in rows if row["source"] == "checkpoints"]),
            choose=choosing_prompts(dict.fromkeys(row["prompt"] for row in rows), share=0.5, seed=0),
            seed=overopt.derive_seed(0, "bootstrap"),
        )
    )


def test_the_kl_is_that_of_the_samples_under_both_models(trained: Path, base: Path) -> None:
    folder = measured(config(trained, best_of=0, temperature=0.7))
    row = next(r for r in read_jsonl(folder.path / "samples.jsonl") if r["step"] == 8 and r["finished"])
    policy, tokenizer = load_policy(trained / "snapshots" / "step-000008")
    start, _ = load_policy(base)
    prompt, response = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (row["prompt"], row["response"])
    )
    ids = torch.tensor([*prompt, *response, tokenizer.eos_token_id])
    logprobs = [
        (model(ids[None]).logits[0, len(prompt) - 1 : -1].detach() / 0.7)
        .log_softmax(-1)
        .gather(-1, ids[len(prompt) :, None])
        for model in (policy, start)
    ]
    assert row["kl"] == pytest.approx(float((logprobs[0] - logprobs[1]).sum()), abs=1e-4)


def test_samples_before_and_after_carry_what_the_proxy_likes(trained: Path) -> None:
    folder = measured(config(trained))
    shown = json.loads((folder.path / "shown.json").read_text())
    rows = read_jsonl(folder.path / "samples.jsonl")
    halves = {row["prompt"]: row["half"] for row in rows}
    assert shown["after"] == 8 and [entry["by"] for entry in shown["prompts"]] == ["rule"] * 4 + ["random"]
    for entry in shown["prompts"]:
        assert halves[entry["prompt"]] == "report"
        for side in ("before", "after"):
            answer = entry[side]
            assert "".join(piece["text"] for piece in answer["pieces"]) == answer["response"]
            for piece in answer["pieces"]:
                assert piece["drop"] == piece["text"].split().count("z")
    gain = [e["after"]["proxy"] - e["before"]["proxy"] for e in shown["prompts"] if e["by"] == "rule"]
    assert sum(gain) > 0


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_is_killed_goes_on_to_the_same_files(
    trained: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = measured(config(trained, out=trained.parent / "whole"))
    sample = overopt.measure
    calls = 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(overopt, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(config(trained))
    out = trained.parent / "overopt"
    with (out / "samples.jsonl").open("a") as file:  # a point that was being written
        file.write('{"source": "checkpoints", "step": 8, "prompt": "a", "proxy": 1.0}\n{"source": "checkpoints", "st')
    calls = 100
    again = measured(config(trained))
    assert calls == 100 + 5 - (stop - 1), "what was done is not done again"
    for name in ("samples.jsonl", "shown.json"):
        assert (out / name).read_text() == (whole.path / name).read_text()
    assert again.record["results"] == whole.record["results"]
    assert measured(config(trained)).record["results"] == whole.record["results"]
    assert calls == 100 + 5 - (stop - 1), "nor anything once all is done"


def test_best_of_n_needs_no_run(base: Path, prompts: Path) -> None:
    settings = {"model": str(base), "data": str(prompts), "gold": "g", "out": base.parent / "o", "max_new_tokens": 6}
    folder = measured(overopt.OveroptConfig.make(settings | {"best_of": 4}))
    assert list(folder.record["results"]["roads"]) == ["best-of-n"]
    shown = json.loads((folder.path / "shown.json").read_text())
    for entry in shown["prompts"]:
        assert entry["after"]["proxy"] >= entry["before"]["proxy"], "the best of more is no worse to what chooses"


def test_a_setting_that_neither_the_user_nor_the_run_gives_is_an_error(trained: Path, tmp_path: Path) -> None:
    alone = overopt.OveroptConfig.make({"gold": "number", "out": tmp_path / "o", "best_of": 4})
    with pytest.raises(ConfigError, match="'model' is missing, and there is no --run to take it from; give --model"):
        overopt.run(alone)
    record = json.loads((trained / "run.json").read_text())
    del record["config"]["reward"]
    (trained / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"'proxy' is missing, and .*run does not name one; give --proxy"):
        overopt.run(config(trained))
    nothing = {"model": "m", "proxy": "number", "data": "d", "max_new_tokens": 4, "run": None, "best_of": 0}
    with pytest.raises(ConfigError, match="nothing to measure; give the --run"):
        overopt.run(config(trained, **nothing))
    with pytest.raises(InputError, match=r"holds no run\.json"):
        overopt.run(config(trained, run=tmp_path / "nowhere"))


def test_a_reward_that_failed_its_checks_is_refused_unless_forced(trained: Path, base: Path, tmp_path: Path) -> None:
    failed = tmp_path / "failed"
    failed.mkdir()
    gates = {"out": {"passed": False, "finding": "no better than a coin", "advice": "get more data"}}
    (failed / "run.json").write_text(json.dumps(run_record(gates=gates)))
    with pytest.raises(GateError, match=r"gold .* failed its own checks: no better than a coin"):
        overopt.run(config(trained, gold=str(failed)), proxy=count("z"))
    forced = config(trained, proxy=str(failed), force=True, out=tmp_path / "forced")
    with pytest.raises(Exception, match="cannot be loaded"):  # the gate let it through
        overopt.run(forced, gold=count("a"))


def test_the_command_prints_the_findings_and_writes_the_page(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained.parent / "letters_here.py").write_text(
        "def z(prompts, completions, finished, **columns):\n"
        "    assert len(finished) == len(completions)\n"
        "    return [float(text.split().count('z')) for text in completions]\n"
        "def a(prompts, completions, **columns):\n"
        "    return [float(text.split().count('a')) for text in completions]\n"
    )
    monkeypatch.chdir(trained.parent)
    words = ["overopt", "--run", "run", "--proxy", "letters_here:z", "--gold", "letters_here:a", "--out", "o"]
    assert _run([*words, "--points", "3", "--best-of", "4"]) == 0
    told = capsys.readouterr().out
    assert "Recommended: " in told and "best of 4" in told and told.rstrip().endswith("o/report.html")
    assert (trained.parent / "o" / "report.html").exists() and (trained.parent / "o" / "curve.svg").exists()
    assert _run([*words, "--points", "3", "--best-of", "4", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert set(results["roads"]) == {"checkpoints", "best-of-n"} and set(results["words"]["checkpoints"]) == {
        "peak_test",
        "recommended",
        "law",
    }


def test_snapshots_of_a_real_run_are_found(base: Path, prompts: Path) -> None:
    values = {
        "model": str(base), "data": str(prompts), "eval_data": str(prompts), "reward": "count:z",
        "out": base.parent / "ppo", "learning_rate": 1e-3,
        "max_steps": 3, "batch_size": 8, "max_new_tokens": 6, "snapshot_every": 2, "value_init": "policy",
    }  # fmt: skip
    ppo.run(ppo.PPOConfig.make(values), reward=count("z"))
    folder = measured(config(base.parent / "ppo", out=base.parent / "overopt-run", best_of=0))
    assert [point["point"] for point in folder.record["results"]["roads"]["checkpoints"]["points"]] == [0, 2, 3]


def test_the_worlds_gold_is_a_reward_of_the_command_line() -> None:
    worlds = [World(3), World(4)]
    prompts = [world.prompts(1)[0].prompt_text for world in worlds]
    answers = [next(iter(world.demonstrations(1))).responses[0].text for world in worlds]
    given = gold(prompts, answers, [True, False], [3, 4], kind=["question", "sum"])
    assert given == [w.gold(p, a, f) for w, p, a, f in zip(worlds, prompts, answers, [True, False], strict=True)]

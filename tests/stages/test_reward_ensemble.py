from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kleash.data.formats import read_groups
from kleash.data.group import Group, Response
from kleash.errors import ConfigError, ModelError
from kleash.evals.intervals import above
from kleash.models.heads import ValueModel
from kleash.models.load import load_reward_model, new_reward_model
from kleash.rewards.build import build_reward
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import explain
from kleash.run import read_record
from kleash.stages import ppo
from kleash.stages.reward_ensemble import EnsembleConfig, run

Write = Callable[[str, list[dict[str, Any]]], Path]

GROUPS = [Group("a b", (Response("z z c"), Response("d c"))), Group("c", (Response("d"), Response("z")))]


def settings(base: Path, data: Path, **changes: object) -> EnsembleConfig:
    values = {"model": str(base), "data": str(data), "out": base.parent / "reward", "batch_size": 8, "max_steps": 12}
    return EnsembleConfig.make(
        values | {"learning_rate": 3e-3, "centre_samples": 16, "centre_max_new_tokens": 8} | changes
    )


@pytest.mark.parametrize("combine", ["mean", "worst", "mean-variance"])
def test_members_give_one_score_and_their_spread(base: Path, comparisons: Path, combine: str) -> None:
    folder = run(settings(base, comparisons, members=3, combine=combine)).path
    reward = build_reward(str(folder))
    assert isinstance(reward, EnsembleReward)
    own = torch.stack([LearnedReward.load(folder / f"members/{index}")(GROUPS) for index in range(3)], -1)
    expected = {"mean": own.mean(-1), "worst": own.amin(-1), "mean-variance": own.mean(-1) - 0.5 * own.var(-1, False)}
    scores, parts = explain(reward, GROUPS)
    torch.testing.assert_close(scores, expected[combine])
    torch.testing.assert_close(parts["spread"], own.std(-1, False))
    assert parts["spread"].min() > 0, "members from other seeds are other models"


def test_the_report_of_an_ensemble_is_of_the_combined_score(base: Path, comparisons: Path) -> None:
    folder = run(settings(base, comparisons, members=2, combine="worst")).path
    held_out = list(read_groups(folder / "comparisons" / "held-out.jsonl"))
    scores = build_reward(str(folder))(held_out)
    accuracy = (scores[:, 0] > scores[:, 1]).double().mean()
    record = read_record(folder) or {}
    assert record["results"]["report"]["accuracy"] == pytest.approx(float(accuracy))
    (check,) = [row for row in record["gates"]["out"]["checks"] if row["name"] == "better than chance"]
    assert check["passed"] is above(tuple(record["results"]["report"]["accuracy_interval"]), 0.5)


def test_members_are_centred_on_the_same_samples(base: Path, comparisons: Path) -> None:
    folder = run(settings(base, comparisons, members=2)).path
    samples = list(read_groups(folder / "comparisons" / "centre.jsonl"))
    assert len(samples) == 16
    for index in range(2):
        scores = LearnedReward.load(folder / f"members/{index}")(samples)
        assert abs(float(scores.mean())) < 1e-5


def test_averaged_weights_are_a_single_model_of_the_mean_weights(base: Path, comparisons: Path) -> None:
    folder = run(settings(base, comparisons, members=2, average_weights=True)).path
    first, second = (load_reward_model(folder / f"members/{index}")[0].state_dict() for index in range(2))
    average = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert not torch.equal(first["score.weight"], second["score.weight"])
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    centred = LearnedReward.load(folder)(list(read_groups(folder / "comparisons" / "centre.jsonl")))
    assert abs(float(centred.mean())) < 1e-5
    report = (read_record(folder) or {})["results"]["report"]
    assert {"probes", "bias", "distance"} <= report.keys()
    assert LearnedReward.load(folder).range is not None, "its range is its own, and monitors ask for it"


def test_the_validation_reward_shares_no_prompt_with_the_reward_and_is_not_part_of_it(base: Path, write: Write) -> None:
    prompts_of_two = [f"{a} {b}" for a in "abcdef" for b in "ghijkl"]
    rows = [{"prompt": prompt, "chosen": "z", "rejected": end} for prompt in prompts_of_two for end in "dc"]
    folder = run(settings(base, write("many.jsonl", rows), validation_share=0.3)).path
    prompts = {
        name: {group.prompt_text for group in read_groups(folder / "comparisons" / f"{name}.jsonl")}
        for name in ("reward", "validation", "held-out")
    }
    assert not prompts["reward"] & prompts["validation"]
    assert not (prompts["reward"] | prompts["validation"]) & prompts["held-out"]
    validation_reward, own = build_reward(str(folder / "validation"))(GROUPS), build_reward(str(folder))(GROUPS)
    torch.testing.assert_close(own, build_reward(str(folder / "members/0"))(GROUPS))
    assert not torch.allclose(validation_reward, own)
    assert (read_record(folder) or {})["validation_reward"]["accuracy"] is not None


@pytest.mark.parametrize("combine", ["mean", "worst"])
def test_heads_on_one_trunk_are_an_ensemble_in_one_model(base: Path, comparisons: Path, combine: str) -> None:
    folder = run(settings(base, comparisons, heads=3, combine=combine)).path
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 3
    reward = LearnedReward.load(folder)
    ids = [reward.tokenizer(group.prompt)["input_ids"] for group in GROUPS]
    for group, prompt, row in zip(GROUPS, ids, reward(GROUPS), strict=True):
        for response, score in zip(group.responses, row, strict=True):
            tokens = [*prompt, *reward.tokenizer(response.text)["input_ids"], reward.tokenizer.eos_token_id]
            logits = model(torch.tensor([tokens])).logits[0].detach()
            expected = logits.mean() if combine == "mean" else logits.min()
            assert float(score) == pytest.approx(float(expected) - model.config.kleash_offset, abs=1e-5)
    assert (explain(reward, GROUPS)[1]["spread"] > 0).all(), "bootstrapped heads differ"


def test_a_value_network_starts_from_the_mean_of_the_heads(base: Path, comparisons: Path) -> None:
    model, _ = load_reward_model(run(settings(base, comparisons, heads=3)).path)
    value = ValueModel.from_reward_model(model)
    torch.testing.assert_close(value.head.weight[0], model.score.weight.mean(0))


def test_an_interrupted_ensemble_goes_on_with_the_members_that_are_done(base: Path, comparisons: Path) -> None:
    whole = run(settings(base, comparisons, members=2)).path
    again = settings(base, comparisons, members=2, out=base.parent / "again")
    run(again)
    record = read_record(again.out) or {}
    (again.out / "run.json").write_text(json.dumps(record | {"status": "running"}))
    (again.out / "ensemble.json").unlink()
    before = (again.out / "members" / "0" / "run.json").stat().st_mtime_ns
    run(again)
    assert (again.out / "members" / "0" / "run.json").stat().st_mtime_ns == before
    torch.testing.assert_close(build_reward(str(again.out))(GROUPS), build_reward(str(whole))(GROUPS), rtol=0, atol=0)


def test_a_member_that_was_changed_is_refused_by_name(base: Path, comparisons: Path) -> None:
    folder = run(settings(base, comparisons, members=2)).path
    member = folder / "members" / "1" / "config.json"
    member.write_text(member.read_text().replace("kleash_offset", "kleash_shift"))
    with pytest.raises(ModelError, match=r"members/1 is not the member"):
        build_reward(str(folder))


def test_ppo_optimises_an_ensemble_and_logs_its_spread(base: Path, comparisons: Path, write: Write) -> None:
    folder = run(settings(base, comparisons, members=2, combine="worst")).path
    prompts = write("prompts.jsonl", [{"prompt": letter} for letter in "abcdefgh"])
    config = ppo.PPOConfig(
        model=str(base), data=str(prompts), reward=str(folder), out=base.parent / "ppo", batch_size=4, max_steps=2,
        max_new_tokens=6, force=True,
    )  # fmt: skip
    finished = ppo.run(config)
    assert all(row["reward/spread"] > 0 for row in finished.metrics())
    assert {"reward/0", "reward/1"} <= finished.record["models"].keys()


def test_a_live_model_cannot_be_several(base: Path, comparisons: Path) -> None:
    with pytest.raises(ConfigError, match="single one"):
        run(settings(base, comparisons, members=2), reward=new_reward_model(base, seed=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"average_weights": True}, "needs 'members' of 2"), ({"members": 2, "heads": 2}, "'members' or 'heads'")],
)
def test_combinations_that_mean_nothing_are_refused(
    base: Path, comparisons: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(base, comparisons, **changes)

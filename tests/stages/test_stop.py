"""Stop texts and end tokens through the stages: one rule wherever a response is sampled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.checks.artifact import check
from kleash.data.chat import encode
from kleash.data.group import Group, Response
from kleash.errors import ChangedError
from kleash.io import read_jsonl
from kleash.rewards.learned import LearnedReward
from kleash.rollout import build_components, minibatches, read_prompts
from kleash.rollout.rollout import measured, sample_scored
from kleash.rollout.rollout_log import logged_steps, read_rollout
from kleash.stages import best_of_n, dpo, generate, grpo, overopt, ppo, reward_model
from kleash.training.optim import Optimizer

STOP = ("j", "z a", "w")
"""Two words of the vocabulary, and two words in a row."""


def length(groups: Sequence[Group]) -> torch.Tensor:
    return torch.tensor([[float(len(r.text)) for r in group.responses] for group in groups])


def values(base: Path, data: Path, out: str, **changes: object) -> dict[str, object]:
    required = {"model": str(base), "data": str(data), "out": base.parent / out, "max_new_tokens": 24, "stop": STOP}
    return required | changes


def training(base: Path, data: Path, out: str, **changes: object) -> dict[str, object]:
    settings = {"reward": "length", "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "log_rollouts": 16}
    return values(base, data, out, **settings | changes)


def is_cut_right(text: str, ids: Sequence[int], finished: bool, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a response has the words before its first stop text, and its ids the stop text and nothing after it."""
    whole = tokenizer.decode(list(ids), skip_special_tokens=True)
    starts = [whole.find(stop) for stop in STOP if stop in whole]
    ends_so = whole.endswith(STOP) and sum(stop in whole for stop in STOP) == 1
    if not starts:
        return text == whole and finished == (ids[-1] == tokenizer.eos_token_id)
    return finished and ends_so and text == whole[: min(starts)]


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_training_ends_responses_at_stop_texts_and_trains_the_tokens_up_to_there(
    stage: str, base: Path, prompts: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    if stage == "grpo":
        folder = grpo.run(grpo.GRPOConfig.make(training(base, prompts, stage, group_size=4)), reward=length)
    else:
        folder = ppo.run(ppo.PPOConfig.make(training(base, prompts, stage, value_init="policy")), reward=length)
    by_text = 0
    for step in logged_steps(folder.path):
        for row in read_rollout(folder.path, step):
            assert is_cut_right(row["text"], row["ids"], row["finished"], tiny_tokenizer)
            assert all(row["mask"]) and len(row["mask"]) == len(row["ids"]) == len(row["policy_logprobs"])
            assert row["score"] == len(row["text"])
            by_text += row["finished"] and row["ids"][-1] != tiny_tokenizer.eos_token_id
    assert by_text > 3, "or nothing was tested"
    samples = read_jsonl(folder.path / "samples.jsonl")
    assert any(row["finished"] for row in samples)
    assert not any(stop in row["response"] for row in samples for stop in STOP)
    for row in folder.metrics():
        assert row["truncated"] == pytest.approx(1 - row["end_rate"]) and row["first_ratio"] == pytest.approx(
            1, abs=1e-3
        )
    assert folder.record["config"]["stop"] == list(STOP)
    with pytest.raises(ChangedError, match=r"stop \[.*now \['q'\]"):
        grpo.run(grpo.GRPOConfig.make(training(base, prompts, stage, group_size=4, stop="q")), reward=length)


def components(settings: Any) -> Any:
    parts = build_components(settings.model, length, **settings.component_settings())
    return parts, read_prompts(parts, **settings.prompt_settings())[0]


def test_a_stop_text_counts_as_an_end_token_does(base: Path, prompts: Path) -> None:
    """Neither the missing-EOS score nor the overlong mask touches it, and its tokens have a gradient."""
    settings = grpo.GRPOConfig.make(training(base, prompts, "g", group_size=8, overlong="mask", batch_size=8))
    parts, rows = components(settings)
    rollout = measured(sample_scored(parts, rows[:8], group_size=8, seed=0, version=0), parts)
    rollout = grpo.with_advantages(rollout, settings)
    stopped = torch.tensor([[r.stopped for r in group.responses] for group in rollout.groups])
    assert stopped.sum() > 5 and (rollout.finished.bool() | ~stopped).all() and not rollout.finished.all()
    assert torch.equal(rollout.batch.mask.any(-1), rollout.finished.bool())
    (minibatch,) = minibatches(rollout, 1, 1, seed=0, step=1)
    figures = grpo.update(parts, minibatch, Optimizer(parts.policy, steps=1, learning_rate=1e-3), settings, first=True)
    assert float(figures["first_ratio"]) == pytest.approx(1, abs=1e-3) and float(figures["grad_norm"]) > 0

    missing = ppo.PPOConfig.make(
        training(base, prompts, "p", missing_eos_score=-7.0, lam=1.0, whiten_advantages=False, value_init="policy")
    )
    parts, rows = components(missing)
    rollout = measured(sample_scored(parts, rows[:20], group_size=1, seed=0, version=0), parts)
    rollout = ppo.with_advantages(rollout, parts, missing, beta=0.0)
    assert sum(group.responses[0].stopped for group in rollout.groups) > 2
    assert not all(group.responses[0].finished for group in rollout.groups)
    for row, group in enumerate(rollout.groups):
        expected = float(rollout.scores[row]) if group.responses[0].finished else -7.0
        assert float(rollout.batch.returns[row, 0, 0]) == pytest.approx(expected, abs=1e-5)


def test_generate_writes_the_same_rows_in_any_block(base: Path, prompts: Path) -> None:
    files = []
    for rows_at_once in (256, 3):
        out = f"samples-{rows_at_once}.jsonl"
        settings = values(base, prompts, out, n=4, rows_at_once=rows_at_once)
        files.append(generate.run(generate.GenerateConfig.make(settings)).read_text())
    assert files[0] == files[1]
    rows = [json.loads(line) for line in files[0].splitlines()]
    texts = [text for row in rows for text in row["responses"]]
    assert not any(stop in text for text in texts for stop in STOP)
    flags = [flag for row in rows for flag in row.get("finished", [True] * 4)]
    assert sum(flags) > 20 and not all(flags)
    other = generate.GenerateConfig.make(values(base, prompts, "samples-3.jsonl", n=4, stop="q"))
    with pytest.raises(ChangedError, match=r"stop \[.*now \['q'\]"):
        generate.run(other)


def test_a_control_token_can_be_a_stop_text(base: Path, prompts: Path) -> None:
    out = generate.run(generate.GenerateConfig.make(values(base, prompts, "s.jsonl", stop="<pad>", n=8)))
    flags = [flag for row in read_jsonl(out) for flag in row.get("finished", [True] * 8)]
    assert sum(flags) > 10


def test_end_ids_of_the_generation_config_and_stop_texts_end_responses_in_best_of_n_and_evaluation(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, base: Path, prompts: Path
) -> None:
    ends = [1, *tiny_tokenizer.convert_tokens_to_ids(["b", "c"])]
    tiny_model.generation_config.eos_token_id = ends
    tiny_model.save_pretrained(base)
    best = best_of_n.run(
        best_of_n.BestOfNConfig.make(values(base, prompts, "best.jsonl", n=6, reward="length")), reward=length
    )
    run = grpo.run(grpo.GRPOConfig.make(training(base, prompts, "grpo", group_size=4)), reward=length)
    pool = [text for row in read_jsonl(best.with_name("best.pool.jsonl")) for text in row["responses"]]
    evaluated = [row["response"] for row in read_jsonl(run.path / "samples.jsonl")]
    for texts in (pool, evaluated):
        assert not any(stop in text for text in texts for stop in STOP)
        assert not {"b", "c"} & {word for text in texts for word in text.split()}
    assert any(row["finished"] for row in read_jsonl(run.path / "samples.jsonl"))


def test_a_reward_model_reads_what_a_stop_text_ended_as_in_training(
    base: Path, comparisons: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = {"model": str(base), "data": str(comparisons), "out": base.parent / "rm", "max_steps": 1}
    folder = reward_model.run(reward_model.RewardConfig.make(config | {"centre_samples": 0})).path
    reward = LearnedReward.load(folder, policy_tokenizer=tiny_tokenizer)
    assert reward.reads_ids
    sampled = [tiny_tokenizer.convert_tokens_to_ids(list(text)) for text in ("abj", "abj")]
    decode = lambda ids: tiny_tokenizer.decode(list(ids)).removesuffix(" j")  # noqa: E731
    responses = [
        Response(ids=tuple(sampled[0]), stopped=True, decode=decode),
        Response(ids=tuple(encode(Group("x", (Response("a b"),)), tiny_tokenizer).responses[0].ids), decode=decode),
        Response(ids=tuple(sampled[1]), finished=False, decode=decode),
    ]
    scores = reward([Group("x", tuple(responses))])[0]
    assert float(scores[0]) == pytest.approx(float(scores[1]), abs=1e-6) != float(scores[2])


def test_dpo_overopt_and_check_take_the_stop_texts_of_the_run(base: Path, comparisons: Path, prompts: Path) -> None:
    settings = values(base, comparisons, "dpo", max_steps=2, snapshot_every=1, kl_samples=6, eval_data=comparisons)
    run = dpo.run(dpo.DPOConfig.make(settings))
    assert run.metrics()[-1]["truncated"] < 1
    measuring = {"run": run.path, "gold": "length", "proxy": "length", "out": base.parent / "oo", "points": 2}
    folder = overopt.run(
        overopt.OveroptConfig.make(measuring | {"data": prompts, "samples": 2}), proxy=length, gold=length
    )
    rows = read_jsonl(folder.path / "samples.jsonl")
    assert any(row["finished"] for row in rows)
    assert not any(stop in row["response"] for row in rows for stop in STOP)
    assert folder.record["config"]["stop"] == list(STOP)

    own = grpo.run(grpo.GRPOConfig.make(training(base, prompts, "grpo", group_size=4)), reward=length)
    end_rates = []
    for stop in (own.record["config"]["stop"], []):
        own.record["config"]["stop"] = stop
        (own.path / "run.json").write_text(json.dumps(own.record))
        checks = check(own.path, data=str(prompts)).gates["measured"]["checks"]
        end_rates.append(next(each["figures"]["end_rate"] for each in checks if each["name"] == "responses end"))
    assert end_rates[0] > end_rates[1]

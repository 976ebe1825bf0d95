from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.checks import first_ratio
from kleash.data.batch import collate
from kleash.data.batching import batch_at
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.errors import ConfigError, TrainingError
from kleash.io import read_jsonl
from kleash.models import forward
from kleash.models.compute import Compute
from kleash.models.heads import ValueModel, values
from kleash.models.load import load_policy
from kleash.models.reference import Reference
from kleash.rewards.build import build_reward
from kleash.rollout import Components, Rollout, merge, minibatches, read_prompts
from kleash.rollout.components import build_critic
from kleash.rollout.rollout import measured, sample_scored
from kleash.run import derive_seed
from kleash.sampling.local import LocalSampler
from kleash.stages import ppo, reward_model
from kleash.training.actor_critic import ActorCritic
from kleash.training.optim import Optimizer
from kleash.training.pretraining import PretrainingMix


class CountZ:
    """More of the letter z is better; a response without any scores exactly 0.0."""

    def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
        return torch.tensor([[float(r.text.split().count("z")) for r in group.responses] for group in groups])


def config(base: Path, data: Path, **changes: object) -> ppo.PPOConfig:
    values: dict[str, object] = {
        "model": str(base), "data": str(data), "reward": "count_z:reward", "out": base.parent / "ppo", "max_steps": 2,
        "batch_size": 8, "max_new_tokens": 6, "inner_epochs": 2, "minibatches": 2, "learning_rate": 1e-3,
        "value_init": "policy",
    }  # fmt: skip
    return ppo.PPOConfig.make(values | changes)


def test_every_pass_takes_every_row_once_in_an_order_of_its_own(base: Path, prompts: Path) -> None:
    settings = config(base, prompts)
    parts, rows = components(settings, base)
    rollout = sampled(parts, rows[:16], settings)
    numbered = torch.arange(16.0)[:, None, None].expand(rollout.batch.shape)
    rollout = replace(rollout, batch=replace(rollout.batch, values=numbered))
    batches = [each for step in (1, 2) for each in minibatches(rollout, 3, 2, seed=0, step=step)]
    steps = [column(each.batch.values)[:, 0].int().tolist() for each in batches]
    assert [len(rows) for rows in steps] == [6, 5, 5] * 4
    orders = [[row for part in steps[start : start + 3] for row in part] for start in range(0, 12, 3)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in [*orders, list(range(16))]}) == 5


def test_figures_of_a_rollout_are_means_over_its_updates_but_for_counts() -> None:
    totals: dict[str, Any] = {}
    for loss, rate in ((1.0, 0.2), (4.0, 0.1)):
        totals = merge(totals, {"policy_loss": loss, "learning_rate": rate, "updates": 1}, weight=0.5)
    assert totals == {"policy_loss": 2.5, "learning_rate": 0.1, "updates": 2}


def components(settings: ppo.PPOConfig, base: Path, reward: Any = None) -> tuple[Components, list[EncodedGroup]]:
    """Models, rewards and engines, as `run` makes them, but for a reference that is not the policy."""
    model, tokenizer = load_policy(base)
    reference = load_policy(base)[0]
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.3)
    sampler = LocalSampler(model, tokenizer, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    parts = Components(
        model, tokenizer, Reference(reference), sampler, reward or CountZ(),
        value_model=ValueModel.from_policy(model, seed=0), temperature=settings.temperature, compute=settings.compute,
    )  # fmt: skip
    return parts, read_prompts(parts, **settings.prompt_settings())[0]


def sampled(parts: Components, rows: Sequence[EncodedGroup], settings: ppo.PPOConfig) -> Rollout:
    """A response to each prompt, scored, with the log-probabilities of policy and reference."""
    return measured(sample_scored(parts, rows, group_size=1, seed=derive_seed(settings.seed, "rollout", 1)), parts)


def rollout_of(parts: Components, rows: Sequence[EncodedGroup], settings: ppo.PPOConfig, *, beta: float) -> Rollout:
    """The same, with advantages."""
    return ppo.with_advantages(sampled(parts, rows, settings), parts, settings, beta=beta)


def column(tensor: Tensor | None) -> Tensor:
    """A tensor over [P, 1, T] as [R, T]."""
    assert tensor is not None
    return tensor[:, 0]


def gradients(settings: ppo.PPOConfig, base: Path) -> tuple[Tensor, Tensor]:
    """Gradient of the policy and of the value network in one update over a whole rollout."""
    parts, prompts = components(settings, base)
    return update(parts, rollout_of(parts, prompts[:8], settings, beta=0.1), range(8), settings)


def actor_critic(parts: Components) -> ActorCritic:
    """Both optimisers, for one step."""
    rate = {"learning_rate": 1e-3}
    return ActorCritic(parts.policy, parts.critic, steps=1, settings=rate, value_settings=rate)


def no_mix(parts: Components) -> PretrainingMix:
    """Nothing mixed in."""
    return PretrainingMix(
        None, parts.policy, parts.tokenizer, batch_size=1, coefficient=1.0, max_length=None, seed=0, compute=Compute()
    )


def update(parts: Components, rollout: Rollout, rows: Sequence[int], settings: ppo.PPOConfig) -> tuple[Tensor, Tensor]:
    """Gradient of the policy and of the value network in one update over some rows."""
    gradients: list[Tensor] = []

    def keep(model: torch.nn.Module) -> Optimizer:
        optimizer = Optimizer(model, steps=1, learning_rate=1e-3)

        def step() -> dict[str, Any]:
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
            return {"grad_norm": 0.0}

        optimizer.step = step  # type: ignore[method-assign]
        return optimizer

    optimizers = actor_critic(parts)
    optimizers.policy, optimizers.value = keep(parts.policy), keep(parts.critic)
    ppo.update(parts, rollout.select(torch.tensor(list(rows))), optimizers, no_mix(parts), settings)
    return gradients[0], gradients[1]


def test_F1_policy_and_critic_gradients_are_the_same_for_any_number_of_micro_batches(base: Path, prompts: Path) -> None:
    whole = gradients(config(base, prompts, micro_batch_tokens=10_000), base)
    for tokens in (1, 30):
        split = gradients(config(base, prompts, micro_batch_tokens=tokens), base)
        for got, expected in zip(split, whole, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)  # float32: the sampler's numbers are


def uneven(settings: ppo.PPOConfig, base: Path) -> tuple[Components, list[EncodedGroup]]:
    """Components whose responses are of unequal length."""
    parts, rows = components(settings, base)
    with torch.no_grad():
        parts.policy.lm_head.weight[1] += 0.3
    return parts, rows


def test_the_reference_is_evaluated_at_the_temperature_of_the_samples(base: Path, prompts: Path) -> None:
    settings = config(base, prompts, temperature=0.7)
    parts, rows = uneven(settings, base)
    batch = rollout_of(parts, rows[:8], settings, beta=0.1).batch
    assert not batch.mask.all()
    expected = torch.zeros(batch.shape)
    for row in range(8):
        prompt = batch.prompt_ids[row][batch.prompt_attention[row]]
        response = batch.response_ids[row, 0][batch.mask[row, 0]]
        logits = parts.reference.model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1].detach()
        expected[row, 0, : len(response)] = (logits / 0.7).log_softmax(-1).gather(-1, response[:, None])[:, 0]
    torch.testing.assert_close(
        parts.reference.logprobs(batch, temperature=0.7, compute=Compute()), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 1])
def test_an_update_on_some_rows_has_the_gradients_of_its_formulas(
    micro_batch_tokens: int, base: Path, prompts: Path
) -> None:
    """A row at a time through plain `transformers`, after weights have moved so that both clips are at work."""
    settings = config(
        base, prompts, temperature=0.8, clip=0.1, value_clip=0.3, value_coefficient=0.7,
        micro_batch_tokens=micro_batch_tokens,
    )  # fmt: skip
    parts, groups = uneven(settings, base)
    rollout = rollout_of(parts, groups[:8], settings, beta=0.1)
    with torch.no_grad():
        parts.policy.lm_head.weight.mul_(1.4)
        parts.critic.head.weight.mul_(0.4)  # nearer to the returns, where the clip holds
    some, batch = [0, 3, 5, 6], rollout.batch
    policy_loss, value_loss, tokens, held = torch.zeros(()), torch.zeros(()), 0, 0
    for row in some:
        prompt = batch.prompt_ids[row][batch.prompt_attention[row]]
        response = batch.response_ids[row, 0][batch.mask[row, 0]]
        ids, start = torch.cat([prompt, response])[None], len(prompt) - 1
        logprobs = (parts.policy(ids).logits[0, start:-1] / 0.8).log_softmax(-1).gather(-1, response[:, None])[:, 0]
        predicted = parts.critic.head(parts.critic.decoder(ids).last_hidden_state[0, start:-1])[:, 0]
        old, advantage, was, target = (
            tensor[row, : len(response)]
            for tensor in map(column, (batch.old_logprobs, batch.advantages, batch.values, batch.returns))
        )
        ratio = (logprobs - old).exp()
        policy_loss = policy_loss - torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage).sum()
        near = torch.minimum(torch.maximum(predicted, was - 0.3), was + 0.3)
        free, clipped = (predicted - target) ** 2, (near - target) ** 2
        value_loss = value_loss + 0.7 * torch.maximum(free, clipped).sum() / 2
        tokens += len(response)
        held += int((clipped > free).sum())
    assert 0 < held < tokens and len(set(batch.lengths.flatten().tolist())) > 1
    expected = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss / tokens, list(model.parameters()))])
        for loss, model in ((policy_loss, parts.policy), (value_loss, parts.critic))
    ]
    for found, wanted in zip(update(parts, rollout, some, settings), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_whitening_is_over_the_tokens_of_the_rollout_and_of_rewards_keeps_the_mean(base: Path, prompts: Path) -> None:
    def collect(**changes: object) -> Rollout:
        settings = config(base, prompts, **{"whiten_advantages": False, "lam": 1.0} | changes)
        parts, rows = uneven(settings, base)
        return rollout_of(parts, rows[:8], settings, beta=0.3)

    plain, mask = collect(), collect().batch.mask[:, 0]
    assert not mask.all()
    kept = column(plain.batch.advantages)[mask]
    expected = (kept - kept.mean()) / kept.std(correction=0)
    white = column(collect(whiten_advantages=True).batch.advantages)
    torch.testing.assert_close(white[mask], expected, rtol=1e-4, atol=1e-5)
    assert not white[~mask].any()

    def rewards(rollout: Rollout) -> Tensor:  # at γ = λ = 1 a token's reward is what the return falls by
        after = torch.cat([column(rollout.batch.returns)[:, 1:], torch.zeros(8, 1)], -1)
        return (column(rollout.batch.returns) - after)[mask]

    kept = rewards(plain)
    expected = (kept - kept.mean()) / kept.std(correction=0) + kept.mean()
    torch.testing.assert_close(rewards(collect(whiten_rewards=True)), expected, rtol=1e-4, atol=1e-4)


def test_F10_every_coefficient_changes_the_update(base: Path, prompts: Path) -> None:
    plain = gradients(config(base, prompts, whiten_advantages=False), base)
    for changes, which in [
        ({"whiten_advantages": True}, 0), ({"gamma": 0.5}, 0), ({"lam": 0.2}, 0), ({"missing_eos_score": -5.0}, 0),
        ({"whiten_rewards": True}, 0), ({"reward_clip": 0.5}, 0), ({"value_coefficient": 0.7}, 1),
    ]:  # fmt: skip
        changed = gradients(config(base, prompts, **{"whiten_advantages": False} | changes), base)
        assert not torch.allclose(changed[which], plain[which], rtol=1e-3), f"{changes} changed nothing"


def test_F10_beta_changes_the_advantages(base: Path, prompts: Path) -> None:
    settings = config(base, prompts, whiten_advantages=False)
    parts, rows = components(settings, base)
    with_penalty, free = (rollout_of(parts, rows[:8], settings, beta=beta) for beta in (1.0, 0.0))
    torch.testing.assert_close(with_penalty.scores, free.scores)
    assert float(with_penalty.kl_per_token.abs().max()) > 1e-3
    assert not torch.allclose(column(with_penalty.batch.advantages), column(free.batch.advantages))


def test_the_kl_penalty_is_k1_per_token_and_the_score_is_on_the_last_one(base: Path, prompts: Path) -> None:
    settings = config(base, prompts, whiten_advantages=False, lam=1.0, gamma=1.0)
    parts, rows = components(settings, base)
    rollout = rollout_of(parts, rows[:8], settings, beta=0.3)
    reference = column(parts.reference.logprobs(rollout.batch, compute=Compute()))
    nats = column(rollout.kl_per_token)
    torch.testing.assert_close(nats, column(rollout.batch.old_logprobs) - reference)
    for row in range(8):
        length = int(rollout.batch.lengths[row, 0])
        # With γ = λ = 1 the return at t is what is still to come: the score, less β for each nat from t on.
        for t in range(length):
            expected = float(rollout.scores[row]) - 0.3 * float(nats[row, t:length].sum())
            assert float(column(rollout.batch.returns)[row, t]) == pytest.approx(expected, abs=1e-4)
        assert float(column(rollout.batch.returns)[row, length:].abs().sum()) == 0


def test_F4_a_reward_of_exactly_zero_counts(base: Path, prompts: Path) -> None:
    class Nothing:
        def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
            return torch.zeros(len(groups), 1)

    settings = config(base, prompts, whiten_advantages=False)
    parts, rows = components(settings, base, Nothing())
    rollout = rollout_of(parts, rows[:8], settings, beta=0.0)
    assert float(rollout.scores.abs().max()) == 0
    mask = rollout.batch.mask[:, 0]
    assert bool((column(rollout.batch.advantages)[mask].abs() > 0).any()), (
        "a value that expected more is disappointed by 0.0"
    )


def test_F3_the_missing_eos_score_replaces_the_reward_of_an_unfinished_response(base: Path, write: Any) -> None:
    # The prompt holds the end token's word: an end in the *prompt* must not count as the response's.
    data = write("ends.jsonl", [{"prompt": "a <end> b"}] * 20)
    settings = config(base, data, missing_eos_score=-7.0, whiten_advantages=False, lam=1.0, max_new_tokens=3)
    parts, rows = uneven(settings, base)
    rollout = rollout_of(parts, rows[:16], settings, beta=0.0)
    ended = [group.responses[0].finished for group in rollout.groups]
    assert 0 < sum(ended) < 16, "both kinds, or this test says nothing"
    for row, group in enumerate(rollout.groups):
        expected = float(rollout.scores[row]) if group.responses[0].finished else -7.0
        assert float(column(rollout.batch.returns)[row, 0]) == pytest.approx(expected, abs=1e-5)


def test_scores_are_cut_on_both_sides(base: Path, prompts: Path) -> None:
    class Wide:
        def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
            return torch.linspace(-3, 3, len(groups))[:, None]

    settings = config(base, prompts, reward_clip=1.5, whiten_advantages=False, lam=1.0)
    parts, rows = components(settings, base, Wide())
    rollout = rollout_of(parts, rows[:8], settings, beta=0.0)
    torch.testing.assert_close(column(rollout.batch.returns)[:, 0], torch.linspace(-3, 3, 8).clamp(-1.5, 1.5))
    assert rollout.scores[:, 0].tolist() == pytest.approx(torch.linspace(-3, 3, 8).tolist()), "as given"


def test_F7_the_ratio_is_one_before_the_first_update(base: Path, prompts: Path) -> None:
    for temperature in (1.0, 0.7):
        folder = ppo.run(
            config(base, prompts, temperature=temperature, out=base.parent / f"t{temperature}"), reward=CountZ()
        )
        assert all(abs(row["first_ratio"] - 1) < 1e-3 for row in folder.metrics())


def check(base: Path, prompts: Path, spoil: Any, temperature: float = 1.0) -> None:
    """One rollout and its first update, with a fault planted in between."""
    settings = config(base, prompts, temperature=temperature)
    parts, rows = components(settings, base)
    rollout = rollout_of(parts, rows[:8], settings, beta=0.1)
    rollout = spoil(parts, rollout) or rollout
    ppo.update(parts, rollout, actor_critic(parts), no_mix(parts), settings, first=True)


def test_F7_dropout_is_caught_and_named(base: Path, prompts: Path) -> None:
    def dropout(parts: Components, rollout: Rollout) -> None:
        for layer in parts.policy.model.layers:
            layer.self_attn.attention_dropout = 0.5
        parts.policy.train()

    with pytest.raises(TrainingError, match="dropout is active in training"):
        check(base, prompts, dropout)


def test_F7_a_temperature_missing_in_the_rollout_is_caught_and_named(base: Path, prompts: Path) -> None:
    def forget(parts: Components, rollout: Rollout) -> None:
        column(rollout.batch.old_logprobs)[:] = forward.response_logprobs(parts.policy, rollout.batch)[0][:, 0].detach()

    with pytest.raises(TrainingError, match=r"lack the temperature 0\.5"):
        check(base, prompts, forget, temperature=0.5)


def test_F7_ids_that_were_tokenised_again_are_caught(base: Path, prompts: Path) -> None:
    def retokenise(parts: Components, rollout: Rollout) -> None:
        rollout.batch.response_ids[:, 0, 0] = (rollout.batch.response_ids[:, 0, 0] + 1) % 30

    with pytest.raises(TrainingError, match="decoded and tokenised again"):
        check(base, prompts, retokenise)


def test_F7_the_check_compares_what_was_computed_and_not_a_copy(base: Path, prompts: Path) -> None:
    settings = config(base, prompts)
    parts, rows = components(settings, base)
    batch = parts.sampler([row.prompt_ids for row in rows[:4]], group_size=1, seed=0)
    logprobs = forward.response_logprobs(parts.policy, batch)[0][:, 0].detach()
    assert float(first_ratio.check_first(parts.policy, batch, logprobs, logprobs, 1.0, "float32")) == 1.0
    with pytest.raises(TrainingError):
        first_ratio.check_first(parts.policy, batch, logprobs + 0.1, logprobs, 1.0, "float32")


def test_F3_padding_that_is_the_end_token_changes_nothing(
    base: Path, prompts: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    first = ppo.run(config(base, prompts, out=base.parent / "apart"), reward=CountZ())
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
    tiny_tokenizer.save_pretrained(base)
    second = ppo.run(config(base, prompts, out=base.parent / "same"), reward=CountZ())
    for a, b in zip(first.metrics(), second.metrics(), strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_a_reward_is_optimised(base: Path, prompts: Path) -> None:
    folder = ppo.run(
        config(base, prompts, max_steps=25, batch_size=32, learning_rate=5e-3, beta=0.0, eval_every=25), reward=CountZ()
    )
    rows = folder.metrics()
    assert rows[0]["step"] == 0 and "eval_reward" in rows[0]
    assert rows[-1]["eval_reward"] > rows[0]["eval_reward"] + 1
    AutoModelForCausalLM.from_pretrained(folder.path)


def last_kl(rows: list[dict[str, Any]]) -> float:
    """Mean KL of the last five rollouts: that of one is an estimate from few samples."""
    return sum(row["kl"] for row in rows[-5:]) / 5


def test_the_policy_stays_at_the_reference_with_a_large_kl_penalty(base: Path, prompts: Path) -> None:
    long, short = (
        ppo.run(
            config(
                base, prompts, max_steps=15, batch_size=32, learning_rate=5e-3, beta=beta, out=base.parent / str(beta)
            ),
            reward=CountZ(),
        ).metrics()
        for beta in (0.0, 20.0)
    )
    assert last_kl(short) < last_kl(long) / 5


def test_F15_the_parts_of_a_reward_and_the_outcomes_of_a_verifier_are_logged_separately(base: Path, write: Any) -> None:
    data = write(
        "answers.jsonl", [{"prompt": f"a {i}", "answer": str(i % 3), "pattern": ".*[a-m] *"} for i in range(30)]
    )
    reward = base.parent / "reward.yaml"
    reward.write_text("parts: [{reward: number, weight: 2}, {reward: regex, name: early, weight: 0.5, clip: [0, 0.5]}]")
    for row in ppo.run(config(base, data, reward=str(reward), batch_size=16)).metrics():
        assert row["reward"] == pytest.approx(2 * row["reward/number"] + 0.25 * row["reward/early"])
        shares = [row[f"reward/number/{verdict}"] for verdict in ("right", "wrong", "unparsable", "timed_out")]
        assert sum(shares) == pytest.approx(1) and shares[0] == row["reward/number"] and shares[2] > 0
        assert 0 < row["reward/early"] < 1


def test_held_out_samples_are_written_with_their_columns(base: Path, prompts: Path) -> None:
    folder = ppo.run(config(base, prompts, max_steps=4, eval_every=2), reward=CountZ())
    rows = read_jsonl(folder.path / "samples.jsonl")
    assert {row["step"] for row in rows} == {0, 2, 4}
    assert len(rows) == 3 * 3, "a tenth of 30 prompts, at three measurements"
    assert {"prompt", "response", "finished", "score", "kl", "number"} <= rows[0].keys()
    assert (
        all(row["kl"] == 0 for row in rows if row["step"] == 0)
        or max(abs(r["kl"]) for r in rows if r["step"] == 0) < 1e-4
    )


def test_snapshots_load(base: Path, prompts: Path) -> None:
    folder = ppo.run(config(base, prompts, max_steps=4, snapshot_every=2), reward=CountZ())
    snapshots = sorted(folder.path.glob("snapshots/*"))
    assert [path.name for path in snapshots] == ["step-000002", "step-000004"]
    AutoModelForCausalLM.from_pretrained(snapshots[0])
    assert list(folder.record["models"]) == ["policy", "reference", "value"], "a function has no parameters"


def test_adaptive_beta_follows_the_kl_of_each_rollout_and_rises_above_its_target(
    base: Path, prompts: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.no_grad():  # a sharp reference: each of its unlikely tokens, and the policy's are, costs nats
        tiny_model.lm_head.weight.mul_(30)
    tiny_model.save_pretrained(base.parent / "sharp")
    tiny_tokenizer.save_pretrained(base.parent / "sharp")
    changes = {"reference": str(base.parent / "sharp"), "beta": 0.01, "target_kl": 1.0, "kl_horizon": 10}
    rows = ppo.run(config(base, prompts, max_steps=6, **changes), reward=CountZ()).metrics()
    assert min(row["kl"] for row in rows) > 5, "far above the target at every step, or this test says nothing"
    assert rows[0]["beta"] == 0.01
    for before, after in pairwise(rows):
        assert after["beta"] == pytest.approx(before["beta"] * (1 + 0.2 * 8 / 10))


def test_the_best_weights_are_chosen_at_one_beta_while_target_kl_moves_that_of_the_reward(
    base: Path, prompts: Path
) -> None:
    changes = {"beta": 0.5, "target_kl": 0.01, "kl_horizon": 10, "keep_weights": "best", "eval_every": 1}
    folder = ppo.run(config(base, prompts, max_steps=5, learning_rate=1e-2, **changes), reward=CountZ())
    rows = [row for row in folder.metrics() if row["step"]]
    assert rows[-1]["beta"] > 1.2 * rows[0]["beta"], "it moved, or this test says nothing"
    figures = {row["step"]: row["eval_reward"] - 0.5 * row["eval_kl"] for row in rows}
    assert max(figures.values()) == pytest.approx(figures[folder.record["results"]["step"]])
    assert folder.record["results"]["chosen"] == {"step": folder.record["results"]["step"], "of": 5}


def test_the_average_of_the_weights_is_what_is_saved(base: Path, prompts: Path) -> None:
    plain = ppo.run(config(base, prompts, max_steps=3, learning_rate=1e-2, out=base.parent / "plain"), reward=CountZ())
    slow = ppo.run(
        config(base, prompts, max_steps=3, learning_rate=1e-2, ema_decay=0.9999, out=base.parent / "slow"),
        reward=CountZ(),
    )
    start, end, average = (load_policy(path)[0].lm_head.weight.detach() for path in (base, plain.path, slow.path))
    assert float((average - start).abs().max()) < float((end - start).abs().max()) / 10


def test_pretraining_data_keeps_its_likelihood_up(base: Path, prompts: Path, demonstrations: Path) -> None:
    settings: dict[str, object] = {"max_steps": 6, "learning_rate": 5e-3, "batch_size": 16}
    mixed = ppo.run(
        config(base, prompts, pretraining_data=str(demonstrations), out=base.parent / "ptx", **settings),
        reward=CountZ(),
    ).metrics()
    assert mixed[-1]["pretraining_loss"] < mixed[0]["pretraining_loss"] - 0.3


def test_F1_the_gradient_of_pretraining_is_a_mean_over_tokens(base: Path, prompts: Path, demonstrations: Path) -> None:
    for tokens in (10_000, 1):
        model, tokenizer = load_policy(base)
        mix = PretrainingMix(
            str(demonstrations), model, tokenizer, batch_size=6, coefficient=3.0, max_length=None, seed=0,
            compute=Compute(micro_batch_tokens=tokens),
        )  # fmt: skip
        total, count = torch.zeros(()), 0
        for row in batch_at(0, len(mix.rows), 6, derive_seed(0, "pretraining")):
            group = mix.rows[row]
            ids, start = torch.tensor([[*group.prompt_ids, *group.responses[0].ids]]), len(group.prompt_ids)
            logprobs = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            total = total - logprobs.gather(-1, ids[0, start:, None]).sum()
            count += ids.shape[1] - start
        expected = torch.autograd.grad(3 * total / count, list(model.parameters()))
        loss = mix.backward(Optimizer(model, steps=1, learning_rate=0.0))["pretraining_loss"]
        assert float(loss) == pytest.approx(float(total.detach() / count), rel=1e-4)
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-6)


def test_the_value_network_starts_from_the_reward_model(base: Path, prompts: Path, comparisons: Path) -> None:
    reward = reward_model.run(
        reward_model.RewardConfig(
            model=str(base),
            data=str(comparisons),
            out=base.parent / "rm",
            max_steps=5,
            centre_samples=8,
            learning_rate=1e-3,
        )
    )
    learned = build_reward(str(reward.path), policy_tokenizer=load_policy(base)[1])
    policy, _ = load_policy(base)
    critic = build_critic(policy, learned, "reward", seed=0)
    torch.testing.assert_close(critic.head.weight, learned.model.score.weight)  # type: ignore[attr-defined]
    assert critic.head.weight.data_ptr() != learned.model.score.weight.data_ptr()  # type: ignore[attr-defined]
    folder = ppo.run(config(base, prompts, reward=str(reward.path), value_init="reward", force=True))
    assert folder.finished


def test_presets_are_the_published_values_and_what_is_given_wins(base: Path, prompts: Path) -> None:
    required = {"model": "m", "data": "d", "reward": "r", "out": "o"}
    n_plus = ppo.PPOConfig.make(required | {"preset": "n-plus"})
    assert (n_plus.beta, n_plus.inner_epochs, n_plus.temperature, n_plus.missing_eos_score) == (0.05, 4, 0.7, -1.0)
    instruct = ppo.PPOConfig.make(required | {"preset": "instructgpt", "beta": 0.3})
    assert (instruct.beta, instruct.minibatches, instruct.ema_decay) == (0.3, 8, 0.992)
    for preset in ("n-plus", "instructgpt"):
        out = base.parent / preset
        changes = {"preset": preset, "out": out, "batch_size": 16, "max_steps": 1}
        values = {
            k: v
            for k, v in config(base, prompts).model_dump(exclude_unset=True).items()
            if k not in ("inner_epochs", "minibatches")
        }
        assert ppo.run(ppo.PPOConfig.make(values | changes), reward=CountZ()).finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 9}, r"minibatches \(9\) cannot be more than batch_size \(8\)"),
        ({"beta": -1}, "'beta' is -1, but should be greater than or equal to 0"),
        ({"beta": 0, "target_kl": 6}, "beta must start above 0"),
        ({"betaa": 1}, r"unknown key 'betaa'; did you mean 'beta'\?"),
        ({"temperature": 0}, "'temperature' is 0"),
    ],
)
def test_impossible_settings_are_one_line(base: Path, prompts: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(base, prompts, **changes)
    assert "\n" not in str(caught.value)


def test_no_room_for_a_prompt_is_an_error(base: Path, prompts: Path) -> None:
    with pytest.raises(ConfigError, match="leaves no room for a prompt in a context of 256"):
        ppo.run(config(base, prompts, max_new_tokens=256), reward=CountZ())


def test_rows_of_one_batch_do_not_touch_each_other(base: Path) -> None:
    """A row's log-probabilities and value are the same by itself and in a batch with longer ones."""
    model, _ = load_policy(base)
    critic = ValueModel.from_policy(model, seed=0)
    rows = [
        EncodedGroup((6,) * (1 + i), (EncodedResponse((7,) * (5 - i), (True,) * (5 - i)),), Group("a"))
        for i in range(3)
    ]
    together, alone = collate(rows), [collate([row]) for row in rows]
    for i, row in enumerate(alone):
        for compute in (lambda b: forward.response_logprobs(model, b)[0], lambda b: values(critic, b)):
            torch.testing.assert_close(compute(together)[i, 0, : 5 - i], compute(row)[0, 0], rtol=0, atol=1e-5)

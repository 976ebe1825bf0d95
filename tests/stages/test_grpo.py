from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from kleash.data.group import EncodedGroup, Group
from kleash.errors import ConfigError, TrainingError
from kleash.io import read_jsonl
from kleash.models.compute import Compute
from kleash.models.inference import batch_logprobs, split_to_fit
from kleash.models.load import load_policy
from kleash.models.reference import Reference
from kleash.rollout import Components, Rollout, Rollouts, read_prompts
from kleash.sampling.local import LocalSampler
from kleash.stages import grpo
from kleash.stopping import zero_spread
from kleash.stopping.degenerate import DEAD_AFTER, SOLVED_AFTER
from kleash.training.optim import Optimizer

PRESETS = ("grpo", "dr-grpo", "rloo", "dapo")


class CountZ:
    """More of the letter z is better; a response without any scores exactly 0.0."""

    def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
        return torch.tensor([[float(r.text.split().count("z")) for r in group.responses] for group in groups])


class SumIds:
    """A reward that is hardly ever the same twice in a group."""

    def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
        return torch.tensor([[sum(r.ids or ()) / 50 for r in group.responses] for group in groups])


class Always:
    """The same for all."""

    def __init__(self, score: float) -> None:
        self.score = score

    def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
        return torch.full((len(groups), len(groups[0].responses)), self.score)


def config(base: Path, data: Path, **changes: object) -> grpo.GRPOConfig:
    values: dict[str, object] = {
        "model": str(base), "data": str(data), "reward": "count_z:reward", "out": base.parent / "grpo", "max_steps": 2,
        "batch_size": 4, "group_size": 4, "max_new_tokens": 6, "inner_epochs": 2, "minibatches": 2,
        "learning_rate": 1e-3,
    }  # fmt: skip
    return grpo.GRPOConfig.make(values | changes)


def test_presets_are_the_published_values_and_what_is_given_wins() -> None:
    required = {"model": "m", "data": "d", "reward": "r", "out": "o"}
    made = {name: grpo.GRPOConfig.make(required | {"preset": name}) for name in PRESETS}
    assert (made["grpo"].group_size, made["grpo"].beta, made["grpo"].kl_in) == (64, 0.04, "loss-k3")
    assert (made["dapo"].clip, made["dapo"].clip_high, made["dapo"].resample_zero_spread) == (0.2, 0.28, True)
    assert {name: (preset.advantage, preset.normalisation) for name, preset in made.items()} == {
        "grpo": ("standardised", "sequence"), "dr-grpo": ("centred", "constant"), "dapo": ("standardised", "token"),
        "rloo": ("leave-one-out", "constant"),
    }  # fmt: skip
    assert all(preset.kl_in == "reward" for name, preset in made.items() if name != "grpo")
    assert grpo.GRPOConfig.make(required | {"preset": "grpo", "beta": 0.3}).beta == 0.3


def components(settings: grpo.GRPOConfig, base: Path, reward: Any = None) -> tuple[Components, list[EncodedGroup]]:
    """Models, rewards and engines, as `run` makes them, but for a reference that is not the policy."""
    model, tokenizer = load_policy(base)
    reference = load_policy(base)[0]
    with torch.no_grad():
        model.lm_head.weight[1] += 0.3  # some responses end, some do not
        reference.lm_head.weight.mul_(1.3)
    sampler = LocalSampler(model, tokenizer, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    parts = Components(
        model, tokenizer, Reference(reference), sampler, reward or SumIds(),
        temperature=settings.temperature, compute=settings.compute,
    )  # fmt: skip
    return parts, read_prompts(parts, **settings.prompt_settings())[0]


def rollouts_of(parts: Components, prompts: Sequence[EncodedGroup], settings: grpo.GRPOConfig) -> Rollouts:
    """The rollouts of a run."""
    return Rollouts(
        parts, prompts, batch_size=settings.batch_size, group_size=settings.group_size, seed=settings.seed,
        zero_spread=grpo.of_one_score,
        resample=settings.resample_zero_spread,
    )  # fmt: skip


def first_rollout(parts: Components, prompts: Sequence[EncodedGroup], settings: grpo.GRPOConfig) -> Rollout:
    """The first of them, with advantages."""
    return grpo.with_advantages(next(rollouts_of(parts, prompts, settings)), settings)


def gradient(settings: grpo.GRPOConfig, base: Path, *, spoil: Any = None) -> Tensor:
    """Gradient of one update over a whole rollout, after another update so that the ratio is not 1."""
    parts, prompts = components(settings, base)
    rollout = first_rollout(parts, prompts, settings)
    with torch.no_grad():
        parts.policy.lm_head.weight.mul_(1.4)
    if spoil:
        rollout = spoil(rollout)
    return update(parts, rollout, range(settings.batch_size), settings)


def update(parts: Components, rollout: Rollout, groups: Sequence[int], settings: grpo.GRPOConfig) -> Tensor:
    """Gradient of one update over some groups of a rollout."""
    gradients: list[Tensor] = []
    optimizer = Optimizer(parts.policy, steps=1, learning_rate=1e-3)

    def step() -> dict[str, Any]:
        gradients.append(torch.cat([p.grad.flatten() for p in parts.policy.parameters() if p.grad is not None]))
        return {"grad_norm": 0.0}

    optimizer.step = step  # type: ignore[method-assign]
    grpo.update(parts, rollout.select(torch.tensor(list(groups))), optimizer, settings)
    return gradients[0]


def advantages_of(rollout: Rollout) -> Tensor:
    """[P, K]."""
    assert rollout.batch.advantages is not None
    return rollout.batch.advantages[..., 0]


@pytest.mark.parametrize(
    ("normalisation", "kl_in"), [("token", "reward"), ("sequence", "loss-k3"), ("constant", "loss-k2-response")]
)
def test_F1_the_gradient_is_the_same_for_any_number_of_micro_batches(
    normalisation: str, kl_in: str, base: Path, prompts: Path
) -> None:
    changes = {"normalisation": normalisation, "kl_in": kl_in, "beta": 0.3}
    whole = gradient(config(base, prompts, micro_batch_tokens=10_000, **changes), base)
    for tokens in (1, 25):  # a response alone, half a group
        split = gradient(config(base, prompts, micro_batch_tokens=tokens, **changes), base)
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 25])
@pytest.mark.parametrize("kl_in", ["reward", "loss-k3", "loss-k2-response"])
@pytest.mark.parametrize("normalisation", ["token", "sequence", "constant"])
def test_an_update_on_some_groups_has_the_gradient_of_its_formula(
    normalisation: str, kl_in: str, micro_batch_tokens: int, base: Path, prompts: Path
) -> None:
    """A response at a time through plain `transformers`, after the weights have moved, of another engine's samples."""
    settings = config(
        base, prompts, normalisation=normalisation, kl_in=kl_in, beta=0.3, clip=0.1, clip_high=0.15, temperature=0.8,
        micro_batch_tokens=micro_batch_tokens, max_new_tokens=7,
    )  # fmt: skip
    parts, rows = components(settings, base)
    rollout = first_rollout(parts, rows, settings)
    assert rollout.batch.sampler_logprobs is not None
    sampled_by = rollout.batch.sampler_logprobs - 0.4
    rollout = replace(rollout, batch=replace(rollout.batch, sampler_logprobs=sampled_by))
    with torch.no_grad():
        parts.policy.lm_head.weight.mul_(1.4)
    some, batch = [0, 2, 3], rollout.batch
    responses = [(row, k) for row in some for k in range(batch.shape[1])]
    tokens = int(sum(batch.mask[row, k].sum() for row, k in responses))
    total, held = torch.zeros(()), 0
    for row, k in responses:
        prompt = batch.prompt_ids[row][batch.prompt_attention[row]]
        response = batch.response_ids[row, k][batch.mask[row, k]]
        ids, start = torch.cat([prompt, response])[None], len(prompt) - 1
        logprobs = (parts.policy(ids).logits[0, start:-1] / 0.8).log_softmax(-1).gather(-1, response[:, None])[:, 0]
        old, fixed = (table[row, k, : len(response)] for table in (batch.old_logprobs, batch.reference_logprobs))
        ratio, advantage = (logprobs - old).exp(), advantages_of(rollout)[row, k]
        held += int(((ratio < 0.9) | (ratio > 1.15)).sum())
        loss = -math.exp(0.4) * torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.15) * advantage)
        kl_per_response = logprobs - fixed
        if kl_in == "loss-k3":
            loss = loss + 0.3 * ((-kl_per_response).exp() - 1 + kl_per_response)
        if kl_in == "loss-k2-response":
            loss = loss + 0.3 * kl_per_response * kl_per_response.sum() / 2
        divisor = {"token": tokens, "sequence": len(responses) * len(response), "constant": len(responses) * 7}[
            normalisation
        ]
        total = total + loss.sum() / divisor
    assert 0 < held < tokens and len(responses) == 3 * settings.group_size
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(parts.policy.parameters()))])
    torch.testing.assert_close(update(parts, rollout, some, settings), expected, rtol=1e-3, atol=1e-6)


def test_F10_every_coefficient_changes_the_update(base: Path, prompts: Path) -> None:
    plain = gradient(config(base, prompts), base)
    for changes in [
        {"beta": 0.5}, {"kl_in": "loss-k3"}, {"kl_in": "loss-k2-response"}, {"advantage": "centred"},
        {"advantage": "standardised"}, {"normalisation": "token"}, {"normalisation": "sequence"}, {"clip": 0.01},
        {"clip_high": 0.01}, {"overlong": "mask"}, {"overlong": "penalise"}, {"temperature": 0.5}, {"group_size": 3},
    ]:  # fmt: skip
        changed = gradient(config(base, prompts, **changes), base)
        assert not torch.allclose(changed, plain, rtol=1e-3), f"{changes} changed nothing"


def test_another_samplers_tokens_are_weighed_by_the_truncated_importance(base: Path, prompts: Path) -> None:
    settings = config(base, prompts, beta=0.0)
    plain = gradient(settings, base)

    def shift(by: float) -> Any:
        """The sampler found each token likelier, or less likely, by this than the trainer."""

        def spoil(rollout: Rollout) -> Rollout:
            assert rollout.batch.sampler_logprobs is not None
            shifted = replace(rollout.batch, sampler_logprobs=rollout.batch.sampler_logprobs - by)
            return replace(rollout, batch=shifted)

        return spoil

    for by, factor in ((0.4, math.exp(0.4)), (-1.0, math.exp(-1.0)), (5.0, 2.0)):
        torch.testing.assert_close(gradient(settings, base, spoil=shift(by)), factor * plain, rtol=1e-3, atol=1e-6)


def test_the_kl_penalty_in_the_reward_is_summed_over_a_response_before_the_group_is_compared(
    base: Path, prompts: Path
) -> None:
    settings = config(base, prompts, beta=0.5, advantage="centred")
    parts, rows = components(settings, base)
    rollout = first_rollout(parts, rows, settings)
    kl_per_response = (rollout.batch.old_logprobs - rollout.batch.reference_logprobs).sum(-1)
    torch.testing.assert_close(rollout.kl, kl_per_response)
    compared = rollout.scores - 0.5 * kl_per_response
    expected = compared - compared.mean(-1, keepdim=True)
    torch.testing.assert_close(advantages_of(rollout), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kl_in", ["loss-k3", "loss-k2-response"])
def test_the_kl_penalty_in_the_loss_leaves_the_advantages_to_the_scores(kl_in: str, base: Path, prompts: Path) -> None:
    settings = config(base, prompts, beta=0.5, advantage="centred", kl_in=kl_in)
    parts, rows = components(settings, base)
    rollout = first_rollout(parts, rows, settings)
    expected = rollout.scores - rollout.scores.mean(-1, keepdim=True)
    torch.testing.assert_close(advantages_of(rollout), expected, rtol=1e-5, atol=1e-6)


class SumIdsOfEven:
    """A spread in the groups of prompts with an even number, none in the others."""

    def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
        return torch.stack([SumIds()([group])[0] * (1 - group.columns["number"] % 2) for group in groups])


@pytest.mark.parametrize("advantage", list(grpo.ADVANTAGES))
def test_a_kl_penalty_in_the_reward_acts_on_groups_of_zero_spread_as_on_others(
    advantage: str, base: Path, prompts: Path
) -> None:
    settings = config(base, prompts, beta=0.5, advantage=advantage, batch_size=8)
    parts, rows = components(settings, base, SumIdsOfEven())
    rollout = first_rollout(parts, rows, settings)
    flat = zero_spread(rollout.scores)
    assert 0 < flat.sum() < 8 and bool((rollout.kl.abs().amax(-1) > 1e-3).all())
    expected = grpo.ADVANTAGES[advantage][0](rollout.scores - 0.5 * rollout.kl)
    torch.testing.assert_close(advantages_of(rollout), expected, rtol=1e-6, atol=1e-6)
    assert bool((advantages_of(rollout)[flat].abs().amax(-1) > 1e-4).all())


@pytest.mark.parametrize("kl_in", ["reward", "loss-k3", "loss-k2-response"])
def test_groups_of_zero_spread_alone_have_the_gradient_of_the_kl_penalty_and_none_at_the_reference(
    kl_in: str, base: Path, prompts: Path
) -> None:
    """Without a spread all of the gradient is the penalty's: proportional to β. At the reference no step is taken."""
    gradients = []
    for beta in (0.2, 0.4):
        settings = config(base, prompts, beta=beta, kl_in=kl_in)
        parts, rows = components(settings, base, Always(1.0))
        rollout = first_rollout(parts, rows, settings)
        assert bool(zero_spread(rollout.scores).all()) and grpo.has_gradient(rollout, settings)
        gradients.append(update(parts, rollout, range(4), settings))
    assert float(gradients[0].norm()) > 1e-4
    torch.testing.assert_close(gradients[1], 2 * gradients[0], rtol=1e-3, atol=1e-6)

    settings = config(base, prompts, beta=0.01, kl_in=kl_in)
    parts = replace(parts, reference=Reference(load_policy(base)[0]))
    with torch.no_grad():
        parts.policy.load_state_dict(parts.reference.model.state_dict())
    rollout = first_rollout(parts, rows, settings)
    figures = grpo.update(parts, rollout, Optimizer(parts.policy, steps=1, learning_rate=1e-3), settings)
    assert figures["updates"] == 0 and not advantages_of(rollout).any()


def test_a_large_group_goes_through_the_model_in_parts_and_comes_out_whole(base: Path, prompts: Path) -> None:
    settings = [config(base, prompts, micro_batch_tokens=tokens) for tokens in (10_000, 25)]
    whole, parted = (first_rollout(*components(each, base), each) for each in settings)
    sizes = [split_to_fit(whole.batch, max_tokens=each.micro_batch_tokens).shape[1] for each in settings]
    assert sizes[0] == whole.batch.shape[1] > sizes[1]
    torch.testing.assert_close(parted.kl, whole.kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(advantages_of(parted), advantages_of(whole), rtol=1e-4, atol=1e-5)


def test_overlong_responses_are_penalised_over_the_last_fifth_or_left_out(base: Path, prompts: Path) -> None:
    for overlong in ("penalise", "mask"):
        settings = config(base, prompts, max_new_tokens=10, overlong=overlong)
        parts, rows = components(settings, base)
        rollout = first_rollout(parts, rows, settings)
        flat = [(group, response) for group in rollout.groups for response in group.responses]
        assert len({response.finished for _, response in flat}) == 2, "both kinds, or this test says nothing"
        loss = (rollout.scores - grpo.penalised(rollout, settings)).flatten().tolist()
        counts = rollout.batch.mask.any(-1).flatten().tolist()
        for (_, response), penalty, counted in zip(flat, loss, counts, strict=True):
            length = len(response.ids or ())
            if overlong == "penalise":  # 0 up to 8 tokens, ½ at 9, 1 at 10
                assert penalty == pytest.approx({9: 0.5, 10: 1.0}.get(length, 0.0)) and counted
            else:
                assert penalty == 0 and counted == response.finished


def test_groups_of_zero_spread_are_replaced_by_other_prompts(base: Path, prompts: Path) -> None:
    class Some:
        """Only prompts of an even number have a spread."""

        def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
            return torch.tensor(
                [
                    [float(k) * (1 - group.columns["number"] % 2) for k in range(len(group.responses))]
                    for group in groups
                ]
            )

    for replacing in (False, True):
        settings = config(base, prompts, resample_zero_spread=replacing, batch_size=8)
        parts, rows = components(settings, base, Some())
        rollouts = rollouts_of(parts, rows, settings)
        rollout = next(rollouts)
        odd = [group.columns["number"] % 2 for group in rollout.groups]
        assert len(odd) == 8 and (sum(odd) == 0) == replacing
        assert (rollouts.cursor > 8) == replacing and 0 < rollout.zero_spread_groups < rollout.sampled_groups
        # what was put together of several draws is still what the sampler drew
        computed = batch_logprobs(parts.policy, rollout.batch, compute=Compute())
        torch.testing.assert_close(rollout.batch.old_logprobs, computed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_reward_is_optimised_and_the_formula_is_written_down(preset: str, base: Path, prompts: Path) -> None:
    folder = grpo.run(
        config(
            base, prompts, preset=preset, max_steps=12, batch_size=8, group_size=8, learning_rate=1e-2, beta=0.0,
            warmup_steps=0, minibatches=2, eval_every=12,
        ),
        reward=CountZ(),
    )  # fmt: skip
    rows = folder.metrics()
    assert rows[0]["step"] == 0 and "eval_reward" in rows[0]
    assert rows[-1]["reward"] > rows[1]["reward"] + 1
    AutoModelForCausalLM.from_pretrained(folder.path)
    written = json.loads((folder.path / "run.json").read_text())["formulas"]
    assert written["advantage"] == {
        "grpo": "A_k = (R_k − mean(R)) / (std(R) + 1e-4)", "dapo": "A_k = (R_k − mean(R)) / (std(R) + 1e-4)",
        "dr-grpo": "A_k = R_k − mean(R)", "rloo": "A_k = R_k − mean(R_j, j ≠ k)",
    }[preset]  # fmt: skip
    assert ("1.28" in written["loss of a token"]) == (preset == "dapo")
    assert ("π_ref/π − 1" in written["loss of a token"]) == (preset == "grpo")
    figures = {
        "reward", "kl", "entropy", "length", "end_rate", "clip_fraction", "zero_spread_share", "solved_share",
        "sampler_mismatch", "first_ratio", "grad_norm",
    }  # fmt: skip
    assert figures <= rows[-1].keys()
    assert rows[-1]["kl"] > 0.1, "the KL is measured without a KL penalty, too"
    samples = read_jsonl(folder.path / "samples.jsonl")
    assert {row["step"] for row in samples} == {0, 12}
    assert {"prompt", "response", "finished", "score", "kl", "number"} <= samples[0].keys()


def last_kl(rows: list[dict[str, Any]]) -> float:
    """Mean KL of the last five rollouts: that of one is an estimate from few samples."""
    return sum(row["kl"] for row in rows[-5:]) / 5


@pytest.mark.parametrize("kl_in", ["reward", "loss-k3", "loss-k2-response"])
def test_the_policy_stays_near_the_reference_with_a_large_kl_penalty(kl_in: str, base: Path, prompts: Path) -> None:
    long, short = (
        grpo.run(
            config(
                base, prompts, max_steps=12, batch_size=4, group_size=8, learning_rate=3e-3, beta=beta, kl_in=kl_in,
                out=base.parent / str(beta),
            ),
            reward=CountZ(),
        ).metrics()
        for beta in (0.0, 5.0)
    )  # fmt: skip
    assert last_kl(short) < last_kl(long) / 4


def test_F7_the_ratio_is_one_before_the_first_update(base: Path, prompts: Path) -> None:
    for temperature in (1.0, 0.7):
        folder = grpo.run(
            config(base, prompts, temperature=temperature, out=base.parent / f"t{temperature}"), reward=SumIds()
        )
        assert all(abs(row["first_ratio"] - 1) < 1e-3 for row in folder.metrics())


def test_in_bfloat16_the_trainers_numbers_are_computed_again_and_the_mismatch_is_logged(
    base: Path, prompts: Path
) -> None:
    folder = grpo.run(config(base, prompts, dtype="bfloat16"), reward=SumIds())
    assert all(0 <= row["sampler_mismatch"] < 0.25 and row["first_ratio"] < 1.3 for row in folder.metrics())


def test_F7_faults_are_caught_and_named_in_groups(base: Path, prompts: Path) -> None:
    def dropout(parts: Components, rollout: Rollout) -> None:
        for layer in parts.policy.model.layers:
            layer.self_attn.attention_dropout = 0.5
        parts.policy.train()

    def retokenise(parts: Components, rollout: Rollout) -> None:
        rollout.batch.response_ids[:, -1, 0] = (rollout.batch.response_ids[:, -1, 0] + 1) % 30

    for spoil, message in ((dropout, "dropout is active"), (retokenise, "decoded and tokenised again")):
        settings = config(base, prompts)
        parts, rows = components(settings, base)
        rollout = first_rollout(parts, rows, settings)
        spoil(parts, rollout)
        with pytest.raises(TrainingError, match=message):
            grpo.update(parts, rollout, Optimizer(parts.policy, steps=1, learning_rate=1e-3), settings, first=True)


@pytest.mark.parametrize(
    ("changes", "score", "message"),
    [
        ({}, 0.0, r"the same reward \(0\); use easier prompts or a better --model"),
        ({"beta": 0.0}, 0.7, r"the same reward \(0\.7\); use easier prompts"),
        ({"overlong": "mask", "max_new_tokens": 1}, None, "cut off at 1 tokens and left out of the loss; raise --max"),
        (
            {"max_new_tokens": 1},
            0.0,
            "cut off at 1 tokens, and all of a group have the same reward; raise --max-new-tokens",
        ),
    ],
)
def test_F13_a_dead_run_stops_within_20_steps_with_the_reason(
    changes: dict[str, object], score: float | None, message: str, base: Path, prompts: Path
) -> None:
    model, tokenizer = load_policy(base)
    if "max_new_tokens" in changes:
        with torch.no_grad():  # it never ends: every state has one large feature, which the end token dislikes
            model.get_input_embeddings().weight[:, 0] = 100.0
            model.lm_head.weight[1, 0] = -20.0
    reward = SumIds() if score is None else Always(score)
    settings = config(base, prompts, max_steps=40, batch_size=2, group_size=2, inner_epochs=1, minibatches=1, **changes)
    with pytest.raises(TrainingError, match=message) as caught:
        grpo.run(settings, policy=(model, tokenizer), reward=reward)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("no update in the last 20 rollouts: ")
    assert len(read_jsonl(settings.out / "metrics.jsonl")) == DEAD_AFTER == 20


def test_F13_a_solved_run_ends_with_the_reason(base: Path, prompts: Path) -> None:
    class Solves:
        """Learns after three rollouts, so to say."""

        calls = 0

        def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
            self.calls += 1
            scores = torch.ones(len(groups), len(groups[0].responses))
            if self.calls <= 3:
                scores[0, 0] = 0.0
            return scores

    settings = config(base, prompts, max_steps=40, batch_size=2, group_size=2, eval_every=100)
    folder = grpo.run(settings, reward=Solves())
    rows = folder.metrics()
    # a call for the held-out prompts comes first, so that two rollouts are not perfect
    assert rows[-1]["step"] == 2 + SOLVED_AFTER
    assert folder.finished and rows[-1]["solved_share"] == 1 and "eval_reward" in rows[-1]
    assert folder.record["results"]["ended"].startswith(
        "solved: every response of 5 rollouts had the best reward seen, 1"
    )
    AutoModelForCausalLM.from_pretrained(folder.path)
    assert grpo.run(settings, reward=Solves()).metrics() == rows


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("preset", ["rloo", "dapo"])
def test_F11_interrupted_and_run_again_it_ends_with_the_same_weights(preset: str, base: Path, prompts: Path) -> None:
    class Breaks(CountZ):
        """A reward that gives up after so many calls."""

        def __init__(self, calls: int) -> None:
            self.calls = calls

        def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
            self.calls -= 1
            if self.calls < 0:
                raise Interrupted
            return super().__call__(groups)

    def settings(out: str) -> grpo.GRPOConfig:
        return config(
            base, prompts, preset=preset, max_steps=6, save_every=2, eval_every=2, keep_weights="best",
            out=base.parent / out,
            warmup_steps=0, learning_rate=3e-3, batch_size=4, group_size=4, accept_changed=("reward",),
        )  # fmt: skip

    count = Breaks(1000)
    whole = grpo.run(settings("whole"), reward=count)
    for calls in (2, (1000 - count.calls) * 2 // 3, 1):  # before the first state, well after it, and at once
        with pytest.raises(Interrupted):
            grpo.run(settings("broken"), reward=Breaks(calls))
    assert list((base.parent / "broken" / "checkpoints").glob("step-*")), "no state to go on from: this says nothing"
    broken = grpo.run(settings("broken"), reward=CountZ())
    for name in ("model.safetensors", "metrics.jsonl", "samples.jsonl"):
        assert (broken.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert {**broken.record["results"], "near_ties": 0} == {**whole.record["results"], "near_ties": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 9}, r"minibatches \(9\) cannot be more than batch_size \(4\)"),
        ({"group_size": 1}, "'group_size' is 1, but should be greater than or equal to 2"),
        ({"kl_in": "k3"}, "'kl_in' is 'k3'"),
        ({"num_generations": 8}, "unknown key 'num_generations'"),
    ],
)
def test_impossible_settings_are_one_line(base: Path, prompts: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(base, prompts, **changes)
    assert "\n" not in str(caught.value)

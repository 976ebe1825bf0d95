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

from kleash.checks.stopping import DEAD_AFTER, SOLVED_AFTER
from kleash.data.group import EncodedGroup, Group
from kleash.errors import ConfigError, TrainingError
from kleash.models.load import load_policy
from kleash.run import read_jsonl
from kleash.sampling.local import LocalSampler
from kleash.stages import grpo, rollouts
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


def actors(settings: grpo.GRPOConfig, base: Path, reward: Any = None) -> tuple[grpo.Actors, list[EncodedGroup]]:
    """Everyone who takes part, made as `run` makes them."""
    model, tokenizer = load_policy(base)
    with torch.no_grad():
        model.lm_head.weight[1] += 0.3  # some responses end, some do not
    prompts, _ = grpo.read_prompts(settings, model, tokenizer)
    sampler = LocalSampler(model, tokenizer, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    reference = load_policy(base)[0]
    with torch.no_grad():  # a reference that is not the policy, so that there is a drift
        reference.lm_head.weight.mul_(1.3)
    return grpo.Actors(settings, model, tokenizer, reference, reward or SumIds(), sampler), prompts


def gradient(settings: grpo.GRPOConfig, base: Path, *, spoil: Any = None) -> Tensor:
    """Gradient of one update over a whole rollout, after another update so that the ratio is not 1."""
    cast, prompts = actors(settings, base)
    rollout, _ = grpo.collect(cast, prompts, place=0, step=1)
    with torch.no_grad():
        cast.policy.lm_head.weight.mul_(1.4)
    if spoil:
        rollout = spoil(rollout)
    return update(cast, rollout, range(settings.batch_size))


def update(cast: grpo.Actors, rollout: grpo.Rollout, groups: Sequence[int]) -> Tensor:
    """Gradient of one update over some groups of a rollout."""
    taken: list[Tensor] = []
    optimizer = Optimizer(cast.policy, steps=1, learning_rate=1e-3)
    optimizer.step = lambda: {  # type: ignore[method-assign]
        "grad_norm": taken.append(torch.cat([p.grad.flatten() for p in cast.policy.parameters() if p.grad is not None]))  # type: ignore[func-returns-value]
    }
    grpo.learn(cast, rollout, groups, optimizer)
    return taken[0]


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
    cast, prompts_of = actors(settings, base)
    rollout, _ = grpo.collect(cast, prompts_of, place=0, step=1)
    assert rollout.batch.sampler_logprobs is not None
    sampled_by = rollout.batch.sampler_logprobs - 0.4
    rollout = replace(rollout, batch=replace(rollout.batch, sampler_logprobs=sampled_by))
    with torch.no_grad():
        cast.policy.lm_head.weight.mul_(1.4)
    some, batch = [0, 2, 3], rollout.batch
    rows = [(row, k) for row in range(batch.shape[0]) if row // rollout.parts in some for k in range(batch.shape[1])]
    tokens = int(sum(batch.mask[row, k].sum() for row, k in rows))
    total, held = torch.zeros(()), 0
    for row, k in rows:
        prompt = batch.prompt_ids[row][batch.prompt_attention[row]]
        response = batch.response_ids[row, k][batch.mask[row, k]]
        ids, start = torch.cat([prompt, response])[None], len(prompt) - 1
        logprobs = (cast.policy(ids).logits[0, start:-1] / 0.8).log_softmax(-1).gather(-1, response[:, None])[:, 0]
        old, fixed = (table[row, k, : len(response)] for table in (rollout.old_logprobs, rollout.reference_logprobs))
        ratio, advantage = (logprobs - old).exp(), rollout.advantages[row, k]
        held += int(((ratio < 0.9) | (ratio > 1.15)).sum())
        loss = -math.exp(0.4) * torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.15) * advantage)
        drift = logprobs - fixed
        if kl_in == "loss-k3":
            loss = loss + 0.3 * ((-drift).exp() - 1 + drift)
        if kl_in == "loss-k2-response":
            loss = loss + 0.3 * drift * drift.sum() / 2
        divisor = {"token": tokens, "sequence": len(rows) * len(response), "constant": len(rows) * 7}[normalisation]
        total = total + loss.sum() / divisor
    assert 0 < held < tokens and len(rows) == 3 * settings.group_size
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(cast.policy.parameters()))])
    torch.testing.assert_close(update(cast, rollout, some), expected, rtol=1e-3, atol=1e-6)


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

        def spoil(rollout: grpo.Rollout) -> grpo.Rollout:
            assert rollout.batch.sampler_logprobs is not None
            shifted = replace(rollout.batch, sampler_logprobs=rollout.batch.sampler_logprobs - by)
            return replace(rollout, batch=shifted)

        return spoil

    for by, factor in ((0.4, math.exp(0.4)), (-1.0, math.exp(-1.0)), (5.0, 2.0)):
        torch.testing.assert_close(gradient(settings, base, spoil=shift(by)), factor * plain, rtol=1e-3, atol=1e-6)


def test_the_leash_in_the_reward_is_summed_over_a_response_before_the_group_is_compared(
    base: Path, prompts: Path
) -> None:
    cast, rows = actors(config(base, prompts, beta=0.5, advantage="centred"), base)
    rollout, place = grpo.collect(cast, rows, place=0, step=1)
    assert place == 4
    drift = (rollout.old_logprobs - rollout.reference_logprobs).sum(-1).reshape(4, 4)
    torch.testing.assert_close(rollout.drift, drift)
    compared = rollout.scores - 0.5 * drift
    expected = compared - compared.mean(-1, keepdim=True)
    torch.testing.assert_close(rollout.advantages.reshape(4, 4), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kl_in", ["loss-k3", "loss-k2-response"])
def test_the_leash_in_the_loss_leaves_the_advantages_to_the_scores(kl_in: str, base: Path, prompts: Path) -> None:
    cast, rows = actors(config(base, prompts, beta=0.5, advantage="centred", kl_in=kl_in), base)
    rollout, _ = grpo.collect(cast, rows, place=0, step=1)
    expected = rollout.scores - rollout.scores.mean(-1, keepdim=True)
    torch.testing.assert_close(rollout.advantages.reshape(4, 4), expected, rtol=1e-5, atol=1e-6)


def test_a_large_group_goes_through_the_model_in_parts_and_comes_out_whole(base: Path, prompts: Path) -> None:
    whole, parted = (
        grpo.collect(*actors(config(base, prompts, micro_batch_tokens=tokens), base), place=0, step=1)[0]
        for tokens in (10_000, 25)
    )
    assert whole.parts == 1 and parted.parts > 1
    torch.testing.assert_close(parted.drift, whole.drift, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parted.advantages.flatten(), whole.advantages.flatten(), rtol=1e-4, atol=1e-5)


def test_overlong_responses_are_penalised_over_the_last_fifth_or_left_out(base: Path, prompts: Path) -> None:
    for overlong in ("penalise", "mask"):
        cast, rows = actors(config(base, prompts, max_new_tokens=10, overlong=overlong), base)
        rollout, _ = grpo.collect(cast, rows, place=0, step=1)
        flat = [(group, response) for group in rollout.groups for response in group.responses]
        assert len({response.finished for _, response in flat}) == 2, "both kinds, or this test says nothing"
        loss = (rollout.scores - rollout.shaped).flatten().tolist()
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
        cast, rows = actors(config(base, prompts, resample_zero_spread=replacing, batch_size=8), base, Some())
        rollout, place = grpo.collect(cast, rows, place=0, step=1)
        odd = [group.columns["number"] % 2 for group in rollout.groups]
        assert len(odd) == 8 and (sum(odd) == 0) == replacing
        assert (place > 8) == replacing and 0 < rollout.flat_share < 1
        # what was put together of several draws is still what the sampler drew
        again = grpo.rollout_logprobs(cast, rollout.batch)
        computed = rollouts.logprobs_under(cast, cast.policy, rollout.batch)
        torch.testing.assert_close(again, computed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_reward_is_climbed_and_the_formula_is_written_down(preset: str, base: Path, prompts: Path) -> None:
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
        "reward", "kl", "entropy", "length", "end_rate", "clip_fraction", "flat_share", "solved_share",
        "sampler_mismatch", "first_ratio", "grad_norm",
    }  # fmt: skip
    assert figures <= rows[-1].keys()
    assert rows[-1]["kl"] > 0.1, "the drift is measured without a leash, too"
    samples = read_jsonl(folder.path / "samples.jsonl")
    assert {row["step"] for row in samples} == {0, 12}
    assert {"prompt", "response", "finished", "score", "kl", "number"} <= samples[0].keys()


@pytest.mark.parametrize("kl_in", ["reward", "loss-k3", "loss-k2-response"])
def test_the_policy_stays_near_the_reference_on_a_short_leash(kl_in: str, base: Path, prompts: Path) -> None:
    long, short = (
        grpo.run(
            config(
                base, prompts, max_steps=12, batch_size=4, group_size=8, learning_rate=3e-3, beta=beta, kl_in=kl_in,
                out=base.parent / str(beta),
            ),
            reward=CountZ(),
        ).metrics()[-1]["kl"]
        for beta in (0.0, 5.0)
    )  # fmt: skip
    assert short < long / 4


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
    def dropout(cast: grpo.Actors, rollout: grpo.Rollout) -> None:
        for layer in cast.policy.model.layers:
            layer.self_attn.attention_dropout = 0.5
        cast.policy.train()

    def retokenise(cast: grpo.Actors, rollout: grpo.Rollout) -> None:
        rollout.batch.response_ids[:, -1, 0] = (rollout.batch.response_ids[:, -1, 0] + 1) % 30

    for spoil, message in ((dropout, "dropout is active"), (retokenise, "decoded and tokenised again")):
        cast, rows = actors(config(base, prompts), base)
        rollout, _ = grpo.collect(cast, rows, place=0, step=1)
        spoil(cast, rollout)
        with pytest.raises(TrainingError, match=message):
            grpo.learn(cast, rollout, range(4), Optimizer(cast.policy, steps=1, learning_rate=1e-3), first=True)


@pytest.mark.parametrize(
    ("changes", "score", "message"),
    [
        ({}, 0.0, r"one reward \(0\); take easier prompts or a better --model"),
        ({"beta": 0.0}, 0.7, r"one reward \(0\.7\); take easier prompts"),
        ({"overlong": "mask", "max_new_tokens": 1}, None, "cut off at 1 tokens and left out of the loss; raise --max"),
        ({"max_new_tokens": 1}, 0.0, "cut off at 1 tokens, and all of a group have one reward; raise --max-new-tokens"),
    ],
)
def test_F13_a_dead_run_stops_within_20_steps_and_says_why(
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


def test_F13_a_solved_run_ends_and_says_so(base: Path, prompts: Path) -> None:
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
            warmup_steps=0, learning_rate=3e-3, batch_size=4, group_size=4,
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

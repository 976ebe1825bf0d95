"""GRPO's variants against their optima, known exactly.

With the KL penalty in the reward and no deviation the optimum is π* ∝ π_ref·exp(r/β). Presets that divide by the
deviation, or have k3 in the loss, come to rest elsewhere: where their own expected update, summed over every group that
can be sampled, is zero.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleash.models.load import load_policy
from kleash.stages import grpo
from tests.stages import enumerable
from tests.stages.test_ppo_closed_form import TableReward


def train(tmp_path: Path, rewards: Tensor, **settings: object) -> Tensor:
    """log π of every response after training: [prompts, responses]."""
    common = {
        "model": str(tmp_path / "model"), "data": str(tmp_path / "prompts.jsonl"), "reward": "the enumerable table",
        "out": tmp_path / "grpo", "max_new_tokens": enumerable.LONGEST, "learning_rate": 2e-3, "schedule": "linear",
        "minibatches": 1, "save_every": settings["max_steps"],
    }  # fmt: skip
    grpo.run(grpo.GRPOConfig.make(common | settings), reward=TableReward(rewards))
    return enumerable.log_policy(load_policy(tmp_path / "grpo")[0])


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rloo", "dr-grpo"])
def test_the_kl_penalty_in_the_reward_leads_to_the_closed_form_optimum(preset: str, tmp_path: Path) -> None:
    enumerable.write(tmp_path, enumerable.model())
    rewards = enumerable.reward_table()
    reference = enumerable.log_policy(load_policy(tmp_path / "model")[0])
    target = enumerable.optimum(reference, rewards, beta=0.5)
    assert enumerable.divergence(reference, target) > 0.05, "far from the optimum, or the test says nothing"

    trained = train(
        tmp_path, rewards, preset=preset, beta=0.5, max_steps=300, batch_size=16, group_size=16, warmup_steps=50
    )
    assert enumerable.divergence(trained, target) < 0.01


GROUP, BETA = 3, 1.0


def prefixes() -> dict[tuple[int, ...], int]:
    """Every beginning after which a token is chosen, numbered."""
    return {p: i for i, p in enumerate(sorted({r[:t] for r in enumerable.responses() for t in range(len(r))}))}


def by_token(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log π of each token of each response under a table of logits [prefixes, 4], and the mask: both [N, T]."""
    place, known = prefixes(), enumerable.responses()
    rows = [[place[r[:t]] for t in range(len(r))] + [0] * (enumerable.LONGEST - len(r)) for r in known]
    tokens = [[*r] + [0] * (enumerable.LONGEST - len(r)) for r in known]
    mask = torch.tensor([[t < len(r) for t in range(enumerable.LONGEST)] for r in known])
    return torch.where(mask, logits.log_softmax(-1)[rows, torch.tensor(tokens)], 0.0), mask


def as_table(log_policy: Tensor) -> Tensor:
    """The logits that give every response the probability it has: [prefixes, 4] from [N]."""
    place = prefixes()
    mass = torch.zeros(len(place), 4, dtype=torch.double)
    for response, probability in zip(enumerable.responses(), log_policy.exp(), strict=True):
        for t, token in enumerate(response):
            mass[place[response[:t]], token] += probability
    return mass.log()


def standardised(rewards: Tensor, policy: Tensor) -> Tensor:
    """What a response's advantage is in expectation over the two others of its group: [N]."""
    first, second, third = rewards[:, None, None], rewards[None, :, None], rewards[None, None, :]
    mean = (first + second + third) / GROUP
    variance = ((first - mean) ** 2 + (second - mean) ** 2 + (third - mean) ** 2) / (GROUP - 1)
    return torch.einsum("abc,b,c->a", (first - mean) / (variance.sqrt() + 1e-4), policy, policy)


def at_rest(preset: str, reference: Tensor, rewards: Tensor) -> Tensor:
    """log π where the preset's expected update is zero, for one prompt: [N]. Written out from the papers' formulas."""
    start = as_table(reference)
    anchor, mask = by_token(start)
    lengths = mask.sum(-1)
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 1500)
        logprobs, _ = by_token(logits)
        total = logprobs.detach().sum(-1)
        if preset == "grpo":  # eq. 3 of arXiv:2402.03300: k3 in the loss, a mean over each response's tokens
            ratio = anchor - logprobs
            loss = -standardised(rewards, total.exp())[:, None] * logprobs + BETA * (ratio.exp() - 1 - ratio)
            weight = 1 / lengths[:, None]
        else:  # arXiv:2503.14476: every token alike, a penalty on the last fifth; the KL penalty in the reward
            penalty = ((lengths - 0.8 * enumerable.LONGEST) / (0.2 * enumerable.LONGEST)).clamp(0, 1)
            penalised_scores = rewards - penalty - BETA * (total - anchor.sum(-1))
            loss, weight = -standardised(penalised_scores, total.exp())[:, None] * logprobs, torch.ones(len(lengths), 1)
        optimizer.zero_grad()
        (total.exp()[:, None] * weight * torch.where(mask, loss, 0)).sum().backward()
        optimizer.step()
    return by_token(logits.detach())[0].sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["grpo", "dapo"])
def test_other_presets_come_to_rest_where_their_expected_update_is_zero(preset: str, tmp_path: Path) -> None:
    enumerable.write(tmp_path, enumerable.model())
    rewards = enumerable.reward_table()
    reference = enumerable.log_policy(load_policy(tmp_path / "model")[0])
    rest = torch.stack([at_rest(preset, *one) for one in zip(reference, rewards, strict=True)])
    assert enumerable.divergence(reference, rest) > 0.1, "far from where it ends, or the test says nothing"
    assert enumerable.divergence(rest, enumerable.optimum(reference, rewards, BETA)) > 0.04, "it is another optimum"

    trained = train(
        tmp_path, rewards, preset=preset, beta=BETA, max_steps=120, batch_size=128, group_size=GROUP, minibatches=4,
        warmup_steps=80, weight_decay=0.0,
    )  # fmt: skip
    assert enumerable.divergence(trained, rest) < 0.02

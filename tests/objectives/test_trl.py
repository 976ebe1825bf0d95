"""Where TRL computes the same loss it gets the same number: its trainers' own code on a tiny model and real batches.

TRL is not a dependency: `make programs` puts it into an environment of its own. Where the two differ on purpose, a test
says by how much.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from kleash.data.batch import GroupBatch, collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.models.forward import response_logprobs, response_scores
from kleash.objectives import (
    clipped_surrogate,
    dpo_loss,
    group_centred,
    group_standardised,
    ipo_loss,
    kl,
    leave_one_out,
    length_normalised_dpo_loss,
    masked_mean,
    masked_sum,
    pair_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed_dpo_loss,
    token_weights,
)
from tests.jitter import jitter
from tests.programs import needs

needs("trl")
import trl  # noqa: E402  (only where it is installed)

pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [
    {"prompt": "a b", "chosen": " c d e", "rejected": " f"},
    {"prompt": "g", "chosen": " h", "rejected": " i j k l"},
    {"prompt": "m n o p", "chosen": " q r", "rejected": " s t"},
    {"prompt": "u v", "chosen": " w x y z", "rejected": " a a"},
]
BETA, EPS, PROMPTS, GROUP, LONGEST = 0.3, 0.1, 3, 4, 6


@pytest.fixture(autouse=True)
def no_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # else every trainer reports its use (F17)


@pytest.fixture
def reference(tiny_model: LlamaForCausalLM) -> LlamaForCausalLM:
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.3)
    return other


def settings(tmp_path: Path, batch: int, **given: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "bf16": False,
        "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch, "gradient_checkpointing": False,
        **given,
    }  # fmt: skip


def as_groups(inputs: dict[str, Tensor]) -> GroupBatch:
    """TRL's rows, all chosen before all rejected, as pairs."""
    rows = []
    for ids, real, completion in zip(
        inputs["input_ids"], inputs["attention_mask"].bool(), inputs["completion_mask"].bool(), strict=True
    ):
        rows.append((tuple(ids[real & ~completion].tolist()), tuple(ids[completion].tolist())))
    half = len(rows) // 2
    pairs = zip(rows[:half], rows[half:], strict=True)
    return collate(
        [
            EncodedGroup(
                first[0], tuple(EncodedResponse(ids, (True,) * len(ids)) for _, ids in (first, second)), Group("")
            )
            for first, second in pairs
        ]
    )


def theirs_on_pairs(
    loss_type: str,
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, str]] = PAIRS,
    **given: Any,
) -> tuple[float, Tensor, Tensor, Tensor]:
    """The loss of TRL's `DPOTrainer` on a batch, and our sums of log-probabilities and lengths on the same."""
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(tiny_model),
        ref_model=copy.deepcopy(reference),
        args=trl.DPOConfig(**settings(tmp_path, len(rows), loss_type=[loss_type], beta=BETA, **given)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, inputs)
    batch = as_groups(inputs)
    policy, fixed = (
        masked_sum(response_logprobs(model, batch)[0], batch.mask, -1).detach() for model in (tiny_model, reference)
    )
    assert float((policy - fixed).abs().min()) > 1e-3, "a policy that is its reference would say nothing"
    return float(loss), policy, fixed, batch.lengths


@pytest.mark.parametrize(
    ("loss_type", "given", "ours"),
    [
        ("sigmoid", {}, lambda policy, fixed, lengths, p: dpo_loss(policy, fixed, p=p, beta=BETA)),
        (
            "robust", {"label_smoothing": EPS},
            lambda policy, fixed, lengths, p: robust_dpo_loss(policy, fixed, p=p, beta=BETA, label_smoothing=EPS),
        ),
        (
            "sigmoid_norm", {},
            lambda policy, fixed, lengths, p: length_normalised_dpo_loss(policy, fixed, lengths, p=p, beta=BETA),
        ),
        # By its authors' word TRL takes means over tokens; eq. 17 as printed, and ours, has sums.
        ("ipo", {}, lambda policy, fixed, lengths, p: ipo_loss(policy / lengths, fixed / lengths, p=p, beta=BETA)),
    ],
)  # fmt: skip
def test_losses_of_pairs_are_those_of_trl(
    loss_type, given, ours, tmp_path, tiny_model, reference, tiny_tokenizer
) -> None:
    theirs, policy, fixed, lengths = theirs_on_pairs(
        loss_type, tmp_path, tiny_model, reference, tiny_tokenizer, **given
    )
    loss = ours(policy, fixed, lengths, torch.ones(len(PAIRS)))[0].mean()
    assert loss.item() == pytest.approx(theirs, abs=1e-5)


def test_ipo_differs_from_trl_where_responses_are_longer_than_a_token(
    tmp_path, tiny_model, reference, tiny_tokenizer
) -> None:
    theirs, policy, fixed, _ = theirs_on_pairs("ipo", tmp_path, tiny_model, reference, tiny_tokenizer)
    assert abs(float(ipo_loss(policy, fixed, p=torch.ones(4), beta=BETA)[0].mean()) - theirs) > 0.01


def test_smoothed_dpo_is_trls_aot_on_a_single_pair(tmp_path, tiny_model, reference, tiny_tokenizer) -> None:
    """TRL has no conservative DPO by name; AOT sorts a batch, and of one pair there is nothing to sort."""
    theirs, policy, fixed, _ = theirs_on_pairs(
        "aot", tmp_path, tiny_model, reference, tiny_tokenizer, PAIRS[:1], label_smoothing=EPS
    )
    loss, _ = smoothed_dpo_loss(policy, fixed, p=torch.ones(1), beta=BETA, label_smoothing=EPS)
    assert loss.item() == pytest.approx(theirs, abs=1e-5)


def test_the_sft_term_is_trls_on_a_single_pair_and_weighs_every_prompt_alike_on_more(
    tmp_path, tiny_model, reference, tiny_tokenizer
) -> None:
    """TRL's is a mean over the tokens of the batch, so that a long response counts more; ours is one over prompts."""
    for rows in (PAIRS[:1], PAIRS):
        theirs, policy, _, lengths = theirs_on_pairs("sft", tmp_path, tiny_model, reference, tiny_tokenizer, rows)
        chosen, tokens = -policy[:, 0], lengths[:, 0]
        assert (chosen.sum() / tokens.sum()).item() == pytest.approx(theirs, abs=1e-5)
        assert ((chosen / tokens).mean().item() == pytest.approx(theirs, abs=1e-5)) == (len(rows) == 1)


def test_simpo_and_smoothed_labels_are_those_of_trls_cpo(tmp_path, tiny_model, tiny_tokenizer) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer  # warns that it is experimental

    trainer = CPOTrainer(
        model=copy.deepcopy(tiny_model),
        args=CPOConfig(**settings(tmp_path, 4, loss_type="simpo", simpo_gamma=0.8, beta=2.0, cpo_alpha=0.0)),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny_tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    chosen, rejected, *_ = trainer.concatenated_forward(trainer.model.eval(), inputs)
    theirs, *_ = trainer.cpo_loss(chosen, rejected)
    lengths = torch.stack([(inputs[f"{side}_labels"] != -100).sum(-1) for side in ("chosen", "rejected")], -1)
    means = torch.stack([chosen, rejected], -1).detach()
    loss, _ = simpo_loss(means * lengths, lengths, p=torch.ones(4), beta=2.0, gamma=0.8)
    torch.testing.assert_close(loss, theirs.detach(), rtol=1e-5, atol=1e-5)

    trainer.loss_type, trainer.label_smoothing = "sigmoid", EPS
    theirs, *_ = trainer.cpo_loss(chosen, rejected)  # without a reference, so ours is given one of zeros
    loss, _ = smoothed_dpo_loss(means, torch.zeros(4, 2), p=torch.ones(4), beta=2.0, label_smoothing=EPS)
    torch.testing.assert_close(loss, theirs.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("margin", "centring"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.2), (0.7, 0.2)])
def test_the_reward_models_loss_is_that_of_trl(margin, centring, tmp_path, tiny_model, tiny_tokenizer) -> None:
    torch.manual_seed(0)
    config = copy.deepcopy(tiny_model.config)
    config.num_labels = 1
    model = jitter(LlamaForSequenceClassification(config).eval())
    rows = [{**row, "margin": margin} for row in PAIRS] if margin else PAIRS
    trainer = trl.RewardTrainer(
        model=copy.deepcopy(model),
        args=trl.RewardConfig(**settings(tmp_path, 4, center_rewards_coefficient=centring or None)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model.eval(), dict(inputs))
    # TRL's collator no longer tells the prompt apart, and a score needs no prompt: all but the first token is response.
    completion = inputs["attention_mask"].clone()
    completion[:, 0] = 0
    scores = response_scores(model, as_groups({**inputs, "completion_mask": completion}))
    loss, _ = pair_loss(scores, p=torch.ones(4), margin=margin, centring=centring)
    assert loss.mean().item() == pytest.approx(float(theirs), abs=1e-5)


def test_imitation_is_that_of_trl(tmp_path, tiny_model, tiny_tokenizer) -> None:
    trainer = trl.SFTTrainer(
        model=copy.deepcopy(tiny_model),
        args=trl.SFTConfig(**settings(tmp_path, 4, completion_only_loss=True)),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]),
        processing_class=tiny_tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model.eval(), dict(inputs))
    completion = (inputs["labels"] != -100).long()
    real = inputs.get("attention_mask", (inputs["input_ids"] != tiny_tokenizer.pad_token_id).long())
    doubled = {"input_ids": inputs["input_ids"], "attention_mask": real, "completion_mask": completion}
    batch = as_groups({name: torch.cat([tensor, tensor]) for name, tensor in doubled.items()})
    ours = -masked_mean(response_logprobs(tiny_model, batch)[0], batch.mask)
    assert ours.item() == pytest.approx(float(theirs), abs=1e-5)


def score(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(ids) % 7 / 3 for ids in completion_ids]


def rollout(
    trainer: Any, tiny_model: LlamaForCausalLM, reference: LlamaForCausalLM
) -> tuple[dict[str, Tensor], GroupBatch, Tensor, Tensor, Tensor]:
    """What TRL sampled, scored and compared; and of the same: our batch, scores, log-probabilities."""
    torch.manual_seed(0)
    trainer.model.eval()
    prompts = [{"prompt": row["prompt"]} for row in PAIRS[:PROMPTS] for _ in range(GROUP)]
    sampled = trainer._generate_and_score_completions(prompts)
    real = sampled["completion_mask"].bool().reshape(PROMPTS, GROUP, -1)
    batch = GroupBatch(
        prompt_ids=sampled["prompt_ids"][::GROUP],
        prompt_attention=sampled["prompt_mask"][::GROUP].bool(),
        response_ids=sampled["completion_ids"].reshape(PROMPTS, GROUP, -1),
        response_attention=real,
        mask=real,
    )
    assert len({int(length) for length in batch.lengths.flatten()}) > 1, "of unequal length, or this test says little"
    ids = [row[kept].tolist() for row, kept in zip(batch.response_ids.flatten(0, 1), real.flatten(0, 1), strict=True)]
    with torch.no_grad():
        old, fixed = (response_logprobs(model, batch)[0].flatten(0, 1) for model in (tiny_model, reference))
    return sampled, batch, torch.tensor(score(ids)).reshape(PROMPTS, GROUP), old, fixed


@pytest.fixture
def ending(tiny_model: LlamaForCausalLM, reference: LlamaForCausalLM, tmp_path: Path) -> LlamaForCausalLM:
    """The tiny model, more willing to end; it claims to come from where TRL will look for a reference."""
    with torch.no_grad():
        tiny_model.lm_head.weight[1] += 0.3
    reference.save_pretrained(tmp_path / "reference")
    tiny_model.config._name_or_path = str(tmp_path / "reference")
    return tiny_model


@pytest.mark.parametrize(
    ("loss_type", "scale", "normalisation", "advantage"),
    [
        ("grpo", "group", "sequence", group_standardised),
        ("dr_grpo", "none", "constant", group_centred),
        ("dapo", "group", "token", group_standardised),
    ],
)
@pytest.mark.parametrize(("beta", "weighed"), [(0.0, False), (BETA, False), (BETA, True)])
def test_advantages_losses_and_k3_of_groups_are_those_of_trl(
    beta, weighed, loss_type, scale, normalisation, advantage, tmp_path, ending, reference, tiny_tokenizer
) -> None:
    trainer = trl.GRPOTrainer(
        model=copy.deepcopy(ending),
        reward_funcs=score,
        args=trl.GRPOConfig(
            **settings(
                tmp_path, PROMPTS * GROUP, num_generations=GROUP, max_completion_length=LONGEST, beta=beta,
                loss_type=loss_type, scale_rewards=scale, epsilon=0.1, epsilon_high=0.15, num_iterations=2,
                use_bias_correction_kl=weighed,
            )
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS]),
        processing_class=tiny_tokenizer,
    )  # fmt: skip
    sampled, batch, scores, old, fixed = rollout(trainer, ending, reference)
    advantages = advantage(scores)
    torch.testing.assert_close(advantages.flatten(), sampled["advantages"], rtol=1e-5, atol=1e-5)

    with torch.no_grad():  # after an update the ratio is no longer 1
        for model in (ending, trainer.model):
            model.lm_head.weight.mul_(1.4)
    theirs = trainer.compute_loss(trainer.model, sampled)
    mask = batch.mask.flatten(0, 1)
    now = response_logprobs(ending, batch)[0].flatten(0, 1)
    loss, metrics = clipped_surrogate(
        now, old, advantages.reshape(-1, 1).expand_as(now), clip=0.1, clip_high=0.15, mask=mask
    )
    assert 0 < metrics["clip_fraction"].sum() < mask.sum()
    weights = token_weights(mask, normalisation, longest=LONGEST)
    kl_penalty = kl.k3(now, fixed, mask=mask)
    # TRL's default since DeepSeek-V3.2 (arXiv:2512.02556); ours is the GRPO paper's, and `loss-k2-response` another.
    weighed_penalty = kl_penalty * (now - old).exp() if weighed else kl_penalty
    ours = (weights * (loss + beta * weighed_penalty)).sum()
    assert ours.item() == pytest.approx(float(theirs), abs=1e-5)
    found, expected = (
        torch.autograd.grad(x, model.lm_head.weight)[0] for x, model in ((ours, ending), (theirs, trainer.model))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    if beta:
        assert masked_mean(weighed_penalty, mask).item() == pytest.approx(trainer._metrics["eval"]["kl"][-1], abs=1e-5)


def test_rloo_has_trls_advantages_and_before_an_update_its_gradient(
    tmp_path, ending, reference, tiny_tokenizer
) -> None:
    """After an update the two part: TRL clips the ratio of a whole response, ours clips each token's."""
    trainer = trl.RLOOTrainer(
        model=copy.deepcopy(ending),
        reward_funcs=score,
        args=trl.RLOOConfig(
            **settings(tmp_path, PROMPTS * GROUP, num_generations=GROUP, max_completion_length=LONGEST, beta=BETA)
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS]),
        processing_class=tiny_tokenizer,
    )
    sampled, batch, scores, old, fixed = rollout(trainer, ending, reference)
    mask = batch.mask.flatten(0, 1)
    kl_per_response = kl.per_sequence(kl.k1(old, fixed), mask).reshape(PROMPTS, GROUP)
    advantages = leave_one_out(scores - BETA * kl_per_response)
    torch.testing.assert_close(advantages.flatten(), sampled["advantages"], rtol=1e-4, atol=1e-5)

    theirs = trainer.compute_loss(trainer.model, sampled)
    now = response_logprobs(ending, batch)[0].flatten(0, 1)
    loss, _ = clipped_surrogate(now, old, advantages.reshape(-1, 1).expand_as(now), clip=0.2, mask=mask)
    ours = LONGEST * (token_weights(mask, "constant", longest=LONGEST) * loss).sum()  # a sum over tokens, as TRL's is
    found, expected = (
        torch.autograd.grad(x, model.lm_head.weight)[0] for x, model in ((ours, ending), (theirs, trainer.model))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

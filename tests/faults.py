"""Are the tests worth their trust? Plants one fault at a time into a copy of the package and sees a fast test fail.

    python tests/faults.py                              # every fault; exits 1 where one survives
    python tests/faults.py gae k3                       # those of some functions
    python tests/faults.py --write docs/faults.md

A fault is an exact replacement of text. Each function gets the four that go wrong unseen, its sign, a factor, what it
is divided by, which tokens count, or a reason why one of them has no meaning there. Not collected by pytest.
"""

# ruff: noqa: E501  (a fault a line, however long the line it changes)

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import datasets  # noqa: F401  (what takes long to import is imported once, before the processes fork)
import pytest
import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

ROOT = Path(__file__).parents[1]
KINDS = ("sign", "factor", "divisor", "mask")
"""What every function of `objectives` is asked for; a fault of any other kind is welcome besides."""


@dataclass(frozen=True)
class Fault:
    where: str
    kind: str
    what: str
    old: str
    new: str


@dataclass(frozen=True)
class Absent:
    where: str
    kind: str
    why: str


UNREDUCED = "comes back unreduced: who sums divides"
WHOLE = "takes whole responses, no tokens"

TESTS = {
    "data/batching.py": "data/test_batching.py",
    "data/letters.py": "data/test_letters.py",
    "data/message_fields.py": "data/test_template_columns.py",
    "data/read.py": "data/test_read.py",
    "data/template_columns.py": "data/test_template_columns.py",
    "data/unpaired.py": "data/test_template_columns.py",
    "objectives/bradley_terry.py": "objectives/test_bradley_terry.py",
    "objectives/preference.py": "objectives/test_preference.py",
    "objectives/policy.py": "objectives/test_policy.py objectives/test_masked_positions.py",
    "objectives/value.py": "objectives/test_value.py objectives/test_masked_positions.py",
    "objectives/advantage.py": "objectives/test_advantage.py objectives/test_masked_positions.py",
    "objectives/kl.py": "objectives/test_kl.py objectives/test_group_gradients.py objectives/test_masked_positions.py",
    "objectives/reduce.py": "objectives/test_reduce.py objectives/test_microbatches.py objectives/test_masked_positions.py",
    "objectives/logprobs.py": "objectives/test_logprobs.py",
    "objectives/combine.py": "objectives/test_combine.py",
    "models/forward.py": "models/test_forward.py",
    "models/heads.py": "models/test_heads.py",
    "models/lora.py": "models/test_lora.py models/test_adapters.py",
    "models/read_back.py": "models/test_read_back.py",
    "evals/intervals.py": "evals/test_intervals.py checks/test_error_rates.py",
    "evals/best_of_n_curve.py": "evals/test_best_of_n_curve.py",
    "evals/pass_at_k.py": "evals/test_pass_at_k.py",
    "sampling/local.py": "sampling/test_stop_texts.py sampling/test_truncation.py sampling/test_local.py",
    "sampling/stop_texts.py": "sampling/test_stop_texts.py",
    "sampling/truncation.py": "sampling/test_truncation.py",
    "stages/sft.py": "stages/test_sft.py",
    "stages/reward_model.py": "stages/test_reward_model.py",
    "stages/dpo.py": "stages/test_dpo.py",
    "stages/ppo.py": "stages/test_ppo.py",
    "stages/grpo.py": "stages/test_grpo.py",
    "stages/training_configs.py": "stages/test_grpo.py",
    "training/pretraining.py": "stages/test_ppo.py",
    "rollout/rollout.py": "stages/test_ppo.py stages/test_grpo.py",
    "rollout/rollouts.py": "stages/test_ppo.py stages/test_grpo.py",
    "models/inference.py": "stages/test_ppo.py stages/test_grpo.py",
}
"""The fast tests of each file, in the order in which they are run."""

FAULTS: dict[str, list[Fault | Absent]] = {
    "evals/intervals.py": [
        Fault("above", "sign", "an interval that holds the threshold fails", "return True if low > threshold else False if high < threshold else None", "return low > threshold"),
        Fault("effective_pairs", "divisor", "pairs of a prompt count in full", "return n / min(max(effect, 1.0), most) * shrink", "return n * shrink"),
        Fault("effective_pairs", "factor", "all alike counts as independent", "if binomial else most", "if binomial else 1.0"),
        Fault("sums_by_prompt", "mask", "each pair has its own prompt", "return values if prompts is None else", "return values if True else"),
        Fault("difference_interval", "sign", "the wrong ends are taken", "(of_b[1] - b) ** 2", "(b - of_b[0]) ** 2"),
    ],
    "evals/best_of_n_curve.py": [
        Fault("kl_of_best_of_k", "factor", "no jackknife", "n * whole - (n - 1) * without_one", "1 * whole - 0 * without_one"),
        Fault("_mean_without_one", "mask", "the rewards above keep their number", "above = _kl_terms(counts, up_to - 1, n - 1, n)", "above = _kl_terms(counts, up_to, n - 1, n)"),
    ],
    "evals/pass_at_k.py": [
        Fault("pass_at_k", "divisor", "draws with replacement", "1 - comb(n - right, k) / comb(n, k)", "1 - (1 - right / n) ** k"),
        Fault("at_k", "mask", "no opinion is a wrong response", "sum(score > above for score in opinions), k", "sum(score > above for score in opinions), k - len(row) + len(opinions)"),
        Fault("at_k", "sign", "the threshold itself is right", "score > above", "score >= above"),
        Fault("interval", "divisor", "every row has its own prompt", "numbers = number_prompts(prompts)", "numbers = number_prompts(range(len(prompts)))"),
    ],
    "sampling/local.py": [
        Fault("stop", "mask", "the token that completes it is cut off", "(ended.cumsum(-1) - ended) == 0", "ended.cumsum(-1) == 0"),
        Fault("stop", "mask", "tails stay with the rows that retired", "tails = [tails[row] for row in survivors.tolist()] if", "tails = tails[: len(survivors)] if"),
        Fault("draw", "divisor", "truncated before the temperature", "logits, unsure = truncation(logits)", "logits, unsure = truncation(logits * temperature)"),
        Fault("exact", "sign", "the truncated distribution is the trainer's", "and truncation is None", "or truncation is None"),
    ],
    "sampling/stop_texts.py": [
        Fault("_window", "factor", "a token a letter", "2 * max((len(text.encode()) for", "max((len(text) // 2 for"),
        Fault("_search", "mask", "a tail may begin amid a character", "and shift < 3", "and shift < 0"),
        Fault("extend", "mask", "control tokens fill the tail", "            if token not in self._hidden:\n                tail.append(token)\n                del", "            if True:\n                tail.append(token)\n                del"),
        Fault("cut", "sign", "at the last one that begins", "text[: min((at for", "text[: max((at for"),
    ],
    "sampling/truncation.py": [
        Fault("top_k", "sign", "ties with the last of the k are cut", "logits < last", "logits <= last"),
        Fault("top_k", "factor", "one more", "last, next_best = best[:, -2:-1], best[:, -1:]", "last, next_best = best[:, -1:], best[:, -1:]"),
        Fault("top_p", "sign", "the token that crosses p is cut", "- (1 - self.top_p)", "- (1 - self.top_p) - probabilities"),
        Fault("top_p", "mask", "a small p keeps none", "            removed[:, -1] = False\n", ""),
        Fault("top_p", "mask", "tokens in the order of the sort", "removed.scatter(-1, order, removed)", "removed"),
        Fault("min_p", "divisor", "of the whole distribution", "self.min_p * probabilities.amax(-1, keepdim=True)", "self.min_p"),
        Fault("min_p", "sign", "as likely as the least is cut", "distance < 0", "distance <= 0"),
    ],
    "objectives/bradley_terry.py": [
        Fault("pair_loss", "sign", "the lead is the second's", "lead = first - second", "lead = second - first"),
        Fault("pair_loss", "sign", "the margin helps the first", "logsigmoid(lead - margin)", "logsigmoid(lead + margin)"),
        Fault("pair_loss", "sign", "the margin helps the second", "logsigmoid(-lead - margin)", "logsigmoid(-lead + margin)"),
        Fault("pair_loss", "sign", "centring pushes scores away", "loss = loss + centring", "loss = loss - centring"),
        Fault("pair_loss", "sign", "centring holds the lead, not the level", "(first + second).square()", "(first - second).square()"),
        Fault("pair_loss", "factor", "2", "loss = -p * logsigmoid(lead - margin) -", "loss = -2 * p * logsigmoid(lead - margin) - 2 *"),
        Fault("pair_loss", "factor", "centring by 2", "loss = loss + centring *", "loss = loss + 2 * centring *"),
        Absent("pair_loss", "divisor", UNREDUCED),
        Absent("pair_loss", "mask", WHOLE),
        Fault("pair_loss", "metric", "accuracy of the reversed label", "torch.sign(p - 0.5)", "torch.sign(0.5 - p)"),
        Fault("ranking_loss", "sign", "rank 0 is the worst", "ranks[:, j] - ranks[:, i]", "ranks[:, i] - ranks[:, j]"),
        Fault("ranking_loss", "factor", "2", "return loss.view_as(order).mean(-1)", "return 2 * loss.view_as(order).mean(-1)"),
        Fault("ranking_loss", "divisor", "comparisons are summed", "return loss.view_as(order).mean(-1)", "return loss.view_as(order).sum(-1)"),
        Fault("ranking_loss", "mask", "a response is compared with itself", "offset=1", "offset=0"),
        Fault("ranking_loss", "metric", "ties count in the margin", "order.abs().sum(-1).clamp(min=1)", "order.shape[-1]"),
    ],
    "objectives/preference.py": [
        Fault("implicit_rewards", "sign", "of the log-ratio", "policy if reference is None else policy - reference", "policy if reference is None else reference - policy"),
        Fault("implicit_rewards", "factor", "2", "return beta * (ratio", "return 2 * beta * (ratio"),
        Fault("implicit_rewards", "divisor", "the batch's longest response", "ratio / lengths.clamp(min=1)", "ratio / lengths.max().clamp(min=1)"),
        Fault("implicit_rewards", "mask", "one token too few is counted", "ratio / lengths.clamp(min=1)", "ratio / (lengths - 1).clamp(min=1)"),
        Fault("dpo_loss", "sign", "policy and reference exchanged", "return _on_rewards(implicit_rewards(policy, reference, beta=beta), p)", "return _on_rewards(implicit_rewards(reference, policy, beta=beta), p)"),
        Fault("dpo_loss", "sign", "the label turned round", "return _on_rewards(implicit_rewards(policy, reference, beta=beta), p)", "return _on_rewards(implicit_rewards(policy, reference, beta=beta), 1 - p)"),
        Fault("dpo_loss", "factor", "2 on β", "return _on_rewards(implicit_rewards(policy, reference, beta=beta), p)", "return _on_rewards(implicit_rewards(policy, reference, beta=2 * beta), p)"),
        Absent("dpo_loss", "divisor", UNREDUCED),
        Absent("dpo_loss", "mask", WHOLE),
        Fault("smoothed_dpo_loss", "sign", "ε keeps, 1 − ε flips", "smoothed = p * (1 - label_smoothing) + (1 - p) * label_smoothing", "smoothed = p * label_smoothing + (1 - p) * (1 - label_smoothing)"),
        Fault("smoothed_dpo_loss", "sign", "of the flipped part", "+ (1 - p) * label_smoothing", "- (1 - p) * label_smoothing"),
        Fault("smoothed_dpo_loss", "factor", "½ on ε, as a uniform label would have it", "smoothed = p * (1 - label_smoothing) + (1 - p) * label_smoothing", "smoothed = p * (1 - label_smoothing) + label_smoothing / 2"),
        Fault("smoothed_dpo_loss", "factor", "2 on β", "beta=beta), smoothed)", "beta=2 * beta), smoothed)"),
        Absent("smoothed_dpo_loss", "divisor", UNREDUCED),
        Absent("smoothed_dpo_loss", "mask", WHOLE),
        Fault("robust_dpo_loss", "sign", "noise is put in, not taken out", "(p - label_smoothing)", "(p + label_smoothing)"),
        Fault("robust_dpo_loss", "factor", "2 on β", "beta=beta), clean)", "beta=2 * beta), clean)"),
        Fault("robust_dpo_loss", "divisor", "1 − ε for 1 − 2ε", "/ (1 - 2 * label_smoothing)", "/ (1 - label_smoothing)"),
        Absent("robust_dpo_loss", "mask", WHOLE),
        Fault("robust_dpo_loss", "limit", "ε = ½ is let through", "0 <= share < 0.5", "0 <= share <= 0.5"),
        Fault("ipo_loss", "sign", "of the gap", "gap, target = first - second,", "gap, target = second - first,"),
        Fault("ipo_loss", "sign", "of the target", "loss = p * (gap - target)", "loss = p * (gap + target)"),
        Fault("ipo_loss", "factor", "target 1/β for 1/2β", "1 / (2 * beta)", "1 / beta"),
        Fault("ipo_loss", "factor", "2", "loss = p * (gap - target).square() + (1 - p) *", "loss = 2 * p * (gap - target).square() + 2 * (1 - p) *"),
        Fault("ipo_loss", "divisor", "β on the gap, too", "first, second = (policy - reference)", "first, second = (beta * (policy - reference))"),
        Absent("ipo_loss", "mask", WHOLE),
        Fault("simpo_loss", "sign", "γ is given, not demanded", "p, margin=gamma)", "p, margin=-gamma)"),
        Fault("simpo_loss", "factor", "2 on β", "None, beta=beta, lengths=lengths), p, margin", "None, beta=2 * beta, lengths=lengths), p, margin"),
        Fault("simpo_loss", "divisor", "sums, not means", "None, beta=beta, lengths=lengths)", "None, beta=beta)"),
        Fault("simpo_loss", "mask", "one token too many is counted", "None, beta=beta, lengths=lengths)", "None, beta=beta, lengths=lengths + 1)"),
        Fault("length_normalised_dpo_loss", "sign", "policy and reference exchanged", "implicit_rewards(policy, reference, beta=beta, lengths=lengths), p)", "implicit_rewards(reference, policy, beta=beta, lengths=lengths), p)"),
        Fault("length_normalised_dpo_loss", "factor", "2 on β", "reference, beta=beta, lengths=lengths), p)", "reference, beta=2 * beta, lengths=lengths), p)"),
        Fault("length_normalised_dpo_loss", "divisor", "sums, not means", "reference, beta=beta, lengths=lengths), p)", "reference, beta=beta), p)"),
        Fault("length_normalised_dpo_loss", "mask", "one token too many is counted", "reference, beta=beta, lengths=lengths), p)", "reference, beta=beta, lengths=lengths + 1), p)"),
        Fault("plackett_luce_loss", "sign", "of the loss", "return (log_totals - ordered)", "return (ordered - log_totals)"),
        Fault("plackett_luce_loss", "sign", "the worst is chosen first", "order = ranks.argsort(dim=-1)", "order = ranks.argsort(dim=-1).flip(-1)"),
        Fault("plackett_luce_loss", "factor", "2", "return (log_totals - ordered)", "return 2 * (log_totals - ordered)"),
        Fault("plackett_luce_loss", "divisor", "choices are averaged", "(log_totals - ordered).sum(-1)", "(log_totals - ordered).mean(-1)"),
        Fault("plackett_luce_loss", "mask", "who was chosen stays in for another turn", "tril(-1)", "tril(-2)"),
        Fault("plackett_luce_loss", "metric", "best and last exchanged", '"chosen_reward": scores[:, 0], "rejected_reward": scores[:, -1]', '"chosen_reward": scores[:, -1], "rejected_reward": scores[:, 0]'),
        Fault("every pair loss", "metric", "the response that the label disfavours is the chosen one", "(p < 0.5).long()", "(p > 0.5).long()"),
    ],
    "objectives/policy.py": [
        Fault("clipped_surrogate", "sign", "of the objective", "return -objective, metrics", "return objective, metrics"),
        Fault("clipped_surrogate", "sign", "of the log-ratio", "ratio = (logprobs - old_logprobs).exp()", "ratio = (old_logprobs - logprobs).exp()"),
        Fault("clipped_surrogate", "sign", "the optimistic side of the clip", "torch.minimum(free, clipped)", "torch.maximum(free, clipped)"),
        Fault("clipped_surrogate", "factor", "2", "return -objective, metrics", "return -2 * objective, metrics"),
        Fault("clipped_surrogate", "factor", "½ on the lower clip", "low, high = 1 - clip,", "low, high = 1 - clip / 2,"),
        Fault("clipped_surrogate", "factor", "2 on the upper clip", "1 + (clip if clip_high is None else clip_high)", "1 + 2 * (clip if clip_high is None else clip_high)"),
        Absent("clipped_surrogate", "divisor", UNREDUCED),
        Fault("clipped_surrogate", "mask", "advantages of masked tokens are left in", "advantages = torch.where(mask, advantages, 0)", "advantages = advantages * 1"),
        Fault("clipped_surrogate", "mask", "off by one", "logprobs, old_logprobs = torch.where", "mask = mask.roll(1, -1)\n    logprobs, old_logprobs = torch.where"),
        Fault("clipped_surrogate", "mask", "masked tokens have a ratio", "torch.where(mask, ratio, 0).detach()", "ratio.detach()"),
        Fault("clipped_surrogate", "clip-high", "is not used", "(clip if clip_high is None else clip_high)", "clip"),
        Fault("clipped_surrogate", "clip-high", "is the lower clip, too", "low, high = 1 - clip,", "low, high = 1 - (clip_high or clip),"),
        Fault("clipped_surrogate", "metric", "tokens within the clip count as clipped", "(clipped < free)", "(clipped <= free)"),
        Fault("clipped_surrogate", "metric", "approximate KL the other way", "kl.k3(old_logprobs, logprobs)", "kl.k3(logprobs, old_logprobs)"),
        Fault("truncated_importance", "sign", "of the log-ratio", "gap.detach().exp()", "(-gap.detach()).exp()"),
        Fault("truncated_importance", "factor", "2", "return torch.where(mask, gap", "return 2 * torch.where(mask, gap"),
        Fault("truncated_importance", "factor", "2 on the limit", "clamp(max=limit)", "clamp(max=2 * limit)"),
        Absent("truncated_importance", "divisor", "a weight, not a loss"),
        Fault("truncated_importance", "mask", "masked tokens weigh 1", "torch.where(mask, gap.detach().exp().clamp(max=limit), 0)", "gap.detach().exp().clamp(max=limit)"),
        Fault("truncated_importance", "gradient", "flows", "gap.detach().exp()", "gap.exp()"),
    ],
    "objectives/value.py": [
        Fault("clipped_value_loss", "sign", "of the loss", "return torch.maximum(free, clipped) / 2", "return -torch.maximum(free, clipped) / 2"),
        Fault("clipped_value_loss", "sign", "the smaller error counts", "torch.maximum(free, clipped)", "torch.minimum(free, clipped)"),
        Fault("clipped_value_loss", "factor", "the ½ is gone", "return torch.maximum(free, clipped) / 2", "return torch.maximum(free, clipped)"),
        Fault("clipped_value_loss", "factor", "the ½ is gone without a clip", "return free / 2", "return free"),
        Fault("clipped_value_loss", "factor", "2 on the clip", "old_values - clip, old_values + clip", "old_values - 2 * clip, old_values + 2 * clip"),
        Absent("clipped_value_loss", "divisor", UNREDUCED),
        Fault("clipped_value_loss", "mask", "masked returns are left in", "returns = torch.where(mask, returns, 0)\n    free", "free"),
        Fault("clipped_value_loss", "mask", "off by one", "values, old_values = torch.where(mask, values, 0)", "mask = mask.roll(1, -1)\n    values, old_values = torch.where(mask, values, 0)"),
        Fault("clipped_value_loss", "metric", "the free ones count as clipped", "(clipped > free)", "(clipped < free)"),
        Fault("explained_variance", "sign", "errors explain", "1 - variance(returns - values)", "1 + variance(returns - values)"),
        Fault("explained_variance", "sign", "of the values", "variance(returns - values)", "variance(returns + values)"),
        Fault("explained_variance", "factor", "2", "variance(returns - values) / total", "2 * variance(returns - values) / total"),
        Fault("explained_variance", "divisor", "the values' variance", "total = variance(returns)", "total = variance(values)"),
        Fault("explained_variance", "mask", "off by one", "values, returns = torch.where(mask, values.detach(), 0)", "mask = mask.roll(1, -1)\n    values, returns = torch.where(mask, values.detach(), 0)"),
    ],
    "objectives/advantage.py": [
        Fault("token_rewards", "sign", "of the KL penalty", "return -beta * torch.where", "return beta * torch.where"),
        Fault("token_rewards", "factor", "2 on β", "return -beta * torch.where", "return -2 * beta * torch.where"),
        Fault("token_rewards", "divisor", "the KL penalty is a mean of tokens", "return -beta * torch.where(mask, kl, 0)", "return -beta * torch.where(mask, kl, 0) / mask.sum(-1, keepdim=True).clamp(min=1)"),
        Fault("token_rewards", "mask", "the score stands one token early", "(remaining == 1)", "(remaining == 2)"),
        Fault("token_rewards", "mask", "the score stands on the last place, padding or not", "last = mask & (remaining == 1)", "last = torch.zeros_like(mask).index_fill(-1, torch.tensor(mask.shape[-1] - 1), True)"),
        Fault("gae", "sign", "of the value", "* next_value - values[:, t]", "* next_value + values[:, t]"),
        Fault("gae", "sign", "returns are advantages less values", "return advantages, advantages + values", "return advantages, advantages - values"),
        Fault("gae", "factor", "γ is left out of γλ", "gamma * lam * next_advantage", "lam * next_advantage"),
        Fault("gae", "factor", "λ is left out of γλ", "gamma * lam * next_advantage", "gamma * next_advantage"),
        Fault("gae", "factor", "γ is left out of the error", "gamma * next_value", "next_value"),
        Absent("gae", "divisor", "nothing is divided"),
        Fault("gae", "mask", "padding's value is the next one's", "next_value = torch.where(here, values[:, t], next_value)", "next_value = values[:, t]"),
        Fault("gae", "mask", "padding's advantage is the next one's", "next_advantage = torch.where(here, advantage, next_advantage)", "next_advantage = torch.where(here, advantage, 0)"),
        Fault("gae", "mask", "one token is left out", "reversed(range(values.shape[1]))", "reversed(range(1, values.shape[1]))"),
        Fault("gae", "gradient", "flows through the targets", "with torch.no_grad():", "with torch.enable_grad():"),
        Fault("group_centred", "sign", "of the advantage", "from_first - from_first.sum(-1, keepdim=True) / _responses(scores, mask), 0)", "from_first.sum(-1, keepdim=True) / _responses(scores, mask) - from_first, 0)"),
        Fault("group_centred", "factor", "2", "return torch.where(counts, from_first -", "return 2 * torch.where(counts, from_first -"),
        Fault("group_centred", "divisor", "the mean of all groups", "from_first.sum(-1, keepdim=True) / _responses(scores, mask)", "from_first.mean()"),
        Fault("group_centred", "mask", "a response without a score counts in the mean", "from_first.sum(-1, keepdim=True) / _responses(scores, mask)", "from_first.mean(-1, keepdim=True)"),
        Fault("group_standardised", "sign", "of the advantage", "return group_centred(scores, mask=mask) / (", "return -group_centred(scores, mask=mask) / ("),
        Fault("group_standardised", "factor", "2", "return group_centred(scores, mask=mask) / (", "return 2 * group_centred(scores, mask=mask) / ("),
        Fault("group_standardised", "divisor", "ε below the root", "(group_deviation(scores, mask=mask) + eps)", "(group_deviation(scores, mask=mask).square() + eps).sqrt()"),
        Fault("group_standardised", "mask", "the deviation of all", "(group_deviation(scores, mask=mask) + eps)", "(group_deviation(scores) + eps)"),
        Absent("group_deviation", "sign", "a deviation has none"),
        Fault("group_deviation", "factor", "2", "return torch.where(varies, variance.sqrt(), 0)", "return torch.where(varies, 2 * variance.sqrt(), 0)"),
        Fault("group_deviation", "divisor", "the variance", "return torch.where(varies, variance.sqrt(), 0)", "return torch.where(varies, variance, 0)"),
        Fault("group_deviation", "divisor", "the deviation with K", "torch.where(varies, squares, 1) / (_responses(scores, mask) - 1).clamp(min=1)", "torch.where(varies, squares, 1) / _responses(scores, mask)"),
        Fault("group_deviation", "mask", "a response without a score counts", "torch.where(varies, squares, 1) / (_responses(scores, mask) - 1).clamp(min=1)", "torch.where(varies, squares, 1) / (scores.shape[-1] - 1)"),
        Fault("leave_one_out", "sign", "of the advantage", "return group_centred(scores, mask=mask) * (", "return -group_centred(scores, mask=mask) * ("),
        Fault("leave_one_out", "factor", "(K − 1)/K", "(responses / (responses - 1).clamp(min=1))", "((responses - 1) / responses)"),
        Fault("leave_one_out", "divisor", "the mean holds the response itself", "* (responses / (responses - 1).clamp(min=1))", "* 1"),
        Fault("leave_one_out", "mask", "a response without a score is one of the others", "    responses = _responses(scores, mask)\n", "    responses = _responses(scores, None)\n"),
    ],
    "objectives/kl.py": [
        Fault("k1", "sign", "of the log-ratio", "return _log_ratio(policy, reference, mask)\n", "return -_log_ratio(policy, reference, mask)\n"),
        Fault("k1", "factor", "2", "return _log_ratio(policy, reference, mask)\n", "return 2 * _log_ratio(policy, reference, mask)\n"),
        Absent("k1", "divisor", UNREDUCED),
        Fault("k1", "mask", "only the policy is masked", "torch.where(mask, policy, 0) - torch.where(mask, reference, 0)", "torch.where(mask, policy, 0) - reference"),
        Fault("k1", "mask", "off by one", "    return torch.where(mask, policy, 0) -", "    mask = mask.roll(1, -1)\n    return torch.where(mask, policy, 0) -"),
        Fault("k2", "sign", "of the estimate", "return _log_ratio(policy, reference, mask).square() / 2", "return -_log_ratio(policy, reference, mask).square() / 2"),
        Fault("k2", "factor", "the ½ is gone", "return _log_ratio(policy, reference, mask).square() / 2", "return _log_ratio(policy, reference, mask).square()"),
        Absent("k2", "divisor", UNREDUCED),
        Fault("k2", "mask", "is not used", "return _log_ratio(policy, reference, mask).square()", "return _log_ratio(policy, reference, None).square()"),
        Fault("k3", "sign", "the ratio the other way", "torch.expm1(-ratio) + ratio", "torch.expm1(ratio) - ratio"),
        Fault("k3", "sign", "of the control variate", "torch.expm1(-ratio) + ratio", "torch.expm1(-ratio) - ratio"),
        Fault("k3", "factor", "2", "return torch.expm1(-ratio) + ratio", "return 2 * (torch.expm1(-ratio) + ratio)"),
        Absent("k3", "divisor", UNREDUCED),
        Fault("k3", "mask", "is not used", "ratio = _log_ratio(policy, reference, mask)\n    return torch", "ratio = _log_ratio(policy, reference, None)\n    return torch"),
        Fault("k3", "digits", "the ones cancel", "torch.expm1(-ratio) + ratio", "torch.exp(-ratio) - 1 + ratio"),
        Fault("k2_of_responses", "sign", "of the loss", "return ratio * ratio.sum(-1, keepdim=True) / 2", "return -ratio * ratio.sum(-1, keepdim=True) / 2"),
        Fault("k2_of_responses", "factor", "the ½ is gone", "return ratio * ratio.sum(-1, keepdim=True) / 2", "return ratio * ratio.sum(-1, keepdim=True)"),
        Fault("k2_of_responses", "divisor", "the response's mean", "ratio * ratio.sum(-1, keepdim=True)", "ratio * ratio.mean(-1, keepdim=True)"),
        Fault("k2_of_responses", "mask", "is not used", "ratio = _log_ratio(policy, reference, mask)\n    return ratio", "ratio = _log_ratio(policy, reference, None)\n    return ratio"),
        Fault("exact", "sign", "of the log-ratio", "probability > 0, policy - reference", "probability > 0, reference - policy"),
        Fault("exact", "sign", "the forward KL", "probability = policy.exp()", "probability = reference.exp()"),
        Fault("exact", "factor", "2", "return (probability * torch", "return (2 * probability * torch"),
        Fault("exact", "divisor", "a mean over the vocabulary", "policy - reference, 0)).sum(-1)", "policy - reference, 0)).mean(-1)"),
        Fault("exact", "mask", "0 · ∞ of tokens that π never takes", "torch.where(probability > 0, policy - reference, 0)", "(policy - reference)"),
        Fault("per_sequence", "sign", "of the sum", "return masked_sum(x, mask, dim=-1)", "return -masked_sum(x, mask, dim=-1)"),
        Fault("per_sequence", "factor", "2", "return masked_sum(x, mask, dim=-1)", "return 2 * masked_sum(x, mask, dim=-1)"),
        Fault("per_sequence", "divisor", "a mean of tokens", "return masked_sum(x, mask, dim=-1)", "return masked_sum(x, mask, dim=-1) / mask.sum(-1).clamp(min=1)"),
        Fault("per_sequence", "mask", "the last token is left out", "return masked_sum(x, mask, dim=-1)", "return masked_sum(x, mask & mask.roll(-1, -1), dim=-1)"),
        Fault("adapt_beta", "sign", "β falls where the KL is too large", "(1 + error *", "(1 - error *"),
        Fault("adapt_beta", "factor", "2 on the clip", "-0.2), 0.2)", "-0.4), 0.4)"),
        Fault("adapt_beta", "divisor", "the horizon is not counted in samples", "error * samples / horizon", "error / horizon"),
        Absent("adapt_beta", "mask", "numbers, no tokens"),
    ],
    "objectives/logprobs.py": [
        Fault("token_logprobs", "sign", "of the normaliser", ".squeeze(-1) - normaliser", ".squeeze(-1) + normaliser"),
        Fault("token_logprobs", "sign", "of the entropy", "entropy = torch.special", "entropy = -torch.special"),
        Fault("token_logprobs", "factor", "the temperature multiplies", "project_float(project, states) / temperature", "project_float(project, states) * temperature"),
        Fault("token_logprobs", "factor", "2 on the logits", "logits = project_float(project, states) / temperature", "logits = 2 * project_float(project, states) / temperature"),
        Fault("token_logprobs", "divisor", "the normaliser lacks the temperature", "normaliser = logits.logsumexp(-1)", "normaliser = (logits * temperature).logsumexp(-1)"),
        Fault("token_logprobs", "mask", "off by one: the next state's token", "tokens.long(), chunk_size", "tokens.long().roll(1), chunk_size"),
        Fault("token_logprobs", "gradient", "flows through the entropy", "with torch.no_grad():  # entr(0)", "with torch.enable_grad():  # entr(0)"),
        Fault("by_chunks", "memory", "plain autograd keeps every chunk", "checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)", "function(*chunk)"),
    ],
    "objectives/combine.py": [
        Fault("combine_scores", "sign", "of the penalty", "mean - variance_penalty", "mean + variance_penalty"),
        Fault("combine_scores", "sign", "the best in place of the worst", "scores.amin(-1)", "scores.amax(-1)"),
        Fault("combine_scores", "factor", "2", "mean - variance_penalty", "mean - 2 * variance_penalty"),
        Fault("combine_scores", "divisor", "M − 1", "correction=0", "correction=1"),
        Absent("combine_scores", "mask", "every member counts"),
    ],
    "objectives/reduce.py": [
        Fault("masked_sum", "sign", "of the sum", "return torch.where(mask, x, 0).sum(dim)", "return -torch.where(mask, x, 0).sum(dim)"),
        Fault("masked_sum", "factor", "2", "return torch.where(mask, x, 0).sum(dim)", "return 2 * torch.where(mask, x, 0).sum(dim)"),
        Fault("masked_sum", "divisor", "a mean over all places", "return torch.where(mask, x, 0).sum(dim)", "return torch.where(mask, x, 0).mean(dim)"),
        Fault("masked_sum", "mask", "turned round", "return torch.where(mask, x, 0)", "return torch.where(mask, 0, x)"),
        Fault("masked_sum", "mask", "NaN · 0", "return torch.where(mask, x, 0)", "return (x * mask)"),
        Fault("masked_mean", "sign", "of the mean", "return masked_sum(x, mask, dim) / mask", "return -masked_sum(x, mask, dim) / mask"),
        Fault("masked_mean", "factor", "2", "return masked_sum(x, mask, dim) / mask", "return 2 * masked_sum(x, mask, dim) / mask"),
        Fault("masked_mean", "divisor", "all places", "mask.sum(dim).clamp(min=1)", "torch.ones_like(mask).sum(dim).clamp(min=1)"),
        Fault("masked_mean", "mask", "nothing kept is NaN", "mask.sum(dim).clamp(min=1)", "mask.sum(dim)"),
        Fault("masked_whiten", "sign", "of the mean", "torch.where(mask, x - mean, 0)", "torch.where(mask, x + mean, 0)"),
        Fault("masked_whiten", "sign", "the mean is taken off twice", "whitened + mean, 0)", "whitened - mean, 0)"),
        Fault("masked_whiten", "factor", "2", "whitened = centred * torch", "whitened = 2 * centred * torch"),
        Fault("masked_whiten", "divisor", "the variance", "centred * torch.rsqrt(masked_mean(centred.square(), mask) + 1e-8)", "centred / (masked_mean(centred.square(), mask) + 1e-8)"),
        Fault("masked_whiten", "divisor", "n − 1", "masked_mean(centred.square(), mask) + 1e-8", "masked_sum(centred.square(), mask) / (mask.sum() - 1) + 1e-8"),
        Fault("masked_whiten", "mask", "masked places get minus the mean", "centred = torch.where(mask, x - mean, 0)", "centred = torch.where(mask, x, 0) - mean"),
        Fault("token_weights", "sign", "of the weight", "return mask / tokens", "return -1 * mask / tokens"),
        Fault("token_weights", "factor", "2", "return mask / tokens", "return 2 * mask / tokens"),
        Fault("token_weights", "divisor", "token: the places, not the tokens", '"token": mask.sum()', '"token": torch.ones_like(mask).sum()'),
        Fault("token_weights", "divisor", "sequence: the responses are summed", "mask.sum(-1, keepdim=True) * len(mask)", "mask.sum(-1, keepdim=True)"),
        Fault("token_weights", "divisor", "constant: the length is left out", "len(mask) * longest", "len(mask)"),
        Fault("token_weights", "divisor", "constant: the responses are left out", "len(mask) * longest", "longest"),
        Fault("token_weights", "divisor", "constant: the rollout's longest, not the longest allowed", "len(mask) * longest", "len(mask) * mask.shape[-1]"),
        Fault("token_weights", "mask", "masked tokens weigh, too", "return mask / tokens.clamp(min=1)", "return torch.ones_like(mask) / tokens.clamp(min=1)"),
        Fault("token_weights", "mask", "off by one", "return mask / tokens", "return mask.roll(1, -1) / tokens"),
    ],
    "models/forward.py": [
        Absent("response_logprobs", "sign", "see token_logprobs"),
        Fault("response_logprobs", "factor", "the temperature is not passed on", "        temperature=temperature,\n        chunk_size", "        chunk_size"),
        Absent("response_logprobs", "divisor", UNREDUCED),
        Fault("response_logprobs", "mask", "forced tokens count", "    states = response_states(model, batch, back_end=back_end)\n    logprobs, entropy", "    states = response_states(model, batch, back_end=back_end)\n    batch = __import__('dataclasses').replace(batch, mask=batch.response_attention, index=None)\n    logprobs, entropy"),
        Fault("response_logprobs", "mask", "off by one: a token is predicted from itself", "states.flatten(0, 2)[batch.token_index],", "states.roll(-1, 2).flatten(0, 2)[batch.token_index],"),
        Fault("response_logprobs", "mask", "off by one: the token before", "batch.response_ids.flatten()[batch.token_index],", "batch.response_ids.roll(1, -1).flatten()[batch.token_index],"),
        Fault("rows", "shift", "a token is predicted from two before", "ends = width - 1 - padding", "ends = (width - 2 - padding).clamp_min(0)"),
        Fault("rows", "shift", "a token is predicted from itself", "ends = width - 1 - padding", "ends = width - padding"),
        Fault("rows", "mask", "the prompt's padding is seen", "ids.gather(1, (place + padding) % length)", "ids.gather(1, (place + padding.amin()).expand_as(ids) % length).clone()"),
        Fault("rows", "order", "prompts take turns, responses do not", "prompt.repeat_interleave(responses, 0)", "prompt.repeat(responses, 1)"),
        Fault("joined", "shift", "the first token is predicted from two before", "first = states[:, None, width - 1 : width]", "first = states[:, None, width - 2 : width - 1]"),
        Fault("joined", "shift", "the responses' places begin one early", "after = (prompt[:, -1:, None] + attention", "after = (prompt[:, -1:, None] - 1 + attention"),
        Fault("joined", "shift", "the responses' places go on from each other", "after = (prompt[:, -1:, None] + attention.long().cumsum(-1)).flatten(1)", "after = prompt[:, -1:] + attention.flatten(1).long().cumsum(-1)"),
        Fault("joined", "mask", "the prompt's padding is seen", "mask = (visible & real[:, None])", "mask = visible.expand(len(real), -1, -1)"),
        Fault("joined", "mask", "a response sees those before it", "((part == 0) | (part[:, None] == part))", "((part == 0) | (part[:, None] >= part))"),
        Fault("joined", "mask", "a response does not see the prompt", "((part == 0) | (part[:, None] == part))", "(part[:, None] == part)"),
        Fault("joined", "mask", "what comes later is seen", "visible = (place[:, None] >= place) & ", "visible = "),
        Fault("shared prompt", "shift", "the first token is predicted from two before", "first = states[:, -1:]", "first = states[:, -2:][:, :1]"),
        Fault("shared prompt", "shift", "the responses' places begin one early", "position_ids=start + mask.cumsum(-1)", "position_ids=start + mask.cumsum(-1) - 1"),
        Fault("shared prompt", "shift", "the responses' places begin one late", "position_ids=start + mask.cumsum(-1)", "position_ids=start + mask.cumsum(-1) + 1"),
        Fault("shared prompt", "mask", "the prompt's padding is seen", "attention.long().repeat_interleave(responses, 0), mask", "torch.ones_like(attention).long().repeat_interleave(responses, 0), mask"),
        Fault("shared prompt", "order", "the first states take turns", "first = states[:, -1:].repeat_interleave(responses, 0)", "first = states[:, -1:].repeat(responses, 1, 1)"),
        Fault("prompt_positions", "shift", "places begin at 1", "attention.long().cumsum(-1) - 1)", "attention.long().cumsum(-1))"),
        Fault("prompt_positions", "mask", "padding counts", "return (attention.long().cumsum(-1)", "return (torch.ones_like(attention).long().cumsum(-1)"),
        Fault("response_scores", "sign", "of the centring offset", "return scores - centring_offset(model)", "return scores + centring_offset(model)"),
        Fault("response_scores", "factor", "2", "return scores - centring_offset(model)", "return 2 * scores - centring_offset(model)"),
        Absent("response_scores", "divisor", "one score a response"),
        Fault("response_scores", "mask", "read one token early", "last = batch.lengths[", "last = (batch.lengths - 1).clamp(min=0)["),
        Fault("response_scores", "mask", "read at the last place, padding or not", "last = batch.lengths[", "last = torch.full_like(batch.lengths, batch.shape[2])["),
        Fault("projection", "factor", "the cap of the logits is left out", "return logits if cap is None else cap * torch.tanh(logits / cap)", "return logits"),
        Fault("projection", "divisor", "the model's own divisor is left out", "logits = logits / divisor", "logits = logits * 1"),
    ],
    "models/heads.py": [
        Absent("values", "sign", "a linear map: training takes any"),
        Absent("values", "factor", "likewise"),
        Absent("values", "divisor", UNREDUCED),
        Fault("values", "mask", "off by one: V of the state after the token", "back_end=back_end).flatten(0, 2)[batch.token_index]", "back_end=back_end).roll(-1, 2).flatten(0, 2)[batch.token_index]"),
        Fault("values", "mask", "padding has values", "back_end=back_end).flatten(0, 2)[batch.token_index]\n    result = model.head(states).squeeze(-1)\n    return scatter(result.to(torch.promote_types(result.dtype, torch.float32)), batch)", "back_end=back_end)\n    result = model.head(states).squeeze(-1)\n    return result.to(torch.promote_types(result.dtype, torch.float32))"),
    ],
    "models/lora.py": [
        Fault("as_it_came", "reference", "the adapter that is trained is its own reference", "set_adapter(model, REFERENCE, inference_mode=True)", "set_adapter(model, name)"),
        Fault("as_it_came", "reference", "new adapters stay on", "layer.enable_adapters(False)", "layer.enable_adapters(True)"),
        Fault("keep_reference", "reference", "the copy has the first weights of a new adapter", "tensor.copy_(state[original])", "pass"),
    ],
    "models/read_back.py": [
        Fault("compare_tensors", "bits", "equal as numbers is enough", "_bits(stored), _bits(tensor)", "stored.round(decimals=3), tensor.round(decimals=3)"),
        Fault("compare_outputs", "tolerance", "is a nat", "TOLERANCE = 1e-3", "TOLERANCE = 1.0"),
    ],
    "stages/sft.py": [
        Fault("update", "sign", "of the loss", "loss = -masked_sum(logprobs, batch.mask) / tokens", "loss = masked_sum(logprobs, batch.mask) / tokens"),
        Fault("update", "factor", "2", "loss = -masked_sum(logprobs, batch.mask) / tokens", "loss = -2 * masked_sum(logprobs, batch.mask) / tokens"),
        Fault("update", "divisor", "the micro-batch's tokens", "loss = -masked_sum(logprobs, batch.mask) / tokens", "loss = -masked_sum(logprobs, batch.mask) / batch.mask.sum()"),
        Fault("update", "divisor", "the rows", "loss = -masked_sum(logprobs, batch.mask) / tokens", "loss = -masked_sum(logprobs, batch.mask) / len(groups)"),
        Fault("update", "mask", "the end token is not trained", "loss = -masked_sum(logprobs, batch.mask)", "loss = -masked_sum(logprobs, batch.mask & batch.mask.roll(-1, -1))"),
        Fault("mean_loss", "divisor", "the mean of the rows' means", "float(nats / tokens)", "float((losses[:, 0] / losses[:, 1]).mean())"),
    ],
    "stages/reward_model.py": [
        Absent("update", "sign", "see pair_loss"),
        Fault("update", "factor", "2", "optimizer.backward(loss.mean(-1).sum() / len(groups))", "optimizer.backward(2 * loss.mean(-1).sum() / len(groups))"),
        Fault("update", "divisor", "the micro-batch's pairs", "optimizer.backward(loss.mean(-1).sum() / len(groups))", "optimizer.backward(loss.mean(-1).mean())"),
        Absent("update", "mask", WHOLE),
        Fault("update", "sign", "the offset of the start is added", ".float() - centring_offset(model)", ".float() + centring_offset(model)"),
        Fault("group_loss", "margin", "is not passed on", "p=p, margin=config.margin, centring=config.centring", "p=p, centring=config.centring"),
        Fault("group_loss", "centring", "is not passed on", "p=p, margin=config.margin, centring=config.centring", "p=p, margin=config.margin"),
        Fault("group_loss", "centring", "is not passed on to rankings", "ranking_loss(scores, ranks, centring=config.centring)", "ranking_loss(scores, ranks)"),
        Fault("centre", "sign", "of the offset", "model.config.kleash_offset = float(torch.cat(", "model.config.kleash_offset = -float(torch.cat("),
    ],
    "stages/dpo.py": [
        Fault("update", "sign", "policy and reference exchanged", "group_loss(policy, reference, batch.mask.sum(-1)", "group_loss(reference, policy, batch.mask.sum(-1)"),
        Fault("update", "factor", "2", "optimizer.backward(loss.sum() / len(groups))", "optimizer.backward(2 * loss.sum() / len(groups))"),
        Fault("update", "divisor", "the micro-batch's pairs", "optimizer.backward(loss.sum() / len(groups))", "optimizer.backward(loss.mean())"),
        Fault("update", "mask", "the last token is left out", "policy = masked_sum(logprobs, batch.mask, -1)", "policy = masked_sum(logprobs, batch.mask & batch.mask.roll(-1, -1), -1)"),
        Fault("sft term", "sign", "the chosen response is pushed down", "loss = loss - config.sft_coefficient", "loss = loss + config.sft_coefficient"),
        Fault("sft term", "factor", "2", "loss = loss - config.sft_coefficient", "loss = loss - 2 * config.sft_coefficient"),
        Fault("sft term", "divisor", "the response, not a token", "config.sft_coefficient * chosen / tokens", "config.sft_coefficient * chosen"),
        Fault("sft term", "mask", "one token too many is counted", "chosen / tokens\n    metrics", "chosen / (tokens + 1)\n    metrics"),
        Fault("sft term", "label", "of the rejected response", "return (0, 1) if _probability(group) >= 0.5 else (1, 0)", "return (1, 0) if _probability(group) >= 0.5 else (0, 1)"),
        Fault("simpo", "factor", "γ is not in units of β", '"gamma": config.gamma_ratio * config.beta', '"gamma": config.gamma_ratio'),
        Fault("smoothed and robust", "label", "ε is not passed on", '{"label_smoothing": config.label_smoothing,', '{"label_smoothing": 0.0,'),
        Fault("every pair loss", "label", "soft labels are rounded", "p = policy.new_tensor([_probability(group.source) for group in groups])", "p = policy.new_tensor([round(_probability(group.source)) for group in groups])"),
        Fault("every pair loss", "label", "a pair ranked 1, 0 is read as 0, 1", "return p if first == 0 else 1 - p", "return p"),
    ],
    "stages/ppo.py": [
        Fault("KL penalty", "factor", "2 on β", "rollout.kl_per_token[:, 0], beta=beta, mask=mask)", "rollout.kl_per_token[:, 0], beta=2 * beta, mask=mask)"),
        Fault("KL penalty", "divisor", "a mean over the response", "rollout.kl_per_token[:, 0], beta=beta", "rollout.kl_per_token[:, 0] / mask.sum(-1, keepdim=True), beta=beta"),
        Fault("KL penalty", "mask", "the first token is free", "rollout.kl_per_token[:, 0], beta=beta", "rollout.kl_per_token[:, 0] * (torch.arange(mask.shape[1]) > 0), beta=beta"),
        Absent("KL penalty", "sign", "see rollout/rollout.py"),
        Fault("policy loss", "sign", "of the loss", "optimizers.policy.backward(policy_loss)", "optimizers.policy.backward(-policy_loss)"),
        Fault("policy loss", "factor", "2", "optimizers.policy.backward(policy_loss)", "optimizers.policy.backward(2 * policy_loss)"),
        Fault("policy loss", "divisor", "the micro-batch's tokens", "masked_sum(loss, mask) / tokens, masked", "masked_sum(loss, mask) / mask.sum(), masked"),
        Fault("policy loss", "mask", "the last token is left out", "masked_sum(loss, mask) / tokens, masked", "masked_sum(loss, mask & mask.roll(-1, -1)) / tokens, masked"),
        Fault("value loss", "sign", "of the loss", "config.value_coefficient * value_loss)", "-config.value_coefficient * value_loss)"),
        Fault("value loss", "factor", "2", "config.value_coefficient * value_loss)", "2 * config.value_coefficient * value_loss)"),
        Fault("value loss", "divisor", "the micro-batch's tokens", "masked_sum(value_loss, mask) / tokens", "masked_sum(value_loss, mask) / mask.sum()"),
        Fault("value loss", "mask", "the last token is left out", "masked_sum(value_loss, mask) / tokens", "masked_sum(value_loss, mask & mask.roll(-1, -1)) / tokens"),
        Fault("value loss", "clip", "is the policy's", "clip=config.value_clip", "clip=config.clip"),
        Fault("whitening", "divisor", "advantages keep their mean", "advantages = masked_whiten(advantages, mask)", "advantages = masked_whiten(advantages, mask, shift_mean=False)"),
        Fault("whitening", "mask", "padding is whitened, too", "advantages = masked_whiten(advantages, mask)", "advantages = masked_whiten(advantages, torch.ones_like(mask))"),
        Fault("whitening", "sign", "whitened rewards lose their mean", "rewards = masked_whiten(rewards, mask, shift_mean=False)", "rewards = masked_whiten(rewards, mask)"),
        Absent("whitening", "factor", "see masked_whiten"),
        Fault("first ratio", "gate", "is not looked at", "        if first:\n", "        if False:\n"),
        Fault("first ratio", "gate", "is compared with itself", "part, logprobs.detach(), old_logprobs,", "part, logprobs.detach(), logprobs.detach(),"),
        Fault("temperature", "factor", "is missing in training", "response_logprobs(parts.policy, part, temperature=config.temperature)", "response_logprobs(parts.policy, part)"),
        Fault("missing end", "sign", "who ended is punished", "torch.where(rollout.finished[:, 0].bool(), scores,", "torch.where(~rollout.finished[:, 0].bool(), scores,"),
        Fault("reward clip", "sign", "only from above", "scores.clamp(-config.reward_clip, config.reward_clip)", "scores.clamp(max=config.reward_clip)"),
    ],
    "training/pretraining.py": [
        Fault("pretraining", "sign", "demonstrations are unlearned", "loss = -masked_sum(logprobs, batch.mask) / tokens", "loss = masked_sum(logprobs, batch.mask) / tokens"),
        Fault("pretraining", "factor", "the coefficient is left out", "optimizer.backward(self.coefficient * loss)", "optimizer.backward(loss)"),
        Fault("pretraining", "divisor", "the micro-batch's tokens", "loss = -masked_sum(logprobs, batch.mask) / tokens", "loss = -masked_sum(logprobs, batch.mask) / batch.mask.sum()"),
        Absent("pretraining", "mask", "see response_logprobs"),
    ],
    "stages/grpo.py": [
        Fault("KL penalty in the reward", "sign", "KL is rewarded", "scores - config.beta * rollout.kl", "scores + config.beta * rollout.kl"),
        Fault("KL penalty in the reward", "factor", "2 on β", "scores - config.beta * rollout.kl", "scores - 2 * config.beta * rollout.kl"),
        Fault("KL penalty in the reward", "divisor", "a mean over the response", "scores - config.beta * rollout.kl", "scores - config.beta * rollout.kl / rollout.batch.lengths"),
        Absent("KL penalty in the reward", "mask", "see rollout/rollout.py"),
        Fault("KL penalty in the reward", "where", "acts where it stands in the loss, too", 'if config.kl_in == "reward":\n', "if True:\n"),
        Fault("KL penalty in the loss", "where", "acts where it stands in the reward, too", 'if config.kl_in != "reward":\n            estimator', "if True:\n            estimator"),
        Fault("KL penalty in the loss", "where", "k3 and k2 of responses exchanged", 'if config.kl_in == "loss-k3" else', 'if config.kl_in != "loss-k3" else'),
        Fault("KL penalty in the loss", "sign", "KL is rewarded", "optimizer.backward(policy_loss + kl_loss)", "optimizer.backward(policy_loss - kl_loss)"),
        Fault("KL penalty in the loss", "factor", "2 on β", "kl_loss = config.beta * (weight", "kl_loss = 2 * config.beta * (weight"),
        Fault("KL penalty in the loss", "divisor", "a mean of tokens, whatever the normalisation", "(weight * estimator(logprobs, reference_logprobs, mask=mask)).sum()", "estimator(logprobs, reference_logprobs, mask=mask).sum() / tokens"),
        Fault("KL penalty in the loss", "mask", "the last token is free", "estimator(logprobs, reference_logprobs, mask=mask)", "estimator(logprobs, reference_logprobs, mask=mask & mask.roll(-1, -1))"),
        Fault("policy loss", "sign", "of the loss", "policy_loss = (weight * importance", "policy_loss = -(weight * importance"),
        Fault("policy loss", "factor", "2", "policy_loss = (weight * importance", "policy_loss = 2 * (weight * importance"),
        Fault("policy loss", "divisor", "weights of the micro-batch, not of the step", "policy_loss = (weight * importance", "weight = token_weights(mask, config.normalisation, longest=config.max_new_tokens)\n        policy_loss = (weight * importance"),
        Fault("policy loss", "divisor", "the rollout's longest, not the longest allowed", "longest=config.max_new_tokens).reshape", "longest=step_mask.shape[-1] - 1).reshape"),
        Fault("policy loss", "mask", "the last token is left out", "policy_loss = (weight *", "policy_loss = (weight * mask.roll(-1, -1) *"),
        Fault("importance", "sign", "the engines exchanged", "truncated_importance(old_logprobs, sampler_logprobs, mask=mask)", "truncated_importance(sampler_logprobs, old_logprobs, mask=mask)"),
        Fault("importance", "factor", "is left out", "(weight * importance * loss)", "(weight * loss)"),
        Absent("importance", "divisor", "a weight, not a loss"),
        Fault("importance", "mask", "of the current policy, so that the ratio counts twice", "truncated_importance(old_logprobs, sampler", "truncated_importance(logprobs.detach(), sampler"),
        Fault("clip-high", "clip", "is not passed on", "clip=config.clip, clip_high=config.clip_high, mask=mask", "clip=config.clip, mask=mask"),
        Fault("first ratio", "gate", "is not looked at", "        if first:\n", "        if False:\n"),
        Fault("temperature", "factor", "is missing in training", "response_logprobs(parts.policy, part, temperature=config.temperature)", "response_logprobs(parts.policy, part)"),
        Fault("overlong", "sign", "length is rewarded", "return rollout.scores - ((rollout.batch.lengths", "return rollout.scores + ((rollout.batch.lengths"),
        Fault("overlong", "mask", "who ended is left out", "batch.without(~rollout.finished.bool())", "batch.without(rollout.finished.bool())"),
    ],
    "stages/training_configs.py": [
        Fault("preset grpo", "divisor", "no deviation", '"advantage": "standardised", "normalisation": "sequence"', '"advantage": "centred", "normalisation": "sequence"'),
        Fault("preset grpo", "divisor", "mean of tokens", '"advantage": "standardised", "normalisation": "sequence"', '"advantage": "standardised", "normalisation": "token"'),
        Fault("preset grpo", "where", "KL penalty in the reward", '"kl_in": "loss-k3", "beta": 0.04', '"kl_in": "reward", "beta": 0.04'),
        Fault("preset dr-grpo", "divisor", "divided by the deviation", '"advantage": "centred", "normalisation": "constant"', '"advantage": "standardised", "normalisation": "constant"'),
        Fault("preset dr-grpo", "divisor", "divided by the length", '"advantage": "centred", "normalisation": "constant"', '"advantage": "centred", "normalisation": "sequence"'),
        Fault("preset rloo", "factor", "the mean holds the response itself", '"advantage": "leave-one-out", "normalisation": "constant"', '"advantage": "centred", "normalisation": "constant"'),
        Fault("preset rloo", "divisor", "divided by the length", '"advantage": "leave-one-out", "normalisation": "constant"', '"advantage": "leave-one-out", "normalisation": "sequence"'),
        Fault("preset dapo", "divisor", "mean of the responses' means", '"advantage": "standardised", "normalisation": "token"', '"advantage": "standardised", "normalisation": "sequence"'),
        Fault("preset dapo", "clip", "one clip", '"clip": 0.2, "clip_high": 0.28,', '"clip": 0.2,'),
        Absent("every preset", "sign", "a preset is a set of values; signs and masks are the stage's, above"),
    ],
    "rollout/rollout.py": [
        Fault("kl", "sign", "policy and reference exchanged", "kl.k1(self.batch.old_logprobs, self.batch.reference_logprobs)", "kl.k1(self.batch.reference_logprobs, self.batch.old_logprobs)"),
        Fault("kl", "divisor", "a mean over the response", "kl.per_sequence(self.kl_per_token, self.batch.response_attention)", "kl.per_sequence(self.kl_per_token, self.batch.response_attention) / self.batch.lengths"),
        Fault("kl", "mask", "the last token is free", "kl.per_sequence(self.kl_per_token, self.batch.response_attention)", "kl.per_sequence(self.kl_per_token, self.batch.response_attention & self.batch.response_attention.roll(-1, -1))"),
        Fault("figures", "divisor", "sums over updates, not means", "merged[name] = merged.get(name, 0.0) + weight * value", "merged[name] = merged.get(name, 0.0) + value"),
    ],
    "data/batching.py": [
        Fault("batch_at", "mask", "the last step repeats rows", "min(batch_size, total - cursor)", "batch_size"),
    ],
    "data/letters.py": [
        Fault("_cut", "mask", "only the first control token of a text is letters", r'pattern.sub(rf"\g<0>{CUT}", value)', r'pattern.sub(rf"\g<0>{CUT}", value, count=1)'),
        Fault("_patterns", "mask", "the assistant's control tokens stay", "_pattern({*tokens - REASONING, CUT})", "_pattern({CUT})"),
        Fault("tokenize_pieces", "mask", "each piece begins like a text", "return joined[len(before) :] if joined[: len(before)] == before else ids[piece]", "return ids[piece]"),
    ],
    "data/message_fields.py": [
        Fault("is_trained", "mask", "a weight of 0 is trained", "all(bool(turn[name]) for name in TRAINED if name in turn)", "True"),
    ],
    "data/template_columns.py": [
        Fault("template_variables", "mask", "tools are dropped", "variables[name] = items", "pass"),
    ],
    "data/unpaired.py": [
        Fault("pair_by_label", "sign", "the response labelled false is preferred", "(good if is_good(group) else bad)", "(bad if is_good(group) else good)"),
    ],
    "data/read.py": [
        Fault("distinct", "mask", "the last of equal responses stays", "for k, response in reversed(list(enumerate(group.responses)))", "for k, response in enumerate(group.responses)"),
        Fault("_preference", "sign", "the worse is preferred", "(ranks[1] > ranks[0]) - (ranks[1] < ranks[0])", "(ranks[1] < ranks[0]) - (ranks[1] > ranks[0])"),
    ],
    "rollout/rollouts.py": [
        Fault("minibatches", "order", "not reshuffled", "torch.randperm(groups, generator=generator).tensor_split", "torch.arange(groups).tensor_split"),
        Fault("resampling", "mask", "groups with a spread are replaced", ".logical_not().nonzero().squeeze(1)", ".nonzero().squeeze(1)"),
    ],
    "models/inference.py": [
        Fault("log-probabilities", "factor", "lack the temperature", "response_logprobs(model, groups, temperature=temperature)[0]", "response_logprobs(model, groups)[0]"),
        Fault("micro-batches", "mask", "padding is computed in", "torch.where(groups.mask, function(groups).float(), 0)", "torch.where(groups.mask.roll(1, -1), function(groups).float(), 0)"),
    ],
}  # fmt: skip


class First:
    """The first test that fails."""

    name: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid.removeprefix("tests/").partition(" ")[0]


def try_out(job: tuple[str, Fault | None]) -> str | None:
    """The first test that fails with a fault planted, or with none; None where all pass."""
    file, fault = job
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src" / "kleash", Path(folder) / "kleash")
        if fault:
            source = Path(folder) / "kleash" / file
            text = source.read_text()
            assert text.count(fault.old) == 1, f"{file}: {fault.old!r} stands there {text.count(fault.old)} times"
            source.write_text(text.replace(fault.old, fault.new))
        sys.path.insert(0, folder)
        os.environ |= {"PYTHONPATH": folder, "HYPOTHESIS_STORAGE_DIRECTORY": f"{folder}/hypothesis"}
        os.chdir(ROOT)
        first, tests = First(), [f"tests/{name}" for name in TESTS[file].split()]
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not docs", "--hypothesis-seed=0"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what was imported before pytest began
        code = pytest.main([*options, *tests], plugins=[first])
        assert sys.modules["kleash"].__file__ == f"{folder}/kleash/__init__.py", "the tests took another kleash"
        assert code in (0, 1), f"{file}, {fault}: pytest ended with {code!r}, which says nothing of the fault"
        return first.name


def table(found: dict[tuple[str, Fault], str | None]) -> str:
    """What was planted, and what saw it."""
    caught = sum(name is not None for name in found.values())
    lines = [
        "# Faults, each seen by a test",
        "",
        "Written by `python tests/faults.py --write docs/faults.md`: each line is one change to the code,",
        "planted by itself, and the first fast test that fails with it.",
        "",
        f"{len(found)} faults, {caught} caught.",
        "",
    ]
    for file in sorted(FAULTS):
        lines += [f"## {file}", "", "| where | fault | first test that fails |", "|---|---|---|"]
        for entry in FAULTS[file]:
            if isinstance(entry, Absent):
                lines.append(f"| {entry.where} | {entry.kind} | n/a: {entry.why} |")
            elif (file, entry) in found:
                name = found[file, entry]
                lines.append(f"| {entry.where} | {entry.kind}: {entry.what} | {f'`{name}`' if name else '**none**'} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="functions whose faults are planted, or files; none: all")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()

    if options.only and options.write:
        parser.error("a table of some faults would pass for that of all: --write takes no functions")

    kinds: dict[tuple[str, str], set[str]] = defaultdict(set)
    for file, entries in FAULTS.items():
        for entry in entries:
            kinds[file, entry.where].add(entry.kind)
    for (file, where), asked in kinds.items():
        missing = set(KINDS) - asked
        if file.startswith("objectives") and 0 < len(missing) < len(KINDS):
            parser.error(f"{file}: {where} has no fault of {sorted(missing)}, and no reason why")
    jobs = [
        (file, entry)
        for file, entries in FAULTS.items()
        for entry in entries
        if isinstance(entry, Fault) and (not options.only or {entry.where, file} & set(options.only))
    ]
    with multiprocessing.get_context("fork").Pool(options.processes, maxtasksperchild=1) as pool:
        sound = sorted({file for file, _ in jobs})
        for file, broken in zip(sound, pool.imap(try_out, [(file, None) for file in sound], chunksize=1), strict=True):
            if broken:
                sys.exit(f"{broken} fails without any fault; mend it first (the tests of {file})")
        found = {}
        for (file, fault), name in zip(jobs, pool.imap(try_out, jobs, chunksize=1), strict=True):
            found[file, fault] = name
            told = f"{file} {fault.where}, {fault.kind}: {fault.what}"
            print(f"caught   {told} ({name})" if name else f"SURVIVED {told}", flush=True)
    survivors = sum(name is None for name in found.values())
    print(f"{len(found)} faults, {len(found) - survivors} caught")
    if options.write:
        options.write.write_text(table(found))
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()

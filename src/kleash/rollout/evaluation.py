"""Evaluate a policy on held-out prompts: fresh responses from the same streams of random numbers each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from kleash.data.group import EncodedGroup
from kleash.rewards.reward import part_figures
from kleash.rollout.rollout import Components, measured, or_none, sample_scored, scored
from kleash.run import RunFolder, derive_seed
from kleash.training.best_checkpoint import BestCheckpoint
from kleash.training.loop import Loop
from kleash.training.measurements import SAMPLED, TRAINED, Measurements, mean_tokens


def evaluate(
    parts: Components, prompts: Sequence[EncodedGroup], folder: RunFolder, step: int, *, seed: int
) -> dict[str, float]:
    """Sample a response to each held-out prompt, append the responses to samples.jsonl and return the means.

    Returns:
        `eval_reward` and its parts, `eval_kl`, `eval_length`, `eval_end_rate`, and `eval_gold` and
        `eval_validation_reward` where there are such rewards. A mean of a reward is over the responses of which it has
        an opinion, NaN where it has none at all.
    """
    rollout = sample_scored(parts, prompts, group_size=1, seed=derive_seed(seed, "evaluation"), version=step)
    rollout = measured(rollout, parts)
    others = {name: reward for name in ("gold", "validation_reward") if (reward := getattr(parts, name)) is not None}
    scores = {name: scored(reward, rollout.groups, name.replace("_", " "))[0] for name, reward in others.items()}
    kls = rollout.kl
    folder.append(
        "samples.jsonl",
        [
            {
                "step": step,
                "prompt": group.prompt,
                "response": group.responses[0].text,
                "finished": group.responses[0].finished,
                "score": or_none(rollout.scores[row, 0]),
                "kl": float(kls[row, 0]),
                **{name: or_none(values[row, 0]) for name, values in scores.items()},
                **group.columns,
            }
            for row, group in enumerate(rollout.groups)
        ],
    )
    means = {
        "eval_reward": rollout.scores.nanmean(),
        **part_figures(rollout.parts, "eval_reward"),
        **{f"eval_{name}": values.nanmean() for name, values in scores.items()},
        "eval_kl": kls.mean(),
        "eval_length": rollout.batch.mask.sum(-1).float().mean(),
    }
    end_rate = sum(group.responses[0].finished for group in rollout.groups) / len(rollout.groups)
    return {"eval_end_rate": end_rate, **{name: float(value) for name, value in means.items()}}


class HeldOutPrompts:
    """The held-out prompts of a run, and the weights that do best on them.

    Args:
        parts: sampler, models and rewards.
        prompts: if empty, nothing is measured.
        folder: the run, whose samples.jsonl takes the responses.
        best: keeps the weights of the best figure.
        see: takes each figure by the name `figure`: that of the rules that stop the run.
        criterion: defines the figure, see `criterion_of`.
        seed: of the draws.
        max_new_tokens: longest response.
        group_size: responses of a prompt in the training; a forward pass reads it once for all of them.
        trained: responses that the run samples to train on, each `passes` times.
        share: of the training's work that one measurement may take; it takes fewer prompts where that does not suffice,
            the same ones each time.
    """

    def __init__(
        self,
        parts: Components,
        prompts: Sequence[EncodedGroup],
        folder: RunFolder,
        best: BestCheckpoint,
        see: Callable[..., object],
        *,
        criterion: Literal["objective", "gold", "validation"],
        seed: int,
        max_new_tokens: int,
        group_size: int,
        trained: int,
        passes: int,
        share: float,
    ) -> None:
        self.parts, self.folder, self.best = parts, folder, best
        prompt, response = mean_tokens(prompts), max_new_tokens
        rollout = (2 + passes * TRAINED) * prompt / group_size + (1 + SAMPLED + passes * TRAINED) * response
        limits = Measurements(folder, parts.policy, prompts, rows=trained, share=share, seed=seed, work_of_row=rollout)
        sample = 2 * prompt + (1 + SAMPLED) * response  # sampled, then read by the reference
        self.prompts = limits.some("held-out prompts", prompts, part=1, work=sample)
        self.criterion, self.seed, self.see = criterion, seed, see

    def measure_start(self, loop: Loop) -> None:
        """Measure the policy before training, if the run is evaluated at all."""
        if self.prompts and loop.step == 0 and loop.eval_every is not None:
            self.folder.log(0, evaluate(self.parts, self.prompts, self.folder, 0, seed=self.seed))

    def measure(self, step: int, *, beta: float) -> dict[str, float]:
        """The result of `evaluate` after a step; keeps the weights if they are the best so far."""
        if not self.prompts:
            return {}
        metrics = evaluate(self.parts, self.prompts, self.folder, step, seed=self.seed)
        figure = criterion_of(metrics, self.criterion, beta=beta)
        if not math.isnan(figure):  # no opinion of any held-out response
            self.best.update(self.parts.policy, step, -figure)
            self.see(figure=figure)
        return metrics


def criterion_of(
    metrics: Mapping[str, Any], criterion: Literal["objective", "gold", "validation"], *, beta: float
) -> float:
    """The criterion's value of a measurement on held-out prompts; higher is better.

    Args:
        metrics: what `evaluate` returned.
        criterion: the objective, reward − β·KL; or the gold or the validation reward.
        beta: price of one nat of KL.
    """
    if criterion == "objective":
        return float(metrics["eval_reward"] - beta * metrics["eval_kl"])
    return float(metrics["eval_gold" if criterion == "gold" else "eval_validation_reward"])

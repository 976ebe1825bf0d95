"""The end of a policy-gradient run: write the weights, then run the checks on its rollouts."""

from __future__ import annotations

import math
from typing import Any

from kleash.checks import policy_checks
from kleash.checks.gates import record_checks
from kleash.rollout import Components
from kleash.run import RunFolder
from kleash.training.after_training import after_training
from kleash.training.best_checkpoint import BestCheckpoint
from kleash.training.ema import Average
from kleash.training.loop import Loop
from kleash.training.model_folder import write_model


def finish_policy(
    folder: RunFolder,
    parts: Components,
    loop: Loop,
    best: BestCheckpoint,
    *,
    average: Average | None = None,
    advice: str,
    **results: Any,
) -> RunFolder:
    """Take the weights to keep, merge the adapters, write the model, record the checks and mark the run as finished.

    Args:
        folder: the run.
        parts: the policy.
        loop: says where and why the run ended.
        best: which weights to keep.
        average: where the last weights are kept: their moving average, if there is one.
        advice: what to try where responses are cut off.
        results: more figures for run.json.
    """
    step = best.take(parts.policy, loop.step)
    if average is not None and best.keep_weights == "last":
        average.take(parts.policy)
    write_model(folder, parts.policy, parts.tokenizer, _summary(folder))
    config = folder.record["config"]
    settings = {"prompts": config["batch_size"], "kl_budget": config.get("kl_budget"), "advice": advice}
    checks = lambda: policy_checks.policy(folder.metrics(), **settings)  # noqa: E731
    after_training(folder, "checks", lambda: record_checks(folder, checks=checks()))
    near_ties = getattr(parts.sampler, "near_ties", None)
    return folder.finish(step=step, ended=loop.stop or "all rollouts done", near_ties=near_ties, **results)


def _summary(folder: RunFolder) -> str:
    last = folder.metrics()[-1]
    reward, kl = (math.nan if last[name] is None else last[name] for name in ("reward", "kl"))
    return f"Mean reward {reward:.3f} at KL {kl:.2f} nats a response from the reference."

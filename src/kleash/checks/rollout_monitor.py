"""Figures and sample responses of each rollout. Nothing here flows back into training."""

from __future__ import annotations

from kleash.checks import monitors
from kleash.rewards.reward import Reward
from kleash.rollout.rollout import Rollout
from kleash.rollout.rollout_log import drop_rollouts_after, log_rollout
from kleash.run import RunFolder, StepMetrics


class RolloutMonitor:
    """Figures of each rollout for metrics.jsonl, and a few of its responses under rollouts/.

    Args:
        folder: the run, restored to the step from which it resumes.
        step: that step.
        validation_reward: a reward that is only measured.
        responses: how many responses of a rollout are written.
    """

    def __init__(self, folder: RunFolder, step: int, validation_reward: Reward | None, *, responses: int) -> None:
        self.folder, self.validation_reward, self.responses = folder, validation_reward, responses
        self.kls = [row["kl"] for row in folder.metrics() if row.get("kl") is not None][-2:]
        drop_rollouts_after(folder.path, step)

    def see(self, step: int, rollout: Rollout) -> StepMetrics:
        """Record a rollout. Formulas: docs/metrics.md, Monitors."""
        figures = monitors.watch(
            rollout.groups, rollout.scores, parts=rollout.parts, validation_reward=self.validation_reward
        )
        self.kls = [*self.kls[-2:], float(rollout.kl.mean())]
        log_rollout(self.folder, step, rollout, responses=self.responses)
        return {**figures, "kl_acceleration": monitors.acceleration(self.kls)}

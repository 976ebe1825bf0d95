"""The optimisers of a policy and its value network, and the policy's moving average, as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kleash.run import StepMetrics
from kleash.training.checkpoint import State
from kleash.training.ema import Average
from kleash.training.optim import Optimizer


class ActorCritic:
    """The optimisers of PPO.

    Args:
        policy, critic: the models to train.
        steps: optimiser steps in all.
        ema_decay: of the policy's moving average; None: no average.
        settings, value_settings: of the two `Optimizer`.
    """

    def __init__(
        self,
        policy: nn.Module,
        critic: nn.Module,
        *,
        steps: int,
        ema_decay: float | None = None,
        settings: Mapping[str, Any],
        value_settings: Mapping[str, Any],
    ) -> None:
        self._policy = policy
        self.policy = Optimizer(policy, steps=steps, **settings)
        self.value = Optimizer(critic, steps=steps, **value_settings)
        self.average = Average(policy, ema_decay)
        self.state: State = {
            "model": policy,
            "value": critic,
            "optimizer": self.policy,
            "value_optimizer": self.value,
            "average": self.average,
        }

    def step(self) -> StepMetrics:
        """Take both steps and clear the gradients; `learning_rate` and `grad_norm` are the policy's.

        Raises:
            TrainingError: see `Optimizer.step`; where a loss or gradient is not finite, neither step is taken.
        """
        self.policy.check()
        self.value.check()
        figures = self.policy.step()
        figures["value_grad_norm"] = self.value.step()["grad_norm"]
        self.average.update(self._policy)
        return figures

    def skip(self) -> StepMetrics:
        """Take no step, see `Optimizer.skip`; the schedules go on."""
        return {**self.policy.skip(), "value_grad_norm": self.value.skip()["grad_norm"]}

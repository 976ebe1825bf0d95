"""The settings that every stage has; each stage's file adds its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from kleash.config import Config
from kleash.models.compute import Compute, DType

Schedule = Literal["linear", "cosine", "constant"]


class StageConfig(Config):
    """What every stage is told."""

    model: str
    """The model to start from: a folder, or a hub name."""
    data: str
    """Rows to work on: a .jsonl, .jsonl.gz, .json or .parquet file, a saved `datasets` folder, or a hub name."""
    out: Path
    """Folder to write to; the same command run again goes on with what it finds there."""
    seed: int = 0
    """Same seed, same machine: the same numbers, bit for bit."""
    dtype: DType = "float32"
    """What to compute in. Weights and optimiser stay in float32; bfloat16 halves the time where the hardware has it."""
    device: str = "auto"
    """`cpu`, `cuda`, …; auto takes a GPU where there is one."""

    @property
    def compute(self) -> Compute:
        """Where and how forward passes are computed."""
        return Compute(self.device, self.dtype, getattr(self, "micro_batch_tokens", Compute().micro_batch_tokens))


class TrainingConfig(StageConfig):
    """What every stage that trains is told besides."""

    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps to take (rollouts for ppo and grpo), cycling the data; overrides `epochs`."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    batch_size: int = Field(32, ge=1)
    """Groups (rows, pairs, prompts) in one optimiser step, whatever memory forces on micro-batches."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens that are in memory at once, padding included. Changes memory and speed, never the gradient."""
    learning_rate: float = Field(1e-5, ge=0)
    """Peak learning rate of AdamW."""
    schedule: Schedule = "linear"
    """How the rate falls: linear to 0, cosine to a tenth, or constant."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices."""
    adam_eps: float = Field(1e-8, gt=0)
    """Adam's ε. N+ (arXiv:2403.17031) found 1e-5 to matter for PPO."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients longer than this are scaled down to it; null leaves them."""
    lora_rank: int | None = Field(None, ge=1)
    """Train low-rank adapters of this rank and freeze the rest (Hu et al. 2021, arXiv:2106.09685): less memory for
    gradients, optimiser and reference, and rates about ten times as high. The run still ends in a plain model, the
    adapters merged. Null trains all weights."""
    lora_alpha: float = Field(32.0, gt=0)
    """α of those adapters: their output is scaled by α/rank, so that the rate need not change with the rank."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass: less memory, about a third more time, and prompts are
    computed once a response. Changes no gradient."""
    max_length: int | None = Field(None, ge=2)
    """Most tokens of prompt and response; longer responses are cut, longer prompts dropped, both counted. Null: the
    model's context."""
    eval_data: str | None = None
    """Held-out rows. Without it a tenth of `data` is held out, by prompt where there are 20 or more."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between measurements on the held-out rows; null measures at the end alone."""
    max_eval_rows: int | None = Field(None, ge=1)
    """At most so many held-out rows are measured."""
    keep_weights: Literal["best", "last"] = "last"
    """Which weights to keep: the last, or those that did best on the held-out rows."""
    save_every: int | None = Field(None, ge=1)
    """Steps between states to go on from after an interruption; null: a tenth of the run."""
    keep_states: int = Field(1, ge=1)
    """How many of those states stay."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl; each needs its extra: pip install 'kleash[tensorboard]'."""
    force: bool = False
    """Go on although a gate says that a precondition does not hold."""

    def steps(self, rows: int) -> int:
        """Optimiser steps in all for so many training rows."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, round(self.epochs * rows / self.batch_size))

    def optimizer_settings(self) -> dict[str, Any]:
        """The settings of `Optimizer`, but for the number of steps."""
        names = ("learning_rate", "schedule", "warmup_steps", "weight_decay", "adam_eps", "max_grad_norm")
        return {name: getattr(self, name) for name in names}

    def loop_settings(self) -> dict[str, Any]:
        """The settings of `Loop`, but for the number of steps."""
        return {name: getattr(self, name) for name in ("save_every", "keep_states", "eval_every", "trackers")}

    def adapter_settings(self) -> dict[str, Any]:
        """The settings of `make_trainable`."""
        return {
            "rank": self.lora_rank,
            "alpha": self.lora_alpha,
            "seed": self.seed,
            "gradient_checkpointing": self.gradient_checkpointing,
        }


class RolloutConfig(TrainingConfig):
    """What every stage that learns from its own samples is told besides."""

    reward: str
    """What to optimise: a reward model's folder, `module:function` with TRL's signature, a verifier (number, math,
    exact, regex, json-schema), or a .yaml composition."""
    reference: str | None = None
    """The reference of the KL penalty; null is `model` as it starts."""
    beta: float = Field(0.05, ge=0)
    """Price of one nat of KL from the reference, in units of reward. 0: no KL penalty, and the policy ends in the
    reward's blind spots. Large: it never leaves the reference. Published: 0.02 (InstructGPT), 0.05 (N+)."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest response, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, in sampling and in training alike."""
    inner_epochs: int = Field(1, ge=1)
    """Passes over a rollout, reshuffled each."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps in a pass."""
    clip: float = Field(0.2, gt=0)
    """How far the ratio may move before its gain stops to count."""
    log_rollouts: int = Field(8, ge=0)
    """Responses of each rollout that are kept token by token under rollouts/; 0 keeps none."""
    snapshot_every: int | None = Field(None, ge=1)
    """Rollouts between weights kept under snapshots/, to be measured later; null keeps none."""
    hold_out: str | None = None
    """A reward that is watched and never optimised: a reward model on other labels, best of all. Null takes the one
    that `kleash reward --validation-share` left in the folder of `reward`, where there is one."""
    gold: str | None = None
    """What is truly wanted, where it can be computed: a reward, in the same words, that scores the held-out responses
    wherever they are measured, and is never optimised."""
    criterion: Literal["objective", "gold", "validation"] = "objective"
    """What `keep_weights` best and `patience` go by, on held-out prompts: reward − β·KL, gold, or the
    validation reward."""
    kl_budget: float | None = Field(None, gt=0)
    """Nats a response: the run ends with the rollout whose KL is beyond it."""
    patience: int | None = Field(None, ge=1)
    """The run ends after so many measurements (`eval_every`) in a row that did not better the criterion's best."""

    def component_settings(self) -> dict[str, Any]:
        """The settings of `build_components`."""
        return {
            "reference": self.reference,
            "validation_reward": self.hold_out,
            "gold": self.gold,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "needs_validation": self.criterion == "validation",
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "gradient_checkpointing": self.gradient_checkpointing,
            "seed": self.seed,
            "compute": self.compute,
        }

    def prompt_settings(self) -> dict[str, Any]:
        """The settings of `read_prompts`."""
        return {name: getattr(self, name) for name in ("max_new_tokens", "max_length", "max_eval_rows", "seed")}

    @model_validator(mode="after")
    def _measures_what_it_goes_by(self) -> RolloutConfig:
        if self.criterion == "gold" and self.gold is None:
            raise ValueError("criterion gold needs 'gold', the reward that measures it")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("patience counts measurements; give 'eval_every' as well")
        return self

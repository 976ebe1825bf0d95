"""What the stages that train are told: their configs, without anything that takes time to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from kleash.training.settings import RolloutConfig, TrainingConfig


class SFTConfig(TrainingConfig):
    """Imitate the responses of `data`. Defaults: N+ (arXiv:2403.17031): one epoch; a batch of 32 as InstructGPT."""

    learning_rate: float = 1e-5
    """Peak learning rate. InstructGPT took 9.65e-6, N+ 3e-6; small models bear 100 times as much."""
    response_column: str | None = None
    """Column that holds the response, where it is none of `response`, `completion`, `messages` (`solution`, say)."""
    gate_prompts: int = Field(64, ge=0)
    """Held-out prompts to which the gate out samples two responses each, to see whether they end, loop, differ; 0
    samples nothing, nor does a model of more than a billion parameters on a CPU."""
    gate_max_new_tokens: int = Field(128, ge=1)
    """Longest of those samples in tokens; shorter where nine tenths of the demonstrations are."""


class RewardConfig(TrainingConfig):
    """Learn a reward from comparisons. Defaults: Ouyang et al. 2022 (arXiv:2203.02155), C.2, unless a field says."""

    batch_size: int = Field(64, ge=1)
    """Prompts in one optimiser step, each with all pairs of its K responses."""
    learning_rate: float = Field(9e-6, ge=0)
    """Peak learning rate; N+ (arXiv:2403.17031) took 3e-6."""
    schedule: str = Field("cosine", pattern="^(linear|cosine|constant)$")  # type: ignore[assignment]
    """How the rate falls: cosine to a tenth as InstructGPT, linear to 0, or constant."""
    margin: float = Field(0.0, ge=0)
    """m: the chosen response's score has to lead by this much (Touvron et al. 2023, arXiv:2307.09288, eq. 2)."""
    centring: float = Field(0.0, ge=0)
    """Coefficient of (r_a + r_b)², which keeps scores near zero while training (Eisenstein et al. 2023,
    arXiv:2312.09244). The final shift to mean zero is done in any case."""
    heads: int = Field(1, ge=1)
    """Heads on one trunk: an ensemble for the price of one model. Each learns from a half of the comparisons of its
    own, counted twice (double-or-nothing bootstrap: Owen and Eckles 2012, Annals of Applied Statistics 6, 895), and the
    trunk from all."""
    combine: Literal["mean", "worst", "mean-variance"] = "mean"
    """What several heads or members say together: their mean, the worst of them, or mean − λ·variance (Coste et al.
    2023, arXiv:2310.02743, eq. 3–5)."""
    variance_penalty: float = Field(0.5, ge=0)
    """λ of `mean-variance`."""
    centre_data: str | None = None
    """Rows with one response whose mean score becomes zero; null samples them from `model`."""
    centre_samples: int = Field(128, ge=0)
    """How many responses to sample for the centring; 0 takes the training responses instead."""
    centre_max_new_tokens: int = Field(64, ge=1)
    """Longest of those samples, and of those of `best_of`, in tokens."""
    best_of: int = Field(0, ge=0)
    """Sample so many responses of `model` to held-out prompts and report what the best of k is worth, for k up to this;
    0 does not."""
    gold: str | None = None
    """With `best_of`: another reward, in the words of `--reward`, that measures what is chosen and chooses nothing."""
    learning_curve: bool = False
    """Train on an eighth, a quarter and half of the rows as well and report what twice the labels would bring; takes
    nearly as long again."""

    @model_validator(mode="after")
    def _fits_together(self) -> RewardConfig:
        if self.gold is not None and not self.best_of:
            raise ValueError("gold measures what is chosen of best_of samples; give best_of too, or leave gold out")
        return self


class EnsembleConfig(RewardConfig):
    """Learn a reward from comparisons. Defaults: Ouyang et al. 2022 (arXiv:2203.02155), C.2, unless a field says."""

    members: int = Field(1, ge=1)
    """Reward models to train on the same comparisons, each from a seed of its own; `out` then holds an ensemble, whose
    score is what `combine` says. Five is what Coste et al. 2023 (arXiv:2310.02743) took."""
    average_weights: bool = False
    """Members start from one head, and `out` is a single model of their mean weights (WARM: Ramé et al. 2024,
    arXiv:2401.12187), for the price of one at scoring. Needs members ≥ 2."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the comparisons, by prompt, that go to a reward model of their own under validation/, which is measured
    beside the reward while a policy trains, and never optimised."""

    @model_validator(mode="after")
    def _fits_together(self) -> EnsembleConfig:
        if self.average_weights and self.members < 2:
            raise ValueError("average_weights needs 'members' of 2 or more")
        if self.members > 1 and self.heads > 1:
            raise ValueError("members of several 'heads' each are not supported; give 'members' or 'heads'")
        return self


PPO_PRESETS: dict[str, dict[str, Any]] = {
    # Ouyang et al. 2022 (arXiv:2203.02155), appendix C.4. The pretraining mix needs pretraining_data.
    "instructgpt": {
        "beta": 0.02, "batch_size": 512, "minibatches": 8, "inner_epochs": 1, "temperature": 1.0, "clip": 0.2,
        "gamma": 1.0, "lam": 0.95, "learning_rate": 9.65e-6, "value_learning_rate": 9e-6, "schedule": "constant",
        "ema_decay": 0.992,
    },
    # Huang et al. 2024 (arXiv:2403.17031), tables of hyper-parameters.
    "n-plus": {
        "beta": 0.05, "batch_size": 512, "minibatches": 1, "inner_epochs": 4, "temperature": 0.7, "clip": 0.2,
        "gamma": 1.0, "lam": 0.95, "learning_rate": 3e-6, "schedule": "linear", "adam_eps": 1e-5,
        "value_coefficient": 0.1, "value_clip": 0.2, "missing_eos_score": -1.0,
    },
}  # fmt: skip


class PPOConfig(RolloutConfig):
    """PPO. Defaults: N+ (Huang et al. 2024, arXiv:2403.17031), but for what changes the objective, which is off."""

    preset: Literal["instructgpt", "n-plus"] | None = None
    """A published set of values for everything not given: `instructgpt` or `n-plus`."""
    target_kl: float | None = Field(None, gt=0)
    """Nats a response that `beta` is steered to (Ziegler et al. 2019, arXiv:1909.08593, §2.2); null keeps it fixed."""
    kl_horizon: float = Field(10_000, gt=0)
    """Responses over which that steering acts; needs `target_kl`."""
    batch_size: int = Field(64, ge=1)
    """Prompts in a rollout, each with one response."""
    inner_epochs: int = Field(4, ge=1)
    """Passes over a rollout, reshuffled each."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount a token; below 1 the optimum is no longer π*."""
    lam: float = Field(0.95, ge=0, le=1)
    """λ of GAE: 1 trusts returns, 0 trusts the value network."""
    whiten_advantages: bool = True
    """Advantages of a rollout to mean 0 and variance 1."""
    value_learning_rate: float | None = Field(None, ge=0)
    """Peak rate of the value network; null is `learning_rate`."""
    value_coefficient: float = Field(0.1, gt=0)
    """Weight of the value loss. The value network has its own Adam, so this acts through clipping and ε alone."""
    value_clip: float | None = Field(0.2, gt=0)
    """How far a value may move from the rollout's, in units of reward; null leaves it free."""
    value_init: Literal["reward", "policy"] = "reward"
    """Where the value network starts: the reward model (of several the first) where it reads the policy's ids, else the
    policy."""
    missing_eos_score: float | None = None
    """Score of a response that did not end, in place of its reward; null scores it like any other."""
    whiten_rewards: bool = False
    """Token rewards to variance 1, mean kept. Changes the objective (and shortens responses: N+)."""
    reward_clip: float | None = Field(None, gt=0)
    """Scores are cut to ± this. Changes the objective."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """End with an exponential moving average of the weights; InstructGPT took 0.992. Null: the weights themselves."""
    pretraining_data: str | None = None
    """Demonstrations or text whose likelihood is kept up (PPO-ptx of InstructGPT)."""
    pretraining_coefficient: float = Field(27.8, gt=0)
    """Weight of that likelihood; needs `pretraining_data`."""

    def actor_critic_settings(self) -> dict[str, Any]:
        """The settings of `ActorCritic`, but for the number of steps."""
        settings = self.optimizer_settings()
        rate = self.learning_rate if self.value_learning_rate is None else self.value_learning_rate
        return {
            "settings": settings,
            "value_settings": settings | {"learning_rate": rate},
            "ema_decay": self.ema_decay,
        }

    def mix_settings(self) -> dict[str, Any]:
        """The settings of `PretrainingMix`."""
        return {
            "batch_size": max(1, self.batch_size // self.minibatches),
            "coefficient": self.pretraining_coefficient,
            "max_length": self.max_length,
            "seed": self.seed,
            "compute": self.compute,
        }

    def component_settings(self) -> dict[str, Any]:
        """The settings of `build_components`, a value network among them."""
        return super().component_settings() | {"value_init": self.value_init}

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("preset") in PPO_PRESETS:
            return {**PPO_PRESETS[given["preset"]], **given}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> PPOConfig:
        if self.minibatches > self.batch_size:
            raise ValueError(f"minibatches ({self.minibatches}) cannot be more than batch_size ({self.batch_size})")
        if self.target_kl is not None and self.beta == 0:
            raise ValueError("target_kl steers beta by factors, so beta must start above 0")
        return self


GRPO_PRESETS: dict[str, dict[str, Any]] = {
    # Shao et al. 2024 (arXiv:2402.03300) §4.2: 1,024 samples a rollout, one update.
    "grpo": {
        "advantage": "standardised", "normalisation": "sequence", "kl_in": "loss-k3", "beta": 0.04, "clip": 0.2,
        "group_size": 64, "batch_size": 16, "learning_rate": 1e-6, "max_new_tokens": 1024,
    },
    # Liu et al. 2025 (arXiv:2503.20783) and the released qwen2.5-math-7b.sh: no deviation, no length, no KL penalty.
    "dr-grpo": {
        "advantage": "centred", "normalisation": "constant", "kl_in": "reward", "beta": 0.0, "clip": 0.2,
        "group_size": 8, "batch_size": 128, "minibatches": 8, "learning_rate": 1e-6, "schedule": "constant",
        "max_new_tokens": 3000,
    },
    # Ahmadian et al. 2024 (arXiv:2402.14740): REINFORCE on whole responses: one update, so no clip at work.
    "rloo": {
        "advantage": "leave-one-out", "normalisation": "constant", "kl_in": "reward", "beta": 0.03, "group_size": 4,
        "learning_rate": 1e-6,
    },
    # Yu et al. 2025 (arXiv:2503.14476) §4.1 and the released run_dapo_qwen2.5_32b.sh.
    "dapo": {
        "advantage": "standardised", "normalisation": "token", "beta": 0.0, "clip": 0.2, "clip_high": 0.28,
        "resample_zero_spread": True, "overlong": "penalise", "group_size": 16, "batch_size": 512, "minibatches": 16,
        "learning_rate": 1e-6, "schedule": "constant", "warmup_steps": 320, "weight_decay": 0.1,
    },
}  # fmt: skip


class GRPOConfig(RolloutConfig):
    """GRPO, Dr. GRPO, RLOO, DAPO. Without a preset: the exact gradient of reward less KL penalty, in expectation."""

    preset: Literal["grpo", "dr-grpo", "rloo", "dapo"] | None = None
    """A published set of values for everything not given."""
    batch_size: int = Field(16, ge=1)
    """Prompts in a rollout, each with `group_size` responses."""
    group_size: int = Field(8, ge=2)
    """Responses sampled for a prompt. The others are a response's baseline, so at least 2."""
    kl_in: Literal["reward", "loss-k3", "loss-k2-response"] = "reward"
    """Where β acts. reward: each response's score loses β for each of its nats, before the advantage. loss-k3: as the
    GRPO paper has it, whose gradient is that of the forward KL. loss-k2-response: as a loss with the reverse KL's."""
    advantage: Literal["leave-one-out", "centred", "standardised"] = "leave-one-out"
    """A score less the mean of the others' (RLOO), less the group's mean (Dr. GRPO), or that by the group's standard
    deviation (GRPO), which weighs all groups alike."""
    normalisation: Literal["token", "sequence", "constant"] = "constant"
    """What the sum over tokens is divided by. token: the step's tokens (DAPO). sequence: each response's own, then the
    responses (GRPO). constant: responses times `max_new_tokens` (Dr. GRPO), the one that keeps lengths honest."""
    clip_high: float | None = Field(None, gt=0)
    """How far the ratio may move up; null is `clip`."""
    overlong: Literal["keep", "mask", "penalise"] = "keep"
    """What becomes of responses that are cut off: nothing; no gradient; or, for all that end in the last fifth of
    `max_new_tokens`, a penalty that rises to 1 (DAPO)."""
    resample_zero_spread: bool = False
    """Replace groups whose responses all have one score by groups of other prompts (DAPO's dynamic sampling)."""

    def rollout_settings(self) -> dict[str, Any]:
        """The settings of `Rollouts`."""
        return {
            "batch_size": self.batch_size,
            "group_size": self.group_size,
            "seed": self.seed,
            "resample": self.resample_zero_spread,
        }

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("preset") in GRPO_PRESETS:
            return {**GRPO_PRESETS[given["preset"]], **given}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> GRPOConfig:
        if self.minibatches > self.batch_size:
            raise ValueError(f"minibatches ({self.minibatches}) cannot be more than batch_size ({self.batch_size})")
        return self


PUBLISHED_BETA = {"simpo": 2.0, "length-normalised": 5.0}
"""Meng et al. 2024 (arXiv:2405.14734), Lambert et al. 2024 (arXiv:2411.15124): they divide by the length."""


class DPOConfig(TrainingConfig):
    """DPO and its kin. Defaults: Rafailov et al. 2023 (arXiv:2305.18290), B, and its code, unless a field says."""

    loss: Literal["sigmoid", "smoothed", "robust", "ipo", "simpo", "length-normalised"] = "sigmoid"
    """What is made of a comparison: DPO; labels taken to be noisy (smoothed), or corrected for it (robust); a margin
    that ends (ipo); mean log-probability a token, without reference (simpo) or with (length-normalised). Rankings of
    more than two responses need sigmoid."""
    beta: float = Field(0.1, gt=0)
    """Price of one nat of KL from the reference. Large: never leaves it. Towards 0: the labels are followed, whatever
    it takes. Not given it is 2 for simpo and 5 for length-normalised, as published: they divide by the length."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """ε, the share of labels taken to be flipped: needed by smoothed and robust, and of no other loss."""
    gamma_ratio: float = Field(0.5, ge=0)
    """γ/β of simpo: how far the chosen response's mean log-probability must lead (arXiv:2405.14734)."""
    sft_coefficient: float = Field(0.0, ge=0)
    """Weight of −log π(chosen) a token, which keeps the chosen response likely (Pang et al. 2024, arXiv:2404.19733,
    took 1)."""
    reference: str | None = None
    """The reference of the KL penalty; null is `model` as it starts."""
    batch_size: int = Field(64, ge=1)
    """Prompts in one optimiser step, each with its pair or ranking."""
    learning_rate: float = Field(5e-7, ge=0)
    """Peak learning rate; the paper took 1e-6 with RMSprop. Small models bear 100 times as much."""
    kl_every: int | None = Field(None, ge=1)
    """Steps between measurements of the KL to the reference, on fresh responses to held-out prompts; null measures at
    the end alone."""
    kl_samples: int = Field(128, ge=0)
    """At most so many responses are sampled for it, shared out among the held-out prompts; 0 never measures it."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest of those responses, in tokens."""
    snapshot_every: int | None = Field(None, ge=1)
    """Steps between weights kept under snapshots/, to be measured later; null keeps none."""
    hold_out: str | None = None
    """A reward that those responses are scored with and that nothing is learned from: a folder, a verifier, …"""
    gold: str | None = None
    """What is truly wanted, where it can be computed: likewise."""

    def kl_due(self, step: int, steps: int) -> bool:
        """Whether the KL is to be measured after `step` steps of `steps`."""
        if self.loss == "simpo" or self.kl_samples == 0:
            return False
        return step == steps or (self.kl_every is not None and step % self.kl_every == 0)

    @model_validator(mode="before")
    @classmethod
    def _take_published_beta(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("loss") in PUBLISHED_BETA:
            return {"beta": PUBLISHED_BETA[given["loss"]], **given}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> DPOConfig:
        noisy = self.loss in ("smoothed", "robust")
        if noisy and self.label_smoothing == 0:
            raise ValueError(f"loss {self.loss} needs label_smoothing, the share of flipped labels; 0.1, say")
        if not noisy and self.label_smoothing > 0:
            raise ValueError(f"loss {self.loss} has no label_smoothing; take loss smoothed or robust")
        if self.loss != "simpo" and "gamma_ratio" in self.model_fields_set:
            raise ValueError(f"loss {self.loss} has no gamma_ratio; it belongs to loss simpo")
        if self.loss == "simpo" and self.reference is not None:
            raise ValueError("loss simpo has no reference; leave it out")
        return self

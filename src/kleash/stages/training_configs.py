"""The configs of the stages that train, in a module that is imported without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from kleash.config import DataRef, MeasureRef, ModelRef, Settings, StopTexts
from kleash.training.settings import RolloutConfig, Schedule, TrainingConfig


class SFTConfig(TrainingConfig):
    """Fine-tune on the responses in `data`. Defaults: N+ (arXiv:2403.17031), one epoch, and InstructGPT's batch of
    32.
    """

    learning_rate: float = Field(1e-5, ge=0)
    """Peak learning rate. InstructGPT used 9.65e-6, N+ 3e-6; models of a few million parameters take 100 times as
    much."""
    response_column: str | None = None
    """Column that holds the response, if it is not `response`, `completion` or `messages` (`solution`, say)."""
    gate_prompts: int = Field(64, ge=0)
    """Held-out prompts for which the checks after training sample two responses each, to see whether they end, repeat
    themselves and differ. 0 samples nothing; nor does a model of more than a billion parameters on a CPU."""
    gate_max_new_tokens: int = Field(128, ge=1)
    """Longest of those samples, in tokens. They are shorter if nine tenths of the demonstrations are."""


class RewardConfig(TrainingConfig):
    """Train a Bradley–Terry reward model on comparisons. Defaults: Ouyang et al. 2022 (arXiv:2203.02155), C.2, unless a
    field says otherwise.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = TrainingConfig.MAY_CHANGE | {"centre_data", "gold"}

    batch_size: int = Field(64, ge=1)
    """Prompts in one optimiser step, each with all pairs of its K responses."""
    learning_rate: float = Field(9e-6, ge=0)
    """Peak learning rate; N+ (arXiv:2403.17031) used 3e-6."""
    schedule: Schedule = "cosine"
    """Learning-rate schedule: cosine to a tenth of the peak (InstructGPT), linear to 0 (`min_lr_ratio` sets other
    ends), or constant."""
    margin: float = Field(0.0, ge=0)
    """Margin m by which the chosen response's score has to lead (Touvron et al. 2023, arXiv:2307.09288, eq. 2)."""
    centring: float = Field(0.0, ge=0)
    """Coefficient of (r_a + r_b)², which keeps scores near zero during training (Eisenstein et al. 2023,
    arXiv:2312.09244). The scores are shifted to mean zero at the end in any case."""
    heads: int = Field(1, ge=1)
    """Score heads on one model: an ensemble at the cost of one. Each head is trained on its own half of the
    comparisons, counted twice (double-or-nothing bootstrap: Owen and Eckles 2012, Annals of Applied Statistics 6, 895),
    the model below them on all."""
    combine: Literal["mean", "worst", "mean-variance"] = "mean"
    """How to combine the scores of several heads or members: their mean, the lowest of them, or mean − λ·variance
    (Coste et al. 2023, arXiv:2310.02743, eq. 3–5)."""
    variance_penalty: float = Field(0.5, ge=0)
    """λ of `mean-variance`."""
    centre_data: DataRef | None = None
    """Rows with one response each, whose mean score becomes zero; null samples responses from `model`."""
    centre_samples: int = Field(128, ge=0)
    """Responses to sample for centring the scores; 0 uses the training responses instead."""
    centre_max_new_tokens: int = Field(64, ge=1)
    """Longest of those samples, and of those for `best_of`, in tokens."""
    best_of: int = Field(0, ge=0)
    """Sample this many responses to each held-out prompt from `model` and report the score of the best of k, for every
    k up to this; 0 does not."""
    gold: MeasureRef | None = None
    """With `best_of`: another reward, named as for `--reward`, that scores the chosen responses and does not choose."""
    learning_curve: bool = False
    """Train on an eighth, a quarter and half of the rows too and report what twice the labels would add. Doubles the
    time."""

    @model_validator(mode="after")
    def _fits_together(self) -> RewardConfig:
        if self.gold is not None and not self.best_of:
            raise ValueError("gold scores what is chosen from best_of samples; give 'best_of' too, or leave 'gold' out")
        if self.adapter == "keep":
            raise ValueError("adapter keep is for policies: a reward model is written whole; take merge or continue")
        if self.streaming and self.learning_curve:
            raise ValueError("learning_curve takes shares of all rows, which streaming does not have; leave one out")
        return self


class EnsembleConfig(RewardConfig):
    """Train a Bradley–Terry reward model on comparisons. Defaults: Ouyang et al. 2022 (arXiv:2203.02155), C.2, unless a
    field says otherwise.
    """

    members: int = Field(1, ge=1)
    """Reward models to train on the same comparisons, each from its own seed. From 2 on, `out` holds an ensemble whose
    score is given by `combine`. Coste et al. 2023 (arXiv:2310.02743) used 5."""
    average_weights: bool = False
    """Start all members from the same head and write one model with the mean of their weights (WARM: Ramé et al. 2024,
    arXiv:2401.12187), which costs one forward pass to score. Needs `members` ≥ 2."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the comparisons, by prompt, on which a separate reward model is trained, in hold-out/. Stages that train
    a policy against `out` measure it as validation reward and never train against it."""

    @model_validator(mode="after")
    def _members_fit_together(self) -> EnsembleConfig:
        if self.average_weights and self.members < 2:
            raise ValueError("average_weights needs 'members' of 2 or more")
        if self.streaming and (self.members > 1 or self.validation_share):
            raise ValueError("members and validation_share write all comparisons down; leave 'streaming' out")
        if self.members > 1 and self.heads > 1:
            raise ValueError("members with several heads each are not supported; give either 'members' or 'heads'")
        return self


PPO_PRESETS: dict[str, Settings] = {
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
    """PPO with a value network. Defaults: N+ (Huang et al. 2024, arXiv:2403.17031), except that everything that changes
    the objective is off.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = RolloutConfig.MAY_CHANGE | {"value_learning_rate", "pretraining_data"}

    preset: Literal["instructgpt", "n-plus"] | None = None
    """Published values for every option that is not given: `instructgpt` or `n-plus`."""
    target_kl: float | None = Field(None, gt=0)
    """Adapt `beta` so that the KL comes to this many nats a response (Ziegler et al. 2019, arXiv:1909.08593, §2.2);
    null keeps `beta` fixed."""
    kl_horizon: float = Field(10_000, gt=0)
    """Responses over which `beta` adapts; used with `target_kl`."""
    batch_size: int = Field(64, ge=1)
    """Prompts in a rollout, each with one response."""
    inner_epochs: int = Field(4, ge=1)
    """Passes over each rollout, reshuffled each time."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount factor for each token; below 1 the optimum is not the optimum of reward − β·KL."""
    lam: float = Field(0.95, ge=0, le=1)
    """λ of generalised advantage estimation: 1 uses only the returns, 0 relies on the value network."""
    whiten_advantages: bool = True
    """Normalise the advantages of a rollout to mean 0 and variance 1."""
    value_learning_rate: float | None = Field(None, ge=0)
    """Peak learning rate of the value network; null is `learning_rate`."""
    value_coefficient: float = Field(0.1, gt=0)
    """Weight of the value loss. The value network has its own Adam, so this acts only through gradient clipping and
    ε."""
    value_clip: float | None = Field(0.2, gt=0)
    """Clip the change of a value from the rollout's to this, in units of reward; null does not clip."""
    value_init: Literal["reward", "policy"] = "reward"
    """Weights that the value network starts from: the reward model's (the first one's of an ensemble) if it has the
    policy's tokenizer, otherwise the policy's."""
    missing_eos_score: float | None = None
    """Score of a response that has no end token, in place of its reward; null scores it like the others."""
    whiten_rewards: bool = False
    """Scale token rewards to variance 1 and keep their mean. Changes the objective (and shortens responses: N+)."""
    reward_clip: float | None = Field(None, gt=0)
    """Clip scores to ± this. Changes the objective."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Save an exponential moving average of the weights with this decay; InstructGPT used 0.992. Null saves the weights
    themselves."""
    pretraining_data: DataRef | None = None
    """Demonstrations or text on which the language-model loss is added (InstructGPT's PPO-ptx)."""
    pretraining_coefficient: float = Field(27.8, gt=0)
    """Weight of the pretraining loss; used with `pretraining_data`."""

    def actor_critic_settings(self) -> Settings:
        """The settings of `ActorCritic`, but for the number of steps."""
        settings = self.optimizer_settings()
        rate = self.learning_rate if self.value_learning_rate is None else self.value_learning_rate
        return {
            "settings": settings,
            "value_settings": settings | {"learning_rate": rate},
            "ema_decay": self.ema_decay,
        }

    def mix_settings(self) -> Settings:
        """The settings of `PretrainingMix`."""
        return {
            "batch_size": max(1, self.batch_size // self.minibatches),
            "coefficient": self.pretraining_coefficient,
            "max_length": self.max_length,
            "as_chat": self.as_chat,
            "seed": self.seed,
            "compute": self.compute,
        }

    def component_settings(self) -> Settings:
        """The settings of `build_components`, a value network among them."""
        return super().component_settings() | {"value_init": self.value_init}

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("preset") in PPO_PRESETS:
            return {**PPO_PRESETS[values["preset"]], **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> PPOConfig:
        if self.minibatches > self.batch_size:
            raise ValueError(f"minibatches ({self.minibatches}) cannot be more than batch_size ({self.batch_size})")
        if self.target_kl is not None and self.beta == 0:
            raise ValueError("target_kl multiplies beta, so beta must start above 0")
        return self


GRPO_PRESETS: dict[str, Settings] = {
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
    # Ahmadian et al. 2024 (arXiv:2402.14740): REINFORCE on whole responses: one update, so the clip has no effect.
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
    """GRPO, Dr. GRPO, RLOO, DAPO: see `preset`. Without a preset the gradient is, in expectation, exactly that of
    reward − β·KL.
    """

    preset: Literal["grpo", "dr-grpo", "rloo", "dapo"] | None = None
    """Published values for every option that is not given."""
    batch_size: int = Field(16, ge=1)
    """Prompts in a rollout, each with `group_size` responses."""
    group_size: int = Field(8, ge=2)
    """Responses sampled for each prompt, G. The others are a response's baseline, so at least 2."""
    kl_in: Literal["reward", "loss-k3", "loss-k2-response"] = "reward"
    """Where the KL penalty is. reward: β times a response's KL is subtracted from its score, before the advantage.
    loss-k3: a term of the loss, as in the GRPO paper; its gradient is that of the forward KL. loss-k2-response: a term
    of the loss with the gradient of the reverse KL."""
    advantage: Literal["leave-one-out", "centred", "standardised"] = "leave-one-out"
    """A response's score minus the mean of the others' (leave-one-out: RLOO), minus the group's mean (centred: Dr.
    GRPO), or that divided by the group's standard deviation (standardised: GRPO), which gives every group the same
    weight."""
    normalisation: Literal["token", "sequence", "constant"] = "constant"
    """What the sum over tokens is divided by. token: the number of tokens in the step (DAPO). sequence: each response's
    length, then the number of responses (GRPO). constant: responses times `max_new_tokens` (Dr. GRPO), the only one
    without a bias to longer or shorter responses."""
    clip_high: float | None = Field(None, gt=0)
    """Upper clipping bound: the ratio is clipped at 1 + this; null is `clip`."""
    overlong: Literal["keep", "mask", "penalise"] = "keep"
    """What to do with responses that are cut off. keep: nothing. mask: no gradient. penalise: subtract a penalty that
    rises to 1 over the last fifth of `max_new_tokens` (DAPO)."""
    resample_zero_spread: bool = False
    """Replace groups whose responses all have the same score by groups of other prompts (DAPO's dynamic sampling)."""

    def rollout_settings(self) -> Settings:
        """The settings of `Rollouts`."""
        return {
            "batch_size": self.batch_size,
            "group_size": self.group_size,
            "seed": self.seed,
            "resample": self.resample_zero_spread,
        }

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("preset") in GRPO_PRESETS:
            preset = GRPO_PRESETS[values["preset"]]
            warmup = {} if values.get("warmup_ratio") is None else {"warmup_steps": 0}
            return {**preset, **warmup, **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> GRPOConfig:
        if self.minibatches > self.batch_size:
            raise ValueError(f"minibatches ({self.minibatches}) cannot be more than batch_size ({self.batch_size})")
        return self


PUBLISHED_BETA = {"simpo": 2.0, "length-normalised": 5.0}
"""Meng et al. 2024 (arXiv:2405.14734), Lambert et al. 2024 (arXiv:2411.15124): both losses divide by the length."""


class DPOConfig(TrainingConfig):
    """DPO and its variants: see `loss`. Defaults: Rafailov et al. 2023 (arXiv:2305.18290), B, and its code, unless a
    field says otherwise.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = TrainingConfig.MAY_CHANGE | {"hold_out", "gold"}

    loss: Literal["sigmoid", "smoothed", "robust", "ipo", "simpo", "length-normalised"] = "sigmoid"
    """Loss of a comparison. sigmoid: DPO. smoothed: conservative DPO, for noisy labels. robust: corrected for noisy
    labels. ipo: a finite target for the margin. simpo: mean log-probability of a token, without a reference.
    length-normalised: the same with a reference. Rankings of more than two responses need sigmoid."""
    beta: float = Field(0.1, gt=0)
    """β, the coefficient of the KL penalty: the cost of one nat of KL from the reference. Large: the policy stays at
    the reference. Near 0: the labels are fitted at any distance. The default is 2 for simpo and 5 for
    length-normalised, as published, since these divide by the length."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """ε, the assumed share of flipped labels; required for the losses smoothed and robust, and not used by others."""
    gamma_ratio: float = Field(0.5, ge=0)
    """SimPO's γ/β: how far the chosen response's mean log-probability must lead (arXiv:2405.14734)."""
    sft_coefficient: float = Field(0.0, ge=0)
    """Weight of an SFT loss on the chosen response, −log π(chosen) a token, which keeps it likely (Pang et al. 2024,
    arXiv:2404.19733, used 1)."""
    reference: ModelRef | None = None
    """Model that the KL is measured from; null is `model` as it starts."""
    batch_size: int = Field(64, ge=1)
    """Prompts in one optimiser step, each with its pair or ranking."""
    learning_rate: float = Field(5e-7, ge=0)
    """Peak learning rate; the paper used 1e-6 with RMSprop. Models of a few million parameters take 100 times as
    much."""
    kl_every: int | None = Field(None, ge=1)
    """Steps between two measurements of the KL from the reference, on new responses to held-out prompts; null measures
    at the end only."""
    kl_samples: int = Field(128, ge=0)
    """Sample at most this many responses for the KL, spread over the held-out prompts; 0 does not measure it."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest of the responses for the KL, in tokens."""
    stop: StopTexts = ()
    """End the responses for the KL after the first of these texts, as `kleash generate` does."""
    snapshot_every: int | None = Field(None, ge=1)
    """Steps between two copies of the weights in snapshots/, which `kleash overopt` measures; null keeps none."""
    hold_out: MeasureRef | None = None
    """Validation reward, which scores the responses for the KL and is never trained against: a folder, a verifier, …"""
    gold: MeasureRef | None = None
    """Gold reward, which scores the same responses: the goal itself, where it can be computed."""

    def kl_due(self, step: int, steps: int) -> bool:
        """Whether the KL is to be measured after `step` steps of `steps`."""
        if self.loss == "simpo" or self.kl_samples == 0:
            return False
        return step == steps or (self.kl_every is not None and step % self.kl_every == 0)

    @model_validator(mode="before")
    @classmethod
    def _take_published_beta(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("loss") in PUBLISHED_BETA:
            return {"beta": PUBLISHED_BETA[values["loss"]], **values}
        return values

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

"""The settings that stages share; `stages/training_configs.py` and `stages/data_configs.py` add each stage's own."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from kleash.config import Columns, Config, DataRef, MeasureRef, ModelRef, RewardRef, Settings, StopTexts
from kleash.data.row_format import RowFormat
from kleash.models.compute import Compute, DType
from kleash.training.peft_settings import PeftSettings

Schedule = Literal["linear", "cosine", "constant"]


class StageConfig(Config):
    """Settings of every stage that reads a model and rows."""

    model: ModelRef
    """The model to start from: a folder, or a hub name."""
    data: DataRef
    """Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub name (docs/data.md)."""
    out: Path
    """Folder to write to. The same command run again continues where it stopped."""
    columns: Columns | None = None
    """Columns of the data whose names kleash does not know, as `prompt=question,response=answer`; where the columns fit
    two schemas, those that count. Null: the schemas of docs/data.md."""
    as_chat: bool = False
    """Make a prompt of plain text one turn of the user, so that it goes through the chat template."""
    seed: int = 0
    """Seed of every random draw. Same seed, same machine: the same numbers, bit for bit."""
    dtype: DType = "float32"
    """Precision of the forward and backward pass. Weights and optimiser stay in float32; bfloat16 halves the time on
    hardware that has it."""
    device: str = "auto"
    """`cpu`, `cuda`, …; `auto` uses a GPU if there is one."""

    @property
    def row_format(self) -> RowFormat:
        """How the rows of the data are read."""
        return RowFormat(self.columns, self.as_chat)

    @property
    def compute(self) -> Compute:
        """Where and how forward passes are computed."""
        return Compute(self.device, self.dtype, getattr(self, "micro_batch_tokens", Compute().micro_batch_tokens))


class TrainingConfig(StageConfig):
    """Settings of every stage that trains."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = Config.NOT_IDENTITY | {
        "trackers", "tracker_project", "run_name", "tracker_tags", "save_every", "keep_states", "accept_changed",
        "micro_batch_tokens", "push_to_hub",
    }  # fmt: skip
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"data", "eval_data", "dtype", "max_steps", "epochs"}) | {
        "learning_rate", "warmup_steps", "warmup_ratio", "min_lr_ratio", "max_grad_norm",
    }  # fmt: skip

    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps to take (rollouts for ppo and grpo), repeating the data as needed; overrides `epochs`."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data. Each sees every row once, so the last step is smaller where `batch_size` does not divide
    the rows; ppo and grpo fill their last rollout with the next pass's first prompts."""
    batch_size: int = Field(32, ge=1)
    """Groups (rows, pairs, prompts) in one optimiser step. It does not depend on memory: `micro_batch_tokens` sets how
    many are computed at once, and gradients are accumulated automatically."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens computed at once, padding included. Changes memory and speed, never the gradient. Lower it if memory runs
    out."""
    learning_rate: float = Field(1e-5, ge=0)
    """Peak learning rate of AdamW."""
    schedule: Schedule = "linear"
    """Learning-rate schedule after the warm-up: linear to 0, cosine to a tenth of the peak (`min_lr_ratio` sets other
    ends), or constant."""
    min_lr_ratio: float | None = Field(None, ge=0, le=1)
    """Learning rate at the end of the schedule, as a share of the peak. Null: 0 for linear, 0.1 for cosine."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises to its peak."""
    warmup_ratio: float | None = Field(None, ge=0, le=1)
    """The same as a share of all optimiser steps, rounded up, in place of `warmup_steps`."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, applied to matrices only."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Adam's β₁ and β₂: decay of its means of the gradient and of the squared gradient. DeepSeek-V3 and others use
    0.9 and 0.95."""
    adam_eps: float = Field(1e-8, gt=0)
    """Adam's ε. N+ (arXiv:2403.17031) reports that 1e-5 matters for PPO."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the norm of the gradient to this; null does not clip."""
    lora_rank: int | None = Field(None, ge=1)
    """Train LoRA adapters of this rank and freeze the other weights (Hu et al. 2021, arXiv:2106.09685). Takes less
    memory for gradients, optimiser and reference, and needs a learning rate about ten times as high. The adapters are
    merged at the end: `out` holds a plain model. Null trains all weights."""
    lora_alpha: float = Field(32.0, gt=0)
    """LoRA's α: the adapters' output is scaled by α/rank, so that the learning rate need not change with the rank."""
    peft_config: PeftSettings | None = None
    """Settings of the adapters by `peft.LoraConfig`'s names, in place of `lora_rank` and `lora_alpha`: in Python a
    LoraConfig, elsewhere YAML, as `{r: 8, use_dora: true, target_modules: [q_proj, v_proj]}`, or a file of it."""
    adapter: Literal["merge", "continue", "keep"] = "merge"
    """What to do with the adapter that `model` is or has (a LoRA folder, a `PeftModel`). merge: merge it into its base
    and train as `lora_rank` says. continue: train the adapter on and freeze the other weights. keep: the same, or with
    `lora_rank` or `peft_config` train a new one, and write `out` as a folder with the adapter only, which `peft` reads;
    otherwise `out` holds a plain model. The reference is the base with the adapter as it came."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass. Takes less memory and about a third more time, and
    the prompt is computed once for each response. Does not change the gradient."""
    max_length: int | None = Field(None, ge=2)
    """Most tokens of prompt and response together. Longer responses are cut, rows with longer prompts are dropped, and
    both are counted. Null: the model's context length."""
    streaming: bool = False
    """Read the rows of `data` while they are trained on, so that memory does not grow with their number: in blocks that
    are shuffled. Needs `max_steps`, since nobody counts the rows, and one source of rows that can be read in order."""
    eval_data: DataRef | None = None
    """Held-out rows to evaluate on. Null holds out a tenth of `data`, by prompt if it has 20 prompts or more."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between two evaluations on the held-out rows; null evaluates at the end only."""
    max_eval_rows: int | None = Field(None, ge=1)
    """Evaluate on at most this many held-out rows."""
    keep_weights: Literal["best", "last"] = "last"
    """Which weights to save: the last ones, or the best ones on the held-out rows, whose figures are then too good:
    report on other rows."""
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights in `out`. Training is in float32 whatever it is; null saves in the type that the model came
    in. A small learning rate's changes may be lost in 16 bits."""
    save_every: int | None = Field(None, ge=1)
    """Steps between two training states, from which an interrupted run continues; null: a tenth of the run."""
    keep_states: int = Field(0, ge=0)
    """How many training states to keep when the run is finished, from which it can be lengthened (`max_steps`). While
    it runs at least the newest is kept."""
    accept_changed: tuple[str, ...] = ()
    """What may differ from the run in `out`, which goes on from its last state: reward, data, learning_rate, … Each
    change is recorded in run.json. More steps and other `micro_batch_tokens` need no leave."""
    measure_share: float = Field(0.2, gt=0)
    """Most work of the measurements after training, and of one measurement of held-out prompts, as a share of the
    training's; they read fewer rows where it does not suffice. Work is counted in tokens, not by the clock, and small
    models are not limited."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where to log metrics besides metrics.jsonl. Each needs its extra: pip install 'kleash[tensorboard]'."""
    tracker_project: str | None = None
    """Project of the run in W&B and trackio; null is `kleash`."""
    run_name: str | None = None
    """Name of the run in W&B and trackio; null is the name of the folder `out`, which is its name in TensorBoard."""
    tracker_tags: tuple[str, ...] = ()
    """Tags of the run in W&B; trackio and TensorBoard, which have none, show them with the settings."""
    push_to_hub: str | None = None
    """Repository of the hub, OWNER/NAME, to push the finished model to; a new one is private. Needs `hf auth login` or
    HF_TOKEN. States, snapshots and rows are not pushed."""
    force: bool = False
    """Continue although a check of this stage's inputs failed."""

    @property
    def accepted(self) -> frozenset[str]:
        """See `Config`."""
        return frozenset(self.accept_changed)

    @field_validator("accept_changed")
    @classmethod
    def _may_change(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.replace("-", "_") for name in names)
        if unknown := [name for name in names if name not in cls.MAY_CHANGE]:
            raise ValueError(f"of {', '.join(sorted(cls.MAY_CHANGE))}; a run cannot go on with another '{unknown[0]}'")
        return names

    @field_validator("tracker_project", "run_name", "tracker_tags")
    @classmethod
    def _trackers_take_it(cls, value: Any) -> Any:
        for name in (value,) if isinstance(value, str) else value or ():
            if not re.fullmatch(r"[^/\\#?%:\x00-\x1f]{1,64}", name):
                raise ValueError("at most 64 characters, without / \\ # ? % : and line breaks")
        return value

    @field_validator("push_to_hub", mode="before")
    @classmethod
    def _names_a_repository(cls, name: Any) -> Any:
        part = r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?"  # as the hub has it
        if name is not None and not (isinstance(name, str) and re.fullmatch(rf"(?:{part}/)?{part}", name, re.ASCII)):
            raise ValueError("the name of a repository, OWNER/NAME")
        return name

    @model_validator(mode="after")
    def _rates_fit_together(self) -> TrainingConfig:
        if self.warmup_ratio is not None and self.warmup_steps:
            raise ValueError("warmup_ratio stands in place of 'warmup_steps'; give one of them")
        if self.min_lr_ratio is not None and self.schedule == "constant":
            raise ValueError("min_lr_ratio is where a schedule ends, and constant has no other end than the peak")
        return self

    @model_validator(mode="after")
    def _names_go_to_trackers(self) -> TrainingConfig:
        names = [name for name in ("tracker_project", "run_name", "tracker_tags") if getattr(self, name)]
        if names and not self.trackers:
            raise ValueError(f"{names[0]} is for trackers; give 'trackers' too")
        return self

    @model_validator(mode="after")
    def _one_adapter(self) -> TrainingConfig:
        if self.lora_rank is not None and self.peft_config is not None:
            raise ValueError("peft_config has the rank as 'r'; leave 'lora_rank' out")
        if self.peft_config is not None and "lora_alpha" in self.model_fields_set and self.lora_alpha != 32:
            raise ValueError("peft_config has α as 'lora_alpha'; put it there")
        if self.adapter == "keep" and self.save_dtype is not None:
            raise ValueError("adapter keep saves the adapter as it was trained, in float32; leave 'save_dtype' out")
        if self.adapter == "continue" and (self.lora_rank is not None or self.peft_config is not None):
            name = "lora_rank" if self.lora_rank is not None else "peft_config"
            raise ValueError(f"adapter continue trains the adapter that the model has; leave '{name}' out")
        return self

    @model_validator(mode="after")
    def _streams_so_many_steps(self) -> TrainingConfig:
        if self.streaming and self.max_steps is None:
            raise ValueError("streaming does not count the rows, so epochs have no length; give 'max_steps'")
        return self

    def steps(self, rows: int) -> int:
        """Total optimiser steps for a number of training rows."""
        return self.max_steps if self.max_steps is not None else math.ceil(self._total(rows) / self.batch_size)

    def batch_settings(self, rows: int) -> Settings:
        """The settings of `batches` for a number of training rows: each epoch has every row once, so that the last
        step is smaller where `batch_size` does not divide them.
        """
        total = None if self.max_steps is not None else self._total(rows)
        return {"batch_size": self.batch_size, "seed": self.seed, "total": total}

    def _total(self, rows: int) -> int:
        """Rows of all epochs together."""
        return max(1, round(self.epochs * rows))

    def optimizer_settings(self) -> Settings:
        """The settings of `Optimizer`, but for the number of steps."""
        names = (
            "learning_rate", "schedule", "min_lr_ratio", "warmup_steps", "warmup_ratio", "weight_decay", "adam_betas",
            "adam_eps", "max_grad_norm",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def loop_settings(self) -> Settings:
        """The settings of `Loop`, but for the number of steps."""
        return {name: getattr(self, name) for name in ("save_every", "keep_states", "eval_every", "trackers")}

    def measure_settings(self, rows: int) -> Settings:
        """The settings of `Measurements` for a number of training rows."""
        return {"rows": self.batch_size * self.steps(rows), "share": self.measure_share, "seed": self.seed}

    def adapter_settings(self) -> Settings:
        """The settings of `make_trainable`."""
        return {
            "lora": self.lora,
            "seed": self.seed,
            "gradient_checkpointing": self.gradient_checkpointing,
            "keep": self.adapter == "keep",
        }

    @property
    def lora(self) -> Settings | None:
        """The settings of new adapters, by `peft.LoraConfig`'s names; None: there are none."""
        if self.lora_rank is not None:
            return {"r": self.lora_rank, "lora_alpha": self.lora_alpha, "target_modules": "all-linear"}
        return self.peft_config


class RolloutConfig(TrainingConfig):
    """Settings of every stage that trains on its own samples."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = TrainingConfig.NOT_IDENTITY | {"log_rollouts", "skip_bad_rows"}
    MAY_CHANGE: ClassVar[frozenset[str]] = TrainingConfig.MAY_CHANGE | {"reward", "hold_out", "gold", "beta"}

    reward: RewardRef
    """Reward to train against: a reward model's folder, `module:function` with TRL's signature, a
    verifier ({verifiers}), a .yaml composition, or `{by: COLUMN, …}`, a reward for each value of a column."""
    skip_bad_rows: bool = False
    """Leave out rows whose answer, pattern, schema or task a reward cannot read, or that lack a column which it takes,
    instead of stopping before the first sample. They are counted."""
    reference: ModelRef | None = None
    """Model that the KL penalty is measured from; null is `model` as it starts."""
    beta: float = Field(0.05, ge=0)
    """β, the coefficient of the KL penalty: the cost of one nat of KL from the reference, in units of reward. 0: no
    penalty, and the policy exploits the reward's errors. Large: it stays at the reference. Published: 0.02
    (InstructGPT), 0.05 (N+)."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest response, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature, which divides the logits, in training too."""
    stop: StopTexts = ()
    """End a response after the first of these texts, as an end token does: it counts as finished, its tokens up to
    there are trained, and the text that the reward reads ends before the stop text. For models that seldom say their
    end token. A line break is $'\\n' in the shell."""
    inner_epochs: int = Field(1, ge=1)
    """Passes over each rollout, reshuffled each time."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps in one pass over a rollout."""
    clip: float = Field(0.2, gt=0)
    """PPO's ε: beyond 1 ± this the probability ratio no longer adds to the objective."""
    log_rollouts: int = Field(8, ge=0)
    """Write this many responses of each rollout token by token under rollouts/; 0 writes none."""
    snapshot_every: int | None = Field(None, ge=1)
    """Rollouts between two copies of the weights in snapshots/, which `kleash overopt` measures; null keeps none."""
    hold_out: MeasureRef | None = None
    """Validation reward, which is measured and never trained against; preferably a reward model trained on other
    labels. Null uses the one that `kleash reward --validation-share` wrote into the folder of `reward`, if there is
    one."""
    gold: MeasureRef | None = None
    """Gold reward: the goal itself, where it can be computed. It scores the held-out responses at every evaluation
    and is never trained against."""
    criterion: Literal["objective", "gold", "validation"] = "objective"
    """What `keep_weights best` and `patience` compare, on held-out prompts: reward − β·KL (with `beta` as it is set,
    also where `target_kl` adapts it), the gold reward, or the validation reward."""
    kl_budget: float | None = Field(None, gt=0)
    """Stop after the rollout whose KL from the reference exceeds this many nats a response."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations (`eval_every`) in a row without a new best value of `criterion`."""

    def component_settings(self) -> Settings:
        """The settings of `build_components`."""
        return {
            "reference": self.reference,
            "validation_reward": self.hold_out,
            "gold": self.gold,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "stop": self.stop,
            "needs_validation": self.criterion == "validation",
            "adapter": self.adapter,
            "lora": self.lora,
            "gradient_checkpointing": self.gradient_checkpointing,
            "seed": self.seed,
            "compute": self.compute,
        }

    def held_out_settings(self, rollouts: int) -> Settings:
        """The settings of `HeldOutPrompts` for a number of rollouts."""
        group_size = getattr(self, "group_size", 1)
        return {
            "criterion": self.criterion,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "group_size": group_size,
            "trained": rollouts * self.batch_size * group_size,
            "passes": self.inner_epochs,
            "share": self.measure_share,
        }

    def prompt_settings(self) -> Settings:
        """The settings of `read_prompts`."""
        names = (
            "data",
            "eval_data",
            "row_format",
            "max_new_tokens",
            "max_length",
            "max_eval_rows",
            "streaming",
            "skip_bad_rows",
            "seed",
        )
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _criterion_is_measured(self) -> RolloutConfig:
        if self.criterion == "gold" and self.gold is None:
            raise ValueError("criterion gold needs 'gold'; give the gold reward")
        if self.streaming and self.skip_bad_rows:
            raise ValueError("streaming reads rows as it goes and cannot skip_bad_rows; leave one of them out")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("patience counts evaluations; give 'eval_every' too")
        return self

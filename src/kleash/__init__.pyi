"""Written by `python -m kleash.api.stub` from the configs of the stages: change those."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from kleash.api.types import Data, File, Model, RewardLike
from kleash.chat.messages import Chat
from kleash.models.forward import Live
from kleash.run import RunFolder
from kleash.training.loop import OnStep
from pathlib import Path

from kleash.stages.data_configs import AskConfig as AskConfig, BestOfNConfig as BestOfNConfig, ExportConfig as ExportConfig, GenerateConfig as GenerateConfig, JudgeConfig as JudgeConfig, OveroptConfig as OveroptConfig, RankConfig as RankConfig, ReviseConfig as ReviseConfig, ScoreConfig as ScoreConfig
from kleash.errors import ConfigError as ConfigError, DataError as DataError, GateError as GateError, InputError as InputError, KleashError as KleashError, MachineError as MachineError, ModelError as ModelError, OnStepError as OnStepError, RewardError as RewardError, SavingError as SavingError, TrainingError as TrainingError
from kleash.stages.training_configs import DPOConfig as DPOConfig, EnsembleConfig as EnsembleConfig, GRPOConfig as GRPOConfig, PPOConfig as PPOConfig, SFTConfig as SFTConfig
from kleash.data.group import Group as Group, Preference as Preference, Ranking as Ranking, Response as Response, Scores as Scores
from kleash.data.batch import GroupBatch as GroupBatch
from kleash.rewards.learned import LearnedReward as LearnedReward
from kleash.sampling.local import LocalSampler as LocalSampler
from kleash.rewards.reward import Reward as Reward
from kleash.api.finished import Run as Run, open_run as open_run
from kleash.run import RunFolder as RunFolder
from kleash.rewards.build import build_reward as build_reward
from kleash.api.checking import check as check
from kleash.data.chat import encode as encode, encode_prompt as encode_prompt
from kleash.models.load import load_policy as load_policy, load_reward_model as load_reward_model
from kleash.data.formats import read_groups as read_groups, write_groups as write_groups
from kleash.models.forward import response_logprobs as response_logprobs, response_scores as response_scores
from kleash.recipe import run_recipe as run_recipe
from kleash.models.place import trust_remote_code as trust_remote_code
from kleash.web.label.serve import LabelConfig
__version__: str
_STAGES: tuple[str, ...]
_HOME_OF: dict[str, str]
__all__ = ["__version__", "AskConfig", "BestOfNConfig", "ConfigError", "DPOConfig", "DataError", "EnsembleConfig", "ExportConfig", "GRPOConfig", "GateError", "GenerateConfig", "Group", "GroupBatch", "InputError", "JudgeConfig", "KleashError", "LearnedReward", "LocalSampler", "MachineError", "ModelError", "OnStepError", "OveroptConfig", "PPOConfig", "Preference", "RankConfig", "Ranking", "Response", "ReviseConfig", "Reward", "RewardError", "Run", "RunFolder", "SFTConfig", "SavingError", "ScoreConfig", "Scores", "TrainingError", "ask", "best_of_n", "build_reward", "check", "dpo", "encode", "encode_prompt", "export", "generate", "grpo", "judge", "label", "load_policy", "load_reward_model", "open_run", "overopt", "ppo", "rank", "read_groups", "response_logprobs", "response_scores", "revise", "reward", "run_recipe", "score", "sft", "trust_remote_code", "write_groups"]
@overload
def sft(
    *,
    model: Model,
    data: Data,
    out: File,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    max_steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 32,
    micro_batch_tokens: int = 8192,
    learning_rate: float = 1e-05,
    schedule: Literal['linear', 'cosine', 'constant'] = 'linear',
    min_lr_ratio: float | None = None,
    warmup_steps: int = 0,
    warmup_ratio: float | None = None,
    weight_decay: float = 0.0,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    lora_rank: int | None = None,
    lora_alpha: float = 32.0,
    peft_config: Mapping[str, Any] | None = None,
    adapter: Literal['merge', 'continue', 'keep'] = 'merge',
    gradient_checkpointing: bool = False,
    max_length: int | None = None,
    streaming: bool = False,
    eval_data: Data | None = None,
    eval_every: int | None = None,
    max_eval_rows: int | None = None,
    keep_weights: Literal['best', 'last'] = 'last',
    save_dtype: Literal['float32', 'bfloat16', 'float16'] | None = None,
    save_every: int | None = None,
    keep_states: int = 0,
    accept_changed: Sequence[str] = (),
    measure_share: float = 0.2,
    trackers: Sequence[Literal['tensorboard', 'wandb', 'trackio']] = (),
    tracker_project: str | None = None,
    run_name: str | None = None,
    tracker_tags: Sequence[str] = (),
    push_to_hub: str | None = None,
    force: bool = False,
    response_column: str | None = None,
    gate_prompts: int = 64,
    gate_max_new_tokens: int = 128,
    policy: Live | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """SFT: supervised fine-tuning on demonstrations.

    Fine-tune on the responses in `data`. Defaults: N+ (arXiv:2403.17031), one epoch, and InstructGPT's
    batch of 32.

    Args:
        model: The model to start from: a folder, or a hub name.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: Folder to write to. The same command run again continues where it stopped.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        seed: Seed of every random draw. Same seed, same machine: the same numbers, bit for bit.
        dtype: Precision of the forward and backward pass. Weights and optimiser stay in float32;
            bfloat16 halves the time on hardware that has it.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.
        max_steps: Optimiser steps to take (rollouts for ppo and grpo), repeating the data as needed;
            overrides `epochs`.
        epochs: Passes over the data. Each sees every row once, so the last step is smaller where
            `batch_size` does not divide the rows; ppo and grpo fill their last rollout with the next
            pass's first prompts.
        batch_size: Groups (rows, pairs, prompts) in one optimiser step. It does not depend on memory:
            `micro_batch_tokens` sets how many are computed at once, and gradients are accumulated
            automatically.
        micro_batch_tokens: Tokens computed at once, padding included. Changes memory and speed, never
            the gradient. Lower it if memory runs out.
        learning_rate: Peak learning rate. InstructGPT used 9.65e-6, N+ 3e-6; models of a few million
            parameters take 100 times as much.
        schedule: Learning-rate schedule after the warm-up: linear to 0, cosine to a tenth of the peak
            (`min_lr_ratio` sets other ends), or constant.
        min_lr_ratio: Learning rate at the end of the schedule, as a share of the peak. Null: 0 for
            linear, 0.1 for cosine.
        warmup_steps: Steps over which the learning rate rises to its peak.
        warmup_ratio: The same as a share of all optimiser steps, rounded up, in place of
            `warmup_steps`.
        weight_decay: AdamW's decoupled weight decay, applied to matrices only.
        adam_betas: Adam's β₁ and β₂: decay of its means of the gradient and of the squared gradient.
            DeepSeek-V3 and others use 0.9 and 0.95.
        adam_eps: Adam's ε. N+ (arXiv:2403.17031) reports that 1e-5 matters for PPO.
        max_grad_norm: Clip the norm of the gradient to this; null does not clip.
        lora_rank: Train LoRA adapters of this rank and freeze the other weights (Hu et al. 2021,
            arXiv:2106.09685). Takes less memory for gradients, optimiser and reference, and needs a
            learning rate about ten times as high. The adapters are merged at the end: `out` holds a
            plain model. Null trains all weights.
        lora_alpha: LoRA's α: the adapters' output is scaled by α/rank, so that the learning rate need
            not change with the rank.
        peft_config: Settings of the adapters by `peft.LoraConfig`'s names, in place of `lora_rank` and
            `lora_alpha`: in Python a LoraConfig, elsewhere YAML, as `{r: 8, use_dora: true,
            target_modules: [q_proj, v_proj]}`, or a file of it.
        adapter: What to do with the adapter that `model` is or has (a LoRA folder, a `PeftModel`).
            merge: merge it into its base and train as `lora_rank` says. continue: train the adapter on
            and freeze the other weights. keep: the same, or with `lora_rank` or `peft_config` train a
            new one, and write `out` as a folder with the adapter only, which `peft` reads; otherwise
            `out` holds a plain model. The reference is the base with the adapter as it came.
        gradient_checkpointing: Compute each layer's activations again in the backward pass. Takes less
            memory and about a third more time, and the prompt is computed once for each response. Does
            not change the gradient.
        max_length: Most tokens of prompt and response together. Longer responses are cut, rows with
            longer prompts are dropped, and both are counted. Null: the model's context length.
        streaming: Read the rows of `data` while they are trained on, so that memory does not grow with
            their number: in blocks that are shuffled. Needs `max_steps`, since nobody counts the rows,
            and one source of rows that can be read in order.
        eval_data: Held-out rows to evaluate on. Null holds out a tenth of `data`, by prompt if it has
            20 prompts or more.
        eval_every: Steps between two evaluations on the held-out rows; null evaluates at the end only.
        max_eval_rows: Evaluate on at most this many held-out rows.
        keep_weights: Which weights to save: the last ones, or the best ones on the held-out rows, whose
            figures are then too good: report on other rows.
        save_dtype: Type of the weights in `out`. Training is in float32 whatever it is; null saves in
            the type that the model came in. A small learning rate's changes may be lost in 16 bits.
        save_every: Steps between two training states, from which an interrupted run continues; null: a
            tenth of the run.
        keep_states: How many training states to keep when the run is finished, from which it can be
            lengthened (`max_steps`). While it runs at least the newest is kept.
        accept_changed: What may differ from the run in `out`, which goes on from its last state:
            reward, data, learning_rate, … Each change is recorded in run.json. More steps and other
            `micro_batch_tokens` need no leave.
        measure_share: Most work of the measurements after training, and of one measurement of held-out
            prompts, as a share of the training's; they read fewer rows where it does not suffice. Work
            is counted in tokens, not by the clock, and small models are not limited.
        trackers: Where to log metrics besides metrics.jsonl. Each needs its extra: pip install
            'kleash[tensorboard]'.
        tracker_project: Project of the run in W&B and trackio; null is `kleash`.
        run_name: Name of the run in W&B and trackio; null is the name of the folder `out`, which is its
            name in TensorBoard.
        tracker_tags: Tags of the run in W&B; trackio and TensorBoard, which have none, show them with
            the settings.
        push_to_hub: Repository of the hub, OWNER/NAME, to push the finished model to; a new one is
            private. Needs `hf auth login` or HF_TOKEN. States, snapshots and rows are not pushed.
        force: Continue although a check of this stage's inputs failed.
        response_column: Column that holds the response, if it is not `response`, `completion` or
            `messages` (`solution`, say).
        gate_prompts: Held-out prompts for which the checks after training sample two responses each, to
            see whether they end, repeat themselves and differ. 0 samples nothing; nor does a model of
            more than a billion parameters on a CPU.
        gate_max_new_tokens: Longest of those samples, in tokens. They are shorter if nine tenths of the
            demonstrations are.
        policy: A live model and tokenizer that are themselves trained, in place of a copy of `model`:
            they change.
        on_step: Called as on_step(step, figures) after each step is logged; where it returns "stop" the
            run ends with what it has.

    Returns:
        The run.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def sft(config: SFTConfig, /, *, policy: Live | None = None, on_step: OnStep | None = None, **others: Any) -> Run: ...

@overload
def reward(
    *,
    model: Model,
    data: Data,
    out: File,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    max_steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 64,
    micro_batch_tokens: int = 8192,
    learning_rate: float = 9e-06,
    schedule: Literal['linear', 'cosine', 'constant'] = 'cosine',
    min_lr_ratio: float | None = None,
    warmup_steps: int = 0,
    warmup_ratio: float | None = None,
    weight_decay: float = 0.0,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    lora_rank: int | None = None,
    lora_alpha: float = 32.0,
    peft_config: Mapping[str, Any] | None = None,
    adapter: Literal['merge', 'continue', 'keep'] = 'merge',
    gradient_checkpointing: bool = False,
    max_length: int | None = None,
    streaming: bool = False,
    eval_data: Data | None = None,
    eval_every: int | None = None,
    max_eval_rows: int | None = None,
    keep_weights: Literal['best', 'last'] = 'last',
    save_dtype: Literal['float32', 'bfloat16', 'float16'] | None = None,
    save_every: int | None = None,
    keep_states: int = 0,
    accept_changed: Sequence[str] = (),
    measure_share: float = 0.2,
    trackers: Sequence[Literal['tensorboard', 'wandb', 'trackio']] = (),
    tracker_project: str | None = None,
    run_name: str | None = None,
    tracker_tags: Sequence[str] = (),
    push_to_hub: str | None = None,
    force: bool = False,
    margin: float = 0.0,
    centring: float = 0.0,
    heads: int = 1,
    combine: Literal['mean', 'worst', 'mean-variance'] = 'mean',
    variance_penalty: float = 0.5,
    centre_data: Data | None = None,
    centre_samples: int = 128,
    centre_max_new_tokens: int = 64,
    best_of: int = 0,
    gold: RewardLike | None = None,
    learning_curve: bool = False,
    members: int = 1,
    average_weights: bool = False,
    validation_share: float = 0.0,
    reward: Live | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """Reward model: train a Bradley–Terry model, or an ensemble, on comparisons.

    Train a Bradley–Terry reward model on comparisons. Defaults: Ouyang et al. 2022 (arXiv:2203.02155),
    C.2, unless a field says otherwise.

    Args:
        model: The model to start from: a folder, or a hub name.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: Folder to write to. The same command run again continues where it stopped.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        seed: Seed of every random draw. Same seed, same machine: the same numbers, bit for bit.
        dtype: Precision of the forward and backward pass. Weights and optimiser stay in float32;
            bfloat16 halves the time on hardware that has it.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.
        max_steps: Optimiser steps to take (rollouts for ppo and grpo), repeating the data as needed;
            overrides `epochs`.
        epochs: Passes over the data. Each sees every row once, so the last step is smaller where
            `batch_size` does not divide the rows; ppo and grpo fill their last rollout with the next
            pass's first prompts.
        batch_size: Prompts in one optimiser step, each with all pairs of its K responses.
        micro_batch_tokens: Tokens computed at once, padding included. Changes memory and speed, never
            the gradient. Lower it if memory runs out.
        learning_rate: Peak learning rate; N+ (arXiv:2403.17031) used 3e-6.
        schedule: Learning-rate schedule: cosine to a tenth of the peak (InstructGPT), linear to 0
            (`min_lr_ratio` sets other ends), or constant.
        min_lr_ratio: Learning rate at the end of the schedule, as a share of the peak. Null: 0 for
            linear, 0.1 for cosine.
        warmup_steps: Steps over which the learning rate rises to its peak.
        warmup_ratio: The same as a share of all optimiser steps, rounded up, in place of
            `warmup_steps`.
        weight_decay: AdamW's decoupled weight decay, applied to matrices only.
        adam_betas: Adam's β₁ and β₂: decay of its means of the gradient and of the squared gradient.
            DeepSeek-V3 and others use 0.9 and 0.95.
        adam_eps: Adam's ε. N+ (arXiv:2403.17031) reports that 1e-5 matters for PPO.
        max_grad_norm: Clip the norm of the gradient to this; null does not clip.
        lora_rank: Train LoRA adapters of this rank and freeze the other weights (Hu et al. 2021,
            arXiv:2106.09685). Takes less memory for gradients, optimiser and reference, and needs a
            learning rate about ten times as high. The adapters are merged at the end: `out` holds a
            plain model. Null trains all weights.
        lora_alpha: LoRA's α: the adapters' output is scaled by α/rank, so that the learning rate need
            not change with the rank.
        peft_config: Settings of the adapters by `peft.LoraConfig`'s names, in place of `lora_rank` and
            `lora_alpha`: in Python a LoraConfig, elsewhere YAML, as `{r: 8, use_dora: true,
            target_modules: [q_proj, v_proj]}`, or a file of it.
        adapter: What to do with the adapter that `model` is or has (a LoRA folder, a `PeftModel`).
            merge: merge it into its base and train as `lora_rank` says. continue: train the adapter on
            and freeze the other weights. keep: the same, or with `lora_rank` or `peft_config` train a
            new one, and write `out` as a folder with the adapter only, which `peft` reads; otherwise
            `out` holds a plain model. The reference is the base with the adapter as it came.
        gradient_checkpointing: Compute each layer's activations again in the backward pass. Takes less
            memory and about a third more time, and the prompt is computed once for each response. Does
            not change the gradient.
        max_length: Most tokens of prompt and response together. Longer responses are cut, rows with
            longer prompts are dropped, and both are counted. Null: the model's context length.
        streaming: Read the rows of `data` while they are trained on, so that memory does not grow with
            their number: in blocks that are shuffled. Needs `max_steps`, since nobody counts the rows,
            and one source of rows that can be read in order.
        eval_data: Held-out rows to evaluate on. Null holds out a tenth of `data`, by prompt if it has
            20 prompts or more.
        eval_every: Steps between two evaluations on the held-out rows; null evaluates at the end only.
        max_eval_rows: Evaluate on at most this many held-out rows.
        keep_weights: Which weights to save: the last ones, or the best ones on the held-out rows, whose
            figures are then too good: report on other rows.
        save_dtype: Type of the weights in `out`. Training is in float32 whatever it is; null saves in
            the type that the model came in. A small learning rate's changes may be lost in 16 bits.
        save_every: Steps between two training states, from which an interrupted run continues; null: a
            tenth of the run.
        keep_states: How many training states to keep when the run is finished, from which it can be
            lengthened (`max_steps`). While it runs at least the newest is kept.
        accept_changed: What may differ from the run in `out`, which goes on from its last state:
            reward, data, learning_rate, … Each change is recorded in run.json. More steps and other
            `micro_batch_tokens` need no leave.
        measure_share: Most work of the measurements after training, and of one measurement of held-out
            prompts, as a share of the training's; they read fewer rows where it does not suffice. Work
            is counted in tokens, not by the clock, and small models are not limited.
        trackers: Where to log metrics besides metrics.jsonl. Each needs its extra: pip install
            'kleash[tensorboard]'.
        tracker_project: Project of the run in W&B and trackio; null is `kleash`.
        run_name: Name of the run in W&B and trackio; null is the name of the folder `out`, which is its
            name in TensorBoard.
        tracker_tags: Tags of the run in W&B; trackio and TensorBoard, which have none, show them with
            the settings.
        push_to_hub: Repository of the hub, OWNER/NAME, to push the finished model to; a new one is
            private. Needs `hf auth login` or HF_TOKEN. States, snapshots and rows are not pushed.
        force: Continue although a check of this stage's inputs failed.
        margin: Margin m by which the chosen response's score has to lead (Touvron et al. 2023,
            arXiv:2307.09288, eq. 2).
        centring: Coefficient of (r_a + r_b)², which keeps scores near zero during training (Eisenstein
            et al. 2023, arXiv:2312.09244). The scores are shifted to mean zero at the end in any case.
        heads: Score heads on one model: an ensemble at the cost of one. Each head is trained on its own
            half of the comparisons, counted twice (double-or-nothing bootstrap: Owen and Eckles 2012,
            Annals of Applied Statistics 6, 895), the model below them on all.
        combine: How to combine the scores of several heads or members: their mean, the lowest of them,
            or mean − λ·variance (Coste et al. 2023, arXiv:2310.02743, eq. 3–5).
        variance_penalty: λ of `mean-variance`.
        centre_data: Rows with one response each, whose mean score becomes zero; null samples responses
            from `model`.
        centre_samples: Responses to sample for centring the scores; 0 uses the training responses
            instead.
        centre_max_new_tokens: Longest of those samples, and of those for `best_of`, in tokens.
        best_of: Sample this many responses to each held-out prompt from `model` and report the score of
            the best of k, for every k up to this; 0 does not.
        gold: With `best_of`: another reward, named as for `--reward`, that scores the chosen responses
            and does not choose.
        learning_curve: Train on an eighth, a quarter and half of the rows too and report what twice the
            labels would add. Doubles the time.
        members: Reward models to train on the same comparisons, each from its own seed. From 2 on,
            `out` holds an ensemble whose score is given by `combine`. Coste et al. 2023
            (arXiv:2310.02743) used 5.
        average_weights: Start all members from the same head and write one model with the mean of their
            weights (WARM: Ramé et al. 2024, arXiv:2401.12187), which costs one forward pass to score.
            Needs `members` ≥ 2.
        validation_share: Share of the comparisons, by prompt, on which a separate reward model is
            trained, in hold-out/. Stages that train a policy against `out` measure it as validation
            reward and never train against it.
        reward: A live classifier and tokenizer that are themselves trained, in place of `model`.
        on_step: Called as on_step(step, figures) after each step is logged; where it returns "stop" the
            run ends with what it has.

    Returns:
        The run.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def reward(config: EnsembleConfig, /, *, reward: Live | None = None, on_step: OnStep | None = None, **others: Any) -> Run: ...

@overload
def ppo(
    *,
    model: Model,
    data: Data,
    out: File,
    reward: RewardLike,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    max_steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 64,
    micro_batch_tokens: int = 8192,
    learning_rate: float = 1e-05,
    schedule: Literal['linear', 'cosine', 'constant'] = 'linear',
    min_lr_ratio: float | None = None,
    warmup_steps: int = 0,
    warmup_ratio: float | None = None,
    weight_decay: float = 0.0,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    lora_rank: int | None = None,
    lora_alpha: float = 32.0,
    peft_config: Mapping[str, Any] | None = None,
    adapter: Literal['merge', 'continue', 'keep'] = 'merge',
    gradient_checkpointing: bool = False,
    max_length: int | None = None,
    streaming: bool = False,
    eval_data: Data | None = None,
    eval_every: int | None = None,
    max_eval_rows: int | None = None,
    keep_weights: Literal['best', 'last'] = 'last',
    save_dtype: Literal['float32', 'bfloat16', 'float16'] | None = None,
    save_every: int | None = None,
    keep_states: int = 0,
    accept_changed: Sequence[str] = (),
    measure_share: float = 0.2,
    trackers: Sequence[Literal['tensorboard', 'wandb', 'trackio']] = (),
    tracker_project: str | None = None,
    run_name: str | None = None,
    tracker_tags: Sequence[str] = (),
    push_to_hub: str | None = None,
    force: bool = False,
    skip_bad_rows: bool = False,
    reference: Model | None = None,
    beta: float = 0.05,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    inner_epochs: int = 4,
    minibatches: int = 1,
    clip: float = 0.2,
    log_rollouts: int = 8,
    snapshot_every: int | None = None,
    hold_out: RewardLike | None = None,
    gold: RewardLike | None = None,
    criterion: Literal['objective', 'gold', 'validation'] = 'objective',
    kl_budget: float | None = None,
    patience: int | None = None,
    preset: Literal['instructgpt', 'n-plus'] | None = None,
    target_kl: float | None = None,
    kl_horizon: float = 10000,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_advantages: bool = True,
    value_learning_rate: float | None = None,
    value_coefficient: float = 0.1,
    value_clip: float | None = 0.2,
    value_init: Literal['reward', 'policy'] = 'reward',
    missing_eos_score: float | None = None,
    whiten_rewards: bool = False,
    reward_clip: float | None = None,
    ema_decay: float | None = None,
    pretraining_data: Data | None = None,
    pretraining_coefficient: float = 27.8,
    policy: Live | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """PPO: train a policy against a reward with a KL penalty.

    PPO with a value network. Defaults: N+ (Huang et al. 2024, arXiv:2403.17031), except that everything
    that changes the objective is off.

    Args:
        model: The model to start from: a folder, or a hub name.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: Folder to write to. The same command run again continues where it stopped.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        seed: Seed of every random draw. Same seed, same machine: the same numbers, bit for bit.
        dtype: Precision of the forward and backward pass. Weights and optimiser stay in float32;
            bfloat16 halves the time on hardware that has it.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.
        max_steps: Optimiser steps to take (rollouts for ppo and grpo), repeating the data as needed;
            overrides `epochs`.
        epochs: Passes over the data. Each sees every row once, so the last step is smaller where
            `batch_size` does not divide the rows; ppo and grpo fill their last rollout with the next
            pass's first prompts.
        batch_size: Prompts in a rollout, each with one response.
        micro_batch_tokens: Tokens computed at once, padding included. Changes memory and speed, never
            the gradient. Lower it if memory runs out.
        learning_rate: Peak learning rate of AdamW.
        schedule: Learning-rate schedule after the warm-up: linear to 0, cosine to a tenth of the peak
            (`min_lr_ratio` sets other ends), or constant.
        min_lr_ratio: Learning rate at the end of the schedule, as a share of the peak. Null: 0 for
            linear, 0.1 for cosine.
        warmup_steps: Steps over which the learning rate rises to its peak.
        warmup_ratio: The same as a share of all optimiser steps, rounded up, in place of
            `warmup_steps`.
        weight_decay: AdamW's decoupled weight decay, applied to matrices only.
        adam_betas: Adam's β₁ and β₂: decay of its means of the gradient and of the squared gradient.
            DeepSeek-V3 and others use 0.9 and 0.95.
        adam_eps: Adam's ε. N+ (arXiv:2403.17031) reports that 1e-5 matters for PPO.
        max_grad_norm: Clip the norm of the gradient to this; null does not clip.
        lora_rank: Train LoRA adapters of this rank and freeze the other weights (Hu et al. 2021,
            arXiv:2106.09685). Takes less memory for gradients, optimiser and reference, and needs a
            learning rate about ten times as high. The adapters are merged at the end: `out` holds a
            plain model. Null trains all weights.
        lora_alpha: LoRA's α: the adapters' output is scaled by α/rank, so that the learning rate need
            not change with the rank.
        peft_config: Settings of the adapters by `peft.LoraConfig`'s names, in place of `lora_rank` and
            `lora_alpha`: in Python a LoraConfig, elsewhere YAML, as `{r: 8, use_dora: true,
            target_modules: [q_proj, v_proj]}`, or a file of it.
        adapter: What to do with the adapter that `model` is or has (a LoRA folder, a `PeftModel`).
            merge: merge it into its base and train as `lora_rank` says. continue: train the adapter on
            and freeze the other weights. keep: the same, or with `lora_rank` or `peft_config` train a
            new one, and write `out` as a folder with the adapter only, which `peft` reads; otherwise
            `out` holds a plain model. The reference is the base with the adapter as it came.
        gradient_checkpointing: Compute each layer's activations again in the backward pass. Takes less
            memory and about a third more time, and the prompt is computed once for each response. Does
            not change the gradient.
        max_length: Most tokens of prompt and response together. Longer responses are cut, rows with
            longer prompts are dropped, and both are counted. Null: the model's context length.
        streaming: Read the rows of `data` while they are trained on, so that memory does not grow with
            their number: in blocks that are shuffled. Needs `max_steps`, since nobody counts the rows,
            and one source of rows that can be read in order.
        eval_data: Held-out rows to evaluate on. Null holds out a tenth of `data`, by prompt if it has
            20 prompts or more.
        eval_every: Steps between two evaluations on the held-out rows; null evaluates at the end only.
        max_eval_rows: Evaluate on at most this many held-out rows.
        keep_weights: Which weights to save: the last ones, or the best ones on the held-out rows, whose
            figures are then too good: report on other rows.
        save_dtype: Type of the weights in `out`. Training is in float32 whatever it is; null saves in
            the type that the model came in. A small learning rate's changes may be lost in 16 bits.
        save_every: Steps between two training states, from which an interrupted run continues; null: a
            tenth of the run.
        keep_states: How many training states to keep when the run is finished, from which it can be
            lengthened (`max_steps`). While it runs at least the newest is kept.
        accept_changed: What may differ from the run in `out`, which goes on from its last state:
            reward, data, learning_rate, … Each change is recorded in run.json. More steps and other
            `micro_batch_tokens` need no leave.
        measure_share: Most work of the measurements after training, and of one measurement of held-out
            prompts, as a share of the training's; they read fewer rows where it does not suffice. Work
            is counted in tokens, not by the clock, and small models are not limited.
        trackers: Where to log metrics besides metrics.jsonl. Each needs its extra: pip install
            'kleash[tensorboard]'.
        tracker_project: Project of the run in W&B and trackio; null is `kleash`.
        run_name: Name of the run in W&B and trackio; null is the name of the folder `out`, which is its
            name in TensorBoard.
        tracker_tags: Tags of the run in W&B; trackio and TensorBoard, which have none, show them with
            the settings.
        push_to_hub: Repository of the hub, OWNER/NAME, to push the finished model to; a new one is
            private. Needs `hf auth login` or HF_TOKEN. States, snapshots and rows are not pushed.
        force: Continue although a check of this stage's inputs failed.
        reward: Reward to train against: a reward model's folder, `module:function` with TRL's
            signature, a verifier (choice, exact, json-schema, math, number, regex), a .yaml
            composition, or `{by: COLUMN, …}`, a reward for each value of a column.
        skip_bad_rows: Leave out rows whose answer, pattern, schema or task a reward cannot read, or
            that lack a column which it takes, instead of stopping before the first sample. They are
            counted.
        reference: Model that the KL penalty is measured from; null is `model` as it starts.
        beta: β, the coefficient of the KL penalty: the cost of one nat of KL from the reference, in
            units of reward. 0: no penalty, and the policy exploits the reward's errors. Large: it stays
            at the reference. Published: 0.02 (InstructGPT), 0.05 (N+).
        max_new_tokens: Longest response, in tokens.
        temperature: Sampling temperature, which divides the logits, in training too.
        stop: End a response after the first of these texts, as an end token does: it counts as
            finished, its tokens up to there are trained, and the text that the reward reads ends before
            the stop text. For models that seldom say their end token. A line break is $'\\n' in the
            shell.
        inner_epochs: Passes over each rollout, reshuffled each time.
        minibatches: Optimiser steps in one pass over a rollout.
        clip: PPO's ε: beyond 1 ± this the probability ratio no longer adds to the objective.
        log_rollouts: Write this many responses of each rollout token by token under rollouts/; 0 writes
            none.
        snapshot_every: Rollouts between two copies of the weights in snapshots/, which `kleash overopt`
            measures; null keeps none.
        hold_out: Validation reward, which is measured and never trained against; preferably a reward
            model trained on other labels. Null uses the one that `kleash reward --validation-share`
            wrote into the folder of `reward`, if there is one.
        gold: Gold reward: the goal itself, where it can be computed. It scores the held-out responses
            at every evaluation and is never trained against.
        criterion: What `keep_weights best` and `patience` compare, on held-out prompts: reward − β·KL
            (with `beta` as it is set, also where `target_kl` adapts it), the gold reward, or the
            validation reward.
        kl_budget: Stop after the rollout whose KL from the reference exceeds this many nats a response.
        patience: Stop after this many evaluations (`eval_every`) in a row without a new best value of
            `criterion`.
        preset: Published values for every option that is not given: `instructgpt` or `n-plus`.
        target_kl: Adapt `beta` so that the KL comes to this many nats a response (Ziegler et al. 2019,
            arXiv:1909.08593, §2.2); null keeps `beta` fixed.
        kl_horizon: Responses over which `beta` adapts; used with `target_kl`.
        gamma: Discount factor for each token; below 1 the optimum is not the optimum of reward − β·KL.
        lam: λ of generalised advantage estimation: 1 uses only the returns, 0 relies on the value
            network.
        whiten_advantages: Normalise the advantages of a rollout to mean 0 and variance 1.
        value_learning_rate: Peak learning rate of the value network; null is `learning_rate`.
        value_coefficient: Weight of the value loss. The value network has its own Adam, so this acts
            only through gradient clipping and ε.
        value_clip: Clip the change of a value from the rollout's to this, in units of reward; null does
            not clip.
        value_init: Weights that the value network starts from: the reward model's (the first one's of
            an ensemble) if it has the policy's tokenizer, otherwise the policy's.
        missing_eos_score: Score of a response that has no end token, in place of its reward; null
            scores it like the others.
        whiten_rewards: Scale token rewards to variance 1 and keep their mean. Changes the objective
            (and shortens responses: N+).
        reward_clip: Clip scores to ± this. Changes the objective.
        ema_decay: Save an exponential moving average of the weights with this decay; InstructGPT used
            0.992. Null saves the weights themselves.
        pretraining_data: Demonstrations or text on which the language-model loss is added
            (InstructGPT's PPO-ptx).
        pretraining_coefficient: Weight of the pretraining loss; used with `pretraining_data`.
        policy: A live model and tokenizer that are themselves trained, in place of a copy of `model`:
            they change.
        on_step: Called as on_step(step, figures) after each step is logged; where it returns "stop" the
            run ends with what it has.

    Returns:
        The run.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def ppo(config: PPOConfig, /, *, policy: Live | None = None, on_step: OnStep | None = None, **others: Any) -> Run: ...

@overload
def grpo(
    *,
    model: Model,
    data: Data,
    out: File,
    reward: RewardLike,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    max_steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 16,
    micro_batch_tokens: int = 8192,
    learning_rate: float = 1e-05,
    schedule: Literal['linear', 'cosine', 'constant'] = 'linear',
    min_lr_ratio: float | None = None,
    warmup_steps: int = 0,
    warmup_ratio: float | None = None,
    weight_decay: float = 0.0,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    lora_rank: int | None = None,
    lora_alpha: float = 32.0,
    peft_config: Mapping[str, Any] | None = None,
    adapter: Literal['merge', 'continue', 'keep'] = 'merge',
    gradient_checkpointing: bool = False,
    max_length: int | None = None,
    streaming: bool = False,
    eval_data: Data | None = None,
    eval_every: int | None = None,
    max_eval_rows: int | None = None,
    keep_weights: Literal['best', 'last'] = 'last',
    save_dtype: Literal['float32', 'bfloat16', 'float16'] | None = None,
    save_every: int | None = None,
    keep_states: int = 0,
    accept_changed: Sequence[str] = (),
    measure_share: float = 0.2,
    trackers: Sequence[Literal['tensorboard', 'wandb', 'trackio']] = (),
    tracker_project: str | None = None,
    run_name: str | None = None,
    tracker_tags: Sequence[str] = (),
    push_to_hub: str | None = None,
    force: bool = False,
    skip_bad_rows: bool = False,
    reference: Model | None = None,
    beta: float = 0.05,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    inner_epochs: int = 1,
    minibatches: int = 1,
    clip: float = 0.2,
    log_rollouts: int = 8,
    snapshot_every: int | None = None,
    hold_out: RewardLike | None = None,
    gold: RewardLike | None = None,
    criterion: Literal['objective', 'gold', 'validation'] = 'objective',
    kl_budget: float | None = None,
    patience: int | None = None,
    preset: Literal['grpo', 'dr-grpo', 'rloo', 'dapo'] | None = None,
    group_size: int = 8,
    kl_in: Literal['reward', 'loss-k3', 'loss-k2-response'] = 'reward',
    advantage: Literal['leave-one-out', 'centred', 'standardised'] = 'leave-one-out',
    normalisation: Literal['token', 'sequence', 'constant'] = 'constant',
    clip_high: float | None = None,
    overlong: Literal['keep', 'mask', 'penalise'] = 'keep',
    resample_zero_spread: bool = False,
    policy: Live | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """GRPO, Dr. GRPO, RLOO, DAPO: train a policy against a reward, with a group's own mean as baseline.

    GRPO, Dr. GRPO, RLOO, DAPO: see `preset`. Without a preset the gradient is, in expectation, exactly
    that of reward − β·KL.

    Args:
        model: The model to start from: a folder, or a hub name.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: Folder to write to. The same command run again continues where it stopped.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        seed: Seed of every random draw. Same seed, same machine: the same numbers, bit for bit.
        dtype: Precision of the forward and backward pass. Weights and optimiser stay in float32;
            bfloat16 halves the time on hardware that has it.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.
        max_steps: Optimiser steps to take (rollouts for ppo and grpo), repeating the data as needed;
            overrides `epochs`.
        epochs: Passes over the data. Each sees every row once, so the last step is smaller where
            `batch_size` does not divide the rows; ppo and grpo fill their last rollout with the next
            pass's first prompts.
        batch_size: Prompts in a rollout, each with `group_size` responses.
        micro_batch_tokens: Tokens computed at once, padding included. Changes memory and speed, never
            the gradient. Lower it if memory runs out.
        learning_rate: Peak learning rate of AdamW.
        schedule: Learning-rate schedule after the warm-up: linear to 0, cosine to a tenth of the peak
            (`min_lr_ratio` sets other ends), or constant.
        min_lr_ratio: Learning rate at the end of the schedule, as a share of the peak. Null: 0 for
            linear, 0.1 for cosine.
        warmup_steps: Steps over which the learning rate rises to its peak.
        warmup_ratio: The same as a share of all optimiser steps, rounded up, in place of
            `warmup_steps`.
        weight_decay: AdamW's decoupled weight decay, applied to matrices only.
        adam_betas: Adam's β₁ and β₂: decay of its means of the gradient and of the squared gradient.
            DeepSeek-V3 and others use 0.9 and 0.95.
        adam_eps: Adam's ε. N+ (arXiv:2403.17031) reports that 1e-5 matters for PPO.
        max_grad_norm: Clip the norm of the gradient to this; null does not clip.
        lora_rank: Train LoRA adapters of this rank and freeze the other weights (Hu et al. 2021,
            arXiv:2106.09685). Takes less memory for gradients, optimiser and reference, and needs a
            learning rate about ten times as high. The adapters are merged at the end: `out` holds a
            plain model. Null trains all weights.
        lora_alpha: LoRA's α: the adapters' output is scaled by α/rank, so that the learning rate need
            not change with the rank.
        peft_config: Settings of the adapters by `peft.LoraConfig`'s names, in place of `lora_rank` and
            `lora_alpha`: in Python a LoraConfig, elsewhere YAML, as `{r: 8, use_dora: true,
            target_modules: [q_proj, v_proj]}`, or a file of it.
        adapter: What to do with the adapter that `model` is or has (a LoRA folder, a `PeftModel`).
            merge: merge it into its base and train as `lora_rank` says. continue: train the adapter on
            and freeze the other weights. keep: the same, or with `lora_rank` or `peft_config` train a
            new one, and write `out` as a folder with the adapter only, which `peft` reads; otherwise
            `out` holds a plain model. The reference is the base with the adapter as it came.
        gradient_checkpointing: Compute each layer's activations again in the backward pass. Takes less
            memory and about a third more time, and the prompt is computed once for each response. Does
            not change the gradient.
        max_length: Most tokens of prompt and response together. Longer responses are cut, rows with
            longer prompts are dropped, and both are counted. Null: the model's context length.
        streaming: Read the rows of `data` while they are trained on, so that memory does not grow with
            their number: in blocks that are shuffled. Needs `max_steps`, since nobody counts the rows,
            and one source of rows that can be read in order.
        eval_data: Held-out rows to evaluate on. Null holds out a tenth of `data`, by prompt if it has
            20 prompts or more.
        eval_every: Steps between two evaluations on the held-out rows; null evaluates at the end only.
        max_eval_rows: Evaluate on at most this many held-out rows.
        keep_weights: Which weights to save: the last ones, or the best ones on the held-out rows, whose
            figures are then too good: report on other rows.
        save_dtype: Type of the weights in `out`. Training is in float32 whatever it is; null saves in
            the type that the model came in. A small learning rate's changes may be lost in 16 bits.
        save_every: Steps between two training states, from which an interrupted run continues; null: a
            tenth of the run.
        keep_states: How many training states to keep when the run is finished, from which it can be
            lengthened (`max_steps`). While it runs at least the newest is kept.
        accept_changed: What may differ from the run in `out`, which goes on from its last state:
            reward, data, learning_rate, … Each change is recorded in run.json. More steps and other
            `micro_batch_tokens` need no leave.
        measure_share: Most work of the measurements after training, and of one measurement of held-out
            prompts, as a share of the training's; they read fewer rows where it does not suffice. Work
            is counted in tokens, not by the clock, and small models are not limited.
        trackers: Where to log metrics besides metrics.jsonl. Each needs its extra: pip install
            'kleash[tensorboard]'.
        tracker_project: Project of the run in W&B and trackio; null is `kleash`.
        run_name: Name of the run in W&B and trackio; null is the name of the folder `out`, which is its
            name in TensorBoard.
        tracker_tags: Tags of the run in W&B; trackio and TensorBoard, which have none, show them with
            the settings.
        push_to_hub: Repository of the hub, OWNER/NAME, to push the finished model to; a new one is
            private. Needs `hf auth login` or HF_TOKEN. States, snapshots and rows are not pushed.
        force: Continue although a check of this stage's inputs failed.
        reward: Reward to train against: a reward model's folder, `module:function` with TRL's
            signature, a verifier (choice, exact, json-schema, math, number, regex), a .yaml
            composition, or `{by: COLUMN, …}`, a reward for each value of a column.
        skip_bad_rows: Leave out rows whose answer, pattern, schema or task a reward cannot read, or
            that lack a column which it takes, instead of stopping before the first sample. They are
            counted.
        reference: Model that the KL penalty is measured from; null is `model` as it starts.
        beta: β, the coefficient of the KL penalty: the cost of one nat of KL from the reference, in
            units of reward. 0: no penalty, and the policy exploits the reward's errors. Large: it stays
            at the reference. Published: 0.02 (InstructGPT), 0.05 (N+).
        max_new_tokens: Longest response, in tokens.
        temperature: Sampling temperature, which divides the logits, in training too.
        stop: End a response after the first of these texts, as an end token does: it counts as
            finished, its tokens up to there are trained, and the text that the reward reads ends before
            the stop text. For models that seldom say their end token. A line break is $'\\n' in the
            shell.
        inner_epochs: Passes over each rollout, reshuffled each time.
        minibatches: Optimiser steps in one pass over a rollout.
        clip: PPO's ε: beyond 1 ± this the probability ratio no longer adds to the objective.
        log_rollouts: Write this many responses of each rollout token by token under rollouts/; 0 writes
            none.
        snapshot_every: Rollouts between two copies of the weights in snapshots/, which `kleash overopt`
            measures; null keeps none.
        hold_out: Validation reward, which is measured and never trained against; preferably a reward
            model trained on other labels. Null uses the one that `kleash reward --validation-share`
            wrote into the folder of `reward`, if there is one.
        gold: Gold reward: the goal itself, where it can be computed. It scores the held-out responses
            at every evaluation and is never trained against.
        criterion: What `keep_weights best` and `patience` compare, on held-out prompts: reward − β·KL
            (with `beta` as it is set, also where `target_kl` adapts it), the gold reward, or the
            validation reward.
        kl_budget: Stop after the rollout whose KL from the reference exceeds this many nats a response.
        patience: Stop after this many evaluations (`eval_every`) in a row without a new best value of
            `criterion`.
        preset: Published values for every option that is not given.
        group_size: Responses sampled for each prompt, G. The others are a response's baseline, so at
            least 2.
        kl_in: Where the KL penalty is. reward: β times a response's KL is subtracted from its score,
            before the advantage. loss-k3: a term of the loss, as in the GRPO paper; its gradient is
            that of the forward KL. loss-k2-response: a term of the loss with the gradient of the
            reverse KL.
        advantage: A response's score minus the mean of the others' (leave-one-out: RLOO), minus the
            group's mean (centred: Dr. GRPO), or that divided by the group's standard deviation
            (standardised: GRPO), which gives every group the same weight.
        normalisation: What the sum over tokens is divided by. token: the number of tokens in the step
            (DAPO). sequence: each response's length, then the number of responses (GRPO). constant:
            responses times `max_new_tokens` (Dr. GRPO), the only one without a bias to longer or
            shorter responses.
        clip_high: Upper clipping bound: the ratio is clipped at 1 + this; null is `clip`.
        overlong: What to do with responses that are cut off. keep: nothing. mask: no gradient.
            penalise: subtract a penalty that rises to 1 over the last fifth of `max_new_tokens` (DAPO).
        resample_zero_spread: Replace groups whose responses all have the same score by groups of other
            prompts (DAPO's dynamic sampling).
        policy: A live model and tokenizer that are themselves trained, in place of a copy of `model`:
            they change.
        on_step: Called as on_step(step, figures) after each step is logged; where it returns "stop" the
            run ends with what it has.

    Returns:
        The run.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def grpo(config: GRPOConfig, /, *, policy: Live | None = None, on_step: OnStep | None = None, **others: Any) -> Run: ...

@overload
def dpo(
    *,
    model: Model,
    data: Data,
    out: File,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    max_steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 64,
    micro_batch_tokens: int = 8192,
    learning_rate: float = 5e-07,
    schedule: Literal['linear', 'cosine', 'constant'] = 'linear',
    min_lr_ratio: float | None = None,
    warmup_steps: int = 0,
    warmup_ratio: float | None = None,
    weight_decay: float = 0.0,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    lora_rank: int | None = None,
    lora_alpha: float = 32.0,
    peft_config: Mapping[str, Any] | None = None,
    adapter: Literal['merge', 'continue', 'keep'] = 'merge',
    gradient_checkpointing: bool = False,
    max_length: int | None = None,
    streaming: bool = False,
    eval_data: Data | None = None,
    eval_every: int | None = None,
    max_eval_rows: int | None = None,
    keep_weights: Literal['best', 'last'] = 'last',
    save_dtype: Literal['float32', 'bfloat16', 'float16'] | None = None,
    save_every: int | None = None,
    keep_states: int = 0,
    accept_changed: Sequence[str] = (),
    measure_share: float = 0.2,
    trackers: Sequence[Literal['tensorboard', 'wandb', 'trackio']] = (),
    tracker_project: str | None = None,
    run_name: str | None = None,
    tracker_tags: Sequence[str] = (),
    push_to_hub: str | None = None,
    force: bool = False,
    loss: Literal['sigmoid', 'smoothed', 'robust', 'ipo', 'simpo', 'length-normalised'] = 'sigmoid',
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    gamma_ratio: float = 0.5,
    sft_coefficient: float = 0.0,
    reference: Model | None = None,
    kl_every: int | None = None,
    kl_samples: int = 128,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    snapshot_every: int | None = None,
    hold_out: RewardLike | None = None,
    gold: RewardLike | None = None,
    policy: Live | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """DPO: direct preference optimisation on comparisons, without reward model or sampling; IPO, SimPO
    too.

    DPO and its variants: see `loss`. Defaults: Rafailov et al. 2023 (arXiv:2305.18290), B, and its
    code, unless a field says otherwise.

    Args:
        model: The model to start from: a folder, or a hub name.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: Folder to write to. The same command run again continues where it stopped.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        seed: Seed of every random draw. Same seed, same machine: the same numbers, bit for bit.
        dtype: Precision of the forward and backward pass. Weights and optimiser stay in float32;
            bfloat16 halves the time on hardware that has it.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.
        max_steps: Optimiser steps to take (rollouts for ppo and grpo), repeating the data as needed;
            overrides `epochs`.
        epochs: Passes over the data. Each sees every row once, so the last step is smaller where
            `batch_size` does not divide the rows; ppo and grpo fill their last rollout with the next
            pass's first prompts.
        batch_size: Prompts in one optimiser step, each with its pair or ranking.
        micro_batch_tokens: Tokens computed at once, padding included. Changes memory and speed, never
            the gradient. Lower it if memory runs out.
        learning_rate: Peak learning rate; the paper used 1e-6 with RMSprop. Models of a few million
            parameters take 100 times as much.
        schedule: Learning-rate schedule after the warm-up: linear to 0, cosine to a tenth of the peak
            (`min_lr_ratio` sets other ends), or constant.
        min_lr_ratio: Learning rate at the end of the schedule, as a share of the peak. Null: 0 for
            linear, 0.1 for cosine.
        warmup_steps: Steps over which the learning rate rises to its peak.
        warmup_ratio: The same as a share of all optimiser steps, rounded up, in place of
            `warmup_steps`.
        weight_decay: AdamW's decoupled weight decay, applied to matrices only.
        adam_betas: Adam's β₁ and β₂: decay of its means of the gradient and of the squared gradient.
            DeepSeek-V3 and others use 0.9 and 0.95.
        adam_eps: Adam's ε. N+ (arXiv:2403.17031) reports that 1e-5 matters for PPO.
        max_grad_norm: Clip the norm of the gradient to this; null does not clip.
        lora_rank: Train LoRA adapters of this rank and freeze the other weights (Hu et al. 2021,
            arXiv:2106.09685). Takes less memory for gradients, optimiser and reference, and needs a
            learning rate about ten times as high. The adapters are merged at the end: `out` holds a
            plain model. Null trains all weights.
        lora_alpha: LoRA's α: the adapters' output is scaled by α/rank, so that the learning rate need
            not change with the rank.
        peft_config: Settings of the adapters by `peft.LoraConfig`'s names, in place of `lora_rank` and
            `lora_alpha`: in Python a LoraConfig, elsewhere YAML, as `{r: 8, use_dora: true,
            target_modules: [q_proj, v_proj]}`, or a file of it.
        adapter: What to do with the adapter that `model` is or has (a LoRA folder, a `PeftModel`).
            merge: merge it into its base and train as `lora_rank` says. continue: train the adapter on
            and freeze the other weights. keep: the same, or with `lora_rank` or `peft_config` train a
            new one, and write `out` as a folder with the adapter only, which `peft` reads; otherwise
            `out` holds a plain model. The reference is the base with the adapter as it came.
        gradient_checkpointing: Compute each layer's activations again in the backward pass. Takes less
            memory and about a third more time, and the prompt is computed once for each response. Does
            not change the gradient.
        max_length: Most tokens of prompt and response together. Longer responses are cut, rows with
            longer prompts are dropped, and both are counted. Null: the model's context length.
        streaming: Read the rows of `data` while they are trained on, so that memory does not grow with
            their number: in blocks that are shuffled. Needs `max_steps`, since nobody counts the rows,
            and one source of rows that can be read in order.
        eval_data: Held-out rows to evaluate on. Null holds out a tenth of `data`, by prompt if it has
            20 prompts or more.
        eval_every: Steps between two evaluations on the held-out rows; null evaluates at the end only.
        max_eval_rows: Evaluate on at most this many held-out rows.
        keep_weights: Which weights to save: the last ones, or the best ones on the held-out rows, whose
            figures are then too good: report on other rows.
        save_dtype: Type of the weights in `out`. Training is in float32 whatever it is; null saves in
            the type that the model came in. A small learning rate's changes may be lost in 16 bits.
        save_every: Steps between two training states, from which an interrupted run continues; null: a
            tenth of the run.
        keep_states: How many training states to keep when the run is finished, from which it can be
            lengthened (`max_steps`). While it runs at least the newest is kept.
        accept_changed: What may differ from the run in `out`, which goes on from its last state:
            reward, data, learning_rate, … Each change is recorded in run.json. More steps and other
            `micro_batch_tokens` need no leave.
        measure_share: Most work of the measurements after training, and of one measurement of held-out
            prompts, as a share of the training's; they read fewer rows where it does not suffice. Work
            is counted in tokens, not by the clock, and small models are not limited.
        trackers: Where to log metrics besides metrics.jsonl. Each needs its extra: pip install
            'kleash[tensorboard]'.
        tracker_project: Project of the run in W&B and trackio; null is `kleash`.
        run_name: Name of the run in W&B and trackio; null is the name of the folder `out`, which is its
            name in TensorBoard.
        tracker_tags: Tags of the run in W&B; trackio and TensorBoard, which have none, show them with
            the settings.
        push_to_hub: Repository of the hub, OWNER/NAME, to push the finished model to; a new one is
            private. Needs `hf auth login` or HF_TOKEN. States, snapshots and rows are not pushed.
        force: Continue although a check of this stage's inputs failed.
        loss: Loss of a comparison. sigmoid: DPO. smoothed: conservative DPO, for noisy labels. robust:
            corrected for noisy labels. ipo: a finite target for the margin. simpo: mean log-probability
            of a token, without a reference. length-normalised: the same with a reference. Rankings of
            more than two responses need sigmoid.
        beta: β, the coefficient of the KL penalty: the cost of one nat of KL from the reference. Large:
            the policy stays at the reference. Near 0: the labels are fitted at any distance. The
            default is 2 for simpo and 5 for length-normalised, as published, since these divide by the
            length.
        label_smoothing: ε, the assumed share of flipped labels; required for the losses smoothed and
            robust, and not used by others.
        gamma_ratio: SimPO's γ/β: how far the chosen response's mean log-probability must lead
            (arXiv:2405.14734).
        sft_coefficient: Weight of an SFT loss on the chosen response, −log π(chosen) a token, which
            keeps it likely (Pang et al. 2024, arXiv:2404.19733, used 1).
        reference: Model that the KL is measured from; null is `model` as it starts.
        kl_every: Steps between two measurements of the KL from the reference, on new responses to held-
            out prompts; null measures at the end only.
        kl_samples: Sample at most this many responses for the KL, spread over the held-out prompts; 0
            does not measure it.
        max_new_tokens: Longest of the responses for the KL, in tokens.
        stop: End the responses for the KL after the first of these texts, as `kleash generate` does.
        snapshot_every: Steps between two copies of the weights in snapshots/, which `kleash overopt`
            measures; null keeps none.
        hold_out: Validation reward, which scores the responses for the KL and is never trained against:
            a folder, a verifier, …
        gold: Gold reward, which scores the same responses: the goal itself, where it can be computed.
        policy: A live model and tokenizer that are themselves trained, in place of a copy of `model`:
            they change.
        on_step: Called as on_step(step, figures) after each step is logged; where it returns "stop" the
            run ends with what it has.

    Returns:
        The run.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def dpo(config: DPOConfig, /, *, policy: Live | None = None, on_step: OnStep | None = None, **others: Any) -> Run: ...

@overload
def generate(
    *,
    model: Model,
    data: Data,
    out: File,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_rows: int | None = None,
    rows_at_once: int = 256,
    policy: Live | None = None,
) -> Path:
    """Sample responses to prompts.

    Sample responses to the prompts in `data`.

    Args:
        model: The model to start from: a folder, or a hub name.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: File to write: .jsonl, .jsonl.gz, .json or .parquet.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        seed: Seed of every random draw. Same seed, same machine: the same numbers, bit for bit.
        dtype: Precision of the forward and backward pass. Weights and optimiser stay in float32;
            bfloat16 halves the time on hardware that has it.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.
        n: Responses to each prompt.
        temperature: Sampling temperature, which divides the logits; 0 takes the most likely token.
        max_new_tokens: Longest response, in tokens.
        stop: End a response after the first of these texts: it counts as finished, and the stop text is
            left out. A control token may be named, too. A line break is $'\\n' in the shell.
        top_k: Sample from the k most likely tokens only; null: from all.
        top_p: Sample from the most likely tokens whose probabilities sum to this, after `top_k`.
        min_p: Sample from the tokens that are at least this times as likely as the most likely one,
            after `top_p`.
        max_rows: Read at most this many prompts of the data.
        rows_at_once: Responses to sample at once. Changes memory and speed, not the responses.
        policy: A live model and tokenizer that are themselves trained, in place of a copy of `model`:
            they change.

    Returns:
        The path of what was written.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def generate(config: GenerateConfig, /, *, policy: Live | None = None, **others: Any) -> Path: ...

@overload
def score(
    *,
    reward: RewardLike,
    data: Data,
    out: File,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    metric: Sequence[str] = (),
    pass_above: float | None = None,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
) -> Path:
    """Score responses with a reward.

    Score the responses in `data` with a reward.

    Args:
        reward: Reward to score with: a reward model's folder, `module:function` with TRL's signature, a
            verifier (choice, exact, json-schema, math, number, regex), or a .yaml composition.
        data: Rows with responses: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a
            hub name (docs/data.md).
        out: File to write: .jsonl, .jsonl.gz, .json or .parquet.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        metric: Figures for the summary, each with its 95 % interval over prompts. pass@K: the
            probability that one of K responses is right. mean@K: their mean score.
        pass_above: pass@K: a response is right if its score is greater than this; null: if a verifier,
            as `reward`, calls it right.
        dtype: Precision of a reward model's forward pass.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.

    Returns:
        The path of what was written.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def score(config: ScoreConfig, /, **live: Any) -> Path: ...

@overload
def best_of_n(
    *,
    model: Model,
    data: Data,
    out: File,
    reward: RewardLike,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    n: int = 16,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_rows: int | None = None,
    rows_at_once: int = 256,
    gold: RewardLike | None = None,
    policy: Live | None = None,
) -> Path:
    """Best-of-n: sample n responses to each prompt, keep the best, and estimate the result of every
    smaller n.

    Sample n responses to each prompt and keep the one with the highest score.

    Args:
        model: The model to start from: a folder, or a hub name.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: File to write: .jsonl, .jsonl.gz, .json or .parquet.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        seed: Seed of every random draw. Same seed, same machine: the same numbers, bit for bit.
        dtype: Precision of the forward and backward pass. Weights and optimiser stay in float32;
            bfloat16 halves the time on hardware that has it.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.
        n: Responses to each prompt, of which one is kept. The result of smaller n is estimated from the
            same responses.
        temperature: Sampling temperature, which divides the logits; 0 takes the most likely token.
        max_new_tokens: Longest response, in tokens.
        stop: End a response after the first of these texts: it counts as finished, and the stop text is
            left out. A control token may be named, too. A line break is $'\\n' in the shell.
        top_k: Sample from the k most likely tokens only; null: from all.
        top_p: Sample from the most likely tokens whose probabilities sum to this, after `top_k`.
        min_p: Sample from the tokens that are at least this times as likely as the most likely one,
            after `top_p`.
        max_rows: Read at most this many prompts of the data.
        rows_at_once: Responses to sample at once. Changes memory and speed, not the responses.
        reward: Reward that chooses: a reward model's folder, `module:function` with TRL's signature, a
            verifier (choice, exact, json-schema, math, number, regex), or a .yaml composition.
        gold: Another reward, named as for `--reward`, that scores the chosen responses and does not
            choose.
        policy: A live model and tokenizer that are themselves trained, in place of a copy of `model`:
            they change.

    Returns:
        The path of what was written.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def best_of_n(config: BestOfNConfig, /, *, policy: Live | None = None, **others: Any) -> Path: ...

@overload
def judge(
    *,
    model: Model,
    data: Data,
    out: File,
    endpoint: str | None = None,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    store: File | None = None,
    mix_in: Data | None = None,
    max_rows: int | None = None,
    price: tuple[float, float] = (0.0, 0.0),
    budget: float | None = None,
    max_failures: float = 0.1,
    concurrency: int = 8,
    timeout: float = 120.0,
    rows_at_once: int = 8,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    constitution: File | None = None,
    principles: Literal['drawn', 'averaged'] = 'drawn',
    chain_of_thought: bool = False,
    reasoning_tokens: int = 256,
    clamp: tuple[float, float] | None = None,
    answers: Literal['auto', 'logprobs', 'votes'] = 'auto',
    votes: int = 5,
    max_characters: int | None = None,
    injections: int = 20,
    force: bool = False,
    chat: Chat | None = None,
) -> Path:
    """LLM-as-a-judge (RLAIF): label pairs of responses with a chat model, and measure the labels' quality.

    Label pairs of responses with a chat model (LLM-as-a-judge). Defaults: Lee et al. 2023
    (arXiv:2309.00267), Bai et al. 2022 (arXiv:2212.08073).

    Args:
        model: Chat model to ask: a folder or a hub name; with `endpoint`, the server's name for it.
        endpoint: Base URL of an OpenAI-compatible server, up to `/v1`; its key is read from
            OPENAI_API_KEY. Null runs the model in this process.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: File to write: .jsonl, .jsonl.gz, .json or .parquet. The same command run again continues
            where it stopped.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        store: Label store that caches every reply, so that no request is paid for twice: a path or a
            database URL. Null: a file next to `out`.
        mix_in: Rows to append to the results unchanged: Bai et al. mix helpfulness labels by people
            into harmlessness labels by a judge, and helpful demonstrations into revisions.
        max_rows: Read at most this many rows of the data.
        price: Price of a million tokens of prompt, and of a million tokens of reply.
        budget: Spending limit for all replies, including those of an interrupted run before. A request
            that could exceed it is not sent. Needs `price`.
        max_failures: Largest share of rows without a result; the run stops as soon as more are certain
            to fail.
        concurrency: Requests to send to an endpoint at the same time.
        timeout: Seconds to wait for a reply before the request is sent again.
        rows_at_once: Requests in one forward pass of a model in this process. Changes memory and speed.
        seed: Seed of every random draw: principles, votes, samples.
        dtype: Precision of a model in this process.
        device: `cpu`, `cuda`, …, for a model in this process; `auto` uses a GPU if there is one.
        constitution: Principles to compare by: a YAML file, or `assistant`, which kleash ships; null:
            one general rule.
        principles: drawn: one random principle for each pair, by weight. averaged: ask for all of them
            and average by weight.
        chain_of_thought: Ask the judge for its reasoning first and for its answer in a second request.
        reasoning_tokens: Longest reasoning, in tokens.
        clamp: Clip the probability of a label to this range. Null: 0.4 0.6 after a chain of thought
            (Bai et al.), else no clipping; 0 1 never clips.
        answers: Where a label's probability comes from. logprobs: the answer token's log-probability.
            votes: several replies sampled at temperature 1. auto: logprobs if the server returns them.
        votes: Replies to sample for each order of the two responses, without log-probabilities.
        max_characters: Show the judge at most this many characters of a response (its beginning) and of
            a prompt (its end).
        injections: Pairs to test for prompt injection: an instruction to choose the worse response is
            put into it, and the report says how often the judge obeys.
        force: Write the labels to `out` although the checks of the judge failed.
        chat: A live chat model in place of `model`.

    Returns:
        The path of what was written.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def judge(config: JudgeConfig, /, *, chat: Chat | None = None, **others: Any) -> Path: ...

@overload
def revise(
    *,
    model: Model,
    data: Data,
    out: File,
    constitution: File,
    endpoint: str | None = None,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    store: File | None = None,
    mix_in: Data | None = None,
    max_rows: int | None = None,
    price: tuple[float, float] = (0.0, 0.0),
    budget: float | None = None,
    max_failures: float = 0.1,
    concurrency: int = 8,
    timeout: float = 120.0,
    rows_at_once: int = 8,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    rounds: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    chat: Chat | None = None,
) -> Path:
    """Constitutional AI: sample, criticise and revise responses, as demonstrations for sft.

    Constitutional AI: critiques and revisions. Defaults: Bai et al. 2022, section 3, except for
    `rounds`.

    Args:
        model: Chat model to ask: a folder or a hub name; with `endpoint`, the server's name for it.
        endpoint: Base URL of an OpenAI-compatible server, up to `/v1`; its key is read from
            OPENAI_API_KEY. Null runs the model in this process.
        data: Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub
            name (docs/data.md).
        out: File to write: .jsonl, .jsonl.gz, .json or .parquet. The same command run again continues
            where it stopped.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        store: Label store that caches every reply, so that no request is paid for twice: a path or a
            database URL. Null: a file next to `out`.
        mix_in: Rows to append to the results unchanged: Bai et al. mix helpfulness labels by people
            into harmlessness labels by a judge, and helpful demonstrations into revisions.
        max_rows: Read at most this many rows of the data.
        price: Price of a million tokens of prompt, and of a million tokens of reply.
        budget: Spending limit for all replies, including those of an interrupted run before. A request
            that could exceed it is not sent. Needs `price`.
        max_failures: Largest share of rows without a result; the run stops as soon as more are certain
            to fail.
        concurrency: Requests to send to an endpoint at the same time.
        timeout: Seconds to wait for a reply before the request is sent again.
        rows_at_once: Requests in one forward pass of a model in this process. Changes memory and speed.
        seed: Seed of every random draw: principles, votes, samples.
        dtype: Precision of a model in this process.
        device: `cpu`, `cuda`, …, for a model in this process; `auto` uses a GPU if there is one.
        constitution: Principles to criticise by: a YAML file, or `assistant`, which kleash ships.
        rounds: Critiques and revisions of each response, each by another principle. Bai et al. used 4,
            of which the first had most of the effect.
        temperature: Sampling temperature of responses, critiques and revisions.
        max_new_tokens: Longest response, critique or revision, in tokens.
        chat: A live chat model in place of `model`.

    Returns:
        The path of what was written.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def revise(config: ReviseConfig, /, *, chat: Chat | None = None, **others: Any) -> Path: ...

@overload
def overopt(
    *,
    gold: RewardLike,
    out: File,
    run: File | RunFolder | None = None,
    model: Model | None = None,
    proxy: RewardLike | None = None,
    data: Data | None = None,
    columns: Mapping[str, str] | None = None,
    as_chat: bool | None = None,
    points: int = 10,
    best_of: int = 0,
    samples: int = 4,
    choose_share: float = 0.5,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    stop: Sequence[str] | None = None,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
    force: bool = False,
) -> Run:
    """Measure over-optimisation: true reward and proxy against KL, fitted scaling law, recommended
    checkpoint.

    Measure over-optimisation. `model`, `proxy`, `data` and the sampling settings default to those of
    `run`.

    Args:
        run: Folder of a ppo, grpo or dpo run with snapshots (--snapshot-every); null measures best-of-n
            only.
        model: Model that the KL is measured from: a folder or a hub name; null is the run's reference,
            or the model it started from.
        proxy: Proxy reward that the policy was trained against, and that best-of-n chooses by: a reward
            model's folder, `module:function`, a verifier, or a .yaml composition; null is the run's
            reward.
        gold: Gold reward, named as for `--proxy`: it measures the goal. It must be more accurate than
            the proxy, and nothing may have been trained against it.
        data: Prompts that were not trained on; null is the run's `eval_data`. A prompt that occurs
            twice is used once.
        out: Folder to write to. The same command run again continues where it stopped.
        columns: Columns of the data whose names kleash does not know, as `prompt=question`; null is the
            run's.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template; null is the run's.
        points: Checkpoints to measure, besides the start.
        best_of: Measure best-of-n too, with this many responses of the start to each prompt; 0 does
            not.
        samples: Responses to each prompt at each checkpoint.
        choose_share: Share of the prompts on which the peak, the scaling law and the recommended
            checkpoint are chosen; the reported figures are from the others.
        max_new_tokens: Longest response, in tokens; null is the run's.
        temperature: Sampling temperature; null is the run's, else 1.
        stop: End a response after the first of these texts, as `kleash generate` does; null is the
            run's.
        seed: Seed of every random draw. Same seed, same machine: the same numbers, bit for bit.
        dtype: Precision of the forward pass.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.
        force: Continue although the checks of the proxy or of the gold reward failed.

    Returns:
        The run.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def overopt(config: OveroptConfig, /, **live: Any) -> Run: ...

@overload
def ask(
    *,
    data: Data,
    store: File,
    out: File,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    labeller: RewardLike = 'people',
    temperature: float = 1.0,
    votes: int = 1,
    budget: int | None = None,
) -> Path:
    """Collect preference labels from people (exits with 75 until they have answered) or from a reward.

    Collect preference labels for pairs of responses.

    Args:
        data: Rows with two or more responses, as `kleash generate -n 2` writes them. All their pairs
            are labelled.
        store: Label store: an SQLite file, made if missing, or a PostgreSQL URL.
        out: Preferences to write: .jsonl, .jsonl.gz, .json or .parquet.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        labeller: `people`, who label with `kleash label` on the same store; or a reward that labels in
            their place (a reward model's folder, `module:function`, a verifier, a .yaml composition).
        temperature: Noise of a reward's labels: P(a ≻ b) = σ((r(a) − r(b)) / temperature).
        votes: Votes that each pair needs.
        budget: Most pairs to label, including those already in the store; null: all of them.

    Returns:
        The path of what was written.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def ask(config: AskConfig, /, **live: Any) -> Path: ...

@overload
def export(
    *,
    store: File,
    out: File,
    ties: Literal['half', 'davidson', 'drop'] = 'half',
    each: Literal['pair', 'vote'] = 'pair',
    test_share: float = 0.0,
    annotators: Sequence[str] = (),
    kind: Sequence[Literal['person', 'judge', 'simulated', 'file']] = (),
    until: int | None = None,
    seed: int = 0,
) -> Path:
    """Write the labels of a store as preference files, split by prompt.

    Write the labels of a store as preference files, which every stage reads.

    Args:
        store: Label store: an SQLite file, or a PostgreSQL URL.
        out: Folder to write.
        ties: How ties count. half: as probability 1/2. davidson: by Davidson's model (1970), which
            needs pairs with two votes. drop: they are left out.
        each: pair: one row for each pair, its votes as one soft probability. vote: one row for each
            vote, with its annotator, principle and reason.
        test_share: Share of the prompts to write to `test.jsonl`, by hash of the prompt, so that they
            stay there as labels come in.
        annotators: Export only the votes of these annotators, by alias or name; none named: of all.
        kind: Export only the votes of labellers of these kinds: people of the page, judges and other
            models, imported files; none named: of all.
        until: Ignore votes after this one, an earlier export's `until`; null: all votes so far.
        seed: Seed of the split.

    Returns:
        The path of what was written.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def export(config: ExportConfig, /, **live: Any) -> Path: ...

@overload
def label(
    *,
    store: File = 'labels.db',
    data: Data = (),
    columns: Mapping[str, str] | None = None,
    practice: Data | None = None,
    guidelines: File | None = None,
    overlap: int = 1,
    order: Literal['uncertain', 'random'] = 'uncertain',
    audit_share: float = 0.1,
    repeat_share: float = 0.05,
    goal: int = 0,
    tags: Sequence[str] = ('correct', 'helpful', 'clear', 'harmless'),
    ties: Literal['half', 'davidson', 'drop'] = 'half',
    host: str = '127.0.0.1',
    port: int = 8017,
    public_url: str | None = None,
    proxy: str | None = None,
    open: bool = False,
    seed: int = 0,
) -> None:
    """People compare responses in a browser, until you interrupt.

    Serve pairs to annotators and take their votes. Each person has a personal link. The admin's page
    creates links, shows the agreement, and exports the labels.

    Args:
        store: Label store: path of an SQLite file, created if missing, or a PostgreSQL URL.
        data: Rows with two or more responses, whose pairs are added to the store; their labels are not
            shown. A column `uncertainty` decides which pairs come first. Without data the pairs of the
            store are served.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response_0=first`.
        practice: Preferences with a known answer: each annotator begins with them and sees the answer
            after each vote.
        guidelines: Guidelines for annotators, a Markdown file. Each vote stores the version that it was
            made under.
        overlap: People who compare each pair. Agreement can be measured from 2 on.
        order: Most uncertain pairs first, or at random; without a column `uncertainty` both are random.
        audit_share: Share of pairs drawn at random independently of the order, as a check of the
            others.
        repeat_share: Share of showings that repeat an earlier pair unannounced, sides swapped, to
            measure self-agreement.
        goal: Pairs in a session, shown as a goal; 0: none.
        tags: Reasons that annotators can select.
        ties: Ties in the admin's export: one half, by Davidson's model, or left out.
        host: Address to listen on. An address that other machines can reach needs `public_url`.
        port: Port to listen on; 0 takes a free one.
        public_url: Address at which people open the page from elsewhere, `https://…` behind a proxy
            that encrypts. Without it the server answers only this machine.
        proxy: Address or network of the proxy in front, such as `127.0.0.1`: its `X-Forwarded-For` says
            who asks, so that one person who tries many links slows down only themselves. Null:
            forwarded addresses are not believed.
        open: Open the annotator's link in a browser.
        seed: Seed of the random order and sides.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def label(config: LabelConfig, /, **live: Any) -> None: ...

@overload
def rank(
    *,
    out: File,
    data: Data = (),
    store: str | None = None,
    models: Sequence[Model] = (),
    prompts: Data | None = None,
    reward: RewardLike | None = None,
    judge: RewardLike | None = None,
    kind: Sequence[Literal['person', 'judge', 'simulated', 'file']] = (),
    by: str | None = None,
    elo: bool = False,
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    columns: Mapping[str, str] | None = None,
    as_chat: bool = False,
    seed: int = 0,
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    device: str = 'auto',
) -> Run:
    """Compare several models: win rates, Bradley–Terry strengths, and both at equal length.

    Compare several models on the same prompts: win rates, and Bradley–Terry strengths with and without
    length. Give `data`, `store`, or `models` with `prompts`.

    Args:
        data: Files of responses, one for each model, as `FILE` or `NAME=FILE`, matched by prompt; or
            one file of comparisons whose rows say in `models` who wrote each response.
        store: Label store with the votes that decide: an SQLite file, or a PostgreSQL URL. With `data`,
            its files say who wrote what; without, the column `models` of its pairs does.
        models: Models to sample on `prompts`, as `MODEL` or `NAME=MODEL`: folders or hub names.
        prompts: Prompts for `models`: rows, as for `kleash generate`.
        reward: Reward that decides: of two responses the one with the higher score wins. Null, and no
            `judge` or `store`: the rows' own `score`.
        judge: Chat model that decides, asked about each pair in both orders: a judge's YAML file
            (docs/rewards.md), read for `judge`, `endpoint`, `rule`, and how it is asked.
        out: Folder to write.
        kind: Count only the votes in `store` of labellers of these kinds; none named: of all.
        by: Column of the rows by whose values the ranking is repeated, as `task`.
        elo: Print strengths on Elo's scale, 1000 + 400/ln 10 · strength, in the table.
        n: Responses of each of `models` to each prompt.
        temperature: Sampling temperature of `models`; 0 takes the most likely token.
        max_new_tokens: Longest response of `models`, in tokens.
        columns: Columns of the data whose names kleash does not know, as
            `prompt=question,response=answer`; where the columns fit two schemas, those that count.
            Null: the schemas of docs/data.md.
        as_chat: Make a prompt of plain text one turn of the user, so that it goes through the chat
            template.
        seed: Seed of the samples, of the judge's votes and of the bootstrap.
        dtype: Precision of a model in this process.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.

    Returns:
        The run.

    Raises:
        KleashError: one line that says what is wrong and what would be right.
    """
@overload
def rank(config: RankConfig, /, **live: Any) -> Run: ...


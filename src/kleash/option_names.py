"""Options under other names: those of kleash 0.1, and those of TRL, verl and LLaMA-Factory.

This table explains unknown options, gives `--help` the other libraries' names, and generates docs/from-trl.md.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

RENAMED = {
    "leash": "kl_in",
    "all_roads": "all_methods",
    "replace_flat": "resample_zero_spread",
    "choose": "keep_weights",
    "keep": "keep_states",
    "hold_out_share": "validation_share",
}
"""Options of kleash 0.1 → options of today."""

TRL, VERL, FACTORY = "TRL", "verl", "LLaMA-Factory"


@dataclass(frozen=True)
class Peer:
    """One option of another library."""

    libraries: tuple[str, ...]
    name: str
    """Its name there; verl's with its groups, separated by dots."""
    ours: tuple[str, ...]
    """The equivalent field; of several, the first that the stage has. Empty: kleash has no such option."""
    note: str = ""
    """The difference, or what to do instead."""


_BATCH = "the batch of one optimiser step on all devices, independent of memory; lower --micro-batch-tokens instead"

_TRUNCATED = "in generate and best-of-n only: PPO's and GRPO's ratio rests on the model's whole distribution"

PEERS: tuple[Peer, ...] = (
    # Inputs and outputs
    Peer((TRL, FACTORY), "model_name_or_path", ("model",)),
    Peer((VERL,), "actor_rollout_ref.model.path", ("model",)),
    Peer((VERL,), "model.partial_pretrain", ("model",)),
    Peer((TRL,), "sft_model_path", ("model",)),
    Peer((TRL,), "dataset_name", ("data",)),
    Peer((TRL,), "train_dataset", ("data",)),
    Peer((FACTORY,), "dataset", ("data",)),
    Peer((VERL,), "data.train_files", ("data",)),
    Peer((TRL,), "dataset_streaming", ("streaming",)),
    Peer((FACTORY,), "buffer_size", ("streaming",), "blocks of 4,096 rows are shuffled"),
    Peer((TRL, FACTORY), "eval_dataset", ("eval_data",)),
    Peer((VERL,), "data.val_files", ("eval_data",)),
    Peer((FACTORY,), "val_size", (), "give held-out rows as --eval-data; without it a tenth of the data is held out"),
    Peer((TRL, FACTORY), "output_dir", ("out",)),
    Peer((VERL,), "trainer.default_local_dir", ("out",)),
    Peer((TRL,), "reward_model_path", ("reward",)),
    Peer((TRL,), "reward_model_name_or_path", ("reward",)),
    Peer((TRL,), "reward_funcs", ("reward",), "a list in Python, elsewhere a .yaml composition"),
    Peer((TRL,), "reward_weights", ("reward",), "as pairs (function, weight) in Python, else in a .yaml composition"),
    Peer((TRL,), "processing_class", ("model",), "in Python as model=(model, tokenizer)"),
    Peer((TRL,), "callbacks", (), "in Python on_step=f, called as f(step, figures); f returns \"stop\" to end the run"),
    Peer((FACTORY,), "reward_model", ("reward",)),
    Peer((VERL,), "reward_model.model.path", ("reward",)),
    Peer((VERL,), "custom_reward_function.path", ("reward",), "as module:function"),
    Peer((TRL, FACTORY), "ref_model", ("reference",)),
    Peer((TRL,), "ref_model_name_or_path", ("reference",)),
    Peer((VERL,), "actor_rollout_ref.ref.model.path", ("reference",)),
    Peer((TRL, FACTORY), "resume_from_checkpoint", (), "the same command with the same --out continues the run"),
    Peer((FACTORY,), "overwrite_output_dir", (), "nothing is overwritten; delete the folder or choose another --out"),
    Peer((FACTORY,), "adapter_name_or_path", ("model",), "merged into its base, or --adapter continue trains it on"),
    Peer((FACTORY,), "template", (), "the chat template is the tokenizer's own; `kleash inspect` shows it at work"),
    Peer((TRL,), "dataset_text_field", ("columns",), "as text=NAME"),
    Peer((VERL,), "data.prompt_key", ("columns",), "as prompt=NAME"),
    Peer((VERL,), "data.response_key", ("columns",), "as response=NAME"),
    Peer((TRL,), "completion_only_loss", (), "the loss is always on the response only"),
    Peer((TRL,), "assistant_only_loss", (), "the loss is always on the assistant's turns only"),
    Peer((FACTORY,), "train_on_prompt", (), "the loss is always on the response only"),
    # Length of training, batches
    Peer((TRL, FACTORY), "num_train_epochs", ("epochs",)),
    Peer((VERL,), "trainer.total_epochs", ("epochs",)),
    Peer((TRL,), "total_episodes", ("max_steps",), "in rollouts, each of --batch-size prompts"),
    Peer((VERL,), "trainer.total_training_steps", ("max_steps",)),
    Peer((TRL, FACTORY), "per_device_train_batch_size", ("batch_size",), _BATCH),
    Peer((VERL,), "data.train_batch_size", ("batch_size",), "in prompts"),
    Peer((TRL,), "generation_batch_size", ("batch_size",), "in prompts"),
    Peer((TRL,), "rollout_batch_size", ("batch_size",), "in prompts"),
    Peer(
        (TRL, FACTORY), "gradient_accumulation_steps", (),
        "--batch-size is the batch of one optimiser step, and memory decides how it is split; lower "
        "--micro-batch-tokens if memory runs out",
    ),
    Peer((TRL, FACTORY), "per_device_eval_batch_size", ("micro_batch_tokens",), "in tokens; changes no figure"),
    Peer((VERL,), "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", ("micro_batch_tokens",), "in tokens"),
    Peer((VERL,), "actor_rollout_ref.actor.ppo_max_token_len_per_gpu", ("micro_batch_tokens",)),
    Peer((VERL,), "actor_rollout_ref.actor.ppo_mini_batch_size", ("minibatches",), "as their number in a pass"),
    Peer((TRL,), "num_mini_batches", ("minibatches",)),
    Peer((TRL,), "steps_per_generation", ("minibatches",)),
    Peer((TRL,), "num_ppo_epochs", ("inner_epochs",)),
    Peer((TRL,), "num_iterations", ("inner_epochs",)),
    Peer((FACTORY,), "ppo_epochs", ("inner_epochs",)),
    Peer((VERL,), "actor_rollout_ref.actor.ppo_epochs", ("inner_epochs",)),
    Peer((FACTORY,), "max_samples", ("max_rows",)),
    Peer((FACTORY,), "packing", (), "rows are batched by --micro-batch-tokens, which needs no packing"),
    # Optimiser
    Peer((VERL,), "actor_rollout_ref.actor.optim.lr", ("learning_rate",)),
    Peer((VERL,), "optim.lr", ("learning_rate",)),
    Peer((TRL,), "lr", ("learning_rate",)),
    Peer((VERL,), "critic.optim.lr", ("value_learning_rate",)),
    Peer((TRL, FACTORY), "lr_scheduler_type", ("schedule",)),
    Peer((VERL,), "actor_rollout_ref.actor.optim.lr_scheduler_type", ("schedule",)),
    Peer((VERL,), "actor_rollout_ref.actor.optim.lr_warmup_steps", ("warmup_steps",)),
    Peer((VERL,), "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio", ("warmup_ratio",)),
    Peer((TRL, FACTORY), "lr_scheduler_kwargs", ("min_lr_ratio",), "of min_lr_rate; the other keys are not there"),
    Peer((VERL,), "actor_rollout_ref.actor.optim.min_lr_ratio", ("min_lr_ratio",)),
    Peer((VERL,), "actor_rollout_ref.actor.optim.weight_decay", ("weight_decay",)),
    Peer((TRL, FACTORY), "adam_beta1", ("adam_betas",), "both together, as --adam-betas 0.9 0.999"),
    Peer((TRL, FACTORY), "adam_beta2", ("adam_betas",), "both together, as --adam-betas 0.9 0.999"),
    Peer((VERL,), "actor_rollout_ref.actor.optim.betas", ("adam_betas",)),
    Peer((TRL, FACTORY), "adam_epsilon", ("adam_eps",)),
    Peer((TRL, FACTORY), "optim", (), "the optimiser is AdamW in float32; others are not built"),
    Peer((VERL,), "actor_rollout_ref.actor.grad_clip", ("max_grad_norm",)),
    Peer((TRL, FACTORY), "bf16", ("dtype",), "as --dtype bfloat16"),
    Peer((TRL, FACTORY), "fp16", ("dtype",), "float32 or bfloat16"),
    Peer((TRL,), "torch_dtype", ("dtype",)),
    Peer((VERL,), "actor_rollout_ref.rollout.dtype", ("dtype",)),
    Peer((VERL,), "actor_rollout_ref.model.enable_gradient_checkpointing", ("gradient_checkpointing",)),
    Peer((FACTORY,), "disable_gradient_checkpointing", ("gradient_checkpointing",), "off unless it is given"),
    Peer((TRL,), "lora_r", ("lora_rank",)),
    Peer((TRL,), "use_peft", ("lora_rank",), "as --lora-rank 16"),
    Peer((FACTORY,), "finetuning_type", ("lora_rank",), "as --lora-rank 16; without it all weights are trained"),
    Peer((VERL,), "actor_rollout_ref.model.lora_rank", ("lora_rank",)),
    Peer((VERL,), "actor_rollout_ref.model.lora_alpha", ("lora_alpha",)),
    Peer((TRL, FACTORY), "lora_dropout", (), "dropout is off in all training: with it the first ratio is not 1"),
    Peer((TRL,), "lora_target_modules", ("peft_config",), "as its target_modules; by default every linear layer"),
    Peer((TRL,), "lora_modules_to_save", ("peft_config",), "as its modules_to_save"),
    Peer((TRL,), "use_rslora", ("peft_config",), "as its use_rslora"),
    Peer((TRL,), "use_dora", ("peft_config",), "as its use_dora"),
    Peer((FACTORY,), "lora_target", ("peft_config",), "as its target_modules; by default every linear layer"),
    Peer((FACTORY,), "additional_target", ("peft_config",), "as its modules_to_save"),
    Peer((FACTORY,), "quantization_bit", (), "quantised training is not built yet"),
    Peer((TRL,), "load_in_4bit", (), "quantised training is not built yet"),
    Peer((FACTORY,), "deepspeed", (), "training on several devices is not built yet"),
    # Lengths and sampling
    Peer((TRL,), "max_seq_length", ("max_length",)),
    Peer((FACTORY,), "cutoff_len", ("max_length",)),
    Peer((VERL,), "data.max_length", ("max_length",)),
    Peer((TRL,), "max_prompt_length", ("max_length",), "of prompt and response together"),
    Peer((VERL,), "data.max_prompt_length", ("max_length",), "of prompt and response together"),
    Peer((TRL,), "max_completion_length", ("max_new_tokens",)),
    Peer((TRL,), "response_length", ("max_new_tokens",)),
    Peer((VERL,), "data.max_response_length", ("max_new_tokens",)),
    Peer((VERL,), "actor_rollout_ref.rollout.response_length", ("max_new_tokens",)),
    Peer((TRL,), "num_generations", ("group_size", "n")),
    Peer((TRL,), "rloo_k", ("group_size",)),
    Peer((VERL,), "actor_rollout_ref.rollout.n", ("group_size", "n")),
    Peer((VERL,), "actor_rollout_ref.rollout.temperature", ("temperature",)),
    Peer((TRL, FACTORY), "top_p", ("top_p",), _TRUNCATED),
    Peer((TRL, FACTORY), "top_k", ("top_k",), _TRUNCATED),
    Peer((TRL,), "min_p", ("min_p",), _TRUNCATED),
    Peer((VERL,), "actor_rollout_ref.rollout.top_p", ("top_p",), _TRUNCATED),
    Peer((VERL,), "actor_rollout_ref.rollout.top_k", ("top_k",), _TRUNCATED),
    Peer((TRL, FACTORY), "repetition_penalty", (), "not built: sampling is from the model's own distribution"),
    Peer((TRL,), "stop_token", ("stop",), "as text; end tokens end a response in any case"),
    Peer((TRL,), "generation_kwargs", (), "give --stop, --temperature and --max-new-tokens"),
    Peer((TRL,), "use_vllm", (), "sampling with vLLM is not built yet"),
    Peer((VERL,), "actor_rollout_ref.rollout.name", (), "there is one sampler; vLLM and SGLang are not built yet"),
    Peer((TRL,), "missing_eos_penalty", ("missing_eos_score",), "as the score itself, so with a minus"),
    Peer((TRL,), "mask_truncated_completions", ("overlong",), "as --overlong mask"),
    # KL, advantages, losses
    Peer((TRL,), "kl_coef", ("beta",)),
    Peer((TRL,), "init_kl_coef", ("beta",)),
    Peer((VERL,), "algorithm.kl_ctrl.kl_coef", ("beta",)),
    Peer((VERL,), "actor_rollout_ref.actor.kl_loss_coef", ("beta",), "with --kl-in loss-k3"),
    Peer((VERL,), "actor_rollout_ref.actor.use_kl_loss", ("kl_in",), "as --kl-in loss-k3"),
    Peer((VERL,), "algorithm.use_kl_in_reward", ("kl_in",), "as --kl-in reward"),
    Peer((VERL,), "actor_rollout_ref.actor.kl_loss_type", ("kl_in",)),
    Peer((FACTORY,), "pref_beta", ("beta",)),
    Peer((TRL,), "target", ("target_kl",)),
    Peer((FACTORY,), "ppo_target", ("target_kl",)),
    Peer((VERL,), "algorithm.kl_ctrl.target_kl", ("target_kl",)),
    Peer((TRL,), "horizon", ("kl_horizon",)),
    Peer((VERL,), "algorithm.kl_ctrl.horizon", ("kl_horizon",)),
    Peer((TRL,), "cliprange", ("clip",)),
    Peer((TRL,), "epsilon", ("clip",)),
    Peer((VERL,), "actor_rollout_ref.actor.clip_ratio", ("clip",)),
    Peer((VERL,), "actor_rollout_ref.actor.clip_ratio_low", ("clip",)),
    Peer((TRL,), "epsilon_high", ("clip_high",)),
    Peer((VERL,), "actor_rollout_ref.actor.clip_ratio_high", ("clip_high",)),
    Peer((TRL,), "cliprange_value", ("value_clip",)),
    Peer((VERL,), "critic.cliprange_value", ("value_clip",)),
    Peer((TRL,), "vf_coef", ("value_coefficient",)),
    Peer((VERL,), "algorithm.gamma", ("gamma",)),
    Peer((VERL,), "algorithm.lam", ("lam",)),
    Peer((FACTORY,), "ppo_score_norm", ("whiten_rewards",)),
    Peer((TRL,), "scale_rewards", ("advantage",), "as --advantage standardised"),
    Peer((VERL,), "algorithm.adv_estimator", ("advantage",), "or take kleash ppo for gae"),
    Peer((VERL,), "algorithm.norm_adv_by_std_in_grpo", ("advantage",), "as --advantage standardised or centred"),
    Peer((TRL,), "loss_type", ("loss", "normalisation"), "see also --preset"),
    Peer((FACTORY,), "pref_loss", ("loss",)),
    Peer((VERL,), "actor_rollout_ref.actor.loss_agg_mode", ("normalisation",)),
    Peer((VERL,), "algorithm.filter_groups.enable", ("resample_zero_spread",)),
    Peer((VERL,), "reward_model.overlong_buffer.enable", ("overlong",), "as --overlong penalise"),
    Peer((TRL, FACTORY), "simpo_gamma", ("gamma_ratio",), "as γ/β"),
    Peer((TRL,), "rpo_alpha", ("sft_coefficient",)),
    Peer((FACTORY,), "pref_ftx", ("sft_coefficient",)),
    Peer((FACTORY,), "dpo_label_smoothing", ("label_smoothing",)),
    Peer((TRL,), "center_rewards_coefficient", ("centring",)),
    Peer((TRL,), "reference_free", ("loss",), "as --loss simpo"),
    Peer((TRL,), "precompute_ref_log_probs", (), "the reference's log-probabilities are computed as they are needed"),
    Peer((TRL,), "disable_dropout", (), "dropout is off in all training"),
    Peer((VERL,), "actor_rollout_ref.actor.entropy_coeff", (), "there is no entropy bonus"),
    # Saving, logging
    Peer((TRL, FACTORY), "eval_steps", ("eval_every",)),
    Peer((TRL, FACTORY), "eval_strategy", ("eval_every",), "in steps"),
    Peer((VERL,), "trainer.test_freq", ("eval_every",)),
    Peer((TRL, FACTORY), "save_steps", ("save_every",)),
    Peer((VERL,), "trainer.save_freq", ("save_every",), "or --snapshot-every, to keep the weights"),
    Peer((TRL, FACTORY), "save_total_limit", ("keep_states",)),
    Peer((TRL, FACTORY), "load_best_model_at_end", ("keep_weights",), "as --keep-weights best"),
    Peer((TRL, FACTORY), "metric_for_best_model", ("criterion",)),
    Peer((TRL, FACTORY), "report_to", ("trackers",)),
    Peer((VERL,), "trainer.logger", ("trackers",)),
    Peer((TRL, FACTORY), "logging_steps", (), "every step is logged, in metrics.jsonl"),
    Peer((VERL,), "trainer.n_gpus_per_node", (), "training on several devices is not built yet"),
    Peer((TRL, FACTORY), "hub_model_id", ("push_to_hub",), "its value is the repository's name"),
    Peer((TRL, FACTORY), "hub_private_repo", (), "a repository that --push-to-hub makes is private"),
    Peer((TRL, FACTORY), "hub_token", (), "the token is that of `hf auth login`, or HF_TOKEN"),
    Peer((VERL,), "trainer.experiment_name", ("run_name",)),
    Peer((TRL, FACTORY), "project", ("tracker_project",)),
    Peer((VERL,), "trainer.project_name", ("tracker_project",)),
    Peer((FACTORY,), "stage", (), "the stage is the command: kleash sft, reward, ppo, dpo, grpo"),
)  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """The explanation of an unknown option."""

    in_a_config: str
    """In the notation of YAML and Python keys."""
    on_the_command_line: str
    """In the notation of command line options."""


def renamed(name: str, fields: Container[str]) -> Explanation | None:
    """Explain an option that kleash does not have under that name.

    Args:
        name: as it was given: `--num-train-epochs`, `num_train_epochs`, `trainer.total_epochs=3`.
        fields: of the stage's config.

    Returns:
        None where no library has an option of that name.
    """
    key = name.lstrip("-+").partition("=")[0].replace("-", "_")
    new = RENAMED.get(key)
    if new is not None:
        where = "" if new in fields else ", which is an option of another command"
        return Explanation(f"it is '{new}' now{where}", f"{option(key)} is now {option(new)}{where}")
    for peer in PEERS:
        if _is(peer.name, key):
            field = next((field for field in peer.ours if field in fields), None)
            if field is not None and field != key:
                note = f" ({peer.note})" if peer.note else ""
                theirs = f"`{name.partition('=')[0]}`"
                return Explanation(f"it is '{field}' here{note}", f"{theirs} is `{option(field)}` here{note}")
            if not peer.ours or (field is None and key in peer.ours):  # of other stages: the note says why
                return Explanation(peer.note, f"`{name.partition('=')[0]}`: {peer.note}")
    if any(peer.name.startswith(f"{key}.") for peer in PEERS):
        return Explanation(_GROUPED, _GROUPED)
    return None


_GROUPED = "options are not grouped here; docs/from-trl.md has verl's names and ours"


def _is(theirs: str, key: str) -> bool:
    """Whether a key is a peer's option: in full, or without its groups where the last part is unambiguous."""
    return key == theirs or (theirs.endswith(f".{key}") and ("_" in key or "." in key))


def names_elsewhere(field: str) -> dict[str, str]:
    """The names of a field in TRL, verl and LLaMA-Factory where they differ from ours: library → name."""
    names: dict[str, str] = {}
    for peer in PEERS:
        if field in peer.ours[:1] and peer.name.rpartition(".")[2] != field:
            for library in peer.libraries:
                names.setdefault(library, peer.name)
    return names


def option(field: str) -> str:
    """A field as an option of the command line."""
    return f"-{field}" if len(field) == 1 else "--" + field.replace("_", "-")


def table() -> str:
    """The table of docs/from-trl.md: the peer's name, kleash's name, the difference."""
    rows = [
        f"| {', '.join(peer.libraries)} | `{peer.name}` | {' or '.join(f'`{option(field)}`' for field in peer.ours)} "
        f"| {peer.note} |"
        for peer in PEERS
    ]
    return "\n".join(["| library | its option | kleash | |", "|---|---|---|---|", *rows])


COMMANDS = {
    "rloo": "`kleash rloo` is `kleash grpo --preset rloo`",
    "dr-grpo": "`kleash dr-grpo` is `kleash grpo --preset dr-grpo`",
    "dapo": "`kleash dapo` is `kleash grpo --preset dapo`",
    "reinforce": "`kleash reinforce` is `kleash grpo --preset rloo`",
    "reinforce++": "not built; take `kleash grpo`, whose baseline is the group's mean, or `kleash ppo`",
    "remax": "not built; take `kleash grpo --preset rloo`, whose baseline is the mean of the other responses",
    "gspo": "not built; take `kleash grpo`",
    "ipo": "`kleash ipo` is `kleash dpo --loss ipo`",
    "cdpo": "`kleash cdpo` is `kleash dpo --loss smoothed --label-smoothing 0.1`",
    "rdpo": "`kleash rdpo` is `kleash dpo --loss robust --label-smoothing 0.1`",
    "simpo": "`kleash simpo` is `kleash dpo --loss simpo`",
    "kto": "not built yet; with preference pairs take `kleash dpo`",
    "orpo": "not built; take `kleash dpo --loss simpo`, which has no reference either",
    "cpo": "not built; take `kleash dpo --loss simpo`, which has no reference either",
    "online-dpo": (
        "repeat `kleash generate -n 2`, `kleash ask --labeller REWARD` and `kleash dpo`; "
        "`kleash demo --all-methods` shows it"
    ),
    "rlhf": "RLHF is `kleash sft`, `kleash reward`, then `kleash ppo`; `kleash run RECIPE.yaml` chains them",
    "rlaif": "RLAIF is `kleash judge`, then `kleash dpo`, or `kleash reward` and `kleash ppo`",
    "constitutional-ai": "`kleash revise` makes the demonstrations, `kleash judge --constitution` the labels",
    "train": "name the method: `kleash sft`, `reward`, `ppo`, `grpo` or `dpo`; `kleash run RECIPE.yaml` chains them",
    "finetune": "`kleash sft`: supervised fine-tuning on demonstrations",
    "rm": "`kleash rm` is `kleash reward`",
    "reward-model": "`kleash reward-model` is `kleash reward`",
    "reward-modeling": "`kleash reward-modeling` is `kleash reward`",
    "bon": "`kleash bon` is `kleash best-of-n`",
    "best-of": "`kleash best-of` is `kleash best-of-n`",
    "rejection-sampling": "`kleash best-of-n` keeps the best response to each prompt, then `kleash sft`",
    "sample": "`kleash sample` is `kleash generate`",
    "predict": "`kleash predict` is `kleash generate`",
    "inference": "`kleash inference` is `kleash generate`",
    "chat": "not built; --out is a plain transformers folder: `vllm serve FOLDER`, or `transformers chat FOLDER`",
    "serve": "not built; --out is a plain transformers folder: `vllm serve FOLDER`",
    "eval": "`kleash check PATH` measures any model or file, `kleash score` scores responses",
    "evaluate": "`kleash check PATH` measures any model or file, `kleash score` scores responses",
    "overoptimization": "`kleash overoptimization` is `kleash overopt`",
    "merge": "not needed: every run with --lora-rank ends in a merged model",
    "annotate": "`kleash annotate` is `kleash label`",
}
"""Commands that other tools have, or that are named after a method → what to type here."""


if __name__ == "__main__":
    print(table())

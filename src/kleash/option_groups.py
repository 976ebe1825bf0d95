"""The groups of options in `kleash COMMAND --help`: what must be given first, what is written last.

A field that stands in no group is the method's own; so a new one needs a place here only where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from kleash.config import Config

REQUIRED, METHOD = "required", "method"

GROUPS = {
    "data": "data models prompts store kind guidelines practice streaming skip_bad_rows columns as_chat "
    "response_column max_length max_rows eval_data max_eval_rows validation_share centre_data pretraining_data mix_in",
    "model": "adapter peft_config lora_rank lora_alpha gradient_checkpointing dtype device trust_remote_code",
    "optimisation": "max_steps epochs batch_size micro_batch_tokens learning_rate value_learning_rate schedule "
    "warmup_steps warmup_ratio min_lr_ratio weight_decay adam_betas adam_eps max_grad_norm ema_decay",
    METHOD: "",
    "sampling": "max_new_tokens temperature top_k top_p min_p stop group_size n rows_at_once",
    "evaluation": "metric pass_above eval_every gold hold_out criterion patience best_of learning_curve measure_share "
    "gate_prompts gate_max_new_tokens force",
    "output": "out keep_weights save_dtype save_every keep_states snapshot_every log_rollouts accept_changed trackers "
    "tracker_project run_name tracker_tags push_to_hub json",
}
"""Title → fields that are not required, in the order of the help."""


def groups_of(config: type[Config]) -> dict[str, list[str]]:
    """The fields of a config by the title of their group, in the order of the help."""
    fields = config.model_fields
    grouped = {title: [name for name in names.split() if name in fields] for title, names in GROUPS.items()}
    required = [name for name, field in fields.items() if field.is_required()]
    placed = {name for names in grouped.values() for name in names}
    grouped[METHOD] = [name for name in fields if name not in placed]
    grouped = {title: [name for name in names if name not in required] for title, names in grouped.items()}
    return {title: names for title, names in {REQUIRED: required, **grouped}.items() if names}


def usage(command: str, required: Sequence[tuple[str, str]]) -> str:
    """The usage of a command in one line: its required options with their placeholders."""
    return " ".join([f"kleash {command}", *(f"{name} {value}" for name, value in required), "[options]"])

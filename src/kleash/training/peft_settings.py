"""The settings of adapters by `peft.LoraConfig`'s names, from Python, YAML or the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from kleash.config import Settings, is_possible_path, read_yaml
from kleash.parse import UnreadableError, parse_yaml

WITHOUT_EFFECT = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config "
    "megatron_config megatron_core".split()
)
"""Fields of a LoraConfig that do not change a training."""

UNCHANGED_AT_FIRST = (True, "gaussian", "orthogonal")
"""Kinds of `init_lora_weights` with which the model begins as it came; others change it, or its base."""


def parse_peft_settings(value: Any) -> Any:
    """A LoraConfig, a mapping, YAML text or a YAML file as a mapping of the fields that are not at their default.

    Raises:
        ValueError: what would be right.
    """
    if isinstance(value, str):
        value = _from_text(value)
    from peft import LoraConfig  # here: it takes seconds to import

    if hasattr(value, "peft_type"):
        if not isinstance(value, LoraConfig):
            raise ValueError(f"a LoraConfig; adapters of the kind {value.peft_type.value} are not trained here")
        value = {name: item for name, item in value.to_dict().items() if name not in WITHOUT_EFFECT}
    if not isinstance(value, dict):
        raise ValueError("a LoraConfig, or its fields as a mapping, as {r: 8, use_dora: true}")
    names = {field.name for field in fields(LoraConfig)}
    if unknown := [name for name in value if name not in names]:
        raise ValueError(f"fields of peft.LoraConfig, of which '{unknown[0]}' is not one")
    try:
        config, default = LoraConfig(**value), LoraConfig().to_dict()
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings that peft.LoraConfig takes ({' '.join(str(error).split())})") from None
    if config.init_lora_weights not in UNCHANGED_AT_FIRST:
        raise ValueError(
            f"with init_lora_weights true, gaussian or orthogonal: with {config.init_lora_weights!r} the model would "
            "not begin as it came, from which the KL is measured"
        )
    if config.layer_replication:
        raise ValueError("without layer_replication, which makes another model")
    settings = {name: _plain(item) for name, item in config.to_dict().items() if name not in WITHOUT_EFFECT}
    return {name: item for name, item in settings.items() if item != _plain(default.get(name))} | {"r": config.r}


def _from_text(text: str) -> Any:
    if is_possible_path(text) and Path(text).is_file():
        return read_yaml(Path(text))
    try:
        return parse_yaml(text.encode())
    except UnreadableError:
        return None


def _plain(value: Any) -> Any:
    """A value for JSON: a set as a sorted list."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)


PeftSettings = Annotated[Settings, BeforeValidator(parse_peft_settings)]
"""Fields of `peft.LoraConfig` by name."""

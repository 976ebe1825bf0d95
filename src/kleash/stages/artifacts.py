"""What a stage is made from, by hash, and the card it lays beside its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.models.load import save_model
from kleash.models.lora import merged_copy
from kleash.rewards.composition import content_of
from kleash.run import RunFolder, fingerprint
from kleash.training.checkpoint import weights
from kleash.training.settings import StageConfig

REWARDS = ("reward", "hold_out", "gold")
"""Fields of stage configs that name a reward."""

FILES = (*REWARDS, "model", "data", "eval_data", "reference", "centre_data", "pretraining_data")
"""Fields of stage configs that name a file, a folder or a hub name."""


def inputs_of(config: StageConfig, **live: tuple[nn.Module, Any] | None) -> dict[str, dict[str, str]]:
    """Path and hash of everything a config names; of a live model, the hash of its weights."""
    inputs = {
        name: content_of(value) if name in REWARDS else fingerprint(value)
        for name in FILES
        if (value := getattr(config, name, None)) is not None
    }
    for name, given in live.items():
        if given is not None:
            inputs[name] = {"path": f"live {type(given[0]).__name__}", "sha256": _sha256(given[0])}
    return inputs


def parameters_held(**models: object) -> dict[str, int]:
    """Parameters of the models that a stage holds in memory side by side; one that takes two parts counts once.

    Args:
        models: by part; what is no module, and has neither one under `model` (a reward model's reward has) nor several
            under `members`, is left out.
    """
    held: dict[int, tuple[str, int]] = {}
    members = {
        f"{part}/{index}": member
        for part, given in models.items()
        for index, member in enumerate(getattr(given, "members", ()))
    }
    for part, given in (models | members).items():
        model = given if isinstance(given, nn.Module) else getattr(given, "model", None)
        if isinstance(model, nn.Module):
            held.setdefault(id(model), (part, sum(parameter.numel() for parameter in model.parameters())))
    return dict(held.values())


def save_snapshot(folder: RunFolder, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep the weights after `step` under snapshots/, adapters merged, to be measured later."""
    path = folder.path / "snapshots" / f"step-{step:06d}"
    save_model(path, merged_copy(model), tokenizer, model_card(folder, ""))


def model_card(folder: RunFolder, summary: str) -> str:
    """The README.md of a model folder."""
    record = folder.record
    settings = json.dumps(record["config"], indent=2, ensure_ascii=False)
    parents = "\n".join(
        f"- {role}: `{value['path']}` (sha256 {value['sha256'][:12]})" for role, value in record["inputs"].items()
    )
    return (
        f"---\nlibrary_name: transformers\ntags: [kleash, {record['stage']}]\n---\n\n"
        f"# Made by `kleash {record['stage']}`\n\n{summary}\n\nFrom:\n\n{parents}\n\n"
        f"Settings:\n\n```json\n{settings}\n```\n\n"
        "Every figure is in `run.json` and `metrics.jsonl` beside this file.\n"
    )


def _sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in weights(model).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()

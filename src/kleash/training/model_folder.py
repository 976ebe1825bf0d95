"""Write a stage's model folder: weights, model card, snapshots; count the parameters in memory."""

from __future__ import annotations

import json
import logging

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.errors import NotFiniteError
from kleash.models.finite import faulty_weights
from kleash.models.load import save_model, stored_dtype
from kleash.models.lora import has_adapters, merge_lora, merged_copy
from kleash.models.read_back import compare_outputs, round_weights
from kleash.models.save_adapter import save_adapter
from kleash.run import RunFolder

logger = logging.getLogger("kleash")


def parameters_held(**models: object) -> dict[str, int]:
    """Parameters of the models that a stage has in memory at the same time; a model with two roles counts once.

    Args:
        models: by role; objects that are not modules, and have neither a module `model` (like `LearnedReward`) nor
            several `members`, are left out.
    """
    counts: dict[int, tuple[str, int]] = {}
    members = {
        f"{part}/{index}": member
        for part, holder in models.items()
        for index, member in enumerate(getattr(holder, "members", ()))
    }
    for part, holder in (models | members).items():
        model = holder if isinstance(holder, nn.Module) else getattr(holder, "model", None)
        if isinstance(model, nn.Module):
            counts.setdefault(id(model), (part, sum(parameter.numel() for parameter in model.parameters())))
    return dict(counts.values())


def write_model(
    folder: RunFolder, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, summary: str, *, merge: bool = True
) -> None:
    """Write the final model of a run and its card, adapters merged or (`adapter keep`) only the adapter; and read it
    back.

    The weights in memory become those that were written, so that whatever is measured later is measured on them.

    Args:
        folder: the run.
        model: the policy or reward model.
        tokenizer: its own.
        summary: sentences of the card.
        merge: whether the adapters of the model in memory are merged too; otherwise those of a copy.

    Raises:
        SavingError: the folder holds another model than the memory.
        NotFiniteError: a weight is not finite in the type to save in; nothing is written.
    """
    if folder.record["config"].get("adapter") == "keep":
        if faulty := faulty_weights(model):
            raise NotFiniteError(f"{folder.path}: the weights of {faulty[0]} are not finite, so nothing is saved")
        save_adapter(folder.path, model, tokenizer, model_card(folder, summary), base=folder.record["config"]["model"])
        return
    if has_adapters(model):
        logger.info("%s: the adapters are merged; --adapter keep writes them as an adapter's folder", folder.path)
    if merge:
        merge_lora(model)
    else:
        model = merged_copy(model)
    dtype = _save_dtype(folder, model)
    if dtype != model.dtype:
        logger.info(
            "%s: the weights are saved in %s; --save-dtype %s keeps every bit of the training",
            folder.path, str(dtype).removeprefix("torch."), str(model.dtype).removeprefix("torch."),
        )  # fmt: skip
    round_weights(model, dtype)
    if faulty := faulty_weights(model):
        raise NotFiniteError(
            f"{folder.path}: {str(dtype).removeprefix('torch.')} cannot hold weights of {faulty[0]}, so nothing is "
            "saved; run again with --save-dtype float32 and another --out"
        )
    save_model(folder.path, model, tokenizer, model_card(folder, summary), dtype=dtype)
    compare_outputs(folder.path, model)


def save_snapshot(
    folder: RunFolder, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, every: int | None
) -> None:
    """Save the weights after each step that `every` divides under snapshots/, adapters merged, for later
    measurement.
    """
    if not every or step % every:
        return
    path = folder.path / "snapshots" / f"step-{step:06d}"
    save_model(path, merged_copy(model), tokenizer, model_card(folder, ""), dtype=_save_dtype(folder, model))


def _save_dtype(folder: RunFolder, model: PreTrainedModel) -> torch.dtype:
    """The type that the run's settings ask for, otherwise that in which the model came."""
    name = folder.record["config"].get("save_dtype")
    return stored_dtype(model) if name is None else getattr(torch, name)


def model_card(folder: RunFolder, summary: str) -> str:
    """The README.md of a model folder."""
    record = folder.record
    if chosen := record["results"].get("chosen"):
        summary += (
            f" Step {chosen['step']} was chosen as the best of {chosen['of']} on the held-out rows, so their figures "
            "are too good; report on other rows."
        )
    settings = json.dumps(record["config"], indent=2, ensure_ascii=False)
    parents = "\n".join(
        f"- {role}: `{value['path']}` (sha256 {value['sha256'][:12]})" for role, value in record["inputs"].items()
    )
    library = "peft" if record["config"].get("adapter") == "keep" else "transformers"
    return (
        f"---\nlibrary_name: {library}\ntags: [kleash, {record['stage']}]\n---\n\n"
        f"# Made by `kleash {record['stage']}`\n\n{summary}\n\nFrom:\n\n{parents}\n\n"
        f"Settings:\n\n```json\n{settings}\n```\n\n"
        "Every figure is in `run.json` and `metrics.jsonl` next to this file.\n"
    )

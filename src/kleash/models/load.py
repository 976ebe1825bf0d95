"""Load and save models and tokenizers in the formats of `transformers`.

A path is only read from the disk; only a name that is not an existing path contacts the hub (F17).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from kleash.content import cached_commit
from kleash.errors import ModelError
from kleash.io import write_folder
from kleash.run import derive_seed

PAD_TOKEN = "<|pad|>"


def load_policy(model: str | Path, *, device: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32 and its tokenizer.

    Args:
        model: a folder, or a hub name.
        device: `auto` uses a GPU if there is one.

    Raises:
        ModelError: there is no such model, or it has no end token.
    """
    tokenizer = load_tokenizer(model)
    with _loading(model):
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **_where(model))
    disable_dropout(policy)
    return move(policy, device), tokenizer


def load_reward_model(model: str | Path, *, device: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model (one output) and its tokenizer.

    Raises:
        ModelError: there is no such model, or it is not a reward model.
    """
    tokenizer = load_tokenizer(model)
    with _loading(model):
        config = AutoConfig.from_pretrained(model, **_where(model))
        if not any("SequenceClassification" in name for name in config.architectures or ()):
            raise ModelError(
                f"{model} is a {', '.join(config.architectures or ['model'])} and not a reward model; "
                "give a folder made by `kleash reward` or a sequence classifier with one output"
            )
        reward = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, **_where(model))
    heads = getattr(reward.config, "kleash_heads", None)  # several on one trunk, made by `kleash reward --heads`
    if (reward.config.num_labels != 1 and heads is None) or not hasattr(reward, "score"):
        raise ModelError(f"{model} has {reward.config.num_labels} outputs; a reward model has one, named `score`")
    return move(reward, device).eval(), tokenizer


def new_reward_model(
    model: str | Path, *, seed: int, heads: int = 1, device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model with fresh scalar heads in place of its output, and a tokenizer whose pad is not its end.

    A head is N(0, 1/√(D+1)) (N+, arXiv:2403.17031, detail 12). `transformers` finds the last token of a row by
    looking for padding, so a pad token that equals the end token would score the wrong position: such a tokenizer gets
    a separate pad token, and the embedding a row for it.

    Raises:
        ModelError: there is no such model, or `transformers` has no classifier of its kind.
    """
    tokenizer = load_tokenizer(model)
    with _loading(model):
        reward = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=heads, dtype=torch.float32, **_where(model)
        )
    if not isinstance(getattr(reward, "score", None), nn.Linear):
        raise ModelError(f"{model}: {type(reward).__name__} has no linear `score` head; use a decoder-only model")
    generator = torch.Generator().manual_seed(derive_seed(seed, "reward head"))
    with torch.no_grad():
        scale = (reward.score.in_features + 1) ** -0.5
        reward.score.weight.copy_(torch.randn(reward.score.weight.shape, generator=generator) * scale)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        if tokenizer.pad_token_id >= reward.get_input_embeddings().num_embeddings:
            reward.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    reward.config.pad_token_id = tokenizer.pad_token_id
    reward.config.kleash_offset = 0.0
    disable_dropout(reward)
    return move(reward, device), tokenizer


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name."""
    with _loading(model):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, **_where(model))
    return tokenizer


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str) -> None:
    """Write a model, its tokenizer and a model card into a folder; other files in it are kept."""

    def fill(path: Path) -> None:
        with _quiet():
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        (path / "README.md").write_text(card)

    staging = folder / ".weights"
    write_folder(staging, fill)
    for file in sorted(staging.iterdir()):
        file.replace(folder / file.name)
    staging.rmdir()


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without gradients: the reference of a policy."""
    return freeze(copy.deepcopy(model))


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, without gradients and in evaluation mode."""
    model.requires_grad_(False)
    model.eval()
    return model


def disable_dropout(model: nn.Module) -> None:
    """Disable dropout permanently: with it, the ratio of the same weights is not 1 (F7)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def autocast(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Compute in `dtype`; weights and optimiser stay in float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def move(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """The model itself, on a device by name."""
    nn.Module.to(model, pick_device(device))
    return model


def pick_device(device: str) -> torch.device:
    """The device by name; `auto` is the GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device '{device}' cannot be used ({reason}); leave --device at auto") from None


def context_length(model: PreTrainedModel) -> int | None:
    """Context length of the model, or None where its config does not state it."""
    length = getattr(model.config, "max_position_embeddings", None)
    return int(length) if length else None


def _where(model: str | Path) -> dict[str, Any]:
    if Path(model).is_dir():
        return {"local_files_only": True}
    if str(model).startswith((".", "/", "~")) or str(model).count("/") > 1:
        raise ModelError(f"{model}: there is no such folder; give a folder with config.json or a hub name")
    commit = cached_commit(str(model))  # the commit in the run's identity, even if the hub has a newer one
    return {} if commit is None else {"revision": commit}


@contextlib.contextmanager
def _loading(model: str | Path) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"{model}: cannot be loaded ({reason}); give a folder with a model or a hub name") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress bars and warnings of `transformers` about intended changes (a new head, say)."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()

"""Load and save models and tokenizers in the formats of `transformers`.

A model is loaded whole or not at all: weights that are missing, of another shape or of another model are an error that
names them. The folder of an adapter (`peft`) stands for its base with the adapter merged.
"""

from __future__ import annotations

import copy
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kleash.content import adapter_base
from kleash.errors import ModelError
from kleash.io import write_folder
from kleash.live import live_object
from kleash.models.forward import Live
from kleash.models.live_copy import copy_of
from kleash.models.place import adapter_folder, config_of, loading, name_of, quiet, settings_of
from kleash.models.read_back import cast, compare_tensors, compare_tokenizer
from kleash.models.weights import described, read_weights
from kleash.run import derive_seed

logger = logging.getLogger("kleash")

PAD_TOKEN = "<|pad|>"

AdapterUse = Literal["merge", "continue", "keep"]
"""What to do with the adapter that a model comes with: merge it into its base, or train it on (`continue`, `keep`)."""


def load_policy(
    model: str | Path | Live, *, device: str = "auto", adapter: AdapterUse = "merge"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32 and its tokenizer.

    Args:
        model: a folder or a hub name, of a model or of an adapter; or a live model, which is changed in place and stays
            on its device.
        device: `auto` uses a GPU if there is one.
        adapter: what to do with the adapter that the model comes with.

    Raises:
        ModelError: there is no such model, its weights are not complete, or it has no end token.
    """
    if isinstance(model, tuple):
        return _live(*model, adapter=adapter)
    tokenizer = load_tokenizer(model)
    policy = read_model(AutoModelForCausalLM, model, adapter=adapter)
    _refuse_tokens_without_row(policy, tokenizer, model)
    disable_dropout(policy)
    return move(policy, device), tokenizer


def load_reward_model(model: str | Path, *, device: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model (one output) and its tokenizer.

    Raises:
        ModelError: there is no such model, its weights are not complete, or it is not a reward model.
    """
    tokenizer = load_tokenizer(model)
    outputs = outputs_of(model)
    if outputs is None:
        raise ModelError(
            f"{model} is {described(model)} and not a reward model; "
            "give a folder made by `kleash reward` or a sequence classifier with one output"
        )
    reward = read_model(AutoModelForSequenceClassification, model, num_labels=outputs)
    heads = getattr(reward.config, "kleash_heads", None)  # several on one trunk, made by `kleash reward --heads`
    if (outputs != 1 and heads is None) or not hasattr(reward, "score"):
        raise ModelError(f"{model} has {outputs} outputs; a reward model has one, named `score`")
    _refuse_tokens_without_row(reward, tokenizer, model)
    return move(reward, device).eval(), tokenizer


def new_reward_model(
    model: str | Path | Live, *, seed: int, heads: int = 1, device: str = "auto", adapter: AdapterUse = "merge"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with scalar heads in place of its output, and a tokenizer whose pad is not its end.

    A reward model with as many heads keeps them, and its centring offset. Otherwise the heads are fresh: N(0, 1/√(D+1))
    (N+, arXiv:2403.17031, detail 12). `transformers` finds the last token of a row by looking for padding, so a pad
    token that equals the end token would score the wrong position: such a tokenizer gets a separate pad token, and the
    embedding a row for it.

    Args:
        model: a folder or a hub name, of a language model, a reward model or an adapter; or a live classifier, which is
            taken as it is.
        seed: of fresh heads.
        heads: how many.
        device: `auto` uses a GPU if there is one.
        adapter: what to do with the adapter that the model comes with.

    Raises:
        ModelError: there is no such model, its weights are not complete, or `transformers` has no classifier of its
            kind.
    """
    if isinstance(model, tuple):
        return _live(*model, adapter=adapter)
    tokenizer = load_tokenizer(model)
    outputs = outputs_of(model)
    trained = outputs == heads and (heads == 1 or bool(getattr(config_of(model), "kleash_heads", None)))
    reward = read_model(
        AutoModelForSequenceClassification, model, new_head=not trained, adapter=adapter, num_labels=heads
    )
    if not isinstance(getattr(reward, "score", None), nn.Linear):
        raise ModelError(f"{model}: {type(reward).__name__} has no linear `score` head; use a decoder-only model")
    _refuse_tokens_without_row(reward, tokenizer, model)
    if outputs is not None:
        logger.info("%s: %s", model, _what_becomes_of_heads(trained, outputs, heads))
    if not trained:
        _draw_heads(reward, seed)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        if tokenizer.pad_token_id >= reward.get_input_embeddings().num_embeddings:
            reward.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    reward.config.pad_token_id = tokenizer.pad_token_id
    disable_dropout(reward)
    return move(reward, device), tokenizer


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name; an adapter without its own has that of its base."""
    if (live := live_object(model)) is not None:
        copied: PreTrainedTokenizerBase = copy.deepcopy(live.value[1])
        return copied
    folder = adapter_folder(model)
    if folder is not None and not any(folder.glob("tokenizer*")):
        return load_tokenizer(adapter_base(folder))
    with loading(model):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name_of(model), **settings_of(model))
    return tokenizer


def outputs_of(model: str | Path) -> int | None:
    """How many outputs a sequence classifier has; None for any other model."""
    if (live := live_object(model)) is not None:
        return len(live.value[0].config.id2label or ()) if hasattr(live.value[0], "score") else None
    folder = adapter_folder(model)
    if folder is not None:
        from kleash.models.adapter import head_rows  # here: `peft` takes seconds to import

        rows = head_rows(folder)
        return outputs_of(adapter_base(folder)) if rows is None else rows
    config = config_of(model)
    classifier = any("SequenceClassification" in name for name in config.architectures or ())
    return len(config.id2label or ()) if classifier else None


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model, its tokenizer and a model card into a folder, and read every tensor and the tokenizer back; other
    files in the folder are kept.

    Args:
        folder: to write to.
        model: without adapters.
        tokenizer: the model's.
        card: the README.md.
        dtype: of the weights in the file; None: the type that the model came in.

    Raises:
        SavingError: a tensor or the tokenizer was not written as it is in memory; the folder is left as it was.
    """
    dtype = dtype or stored_dtype(model)

    def fill(path: Path) -> None:
        with quiet():
            if dtype == model.dtype:
                model.save_pretrained(path)
            else:
                model.save_pretrained(path, state_dict=cast(model.state_dict(), dtype))
                model.config.dtype = str(dtype).removeprefix("torch.")
                model.config.save_pretrained(path)
            tokenizer.save_pretrained(path)
        (path / "README.md").write_text(card)
        compare_tensors(path, model, dtype, name=folder)
        compare_tokenizer(path, tokenizer, name=folder)

    staging = folder / ".weights"
    write_folder(staging, fill)
    for file in sorted(staging.iterdir()):
        file.replace(folder / file.name)
    staging.rmdir()


def stored_dtype(model: PreTrainedModel) -> torch.dtype:
    """The type in which a model came; that of its weights where it was made here."""
    dtype: torch.dtype = getattr(model, "kleash_dtype", model.dtype)
    return dtype


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


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """Compute in `dtype`; weights and optimiser stay in float32."""
    if dtype == "float32":
        return nullcontext()
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
        reason = str(error).split("\n")[0]
        raise ModelError(f"device '{device}' cannot be used ({reason}); leave --device at auto") from None


def context_length(model: PreTrainedModel) -> int | None:
    """Context length of the model, or None where its config does not state it."""
    length = getattr(model.config, "max_position_embeddings", None)
    return int(length) if length else None


def read_model(
    kind: Any, model: str | Path, *, new_head: bool = False, adapter: AdapterUse = "merge", **settings: Any
) -> PreTrainedModel:
    """All weights of a model, in float32; those of an adapter on top of those of its base.

    Args:
        kind: the class of `transformers` that loads it.
        model: a folder or a hub name.
        new_head: whether the output head is replaced: then the weights need not have one, and another one is left out.
        adapter: what to do with an adapter.
        settings: of the model's config.
    """
    if (live := live_object(model)) is not None:
        copied = copy_of(live.value[0], kind, name=str(model), new_head=new_head, merge=adapter == "merge", **settings)
        return _live(copied, load_tokenizer(model), adapter=adapter)[0]
    folder = adapter_folder(model)
    if folder is None:
        if adapter == "continue":
            raise ModelError(f"{model} is not an adapter that could be trained on; leave --adapter at merge")
        return read_weights(kind, model, new_head=new_head, **settings)
    from kleash.models.adapter import attach, head_rows  # here: `peft` takes seconds to import
    from kleash.models.lora import take_adapter

    base = adapter_base(folder)
    brings_head = head_rows(folder) is not None
    if brings_head and kind is AutoModelForCausalLM:
        raise ModelError(
            f"{model} is an adapter of a reward model and not a language model; give one of a language model"
        )
    new_head = new_head or brings_head
    try:
        policy = read_model(kind, base, new_head=new_head, **settings)
    except ModelError as error:
        raise ModelError(f"{model} is an adapter, and its base cannot be used: {error}") from None
    attach(policy, folder)
    take_adapter(policy, train_on=adapter != "merge")
    return policy


def _live(
    model: Any, tokenizer: PreTrainedTokenizerBase, *, adapter: AdapterUse
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A live model as a stage trains it: adapters merged or trained on, half precision as float32, no dropout."""
    if hasattr(model, "get_base_model"):  # a `PeftModel`
        if model.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{type(model).__name__} has an adapter without weights to merge into a model (prompt learning); "
                "give a LoRA or a whole model"
            )
        model = model.get_base_model()
    adapted = False
    if "peft" in sys.modules:  # otherwise it has none
        from kleash.models.lora import has_adapters, take_adapter

        adapted = has_adapters(model)
        if adapted:
            take_adapter(model, train_on=adapter != "merge")
    if adapter == "continue" and not adapted:
        raise ModelError("the live model has no adapter that could be trained on; leave --adapter at merge")
    dtype = next(model.parameters()).dtype
    if not hasattr(model, "kleash_dtype"):
        model.kleash_dtype = dtype
    if dtype in (torch.bfloat16, torch.float16):
        model.float()  # a small step would be rounded away
    _refuse_tokens_without_row(model, tokenizer, f"the live {type(model).__name__}")
    disable_dropout(model)
    return model, tokenizer


def _draw_heads(reward: PreTrainedModel, seed: int) -> None:
    """Fresh scalar heads."""
    head: Any = reward.score
    generator = torch.Generator().manual_seed(derive_seed(seed, "reward head"))
    with torch.no_grad():
        scale = (head.in_features + 1) ** -0.5
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * scale)
    reward.config.kleash_offset = 0.0
    if hasattr(reward.config, "kleash_heads"):
        del reward.config.kleash_heads


def _what_becomes_of_heads(trained: bool, outputs: int, heads: int) -> str:
    if trained:
        return "is a reward model; its head and its centring offset are kept and trained on"
    return f"is a classifier with {outputs} output{'s' * (outputs != 1)}; training starts from {heads} fresh one" + (
        "s" * (heads != 1)
    )


def _refuse_tokens_without_row(model: Any, tokenizer: PreTrainedTokenizerBase, name: str | Path) -> None:
    """Refuse a tokenizer whose special tokens have no row in the embedding, and later any other such token."""
    embedding = model.get_input_embeddings()
    rows = embedding.num_embeddings
    if len(tokenizer) <= rows and max(tokenizer.added_tokens_decoder, default=0) < rows:
        return
    tokens = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}

    def refuse(index: int) -> None:
        raise ModelError(
            f"{name}: its embedding has {rows} rows, and its tokenizer's {tokens.get(index, 'token')!r} is number "
            f"{index}; resize the embedding (`resize_token_embeddings`) and save the model, or use the tokenizer that "
            "it was trained with"
        )

    def check(module: Any, inputs: tuple[Any, ...]) -> None:
        largest = int(inputs[0].max()) if inputs[0].numel() else 0
        if largest >= module.num_embeddings:
            refuse(largest)

    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    for index in special:
        if index is not None and index >= rows:
            refuse(index)
    embedding.register_forward_pre_hook(check)  # the others may never occur (Gemma 3's image token does not)

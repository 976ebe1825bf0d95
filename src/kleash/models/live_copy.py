"""Live models that Python passes: what they are known by, and copies to train, so that they stay as they are."""

from __future__ import annotations

import copy
import hashlib
import json
from contextlib import suppress
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kleash.errors import ModelError
from kleash.live import LiveObject
from kleash.models.place import name_of, quiet, settings_of
from kleash.models.weights import weights


def live_model(value: Any) -> LiveObject | None:
    """A model that was passed in place of a name; None where a value is something else.

    Args:
        value: a model and its tokenizer, or only a model (a `PeftModel` too) whose tokenizer its `name_or_path` has.

    Raises:
        ModelError: a model without a tokenizer, or with one that is not a tokenizer of `transformers`.
    """
    pair = isinstance(value, tuple | list) and len(value) == 2 and _is_model(value[0])
    if not pair and not _is_model(value):
        return None
    model, tokenizer = value if pair else (value, _own_tokenizer(value))
    if hasattr(model, "get_base_model") and model.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"{type(model).__name__} has an adapter without weights to merge into a model (prompt learning); give a "
            "LoRA or a whole model"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"{type(model).__name__} came with a {type(tokenizer).__name__}; give (model, tokenizer), both of "
            "`transformers`"
        )
    return LiveObject(type(_plain(model)).__name__, (model, tokenizer), live_hash(model, tokenizer))


def live_inputs(**live: Any) -> dict[str, dict[str, str]]:
    """What live models are known by in run.json, in place of what a config names.

    Args:
        live: by field, a model and its tokenizer, or None; other objects have no entry.
    """
    return {
        role: {"path": f"live {type(value[0]).__name__}", "sha256": live_hash(*value)}
        for role, value in live.items()
        if isinstance(value, tuple)
    }


def live_hash(model: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a live model: its weights, its config, its adapters' configs and its tokenizer."""
    digest = hashlib.sha256()
    for name, tensor in weights(model).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    config = _plain(model).config.to_dict()
    adapters = {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()}
    added = {str(token): index for token, index in tokenizer.get_added_vocab().items()}
    for settings in (config, *adapters.values()):
        for key in ("_name_or_path", "base_model_name_or_path", "transformers_version", "peft_version"):
            settings.pop(key, None)
    about = [config, adapters, sorted(tokenizer.get_vocab().items()), added, tokenizer.chat_template]
    digest.update(json.dumps(about, sort_keys=True, default=_sorted).encode())
    return digest.hexdigest()


def copy_of(
    model: Any, kind: Any, *, name: str, new_head: bool, merge: bool = True, num_labels: int = 1
) -> PreTrainedModel:
    """A copy of a live model to train or to score with; parts of it that are frozen stay so, unless all are.

    Args:
        model: stays as it is.
        kind: the class of `transformers` that would load it from a folder: a language model's or a classifier's.
        name: of the model, for messages.
        new_head: whether the output head is replaced by that of a classifier.
        merge: whether the adapters that it has are merged then.
        num_labels: outputs of a new head.

    Raises:
        ModelError: it is of the other kind, or `transformers` has no classifier of its kind.
    """
    classifier = hasattr(_plain(model), "score")
    if kind is AutoModelForCausalLM and classifier:
        raise ModelError(f"{name} is a classifier and not a language model; give one of a language model")
    if kind is AutoModelForCausalLM or not new_head:
        with torch.random.fork_rng():
            copied: PreTrainedModel = copy.deepcopy(_plain(model))
        if not any(parameter.requires_grad for parameter in copied.parameters()):  # in use for something else
            copied.requires_grad_(True)
        return copied
    if hasattr(model, "peft_config"):
        from kleash.models.lora import merge_lora  # here: `peft` takes seconds to import

        if not merge:
            raise ModelError(
                f"{name}: its adapter cannot be trained on below another head; save it and give its folder, or merge it"
            )

        model = copy.deepcopy(_plain(model))
        merge_lora(model)
    return _classifier_of(model, name, num_labels)


def _classifier_of(model: PreTrainedModel, name: str, num_labels: int) -> PreTrainedModel:
    """A classifier with a model's decoder below its own head."""
    config = copy.deepcopy(model.config)
    config.num_labels = num_labels
    try:
        with quiet(), torch.random.fork_rng():
            classifier: Any = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype)
    except ValueError as error:
        reason = " ".join(str(error).split())[:100]
        raise ModelError(
            f"{name}: `transformers` has no classifier of its kind ({reason}); take another model"
        ) from None
    decoder = {key: tensor for key, tensor in model.state_dict().items() if key in classifier.state_dict()}
    missing = classifier.load_state_dict(decoder, strict=False).missing_keys
    if lost := [key for key in missing if key.startswith(f"{classifier.base_model_prefix}.")]:
        raise ModelError(f"{name}: a {type(classifier).__name__} has {lost[0]}, which it has not; take another model")
    classifier.to(model.device)
    classifier.kleash_dtype = getattr(model, "kleash_dtype", model.dtype)
    copied: PreTrainedModel = classifier
    return copied


def _is_model(value: Any) -> bool:
    return isinstance(value, PreTrainedModel) or hasattr(value, "get_base_model")


def _plain(model: Any) -> Any:
    """The model of `transformers` below a `PeftModel`, adapters and all."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _own_tokenizer(model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of the folder or hub name that a model was loaded from."""
    name = getattr(_plain(model), "name_or_path", "")
    if name:
        with suppress(Exception), quiet():  # of many kinds
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name_of(name), **settings_of(name))
            return tokenizer
    where = f"{name} has none" if name else "it was not loaded from a folder or the hub"
    raise ModelError(f"{type(model).__name__}: its tokenizer is not known ({where}); give (model, tokenizer)")


def _sorted(value: Any) -> Any:
    """What JSON lacks, in an order of its own."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)

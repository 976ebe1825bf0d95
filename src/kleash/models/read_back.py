"""Read back what was written: a folder holds the model that is in memory, or the run has not finished.

First every tensor: its name, shape, type and bits, one tensor at a time; and the tokenizer. Then, where a second model
fits into memory, what it computes: a config that lost a value (a head's offset, tied embeddings) shows only there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from kleash.data.batch import collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.errors import ModelError, SavingError
from kleash.io import read_json
from kleash.memory import available
from kleash.models.forward import centring_offset, response_logprobs, response_scores
from kleash.models.place import loading, settings_of
from kleash.models.weights import read_weights
from kleash.run import derive_seed

logger = logging.getLogger("kleash")

ROWS, TOKENS = 4, 12
"""Size of the probe: rows, and tokens of each, half of them the response."""

PROBES = ("", "The cat sat.", "  two\n\nlines\tand a tab ", "3.14159 - 2,718", "naïve Ωμέγα 東京 🙂", "a b c d")
"""Texts that two equal tokenizers give the same ids."""

TOLERANCE = 1e-3
"""How far rounding may move a log-probability or score, in nats: on another device sums are taken in another order."""

ADVICE = "check the disk and run the same command again; if it happens again, this kind of model is not supported"


def cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors in another type; those that are tied stay one tensor, and integers stay as they are."""
    copies: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
    for tensor in state.values():
        key = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if key not in copies:
            copies[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: copies[tensor.data_ptr(), tensor.shape, tensor.dtype] for name, tensor in state.items()}


@torch.no_grad()
def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round the weights in memory to those that a file of this type holds."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.copy_(tensor.to(dtype))


def compare_tensors(folder: Path, model: PreTrainedModel, dtype: torch.dtype, *, name: Path) -> None:
    """Compare every tensor of a folder with the model's.

    Args:
        folder: just written.
        model: in memory.
        dtype: in which its weights were written.
        name: the folder in messages.

    Raises:
        SavingError: naming the first tensor that differs.
    """
    expected = revert_weight_conversion(model, model.state_dict())
    pointers = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a dict)
                if key not in expected:
                    raise SavingError(f"{name}: {file.name} holds {key}, which the model has not; {ADVICE}")
                difference = _difference(tensors.get_tensor(key), expected[key], dtype)
                if difference:
                    raise SavingError(f"{name}: {key} was not written as it is in memory: {difference}; {ADVICE}")
                pointers.add(expected[key].data_ptr())
    ignored = model._keys_to_ignore_on_save or ()
    lost = [key for key, tensor in expected.items() if tensor.data_ptr() not in pointers and key not in ignored]
    if lost:
        raise SavingError(f"{name}: {lost[0]} was not written ({len(lost)} in all); {ADVICE}")


def _difference(stored: Tensor, tensor: Tensor, dtype: torch.dtype) -> str:
    tensor = tensor.detach().to(dtype).cpu() if tensor.is_floating_point() else tensor.detach().cpu()
    for what, there, here in (("shape", stored.shape, tensor.shape), ("type", stored.dtype, tensor.dtype)):
        if there != here:
            return f"its {what} is {there} for {here}"
    same = torch.equal(_bits(stored), _bits(tensor))
    return "" if same else f"{int((stored != tensor).sum())} of {tensor.numel()} numbers differ"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def compare_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, *, name: Path) -> None:
    """Compare the tokenizer of a folder with the one in memory: its chat template, and its ids of some texts.

    Args:
        folder: just written.
        tokenizer: in memory.
        name: the folder in messages.

    Raises:
        SavingError: naming what differs.
    """
    try:
        with loading(folder):
            second: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **settings_of(folder))
    except ModelError as error:
        raise SavingError(f"{name}: the tokenizer that was written cannot be read back: {error}") from None
    if second.chat_template != tokenizer.chat_template:
        raise SavingError(f"{name}: the chat template was not written as it is in memory; {ADVICE}")
    for text in (*PROBES, "".join(map(str, tokenizer.all_special_tokens))):
        there, here = (each(text, verbose=False)["input_ids"] for each in (second, tokenizer))
        if there != here:
            raise SavingError(
                f"{name}: the tokenizer that was written encodes {text!r} as {there}, and as {here} in memory; {ADVICE}"
            )


def compare_offset(folder: Path, model: PreTrainedModel) -> None:
    """Compare the centring of a reward model's config.json with that of the model in memory.

    Raises:
        SavingError: it differs.
    """
    here, there = centring_offset(model), read_json(folder / "config.json").get("kleash_offset", 0.0)
    if here != there:
        raise SavingError(f"{folder}: config.json has the offset {there}, and the model in memory {here}; {ADVICE}")


@torch.no_grad()
def compare_outputs(folder: Path, model: PreTrainedModel, *, load: Callable[[], PreTrainedModel] | None = None) -> None:
    """Compare what the model in a folder computes with what the model in memory does, where a second one fits there.

    Args:
        folder: of a finished model.
        model: in memory, its weights those of the folder (see `round_weights`).
        load: loads the folder; None: as a whole model.

    Raises:
        SavingError: the folder cannot be loaded, or computes something else.
    """
    needed = 4 * sum(parameter.numel() for parameter in model.parameters())
    if 2 * needed > available():
        logger.info("%s: a second model does not fit into memory, so only its tensors were read back", folder)
        return
    try:
        second = read_weights(type(model), folder) if load is None else load()
    except ModelError as error:
        raise SavingError(f"what was written cannot be read back: {error}") from None
    gap = float((_probe(second.eval()) - _probe(model)).abs().max())
    if not gap <= TOLERANCE:
        raise SavingError(
            f"{folder}: the model that was written differs from that in memory by {gap:.2g} on {ROWS} rows; {ADVICE}"
        )


def _probe(model: Any) -> Float[Tensor, "P K ..."]:
    """Scores, or log-probabilities, of rows of random tokens, on the CPU."""
    rows = len(model.get_input_embeddings().weight)
    length = min(TOKENS, getattr(model.config, "max_position_embeddings", None) or TOKENS)
    generator = torch.Generator().manual_seed(derive_seed("read back"))
    ids = torch.randint(rows, (ROWS, length), generator=generator).tolist()
    cut = length // 2
    groups = [
        EncodedGroup(tuple(row[:cut]), (EncodedResponse(tuple(row[cut:]), (True,) * (length - cut)),), Group(""))
        for row in ids
    ]
    training = model.training
    model.eval()
    try:
        batch = collate(groups, device=model.device)
        result = response_scores(model, batch) if hasattr(model, "score") else response_logprobs(model, batch)[0]
    finally:
        model.train(training)
    return result.float().cpu()

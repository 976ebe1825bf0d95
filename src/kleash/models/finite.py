"""Weights and forward passes that are not finite numbers: finding them, and naming the cause."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kleash.errors import NotFiniteError, listed

PROBE_TOKENS = 16
"""Length of the text on which a forward pass is tried."""

LARGE = 100.0
"""Weights of trained language models stay below this: a larger one was blown up by its updates."""


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; true where there are none."""
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all()) if tensor.numel() else True


def is_trained(model: nn.Module) -> bool:
    """Whether a model is one that a run trains, so that its updates may be the cause."""
    return any(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def faulty_weights(model: nn.Module) -> list[str]:
    """Names of the tensors of a model that hold a number that is not finite."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    return [name for name, tensor in tensors.items() if not is_finite(tensor)]


@torch.no_grad()
def refuse_overflow(model: nn.Module, when: str) -> None:
    """Refuse a model whose weights, or whose forward pass on a short text, are not finite.

    Args:
        model: a language model, a classifier, or a module around a `decoder`.
        when: beginning of the message: "after step 4".

    Raises:
        NotFiniteError: names the cause.
    """
    if faulty_weights(model):
        raise not_finite(f"{when} weights are", model, trained=True)
    decoder: Any = getattr(model, "decoder", model)
    ids = torch.arange(min(PROBE_TOKENS, decoder.config.vocab_size), device=next(model.parameters()).device)[None]
    training = decoder.training
    decoder.eval()
    try:
        output = decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
    finally:
        decoder.train(training)
    if not is_finite(output):
        raise not_finite(f"{when} the model's outputs are", model, trained=True)


def not_finite(what: str, model: nn.Module | None, *, trained: bool, detail: str = "") -> NotFiniteError:
    """The error for a quantity that is not finite.

    Args:
        what: the quantity and its verb: "optimiser step 4: the loss is".
        model: the model that computed it; None where the weights are elsewhere.
        trained: whether it was updated before, so that the learning rate is the likeliest cause.
        detail: what else is known, e.g. the learning rate.
    """
    return NotFiniteError(f"{what} not finite: {_cause(model, trained=trained)}{detail}")


@torch.no_grad()
def _cause(model: nn.Module | None, *, trained: bool) -> str:
    advice = "lower --learning-rate (--accept-changed learning_rate goes on from the last saved state)"
    if model is None:
        return f"the forward pass overflows; {advice}" if trained else "the forward pass overflows; check the model"
    if faulty := faulty_weights(model):
        names = listed(faulty, most=2)
        if trained:
            return f"the updates made weights infinite ({names}); {advice}"
        return f"the model came with weights that are not finite ({names}); take an undamaged --model"
    name, size = largest_weight(model)
    if trained and size > LARGE:
        return f"the updates made the weights too large (up to {size:.3g}, in {name}), so that it overflows; {advice}"
    sizes = f"its weights are at most {size:.3g}"
    if trained:
        return f"it overflows in the forward or backward pass ({sizes}); {advice}, or take --dtype float32"
    return f"it overflows in the forward or backward pass ({sizes}), before any update; check the model and the rows"


@torch.no_grad()
def largest_weight(model: nn.Module) -> tuple[str, float]:
    """The tensor with the weight that is largest in size, and that size."""
    sizes = {name: float(p.detach().abs().max()) for name, p in model.named_parameters() if p.numel()}
    return max(sizes.items(), key=lambda item: item[1])

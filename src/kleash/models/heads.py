"""The value head: the expected return before each token of a response."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kleash.data.batch import GroupBatch
from kleash.errors import ModelError
from kleash.models.forward import BackEnd, centring_offset, combination, find_decoder, response_states, scatter
from kleash.models.load import disable_dropout
from kleash.run import derive_seed


class ValueModel(nn.Module):
    """A decoder with one output per state. It shares no weight with the policy or the reward model.

    Args:
        decoder: turns ids into hidden states; trained with the head.
        head: D to 1, with a bias.
    """

    def __init__(self, decoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head

    @classmethod
    def from_reward_model(cls, model: Any) -> ValueModel:
        """Start from a copy of a reward model, head included: at first the value is the (centred) score so far.

        As in InstructGPT (arXiv:2203.02155, appendix C.4).

        Args:
            model: a sequence classifier with a linear head; it is not changed. Of several heads the mean is taken.

        Raises:
            ModelError: it has several outputs and its config does not say how to combine them, or no linear head.
        """
        score = getattr(model, "score", None)
        weight = getattr(score, "weight", None)
        if score is None or weight is None or (weight.shape[0] != 1 and not combination(model)):
            raise ModelError(f"{type(model).__name__} has no linear `score` head of one output; give a reward model")
        head = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            head.weight.copy_(weight.mean(0, keepdim=True))
            bias = getattr(score, "bias", None)
            head.bias.fill_(0.0 if bias is None else float(bias.mean())).sub_(centring_offset(model))
        return cls(_trainable_copy(model), head)

    @classmethod
    def from_policy(cls, model: Any, *, seed: int) -> ValueModel:
        """Start from a copy of a policy's decoder under a fresh head.

        The head is N(0, 1/√(D+1)) with bias 0 (N+, arXiv:2403.17031, detail 12).

        Args:
            model: a language model; it is not changed.
            seed: of the head.
        """
        decoder = _trainable_copy(model)
        parameter = next(decoder.parameters())
        head = nn.Linear(decoder.config.hidden_size, 1, device=parameter.device, dtype=parameter.dtype)
        generator = torch.Generator().manual_seed(derive_seed(seed, "value head"))
        with torch.no_grad():
            draws = torch.randn(head.weight.shape, generator=generator)
            head.weight.copy_(draws * (head.in_features + 1) ** -0.5)
            head.bias.zero_()
        return cls(decoder, head)

    def get_decoder(self) -> nn.Module:
        """The part that `response_states` runs."""
        return self.decoder


def values(model: ValueModel, batch: GroupBatch, *, back_end: BackEnd | None = None) -> Float[Tensor, "P K T"]:
    """Expected return before each response token, from the state that predicts it; 0 where `batch.mask` is False.

    Args:
        model: the value model.
        batch: groups.
        back_end: see `response_states`.
    """
    states = response_states(model, batch, back_end=back_end).flatten(0, 2)[batch.token_index]
    result = model.head(states).squeeze(-1)
    return scatter(result.to(torch.promote_types(result.dtype, torch.float32)), batch)


def _trainable_copy(model: Any) -> Any:
    decoder = copy.deepcopy(find_decoder(model)).requires_grad_(True)
    disable_dropout(decoder)
    return decoder

"""Top-k, top-p and min-p: sampling from the likelier tokens only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEAR_TIE = 1e-6
"""A probability closer than this to a boundary could be on its other side by rounding."""


@dataclass(frozen=True)
class Truncation:
    """Which tokens may be sampled: those that pass all three, in the order of `transformers`: top-k, then top-p and
    min-p on what is left, each of probabilities that sum to 1 again. The likeliest token always passes.
    """

    top_k: int | None = None
    """The k likeliest tokens, and those that tie with the last of them (Fan et al. 2018, arXiv:1805.04833). ≥ 1; beyond
    the vocabulary it keeps everything."""
    top_p: float = 1.0
    """The likeliest tokens until their probabilities sum to p (Holtzman et al. 2020, arXiv:1904.09751, nucleus). In
    (0, 1]; of tokens that tie at the border those with the larger ids are kept."""
    min_p: float = 0.0
    """Tokens at least this times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082). In [0, 1]."""

    def __call__(self, logits: Float[Tensor, "R V"]) -> tuple[Float[Tensor, "R V"], Bool[Tensor, " R"]]:
        """The logits with −∞ for the tokens that do not pass, and whether rounding could have let another one pass.

        Args:
            logits: divided by the temperature, in float32 or more.
        """
        near = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            best = logits.topk(self.top_k + 1, -1).values
            last, next_best = best[:, -2:-1], best[:, -1:]
            near |= (last - next_best < NEAR_TIE).squeeze(-1)
            logits = logits.masked_fill(logits < last, -torch.inf)
        if self.top_p < 1:
            ascending, order = logits.sort(dim=-1, stable=True)  # not stable, ties would depend on the batch
            probabilities = ascending.softmax(-1)
            rest = probabilities.cumsum(-1, dtype=torch.float64) - (1 - self.top_p)
            removed = rest <= 0
            removed[:, -1] = False
            near |= ((rest.abs() < NEAR_TIE) & (probabilities > NEAR_TIE))[:, :-1].any(-1)
            logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
        if self.min_p > 0:
            probabilities = logits.softmax(-1)
            distance = probabilities - self.min_p * probabilities.amax(-1, keepdim=True)
            near |= ((distance != 0) & (distance.abs() < NEAR_TIE) & (probabilities > NEAR_TIE)).any(-1)
            logits = logits.masked_fill(distance < 0, -torch.inf)
        return logits, near

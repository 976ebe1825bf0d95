"""Whether a response ended by itself, as a reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.group import Group


class EndedReward:
    """1 for a response that ended by itself, 0 for one that was cut off: a gate in compositions."""

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return torch.tensor([[float(response.finished) for response in group.responses] for group in groups])

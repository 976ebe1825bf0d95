"""Several reward models as one reward, from a folder that `kleash reward --members` made.

out/
ensemble.json     the members, by path and hash, and how their scores are combined
members/0 …       reward models, each a folder that `transformers` loads
validation/       a reward model on labels of its own, which no score is made of (where asked for)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.content import folder_hash
from kleash.data.group import Group
from kleash.errors import ModelError
from kleash.io import write_json
from kleash.objectives.combine import Combine, combine_scores
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Parts

FILE = "ensemble.json"
VALIDATION = "validation"


class EnsembleReward:
    """Reward models whose scores are combined."""

    def __init__(
        self, members: Sequence[LearnedReward], *, combine: Combine = "mean", variance_penalty: float = 0.0
    ) -> None:
        """Take the members, each centred on the same samples; for the rest see `combine_scores`."""
        self.members = list(members)
        self.combine, self.variance_penalty = combine, variance_penalty

    @classmethod
    def load(cls, folder: Path, **settings: Any) -> EnsembleReward:
        """From a folder with an ensemble.json.

        Args:
            folder: what `write_ensemble` left.
            settings: passed on to `LearnedReward.load`.

        Raises:
            ModelError: a member is gone or is another one than the file says.
        """
        told = json.loads((folder / FILE).read_text())
        for name, sha256 in told["members"].items():
            if not (folder / name).is_dir() or folder_hash(folder / name) != sha256:
                raise ModelError(f"{folder / name} is not the member that {FILE} names; run `kleash reward` again")
        members = [LearnedReward.load(folder / name, **settings) for name in told["members"]]
        return cls(members, combine=told["combine"], variance_penalty=told["variance_penalty"])

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and `spread`: the standard deviation over members, which the policy is not paid for.

        And, as the mean over members, what they tell of `distance` and of the share `outside`.
        """
        told = [member.explain(groups) for member in self.members]
        scores = torch.stack([own for own, _ in told], -1)
        combined = combine_scores(scores, combine=self.combine, variance_penalty=self.variance_penalty)
        shared = set.intersection(*(set(parts) for _, parts in told)) - {"spread"}
        means = {name: torch.stack([parts[name] for _, parts in told]).mean(0) for name in sorted(shared)}
        return combined, {"spread": scores.std(-1, correction=0), **means}


def write_ensemble(folder: Path, members: Sequence[str], *, combine: Combine, variance_penalty: float) -> None:
    """Write the ensemble.json of a folder whose members are there, by their paths within it."""
    hashes = {name: folder_hash(folder / name) for name in members}
    write_json(folder / FILE, {"members": hashes, "combine": combine, "variance_penalty": variance_penalty})

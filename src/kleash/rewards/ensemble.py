"""Several reward models as one reward, from a folder that `kleash reward --members` made.

out/
ensemble.json     the members, by path and hash, and how their scores are combined
members/0 …       reward models, each a folder that `transformers` loads
validation/       a reward model on separate labels, which is not part of the score (optional)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

from kleash.config import is_possible_path
from kleash.content import folder_hash
from kleash.data.group import Group
from kleash.errors import ModelError
from kleash.io import read_json, refuse_damaged, write_json
from kleash.models.compute import Compute
from kleash.objectives.combine import Combine, combine_scores
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Parts

FILE = "ensemble.json"
VALIDATION = "validation"
REMEDY = "run `kleash reward` again"


class EnsembleFile(TypedDict):
    """The contents of ensemble.json."""

    members: dict[str, str]
    """Path within the folder → hash of the member."""
    combine: Combine
    variance_penalty: float


class EnsembleReward:
    """Reward models whose scores are combined."""

    def __init__(
        self, members: Sequence[LearnedReward], *, combine: Combine = "mean", variance_penalty: float = 0.0
    ) -> None:
        """Take the members, each centred on the same samples; for the rest see `combine_scores`."""
        self.members = list(members)
        self.combine, self.variance_penalty = combine, variance_penalty

    @classmethod
    def load(
        cls, folder: Path, *, policy_tokenizer: PreTrainedTokenizerBase | None = None, compute: Compute | None = None
    ) -> EnsembleReward:
        """From a folder with an ensemble.json.

        Args:
            folder: as `write_ensemble` wrote it.
            policy_tokenizer: see `LearnedReward`.
            compute: see `LearnedReward`.

        Raises:
            ModelError: a member is missing, or its files are not those that ensemble.json names.
        """
        record = cast(EnsembleFile, read_json(folder / FILE, REMEDY))
        refuse_damaged(folder / FILE, dict(record), EnsembleFile, REMEDY)
        for name, sha256 in record["members"].items():
            if not is_possible_path(name) or not (folder / name).is_dir() or folder_hash(folder / name) != sha256:
                raise ModelError(f"{folder / name} is not the member that {FILE} names; {REMEDY}")
        members = [
            LearnedReward.load(folder / name, policy_tokenizer=policy_tokenizer, compute=compute)
            for name in record["members"]
        ]
        return cls(members, combine=record["combine"], variance_penalty=record["variance_penalty"])

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Combined scores and, as a part, `spread`: the standard deviation over members, not part of the score.

        Also the members' `distance` and `outside`, each as the mean over members, where all members have them.
        """
        scores_and_parts = [member.explain(groups) for member in self.members]
        scores = torch.stack([scores for scores, _ in scores_and_parts], -1)
        combined = combine_scores(scores, combine=self.combine, variance_penalty=self.variance_penalty)
        parts_of_members = [parts for _, parts in scores_and_parts]
        shared = set.intersection(*(set(parts) for parts in parts_of_members)) - {"spread"}
        means = {name: torch.stack([parts[name] for parts in parts_of_members]).mean(0) for name in sorted(shared)}
        return combined, {"spread": scores.std(-1, correction=0), **means}


def write_ensemble(folder: Path, members: Sequence[str], *, combine: Combine, variance_penalty: float) -> None:
    """Write the ensemble.json of a folder that holds its members, named by their paths within it."""
    record: EnsembleFile = {
        "members": {name: folder_hash(folder / name) for name in members},
        "combine": combine,
        "variance_penalty": variance_penalty,
    }
    write_json(folder / FILE, record)

"""A reward model as a reward, and the one function that computes its scores.

Held-out figures, centring, `ppo` and the tests all score through `score_encoded`, and training through the function
below it, so that the same response has the same score everywhere, whatever batch it is in (F8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batch import GroupBatch, collate
from kleash.data.batching import microbatches
from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup, Group, Response
from kleash.models.forward import centring_offset, combination, head_scores, read_heads, response_features
from kleash.models.load import autocast, load_reward_model
from kleash.objectives.combine import combine_scores
from kleash.progress import Progress
from kleash.rewards.feature_range import FeatureRange
from kleash.rewards.reward import Parts


class LearnedReward:
    """A trained reward model that scores groups."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        policy_tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "float32",
        micro_batch_tokens: int = 8192,
        range: FeatureRange | None = None,
    ) -> None:
        """Take a model.

        Args:
            model: one output, named `score`.
            tokenizer: the model's own.
            policy_tokenizer: whose ids the responses carry. Ids are used as they are where the reward model gives
                each the same meaning; else, or where this is None, text is read.
            dtype: what to compute in.
            micro_batch_tokens: tokens in memory at once.
            range: what the model was trained on, in its features; None where nobody measured it.
        """
        self.model, self.tokenizer, self.range = model, tokenizer, range
        self.dtype, self.micro_batch_tokens = dtype, micro_batch_tokens
        self.reads_ids = policy_tokenizer is not None and speaks(tokenizer, policy_tokenizer)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", **settings: object) -> LearnedReward:
        """From a folder."""
        model, tokenizer = load_reward_model(folder, device=device)
        return cls(model, tokenizer, range=FeatureRange.load(Path(folder)), **settings)  # type: ignore[arg-type]

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and beside them what one forward pass tells of each response.

        Returns:
            The scores, and where there is what they need: `spread`, the standard deviation over several heads on one
            trunk; `distance` (see `distances`), and `outside`, 1 for a response beyond the range.
        """
        computing = (self.model, self._encode(groups), self.dtype, self.micro_batch_tokens)
        parts: dict[str, Tensor] = {}
        if self.range is None:
            heads = _by_batch(head_scores, *computing)
        else:
            both = _by_batch(_features_and_heads, *computing)
            features, heads = both.tensor_split([self.range.mean.shape[0]], -1)
            distance = self.range.distance(features.flatten(0, 1)).reshape(features.shape[:2])
            parts |= {"distance": distance, "outside": (distance > self.range.threshold).float()}
        if heads.shape[-1] > 1:
            parts["spread"] = heads.std(-1, correction=0)
        return _combined(self.model, heads), parts

    def distances(self, groups: Sequence[Group]) -> Float[Tensor, "P K"] | None:
        """How far each response lies from what the model was trained on; beyond `range.threshold` it is out of range.

        Returns:
            Mahalanobis distances, on the CPU; None where the reward has no `range`.
        """
        return self.explain(groups)[1].get("distance")

    def _encode(self, groups: Sequence[Group]) -> list[EncodedGroup]:
        groups = groups if self.reads_ids else [_as_text(group) for group in groups]
        return encode_all(groups, self.tokenizer)[0]


def score_encoded(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], *, dtype: str = "float32", micro_batch_tokens: int = 8192
) -> Float[Tensor, "P K"]:
    """Scores of groups of one K, in float32 on the CPU; each is independent of the batch it was computed in.

    Args:
        model: a reward model.
        groups: at least one.
        dtype: what to compute in.
        micro_batch_tokens: tokens in memory at once.
    """
    return _combined(model, score_heads(model, groups, dtype=dtype, micro_batch_tokens=micro_batch_tokens))


def score_heads(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], *, dtype: str = "float32", micro_batch_tokens: int = 8192
) -> Float[Tensor, "P K M"]:
    """What each head says, before the heads are combined and without the centring offset; see `score_encoded`."""
    return _by_batch(head_scores, model, groups, dtype, micro_batch_tokens)


def features_encoded(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], *, dtype: str = "float32", micro_batch_tokens: int = 8192
) -> Float[Tensor, "P K D"]:
    """What the head reads of each response, see `response_features`; otherwise as `score_encoded`."""
    return _by_batch(response_features, model, groups, dtype, micro_batch_tokens)


def _features_and_heads(model: PreTrainedModel, batch: GroupBatch) -> Float[Tensor, "P K D1"]:
    """Features and, after them, what the heads read in them: both from one forward pass."""
    features = response_features(model, batch)
    return torch.cat([features.float(), read_heads(model, features)], -1)


@torch.no_grad()
def _by_batch(
    compute: Callable[[PreTrainedModel, GroupBatch], Tensor],
    model: PreTrainedModel,
    groups: Sequence[EncodedGroup],
    dtype: str,
    micro_batch_tokens: int,
) -> Float[Tensor, "P K D"]:
    """What `compute` gives for each response, in the order of the groups."""
    found: list[Tensor] = [torch.empty(0)] * len(groups)
    done = 0
    with Progress(len(groups), "score") as progress:
        for part in microbatches(groups, max_tokens=micro_batch_tokens):
            batch = collate([groups[row] for row in part], device=model.device)
            with autocast(dtype, model.device):
                values = compute(model, batch).float().cpu()
            for row, value in zip(part, values, strict=True):
                found[row] = value
            done += len(part)
            progress.update(done)
    return torch.stack(found)


def _combined(model: PreTrainedModel, heads: Float[Tensor, "P K M"]) -> Float[Tensor, "P K"]:
    return combine_scores(heads, **combination(model)) - centring_offset(model)


def speaks(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether every id of `other` means the same to `tokenizer`, ends and templates included."""
    own = tokenizer.get_vocab()
    return (
        all(own.get(token) == index for token, index in other.get_vocab().items())
        and tokenizer.eos_token_id == other.eos_token_id
        and tokenizer.chat_template == other.chat_template
    )


def _as_text(group: Group) -> Group:
    def text_of(response: Response) -> Response:
        if response.content is not None:
            return replace(response, ids=None)
        text = response.text
        turns = text if isinstance(group.prompt, str) else ({"role": "assistant", "content": text},)
        return Response(content=turns, finished=response.finished)

    return replace(group, responses=tuple(text_of(response) for response in group.responses))

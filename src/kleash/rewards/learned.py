"""A reward model as a reward, and the only function that computes its scores.

Held-out figures, centring, `ppo` and the tests all score through `score_encoded`, and training through the function
below it, so that the same response has the same score everywhere and in any batch (F8).
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
from kleash.models.compute import Compute
from kleash.models.forward import centring_offset, combination, head_scores, read_heads, response_features
from kleash.models.load import autocast, load_reward_model
from kleash.models.place import model_file
from kleash.objectives.combine import combine_scores
from kleash.progress import Progress
from kleash.rewards.feature_range import FILE as FEATURES
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
        compute: Compute | None = None,
        range: FeatureRange | None = None,
    ) -> None:
        """Take a model.

        Args:
            model: one output, named `score`.
            tokenizer: the model's own.
            policy_tokenizer: the tokenizer of the responses' ids. They are used directly if the reward model gives each
                the same meaning; otherwise, or if this is None, the text is tokenised.
            compute: dtype and micro-batch size; the model stays on its device. None: `Compute()`.
            range: the range of the training responses in the model's features; None where it was not measured.
        """
        self.model, self.tokenizer, self.range = model, tokenizer, range
        self.compute = compute or Compute()
        self.reads_ids = policy_tokenizer is not None and reads_ids_of(tokenizer, policy_tokenizer)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        policy_tokenizer: PreTrainedTokenizerBase | None = None,
        compute: Compute | None = None,
    ) -> LearnedReward:
        """From a reward model's folder or hub name, onto `compute.device`; for the arguments see the class."""
        compute = compute or Compute()
        model, tokenizer = load_reward_model(folder, device=compute.device)
        features = model_file(folder, FEATURES)
        feature_range = None if features is None else FeatureRange.load(features.parent)
        return cls(model, tokenizer, policy_tokenizer=policy_tokenizer, compute=compute, range=feature_range)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and further figures of each response from the same forward pass.

        Returns:
            The scores, and as parts: with several heads on one trunk `spread`, the standard deviation over them; with
            a `range`, `distance` (see `distances`) and `outside`, 1 for a response beyond the range.
        """
        encoded = self._encode(groups)
        parts: dict[str, Tensor] = {}
        if self.range is None:
            heads = _by_batch(head_scores, self.model, encoded, self.compute)
        else:
            outputs = _by_batch(_features_and_heads, self.model, encoded, self.compute)
            features, heads = outputs.tensor_split([self.range.mean.shape[0]], -1)
            distance = self.range.distance(features.flatten(0, 1)).reshape(features.shape[:2])
            parts |= {"distance": distance, "outside": (distance > self.range.threshold).float()}
        if heads.shape[-1] > 1:
            parts["spread"] = heads.std(-1, correction=0)
        return _combined(self.model, heads), parts

    def distances(self, groups: Sequence[Group]) -> Float[Tensor, "P K"] | None:
        """Distance of each response from the training responses; beyond `range.threshold` it is out of range.

        Returns:
            Mahalanobis distances, on the CPU; None where the reward has no `range`.
        """
        return self.explain(groups)[1].get("distance")

    def _encode(self, groups: Sequence[Group]) -> list[EncodedGroup]:
        # what a stop text ended is read as it is shown, with an end token as in training
        texts = [_as_text(group, only_stopped=self.reads_ids) for group in groups]
        return encode_all(texts, self.tokenizer)[0]


def score_encoded(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], *, compute: Compute | None = None
) -> Float[Tensor, "P K"]:
    """Scores of groups of one K, in float32 on the CPU; each is independent of the batch it was computed in.

    Args:
        model: a reward model.
        groups: at least one.
        compute: dtype and micro-batch size; the model stays on its device. None: `Compute()`.
    """
    return _combined(model, score_heads(model, groups, compute=compute))


def score_heads(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], *, compute: Compute | None = None
) -> Float[Tensor, "P K M"]:
    """The score of each head, before the heads are combined and without the centring offset; see `score_encoded`."""
    return _by_batch(head_scores, model, groups, compute or Compute())


def features_encoded(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], *, compute: Compute | None = None
) -> Float[Tensor, "P K D"]:
    """The features of each response (`response_features`); otherwise as `score_encoded`."""
    return _by_batch(response_features, model, groups, compute or Compute())


def _features_and_heads(model: PreTrainedModel, batch: GroupBatch) -> Float[Tensor, "P K D1"]:
    """Features and, after them along the last axis, the heads' scores: both from one forward pass."""
    features = response_features(model, batch)
    return torch.cat([features.float(), read_heads(model, features)], -1)


@torch.no_grad()
def _by_batch(
    function: Callable[[PreTrainedModel, GroupBatch], Tensor],
    model: PreTrainedModel,
    groups: Sequence[EncodedGroup],
    compute: Compute,
) -> Float[Tensor, "P K D"]:
    """`function` of each response, in the order of the groups, in float32 on the CPU."""
    rows: list[Tensor] = [torch.empty(0)] * len(groups)
    scored = 0
    with Progress(len(groups), "score") as progress:
        for part in microbatches(groups, max_tokens=compute.micro_batch_tokens, device=model.device):
            batch = collate([groups[row] for row in part], device=model.device)
            with autocast(compute.dtype, model.device):
                values = function(model, batch).float().cpu()
            for row, value in zip(part, values, strict=True):
                rows[row] = value
            scored += len(part)
            progress.update(scored)
    return torch.stack(rows)


def _combined(model: PreTrainedModel, heads: Float[Tensor, "P K M"]) -> Float[Tensor, "P K"]:
    return combine_scores(heads, **combination(model)) - centring_offset(model)


def reads_ids_of(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether every id of `other` has the same meaning in `tokenizer`, end tokens and templates included."""
    vocabulary = tokenizer.get_vocab()
    return (
        all(vocabulary.get(token) == index for token, index in other.get_vocab().items())
        and tokenizer.eos_token_id == other.eos_token_id
        and tokenizer.chat_template == other.chat_template
    )


def _as_text(group: Group, *, only_stopped: bool) -> Group:
    def text_of(response: Response) -> Response:
        if only_stopped and not response.stopped:
            return response
        if response.content is not None:
            return replace(response, ids=None)
        text = response.text
        turns = text if isinstance(group.prompt, str) else ({"role": "assistant", "content": text},)
        return Response(content=turns, finished=response.finished)

    return replace(group, responses=tuple(text_of(response) for response in group.responses))

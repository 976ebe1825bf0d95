"""A reward model as a reward, and the one function that computes its scores.

Held-out figures, centring, `ppo` and the tests all score through `score_encoded`, and training through the function
below it, so that the same response has the same score everywhere, whatever batch it is in (F8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batching import microbatches
from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup, Group, Response, collate
from kleash.models.forward import centring_offset, combination, head_scores
from kleash.models.load import autocast, load_reward_model
from kleash.objectives.ensemble import combine_scores
from kleash.rewards.reward import Parts
from kleash.training.progress import Progress


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
    ) -> None:
        """Take a model.

        Args:
            model: one output, named `score`.
            tokenizer: the model's own.
            policy_tokenizer: whose ids the responses carry. Ids are used as they are where the reward model gives
                each the same meaning; else, or where this is None, text is read.
            dtype: what to compute in.
            micro_batch_tokens: tokens in memory at once.
        """
        self.model, self.tokenizer = model, tokenizer
        self.dtype, self.micro_batch_tokens = dtype, micro_batch_tokens
        self.reads_ids = policy_tokenizer is not None and speaks(tokenizer, policy_tokenizer)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", **settings: object) -> LearnedReward:
        """From a folder."""
        model, tokenizer = load_reward_model(folder, device=device)
        return cls(model, tokenizer, **settings)  # type: ignore[arg-type]

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and of several heads on one trunk their `spread`, the standard deviation over heads."""
        groups = groups if self.reads_ids else [_as_text(group) for group in groups]
        heads = score_heads(
            self.model, encode_all(groups, self.tokenizer)[0], dtype=self.dtype,
            micro_batch_tokens=self.micro_batch_tokens,
        )  # fmt: skip
        scores = _combined(self.model, heads)
        return scores, {"spread": heads.std(-1, correction=0)} if heads.shape[-1] > 1 else {}


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


@torch.no_grad()
def score_heads(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], *, dtype: str = "float32", micro_batch_tokens: int = 8192
) -> Float[Tensor, "P K M"]:
    """What each head says, before the heads are combined and without the centring offset; see `score_encoded`."""
    scores = torch.zeros(len(groups), len(groups[0].responses), int(model.config.num_labels or 1))
    done = 0
    with Progress(len(groups), "score") as progress:
        for part in microbatches(groups, max_tokens=micro_batch_tokens):
            batch = collate([groups[row] for row in part], device=model.device)
            with autocast(dtype, model.device):
                scores[part] = head_scores(model, batch).float().cpu()
            done += len(part)
            progress.update(done)
    return scores


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

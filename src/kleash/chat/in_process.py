"""A chat model in this process, from a `transformers` folder: samples replies, and scores options by one forward."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.chat.messages import ChatReply, ChatRequest
from kleash.config import MODEL
from kleash.content import content_hash
from kleash.data.batch import collate
from kleash.data.chat import encode_as_letters, encode_prompt
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.errors import DataError
from kleash.models.compute import DType
from kleash.models.forward import response_logprobs
from kleash.models.load import autocast, context_length, load_policy
from kleash.sampling.sampler import build_sampler, decode_groups


@dataclass(frozen=True)
class _Row:
    """A request that fits into the model's context."""

    index: int
    request: ChatRequest
    prompt: tuple[int, ...]
    """Token ids."""


class LocalChat:
    """A `Chat` on a live model.

    Turns go through the tokenizer's chat template; a tokenizer without one gets their texts with blank lines between.
    Control tokens that a text spells are letters: a response that a judge reads cannot end its turn.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        name: the model's name in reports.
        identity: part of the cache key of its replies, for example the hash of its folder.
        block: requests in one forward pass.
        dtype: type that it computes in.
    """

    workers = 1

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        identity: Mapping[str, Any],
        block: int = 8,
        dtype: DType = "float32",
    ) -> None:
        self.model, self.tokenizer, self.name, self.identity = model.eval(), tokenizer, name, identity
        self.block, self.dtype = block, dtype

    @classmethod
    def load(cls, model: str, *, device: str = "auto", dtype: DType = "float32", block: int = 8) -> LocalChat:
        """Load from a folder or by a hub name.

        Raises:
            ModelError: the model cannot be found or loaded.
        """
        live, tokenizer = load_policy(model, device=device)
        identity = {"sha256 of model": content_hash(model, MODEL), "dtype": dtype}
        name = model.rstrip("/").rsplit("/", 1)[-1]
        return cls(live, tokenizer, name=name, identity=identity, block=block, dtype=dtype)

    def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """See `Chat`."""
        replies: dict[int, ChatReply] = {}
        queue: list[_Row] = []
        context = context_length(self.model)
        for index, request in enumerate(requests):
            ids = self._encode(request)
            if context is not None and len(ids) + request.max_tokens > context:
                reason = f"{len(ids)} tokens and {request.max_tokens} new ones exceed the model's context of {context}"
                replies[index] = ChatReply(error=reason, refused=True)
            else:
                queue.append(_Row(index, request, ids))
        for _, group in groupby(sorted(queue, key=_kind), _kind):
            rows = list(group)
            start = time.monotonic()
            with torch.no_grad(), autocast(self.dtype, self.model.device):
                batch = self._score(rows) if rows[0].request.options else self._sample(rows)
            seconds = (time.monotonic() - start) / len(rows)
            for row, reply in zip(rows, batch, strict=True):
                replies[row.index] = replace(reply, prompt_tokens=len(row.prompt), seconds=seconds)
        return [replies[index] for index in range(len(requests))]

    def _encode(self, request: ChatRequest) -> tuple[int, ...]:
        if self.tokenizer.chat_template is not None:
            return encode_prompt(request.messages, self.tokenizer)
        text = "\n\n".join(str(turn["content"]) for turn in request.messages) + "\n\n"
        return encode_as_letters(text, self.tokenizer)

    def _score(self, rows: Sequence[_Row]) -> list[ChatReply]:
        """Log-probability of each option as the first token; the reply is the likeliest."""
        options = rows[0].request.options
        ids = [tuple(self.tokenizer(option, add_special_tokens=False)["input_ids"]) for option in options]
        if any(len(tokens) != 1 for tokens in ids):
            raise DataError(
                f"{self.name} has no single token for one of {', '.join(options)}; choose another judge model"
            )
        choices = tuple(EncodedResponse(tokens, (True,)) for tokens in ids)
        groups = [EncodedGroup(row.prompt, choices, Group("")) for row in rows]
        logprobs = response_logprobs(self.model, collate(groups, device=self.model.device))[0].sum(-1).tolist()
        return [
            ChatReply(
                text=options[row.index(max(row))],
                logprobs=dict(zip(options, row, strict=True)),
                has_logprobs=True,
                completion_tokens=1,
            )
            for row in logprobs
        ]

    def _sample(self, rows: Sequence[_Row]) -> list[ChatReply]:
        request = rows[0].request
        sampler = build_sampler(
            self.model, self.tokenizer, max_new_tokens=request.max_tokens, temperature=request.temperature,
            max_rows=len(rows), dtype=self.dtype,
        )  # fmt: skip
        keys = [row.request.seed for row in rows]
        batch = sampler([row.prompt for row in rows], group_size=1, seed=0, keys=keys)
        groups = decode_groups(batch, [Group("") for _ in rows], self.tokenizer, sampler.end_ids)
        return [
            ChatReply(response.text.strip(), response.finished, completion_tokens=len(response.ids or ()))
            for (response,) in (group.responses for group in groups)
        ]


def _kind(row: _Row) -> tuple[Any, ...]:
    """Requests of one kind go through the model together."""
    return row.request.options, row.request.max_tokens, row.request.temperature

"""A chat model in this process, from a `transformers` folder: answers sampled, options scored by the group forward."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.chat.messages import ChatReply, ChatRequest
from kleash.data.batch import collate
from kleash.data.chat import encode_prompt, end_ids
from kleash.data.group import Content, EncodedGroup, EncodedResponse, Group
from kleash.errors import DataError
from kleash.models.forward import response_logprobs
from kleash.models.load import autocast, context_length, load_policy
from kleash.run import fingerprint
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups


class LocalChat:
    """A `Chat` on a live model.

    Turns go through the tokenizer's chat template; a tokenizer without one sees their texts, a blank line between two.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        name: what reports call it.
        identity: what its answers are kept under; a folder's hash, say.
        block: questions in one pass.
        dtype: what it computes in.
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
        dtype: str = "float32",
    ) -> None:
        self.model, self.tokenizer, self.name, self.identity = model.eval(), tokenizer, name, identity
        self.block, self.dtype = block, dtype

    @classmethod
    def load(cls, model: str, *, device: str = "auto", dtype: str = "float32", block: int = 8) -> LocalChat:
        """From a folder, or a hub name.

        Raises:
            ModelError: there is no such model.
        """
        live, tokenizer = load_policy(model, device=device)
        identity = {"sha256 of model": fingerprint(model)["sha256"], "dtype": dtype}
        name = model.rstrip("/").rsplit("/", 1)[-1]
        return cls(live, tokenizer, name=name, identity=identity, block=block, dtype=dtype)

    def ask(self, questions: Sequence[ChatRequest]) -> list[ChatReply]:
        """See `Chat`."""
        answers: dict[int, ChatReply] = {}
        fitting: list[tuple[int, ChatRequest, tuple[int, ...]]] = []
        context = context_length(self.model)
        for place, question in enumerate(questions):
            ids = self._encode(question)
            if context is not None and len(ids) + question.max_tokens > context:
                told = f"{len(ids)} tokens and {question.max_tokens} new ones exceed the model's context of {context}"
                answers[place] = ChatReply(error=told, refused=True)
            else:
                fitting.append((place, question, ids))

        def kind(item: tuple[int, ChatRequest, tuple[int, ...]]) -> tuple[Any, ...]:
            return item[1].options, item[1].max_tokens, item[1].temperature

        for (options, *_), same in groupby(sorted(fitting, key=kind), kind):
            asked = list(same)
            began = time.monotonic()
            with torch.no_grad(), autocast(self.dtype, self.model.device):
                found = self._score(asked) if options else self._sample(asked)
            seconds = (time.monotonic() - began) / len(asked)
            for (place, _, ids), (text, finished, logprobs, tokens) in zip(asked, found, strict=True):
                answers[place] = ChatReply(text, finished, logprobs, bool(options), len(ids), tokens, seconds)
        return [answers[place] for place in range(len(questions))]

    def _encode(self, question: ChatRequest) -> tuple[int, ...]:
        prompt: Content = question.messages
        if self.tokenizer.chat_template is None:
            prompt = "\n\n".join(str(turn["content"]) for turn in question.messages) + "\n\n"
        return encode_prompt(prompt, self.tokenizer)

    def _score(
        self, asked: Sequence[tuple[int, ChatRequest, tuple[int, ...]]]
    ) -> list[tuple[str, bool, dict[str, float], int]]:
        options = asked[0][1].options
        ids = [tuple(self.tokenizer(option, add_special_tokens=False)["input_ids"]) for option in options]
        if any(len(tokens) != 1 for tokens in ids):
            raise DataError(f"{self.name} has no single token for one of {', '.join(options)}; take another judge")
        choices = tuple(EncodedResponse(tokens, (True,)) for tokens in ids)
        groups = [EncodedGroup(prompt, choices, Group("")) for _, _, prompt in asked]
        logprobs = response_logprobs(self.model, collate(groups, device=self.model.device))[0].sum(-1).tolist()
        return [(options[row.index(max(row))], True, dict(zip(options, row, strict=True)), 1) for row in logprobs]

    def _sample(
        self, asked: Sequence[tuple[int, ChatRequest, tuple[int, ...]]]
    ) -> list[tuple[str, bool, dict[str, float], int]]:
        ends = end_ids(self.tokenizer)
        question = asked[0][1]
        sampler = LocalSampler(
            self.model, self.tokenizer, max_new_tokens=question.max_tokens, temperature=question.temperature,
            end_ids=ends, max_rows=len(asked),
        )  # fmt: skip
        keys = [question.seed for _, question, _ in asked]
        batch = sampler([ids for *_, ids in asked], group_size=1, seed=0, keys=keys)
        groups = decode_groups(batch, [Group("") for _ in asked], self.tokenizer, ends)
        return [
            (group.responses[0].text.strip(), group.responses[0].finished, {}, len(group.responses[0].ids or ()))
            for group in groups
        ]

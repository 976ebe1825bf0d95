"""Test doubles for code that is built on kleash: a model, a tokenizer, a sampler, a chat model, a reward.

Each implements the protocol of the real one, so no patching is needed; nothing is downloaded, and every response is a
deterministic function of its input. A test of a stage in five lines:

    from kleash.stages import grpo
    from kleash.testing import ConstantReward, tiny_model, tiny_tokenizer

    config = grpo.GRPOConfig(model="tiny", data="prompts.jsonl", reward="constant", out="run", max_steps=1)
    grpo.run(config, policy=(tiny_model(), tiny_tokenizer()), reward=ConstantReward())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kleash.chat.messages import ChatReply, ChatRequest
from kleash.data.batch import GroupBatch, collate
from kleash.data.chat import end_ids
from kleash.data.group import EncodedGroup, EncodedResponse, Group

WORDS = ("<pad>", "<end>", "<unk>", "user", "assistant", "system", *"abcdefghijklmnopqrstuvwxyz", *"0123456789")
"""The vocabulary of `tiny_tokenizer`; a word's index is its id."""

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
"""Its chat template."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of letters, digits and role names separated by spaces, with separate pad and end tokens and a chat
    template.
    """
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A Llama with random weights over the vocabulary of `tiny_tokenizer`; on a CPU a step takes milliseconds.

    Args:
        seed: of the weights; the global random state does not change.
        settings: fields of `LlamaConfig` that replace the defaults (two layers of width 32, four heads, 256 positions).
    """
    defaults: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**defaults | settings)).eval()


class FakeSampler:
    """A `Sampler` that returns prepared responses.

    Args:
        tokenizer: encodes the texts, and names the end token.
        responses: response k to the prompt with key i is `responses[(i + k) % len(responses)]`; or a function of the
            prompt's ids and k.
        logprob: log π_sampler of every token, at most 0.
        max_new_tokens: longer responses are truncated, without an end token.

    Attributes:
        prompts: the ids of every prompt so far.
        versions: the versions given to `sync`.
    """

    exact = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        responses: Sequence[str] | Callable[[Sequence[int], int], str],
        *,
        logprob: float = -1.0,
        max_new_tokens: int = 64,
    ) -> None:
        self.tokenizer, self.responses = tokenizer, responses
        self.logprob, self.max_new_tokens = logprob, max_new_tokens
        self.end_ids = end_ids(tokenizer)
        self.prompts: list[list[int]] = []
        self.versions: list[int] = []

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        seed: int,
        keys: Sequence[int] | None = None,
        version: int | None = None,
    ) -> GroupBatch:
        """K responses to each prompt; see `Sampler`. `seed` changes nothing."""
        self.prompts += [list(prompt) for prompt in prompts]
        keys = range(len(prompts)) if keys is None else keys
        groups = [
            EncodedGroup(
                source=Group("", ()),
                prompt_ids=tuple(prompt),
                responses=tuple(self._response(prompt, key, k) for k in range(group_size)),
            )
            for prompt, key in zip(prompts, keys, strict=True)
        ]
        batch = collate(groups, pad_id=self.end_ids[0])
        return GroupBatch(**vars(batch) | {"version": version})

    def sync(self, version: int) -> None:
        """Record the version; there are no weights to copy."""
        self.versions.append(version)

    def _response(self, prompt: Sequence[int], key: int, k: int) -> EncodedResponse:
        if callable(self.responses):
            text = self.responses(prompt, k)
        else:
            text = self.responses[(key + k) % len(self.responses)]
        all_ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.end_ids[0]]
        ids = tuple(all_ids[: self.max_new_tokens])
        return EncodedResponse(ids=ids, mask=(True,) * len(ids), logprobs=(self.logprob,) * len(ids))


class FakeChat:
    """A `Chat` that returns prepared replies; nothing is sent anywhere.

    Args:
        reply: the reply to a request: its text, or the probability of each of its options.
        name: the model's name in reports and labels.

    Attributes:
        questions: all requests so far.
    """

    block = 8
    workers = 1

    def __init__(self, reply: Callable[[ChatRequest], str | Mapping[str, float]], *, name: str = "fake") -> None:
        self.reply, self.name = reply, name
        self.identity: Mapping[str, Any] = {"model": name}
        self.questions: list[ChatRequest] = []

    def ask(self, questions: Sequence[ChatRequest]) -> list[ChatReply]:
        """One reply per request, in their order; see `Chat`."""
        self.questions += questions
        return [self._answer(self.reply(question)) for question in questions]

    def _answer(self, reply: str | Mapping[str, float]) -> ChatReply:
        if isinstance(reply, str):
            return ChatReply(text=reply, completion_tokens=len(reply.split()))
        logprobs = {option: float(torch.tensor(p).log()) for option, p in reply.items() if p > 0}
        likeliest = max(reply, key=lambda option: reply[option])
        return ChatReply(text=likeliest, logprobs=logprobs, has_logprobs=True, completion_tokens=1)


class ConstantReward:
    """A `Reward` that gives every response the same score.

    Args:
        score: of each response.
    """

    def __init__(self, score: float = 0.0) -> None:
        self.score = score

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return torch.full((len(groups), len(groups[0].responses) if groups else 0), self.score)

"""A problem small enough to enumerate every response, so that π* is known exactly."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer as Words
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from kleash.data.batch import collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group, Response
from kleash.models.forward import response_logprobs
from tests.jitter import jitter

END, TOKENS, LONGEST = 0, (1, 2, 3), 3
PROMPTS = ("a b", "c")


def tokenizer() -> PreTrainedTokenizerFast:
    """Four words; padding is the end token, as it is in many a model (F3)."""
    words = Words(WordLevel({"<end>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<end>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>", unk_token="<end>")


def model(seed: int = 0, *, sharpness: float = 1.0) -> PreTrainedModel:
    """A random Llama of a few thousand parameters, far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=16, bos_token_id=None, eos_token_id=END, pad_token_id=END,
        tie_word_embeddings=False,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    with torch.no_grad():
        llama.lm_head.weight.normal_(std=sharpness * 0.18)
    return jitter(llama.eval())


def responses() -> list[tuple[int, ...]]:
    """Every response of at most `LONGEST` tokens: those that end, and those that are cut off."""
    ended = [(*body, END) for n in range(LONGEST) for body in itertools.product(TOKENS, repeat=n)]
    return ended + list(itertools.product(TOKENS, repeat=LONGEST))


def batch() -> list[EncodedGroup]:
    """Each prompt with every response."""
    encode = tokenizer()
    return [
        EncodedGroup(
            tuple(encode(prompt)["input_ids"]),
            tuple(EncodedResponse(ids, (True,) * len(ids)) for ids in responses()),
            Group(prompt, tuple(Response(ids=ids) for ids in responses())),
        )
        for prompt in PROMPTS
    ]


@torch.no_grad()
def log_policy(llama: PreTrainedModel, *, temperature: float = 1.0) -> Tensor:
    """log π(y|x) of every response: [prompts, responses]; each row's exponentials sum to 1."""
    return response_logprobs(llama, collate(batch()), temperature=temperature)[0].double().sum(-1)


def reward_table(seed: int = 0, *, span: float = 1.0) -> Tensor:
    """A reward in [0, 1] for every response: [prompts, responses]."""
    generator = torch.Generator().manual_seed(seed)
    return span * torch.rand(len(PROMPTS), len(responses()), generator=generator, dtype=torch.double)


def optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log π*, with π* ∝ π_ref · exp(r / β)."""
    return (reference + rewards / beta).log_softmax(-1)


def divergence(policy: Tensor, target: Tensor) -> float:
    """KL(π ‖ target) in nats, mean over prompts."""
    return float((policy.exp() * (policy - target)).sum(-1).mean())


def write(folder: Path, llama: PreTrainedModel) -> None:
    """The model as a folder, and the prompts as a file, each many times."""
    llama.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    rows = [json.dumps({"prompt": prompt}) for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(rows * 16) + "\n")

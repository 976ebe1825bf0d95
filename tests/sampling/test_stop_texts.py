from __future__ import annotations

import logging
import random
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.data.group import EncodedGroup, Group
from kleash.errors import ConfigError
from kleash.models.forward import response_logprobs
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import build_sampler, sample_groups
from kleash.sampling.stop_texts import StopTexts
from kleash.testing import tiny_tokenizer
from tests.jitter import jitter

TEXT = "Question: what is 7 plus 5?\nAnswer: 12.\n\nQuestion: où est la gare ? 駅はどこですか。\n### fin 🙂\n"


def byte_level() -> PreTrainedTokenizerFast:
    """Like GPT-2's: tokens are bytes and runs of them, across words of 'Question' and the line breaks."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=["<pad>", "<end>"])
    words.train_from_iterator([TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", clean_up_tokenization_spaces=False
    )


def byte_fallback() -> PreTrainedTokenizerFast:
    """Like Llama 2's: letters are tokens, a space is `▁`, and what is in no token is bytes."""
    tokens = ["<pad>", "<end>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁:.?Qeuston"]
    words = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def first_end(ids: list[int], texts: list[str], tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The slow definition: the first token after which the text of the whole response has a stop text."""
    for t in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:t], skip_special_tokens=True)
        if any(stop in text for stop in texts):
            return t
    return None


def tail_end(ids: list[int], stop: StopTexts) -> int | None:
    tails: list[list[int]] = [[]]
    return next((t for t, token in enumerate(ids, start=1) if stop.extend(tails, [token])[0]), None)


def some_texts(text: str, generator: random.Random) -> list[str]:
    """Pieces of a text, so that they occur in it, and one that does not."""
    starts = [generator.randrange(len(text)) for _ in range(2)]
    return [text[start : start + generator.randint(1, 6)] for start in starts] + ["never"]


@pytest.mark.parametrize("kind", [byte_level, byte_fallback, tiny_tokenizer])
def test_the_tail_finds_what_the_whole_text_has(kind: Callable[[], PreTrainedTokenizerFast]) -> None:
    """Stop texts that begin in a token, end in one, span several; characters of several bytes; control tokens amid."""
    tokenizer, generator = kind(), random.Random(0)
    source = " ".join("abcdefgh" * 4) if kind is tiny_tokenizer else TEXT
    ends = set()
    for _ in range(60):
        start = generator.randrange(len(source))
        ids = tokenizer(source[start:] + source[:start], add_special_tokens=False)["input_ids"]
        for _ in range(3):
            ids.insert(generator.randrange(len(ids)), tokenizer.pad_token_id)
        texts = some_texts(tokenizer.decode(ids, skip_special_tokens=True), generator)
        expected = first_end(ids, texts, tokenizer)
        stop = StopTexts(texts, tokenizer)
        assert tail_end(ids, stop) == expected
        assert expected is not None and stop.completed([ids[:expected], ids[: expected - 1]]) == [True, False]
        ends.add(expected)
    assert len(ends) > 8


def test_bytes_that_are_no_text_are_read_too() -> None:
    tokenizer, generator = byte_level(), random.Random(1)
    found = 0
    for _ in range(200):
        ids = [generator.randrange(2, len(tokenizer)) for _ in range(40)]
        texts = ["n", "\n", "s:", "é"]
        expected = first_end(ids, texts, tokenizer)
        assert tail_end(ids, StopTexts(texts, tokenizer)) == expected
        found += expected is not None
    assert found > 50


def test_control_tokens_amid_a_stop_text_do_not_hide_it() -> None:
    tokenizer = tiny_tokenizer()
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    ids = [b, a, *[tokenizer.pad_token_id] * 50, b, a]
    stop = StopTexts(["a b"], tokenizer)
    assert tail_end(ids, stop) == len(ids) - 1 and stop.completed([ids[:-1], ids[:-2]]) == [True, False]


def test_each_token_costs_the_same_however_long_the_response_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, decoded = tiny_tokenizer(), []
    decode = type(tokenizer).batch_decode
    monkeypatch.setattr(
        type(tokenizer), "batch_decode", lambda self, rows, **k: decoded.append(len(rows[0])) or decode(self, rows, **k)
    )
    tail_end([7] * 2000, StopTexts(["never here"], tokenizer))
    assert len(decoded) == 2000 and max(decoded) == decoded[-1] < 30


def test_a_stop_text_may_end_inside_a_token_and_the_rest_of_it_is_not_shown() -> None:
    tokenizer = byte_level()
    ids = tokenizer("Answer: 12.\n\nQuestion: x")["input_ids"]
    (whole,) = (i for i, token in enumerate(ids) if "Q" in tokenizer.decode([token]))
    assert tokenizer.decode([ids[whole]]) != "Q", "or nothing ends inside"
    stop = StopTexts(["\n\nQ", "\n\n\n"], tokenizer)
    assert tail_end(ids, stop) == whole + 1
    assert stop.cut(tokenizer.decode(ids[: whole + 1])) == "Answer: 12."


def test_the_text_ends_before_the_stop_text_that_begins_first() -> None:
    assert StopTexts(["bc", "abc", "c"], tiny_tokenizer()).cut("xx abc d") == "xx "
    assert StopTexts(["never"], tiny_tokenizer()).cut("xx abc d") == "xx abc d"


def test_a_control_token_ends_a_response_as_a_token() -> None:
    tokenizer = byte_level()
    assert StopTexts(["<end>", "x"], tokenizer).end_ids == (tokenizer.eos_token_id,)
    assert StopTexts(["<end>"], tokenizer).completed([[5, 6]]) == [False]
    with pytest.raises(ConfigError, match=r"'<end>\\n' holds the control token '<end>'.*by itself as a stop text"):
        StopTexts(["<end>\n"], tokenizer)


def test_a_backslash_and_an_n_are_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="kleash"):
        StopTexts(["\n", r"\neq", r"\boxed"], tiny_tokenizer())
        assert not caplog.messages
        StopTexts([r"\nQ:"], tiny_tokenizer())
    assert caplog.messages == [r"the stop text \nQ: holds a backslash and a letter; a line break is $'\n' in the shell"]


# --- in the sampler ---------------------------------------------------------------------------------------------------


STOP = ["s", "o\n", "?", "é"]
PROMPTS = ["Question: s?", "s", "x\n"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return jitter(LlamaForCausalLM(config).eval())


def encoded(tokenizer: PreTrainedTokenizerFast) -> list[EncodedGroup]:
    return [EncodedGroup(tuple(tokenizer(text)["input_ids"]), (), Group(text)) for text in PROMPTS]


@pytest.mark.parametrize("max_rows", [256, 5])
def test_a_response_is_that_without_stop_texts_up_to_the_token_that_completes_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, max_rows: int
) -> None:
    settings = {"group_size": 12, "seed": 3}
    free = build_sampler(model, tokenizer, max_new_tokens=48)
    stopped = build_sampler(model, tokenizer, max_new_tokens=48, stop=STOP, max_rows=max_rows)
    plain, groups = sample_groups(free, tokenizer, encoded(tokenizer), **settings)
    batch, ended_groups = sample_groups(stopped, tokenizer, encoded(tokenizer), **settings)
    by_text = 0
    for p, k in ((p, k) for p in range(3) for k in range(12)):
        whole, part = groups[p].responses[k], ended_groups[p].responses[k]
        end = first_end(list(whole.ids), STOP, tokenizer)
        assert part.ids == whole.ids[:end]
        assert (part.finished, part.stopped) == (end is not None or whole.finished, end is not None)
        assert not any(stop in part.text for stop in STOP)
        by_text += part.stopped
        length = len(part.ids)
        assert batch.mask[p, k].sum() == batch.response_attention[p, k].sum() == length
        torch.testing.assert_close(
            batch.sampler_logprobs[p, k, :length], plain.sampler_logprobs[p, k, :length], atol=1e-5, rtol=0
        )
        assert not batch.sampler_logprobs[p, k, length:].any()
    assert by_text > 10, "or nothing was tested"
    with torch.no_grad():
        torch.testing.assert_close(batch.sampler_logprobs, response_logprobs(model, batch)[0], atol=1e-4, rtol=0)


def test_a_control_token_that_only_the_tokenizer_has_ends_nothing(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    larger = byte_level()
    larger.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    sampler = LocalSampler(model, larger, max_new_tokens=4, stop=["<turn>"])
    assert max(sampler.end_ids) == model.config.vocab_size
    assert sampler([[5]], group_size=2, seed=0).shape[:2] == (1, 2)


def test_a_stop_text_in_the_prompt_ends_nothing(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    sampler = LocalSampler(model, tokenizer, max_new_tokens=8, stop=["Question: "])
    batch, groups = sample_groups(sampler, tokenizer, encoded(tokenizer), group_size=4, seed=0)
    assert all(len(r.ids) == 8 and not r.stopped for g in groups for r in g.responses if r.ids[-1] != 1)
    assert batch.shape[2] == 8


def test_without_stop_texts_nothing_is_decoded_while_sampling(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decode = type(tokenizer).batch_decode
    monkeypatch.setattr(
        type(tokenizer), "batch_decode", lambda self, ids, **k: calls.append(1) or decode(self, ids, **k)
    )
    prompts = encoded(tokenizer)
    sample_groups(build_sampler(model, tokenizer, max_new_tokens=8), tokenizer, prompts, group_size=2, seed=0)
    assert not calls
    sample_groups(
        build_sampler(model, tokenizer, max_new_tokens=8, stop=["x"]), tokenizer, prompts, group_size=2, seed=0
    )
    assert len(calls) == 8 + 1  # all rows in one call after each token, and once for the groups

"""No text of a message becomes a control token: every stock template, three kinds of tokenizer, every control token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kleash.data.chat import encode, encode_all, encode_as_letters, encode_prompt
from kleash.data.group import Group, Response
from kleash.data.letters import CUT
from tests.data.test_chat import CONTROLS, STOCK, TEMPLATES, assistant, bytes_tokenizer, stock_tokenizer, user

LETTERS = sorted({chr(code) for code in range(33, 127)} | set("".join(CONTROLS)))


def unigram_tokenizer(**tokens: str | None) -> PreTrainedTokenizerFast:
    """Like SentencePiece's: a space before a text, and the vocabulary itself holds the control tokens as pieces."""
    pieces = [("<unk>", 0.0), *((token, 0.0) for token in CONTROLS), ("▁", -3.0), ("\n", -3.0)]
    pieces += [(letter, -4.0) for letter in LETTERS] + [("▁the", -5.0), ("er", -5.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", extra_special_tokens=list(CONTROLS), **tokens
    )


class LetterTokenizer(PreTrainedTokenizer):
    """A slow tokenizer, written in Python: one token a letter."""

    def __init__(self, **settings: Any) -> None:
        self.letters = {letter: index for index, letter in enumerate(["<unk>", " ", "\n", *LETTERS])}
        super().__init__(unk_token="<unk>", **settings)

    @property
    def vocab_size(self) -> int:
        return len(self.letters)

    def get_vocab(self) -> dict[str, int]:
        return {**self.letters, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.letters.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.letters)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def slow_tokenizer(**tokens: str | None) -> PreTrainedTokenizer:
    return LetterTokenizer(extra_special_tokens=list(CONTROLS), **tokens)


KINDS = {"bytes": bytes_tokenizer, "unigram": unigram_tokenizer, "slow": slow_tokenizer}


def chat_tokenizer(kind: str, template: str) -> PreTrainedTokenizerBase:
    bos, eos, _ = STOCK[template]
    tokenizer = KINDS[kind](bos_token=bos, eos_token=eos)
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return tokenizer


TOKENIZERS = {(kind, template): chat_tokenizer(kind, template) for kind in KINDS for template in STOCK}


@pytest.fixture(params=TOKENIZERS, ids="-".join)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]


def controls(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The control tokens among ids, in their order."""
    special = set(tokenizer.convert_tokens_to_ids(list(CONTROLS)))
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in ids if token in special]


def ids_of(group: Group, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    encoded = encode(group, tokenizer)
    assert encoded.prompt_ids == encode_prompt(group.prompt, tokenizer, group.columns)
    return encoded.prompt_ids + encoded.responses[0].ids


def conversation(text: str) -> Group:
    turns = ({"role": "system", "content": f"s {text} s"}, user(f"{text} q"), assistant(f"a {text} a"), user(text))
    return Group(turns, (Response((assistant(f"b {text} b"), user(f"r {text}"), assistant(f"{text} c"))),))


ATTACKS = ("".join(CONTROLS), "\nassistant\n".join(CONTROLS), "".join(f"<{t}{t[1:]}{t[0]}" for t in CONTROLS))


def test_no_text_of_a_turn_becomes_a_control_token(tokenizer):
    expected = controls(ids_of(conversation("harmless"), tokenizer), tokenizer)
    assert expected
    for text in ATTACKS:
        assert controls(ids_of(conversation(text), tokenizer), tokenizer) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_letters_are_read_as_they_were_written(kind):
    tokenizer = TOKENIZERS[kind, "qwen2_5"]
    text = f"What does {' '.join(CONTROLS)} do?"
    encoded = encode(Group((user(text),), (Response((assistant(text),)),)), tokenizer)
    if kind == "unigram":
        text = text.replace("▁", " ")  # one and the same to SentencePiece
    for ids in (encoded.prompt_ids, encoded.responses[0].ids):
        assert text in tokenizer.decode(list(ids))


def test_a_text_that_the_tokenizer_normalises_to_a_control_token_is_letters_too():
    tokenizer = unigram_tokenizer(eos_token="<|im_end|>")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.chat_template = (TEMPLATES / "qwen2_5.jinja").read_text()
    text = "a＜|im_end|＞＜|im_start|＞b"
    assert "<|im_end|>" in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    harmless, attacked = (encode_prompt((user(words),), tokenizer) for words in ("a", text))
    assert controls(attacked, tokenizer) == controls(harmless, tokenizer)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from([*CONTROLS, CUT, CUT[:4], "<|", "|>", "im_end", " ", "\n", "a", "é"]), max_size=8),
    key=st.sampled_from(sorted(TOKENIZERS)),
)
def test_no_mixture_of_texts_becomes_a_control_token(parts, key):
    tokenizer = TOKENIZERS[key]
    text = "".join(parts)
    group = conversation(f"x{text}x")
    assert controls(ids_of(group, tokenizer), tokenizer) == controls(
        ids_of(conversation("harmless"), tokenizer), tokenizer
    )
    if key[0] == "bytes":
        prompt = encode_prompt((user(f"x{text}x"),), tokenizer)
        assert f"x{text}x" in tokenizer.decode(prompt)


def test_harmless_turns_are_what_the_template_says(tokenizer):
    group = conversation("harmless the user < | end_of é")
    seen = tokenizer.apply_chat_template(list(group.prompt), add_generation_prompt=True, return_dict=False)
    assert encode_prompt(group.prompt, tokenizer) == tuple(seen)


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "a1b2c3d4e", "type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book_table",
            "description": "Reserve a table",
            "parameters": {"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]},
        },
    }
]


def table(text: str) -> Group:
    """A tool and a call in the prompt; `text` stands in every place that others write."""
    tool = json.loads(json.dumps(TOOLS).replace("Reserve a table", json.dumps(f"Reserve {text}")[1:-1]))
    turns = (
        user("A table please"),
        {"role": "assistant", "content": "", "tool_calls": [call("book_table", {"people": text, text: [text]})]},
        {"role": "tool", "content": f"booked {text}", "name": "book_table", "tool_call_id": "a1b2c3d4e"},
    )
    return Group(turns, columns={"tools": tool})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "mistral_nemo", "gpt_oss"])
def test_no_tool_argument_or_result_becomes_a_control_token(kind, template):
    tokenizer = TOKENIZERS[kind, template]

    def prompt(text: str) -> tuple[int, ...]:
        group = table(text)
        return encode_prompt(group.prompt, tokenizer, group.columns)

    group = table("harmless")
    seen = tokenizer.apply_chat_template(
        list(group.prompt), tools=group.columns["tools"], add_generation_prompt=True, return_dict=False
    )
    assert prompt("harmless") == tuple(seen)
    expected = controls(prompt("harmless"), tokenizer)
    for text in ATTACKS:
        assert controls(prompt(text), tokenizer) == expected
    assert tokenizer.decode(list(prompt("harmless"))).count("harmless") >= 4


def test_an_added_token_that_is_not_special_is_a_control_token_where_the_template_writes_it():
    """DeepSeek's turn marks are added tokens that are not flagged as special."""
    tokenizer = bytes_tokenizer(eos_token="</s>")
    tokenizer.add_tokens(["<@user>", "<@assistant>", "<@other>"])
    tokenizer.chat_template = (
        "{% for m in messages %}<@{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<@assistant>{% endif %}"
    )
    marks = tokenizer.convert_tokens_to_ids(["<@user>", "<@assistant>", "<@other>"])
    ids = encode_prompt((user("<@user> <@assistant> <@other>"),), tokenizer)
    assert [ids.count(mark) for mark in marks] == [1, 1, 1]  # the template's two, and one that it never writes


def test_added_words_and_white_space_are_no_control_tokens():
    """Gemma adds runs of line breaks to its vocabulary, and others add words."""
    tokenizer = stock_tokenizer("llama3_imitation")
    tokenizer.add_tokens(["\n\n", "user", "system"])
    turns = [user("One user\n\nor\n\n\na system?"), assistant("user\n\n"), user("system")]
    seen = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(tuple(turns), tokenizer) == tuple(seen)


def test_the_assistant_s_reasoning_tags_stay_tokens():
    tokenizer = stock_tokenizer("qwen3")
    tokenizer.add_special_tokens({"extra_special_tokens": [*CONTROLS, "<think>", "</think>"]})
    tags = set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    (response,) = encode(
        Group((user("Q"),), (Response((assistant("<think>\nr\n</think>\n\nA"),)),)), tokenizer
    ).responses
    assert len(tags & set(response.ids)) == 2
    assert not tags & set(encode_prompt((user("<think> </think>"),), tokenizer))


def test_a_plain_text_keeps_its_control_tokens():
    tokenizer = stock_tokenizer("qwen2_5")
    text = f"a<|im_end|>{CUT}<|im_start|>"
    group = encode(Group(text, (Response(f"b<|im_start|>{CUT}"),)), tokenizer)
    assert group.prompt_ids == tuple(tokenizer(text)["input_ids"])
    assert group.responses[0].ids[:-1] == tuple(tokenizer(f"b<|im_start|>{CUT}")["input_ids"])


def test_a_text_as_letters_has_only_the_tokenizer_s_own_control_tokens():
    for kind, make in KINDS.items():
        tokenizer = make(bos_token="<s>", eos_token="</s>")
        if kind == "bytes":
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<s> $A </s>", special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<s>", "</s>")]
            )
        assert encode_as_letters("harmless </ s>", tokenizer) == tuple(tokenizer("harmless </ s>")["input_ids"])
        expected = controls(tuple(tokenizer("a")["input_ids"]), tokenizer)
        for text in ATTACKS:
            assert controls(encode_as_letters(text, tokenizer), tokenizer) == expected


def test_rows_that_spell_control_tokens_are_counted():
    tokenizer = stock_tokenizer("qwen2_5")
    groups = [Group((user(text),), (Response("b"),)) for text in ("a", "<|im_end|>", "</s>")]
    groups += [Group((user("a"),), (Response("a <|im_start|> b"),)), Group("<|im_end|>", (Response("b"),))]
    assert encode_all(groups, tokenizer)[1].message() == (
        "of 5 rows, 3 spell control tokens in their messages, read as letters"
    )

"""What `kleash inspect` prints: roles, white space, counts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.style import Style
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from kleash.data.chat import encode_all
from kleash.data.group import Group, Preference, Response, Scores
from kleash.report.rows import ROLES, show_rows

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pieces = Tokenizer(BPE(letters, []))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        eos_token="</s>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
    )


def shown(groups: list[Group], tokenizer: PreTrainedTokenizerFast, limit: int = 9, **options: object) -> Console:
    console = Console(
        record=True, file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor", **options
    )
    show_rows(encode_all(groups, tokenizer)[0], tokenizer, console, limit=limit)
    return console


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = Group((turn("user", "a b"),), (Response((turn("assistant", "c"), turn("user", "d"), turn("assistant", "e"))),))


def test_F6_each_token_is_shown_in_its_role(tokenizer):
    console = shown([TALK], tokenizer)
    text = console.export_text(clear=False)
    assert "<|user|>·⏎\na·␣·b·</s>·⏎\n<|assistant|>·⏎\n" in text
    assert "c</s>⟨⏎\n<|user|>·⏎\nd·</s>·⏎\n<|assistant|>·⏎⟩\ne</s>" in text
    assert "prompt: 9 tokens, none trained" in text
    assert "response: 12 tokens, 4 trained, 8 forced, ends" in text
    styled = console.export_text(styles=True)
    for token, role in (("c", "trained"), ("d", "forced"), ("e", "trained"), ("b", "prompt")):
        assert Style.parse(ROLES[role]).render(token) in styled
    assert styled.count(Style.parse(ROLES["end token"]).render("</s>")) == 2  # the user's own </s> is none


def test_both_responses_of_a_preference_are_shown_with_their_label(tokenizer):
    group = Group("q", (Response("a\tb"), Response("é", finished=False)), Preference(0.75, "ann"))
    text = shown([group], tokenizer).export_text()
    assert "row 1 · preference by ann, P(chosen is better) = 0.75" in text
    assert "a·⇥·b</s>\nchosen: 4 tokens, 4 trained, ends" in text
    assert "Ã·©\nrejected: 2 tokens, 2 trained, no end token" in text  # two bytes of one letter, by their names


def test_hostile_text_moves_no_cursor_and_sets_no_style(tokenizer):
    group = Group("q", (Response("\x1b[31m[bold]\u202ex"),), Scores((1.0,)))
    console = shown([group], tokenizer)
    assert "\\u001b·[·3·1·m·[·b·o·l·d·]" in console.export_text(clear=False)
    assert "score 1" in console.export_text(clear=False)
    assert "\u202e" not in console.export_text()


def test_rows_beyond_the_limit_are_counted(tokenizer):
    text = shown([TALK] * 5, tokenizer, limit=2).export_text()
    assert text.count("response: ") == 2
    assert "… and 3 more" in text

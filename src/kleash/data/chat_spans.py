"""The text of a conversation that the assistant wrote: its answers as trained spans, everything else as forced spans.

The conversation is rendered twice, once as it is and once with a mark in place of each answer. The text between two
marks comes from the template and from others, and surrounds the answers in the real rendering too. An answer begins
where the generation prompt ends, so any text that a template puts after that (`<|channel|>final<|message|>`, an empty
`<think>` block) is written by the model, and the answer ends with the template's end token. Two cases need a rule:

* A template may render an earlier answer differently from the last one (Qwen3 drops its reasoning): it is trained as
  the later turns see it. Where its end token is a different one (gpt-oss: `<|end|>` for `<|return|>`), that one is
  forced, since the sampler would not stop there.
* A template may show the sampler another prompt than a finished conversation has (Mistral's system text, the `<think>`
  that R1 opens): the prompt is the sampler's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.data.chat_template import MARK, ChatTemplate, name_of, render, template_of
from kleash.data.group import Message
from kleash.data.message_fields import is_trained
from kleash.errors import DataError, ModelError


@dataclass(frozen=True)
class Span:
    """Text of a response with one role."""

    text: str
    trained: bool = True
    before: str = ""
    """The preceding text, for tokenizers that treat the start of a text differently from its middle."""


@dataclass(frozen=True)
class _Opening:
    """The generation prompt in the text before an answer."""

    end: int
    """Where it ends, in characters of that text."""
    missing: str = ""
    """The part of it that the finished conversation lacks (R1's `<think>`)."""


@dataclass(frozen=True)
class _Answer:
    """An answer in the rendered conversation."""

    text: str
    """From the end of the generation prompt to where the template's text continues."""
    after: str
    """The text of the template and of others up to the next answer."""


Skeletons = dict[str, list[str]]
"""The texts between the marks of a conversation, by its turns: the responses of a group mostly share them."""


def turn_spans(
    prompt: Sequence[Message],
    turns: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    variables: Mapping[str, Any],
    skeletons: Skeletons,
    *,
    finished: bool = True,
) -> tuple[Span, ...]:
    """The spans of an answer, or of the rest of a conversation, in turns.

    Args:
        prompt: the turns before it.
        turns: of the response; its first and its last are the assistant's (see `response_turns`).
        tokenizer: whose template renders them.
        variables: what the template reads beside the turns.
        skeletons: of the same prompt; added to.
        finished: whether the last answer ended by itself.

    Raises:
        DataError: where an answer lies is not clear.
        ModelError: the template cannot be used.
    """
    template = template_of(tokenizer, variables)
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    pieces = _between_answers(prompt, turns, tokenizer, variables, skeletons)
    openings = _openings([*prompt, *turns], pieces, template, tokenizer)
    text = render([*prompt, *turns], tokenizer, variables, add_generation_prompt=False)
    places = _locate(text, [_words_of(answer) for answer in answers], pieces, openings, tokenizer)
    places[-1] = _with_opened_reasoning(places[-1], str(answers[-1]["content"]), openings[-1])
    trained = [is_trained(answer) for answer in answers]
    return tuple(_spans(places, trained, template, missing=openings[-1].missing, finished=finished))


# --- render ----------------------------------------------------------------------------------------------------------


def _words_of(answer: Message) -> str:
    """The words of an answer that every template shows: its reasoning may be left out or moved."""
    return str(answer["content"]).rpartition("</think>")[2].strip()


def _between_answers(
    prompt: Sequence[Message],
    turns: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    variables: Mapping[str, Any],
    skeletons: Skeletons,
) -> list[str]:
    """The text before each answer and, last, the text after all of them: the template's and that of others."""
    count = 0
    marked: list[Message] = []
    for turn in turns:
        answer = turn["role"] == "assistant"
        marked.append({"role": "assistant", "content": MARK.format(count)} if answer else turn)
        count += answer
    key = repr(marked)
    if key not in skeletons:
        text = render([*prompt, *marked], tokenizer, variables, add_generation_prompt=False)
        skeletons[key] = _split_at_marks(text, count, tokenizer)
    return skeletons[key]


def _split_at_marks(text: str, count: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    pieces = []
    for i in range(count):
        piece, mark, text = text.partition(MARK.format(i))
        if not mark:
            raise ModelError(f"the chat template of {name_of(tokenizer)} leaves out an answer; correct the template")
        pieces.append(piece)
    return [*pieces, text]


# --- locate ----------------------------------------------------------------------------------------------------------


def _openings(
    conversation: Sequence[Message],
    pieces: Sequence[str],
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
) -> list[_Opening]:
    """Where the model begins to write, in the text before each answer."""
    questions = [before for before, turn in pairwise(conversation) if turn["role"] == "assistant"][1 - len(pieces) :]
    return [
        _opening(piece, "" if turn["role"] == "assistant" else str(turn["content"]).strip(), template, tokenizer)
        for piece, turn in zip(pieces[:-1], questions, strict=True)
    ]


def _opening(piece: str, question: str, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> _Opening:
    """Where the generation prompt ends in the text before an answer.

    Never before the end of the words of the prompt, which is not trained (F6). A finished conversation may show only
    the beginning of the generation prompt; the rest is missing.
    """
    opening = template.opening or template.closing
    start = piece.rfind(opening)
    if start >= 0 and question in piece[: start + len(opening)]:
        return _Opening(start + len(opening))
    for size in range(len(opening) - 1, 0, -1):
        if piece.endswith(opening[:size]):
            return _Opening(len(piece), missing=opening[size:])
    raise _unclear(tokenizer, piece)


def _locate(
    text: str,
    words: Sequence[str],
    pieces: Sequence[str],
    openings: Sequence[_Opening],
    tokenizer: PreTrainedTokenizerBase,
) -> list[_Answer]:
    """Each answer in the conversation as it is rendered, found by its words and by the text around it."""
    position = openings[0].end
    if not text.startswith(pieces[0][:position]) or not text.endswith(pieces[-1]):
        raise _unclear(tokenizer, text)
    afters = [piece[: opening.end] for piece, opening in zip(pieces[1:-1], openings[1:], strict=True)]
    answers = []
    for answer, after in zip(words, [*afters, None], strict=True):
        first = text.find(answer, position)
        stop = len(text) - len(pieces[-1]) if after is None else text.find(after, first + len(answer))
        start = text.rfind(answer, position, stop)
        if min(first, stop, start) < 0:
            raise _unclear(tokenizer, text)
        answers.append(_Answer(text[position:stop], pieces[-1] if after is None else after))
        position = stop + len(answers[-1].after)
    return answers


def _unclear(tokenizer: PreTrainedTokenizerBase, text: str) -> DataError:
    return DataError(
        f"the chat template of {name_of(tokenizer)} renders an answer so that its beginning or end cannot be told in "
        f"{excerpt(text, 300)}; leave the row out, or simplify the template"
    )


def excerpt(text: Any, limit: int = 80) -> str:
    """A text in a message: quoted, and without its middle where it is long."""
    quoted = repr(str(text))
    return quoted if len(quoted) <= limit else f"{quoted[: limit // 2]} … {quoted[-limit // 2 :]}"


# --- special cases ---------------------------------------------------------------------------------------------------


def _with_opened_reasoning(answer: _Answer, content: str, opening: _Opening) -> _Answer:
    """The last answer with its reasoning, where the template opens it for the model and then takes it out (R1)."""
    if not opening.missing or content.strip() in answer.text:
        return answer
    return _Answer(content.removeprefix(opening.missing), answer.after)


def _own_ending(answer: _Answer, template: ChatTemplate) -> str:
    """The end of an answer that the model writes: none where later turns see another end token (gpt-oss)."""
    return template.ending if answer.after.startswith(template.ending) else ""


# --- spans -----------------------------------------------------------------------------------------------------------


def _spans(
    answers: Sequence[_Answer], trained: Sequence[bool], template: ChatTemplate, *, missing: str, finished: bool
) -> list[Span]:
    """Answers, trained with their end tokens, and the text between them, forced.

    Args:
        answers: in their order.
        trained: which of them are; the others are forced, with their end tokens.
        template: the chat template.
        missing: the part of the last answer's generation prompt that the finished conversation lacks. It is restored,
            since the sampler's prompt has it.
        finished: whether the last answer ended by itself; else it gets no end token.
    """
    spans = []
    for i, answer in enumerate(answers):
        last = i == len(answers) - 1
        ending = _own_ending(answer, template) if finished or not last else ""
        spans.append(Span(answer.text + ending, trained=trained[i], before=template.closing))
        if not last:
            forced = answer.after[len(ending) :] + (missing if i == len(answers) - 2 else "")
            spans.append(Span(forced, trained=False, before=template.end_token))
    return spans

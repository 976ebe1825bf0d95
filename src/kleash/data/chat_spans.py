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
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.data.chat_template import MARK, ChatTemplate, name_of, render, template_of
from kleash.data.group import Message
from kleash.data.message_fields import is_trained, with_marked_arguments
from kleash.data.turns import call_end
from kleash.errors import DataError, ModelError

CALL = MARK.format("call {}")
"""Placeholder for the arguments of a tool call."""


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


@dataclass(frozen=True)
class Skeleton:
    """A conversation without its answers."""

    pieces: tuple[str, ...]
    """The text before each answer and, last, the text after all of them: the template's and that of others."""
    openings: tuple[_Opening, ...]
    """Where the model begins to write, in the text before each answer."""


Skeletons = dict[str, Skeleton]
"""By the turns of others: the responses of a group mostly share them."""


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
    marked = _marked(turns)
    key = repr(marked)
    if key not in skeletons:
        skeletons[key] = _skeleton([*prompt, *marked], len(prompt), template, tokenizer, variables)
    text = render([*prompt, *turns], tokenizer, variables, add_generation_prompt=False)
    places = _locate(text, [_words_of(answer) for answer in answers], skeletons[key], tokenizer)
    opening = skeletons[key].openings[-1]
    places[-1] = _with_opened_reasoning(places[-1], str(answers[-1]["content"]), opening)
    trained = [is_trained(answer) for answer in answers]
    return tuple(_spans(places, trained, template, missing=opening.missing, finished=finished))


# --- render ----------------------------------------------------------------------------------------------------------


def _words_of(answer: Message) -> str:
    """The words of an answer that every template shows: its reasoning may be left out or moved, and so may what stands
    beside a tool call.
    """
    return "" if "tool_calls" in answer else str(answer["content"]).rpartition("</think>")[2].strip()


def _marked(turns: Sequence[Message]) -> list[Message]:
    """The turns with a mark in place of each answer, and one in the arguments of each of its tool calls."""
    marked: list[Message] = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            marked.append(turn)
            continue
        calls = [with_marked_arguments(call, CALL.format(i)) for call in turn.get("tool_calls", ())]
        answer = {"role": "assistant", "content": MARK.format(i)}
        marked.append(answer | {"tool_calls": calls} if calls else answer)
    return marked


def _skeleton(
    conversation: Sequence[Message],
    start: int,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    variables: Mapping[str, Any],
) -> Skeleton:
    """What stands between the marks of a conversation whose response begins with turn `start`."""
    text = render(conversation, tokenizer, variables, add_generation_prompt=False)
    pieces, openings, end = [], [], 0
    for turn in range(start, len(conversation)):
        if conversation[turn]["role"] != "assistant":
            continue
        begin, stop = _answer_at(text, turn - start, "tool_calls" in conversation[turn], tokenizer)
        pieces.append(text[end:begin])
        before = conversation[:turn]
        opening = _opening(pieces[-1], before[-1], template)
        if opening is None:  # no generation prompt after a tool's turn (Mistral)
            prefix = render(before, tokenizer, variables)
            if not text[:begin].startswith(prefix) or len(prefix) < end:
                raise _unclear(tokenizer, pieces[-1])
            opening = _Opening(len(prefix) - end)
        openings.append(opening)
        end = stop
    return Skeleton((*pieces, text[end:]), tuple(openings))


def _answer_at(text: str, i: int, calls: bool, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Where the marks of an answer begin and where it ends: with tool calls, at the token that ends its turn."""
    mark, call = MARK.format(i), CALL.format(i)
    begin = text.find(mark)
    if not calls:
        if begin < 0:
            raise ModelError(f"the chat template of {name_of(tokenizer)} leaves out an answer; correct the template")
        return begin, begin + len(mark)
    last, end = text.rfind(call), call_end(tokenizer)
    stop = text.find(end, last) if end else -1
    if min(last, stop) < 0:
        raise _unclear(tokenizer, text)
    return text.find(call) if begin < 0 else begin, stop


# --- locate ----------------------------------------------------------------------------------------------------------


def _opening(piece: str, question: Message, template: ChatTemplate) -> _Opening | None:
    """Where the generation prompt ends in the text before an answer; None where it is not in it.

    Never before the end of the words of the prompt, which is not trained (F6). A finished conversation may show only
    the beginning of the generation prompt; the rest is missing.
    """
    words = "" if question["role"] == "assistant" else str(question["content"]).strip()
    opening = template.opening or template.closing
    start = piece.rfind(opening)
    if start >= 0 and words in piece[: start + len(opening)]:
        return _Opening(start + len(opening))
    for size in range(len(opening) - 1, 0, -1):
        if piece.endswith(opening[:size]):
            return _Opening(len(piece), missing=opening[size:])
    return None


def _locate(
    text: str,
    words: Sequence[str],
    skeleton: Skeleton,
    tokenizer: PreTrainedTokenizerBase,
) -> list[_Answer]:
    """Each answer in the conversation as it is rendered, found by its words and by the text around it."""
    pieces, openings = skeleton.pieces, skeleton.openings
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

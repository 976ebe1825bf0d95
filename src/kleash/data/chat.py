"""Groups into token ids: which tokens are trained and which are forced, end tokens, truncation.

Training sees a prompt exactly as the sampler does: `encode(group).prompt_ids == encode_prompt(group.prompt)`, always.
So prompt and response are tokenised separately, and no token spans the border. Text is tokenised as it is; turns go
through the tokenizer's chat template (`chat_template`), and `chat_spans` finds the text that the assistant wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.data.chat_spans import Skeletons, Span, excerpt, turn_spans
from kleash.data.chat_template import end_ids, name_of, render, template_of
from kleash.data.group import Content, EncodedGroup, EncodedResponse, Group, Response
from kleash.errors import DataError, ModelError

BLOCK = 1000
"""Groups that are tokenised in one call."""


@dataclass(frozen=True)
class Truncation:
    """What a length limit did to the rows."""

    rows: int
    cut: int = 0
    """Rows with a response that was cut, and so lost its end token."""
    dropped: int = 0
    """Rows whose prompt leaves no room for a response."""
    max_length: int | None = None

    def message(self) -> str:
        """One line for the log; empty where nothing was lost."""
        losses = [f"{self.cut} cut"] if self.cut else []
        losses += [f"{self.dropped} dropped, the prompt too long"] if self.dropped else []
        return f"of {self.rows} rows, {' and '.join(losses)} (max_length {self.max_length})" if losses else ""


def encode(
    group: Group, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, end_id: int | None = None
) -> EncodedGroup:
    """One group as token ids; `encode_all` is faster for many.

    Text is tokenised as it is, prompt and response separately, and a finished response gets one end token. Turns go
    through the tokenizer's chat template. A response that was sampled keeps its ids.

    Args:
        group: with any number of responses.
        tokenizer: the model's.
        max_length: most tokens of prompt and response; a longer response is cut, and then has no end token.
        end_id: end token of plain text; None: the tokenizer's. Chat templates have their own.

    Raises:
        DataError: nothing to train on, a prompt without tokens, or one that fills `max_length`.
        ModelError: the tokenizer lacks the template or the end token that the group needs.
    """
    draft = _draft(group, tokenizer, end_id)
    encoded = _encode_draft(draft, _tokenize(draft.texts(), tokenizer), tokenizer)
    if not _fits(encoded, max_length):
        raise DataError(_too_long(len(encoded.prompt_ids), max_length))
    return _cut(encoded, max_length)


def encode_all(
    groups: Sequence[Group],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    end_id: int | None = None,
) -> tuple[list[EncodedGroup], Truncation]:
    """Many groups as token ids, in their order, without those whose prompt fills `max_length`.

    Returns:
        The usable groups, and what was lost.

    Raises:
        DataError: as `encode`, or no group at all can be used.
        ModelError: as `encode`.
    """
    results: list[EncodedGroup] = []
    cut = longest = 0
    for start in range(0, len(groups), BLOCK):
        drafts = [_draft(group, tokenizer, end_id) for group in groups[start : start + BLOCK]]
        ids = _tokenize((text for draft in drafts for text in draft.texts()), tokenizer)
        for draft in drafts:
            encoded = _encode_draft(draft, ids, tokenizer)
            if not _fits(encoded, max_length):
                longest = max(longest, len(encoded.prompt_ids))
                continue
            results.append(_cut(encoded, max_length))
            cut += results[-1] is not encoded
    if groups and not results:
        raise DataError(f"no row can be used: {_too_long(longest, max_length)}")
    return results, Truncation(len(groups), cut, len(groups) - len(results), max_length)


def encode_prompt(prompt: Content, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of the prompt of a response: `tokenizer(text)`, or turns with the generation prompt."""
    text = _prompt_text(prompt, tokenizer)
    return tuple(_tokenize([text], tokenizer)[text])


# --- from a group to its texts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """A text to tokenise, and how."""

    text: str
    whole: bool = False
    """Whether to add the special tokens that the tokenizer puts around a text."""
    literal: bool = False
    """Whether an end token in the text is tokenised as plain letters."""


@dataclass(frozen=True)
class _ResponseDraft:
    """A response before tokenisation."""

    spans: tuple[Span, ...] = ()
    """None where the response has ids already."""
    end_id: int | None = None
    """Id to append, where the text does not hold the end token."""


@dataclass(frozen=True)
class _Draft:
    """A group before tokenisation."""

    group: Group
    prompt: _Text
    responses: tuple[_ResponseDraft, ...]
    anchored: bool
    """Whether spans are tokenised after their preceding text."""

    def texts(self) -> Iterable[_Text]:
        """All texts to tokenise."""
        yield self.prompt
        for response in self.responses:
            for span in response.spans:
                yield _Text(span.text)
                if self.anchored and span.before:
                    yield from (_Text(span.before), _Text(span.before + span.text))


def _draft(group: Group, tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> _Draft:
    prompt = _prompt_text(group.prompt, tokenizer)
    skeletons: Skeletons = {}
    responses: list[_ResponseDraft] = []
    for response in group.responses:
        if response.ids is not None:
            responses.append(_ResponseDraft())
        elif isinstance(group.prompt, str):
            end = _end_of_text(tokenizer, end_id) if response.finished else None
            responses.append(_ResponseDraft((_text_span(response),), end))
        else:
            responses.append(_ResponseDraft(turn_spans(group.prompt, response, tokenizer, skeletons)))
    turns = not isinstance(group.prompt, str) and any(response.spans for response in responses)
    return _Draft(group, prompt, tuple(responses), anchored=turns and template_of(tokenizer).prepends)


def _prompt_text(prompt: Content, tokenizer: PreTrainedTokenizerBase) -> _Text:
    if isinstance(prompt, str):
        return _Text(prompt, whole=True)
    if not prompt:
        raise DataError("a prompt has no turns; give at least one")
    if prompt[-1]["role"] == "assistant":
        raise DataError(
            f"a prompt ends with the assistant's turn {excerpt(prompt[-1]['content'])}; end it before an answer"
        )
    return _Text(render(prompt, tokenizer))


def _text_span(response: Response) -> Span:
    if not isinstance(response.content, str):
        raise DataError("the prompt is text and a response turns; give both in one kind")
    return Span(response.content, words=(0, len(response.content)))


def _end_of_text(tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> int:
    end = tokenizer.eos_token_id if end_id is None else end_id
    if end is None:
        raise ModelError(
            f"{name_of(tokenizer)} has no end token for responses; set `eos_token` in its tokenizer_config.json"
        )
    return int(end)


# --- from texts to ids -----------------------------------------------------------------------------------------------


def _tokenize(texts: Iterable[_Text], tokenizer: PreTrainedTokenizerBase) -> dict[_Text, list[int]]:
    """The ids of each text; equal ones are tokenised once, and all of one kind in one call."""
    unique = list(dict.fromkeys(texts))
    ids: dict[_Text, list[int]] = {}
    for special, literal in ((True, False), (False, False), (False, True)):
        part = [text for text in unique if (text.whole, text.literal) == (special, literal)]
        if part:
            options: dict[str, Any] = {"split_special_tokens": True} if literal else {}
            strings = [text.text for text in part]
            rows = tokenizer(strings, add_special_tokens=special, verbose=False, **options)["input_ids"]
            ids.update(zip(part, rows, strict=True))
    return ids


def _encode_draft(draft: _Draft, ids: Mapping[_Text, list[int]], tokenizer: PreTrainedTokenizerBase) -> EncodedGroup:
    """The group as token ids, of any length."""
    prompt = tuple(ids[draft.prompt])
    responses = []
    for k, response in enumerate(draft.group.responses):
        if response.ids is not None:
            responses.append(EncodedResponse(response.ids, (True,) * len(response.ids)))
        else:
            responses.append(_join_spans(draft, k, ids, tokenizer))
    if not prompt:
        prompt, responses = _borrow_first_token(responses)
    return EncodedGroup(prompt, tuple(responses), draft.group)


def _join_spans(
    draft: _Draft, k: int, ids: Mapping[_Text, list[int]], tokenizer: PreTrainedTokenizerBase
) -> EncodedResponse:
    """A response's spans as one row of ids, with at most one end token in each that is trained."""
    tokens: list[int] = []
    mask: list[bool] = []
    end = draft.responses[k].end_id
    ends = {end} if isinstance(draft.group.prompt, str) else set(end_ids(tokenizer))
    for span in draft.responses[k].spans:
        part = _span_ids(span, ids, draft.anchored)
        if span.trained and ends & set(part[:-1]):
            part = _literal_ids(span, tokenizer)
            if ends & set(part[:-1]):
                raise DataError(
                    f"a response continues after an end token in {excerpt(span.text)}; remove it from the text"
                )
        tokens += part
        mask += [span.trained] * len(part)
    if end is not None and tokens[-1:] != [end]:
        tokens.append(end)
        mask.append(True)
    if not any(mask):
        raise DataError(
            f"there is nothing to train on in the response {excerpt(draft.group.responses[k].text)} to "
            f"{excerpt(draft.group.prompt_text)}: it is empty and not finished; leave the row out"
        )
    return EncodedResponse(tuple(tokens), tuple(mask))


def _span_ids(span: Span, ids: Mapping[_Text, list[int]], anchored: bool) -> list[int]:
    if anchored and span.before:
        prefix, joined = ids[_Text(span.before)], ids[_Text(span.before + span.text)]
        if joined[: len(prefix)] == prefix:
            return joined[len(prefix) :]
    return ids[_Text(span.text)]


def _literal_ids(span: Span, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a span whose words spell an end token: they are tokenised as text."""
    start, stop = span.words
    parts = [_Text(span.text[:start]), _Text(span.text[start:stop], literal=True), _Text(span.text[stop:])]
    ids = _tokenize(parts, tokenizer)
    return [token for part in parts for token in ids[part]]


def _borrow_first_token(responses: list[EncodedResponse]) -> tuple[tuple[int, ...], list[EncodedResponse]]:
    """A prompt for groups without one: nothing precedes the first token, so it is forced and cannot be trained."""
    firsts = {response.ids[:1] for response in responses}
    if len(firsts) != 1 or () in firsts:
        raise DataError("a prompt has no tokens; give it at least one (the tokenizer puts none before an empty text)")
    rest = [EncodedResponse(response.ids[1:], response.mask[1:]) for response in responses]
    if not all(any(response.mask) for response in rest):
        raise DataError("a row has an empty prompt and one response token, so nothing to train on; leave the row out")
    return firsts.pop(), rest


# --- length ----------------------------------------------------------------------------------------------------------


def _fits(group: EncodedGroup, max_length: int | None) -> bool:
    """Whether the prompt leaves room for a token of a response, where there are responses."""
    return max_length is None or len(group.prompt_ids) + bool(group.responses) <= max_length


def _cut(group: EncodedGroup, max_length: int | None) -> EncodedGroup:
    """The group with its responses cut to the room that the prompt leaves."""
    if max_length is None or group.length <= max_length:
        return group
    room = max_length - len(group.prompt_ids)
    responses = tuple(EncodedResponse(response.ids[:room], response.mask[:room]) for response in group.responses)
    return EncodedGroup(group.prompt_ids, responses, group.source)


def _too_long(length: int, max_length: int | None) -> str:
    return f"a prompt of {length} tokens leaves no room in max_length {max_length}; shorten it or raise max_length"

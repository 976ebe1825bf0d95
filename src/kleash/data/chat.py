"""Groups into token ids: which tokens are trained and which are forced, end tokens, truncation.

Training sees a prompt exactly as the sampler does: `encode(group).prompt_ids == encode_prompt(group.prompt)` with the
group's columns, always. So prompt and response are tokenised separately, and no token spans the border. Text is
tokenised as it is; turns go through the tokenizer's chat template (`chat_template`), in which no message can write a
control token (`letters`), and `chat_spans` finds the text that the assistant wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.data.chat_spans import Skeletons, Span, excerpt, turn_spans
from kleash.data.chat_template import end_ids, name_of, render, template_of
from kleash.data.group import Content, EncodedGroup, EncodedResponse, Group, Response
from kleash.data.letters import CUT, cut, cut_at, tokenize_pieces
from kleash.data.template_columns import template_variables
from kleash.data.turns import prompt_turns, response_turns
from kleash.errors import DataError, ModelError

BLOCK = 1000
"""Groups that are tokenised in one call."""


@dataclass(frozen=True)
class Truncation:
    """What happened to the rows on their way to token ids."""

    rows: int
    cut: int = 0
    """Rows with a response that was cut, and so lost its end token."""
    dropped: int = 0
    """Rows whose prompt leaves no room for a response."""
    max_length: int | None = None
    letters: int = 0
    """Rows whose messages spell a control token, which is letters there."""

    def message(self) -> str:
        """One line for the log; empty where nothing was lost or changed."""
        parts = [f"{self.cut} cut"] if self.cut else []
        parts += [f"{self.dropped} dropped, the prompt too long"] if self.dropped else []
        parts = [f"{' and '.join(parts)} (max_length {self.max_length})"] if parts else []
        parts += [f"{self.letters} spell control tokens in their messages, read as letters"] if self.letters else []
        return f"of {self.rows} rows, {'; '.join(parts)}" if parts else ""


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
    cut = longest = letters = 0
    for start in range(0, len(groups), BLOCK):
        drafts = [_draft(group, tokenizer, end_id) for group in groups[start : start + BLOCK]]
        ids = _tokenize((text for draft in drafts for text in draft.texts()), tokenizer)
        for draft in drafts:
            letters += any(CUT in text.text for text in draft.texts() if text.cuts)
            encoded = _encode_draft(draft, ids, tokenizer)
            if not _fits(encoded, max_length):
                longest = max(longest, len(encoded.prompt_ids))
                continue
            results.append(_cut(encoded, max_length))
            cut += results[-1] is not encoded
    if groups and not results:
        raise DataError(f"no row can be used: {_too_long(longest, max_length)}")
    return results, Truncation(len(groups), cut, len(groups) - len(results), max_length, letters)


def encode_prompt(
    prompt: Content, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """The ids of the prompt of a response: `tokenizer(text)`, or turns with the generation prompt.

    Args:
        prompt: text or turns.
        tokenizer: the model's.
        columns: the row's other columns; a chat template reads its tools there (see `template_variables`).
    """
    content = prompt if isinstance(prompt, str) else prompt_turns(prompt, tokenizer)
    text = _prompt_text(content, tokenizer, _variables(prompt, columns or {}, tokenizer))
    return tuple(_tokenize([text], tokenizer)[text])


def encode_as_letters(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of a text that others wrote: `tokenizer(text)`, but no word in it becomes a control token."""
    first, *rest = str(cut(text, tokenizer)).split(CUT)
    if not rest:
        return tuple(tokenizer(text, verbose=False)["input_ids"])
    bare = tokenize_pieces([["a"], [first, *rest]], tokenizer)
    around = tokenizer("a", verbose=False)["input_ids"]
    start = next((i for i in range(len(around)) if around[i : i + len(bare[0])] == bare[0]), 0)
    return tuple(around[:start] + bare[1] + around[start + len(bare[0]) :])


# --- from a group to its texts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """A text to tokenise, and how."""

    text: str
    whole: bool = False
    """Whether it is a plain text, with the special tokens that the tokenizer puts around one."""
    cuts: bool = False
    """Whether it has marks where words that spell a control token were cut (see `letters`)."""


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

    @property
    def turns(self) -> bool:
        """Whether the group is a conversation."""
        return not self.prompt.whole

    def texts(self) -> Iterable[_Text]:
        """All texts to tokenise."""
        yield self.prompt
        for response in self.responses:
            for span in response.spans:
                yield _Text(span.text, cuts=self.turns)
                if self.anchored and span.before:
                    yield from (_Text(span.before), _Text(span.before + span.text, cuts=True))


def _draft(group: Group, tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> _Draft:
    variables = _variables(group.prompt, group.columns, tokenizer)
    before = () if isinstance(group.prompt, str) else prompt_turns(group.prompt, tokenizer)
    prompt = _prompt_text(group.prompt if isinstance(group.prompt, str) else before, tokenizer, variables)
    skeletons: Skeletons = {}
    responses: list[_ResponseDraft] = []
    for response in group.responses:
        if response.ids is not None:
            responses.append(_ResponseDraft())
        elif isinstance(group.prompt, str):
            end = _end_of_text(tokenizer, end_id) if response.finished else None
            responses.append(_ResponseDraft((_text_span(response),), end))
        else:
            turns = response_turns(response, tokenizer)
            spans = turn_spans(before, turns, tokenizer, variables, skeletons, finished=response.finished)
            responses.append(_ResponseDraft(spans))
    anchored = bool(before) and any(response.spans for response in responses) and template_of(tokenizer).prepends
    return _Draft(group, prompt, tuple(responses), anchored)


def _variables(prompt: Content, columns: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the template reads beside the turns, spelling no control tokens either; plain text has no template."""
    return {} if isinstance(prompt, str) else dict(cut(template_variables(columns), tokenizer))


def _prompt_text(prompt: Content, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> _Text:
    if isinstance(prompt, str):
        return _Text(prompt, whole=True)
    if not prompt:
        raise DataError("a prompt has no turns; give at least one")
    if prompt[-1]["role"] == "assistant":
        raise DataError(
            f"a prompt ends with the assistant's turn {excerpt(prompt[-1]['content'])}; end it before an answer"
        )
    return _Text(render(prompt, tokenizer, variables), cuts=True)


def _text_span(response: Response) -> Span:
    if not isinstance(response.content, str):
        raise DataError("the prompt is text and a response turns; give both in one kind")
    return Span(response.content)


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
    if whole := [text for text in unique if text.whole]:
        rows = tokenizer([text.text for text in whole], verbose=False)["input_ids"]
        ids.update(zip(whole, rows, strict=True))
    if plain := [text for text in unique if not text.whole]:
        pieces = [text.text.split(CUT) if text.cuts else [text.text] for text in plain]
        ids.update(zip(plain, tokenize_pieces(pieces, tokenizer), strict=True))
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
    ends = set(end_ids(tokenizer)) if draft.turns else {end}
    for span in draft.responses[k].spans:
        part = _span_ids(span, ids, draft)
        if end in part[:-1] and not draft.turns:
            part = _letters(span.text, end, tokenizer)
        if span.trained and ends & set(part[:-1]):
            raise DataError(f"a response continues after an end token in {excerpt(span.text)}; remove it from the text")
        tokens += part
        mask += [span.trained] * len(part)
    if end is not None and tokens[-1:] != [end]:
        tokens.append(end)
        mask.append(True)
    if not any(mask):
        raise DataError(
            f"there is nothing to train on in the response {excerpt(draft.group.responses[k].text)} to "
            f"{excerpt(draft.group.prompt_text)}: it is empty and not finished, or its "
            "weight is 0; leave the row out"
        )
    return EncodedResponse(tuple(tokens), tuple(mask))


def _span_ids(span: Span, ids: Mapping[_Text, list[int]], draft: _Draft) -> list[int]:
    if draft.anchored and span.before:
        prefix, joined = ids[_Text(span.before)], ids[_Text(span.before + span.text, cuts=True)]
        if joined[: len(prefix)] == prefix:
            return joined[len(prefix) :]
    return ids[_Text(span.text, cuts=draft.turns)]


def _letters(text: str, end: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text amid which its end token is spelled: there it is letters, at its end it is the token."""
    token = str(tokenizer.convert_ids_to_tokens(end))
    ids = tokenize_pieces([cut_at(text.removesuffix(token), [token])], tokenizer)[0]
    return [*ids, end] if text.endswith(token) else ids


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

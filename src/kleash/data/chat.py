"""Groups into token ids: chat templates, what is trained and what is forced, truncation.

Training sees a prompt exactly as the sampler does: `encode(group).prompt_ids == encode_prompt(group.prompt)`, always.
So a prompt and what follows it are tokenised apart, and no token spans the border.

Stock templates do not say which of their text the assistant wrote (F6). It is found by rendering the conversation
twice, once as it is and once with a mark in place of each answer: what stands between two marks is the template's and
other people's, and stands around the answers in the real rendering too. An answer begins where the generation prompt
ends, so whatever a template puts after that (`<|channel|>final<|message|>`, an empty `<think>` block) is the model's to
write, and it ends with the template's end token. Two cases need a rule:

* A template may render an earlier answer otherwise than the last one (Qwen3 drops its reasoning): it is trained as
  the later turns see it. Where its end token is another one (gpt-oss: `<|end|>` for `<|return|>`), that one is forced,
  since the sampler would not stop there.
* A template may show the sampler another prompt than a finished conversation has (Mistral's system text, the `<think>`
  that R1 opens): the prompt is the sampler's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from kleash.data.group import Content, EncodedGroup, EncodedResponse, Group, Message, Response
from kleash.errors import DataError, ModelError


@dataclass(frozen=True)
class Truncation:
    """What a length limit did to the rows."""

    rows: int
    cut: int = 0
    """Rows with a response that lost its end, its end token with it."""
    dropped: int = 0
    """Rows whose prompt alone leaves no room for a response."""
    max_length: int | None = None

    def message(self) -> str:
        """One line for people; empty where nothing was lost."""
        done = [f"{self.cut} cut"] * bool(self.cut) + [f"{self.dropped} dropped, the prompt too long"] * bool(
            self.dropped
        )
        return f"of {self.rows} rows, {' and '.join(done)} (max_length {self.max_length})" if done else ""


def encode(
    group: Group, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, end_id: int | None = None
) -> EncodedGroup:
    """One group as token ids; `encode_all` is faster for many.

    Text is tokenised as it is, prompt and response apart, and a finished response gets one end token. Turns go through
    the tokenizer's chat template. A response that was sampled keeps its ids.

    Args:
        group: with any number of responses.
        tokenizer: the model's.
        max_length: most tokens of prompt and response; a longer response is cut, and then has no end token.
        end_id: ends plain text, else the tokenizer's end token does. Chat templates have their own.

    Raises:
        DataError: nothing to train on, a prompt without tokens, or one that fills `max_length`.
        ModelError: the tokenizer lacks the template or the end token that the group needs.
    """
    draft = _draft(group, tokenizer, end_id)
    encoded, _ = _assemble(draft, _tokenize(draft.requests(), tokenizer), tokenizer, max_length)
    if isinstance(encoded, int):
        raise DataError(_too_long(encoded, max_length))
    return encoded


def encode_all(
    groups: Sequence[Group],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    end_id: int | None = None,
) -> tuple[list[EncodedGroup], Truncation]:
    """Many groups as token ids, in their order, without those whose prompt fills `max_length`.

    Returns:
        The groups that can be used, and what was lost.

    Raises:
        DataError: as `encode`, or no group at all can be used.
        ModelError: as `encode`.
    """
    encoded: list[EncodedGroup] = []
    cut = longest = 0
    for start in range(0, len(groups), 1000):
        drafts = [_draft(group, tokenizer, end_id) for group in groups[start : start + 1000]]
        ids = _tokenize((request for draft in drafts for request in draft.requests()), tokenizer)
        for draft in drafts:
            result, was_cut = _assemble(draft, ids, tokenizer, max_length)
            if isinstance(result, int):
                longest = max(longest, result)
            else:
                encoded.append(result)
                cut += was_cut
    if groups and not encoded:
        raise DataError(f"no row can be used: {_too_long(longest, max_length)}")
    return encoded, Truncation(len(groups), cut, len(groups) - len(encoded), max_length)


def encode_prompt(prompt: Content, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that stand before a response: `tokenizer(text)`, or turns with the generation prompt."""
    request = _prompt_request(prompt, tokenizer)
    return tuple(_tokenize([request], tokenizer)[request])


def end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's end token, and the one its template puts after an answer.

    Raises:
        ModelError: it has neither.
    """
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template is not None:
        try:
            ends.append(_template(tokenizer).end_id)
        except ModelError:
            if not ends:
                raise
    if not ends:
        raise ModelError(f"{_name(tokenizer)} has no end token; set `eos_token` in its tokenizer_config.json")
    return tuple(dict.fromkeys(ends))


# --- templates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Template:
    """What a chat template puts around the words of others and those of the assistant."""

    opening: str
    """The generation prompt; empty where the template has none (Mistral)."""
    closing: str
    """From the end of a user's words to where the answer begins."""
    ending: str
    """From the end of the last answer to its end token, that included."""
    tail: str
    """From the end of the last answer to the end of the text."""
    end_id: int
    end_token: str
    prepends: bool
    """Whether a word at the start of a text has another id than after a line break (SentencePiece's leading space)."""


_templates: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, _Template]] = WeakKeyDictionary()

_MARK = "\ue000{}\ue001"
"""Private-use characters: no template trims them, no text holds them."""


def _template(tokenizer: PreTrainedTokenizerBase) -> _Template:
    """Ask the template by examples; kept for as long as the tokenizer keeps its template."""
    known = _templates.get(tokenizer)
    if known is None or known[0] != tokenizer.chat_template:
        known = _templates[tokenizer] = tokenizer.chat_template, _probe(tokenizer)
    return known[1]


def _probe(tokenizer: PreTrainedTokenizerBase) -> _Template:
    user, answer = _MARK.format(0), _MARK.format(1)
    turns: list[Message] = [{"role": "user", "content": user}]
    try:
        bare, asked = _render(turns, tokenizer, ask=False), _render(turns, tokenizer)
        full = _render([*turns, {"role": "assistant", "content": answer}], tokenizer, ask=False)
    except DataError as error:
        raise ModelError(f"{_name(tokenizer)} cannot render one question and its answer ({error}); repair it") from None
    if user not in asked or answer not in full:
        raise ModelError(f"the chat template of {_name(tokenizer)} leaves out what was said; repair the template")
    tail = full.rpartition(answer)[2]
    controls = _controls(tokenizer)
    end = next((token for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if token in controls), None)
    if end is None or controls[end] not in tail:
        raise ModelError(
            f"the chat template of {_name(tokenizer)} puts no end token after an answer, so that no model could "
            "learn to stop; end assistant turns with `eos_token` in the template"
        )
    line, word, after = tokenizer(["\n", "a", "\na"], add_special_tokens=False)["input_ids"]
    return _Template(
        opening=asked[len(bare) :] if asked.startswith(bare) else "",
        closing=asked.rpartition(user)[2],
        ending=tail[: tail.index(controls[end]) + len(controls[end])],
        tail=tail,
        end_id=end,
        end_token=controls[end],
        prepends=after[: len(line)] == line and after[len(line) :] != word,
    )


def _controls(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that stand for no text."""
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()} | named


def _render(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, ask: bool = True) -> str:
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{_name(tokenizer)} has no chat template, and the data are turns; "
            "take a model with a template, or data in plain text"
        )
    try:
        return str(
            tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False, add_generation_prompt=ask)
        )
    except (TemplateError, TypeError, KeyError) as error:  # what templates raise on turns they do not expect
        reason = " ".join(str(error).split())
        roles = ", ".join(str(turn["role"]) for turn in turns)
        raise DataError(f"the chat template refuses turns by {roles} ({reason}); correct the row") from None


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer {tokenizer.name_or_path}".strip()


# --- text and its roles ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """A text to tokenise."""

    text: str
    whole: bool = False
    """With the special tokens that the tokenizer puts around a text."""
    literal: bool = False
    """An end token written out is its letters."""


@dataclass(frozen=True)
class _Span:
    """Text of a response with one role."""

    text: str
    trained: bool = True
    before: str = ""
    """What stands before it, for tokenizers that treat the start of a text otherwise than its middle."""
    words: tuple[int, int] = (0, 0)
    """Where the assistant's own words lie in it."""


@dataclass(frozen=True)
class _Draft:
    """A group whose text is settled and whose ids are not."""

    group: Group
    prompt: _Request
    responses: tuple[tuple[_Span, ...], ...]
    """Spans of each response; none where its ids are given."""
    ends: tuple[int | None, ...]
    """Id to append to each response, where the text does not hold the end token."""
    anchored: bool
    """Whether spans are tokenised behind what stands before them."""

    def requests(self) -> Iterable[_Request]:
        """All texts to tokenise."""
        yield self.prompt
        for spans in self.responses:
            for span in spans:
                yield _Request(span.text)
                if self.anchored and span.before:
                    yield from (_Request(span.before), _Request(span.before + span.text))


def _draft(group: Group, tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> _Draft:
    prompt = _prompt_request(group.prompt, tokenizer)
    drafts: list[tuple[_Span, ...]] = []
    ends: list[int | None] = []
    skeletons: dict[Any, list[str]] = {}
    for response in group.responses:
        if response.ids is not None:
            drafts.append(())
            ends.append(None)
        elif isinstance(group.prompt, str):
            drafts.append((_text_span(response),))
            ends.append(_end_of_text(tokenizer, end_id) if response.finished else None)
        else:
            drafts.append(_turn_spans(group.prompt, response, tokenizer, skeletons))
            ends.append(None)
    anchored = not isinstance(group.prompt, str) and any(drafts) and _template(tokenizer).prepends
    return _Draft(group, prompt, tuple(drafts), tuple(ends), anchored)


def _prompt_request(prompt: Content, tokenizer: PreTrainedTokenizerBase) -> _Request:
    if isinstance(prompt, str):
        return _Request(prompt, whole=True)
    if not prompt:
        raise DataError("a prompt has no turns; give at least one")
    if prompt[-1]["role"] == "assistant":
        raise DataError(
            f"a prompt ends with the assistant's turn {_shown(prompt[-1]['content'])}; end it before an answer"
        )
    return _Request(_render(prompt, tokenizer))


def _text_span(response: Response) -> _Span:
    if not isinstance(response.content, str):
        raise DataError("the prompt is text and a response turns; give both in one kind")
    return _Span(response.content, words=(0, len(response.content)))


def _end_of_text(tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> int:
    end = tokenizer.eos_token_id if end_id is None else end_id
    if end is None:
        raise ModelError(
            f"{_name(tokenizer)} has no end token for responses; set `eos_token` in its tokenizer_config.json"
        )
    return int(end)


def _turn_spans(
    prompt: tuple[Message, ...],
    response: Response,
    tokenizer: PreTrainedTokenizerBase,
    skeletons: dict[Any, list[str]],
) -> tuple[_Span, ...]:
    """The spans of an answer, or of the rest of a conversation, in turns."""
    template = _template(tokenizer)
    turns = _answers(response, template, tokenizer)
    words = [str(turn["content"]).rpartition("</think>")[2].strip() for turn in turns if turn["role"] == "assistant"]
    marks = iter(_MARK.format(i) for i in range(len(words)))
    marked = [{"role": "assistant", "content": next(marks)} if t["role"] == "assistant" else t for t in turns]
    key = repr(marked)
    if key not in skeletons:  # the responses of a group mostly share it
        skeletons[key] = _between_marks(_render([*prompt, *marked], tokenizer, ask=False), len(words), tokenizer)
    pieces = skeletons[key]
    real = _render([*prompt, *turns], tokenizer, ask=False)

    everyone = [*prompt, *marked]
    asked = [before for before, turn in pairwise(everyone) if turn["role"] == "assistant"][-len(words) :]
    # Where the model begins to write in each piece, and what the generation prompt would have added there.
    starts = [
        _start_of_answer(
            piece, "" if turn["role"] == "assistant" else str(turn["content"]).strip(), template, tokenizer
        )
        for piece, turn in zip(pieces, asked, strict=False)
    ]

    spans: list[_Span] = []
    position = starts[0][0]
    before = template.closing
    if not real.startswith(pieces[0][:position]) or not real.endswith(pieces[-1]):
        raise _unclear(tokenizer, real)
    for i, said in enumerate(words):
        last = i == len(words) - 1
        forced = pieces[-1] if last else pieces[i + 1][: starts[i + 1][0]]
        spoken = real.find(said, position)
        stop = len(real) - len(forced) if last else real.find(forced, spoken + len(said))
        at = real.rfind(said, position, stop)
        if min(spoken, stop, at) < 0:
            raise _unclear(tokenizer, real)
        # The end token is the model's own, unless the template shows another one to later turns.
        ending = template.ending if forced.startswith(template.ending) else ""
        if last and not response.finished:
            ending = ""
        text, lead = real[position:stop], at - position
        written = str(turns[-1]["content"])
        if last and starts[i][1] and written.strip() not in text:
            # The template opens the reasoning for the model and then takes it out of the answer (R1).
            text = written.removeprefix(starts[i][1])
            lead = text.rfind(said)
        spans.append(_Span(text + ending, True, before, (lead, lead + len(said))))
        if not last:
            added = starts[i + 1][1] if i + 2 == len(words) else ""  # the last answer is asked for as the sampler does
            spans.append(_Span(forced[len(ending) :] + added, False, template.end_token))
            position = stop + len(forced)
    return tuple(spans)


def _answers(response: Response, template: _Template, tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    """The turns of a response up to its last answer, without end tokens that the data spell (the template has one)."""
    content = response.content
    if content is None:
        raise DataError("a response has neither text nor token ids; give it one of them")
    turns = (
        [{"role": "assistant", "content": content}] if isinstance(content, str) else [dict(turn) for turn in content]
    )
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns or turns[0]["role"] != "assistant":
        raise DataError("a response holds no answer at its beginning; it must begin with an assistant turn")
    for turn in turns:
        if turn["role"] == "assistant":
            for token in (template.end_token, tokenizer.eos_token or template.end_token):
                turn["content"] = str(turn["content"]).removesuffix(str(token))
    return list(turns)


def _between_marks(text: str, count: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    pieces = []
    for i in range(count):
        piece, mark, text = text.partition(_MARK.format(i))
        if not mark:
            raise ModelError(f"the chat template of {_name(tokenizer)} leaves out an answer; repair the template")
        pieces.append(piece)
    return [*pieces, text]


def _start_of_answer(
    piece: str, heard: str, template: _Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, str]:
    """Where the generation prompt ends in the text before an answer, and what of it the finished turn does not keep.

    Never before the words that the answer is to: the prompt is not trained (F6).
    """
    opening = template.opening or template.closing
    start = piece.rfind(opening)
    if start >= 0 and heard in piece[: start + len(opening)]:
        return start + len(opening), ""
    for size in range(len(opening) - 1, 0, -1):
        if piece.endswith(opening[:size]):
            return len(piece), opening[size:]
    raise _unclear(tokenizer, piece)


def _unclear(tokenizer: PreTrainedTokenizerBase, text: str) -> DataError:
    return DataError(
        f"the chat template of {_name(tokenizer)} renders an answer so that its beginning or end cannot be told in "
        f"{_shown(text, 300)}; leave the row out, or simplify the template"
    )


def _shown(text: Any, most: int = 80) -> str:
    shown = repr(str(text))
    return shown if len(shown) <= most else f"{shown[: most // 2]} … {shown[-most // 2 :]}"


# --- ids -------------------------------------------------------------------------------------------------------------


def _tokenize(requests: Iterable[_Request], tokenizer: PreTrainedTokenizerBase) -> dict[_Request, list[int]]:
    """Each text once, many at a time."""
    wanted = list(dict.fromkeys(requests))
    known: dict[_Request, list[int]] = {}
    for whole, literal in ((True, False), (False, False), (False, True)):
        part = [request for request in wanted if (request.whole, request.literal) == (whole, literal)]
        if part:
            texts = [request.text for request in part]
            options: dict[str, Any] = {"split_special_tokens": True} if literal else {}
            ids = tokenizer(texts, add_special_tokens=whole, verbose=False, **options)["input_ids"]
            known.update(zip(part, ids, strict=True))
    return known


def _assemble(
    draft: _Draft, ids: Mapping[_Request, list[int]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[EncodedGroup | int, bool]:
    """The encoded group, and whether a response was cut; the prompt's length where that leaves no room."""
    prompt = tuple(ids[draft.prompt])
    responses = [
        _given(response) if response.ids is not None else _join(draft, k, ids, tokenizer)
        for k, response in enumerate(draft.group.responses)
    ]
    if not prompt:
        prompt, responses = _borrow(responses)
    if max_length is not None and len(prompt) + bool(responses) > max_length:
        return len(prompt), False
    room = None if max_length is None else max_length - len(prompt)
    kept = tuple(EncodedResponse(response.ids[:room], response.mask[:room], None) for response in responses)
    return EncodedGroup(prompt, kept, draft.group), any(
        len(a.ids) < len(b.ids) for a, b in zip(kept, responses, strict=True)
    )


def _given(response: Response) -> EncodedResponse:
    ids = tuple(response.ids or ())
    return EncodedResponse(ids, (True,) * len(ids))


def _join(
    draft: _Draft, k: int, ids: Mapping[_Request, list[int]], tokenizer: PreTrainedTokenizerBase
) -> EncodedResponse:
    """A response's spans as one row of ids, with at most one end token in each that is trained."""
    tokens: list[int] = []
    mask: list[bool] = []
    end = draft.ends[k]
    ends = {end} if isinstance(draft.group.prompt, str) else set(end_ids(tokenizer))
    for span in draft.responses[k]:
        part = _span_ids(span, ids, draft.anchored)
        if span.trained and ends & set(part[:-1]):
            part = _literally(span, tokenizer)
            if ends & set(part[:-1]):
                raise DataError(
                    f"a response goes on after an end token in {_shown(span.text)}; remove it from the text"
                )
        tokens += part
        mask += [span.trained] * len(part)
    if end is not None and tokens[-1:] != [end]:
        tokens.append(end)
        mask.append(True)
    if not any(mask):
        raise DataError(
            f"there is nothing to train on in the response {_shown(draft.group.responses[k].text)} to "
            f"{_shown(draft.group.prompt_text)}: it is empty and not finished; leave the row out"
        )
    return EncodedResponse(tuple(tokens), tuple(mask))


def _span_ids(span: _Span, ids: Mapping[_Request, list[int]], anchored: bool) -> list[int]:
    if anchored and span.before:
        before, both = ids[_Request(span.before)], ids[_Request(span.before + span.text)]
        if both[: len(before)] == before:
            return both[len(before) :]
    return ids[_Request(span.text)]


def _literally(span: _Span, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a span whose words spell an end token: words end nothing, whoever wrote them."""
    start, stop = span.words
    parts = [
        _Request(span.text[:start]),
        _Request(span.text[start:stop], literal=True),
        _Request(span.text[stop:]),
    ]
    ids = _tokenize(parts, tokenizer)
    return [token for part in parts for token in ids[part]]


def _borrow(responses: list[EncodedResponse]) -> tuple[tuple[int, ...], list[EncodedResponse]]:
    """A prompt for groups without one: nothing precedes the first token, so it is forced and cannot be trained."""
    firsts = {response.ids[:1] for response in responses}
    if len(firsts) != 1 or () in firsts:
        raise DataError("a prompt has no tokens; give it at least one (the tokenizer puts none before an empty text)")
    rest = [EncodedResponse(response.ids[1:], response.mask[1:]) for response in responses]
    if not all(any(response.mask) for response in rest):
        raise DataError("a row has an empty prompt and one response token, so nothing to train on; leave the row out")
    return firsts.pop(), rest


def _too_long(length: int, max_length: int | None) -> str:
    return f"a prompt of {length} tokens leaves no room in max_length {max_length}; shorten it or raise max_length"

"""What a chat template puts around the words of the user and those of the assistant, found by rendering examples.

Stock templates do not tell which of their text the assistant wrote (F6). So one question and its answer are rendered
with a mark in place of each; the text around the marks is the template's.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from kleash.data.group import Message
from kleash.data.template_columns import LISTS
from kleash.errors import DataError, KleashError, ModelError

MARK = "\ue000{}\ue001"
"""Placeholder for a text: private-use characters, which no template trims and no text contains."""

SECONDS = 10.0
"""Longest time for one conversation; the longest ones take some milliseconds."""


LONGEST = 1_000_000
"""Most characters that a template may add; with ten times what it was given, for templates that repeat the turns."""


@dataclass(frozen=True)
class ChatTemplate:
    """What a chat template puts around the words of the user and those of the assistant."""

    opening: str
    """The generation prompt; empty where the template has none (Mistral)."""
    closing: str
    """From the end of a user's words to the beginning of the answer."""
    ending: str
    """From the end of the last answer to its end token, that included."""
    end_id: int
    end_token: str
    prepends: bool
    """Whether a word at the start of a text has another id than after a line break (SentencePiece's leading space)."""


P = ParamSpec("P")
T = TypeVar("T")


def per_tokenizer(
    measure: Callable[Concatenate[PreTrainedTokenizerBase, P], T],
) -> Callable[Concatenate[PreTrainedTokenizerBase, P], T]:
    """A function that measures a tokenizer once, and again when its template or its vocabulary changes."""
    memory: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, dict[str, T]]] = WeakKeyDictionary()

    @wraps(measure)
    def remembered(tokenizer: PreTrainedTokenizerBase, /, *args: P.args, **kwargs: P.kwargs) -> T:
        state = tokenizer.chat_template, len(tokenizer)
        entry = memory.get(tokenizer)
        if entry is None or entry[0] != state:
            entry = memory[tokenizer] = state, {}
        key = repr((args, kwargs))
        if key not in entry[1]:
            entry[1][key] = measure(tokenizer, *args, **kwargs)
        return entry[1][key]

    return remembered


def template_of(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None = None) -> ChatTemplate:
    """A tokenizer's template, analysed once for each way to ask for an answer.

    Args:
        tokenizer: the model's.
        variables: a row's, see `template_variables`; they may change the generation prompt (Qwen3's `enable_thinking`).

    Raises:
        ModelError: there is no template, or it cannot be used; the message says why.
    """
    settings = {name: value for name, value in (variables or {}).items() if name not in LISTS}
    return _measure(tokenizer, settings)


def end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's end token, and the one that its template puts after an answer.

    Raises:
        ModelError: it has neither.
    """
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template is not None:
        try:
            ends.append(template_of(tokenizer).end_id)
        except ModelError:
            if not ends:
                raise
    if not ends:
        raise ModelError(f"{name_of(tokenizer)} has no end token; set `eos_token` in its tokenizer_config.json")
    return tuple(dict.fromkeys(ends))


def render(
    turns: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    variables: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Turns as the template's text.

    Args:
        turns: of a conversation.
        tokenizer: whose template.
        variables: what the template reads beside the turns, see `template_variables`.
        add_generation_prompt: whether to ask for an answer.

    Raises:
        ModelError: the tokenizer has no template, or one that does not end within `SECONDS` or within `LONGEST`.
        DataError: the template refuses the turns.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{name_of(tokenizer)} has no chat template, and the data are turns; "
            "use a model with a chat template, or data in plain text"
        )
    plain = [dict(turn) for turn in turns]
    try:
        with _time_limit(tokenizer):
            text = tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=add_generation_prompt, **dict(variables or {})
            )
    except KleashError:
        raise
    except Exception as error:  # of any kind: a template is a program
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        roles = ", ".join(str(turn["role"]) for turn in turns)
        raise DataError(f"the chat template refuses turns by {roles} ({reason}); correct the row") from None
    size = sum(len(str(turn)) for turn in plain) + len(str(variables))
    if len(text) > LONGEST + 10 * size:
        raise ModelError(
            f"the chat template of {name_of(tokenizer)} makes {len(text):,} characters of {size:,}; correct the "
            "template"
        )
    return str(text)


@contextmanager
def _time_limit(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Stop a template that loops for ever, in the main thread of a system with alarms; elsewhere nothing is limited."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise ModelError(
            f"the chat template of {name_of(tokenizer)} did not end within {SECONDS:g} seconds; correct the template"
        )

    before = signal.signal(signal.SIGALRM, stop)
    others = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *others)  # an alarm that somebody else has set


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenizer in messages."""
    return f"the tokenizer {tokenizer.name_or_path}".strip()


@per_tokenizer
def _measure(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> ChatTemplate:
    question, answer = MARK.format(0), MARK.format(1)
    turns: list[Message] = [{"role": "user", "content": question}]
    try:
        without_opening = render(turns, tokenizer, variables, add_generation_prompt=False)
        with_opening = render(turns, tokenizer, variables)
        answered = [*turns, {"role": "assistant", "content": answer}]
        full = render(answered, tokenizer, variables, add_generation_prompt=False)
    except DataError as error:
        raise ModelError(
            f"{name_of(tokenizer)} cannot render one question and its answer ({error}); correct its chat template"
        ) from None
    if question not in with_opening or answer not in full:
        raise ModelError(
            f"the chat template of {name_of(tokenizer)} leaves out the content of a turn; correct the template"
        )
    if full.count(question) > with_opening.count(question) or full.count(answer) > 1:
        raise ModelError(
            f"the chat template of {name_of(tokenizer)} repeats the words of a turn in the assistant's, where they are "
            "trained; correct the template"
        )
    tail = full.rpartition(answer)[2]
    end_id, end_token = _first_control_token(tail, tokenizer)
    return ChatTemplate(
        opening=with_opening[len(without_opening) :] if with_opening.startswith(without_opening) else "",
        closing=with_opening.rpartition(question)[2],
        ending=tail[: tail.index(end_token) + len(end_token)],
        end_id=end_id,
        end_token=end_token,
        prepends=_prepends(tokenizer),
    )


def last_control_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The last control token that a text spells; None where it spells none."""
    tokens = controls_in(text, tokenizer)
    return tokens[-1][1] if tokens else None


def _first_control_token(tail: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """Id and text of the first control token after an answer: it ends the answer."""
    tokens = controls_in(tail, tokenizer)
    if not tokens or tokens[0][1] not in tail:
        raise ModelError(
            f"the chat template of {name_of(tokenizer)} puts no end token after an answer, so that no model could "
            "learn to stop; end assistant turns with `eos_token` in the template"
        )
    return tokens[0]


def controls_in(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, str]]:
    """Ids and texts of the control tokens in a text, in their order."""
    special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    controls = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()} | special
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [(token, controls[token]) for token in ids if token in controls]


def _prepends(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word has another id at the start of a text than after a line break."""
    line_break, word, joined = tokenizer(["\n", "a", "\na"], add_special_tokens=False)["input_ids"]
    return bool(joined[: len(line_break)] == line_break and joined[len(line_break) :] != word)

"""Stop texts: a response ends with the token that completes the first of them.

A stop text is searched in the text of the response, which begins after the prompt and has no control tokens. The token
that completes it is the last one of the response, whatever else it holds, and is trained on like the others; the text
that people and rewards read ends before the stop text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from kleash.errors import ConfigError

logger = logging.getLogger("kleash")

LINE_BREAK_IN_LETTERS = re.compile(r"\\[nt](?![a-z])")
"""A shell's or YAML's plain quotes leave a backslash and a letter where a line break was meant; LaTeX's commands go on
with small letters."""

Tail = list[int]
"""The last tokens of a response that its text shows."""


class StopTexts:
    """Finds the end of responses that some texts end.

    Only the last tokens of a response are decoded, as many as the longest text can span, so that the time is linear in
    the response's length.

    Args:
        texts: none of them empty.
        tokenizer: decodes the responses.

    Attributes:
        end_ids: those of the texts that are control tokens (`<|im_end|>`): the token ends a response, no text does.

    Raises:
        ConfigError: a text holds a control token and more, so that no response's text could have it.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        controls = control_tokens(tokenizer)
        self.end_ids = tuple(controls[text] for text in texts if text in controls)
        self.texts = tuple(text for text in texts if text not in controls)
        for text in self.texts:
            if control := next((control for control in controls if control in text), None):
                raise ConfigError(
                    f"the stop text {text!r} holds the control token {control!r}, which the text of a response never "
                    "shows; give the token by itself as a stop text"
                )
            if LINE_BREAK_IN_LETTERS.search(text):
                logger.warning(
                    "the stop text %s holds a backslash and a letter; a line break is $'\\n' in the shell", text
                )
        self._tokenizer = tokenizer
        self._hidden = frozenset(controls.values())
        # A token is a byte at least, and a decoder may drop the space before it.
        self._window = 2 * max((len(text.encode()) for text in self.texts), default=0) + 4

    def completed(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each response has a stop text among its last tokens."""
        if not self.texts:
            return [False] * len(rows)
        tails: list[Tail] = [[] for _ in rows]
        for tail, ids in zip(tails, rows, strict=True):
            for token in reversed(ids):
                if len(tail) == self._window:
                    break
                if token not in self._hidden:
                    tail.append(token)
            tail.reverse()
        return self._search(tails)

    def extend(self, tails: Sequence[Tail], tokens: Sequence[int]) -> list[bool]:
        """Add a token to the tail of each response, in place; whether it completes a stop text."""
        if not self.texts:
            return [False] * len(tokens)
        for tail, token in zip(tails, tokens, strict=True):
            if token not in self._hidden:
                tail.append(token)
                del tail[: -self._window]
        return self._search(tails)

    def cut(self, text: str) -> str:
        """A response's text without the stop text that ended it."""
        return text[: min((at for stop in self.texts if (at := text.find(stop)) >= 0), default=len(text))]

    def _search(self, tails: Sequence[Tail]) -> list[bool]:
        texts = self._tokenizer.batch_decode(list(tails), skip_special_tokens=True)
        for row, text in enumerate(texts):
            shift = 0
            while text.startswith("\ufffd") and shift < 3:  # a tail that begins amid a character of up to four bytes
                shift += 1
                text = str(self._tokenizer.decode(tails[row][shift:], skip_special_tokens=True))
            texts[row] = text
        return [any(stop in text for stop in self.texts) for text in texts]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that decoding leaves out of a text: token → id."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return added | named

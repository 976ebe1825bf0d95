"""The answer in a reply: without the thoughts of a reasoning model, and without the words that announce a revision."""

from __future__ import annotations

import re

_TAGS = r"(?:think|thinking|thought|thoughts|reasoning|reflection)"
_OPENED = re.compile(rf"\s*<{_TAGS}>", re.IGNORECASE)
_TAG = re.compile(rf"<{_TAGS}>", re.IGNORECASE)
_CLOSED = re.compile(rf".*</{_TAGS}>", re.IGNORECASE | re.DOTALL)

_POLITE = r"(?:(?:sure|certainly|of course|absolutely|okay|ok|understood|you[’']re right)\b[^\n:]{0,80}?[.,!:] )?"
_VERB = r"(?:revised|rewritten|rewrote|updated|improved|corrected|edited|reworded)"
_NOUN = r"(?:response|version|answer|reply|message)"
_REVISION = rf"\b(?:{_VERB}\s+(?:\w+\s+){{0,3}}{_NOUN}|revision|rewrite)\b"
_ANNOUNCEMENT = re.compile(
    rf"[*_#\s]*{_POLITE}(?:"
    rf"(?:here(?:[’']s| is)|below is|this is|i(?:[’']ve| have)?)\b[^\n:]{{0,80}}?{_REVISION}[^\n:]{{0,120}}"
    rf"|(?:(?:my|the) )?(?:{_VERB} {_NOUN}|{_VERB}|revision)"
    rf"):[*_]*(?:\s+|$)",
    re.IGNORECASE,
)


def without_thoughts(text: str) -> str:
    """A reply without `<think>…</think>` at its beginning; empty where the thoughts do not end.

    A template may have opened the tag in the prompt, so that the reply only closes it.
    """
    begins, end = _OPENED.match(text), _CLOSED.match(text)
    if not begins and (end is None or _TAG.search(text)):
        return text
    return text[end.end() :].lstrip() if end else ""


def without_announcement(text: str) -> str:
    """A revision without the line before it that says so: "Here is the revised response:"."""
    announcement = _ANNOUNCEMENT.match(text)
    return text[announcement.end() :] if announcement else text

r"""The final answer in a response: where a person would look for it, and nowhere else.

1. Reasoning is not read: `<think>…</think>` and its like, closed or not, opened in the response or before it.
2. Where there is `<answer>…</answer>`, only the last one counts.
3. Among the answers that are marked as such (`\boxed{5}`, `#### 5`, "the answer is 5", "Answer: 5") the last counts,
   unless a correction with another answer follows ("wait, no, it is 6").
4. Where none is marked, the last expression of the last sentence that has one.

An answer with an alternative ("5, or maybe 6") is all of them. Functions of text, in linear time; this module imports
neither torch nor computer algebra.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LONGEST = 20_000
"""Characters at the end of a response in which its answer is looked for."""

LONGEST_LINE = 600
"""Characters after "the answer is" in which the answer is looked for."""

MOST_MARKS = 20
"""Marked answers, from the last, that are tried until one can be read."""

# --- reasoning -------------------------------------------------------------------------------------------------------

_WORD = (
    r"(?:think|thinks|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis|rationale|cot|inner_?thoughts)"
)
_REASONING = re.compile(
    rf"(?P<open><{_WORD}>|<\|(?:begin|start)_?(?:of_?)?{_WORD}\|>|<\|{_WORD}(?:_start)?\|>|\[{_WORD}\]|◁{_WORD}▷"
    r"|<\|channel\|>(?:analysis|commentary)<\|message\|>)"
    rf"|(?P<close></{_WORD}>|<\|end_?(?:of_?)?{_WORD}\|>|<\|/{_WORD}\|>|<\|{_WORD}_end\|>|\[/{_WORD}\]|◁/{_WORD}▷"
    r"|<\|channel\|>final<\|message\|>)",
    re.IGNORECASE,
)
_ANSWER_TAG = re.compile(r"<answer>|<\|(?:begin|start)_of_(?:solution|answer)\|>", re.IGNORECASE)
_ANSWER_END = re.compile(r"</answer>|<\|end_of_(?:solution|answer)\|>", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[\w/-]{1,40}\|>|</s>")


def answer_part(text: str) -> str:
    """A response without its reasoning; of several `<answer>` blocks the last. Empty where there is only reasoning."""
    part = without_reasoning(text)
    begins = list(_ANSWER_TAG.finditer(part))
    if begins:
        part = _ANSWER_END.split(part[begins[-1].end() :], maxsplit=1)[0]
    return _SPECIAL.sub(" ", _ANSWER_END.sub(" ", part))[-LONGEST:].strip()


def without_reasoning(text: str) -> str:
    """A response without its reasoning. An end without a beginning ends reasoning that the prompt's template began."""
    outside: list[str] = []
    start: int | None = 0  # of the text outside of reasoning; None within it
    for tag in _REASONING.finditer(text):
        if tag["open"]:
            if start is not None:
                outside.append(text[start : tag.start()])
                start = None
        else:
            outside = outside if start is None else []
            start = tag.end()
    if start is not None:
        outside.append(text[start:])
    return " ".join(outside)


# --- marked answers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """An answer that is marked as the answer."""

    start: int
    end: int
    text: str
    boxed: bool


@dataclass(frozen=True)
class FinalAnswer:
    """The final answer of a response, as text."""

    text: str
    alternatives: tuple[str, ...] = ()
    """What the response gives beside it ("or maybe 6"): right only if they are the answer too."""
    boxes: tuple[str, ...] = ()
    """The boxed answers since the last correction, several of which may be the answer together."""


_BOX = re.compile(r"\\(?:boxed|fbox)\s*+(?:(\{)|(?=[\w$\\]))")
_ANNOUNCED = re.compile(
    r"####[^\S\n]*"
    r"|(?:\b(?:answer|solution|result)s?\b(?:[^\S\n]{1,3}(?:to|of|for|in|here|then|therefore|thus)\b[^.:=\n]{0,80}?)?"
    r"[*_\"”)]{0,3}(?:[^\S\n]{0,3}(?::|=|→|[-–—](?=[^\S\n])|\b(?:is|are|would be|should be|must be|equals)\b)"
    r"[*_]{0,3})"
    r"|^[*_]{0,3}A[*_]{0,3}[:=]|\banswer[*_]{0,3}[^\S\n]{1,3}(?=[-−$\\\d(\[])|^[#*_ ]{0,6}(?:final )?answer[*_]{0,3}$)",
    re.IGNORECASE | re.MULTILINE,
)

_NUMERAL = r"(?<!\d)[-−]?[$€£]?[-−]?(?:\d[\d.,]*+|\.\d++)(?:/\d++)?+%?"
_EXPRESSION = rf"(?:\\boxed\s?\{{[^{{}}]{{0,80}}\}}|\$[^$\n]{{1,80}}\$|\*\*[^*\n]{{1,40}}\*\*|{_NUMERAL})"

_DENIED = re.compile(
    rf"(?:\bnot|n['’]t|\bnever|\brather than|\binstead of|\bother than)\s{{1,3}}(?:(?:be|equal|to|the|just|simply|"
    rf"answer|is)\s{{1,3}}){{0,3}}{_EXPRESSION}"
    rf"|\b(?:more|less|greater|fewer|larger|smaller) than\s{{1,3}}{_EXPRESSION}"
    rf"|{_EXPRESSION}\s{{1,3}}(?:is|was|would be)\s{{1,3}}"
    r"(?:wrong|incorrect|false|not (?:right|correct|it\b|the answer))",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|corrected|scratch that|strike that|sorry|oops|on (?:second thought|reflection)"
    r"|i made an? \w+|i meant|let me (?:correct|fix|redo|revise|recompute|recalculate)|hold on|nope|hmm)\b"
    r"|\bno\b(?=\s{0,3}[,.:;!—–-])|\bor rather\b|\bshould (?:instead |really |actually )?be (?=[-−$\\*\d])",
    re.IGNORECASE,
)
_RETRACTION = re.compile(
    r"\b(?:wrong|incorrect|mistaken|not (?:right|correct|true)|scratch that|strike that|ignore that|disregard)\b",
    re.IGNORECASE,
)
_CONFIRMATION = re.compile(
    r"\b(?:yes|correct|confirmed|indeed|checks out|that works|is right|all good)\b", re.IGNORECASE
)
_ALTERNATIVE = re.compile(
    r"(?:\bor\b(?: (?:maybe|perhaps|possibly|else|even))?|\balternatively,?|\bmaybe|\bperhaps|\bpossibly"
    r"|\b(?:could|might|may) (?:also |well )?be|\belse)\s{0,3}(?:it(?:['’]s| is) )?(?:even )?"
    rf"(?P<value>{_EXPRESSION})",
    re.IGNORECASE,
)


def boxed(text: str) -> list[Mark]:
    r"""The contents of every `\boxed{…}`, in order; one that does not end reaches to the end of the text."""
    boxes: list[Mark] = []
    end = 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            continue  # within the box before it
        if match[1]:
            end = _closing(text, match.end())
            boxes.append(Mark(match.start(), min(end + 1, len(text)), text[match.end() : end], True))
        else:
            word = re.compile(r"\\?\w+|\$[^$\n]{0,80}\$|\S").match(text, match.end())
            end = word.end() if word else match.end()
            boxes.append(Mark(match.start(), end, text[match.end() : end], True))
    return boxes


def _closing(text: str, start: int) -> int:
    """Where the brace closes that was opened before `start`; the text's length where it does not."""
    depth, place = 1, start
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        place = brace.start()
        if depth == 0:
            return place
    return len(text)


def marked(text: str) -> list[Mark]:
    """The marked answers of a text, in order."""
    boxes = boxed(text)
    marks: list[Mark] = list(boxes)
    starts = [box.start for box in boxes]
    for match in _ANNOUNCED.finditer(text):
        before = bisect_right(starts, match.start())
        if before and match.start() < boxes[before - 1].end:
            continue
        line_end = text.find("\n", match.end(), match.end() + LONGEST_LINE)
        content = text[match.end() : line_end if line_end >= 0 else match.end() + LONGEST_LINE]
        if not content.strip(" *_:$[\\") and line_end >= 0:  # the answer stands below
            below = re.compile(r"\s*(\\\[.{0,400}?\\\]|\$\$.{0,400}?\$\$|[^\n]*)", re.DOTALL).match(text, match.end())
            content = below[0] if below else ""
        if content.strip() and not _BOX.search(content):
            marks.append(Mark(match.start(), match.end() + len(content), content, False))
    return sorted(marks, key=lambda mark: mark.start)


def final_answer(
    part: str,
    read: Callable[[str], object | None],
    elsewhere: Callable[[str, Callable[[str], object | None]], str | None] | None = None,
) -> FinalAnswer | None:
    """The final answer of a response without its reasoning.

    Args:
        part: of a response, from `answer_part`.
        read: whether a text can be read as an answer: None where it cannot. A box counts though it cannot be read.
        elsewhere: the answer of a text without a marked one; None: `unmarked`.

    Returns:
        None where there is none, or it was taken back.
    """
    elsewhere = elsewhere or unmarked
    part = _DENIED.sub(" ", part)
    marks = marked(part)
    for place in reversed(range(max(0, len(marks) - MOST_MARKS), len(marks))):
        mark = marks[place]
        text, end = mark.text.strip(), mark.end
        if not mark.boxed:
            readable = _first_readable(_shortenings(mark.text), read)
            if readable is None and _IS_BOUND.match(mark.text):
                return None
            if readable is None:
                continue
            text = readable
            end = mark.start + max(part[mark.start : mark.end].find(readable), 0) + len(readable)
        tail = part[end:]
        correction = corrected_tail(tail)
        if correction is not None:
            corrected = elsewhere(tail[correction:], read)
            if corrected is not None:
                return FinalAnswer(corrected)
            if _RETRACTION.search(tail):
                return None
        elif _RETRACTION.match(tail.lstrip(" .,;:!)*$—–-").removeprefix("That").removeprefix(" is").lstrip()):
            return None
        since = _since_correction(part, marks[: place + 1])
        return FinalAnswer(
            text,
            tuple(match["value"] for match in _ALTERNATIVE.finditer(tail)),
            tuple(mark.text for mark in since if mark.boxed),
        )
    last = elsewhere(part, read)
    return None if last is None else FinalAnswer(last)


def corrected_tail(tail: str) -> int | None:
    """Where the text after the last correction begins; None where there is none, or it confirms the answer."""
    ends = [match.end() for match in _CORRECTION.finditer(tail)]
    if not ends:
        return None
    last_words = tail.rstrip()[-40:]
    if _CONFIRMATION.search(last_words) and not _RETRACTION.search(last_words):
        return None
    return ends[-1]


def _since_correction(part: str, marks: list[Mark]) -> list[Mark]:
    """The last marks with no correction between them."""
    since = marks[-1:]
    for mark in reversed(marks[:-1]):
        if _CORRECTION.search(part, mark.end, since[0].start):
            break
        since.insert(0, mark)
    return since


def without_corrected(part: str) -> str:
    """A part from the last correction that an answer follows: what stands before it was taken back."""
    marks = marked(part)
    before = [match.end() for match in _CORRECTION.finditer(part) if marks and match.end() <= marks[-1].start]
    return part[before[-1] :] if before else part


# --- unmarked answers ------------------------------------------------------------------------------------------------

_MATHS = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)"
    r"|(?<![\\$])\$(?!\s)([^$\n]{1,2000}?)(?<![\s\\])\$(?!\d)",
    re.DOTALL,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[*_\"”)]{0,3}\s+(?=[^\s\da-z])|\n+|(?<=[a-z)\]}$!?][.!?])\s+")
_SIGN = re.compile(r"[\d$√π∞∅½⅓⅔¼¾⅕⅙⅛]|\\[a-zA-Z(\[{]|\binfinity\b")
_CONNECTOR = re.compile(
    r"(?<![<>!≤≥:=])=(?!=)|:(?!\d)|→|⇒|=>"
    r"|\b(?:is|are|was|were|be|equals?|gets?|gives?|have|has|obtain|yields?|so|therefore|thus|hence|then|get|have"
    r"|it['’]s|that['’]s|there['’]s|say|choose|pick|guess|think|to|of|exactly|about|approximately|roughly|around|costs?)\b",
    re.IGNORECASE,
)
_STOP = (
    r"because|since|as|which|when|where|for|so|that|with|if|after|by|but|while|given|using|from|though|although|would|"
    r"and (?:so|the|this|it|that|we)|in|on|at|left|altogether|total|per (?:the|our)|is|are|was|were|"
    r"we|you|he|she|they|it|there"
)
_CUT = re.compile(rf"\s*[,;(—–]?\s+(?:{_STOP})\b|\s*[;—]\s|,\s+(?=[a-z]{{3}})|\s+\(", re.IGNORECASE)
_LEADING = re.compile(
    r"^(?:[\s*_:`\"“=]+|(?:therefore|thus|so|hence|approximately|about|roughly|around|exactly|simply|just|equal to"
    r"|given by|now|then|clearly|indeed|actually|probably|definitely|likely|also|but|a total of|only|rather)"
    r"\b[,:]?)+",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"[-+*/^=<>≤≥]\s*$|[a-zA-Z\\({\[]$|\b(?:at least|at most|above|below|under|over|up to|nearly|almost)\s*$"
)
"""What stands before a number that is not the answer: a sign of an expression, a bound."""
_IS_BOUND = re.compile(r"\W*(?:at least|at most|above|below|under|over|up to|nearly|almost|between)\b", re.IGNORECASE)
_RUN = re.compile(
    rf"(?<![{{^_\\\w.]){_NUMERAL}(?:\s?%)?(?:(?:\s{{0,3}}(?:[,;|]|\bor\b|\band\b|\bto\b)\s{{0,3}}(?:\bor\b|\band\b)?\s{{0,3}}|\s{{1,3}})"
    rf"{_NUMERAL})*"
)


def unmarked(text: str, read: Callable[[str], object | None]) -> str | None:
    """The last expression of the last sentence that has one; None where no expression can be read."""
    whole = text.strip()
    if len(whole) <= 400 and (readable := _first_readable([whole], read)) is not None:
        return readable
    spans = [match for match in _MATHS.finditer(text)]
    sentences = [sentence for sentence in _sentences(text, spans) if _SIGN.search(sentence)]
    if not sentences:
        return None
    return _first_readable(_readings(sentences[-1][-2000:]), read)


def _sentences(text: str, spans: list[re.Match[str]]) -> list[str]:
    """The sentences of a text; none ends within mathematics."""
    inside = [(span.start(), span.end()) for span in spans]
    cuts, place = [0], 0
    for end in _SENTENCE_END.finditer(text):
        while place < len(inside) and inside[place][1] <= end.start():
            place += 1
        if place == len(inside) or not inside[place][0] < end.start() < inside[place][1]:
            cuts.append(end.end())
    return [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _readings(sentence: str) -> Iterator[str]:
    """What may be the answer of a sentence, the likeliest first."""
    yield sentence
    connectors = list(_CONNECTOR.finditer(_hide_maths(sentence)))
    for connector in reversed(connectors[-6:]):
        rest = sentence[connector.end() :]
        yield from _shortenings(rest)
        if _SIGN.search(rest):
            break
    spans = list(_MATHS.finditer(sentence))
    runs = list(_RUN.finditer(_hide_maths(sentence)))
    if spans and (not runs or spans[-1].end() > runs[-1].start()):
        yield _joined(sentence, spans)
    if runs and _is_whole(runs[-1]):
        yield runs[-1].group()
    if spans:
        yield _joined(sentence, spans)


def _shortenings(content: str) -> Iterator[str]:
    """What follows "the answer is": all of it, its first sentence, up to a conjunction, its first expressions."""
    content = _LEADING.sub("", content).strip()
    yield content
    spans = list(_MATHS.finditer(content))
    sentence = next(iter(_sentences(content, spans)), "")
    yield sentence
    if spans and not _hide_maths(sentence)[: spans[0].start()].strip(" *_"):
        yield _joined(sentence, list(_MATHS.finditer(sentence)), first=True)
    hidden = _hide_maths(sentence)
    cut = _CUT.search(hidden)
    if cut and not re.search(r"\d", hidden[cut.start() :].split("(")[0]) and cut.start():
        yield sentence[: cut.start()]
    runs = list(_RUN.finditer(hidden))
    if len(runs) == 1 and not spans and not _BOUND.search(hidden[: runs[0].start()]) and _is_whole(runs[0]):
        yield runs[0].group()


def _is_whole(run: re.Match[str]) -> bool:
    """Whether a run of numbers is not the beginning of a longer expression."""
    return (
        re.compile(r"\s*(?:\\(?:frac|[dt]frac|sqrt|pi|cdot|times|cup)|[/^_*+√π²³])").match(run.string, run.end())
        is None
    )


def _hide_maths(text: str) -> str:
    """A text of the same length with its mathematics blanked."""
    return _MATHS.sub(lambda match: "\x00" * len(match[0]), text)


def _joined(sentence: str, spans: list[re.Match[str]], *, first: bool = False) -> str:
    """The last (or first) spans of mathematics that only separators part, as one text."""
    if not spans:
        return ""
    order = spans if first else spans[::-1]
    run = [order[0]]
    for span in order[1:]:
        a, b = (run[-1].end(), span.start()) if first else (span.end(), run[-1].start())
        if not re.fullmatch(r"\s*(?:[,;]|\bor\b|\band\b|\s)+\s*", sentence[a:b]):
            break
        run.append(span)
    run = sorted(run, key=lambda span: span.start())
    return sentence[run[0].start() : run[-1].end()]


def _first_readable(texts: Iterator[str] | list[str], read: Callable[[str], object | None]) -> str | None:
    tried: set[str] = set()
    for text in texts:
        text = text.strip()
        if text and text not in tried and read(text) is not None:
            return text
        tried.add(text)
    return None


# --- answers in words ------------------------------------------------------------------------------------------------

_OPPOSITES = re.compile(r"\b(?:yes|no|true|false)\b", re.IGNORECASE)


def words_at_answer(part: str) -> Iterator[str]:
    """The words at the place of the answer, the fullest first: of the last marked answer, else of the last sentence."""
    marks = marked(part)
    if marks:
        mark = marks[-1]
        tail = part[mark.end :]
        if corrected_tail(tail) is not None:
            yield from _words_of(tail)
        elif not _RETRACTION.search(tail[:60]):
            yield from ([mark.text.strip()] if mark.boxed else _shortenings(mark.text))
        return
    yield from _words_of(part)


def _words_of(part: str) -> Iterator[str]:
    part = part.strip()
    if not part:
        return
    yield part
    sentences = [sentence for sentence in _sentences(part, list(_MATHS.finditer(part))) if re.search(r"\w", sentence)]
    if not sentences:
        return
    last = sentences[-1]
    if not re.search(r"\b(?:not|or|never|neither|nor)\b|n['’]t\b", last, re.IGNORECASE):
        yield last.strip(" .!*_")
        connectors = list(_CONNECTOR.finditer(last))
        for connector in connectors[-1:]:
            yield from _shortenings(last[connector.end() :].strip(" .!*_"))
    polarities = {match[0].lower() for match in _OPPOSITES.finditer(part)}
    if len(polarities) == 1:
        opening = _OPPOSITES.match(sentences[0].strip(" *_\"'")) or _OPPOSITES.match(last.strip(" *_\"'"))
        if opening:
            yield opening[0]

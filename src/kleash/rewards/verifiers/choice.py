"""A response is right if the option that it chooses is the answer's: "(A)", "Answer: C", "**B**", or the option's text.

A response that chooses several ("A or B"), lists every option, or names a letter only in its reasoning chooses none.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from kleash.rewards.final_answer import answer_part, corrected_tail, marked
from kleash.rewards.verifiers import ANSWER_COLUMNS, BadRowError, Outcome

NAME = "choice"
COLUMN = "answer"
OTHER_COLUMNS = (*ANSWER_COLUMNS, "answerKey", "label")
GUARDED = False
READS_ANSWER = True

OPTIONS = ("choices", "options", "endings")
"""Columns that may hold the options: a list of texts, `{"text": […], "label": […]}`, or labels → texts."""

_LETTERS = tuple(string.ascii_uppercase[:10])


def prepare(answer: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The answer's labels, all labels, and the options' texts, from a row.

    Raises:
        BadRowError: the answer is none of the options, or without options not a letter.
    """
    labels, texts = _options(columns)
    chosen = _labels_of(answer.strip(), labels, texts)
    if not chosen:
        options = f"one of {', '.join(labels)}" if texts else "a letter from A to J"
        raise BadRowError(
            f"the answer {answer[:60]!r} is not {options}; give the letter, the number or the option's text"
        )
    return {"answer": sorted(chosen), "labels": labels, "texts": texts}


def check(text: str, expected: Mapping[str, Any]) -> Outcome:
    """Compare the option that a response chooses with the answer's.

    Args:
        text: a response.
        expected: from `prepare`.
    """
    chosen = chosen_labels(answer_part(text), expected["labels"], expected["texts"])
    if not chosen:
        return "unparsable"
    return "right" if chosen == set(expected["answer"]) else "wrong"


def _options(columns: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The labels and the texts of a row's options; the letters and no texts where it has none."""
    value = next((columns[name] for name in OPTIONS if isinstance(columns.get(name), (list, tuple, Mapping))), None)
    if isinstance(value, Mapping) and "text" in value:
        texts = [str(text) for text in value["text"]]
        return [str(label) for label in value.get("label") or string.ascii_uppercase[: len(texts)]], texts
    if isinstance(value, Mapping):
        return [str(label) for label in value], [str(text) for text in value.values()]
    if value:
        texts = [
            re.sub(rf"^\s*\(?{letter}[).:]\s+", "", str(text))
            for letter, text in zip(string.ascii_uppercase, value, strict=False)
        ]
        return list(string.ascii_uppercase[: len(texts)]), texts
    return list(_LETTERS), []


def _labels_of(answer: str, labels: Sequence[str], texts: Sequence[str]) -> set[str]:
    """The labels that a row's answer names: a label, several, the text of an option, or its number from 0."""
    if answer in labels:
        return {answer}
    text = _bare(answer)
    by_text = [label for label, option in zip(labels, texts, strict=False) if _bare(option) == text]
    if len(by_text) == 1:
        return set(by_text)
    bare = answer.strip(" ().:*[]").upper()
    upper = {label.upper(): label for label in labels}
    if bare in upper:
        return {upper[bare]}
    if re.fullmatch(r"\d{1,2}", bare) and int(bare) < len(labels):
        return {labels[int(bare)]}
    several = re.split(r"\s*(?:,|;|&|\band\b)\s*", bare.replace("AND", "and"))
    if len(several) > 1 and all(item in upper for item in several):
        return {upper[item] for item in several}
    first = re.match(r"\(?([A-Za-z])[).:]\s", answer)
    return {upper[first[1].upper()]} if first and first[1].upper() in upper else set()


def _bare(text: str) -> str:
    return " ".join(re.sub(r"[*_`\"“”$]|[.!]+$", "", text).lower().split())


# --- the choice of a response ----------------------------------------------------------------------------------------

_LEADING = re.compile(
    r"(?:[\s*_(\[{\"'“:$=,.;!—–-]|\\(?:text|mathrm|textbf|mathbf)\s*\{|\b(?:the|option|choice|letter|answer|statement|number|is|definitely"
    r"|probably|clearly|indeed|therefore|thus|so|actually|likely|then|correct|best|one)\b)*",
    re.IGNORECASE,
)
_JOIN = re.compile(
    r"[\s*_)}\]\"']*(?:,|/|;|\||&|\bor\b|\band\b|\bboth\b)+(?:\s*(?:or|and|maybe|perhaps|possibly|even)\b)*"
    r"[\s*_({\[\"']*(?:option |choice )?",
    re.IGNORECASE,
)
_CHOOSES = re.compile(
    r"\b(?:option|choice|letter|select|choose|chose|pick|picked|is|be|it['’]s|with|so|therefore|thus|hence|say|guess|than|to|actually)"
    r"[\s:,*_(\"']{1,4}|\(|^[\s*_]*|\*\*",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|never|rather than|instead of|neither|nor)\s+(?:option |choice |the |answer )*\(?[A-J]\)?(?![\w'’])"
    r"|(?<![\w'’])\(?[A-J]\)?\s+(?:is|was|are|seems?|looks?|can be|would be)\s+(?:\w+\s+){0,2}?"
    r"(?:wrong|incorrect|false|not|eliminated|ruled)\b"
    r"|\b(?:eliminate|rule out|excludes?|discard|reject)\s+(?:option |choice )*\(?[A-J]\)?"
    r"(?:(?:, | and |, and )\(?[A-J]\)?)*(?![\w'’])",
)


def chosen_labels(part: str, labels: Sequence[str], texts: Sequence[str]) -> set[str]:
    """The labels that a response without its reasoning chooses; empty where it chooses none, or several with "or"."""
    part = _DENIED.sub(" ", part)
    marks = marked(part)
    for mark in reversed(marks):
        content = mark.text.strip()
        chosen = _chosen(content, labels, texts)
        if chosen is None:
            continue
        if not chosen:
            return set()
        tail = part[mark.end :] if mark.boxed else part[mark.end - len(mark.text) + _read_to(content, labels) :]
        if (correction := corrected_tail(tail)) is not None:
            later = _last_choice(tail[correction:], labels, texts)
            return later or set()
        return set() if _alternative(tail, labels, chosen) else chosen
    return _unmarked(part, labels, texts)


def _unmarked(part: str, labels: Sequence[str], texts: Sequence[str]) -> set[str]:
    if (correction := corrected_tail(part)) is not None and (later := _last_choice(part[correction:], labels, texts)):
        return later
    whole = _chosen(part, labels, texts) if len(part) < 400 and "\n" not in part.strip() else None
    if whole is not None:
        return whole
    lines = [line for line in part.split("\n") if line.strip()]
    starts = [label for line in lines if (label := _line_label(line, labels))]
    if len(set(starts)) > 1 and _line_label(lines[-1], labels):
        return set()  # a list of the options
    return _last_choice(part, labels, texts)


def _line_label(line: str, labels: Sequence[str]) -> str | None:
    match = re.match(rf"[\s*_(\[]*({_alternatives(labels)})[*_]*[).:\]]", line)
    return match[1] if match else None


def _last_choice(text: str, labels: Sequence[str], texts: Sequence[str]) -> set[str]:
    """The choice of the last sentence that makes one."""
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z(*])|\n+", text.strip()) if sentence.strip()]
    for sentence in reversed(sentences[-3:]):
        chosen = _chosen(sentence, labels, texts)
        if chosen is not None:
            return chosen
        for match in reversed(list(_CHOOSES.finditer(sentence))):
            chosen = _chosen(sentence[match.end() :], labels, ())
            if chosen is not None:
                return chosen
        by_text = {label for label, option in zip(labels, texts, strict=False) if _names(sentence, option)}
        if by_text:
            return by_text if len(by_text) == 1 else set()
    return set()


def _names(sentence: str, option: str) -> bool:
    return bool(option.strip()) and re.search(rf"(?<!\w){re.escape(_bare(option))}(?!\w)", _bare(sentence)) is not None


def _chosen(content: str, labels: Sequence[str], texts: Sequence[str]) -> set[str] | None:
    """The labels that a text begins with; None where it begins with none, empty where it leaves the choice open."""
    by_text = _option_of(content, labels, texts)
    if by_text is not None:
        return {by_text}
    first = _label_at(content, _leading(content, labels), labels)
    if first is None:
        return None
    label, end = first
    rest = content[end:]
    stated = _option_of(re.sub(r"^[\s).:*_\]\-–—}]+", "", rest), labels, texts)
    if stated is not None and stated != label:
        return set()  # the letter of one option and the text of another
    chosen = {label}
    either = False
    while (join := _JOIN.match(rest)) and (later := _label_at(rest, join.end(), labels)):
        either = either or re.search(r"\bor\b|/|\||maybe|perhaps", join[0], re.IGNORECASE) is not None
        chosen.add(later[0])
        rest = rest[later[1] :]
    return set() if either and len(chosen) > 1 else chosen


def _leading(content: str, labels: Sequence[str]) -> int:
    match = _LEADING.match(content)
    return match.end() if match else 0


def _label_at(text: str, start: int, labels: Sequence[str]) -> tuple[str, int] | None:
    """The label at a place, and where it ends. A small `a`, and `I`, are words where another word follows."""
    match = re.compile(rf"({_alternatives(labels)})(?![\w'’+^=<>])", re.IGNORECASE).match(text, start)
    if match is None:
        return None
    label = next(label for label in labels if label.upper() == match[1].upper())
    after = text[match.end() :]
    is_word = re.match(r"\s+[a-z]", after) and (match[1].islower() or match[1] == "I")
    if match[1] == "A" and re.match(
        r"\s+(?!because|since|as|is|and|or|with|for|due|which|by|so|though|but)[a-z]", after
    ):
        is_word = re.match(r"\s+\w", after)  # `A dog`
    return None if is_word or re.match(r"\s*[-+*/^=<>]\s*\d|[-–]\w", after) else (label, match.end())


def _read_to(content: str, labels: Sequence[str]) -> int:
    label = _label_at(content, _leading(content, labels), labels)
    return label[1] if label else len(content)


def _alternative(tail: str, labels: Sequence[str], chosen: set[str]) -> bool:
    """Whether what follows offers another choice: ", or maybe C"."""
    for match in re.finditer(
        r"\b(?:or|maybe|perhaps|possibly|alternatively|could (?:also )?be|might (?:also )?be)\b", tail, re.IGNORECASE
    ):
        label = _label_at(tail, _leading(tail[match.end() :], labels) + match.end(), labels)
        if label and label[0] not in chosen and not (label[0] in "AI" and tail[label[1] : label[1] + 1] == " "):
            return True
    return False


def _option_of(content: str, labels: Sequence[str], texts: Sequence[str]) -> str | None:
    """The label of the only option with this text."""
    bare = _bare(re.sub(r"^\\(?:text|boxed)\s*\{(.*)\}$", r"\1", content.strip()))
    matching = [label for label, option in zip(labels, texts, strict=False) if _bare(option) == bare]
    return matching[0] if len(matching) == 1 and bare else None


def _alternatives(labels: Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, labels), key=len, reverse=True))

"""Rows as the model sees them: every token, coloured by its role in the loss (`kleash inspect`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from kleash.data.chat import end_ids
from kleash.data.group import EncodedGroup, EncodedResponse, Group, Preference, Ranking, Scores
from kleash.data.unpaired import is_good
from kleash.errors import ModelError

ROLES = {
    "prompt": "dim",
    "trained": "bold green",
    "forced": "yellow",
    "end token": "bold black on green",
    "control token": "bold magenta",
}
"""Style of each role. Never only colour: the counts below each row and the brackets of forced text say it again."""

PARTS = ("prompt", "forced")
"""Roles of the tokens that are not trained, in which control tokens are shown as such."""


def show_rows(
    encoded: Sequence[EncodedGroup], tokenizer: PreTrainedTokenizerBase, console: Console, *, limit: int
) -> None:
    """Print rows token by token, with special tokens, white space and the role of each in the loss.

    Args:
        encoded: the groups as a stage would train on them.
        tokenizer: the one that encoded it.
        console: the output.
        limit: most rows to print.
    """
    console.print(_legend())
    ends = _ends(tokenizer)
    controls = frozenset(tokenizer.all_special_ids) | ends
    for number, group in enumerate(encoded[:limit], start=1):
        console.print()
        console.rule(Text(f"row {number}{_label(group.source)}"), align="left", style="dim")
        text = isinstance(group.source.prompt, str)
        console.print(_tokens(group.prompt_ids, ["prompt"] * len(group.prompt_ids), tokenizer, controls))
        count = f"{len(group.prompt_ids)} tokens, none trained"
        count += _control_count(group.prompt_ids, controls) if text else ""
        console.print(Text(f"prompt: {count}", style="italic"))
        for k, response in enumerate(group.responses):
            roles = _roles(response, ends, demonstration=is_good(group.source) is not False)
            console.print()
            console.print(_tokens(response.ids, roles, tokenizer, controls))
            count = _counts(roles) + (_control_count(response.ids, controls - ends) if text else "")
            console.print(Text(f"{_title(group.source, k)}: {count}", style="italic"))
    if len(encoded) > limit:
        console.print(f"\n… and {len(encoded) - limit} more")


def _legend() -> Text:
    text = Text()
    for role, style in ROLES.items():
        text.append(f"⟨{role}⟩" if role == "forced" else role, style=style)
        text.append("  ")
    return text.append(" ␣ space  ⏎ line break  ⇥ tab  · between tokens")


def _ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    try:
        return frozenset(end_ids(tokenizer))
    except ModelError:  # rows without an end token can be shown, too
        return frozenset()


def _roles(response: EncodedResponse, ends: frozenset[int], *, demonstration: bool) -> list[str]:
    def role(token: int, trained: bool) -> str:
        if not trained or not demonstration:
            return "forced"
        return "end token" if token in ends else "trained"

    return [role(token, trained) for token, trained in zip(response.ids, response.mask, strict=True)]


def _control_count(ids: Sequence[int], controls: frozenset[int]) -> str:
    """How many control tokens a plain text has: those that the tokenizer adds, and those that the text spells."""
    count = sum(token in controls for token in ids)
    return f", {count} control token{'s' * (count != 1)}" if count else ""


def _tokens(
    ids: Sequence[int], roles: Sequence[str], tokenizer: PreTrainedTokenizerBase, controls: frozenset[int]
) -> Text:
    text = Text()
    for place, (token, role) in enumerate(zip(ids, roles, strict=True)):
        first = place == 0 or roles[place - 1] != role
        last = place == len(ids) - 1 or roles[place + 1] != role
        if not first and not text.plain.endswith("\n"):
            text.append("·", style="dim")
        if role == "forced" and first:
            text.append("⟨", style=ROLES[role])
        visible = _visible(token, tokenizer)
        if role == "forced" and last:
            visible = f"{visible[:-1]}⟩\n" if visible.endswith("\n") else f"{visible}⟩"
        text.append(visible, style=ROLES["control token" if token in controls and role in PARTS else role])
    if text.plain.endswith("\n"):
        text.right_crop()
    return text


def _visible(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    if not text or "\ufffd" in text:  # a part of a character: its name in the vocabulary
        text = str(tokenizer.convert_ids_to_tokens(token))
    for plain, visible in ((" ", "␣"), ("\t", "⇥"), ("\r", "␍"), ("\n", "⏎\n")):
        text = text.replace(plain, visible)
    # Any other control character is shown by its number.
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)


def _counts(roles: Sequence[str]) -> str:
    trained = sum(role in ("trained", "end token") for role in roles)
    ended = "ends" if "end token" in roles[-1:] else "no end token"
    forced = f", {roles.count('forced')} forced" if "forced" in roles else ""
    return f"{len(roles)} tokens, {trained} trained{forced}, {ended}"


def _label(group: Group) -> str:
    label = group.label
    if is_good(group) is False:
        return " · labelled false: not a demonstration, not trained by sft"
    if isinstance(label, Preference):
        by = f" by {label.annotator}" if label.annotator else ""
        return f" · preference{by}, P(chosen is better) = {label.probability:g}"
    if isinstance(label, Ranking):
        return " · ranking"
    return " · scored" if isinstance(label, Scores) else ""


def _title(group: Group, k: int) -> str:
    label = group.label
    if isinstance(label, Preference):
        return ("chosen", "rejected")[k]
    if isinstance(label, Ranking):
        return f"response {k + 1}, rank {label.ranks[k]}"
    if isinstance(label, Scores):
        return f"response {k + 1}, {'no score' if math.isnan(label.values[k]) else f'score {label.values[k]:g}'}"
    return "response" if len(group.responses) == 1 else f"response {k + 1}"

"""Unpaired feedback: rows of a prompt, one response and a `label` that says whether the response is good.

A response that is labelled false is never a demonstration. For a comparison, responses labelled true and false of one
prompt are paired.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kleash.data.group import Group, Preference, prompt_key

LABELS = ("label", "kto_tag")
"""TRL's name and LLaMA-Factory's."""

VALUES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def is_good(group: Group) -> bool | None:
    """What the row's label says of its only response; None where it has no such label."""
    if len(group.responses) != 1 or group.label is not None:
        return None
    values = [VALUES.get(str(group.columns[name]).lower()) for name in LABELS if name in group.columns]
    return values[0] if values else None


def as_prompt(group: Group) -> Group:
    """A row without its responses and without what labels them."""
    labelled = is_good(group) is not None
    columns = {name: value for name, value in group.columns.items() if not (labelled and name in LABELS)}
    return Group(group.prompt, columns=columns)


def pair_by_label(groups: Iterable[Group]) -> list[Group]:
    """Comparisons of the responses to one prompt, the first labelled true with the first labelled false, and so on.

    Responses without a partner are left out.
    """
    by_prompt: dict[str, tuple[list[Group], list[Group]]] = {}
    for group in groups:
        bad, good = by_prompt.setdefault(repr((prompt_key(group.prompt), group.columns.get("tools"))), ([], []))
        (good if is_good(group) else bad).append(group)
    return [
        replace(
            chosen,
            responses=chosen.responses + rejected.responses,
            label=Preference(),
            columns={name: value for name, value in chosen.columns.items() if name not in LABELS},
        )
        for bad, good in by_prompt.values()
        for chosen, rejected in zip(good, bad, strict=False)
    ]

"""Training rows and held-out rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from kleash.data.formats import read_groups
from kleash.data.group import Content, Group, Preference, Response, Scores, prompt_key
from kleash.data.mixture import described, parts_of, repeated
from kleash.data.row_format import AS_IT_IS, RowFormat
from kleash.data.unpaired import is_good, pair_by_label
from kleash.errors import DataError
from kleash.run import derive_seed

logger = logging.getLogger("kleash")

HELD_OUT = 0.1
"""Share of rows that is held out if no file of held-out rows is given."""

RowFilter = Callable[[Sequence[Group], Sequence[int], str], list[Group]]
"""The groups to keep, given all those of a source, their row numbers in it, and its name."""

PROMPTS_TO_SPLIT_BY = 20
"""With fewer prompts than this, rows are held out instead of whole prompts."""


def read_split(
    data: str | Path,
    eval_data: str | Path | None,
    *,
    seed: int,
    usable: Callable[[Group], str | None],
    max_eval_rows: int | None = None,
    response_column: str | None = None,
    row_format: RowFormat = AS_IT_IS,
    keep: RowFilter | None = None,
    keep_held_out: RowFilter | None = None,
) -> tuple[list[Group], list[Group]]:
    """Read the rows to train on and the rows to measure on.

    Args:
        data: file, folder or hub name.
        eval_data: the same, of held-out rows; None holds out a tenth of `data`.
        seed: which tenth.
        usable: returns the fault of a row for this stage, or None.
        max_eval_rows: maximum number of held-out rows.
        response_column: column of the response, if the schemas do not know its name.
        row_format: how the rows of both are read.
        keep: which rows of `data` to keep; None: all.
        keep_held_out: which rows of `eval_data` to keep.

    Returns:
        Training groups, held-out groups.

    Raises:
        DataError: naming the first row that the stage cannot use.
    """
    parts = parts_of(data)
    sources = [
        read_usable(
            part.data,
            usable,
            response_column=response_column,
            row_format=part.row_format(row_format),
            split=part.split,
            keep=keep,
        )
        for part in parts
    ]
    groups = [group for source in sources for group in source]
    if len(parts) > 1:
        logger.info("%s: %s", data, described(parts, list(map(len, sources))))
    weights = {id(group): part.weight for part, source in zip(parts, sources, strict=True) for group in source}

    def weighted(train: Sequence[Group]) -> list[Group]:
        return repeated(((group, weights[id(group)]) for group in train), seed=seed)

    if eval_data is not None:
        return weighted(groups), read_usable(
            eval_data, usable, max_eval_rows, response_column=response_column, row_format=row_format,
            keep=keep_held_out,
        )  # fmt: skip
    train, held_out = hold_out(groups, seed=seed)
    logger.info(
        "%s: %d of %d rows are held out to measure on, a tenth; --eval-data names other rows",
        data, len(held_out), len(groups),
    )  # fmt: skip
    return weighted(train), held_out[:max_eval_rows]


def read_usable(
    data: str | Path,
    usable: Callable[[Group], str | None],
    limit: int | None = None,
    *,
    response_column: str | None = None,
    row_format: RowFormat = AS_IT_IS,
    split: str | None = None,
    keep: RowFilter | None = None,
) -> list[Group]:
    """Read the rows of a file; raises at the first row that a stage cannot use.

    Of unpaired rows, those that the stage cannot use as they are become comparisons if it wants these, and are left out
    otherwise; one line says how many.
    """
    groups: list[Group] = []
    numbers: list[int] = []
    unpaired = []
    for row, read in enumerate(islice(read_groups(data, split=split, row_format=row_format), limit), start=1):
        group = read if response_column is None else answered_by(read, response_column)
        problem = usable(group)
        if problem and is_good(group) is not None:
            unpaired.append(group)
        elif problem:
            raise DataError(f"{data} row {row}: {problem}")
        else:
            groups.append(group)
            numbers.append(row)
    if keep is not None:
        groups = keep(groups, numbers, str(data))
    pairs = [pair for pair in pair_by_label(unpaired) if usable(pair) is None]
    if unpaired:
        message = _count_unpaired(unpaired, pairs)
        if not groups and not pairs:
            raise DataError(f"{data}: {message}; no row is left")
        logger.warning("%s: %s", data, message)
    return groups + pairs


def _count_unpaired(unpaired: Sequence[Group], pairs: Sequence[Group]) -> str:
    rest = len(unpaired) - 2 * len(pairs)
    if not any(map(is_good, unpaired)):
        return f"{rest} responses labelled false are left out"
    return (
        f"{len(pairs)} comparisons of responses labelled true and false to one prompt; {rest} rows are left out, whose "
        "prompt has no response of the other label"
    )


def hold_out(groups: Sequence[Group], *, seed: int, share: float = HELD_OUT) -> tuple[list[Group], list[Group]]:
    """Split off a share: by prompt if there are 20 prompts or more, so that none is on both sides, otherwise by row."""
    if len(groups) < 2:
        return list(groups), []
    keys = [repr(prompt_key(group.prompt)) for group in groups]
    if len(set(keys)) < PROMPTS_TO_SPLIT_BY:
        keys = [str(row) for row in range(len(groups))]
    ranked = sorted(set(keys), key=lambda key: derive_seed(seed, "hold out", key))
    out = set(ranked[: max(1, round(share * len(ranked)))])
    train = [group for group, key in zip(groups, keys, strict=True) if key not in out]
    return train, [group for group, key in zip(groups, keys, strict=True) if key in out]


def demonstration(group: Group) -> str | None:
    """The fault of a row as a demonstration, or None; a preference is accepted for its chosen response."""
    if len(group.responses) != 1 and not isinstance(group.label, Preference):
        return (
            f"has {len(group.responses)} responses; a demonstration has one: `prompt` and `response`, `messages`, "
            "or a column named by --response-column"
        )
    if is_good(group) is False:
        return "is labelled false, and so is not a demonstration"
    return None


def imitated(group: Group) -> Group:
    """A row as a demonstration: unchanged, or a preference's chosen response."""
    if not isinstance(group.label, Preference):
        return group
    return replace(group, responses=(group.responses[int(group.label.probability < 0.5)],), label=None)


def answered_by(group: Group, column: str) -> Group:
    """A row with its response read from another column; rows without that column are unchanged."""
    text = group.columns.get(column)
    if not isinstance(text, str):
        return group
    content: Content = text if isinstance(group.prompt, str) else ({"role": "assistant", "content": text},)
    columns = {name: value for name, value in group.columns.items() if name != column}
    return replace(group, responses=(Response(content),), label=None, columns=columns)


def comparison(group: Group) -> str | None:
    """The fault of a row as a comparison, or None."""
    if len(group.responses) < 2 or group.label is None:
        return "is not a comparison; a preference row has `prompt`, `chosen` and `rejected`"
    return None


def best_against_worst(group: Group) -> Group | None:
    """A scored group as a preference of its best response over its worst; None where all have one score.

    Of tied responses the first is taken.
    """
    assert isinstance(group.label, Scores)
    values = [value for value in group.label.values if not math.isnan(value)]
    if not values or max(values) == min(values):
        return None
    best, worst = (group.label.values.index(extreme) for extreme in (max(values), min(values)))
    return replace(group, responses=(group.responses[best], group.responses[worst]), label=Preference())


def prompt_only(group: Group) -> str | None:
    """The fault of a row as a prompt, or None."""
    if group.prompt == "" and group.responses:
        return "is text without a prompt; name the column of the prompts: --columns prompt=text"
    return None

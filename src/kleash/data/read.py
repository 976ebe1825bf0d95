"""The rows of a stage as token ids: read, checked, split, prepared, encoded.

What was cut or left out is logged and counted in run.json, for the rows to train on and for the held-out rows alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup, Group, Preference, Ranking
from kleash.data.row_format import AS_IT_IS, RowFormat
from kleash.data.split import RowFilter, read_split, read_usable
from kleash.data.stream import HELD_OUT_ROWS, Rows, Source, Stream
from kleash.data.unread_columns import log_unread_columns
from kleash.errors import DataError

logger = logging.getLogger("kleash")


RowCounts = dict[str, int]
"""Of a part: the rows `read` and `used`; `cut` (a response was cut, and so lost its end token); and those left out:
`prompt_too_long` (no room for a response), `equal_scores` (no response is the better one), `equal_responses` (in the
data or after the cut).
"""


def read_encoded(
    data: str,
    eval_data: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    usable: Callable[[Group], str | None],
    prepare: Callable[[Sequence[Group]], Sequence[Group]] = lambda groups: groups,
    max_length: int | None,
    max_eval_rows: int | None = None,
    response_column: str | None = None,
    row_format: RowFormat = AS_IT_IS,
    seed: int,
    note: Callable[..., None],
    reads_columns: bool = False,
    streaming: bool = False,
    keep: RowFilter | None = None,
    keep_held_out: RowFilter | None = None,
) -> tuple[Rows, list[EncodedGroup]]:
    """The rows to train on and the rows to measure on.

    Args:
        data: file, folder or hub name.
        eval_data: the same, of held-out rows; None holds out a tenth of `data`.
        tokenizer: the model's.
        usable: returns the fault of a row for the stage, or None.
        prepare: turns the usable rows into the rows to train on; it may leave out those with equal scores.
        max_length: most tokens of prompt and response; longer responses are cut, longer prompts dropped.
        max_eval_rows: maximum number of held-out rows.
        response_column: column of the response, if the schemas do not know its name.
        row_format: how the rows of both are read.
        seed: which rows are held out.
        note: takes the counts of both parts, as `RunFolder.note` does.
        reads_columns: whether the stage reads the other columns of a row, or hands them on to a reward. Those that
            nothing reads are named in one line.
        streaming: whether the rows to train on are a `Stream`, of which a block is in memory.
        keep, keep_held_out: which rows of `data` and of `eval_data` to keep, see `read_split`.

    Raises:
        DataError: naming the first row that the stage cannot use, or no row is left.
    """
    encode = partial(_encode, prepare=prepare, tokenizer=tokenizer, max_length=max_length)

    def announce(groups: Sequence[Group]) -> None:
        announce_text(groups, tokenizer, data)
        log_unread_columns(groups, tokenizer, data, reads_columns=reads_columns)

    train: Rows
    counts: dict[str, RowCounts] = {}
    if streaming:
        source = Source(data, usable, response_column, row_format, held_out_by=seed if eval_data is None else None)
        train = _stream(source, encode, announce, seed=seed, note=note)
        held_out = _first_held_out(source, max_eval_rows)
        if eval_data is not None:
            held_out = read_usable(
                eval_data, usable, max_eval_rows, response_column=response_column, row_format=row_format,
                keep=keep_held_out,
            )  # fmt: skip
    else:
        groups, held_out = read_split(
            data, eval_data, seed=seed, usable=usable, max_eval_rows=max_eval_rows, response_column=response_column,
            row_format=row_format, keep=keep, keep_held_out=keep_held_out,
        )  # fmt: skip
        announce(groups)
        train, counts["train"] = encode(groups, source=data)
    if not train:
        raise DataError(
            f"{data}: the responses of each row have equal scores or are equal; there is nothing to compare"
        )
    measured, counts["held_out"] = encode(held_out, source=eval_data or f"{data}, held out")
    note("rows", **counts)
    return train, measured


def _stream(
    source: Source,
    encode: Callable[..., tuple[list[EncodedGroup], RowCounts]],
    announce: Callable[[Sequence[Group]], None],
    *,
    seed: int,
    note: Callable[..., None],
) -> Stream:
    """The training rows as a stream; what is cut or left out of its first block is logged."""

    def encode_block(groups: Sequence[Group], first: bool) -> tuple[list[EncodedGroup], RowCounts]:
        if first:
            announce(groups)
        return encode(groups, source=f"{source.data}, the first {len(groups)} rows", log=first)

    return Stream(source, encode_block, seed=seed, note=lambda counts: note("rows", train=counts))


def _first_held_out(source: Source, max_eval_rows: int | None) -> list[Group]:
    """The held-out rows of a stream that are measured; none where all rows are trained on."""
    if source.held_out_by is None:
        return []
    rows = source.first_held_out(max_eval_rows or HELD_OUT_ROWS)
    logger.info(
        "%s: a tenth of the prompts is held out, and measured on the first %d of their rows; --eval-data names other "
        "rows", source.data, len(rows),
    )  # fmt: skip
    return rows


def _encode(
    read: Sequence[Group],
    *,
    prepare: Callable[[Sequence[Group]], Sequence[Group]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    source: str,
    log: bool = True,
) -> tuple[list[EncodedGroup], RowCounts]:
    prepared = prepare(read)
    if log and len(prepared) < len(read):
        equal = len(read) - len(prepared)
        logger.info("%s: %d of %d rows left out, their responses have equal scores", source, equal, len(read))
    try:
        encoded, truncation = encode_all(prepared, tokenizer, max_length=max_length)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    if log and truncation.message():
        logger.warning("%s: %s", source, truncation.message())
    remaining = without_equal(encoded, source=source, max_length=max_length, log=log)
    return remaining, {
        "read": len(read),
        "used": len(remaining),
        "cut": truncation.cut,
        "prompt_too_long": truncation.dropped,
        "equal_scores": len(read) - len(prepared),
        "equal_responses": len(encoded) - len(remaining),
    }


def announce_text(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Log that prompts are plain text though the model has a chat template."""
    texts = sum(isinstance(group.prompt, str) and group.prompt != "" for group in groups)
    if texts and tokenizer.chat_template is not None:
        logger.info(
            "%s: %d of %d prompts are plain text, and the model has a chat template; --as-chat makes each one turn of "
            "the user", source, texts, len(groups),
        )  # fmt: skip


def without_equal(
    groups: Sequence[EncodedGroup], *, source: str, max_length: int | None, log: bool = True
) -> list[EncodedGroup]:
    """The groups without comparisons of a response with itself, which are logged: such a pair has no gradient, and its
    scores differ by rounding only. Of a ranking's equal responses the first stays.
    """
    different = [one for group in groups if (one := distinct(group)) is not None]
    if log and len(different) < len(groups):
        equal = [group for group in groups if distinct(group) is None]
        in_data = sum(len({response.text for response in group.source.responses}) == 1 for group in equal)
        cut = len(equal) - in_data
        reason = f", {cut} of them only as tokens within max_length {max_length}" if cut else ""
        logger.warning(
            "%s: %d of %d comparisons left out, their responses are equal%s", source, len(equal), len(groups), reason
        )
    return different


def distinct(group: EncodedGroup) -> EncodedGroup | None:
    """A comparison of different responses; None where all are equal. Groups that compare nothing are unchanged."""
    label = group.source.label
    if not isinstance(label, Preference | Ranking):
        return group
    first = {response.ids: k for k, response in reversed(list(enumerate(group.responses)))}
    rows = sorted(first.values())
    if len(rows) == len(group.responses):
        return group
    if len(rows) < 2 or isinstance(label, Preference):
        return None
    ranks = tuple(label.ranks[k] for k in rows)
    shorter = replace(label, ranks=ranks) if len(rows) > 2 else _preference(ranks, label.annotator)
    source = replace(group.source, responses=tuple(group.source.responses[k] for k in rows), label=shorter)
    return replace(group, responses=tuple(group.responses[k] for k in rows), source=source)


def _preference(ranks: Sequence[int], annotator: str | None) -> Preference:
    """A ranking of two responses as a preference."""
    return Preference((1 + (ranks[1] > ranks[0]) - (ranks[1] < ranks[0])) / 2, annotator)

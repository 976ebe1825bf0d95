"""The rows of a stage as token ids: read, checked, split, prepared, encoded; what was cut or dropped is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup, Group
from kleash.data.split import read_split

logger = logging.getLogger("kleash")


def read_encoded(
    data: str,
    eval_data: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    usable: Callable[[Group], str | None],
    prepare: Callable[[Sequence[Group], str], Sequence[Group]] = lambda groups, source: groups,
    max_length: int | None,
    max_eval_rows: int | None = None,
    response_column: str | None = None,
    seed: int,
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    """The rows to train on and the rows to measure on.

    Args:
        data: file, folder or hub name.
        eval_data: the same, of held-out rows; None holds out a tenth of `data`.
        tokenizer: the model's.
        usable: returns the fault of a row for the stage, or None.
        prepare: turns the usable rows, given the name of their source, into the rows to train on; it may leave some
            out, and logs it.
        max_length: most tokens of prompt and response; longer responses are cut, longer prompts dropped.
        max_eval_rows: maximum number of held-out rows.
        response_column: column of the response, if the schemas do not know its name.
        seed: which rows are held out.

    Raises:
        DataError: naming the first row that the stage cannot use, or no row is left.
    """
    rows = read_split(
        data, eval_data, seed=seed, usable=usable, max_eval_rows=max_eval_rows, response_column=response_column
    )
    train, held_out = (prepare(part, source) for part, source in zip(rows, (data, eval_data or data), strict=True))
    encoded, truncation = encode_all(train, tokenizer, max_length=max_length)
    if truncation.message():
        logger.warning("%s: %s", data, truncation.message())
    return encoded, encode_all(held_out, tokenizer, max_length=max_length)[0] if held_out else []

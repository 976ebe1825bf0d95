"""Training rows of a source that is too large for the memory, read from its beginning to its end, again and again.

Rows are shuffled within blocks: `BLOCK` rows to train on are read, and taken in an order that depends on (seed, epoch,
row). The position in the data is thus four numbers, so a run resumes exactly, and every row comes once in an epoch
(F11). What is kept in memory does not grow with the number of rows.

Whether a row is held out depends on (seed, prompt) only, neither on its place nor on other rows, so that no prompt is
in both parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any, overload

import numpy as np

from kleash.data.batching import batch_at
from kleash.data.formats import stream_groups
from kleash.data.group import EncodedGroup, Group, prompt_key
from kleash.data.row_format import RowFormat
from kleash.data.split import HELD_OUT, answered_by
from kleash.data.unpaired import LABELS, is_good
from kleash.errors import DataError
from kleash.run import derive_seed

BLOCK = 4096
"""Rows that are shuffled together."""

HELD_OUT_ROWS = 1000
"""Most held-out rows, where `max_eval_rows` does not say."""

FURTHEST = 20
"""Held-out rows are looked for in the first rows of the data, this many for each that is wanted."""

NumberedGroups = Iterator[tuple[int, Group]]
"""Groups with the number of their row, from 1."""


@dataclass(frozen=True)
class Source:
    """The rows of a source, one after the other.

    Attributes:
        data: file, folder or hub name.
        usable: returns the fault of a row for the stage, or None.
        response_column: column of the response, if the schemas do not know its name.
        row_format: how a row is read.
        held_out_by: the seed that decides which prompts are held out; None: none is.
    """

    data: str
    usable: Callable[[Group], str | None]
    response_column: str | None
    row_format: RowFormat
    held_out_by: int | None

    def train(self, start: int = 0) -> NumberedGroups:
        """The rows to train on, after the first `start` rows of the source.

        Raises:
            DataError: naming the first row that the stage cannot use.
        """
        return ((row, group) for row, group in self._rows(start) if not self._is_held_out(group))

    def first_held_out(self, limit: int) -> list[Group]:
        """At most `limit` held-out rows, those that come first."""
        return [group for row, group in islice(self._rows(0), FURTHEST * limit) if self._is_held_out(group)][:limit]

    def _rows(self, start: int) -> NumberedGroups:
        rows = stream_groups(self.data, start=start, row_format=self.row_format)
        for row, read in enumerate(rows, start=start + 1):
            group = read if self.response_column is None else answered_by(read, self.response_column)
            problem = self.usable(group)
            if problem is None:
                yield row, group
            elif is_good(group) is not None and self.usable(_unlabelled(group)) is not None:
                raise DataError(
                    f"{self.data} row {row}: is unpaired, and pairing it by its prompt takes all rows; leave "
                    "--streaming out"
                )
            elif is_good(group) is not False:
                raise DataError(f"{self.data} row {row}: {problem}")

    def _is_held_out(self, group: Group) -> bool:
        if self.held_out_by is None:
            return False
        text = prompt_key(group.prompt) or group.responses[0].text  # text without a prompt is its own
        return derive_seed(self.held_out_by, "hold out", text) < HELD_OUT * 2**63


def _unlabelled(group: Group) -> Group:
    columns = {name: value for name, value in group.columns.items() if name not in LABELS}
    return Group(group.prompt, group.responses, columns=columns)


@dataclass(frozen=True)
class Position:
    """Where a stream stands: in a block, of which `offset` rows were taken."""

    epoch: int = 0
    row: int = 0
    """Rows of the source that come before the block."""
    before: int = 0
    """Rows to train on of this epoch that come before the block."""
    offset: int = 0


class Stream(Sequence[EncodedGroup]):
    """An endless stream of training rows.

    As a sequence it is the rows of its first block: what is measured of the training rows is measured on those.

    Args:
        source: the rows.
        encode: turns the rows of a block into those to train on and counts what was cut or left out, see `RowCounts`;
            the second argument says whether it is the first block, of which that is logged.
        seed: of their order.
        note: takes the counts of all blocks so far.
        block: rows that are shuffled together; None: `BLOCK`.

    Attributes:
        used: rows of the blocks so far, those of each epoch.
    """

    def __init__(
        self,
        source: Source,
        encode: Callable[[Sequence[Group], bool], tuple[list[EncodedGroup], dict[str, int]]],
        *,
        seed: int,
        note: Callable[[dict[str, int]], None],
        block: int | None = None,
    ) -> None:
        self.source, self.encode, self.seed, self.note, self.block = source, encode, seed, note, block or BLOCK
        self._groups: list[EncodedGroup] = []
        self._order: list[int] = []
        self._position = Position()
        self._seek(Position(), {})
        self._first = self._groups

    def take(self, number: int) -> tuple[list[int], list[EncodedGroup]]:
        """The next rows: their numbers, the same ones in every epoch, and the rows themselves.

        Raises:
            DataError: a row that the stage cannot use, or a whole epoch without one to train on.
        """
        rows: list[int] = []
        groups: list[EncodedGroup] = []
        while len(groups) < number:
            if self._position.offset == len(self._groups):
                self._advance()
            start = self._position.offset
            chosen = self._order[start : start + number - len(groups)]
            rows += [self._position.before + index for index in chosen]
            groups += [self._groups[index] for index in chosen]
            self._position = replace(self._position, offset=start + len(chosen))
        return rows, groups

    def _seek(self, position: Position, counts: dict[str, int]) -> None:
        """Go to a position; `counts` are those of the blocks before it."""
        self._position, self._counts = position, counts
        self._rows = self.source.train(position.row)
        self._read_block()

    def _advance(self) -> None:
        """Go to the next block, at the end of an epoch to the first one."""
        at = self._position
        total = at.before + len(self._groups)
        if not self._epoch_ends:
            self._position, self._counts = Position(at.epoch, self._end, total), self._counts_after
            self._read_block()
        elif total:
            self._seek(Position(at.epoch + 1), self._counts_after)
        else:
            raise DataError(f"{self.source.data}: no row is left to train on")

    def _read_block(self) -> None:
        at = self._position
        numbered = list(islice(self._rows, self.block))
        self._epoch_ends = len(numbered) < self.block
        self._end = numbered[-1][0] if numbered else at.row
        self._groups, counts = self.encode([group for _, group in numbered], at == Position())
        self._order = np.random.default_rng([self.seed, at.epoch, at.row]).permutation(len(self._groups)).tolist()
        self._counts_after = {name: self._counts.get(name, 0) + count for name, count in counts.items()}
        self.note(self._counts_after)

    @property
    def used(self) -> int:
        """See above."""
        return self._counts_after["used"]

    def state_dict(self) -> dict[str, Any]:
        """The position, and the counts of the blocks before it."""
        return {**asdict(self._position), "counts": self._counts}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        values = dict(state_dict)
        counts = values.pop("counts")
        position = Position(**values)
        self._seek(replace(position, offset=0), counts)
        self._position = position

    def __len__(self) -> int:
        return len(self._first)

    @overload
    def __getitem__(self, index: int) -> EncodedGroup: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[EncodedGroup]: ...

    def __getitem__(self, index: int | slice) -> EncodedGroup | Sequence[EncodedGroup]:
        return self._first[index]


Rows = Sequence[EncodedGroup]
"""Training rows: a list, or a `Stream`."""


def batches(
    rows: Rows, *, batch_size: int, seed: int, total: int | None = None, start: int = 0
) -> Iterator[tuple[list[int], list[EncodedGroup]]]:
    """The rows of each step after the first `start`, and their numbers; see `batch_at`.

    A stream continues at its own position.
    """
    for step in count(start):
        if isinstance(rows, Stream):
            yield rows.take(batch_size)
        else:
            numbers = batch_at(step, len(rows), batch_size, seed, total)
            yield numbers, [rows[number] for number in numbers]


def stream_state(rows: Rows) -> dict[str, Stream]:
    """The part of a run's state that training rows have: none where they are in memory."""
    return {"stream": rows} if isinstance(rows, Stream) else {}


def rows_used(rows: Rows) -> int:
    """How many rows there are; of a stream those so far."""
    return rows.used if isinstance(rows, Stream) else len(rows)

"""Several sources of rows as one, from YAML: `--data mixture.yaml`.

    parts:
    - data: chat.jsonl
    - data: maths.parquet
      weight: 2.5          # two copies of each row to train on, and a third one of every second
      columns: {prompt: problem, response: solution}
    - data: owner/name
      split: train_sft

The weight counts for the rows to train on; every held-out row is measured once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field

from kleash.config import YAML, Columns, Config, read_yaml
from kleash.data.group import Group
from kleash.data.row_format import RowFormat
from kleash.errors import ConfigError
from kleash.run import derive_seed


class MixturePart(Config):
    """A source of rows in a mixture."""

    data: str
    """A file, a folder or a hub name."""
    weight: float = Field(1.0, gt=0, le=1000)
    """How often each row is trained on in an epoch; the fraction is the share of rows with one more copy."""
    split: str | None = None
    """Which split of a folder or a hub dataset; null is the only one, else `train`."""
    columns: Columns | None = None
    """Columns of this source, in place of `--columns`."""

    def row_format(self, of_all: RowFormat) -> RowFormat:
        """How its rows are read, where `of_all` is how those of the mixture are."""
        return RowFormat(self.columns or of_all.columns, of_all.as_chat)


def parts_of(source: str | Path) -> list[MixturePart]:
    """The parts of a mixture's file; of every other source one part, the source itself.

    Raises:
        ConfigError: the file is not a list of parts; the message names what is wrong.
    """
    if not str(source).endswith(YAML):
        return [MixturePart(data=str(source))]
    values = read_yaml(Path(source).expanduser())
    items = values.pop("parts", None)
    if values or not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{source}: holds no mixture; it is `parts:` with a list of objects, each with `data`")
    parts = [MixturePart.make(item, source=f"{source} part {number}") for number, item in enumerate(items, start=1)]
    for part in parts:
        if part.data.endswith(YAML):
            raise ConfigError(f"{source}: {part.data} is a mixture, too; list its parts here")
    return parts


def repeated(rows: Iterable[tuple[Group, float]], *, seed: int) -> list[Group]:
    """Each row as often as its weight says; which rows of a fraction get one more copy depends on the seed only."""
    groups: list[Group] = []
    for number, (group, weight) in enumerate(rows):
        whole, fraction = divmod(weight, 1)
        one_more = fraction > 0 and derive_seed(seed, "weight", number) / 2**63 < fraction
        groups += [group] * (int(whole) + one_more)
    return groups


def described(parts: Sequence[MixturePart], counts: Sequence[int]) -> str:
    """The parts with their rows, for the log."""
    return ", ".join(
        f"{count} rows of {part.data} × {part.weight:g}" for part, count in zip(parts, counts, strict=True)
    )

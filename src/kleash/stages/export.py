"""Export: the labels of a store as preference files, frozen by hash and split by prompt.

    kleash export --store labels.db --out labels

Writes `train.jsonl`, with `--test-share` also `test.jsonl`, pairs of which both are bad apart, and `labels.json`, which
says what is in them. An export that is there is frozen: votes that came since go into another folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from kleash.config import Config
from kleash.errors import DataError
from kleash.labels.open_store import open_store


class ExportConfig(Config):
    """Write labels as files that every stage reads."""

    store: str
    """Where the labels are: an SQLite file, or a PostgreSQL URL."""
    out: Path
    """Folder to write."""
    ties: Literal["half", "davidson", "drop"] = "half"
    """A tie is one half; or ties are modelled (Davidson 1970), which needs pairs with two votes; or left out."""
    each: Literal["pair", "vote"] = "pair"
    """A row a pair, its votes one soft probability; or a row a vote, with its annotator, principle and reason."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of prompts that go into `test.jsonl`, by hash of the prompt: they stay there as labels come in."""
    until: int | None = Field(None, ge=1)
    """Last vote to know, an earlier export's `until`; null: all votes so far."""
    seed: int = 0
    """Of the split."""


def run(config: ExportConfig) -> Path:
    """Write the labels, unless they are there.

    Raises:
        DataError: there is nothing to write, or the folder holds an export with other settings.
    """
    asked = {"ties": config.ties, "each": config.each, "test_share": config.test_share, "seed": config.seed}
    manifest = config.out / "labels.json"
    if manifest.exists():
        told = json.loads(manifest.read_text())
        same = {name: told.get(name) for name in asked} == asked and config.until in (None, told.get("until"))
        if not same:
            raise DataError(f"{config.out} holds an export with other settings; choose another --out or remove it")
        return config.out
    with open_store(config.store) as store:
        from kleash.labels.import_export import export_labels

        export_labels(
            store, config.out, ties=config.ties, each=config.each, test_share=config.test_share, seed=config.seed,
            until=config.until,
        )  # fmt: skip
    return config.out

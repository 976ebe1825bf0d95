"""Export: the labels of a store as preference files, frozen by hash and split by prompt.

    kleash export --store labels.db --out labels

Writes `train.jsonl`, with `--test-share` also `test.jsonl`, pairs of which both are bad apart, and `labels.json`, which
says what is in them. An export that is there is frozen: votes that came since go into another folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from kleash.errors import DataError
from kleash.labels.open_store import open_store
from kleash.stages.data_configs import ExportConfig


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

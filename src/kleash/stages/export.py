"""Export: the labels of a store as preference files, frozen by hash and split by prompt.

    kleash export --store labels.db --out labels

Writes `train.jsonl`; with `--test-share` also `test.jsonl`; `both-bad.jsonl` with pairs of which both responses are
bad; and `labels.json`, which describes them. An existing export is frozen: later votes go into another folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from kleash.errors import DataError, InputError
from kleash.labels.open_store import open_store
from kleash.stages.data_configs import ExportConfig


def run(config: ExportConfig) -> Path:
    """Write the labels, unless they exist already.

    Raises:
        DataError: there is nothing to write, or the folder holds an export with other settings.
    """
    settings = {
        "ties": config.ties,
        "each": config.each,
        "test_share": config.test_share,
        "seed": config.seed,
    }
    manifest = config.out / "labels.json"
    if manifest.exists():
        existing = json.loads(manifest.read_text())
        same = {name: existing.get(name) for name in settings} == settings
        if not same or config.until not in (None, existing.get("until")):
            raise DataError(f"{config.out} holds an export with other settings; delete it or choose another --out")
        return config.out
    if "://" not in config.store and not Path(config.store).exists():
        raise InputError(
            f"{config.store}: there is no such label store; give the file that `kleash label --store` names"
        )
    with open_store(config.store) as store:
        from kleash.labels.import_export import export_labels

        export_labels(
            store, config.out, until=config.until, ties=config.ties, each=config.each, test_share=config.test_share,
            seed=config.seed,
        )  # fmt: skip
    return config.out

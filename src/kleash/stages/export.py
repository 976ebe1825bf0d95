"""Export: the labels of a store as preference files, frozen by hash and split by prompt.

    kleash export --store labels.db --out labels

Writes `train.jsonl`; with `--test-share` also `test.jsonl`; `both-bad.jsonl` with pairs of which both responses are
bad; and `labels.json`, which describes them. An existing export is frozen: later votes, and votes of another store, go
into another folder.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from kleash.content import file_hash
from kleash.errors import ChangedError, DataError, InputError
from kleash.io import read_json, refuse_damaged
from kleash.labels.open_store import open_store
from kleash.outputs import only_writer
from kleash.stages.data_configs import ExportConfig

if TYPE_CHECKING:
    from kleash.labels.import_export import Manifest
    from kleash.labels.store import Store

logger = logging.getLogger("kleash")


@only_writer
def run(config: ExportConfig) -> Path:
    """Write the labels, unless they exist already.

    Raises:
        DataError: there is nothing to write, or a file of the folder was changed.
        ChangedError: the folder holds an export of another store or with other settings.
        InputError: there is no such store or annotator.
    """
    if "://" not in config.store and not Path(config.store).exists():
        raise InputError(
            f"{config.store}: there is no such label store; give the file that `kleash label --store` names"
        )
    with open_store(config.store) as store:
        from kleash.labels.import_export import export_labels

        if (config.out / "labels.json").exists():
            manifest = _refuse_other(config, store)
        else:
            manifest = export_labels(
                store, config.out, until=config.until, ties=config.ties, each=config.each,
                test_share=config.test_share, seed=config.seed, annotators=config.annotators, kinds=config.kind,
            )  # fmt: skip
    logger.info("%s: %s", config.out, manifest)
    return config.out


def _refuse_other(config: ExportConfig, store: Store) -> Manifest:
    """The contents of an export that is there. Refuse a folder with one of other settings or of another store, or whose
    files were changed.
    """
    from kleash.labels.import_export import Manifest, store_hash

    remedy = "delete it or choose another --out"
    manifest = read_json(config.out / "labels.json", remedy)
    refuse_damaged(config.out / "labels.json", manifest, Manifest, remedy)
    settings = config.model_dump(mode="json", include={"ties", "each", "test_share", "seed"})
    settings |= {"of_annotators": list(config.annotators), "of_kinds": list(config.kind)}
    until: int = manifest["until"]
    if {name: manifest.get(name) for name in settings} != settings or config.until not in (None, until):
        raise ChangedError(f"{config.out} holds an export with other settings; {remedy}", config.out)
    if manifest.get("store") != store_hash(store, until):
        raise ChangedError(f"{config.out} holds an export of another store than {config.store}; {remedy}", config.out)
    for name, file in manifest["files"].items():
        if not (config.out / name).is_file() or file_hash(config.out / name) != file["sha256"]:
            raise DataError(f"{config.out / name} was changed since it was exported; {remedy}")
    contents: Manifest = TypeAdapter(Manifest).validate_python(manifest)
    return contents

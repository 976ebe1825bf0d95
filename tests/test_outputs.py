from __future__ import annotations

import json
from pathlib import Path

import pytest

from kleash.errors import DataError
from kleash.io import write_text
from kleash.outputs import SCHEMA, finish, identity_of, is_done, results_of
from kleash.run import RunFolder, read_record
from kleash.stages.data_configs import GenerateConfig, JudgeConfig


def settings(base: Path, prompts: Path, **changes: object) -> GenerateConfig:
    return GenerateConfig.make({"model": str(base), "data": str(prompts), "out": base.parent / "o.jsonl"} | changes)


def test_the_identity_has_no_path_and_no_field_without_effect(base: Path, prompts: Path) -> None:
    identity = identity_of("generate", settings(base, prompts))
    assert str(base.parent) not in json.dumps(identity)
    assert {"stage", "n", "seed", "sha256 of model", "sha256 of data"} <= identity.keys()
    assert not {"model", "data", "out", "device", "rows_at_once", "force"} & identity.keys()
    assert identity == identity_of("generate", settings(base, prompts, rows_at_once=3, out="other.jsonl"))


def test_behind_an_endpoint_a_model_is_its_name(prompts: Path) -> None:
    values = {"model": "gpt", "endpoint": "http://localhost/v1", "data": str(prompts), "out": "o.jsonl"}
    identity = identity_of("judge", JudgeConfig.make(values))
    assert identity["model"] == "gpt" and "sha256 of model" not in identity


def test_a_file_is_done_with_the_settings_that_wrote_it_and_no_others(base: Path, prompts: Path) -> None:
    config = settings(base, prompts, temperature=0.5)
    identity = identity_of("generate", config)
    assert not is_done(config.out, identity)
    write_text(config.out, "{}\n")
    with pytest.raises(DataError, match=r"o\.jsonl exists and no stage of kleash finished it; delete it or choose"):
        is_done(config.out, identity)
    finish(config.out, identity, {"rows": 1})
    assert is_done(config.out, identity) and results_of(config.out) == {"rows": 1}
    other = identity_of("generate", settings(base, prompts, temperature=1.0, n=2))
    message = (
        r"exists and was written with other settings \(n 1, now 2, temperature 0.5, now 1.0\); delete it or choose"
    )
    with pytest.raises(DataError, match=message):
        is_done(config.out, other)


def test_other_content_is_named_by_its_role(base: Path, prompts: Path) -> None:
    config = settings(base, prompts)
    write_text(config.out, "{}\n")
    finish(config.out, identity_of("generate", config), None)
    assert results_of(config.out) is None, "a stage without figures leaves none"
    prompts.write_text('{"prompt": "other"}\n')
    with pytest.raises(DataError, match=r"other settings \(the content of data differs\)"):
        is_done(config.out, identity_of("generate", config))


@pytest.mark.parametrize(("schema", "message"), [(None, "has no schema version"), (99, "has schema version 99")])
def test_a_folder_of_another_schema_is_refused_in_one_line(
    base: Path, prompts: Path, tmp_path: Path, schema: int | None, message: str
) -> None:
    config = settings(base, prompts)
    folder = RunFolder.open(tmp_path / "run", stage="x", config=config)
    assert folder.record["schema"] == SCHEMA
    record = {key: value for key, value in folder.record.items() if key != "schema"}
    (folder.path / "run.json").write_text(json.dumps(record | ({} if schema is None else {"schema": schema})))
    for read in (lambda: read_record(folder.path), lambda: RunFolder.open(folder.path, stage="x", config=config)):
        with pytest.raises(DataError, match=rf"run.json {message}.*; delete it and run its stage again") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_file_of_another_schema_is_refused_too(base: Path, prompts: Path) -> None:
    config = settings(base, prompts)
    write_text(config.out, "{}\n")
    identity = identity_of("generate", config)
    (base.parent / "o.summary.json").write_text(json.dumps({"identity": identity, "results": {}}))
    with pytest.raises(DataError, match=r"o\.summary\.json has no schema version"):
        is_done(config.out, identity)


def test_a_parent_that_moved_is_the_same_and_run_json_says_where_it_is_now(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    RunFolder.open(out, stage="x", config=settings(base, prompts)).log(1, {"loss": 1.0})
    moved, rows = base.rename(tmp_path / "moved"), prompts.rename(tmp_path / "rows.jsonl")
    folder = RunFolder.open(out, stage="x", config=settings(moved, rows))
    assert folder.metrics() == [{"step": 1, "loss": 1.0}], "the same run goes on"
    record = read_record(out) or {}
    assert (record["inputs"]["model"]["path"], record["config"]["data"]) == (str(moved), str(rows))
    with pytest.raises(DataError, match=r"was written with other settings \(n 1, now 2\)"):
        RunFolder.open(out, stage="x", config=settings(moved, rows, n=2))

"""A run.json that is whole, for tests that write one by hand."""

from __future__ import annotations

from typing import Any

from kleash.outputs import SCHEMA


def run_record(**values: Any) -> dict[str, Any]:
    """A run.json with some values of the test's."""
    return {
        "schema": SCHEMA,
        "stage": "sft",
        "status": "finished",
        "config": {},
        "inputs": {},
        "identity": {},
        "gates": {},
        "results": {},
        "seconds": 1.0,
        **values,
    }

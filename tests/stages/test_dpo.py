from __future__ import annotations

from pathlib import Path

from kleash.stages import dpo

LOSSES: dict[str, dict[str, object]] = {
    "sigmoid": {},
    "smoothed": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "ipo": {},
    "simpo": {},
    "length-normalised": {},
}


def config(base: Path, data: Path, **changes: object) -> dpo.DPOConfig:
    values = {"model": str(base), "data": str(data), "out": base.parent / "dpo", "batch_size": 8, "learning_rate": 3e-3}
    return dpo.DPOConfig.make(values | {"max_steps": 30, "kl_samples": 12, "max_new_tokens": 6} | changes)


def test_it_learns_what_was_preferred_and_its_gate_passes(base: Path, comparisons: Path) -> None:
    folder = dpo.run(config(base, comparisons))
    print(folder.record)
    print(folder.metrics()[0], folder.metrics()[-1])
    assert folder.record["gates"]["out"]["passed"]

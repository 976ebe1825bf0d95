"""What all other tests run under: the jitter, and programs that may be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import jitter, programs


def shaken(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(jitter, "SEED", seed)
    model = torch.nn.Linear(200, 50, bias=False)
    torch.nn.init.constant_(model.weight, 3.0)
    return jitter.jitter(model).weight.detach().double() / 3 - 1


def test_the_jitter_moves_every_weight_in_its_sixth_digit_by_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jitter, "SCALE", 1e-6)
    unset, first, again, second = (shaken(seed, monkeypatch) for seed in (None, 0, 0, 1))
    assert not unset.any()
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert float(first.std()) == pytest.approx(1e-6, rel=0.05), "10,000 draws: standard error 0.7 %"


def test_the_reason_of_a_skip_is_counted_in_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(programs.FINDERS, "chromium", lambda: None)
    monkeypatch.setattr(programs, "STRICT", False)
    with pytest.raises(pytest.skip.Exception) as skip:
        programs.needs("chromium")
    assert "make programs" in str(skip.value)
    assert programs.missing([str(skip.value), "its BOS opens every turn"]) == {"chromium": 1}
    monkeypatch.setattr(programs, "STRICT", True)
    with pytest.raises(pytest.fail.Exception, match="needs chromium, which is not installed"):
        programs.needs("chromium")


def test_a_program_that_is_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(programs.FINDERS, "chromium", lambda: Path("/opt/chromium"))
    assert programs.needs("chromium") == Path("/opt/chromium")


def test_the_parts_of_a_run_hold_each_file_once(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import pytest_collection_modifyitems

    class Item:
        def __init__(self, name: str) -> None:
            self.path = Path(name)

    files, chosen = [f"test_{number}.py" for number in range(60)], []
    for part in (1, 2, 3):
        monkeypatch.setenv("KLEASH_TEST_PART", f"{part}/3")
        items: list[Any] = [Item(name) for name in files]
        monkeypatch.setattr(pytestconfig.hook, "pytest_deselected", lambda items: None)
        pytest_collection_modifyitems(pytestconfig, items)
        assert len(items) > 8
        chosen += [item.path.name for item in items]
    assert sorted(chosen) == sorted(files)

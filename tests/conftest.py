"""What every test runs under: shapes and types checked, no network, one thread, fixed seeds."""

from __future__ import annotations

import importlib
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: on tiny tensors a second thread costs more than it does

import jaxtyping

jaxtyping.install_import_hook("kleash", "type_guard.check")  # before kleash: every annotation is checked at every call

import network_guard
import pytest
from hypothesis import settings
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kleash import testing
from tests import programs
from tests.jitter import SEED, jitter, seed_everything

settings.register_profile("kleash", deadline=None, print_blob=True)  # a busy machine is not a failure
settings.load_profile("kleash")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws the same examples in every run, and others under another jitter."""
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(SEED or 0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`KLEASH_TEST_PART=2/3` keeps the second of three parts of the files, by a hash of a file's name that stays."""
    if not (part := os.environ.get("KLEASH_TEST_PART")):
        return
    number, parts = map(int, part.split("/"))
    chosen = [item for item in items if zlib.crc32(item.path.name.encode()) % parts == number - 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the seconds by folder, and the tests skipped because a program is missing (in the controller, under
    xdist)."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            folder = getattr(report, "nodeid", "").split("::")[0].removeprefix("tests/").split("/")[0]
            seconds[folder.removesuffix(".py")] += getattr(report, "duration", 0.0)
    if sum(seconds.values()) > 20:
        figures = ", ".join(f"{folder} {value:.0f}" for folder, value in seconds.most_common() if value >= 1)
        terminalreporter.write_line(f"seconds of the tests by folder: {figures}")
    skips = programs.missing(str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    if skips:
        counts = ", ".join(f"{count} that need {program}" for program, count in sorted(skips.items()))
        terminalreporter.write_line(f"skipped: {counts}; `{programs.INSTALL}` installs it, then they run", yellow=True)


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that is shipped for tests."""
    return testing.tiny_tokenizer()


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    """The model that is shipped for tests, the same in every test but for the jitter."""
    return jitter(testing.tiny_model())


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """No test depends on those that ran before it."""
    seed_everything()


@pytest.fixture(autouse=True)
def _own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test writes (a reward function) is not what the next test imports by that name."""
    before, places = set(sys.modules), list(sys.path)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(written):
            del sys.modules[name]
    sys.path[:] = places
    importlib.invalidate_caches()  # a file written within the same second as the last look


class Network:
    """The connections beyond this machine that were tried and refused."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def attempts(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def forgive(self) -> None:
        """Forget the attempts that a test planted itself."""
        self._log.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def _network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    log = tmp_path_factory.mktemp("network") / "attempts"
    os.environ["KLEASH_NETWORK_LOG"] = str(log)
    guard = str(Path(network_guard.__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [guard, os.environ.get("PYTHONPATH")]))
    return Network(log)


@pytest.fixture(autouse=True)
def network(_network: Network) -> Iterator[Network]:
    """Fails a test under which something tried to leave this machine, even if the refusal was swallowed (F17)."""
    yield _network
    attempts = _network.attempts()
    _network.forgive()
    assert not attempts, f"F17: an unexpected network call: {attempts}"


Write = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def base(tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tiny model and its tokenizer as a folder."""
    folder = tmp_path / "base"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows to a file of the test's folder."""

    def rows_to_file(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return rows_to_file


def letters(number: int, length: int) -> str:
    """Some letters, the same for the same number."""
    return " ".join("abcdefghij"[(number * 7 + place * 3) % 10] for place in range(length))


@pytest.fixture
def demonstrations(write: Write) -> Path:
    """Rows of unequal length."""
    rows = [{"prompt": letters(i, 1 + i % 4), "response": letters(i + 1, 1 + i % 7)} for i in range(40)]
    return write("demonstrations.jsonl", rows)


@pytest.fixture
def comparisons(write: Write) -> Path:
    """Pairs in which more of the letter z is better."""
    rows = [
        {
            "prompt": letters(i, 1 + i % 4),
            "chosen": "z " * (1 + i % 3) + letters(i, i % 5),
            "rejected": letters(i, 1 + i % 6),
        }
        for i in range(60)
    ]
    return write("comparisons.jsonl", [{k: v.strip() for k, v in row.items()} for row in rows])


@pytest.fixture
def prompts(write: Write) -> Path:
    """Prompts of unequal length."""
    return write("prompts.jsonl", [{"prompt": letters(i, 1 + i % 5), "number": i} for i in range(30)])

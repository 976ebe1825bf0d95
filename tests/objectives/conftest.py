"""How much memory a piece of code holds at once, and how its largest tensor, counted at every operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watch(TorchDispatchMode):
    """Sees the result of every operation, of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        """Elements of the largest tensor that came out of an operation."""
        self.peak = 0
        """Most bytes alive at once among the storages made under watch."""
        self.operations = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            self.largest = max(self.largest, tensor.numel())
            storage = tensor.untyped_storage()
            if storage._cdata not in given:  # a view makes no memory
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


@pytest.fixture
def watch() -> Iterator[Callable[[Callable[[], torch.Tensor]], Watch]]:
    """Runs a loss forward and backward under watch."""

    def run(loss: Callable[[], torch.Tensor]) -> Watch:
        with Watch() as mode:
            value = loss()
            before = mode.operations
            value.backward()
        assert mode.operations > before, "the backward pass was not seen"
        return mode

    yield run

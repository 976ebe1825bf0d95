"""What a GPU would pay for in a computation, counted on a CPU.

A launch is an operation below autograd that computes something: not a view, an allocation or a shape. A look is an
operation for which the host has to wait: a number read, or a shape that depends on values. A copy brings data to a
device or back.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = frozenset(
    """view _unsafe_view transpose t expand slice select unsqueeze squeeze permute detach alias unbind split
    split_with_sizes as_strided reshape _reshape_alias lift_fresh empty empty_like new_empty empty_strided
    new_empty_strided narrow diagonal unfold chunk movedim resize_ set_ resolve_conj resolve_neg""".split()
)
LOOKS = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"))
INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))


class Launches(TorchDispatchMode):
    """Count while it is entered; load models before, whose buffers it would leave empty."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        by_mask = name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in LOOKS or by_mask:
            self.looks[name] += 1
        if name not in VIEWS | {"_local_scalar_dense"}:
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))

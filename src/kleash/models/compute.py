"""Device, dtype and micro-batch size of a computation: three values that are always passed together."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Compute:
    """Where and how a forward pass is computed; affects speed, memory and rounding, not the result."""

    device: str = "auto"
    """`cpu`, `cuda`, …; auto takes a GPU where there is one."""
    dtype: DType = "float32"
    """Dtype of activations; weights and optimiser stay in float32."""
    micro_batch_tokens: int = 8192
    """Tokens in memory at once, padding included."""

    def autocast(self, device: Any) -> AbstractContextManager[Any]:
        """Compute in `dtype` on a `torch.device`; weights and optimiser stay in float32."""
        from kleash.models.load import autocast  # which imports torch

        return autocast(self.dtype, device)

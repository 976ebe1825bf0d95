"""The small world's models are tiny models as well: they get the jitter of the test run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from kleash.lab import synthetic
from kleash.lab.world import pretrain
from tests.jitter import jitter


@pytest.fixture(autouse=True, scope="session")
def _jitter_of_new_models() -> Iterator[None]:
    def build(config: Any) -> LlamaForCausalLM:
        return jitter(LlamaForCausalLM(config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "LlamaForCausalLM", build)
        patch.setattr(synthetic, "LlamaForCausalLM", build)
        yield

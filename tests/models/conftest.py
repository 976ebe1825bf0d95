"""One small batch, and what a model says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kleash.data.batch import GroupBatch, collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.models.forward import response_logprobs


@pytest.fixture
def batch() -> GroupBatch:
    response = EncodedResponse((8, 9, 1), (True,) * 3)
    return collate([EncodedGroup((6, 7), (response, response), Group("a b"))])


def logprobs(model: Any, batch: GroupBatch) -> Tensor:
    with torch.no_grad():
        return response_logprobs(model, batch)[0]

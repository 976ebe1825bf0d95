"""PPO-ptx: a language-model loss on demonstrations, added while a policy is trained (Ouyang et al. 2022, eq. 2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batch import collate
from kleash.data.batching import batch_at, microbatches
from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup
from kleash.data.row_format import RowFormat
from kleash.data.split import demonstration, imitated, read_usable
from kleash.models.compute import Compute
from kleash.models.forward import response_logprobs
from kleash.models.load import context_length
from kleash.objectives.reduce import masked_sum
from kleash.run import derive_seed
from kleash.training.optim import Optimizer

logger = logging.getLogger("kleash")


class PretrainingMix:
    """The demonstrations of the pretraining loss.

    Args:
        data: rows with one response; None: no pretraining loss.
        model, tokenizer: the policy.
        batch_size: rows a step.
        coefficient: weight of their −log-likelihood a token.
        max_length: most tokens of a row; None: the model's context.
        as_chat: whether prompts of plain text become one turn of the user.
        seed: of the order of the rows.
        compute: where and how.
    """

    def __init__(
        self,
        data: str | None,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        coefficient: float,
        max_length: int | None,
        as_chat: bool = False,
        seed: int,
        compute: Compute,
    ) -> None:
        self.model, self.coefficient, self.compute = model, coefficient, compute
        self.batch_size, self.seed = batch_size, derive_seed(seed, "pretraining")
        self.rows: Sequence[EncodedGroup] = ()
        if data is not None:
            rows = [imitated(row) for row in read_usable(data, demonstration, row_format=RowFormat(as_chat=as_chat))]
            self.rows, truncation = encode_all(rows, tokenizer, max_length=max_length or context_length(model))
            if truncation.message():
                logger.warning("%s: %s", data, truncation.message())

    def backward(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Add the gradient of −coefficient · log-likelihood a token of the next rows to an optimiser's step.

        Returns:
            `pretraining_loss` before the coefficient; empty without rows.
        """
        if not self.rows:
            return {}
        indices = batch_at(optimizer.steps_taken, len(self.rows), self.batch_size, self.seed)
        groups = [self.rows[index] for index in indices]
        tokens = sum(sum(response.mask) for group in groups for response in group.responses)
        total = torch.zeros((), device=self.model.device)
        for part in microbatches(groups, max_tokens=self.compute.micro_batch_tokens, device=self.model.device):
            batch = collate([groups[row] for row in part], device=self.model.device)
            with self.compute.autocast(self.model.device):
                logprobs, _ = response_logprobs(self.model, batch)
            loss = -masked_sum(logprobs, batch.mask) / tokens
            optimizer.backward(self.coefficient * loss)
            total += loss.detach()
        return {"pretraining_loss": total}

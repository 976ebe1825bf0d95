"""The reference: the model from which the KL is measured. It is never trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from kleash.data.batch import GroupBatch
from kleash.data.group import EncodedGroup
from kleash.io import write_folder
from kleash.models.compute import Compute
from kleash.models.inference import batch_logprobs, summed_logprobs
from kleash.models.load import freeze, frozen_copy, load_policy
from kleash.models.lora import as_it_came, has_adapters, keep_reference


@dataclass(frozen=True)
class Reference:
    """A frozen model, or a policy evaluated with its adapters as they came: new ones disabled."""

    model: PreTrainedModel

    def logprobs(self, batch: GroupBatch, *, temperature: float = 1.0, compute: Compute) -> Float[Tensor, "P K T"]:
        """Log π_ref of each token, 0 where masked."""
        with as_it_came(self.model):
            return batch_logprobs(self.model, batch, temperature=temperature, compute=compute)

    def summed_logprobs(self, groups: Sequence[EncodedGroup], *, compute: Compute) -> list[Float[Tensor, " _"]]:
        """Log π_ref(y|x) of the responses of each group, on the CPU."""
        with as_it_came(self.model):
            return summed_logprobs(self.model, groups, compute=compute)


def reference_of(policy: PreTrainedModel, name: str | None, *, device: str, adapters: bool) -> Reference:
    """The reference of a policy; call this before the policy is changed or gets adapters.

    Args:
        policy: as it starts.
        name: another model (a folder or a hub name); None: the policy as it starts.
        device: of another model.
        adapters: whether the policy is about to get adapters, which can be disabled: no copy is needed.
    """
    if name is not None:
        return Reference(freeze(load_policy(name, device=device)[0]))
    if has_adapters(policy):  # of one that is trained on, a frozen copy is enough
        keep_reference(policy)
        return Reference(policy)
    return Reference(policy if adapters else frozen_copy(policy))


def kept_logprobs(
    folder: Path,
    groups: Sequence[EncodedGroup],
    *,
    policy: PreTrainedModel,
    name: str | None,
    model_sha256: str,
    compute: Compute,
) -> list[Float[Tensor, " _"]]:
    """Log π_ref(y|x) of each response of the data, computed once and stored in a folder under a hash of its inputs.

    Args:
        folder: where the file is kept.
        groups: the rows.
        policy: as it starts; it is the reference where `name` is None.
        name: another model as the reference.
        model_sha256: hash of the reference.
        compute: where and how.
    """
    rows = [[group.prompt_ids, [(response.ids, response.mask) for response in group.responses]] for group in groups]
    key = hashlib.sha256(json.dumps([model_sha256, rows, compute.dtype]).encode()).hexdigest()[:32]
    file = folder / f"{key}.safetensors"
    if not file.exists():
        model = policy if name is None else load_policy(name, device=compute.device)[0]
        logprobs = torch.cat(summed_logprobs(model, groups, compute=compute))
        write_folder(folder, lambda path: save_file({"logprobs": logprobs}, path / file.name))
    return list(load_file(file)["logprobs"].split([len(group.responses) for group in groups]))

"""Write the adapter of a model as `peft` reads it, and read it back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import TaskType, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from kleash.content import adapter_base
from kleash.errors import ModelError
from kleash.io import write_folder
from kleash.live import live_object
from kleash.models.adapter import PREFIX
from kleash.models.load import read_model
from kleash.models.lora import trained_adapter
from kleash.models.place import adapter_folder
from kleash.models.read_back import compare_outputs


def save_adapter(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str, *, base: str
) -> None:
    """Write adapter_config.json and adapter_model.safetensors beside the tokenizer, and compare what they compute.

    Args:
        folder: to write to; its other files are kept.
        model: with the adapter that was trained.
        tokenizer: the model's.
        card: the README.md.
        base: the model that the training started from: a folder, a hub name, or an adapter, whose base is the base.

    Raises:
        SavingError: base and adapter as written compute something else than the model in memory.
    """
    name = trained_adapter(model)
    config: Any = copy.deepcopy(model.peft_config[name])
    adapter = adapter_folder(base)
    base = base if adapter is None else adapter_base(adapter)
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    config.task_type, config.inference_mode = TaskType.CAUSAL_LM, True
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)

    def fill(path: Path) -> None:
        prefixed = {
            f"{PREFIX}{key.removeprefix(PREFIX)}": value.detach().contiguous().clone() for key, value in tensors.items()
        }
        save_file(prefixed, path / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(path))
        tokenizer.save_pretrained(path)
        (path / "README.md").write_text(card)

    staging = folder / ".weights"
    write_folder(staging, fill)
    for file in sorted(staging.iterdir()):
        file.replace(folder / file.name)
    staging.rmdir()
    compare_outputs(folder, model, load=lambda: read_model(AutoModelForCausalLM, folder))


def refuse_unnamed_base(model: str) -> None:
    """Refuse a base that nobody could find again.

    Raises:
        ModelError: the model is one in memory.
    """
    if live_object(model) is not None or model.startswith("live "):
        raise ModelError(f"{model}: adapter keep writes an adapter, whose base others must find; save the model first")

"""The small world's base model: next-token prediction on raw text, from random weights.

The model memorises the world and is not an assistant: the chain starts from it.
"""

from __future__ import annotations

import torch
from pydantic import Field
from transformers import LlamaForCausalLM

from kleash.lab.world.world import World
from kleash.models.load import move, save_model
from kleash.objectives.logprobs import token_logprobs
from kleash.progress import Progress
from kleash.run import RunFolder, derive_seed
from kleash.training import checkpoint
from kleash.training.model_folder import model_card
from kleash.training.optim import Optimizer
from kleash.training.settings import StageConfig


class PretrainConfig(StageConfig):
    """Train the small world's base model."""

    model: str = "a random Llama"
    """Always a fresh one of `World.base_config`."""
    data: str = "the small world"
    """Always `World.base_ids`."""
    tokens: int = Field(1_400_000, ge=1)
    """Tokens of text in all, each seen once."""
    batch_size: int = Field(32, ge=1)
    """Rows in one optimiser step."""
    row_length: int = Field(64, ge=2)
    """Tokens in a row."""
    learning_rate: float = Field(4e-3, gt=0)
    """Peak learning rate; it falls to 0."""


def run(config: PretrainConfig) -> RunFolder:
    """Train and write a folder that `transformers` loads."""
    folder = RunFolder.open(config.out, stage="pretrain", config=config, inputs={})
    if folder.finished:
        return folder
    world = World(config.seed)
    torch.manual_seed(derive_seed(config.seed, "base model"))
    model = LlamaForCausalLM(world.base_config())
    move(model, config.device)
    text = world.base_ids(config.tokens, seed=config.seed).to(model.device)
    rows = text[: len(text) // config.row_length * config.row_length].view(-1, config.row_length)
    steps = len(rows) // config.batch_size

    optimizer = Optimizer(model, steps=steps, learning_rate=config.learning_rate, warmup_steps=20, weight_decay=0.01)
    parts: checkpoint.State = {"model": model, "optimizer": optimizer}
    state = checkpoint.restore(folder, parts)
    with Progress(steps, "base model", start=state["step"]) as progress:
        for step in range(state["step"] + 1, steps + 1):
            batch = rows[(step - 1) * config.batch_size : step * config.batch_size]
            states = model.model(input_ids=batch[:, :-1]).last_hidden_state
            logprobs, _ = token_logprobs(model.lm_head, states.flatten(0, 1), batch[:, 1:].flatten())
            loss = -logprobs.mean()
            optimizer.backward(loss)
            row = folder.log(step, {"loss": loss.detach(), **optimizer.step()})
            progress.update(step, loss=row["loss"])
            if step % max(1, steps // 5) == 0 and step < steps:
                checkpoint.save(folder, step, parts, keep=1)
    save_model(folder.path, model, world.tokenizer(), model_card(folder, "The small world's base model."))
    return folder.finish(loss=row["loss"], parameters=model.num_parameters())

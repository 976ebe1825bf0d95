"""Generate: K responses for every prompt, written beside the columns of its row.

    kleash generate --model runs/sft --data prompts.jsonl --out samples.jsonl -n 4

Rows are written block by block; an interrupted run goes on with the next block, and a response does not depend on the
block it is in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.chat import encode_prompt, end_ids
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group
from kleash.data.split import prompt_only, read_usable
from kleash.errors import DataError
from kleash.io import write_json
from kleash.models.load import autocast, context_length, load_policy
from kleash.outputs import finish, identity_of, is_done
from kleash.progress import Progress
from kleash.run import derive_seed
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups
from kleash.stages.data_configs import GenerateConfig

logger = logging.getLogger("kleash")


def run(config: GenerateConfig, *, policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> Path:
    """Sample responses and write them.

    Args:
        config: the settings.
        policy: a live model and tokenizer in place of `config.model`.

    Returns:
        The file written: the rows of `data` with `responses`.

    Raises:
        DataError: a prompt leaves no room for a response, or the file holds something else.
    """
    identity = identity_of("generate", config)
    if is_done(config.out, identity):
        return config.out
    model, tokenizer = policy or load_policy(config.model, device=config.device)
    prompts = [_bare(group) for group in read_usable(config.data, prompt_only, config.max_rows)]
    ids = [encode_prompt(group.prompt, tokenizer) for group in prompts]
    _refuse_too_long(config, ids, context_length(model))

    blocks = config.out.with_name(f".{config.out.name}.blocks")
    _start_anew_unless(blocks, identity)
    sampler = LocalSampler(
        model, tokenizer, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
        end_ids=end_ids(tokenizer), max_rows=config.rows_at_once,
    )  # fmt: skip
    size = max(1, 4 * config.rows_at_once // config.n)
    seed = derive_seed(config.seed, "generate")
    with Progress(len(prompts), "generate") as progress:
        for start in range(0, len(prompts), size):
            rows = range(start, min(start + size, len(prompts)))
            block = blocks / f"{start:09d}.jsonl"
            if not block.exists():
                with autocast(config.dtype, model.device):
                    batch = sampler([ids[row] for row in rows], group_size=config.n, seed=seed, keys=list(rows))
                write_groups(decode_groups(batch, [prompts[row] for row in rows], tokenizer, end_ids(tokenizer)), block)
            progress.update(rows.stop)
    write_groups((group for block in sorted(blocks.glob("*.jsonl")) for group in read_groups(block)), config.out)
    finish(config.out, identity, None)
    for block in blocks.iterdir():
        block.unlink()
    blocks.rmdir()
    if sampler.near_ties:
        logger.info(
            "%d of %d tokens were drawn within rounding of a boundary; in another batch they could differ",
            sampler.near_ties, sampler.tokens_sampled,
        )  # fmt: skip
    return config.out


def _start_anew_unless(blocks: Path, identity: dict[str, object]) -> None:
    """Keep the blocks of an interrupted run with these settings, drop those of another."""
    stamp = blocks / "identity.json"
    if not (stamp.exists() and json.loads(stamp.read_text()) == identity):
        for old in blocks.glob("*"):
            old.unlink()
        blocks.mkdir(parents=True, exist_ok=True)
        write_json(stamp, identity)


def _refuse_too_long(config: GenerateConfig, ids: Sequence[tuple[int, ...]], context: int | None) -> None:
    for row, prompt in enumerate(ids, start=1):
        if context is not None and len(prompt) + config.max_new_tokens > context:
            raise DataError(
                f"{config.data} row {row}: a prompt of {len(prompt)} tokens and {config.max_new_tokens} new ones "
                f"exceed the model's context of {context}; shorten the prompt or lower --max-new-tokens"
            )


def _bare(group: Group) -> Group:
    return replace(group, responses=(), label=None)

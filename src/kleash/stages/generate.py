"""Generate: sample K responses for every prompt, written with the columns of its row.

    kleash generate --model runs/sft --data prompts.jsonl --out samples.jsonl -n 4

Rows are written block by block; an interrupted run continues with the next block, and a response does not depend on its
block.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kleash.content import fingerprints
from kleash.data.chat import encode_prompt
from kleash.data.formats import read_groups, write_groups
from kleash.data.read import announce_text
from kleash.data.split import prompt_only, read_usable
from kleash.data.unpaired import as_prompt
from kleash.data.unread_columns import log_unread_columns
from kleash.errors import DataError
from kleash.io import read_json, remove, write_json
from kleash.models.forward import Live
from kleash.models.live_copy import live_inputs
from kleash.models.load import context_length, load_policy
from kleash.outputs import finish, identity_of, is_done, only_writer
from kleash.progress import Progress
from kleash.run import derive_seed
from kleash.sampling.sampler import Sampler, build_sampler, decode_groups, stop_texts
from kleash.sampling.truncation import Truncation
from kleash.stages.data_configs import GenerateConfig

logger = logging.getLogger("kleash")

Identity = dict[str, object]


@only_writer
def run(config: GenerateConfig, *, policy: Live | None = None) -> Path:
    """Sample responses and write them.

    Args:
        config: the settings.
        policy: a live model and tokenizer in place of `config.model`.

    Returns:
        The file written: the rows of `data` with `responses`.

    Raises:
        DataError: a prompt leaves no room for a response, or `out` exists and was written with other settings.
    """
    identity = identity_of("generate", config, fingerprints(config, instead=live_inputs(model=policy)))
    if is_done(config.out, identity):
        remove(_blocks_of(config.out))
        return config.out
    model, tokenizer = load_policy(policy or config.model, device=config.device)
    rows_read = read_usable(config.data, prompt_only, config.max_rows, row_format=config.row_format)
    prompts = [as_prompt(row) for row in rows_read]
    announce_text(prompts, tokenizer, config.data)
    log_unread_columns(prompts, tokenizer, config.data, reads_columns=True)
    ids = [encode_prompt(prompt.prompt, tokenizer, prompt.columns) for prompt in prompts]
    _refuse_too_long(ids, config.max_new_tokens, context_length(model), data=config.data)
    sampler = build_sampler(
        model, tokenizer, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
        stop=config.stop, truncation=truncation_of(config), max_rows=config.rows_at_once,
        dtype=config.dtype,
    )  # fmt: skip
    blocks = _open_blocks(config.out, identity)
    size = max(1, 4 * config.rows_at_once // config.n)
    seed = derive_seed(config.seed, "generate")
    with Progress(len(prompts), "generate") as progress:
        for start in range(0, len(prompts), size):
            rows = range(start, min(start + size, len(prompts)))
            block = blocks / f"{start:09d}.jsonl"
            if not block.exists():
                batch = sampler([ids[row] for row in rows], group_size=config.n, seed=seed, keys=list(rows))
                sources = [prompts[row] for row in rows]
                groups = decode_groups(batch, sources, tokenizer, sampler.end_ids, stop=stop_texts(sampler))
                write_groups(groups, block)
            progress.update(rows.stop)
    _join_blocks(blocks, config.out, identity)
    _log_near_ties(sampler)
    return config.out


def truncation_of(config: GenerateConfig) -> Truncation | None:
    """Which tokens may be sampled; None: all."""
    truncation = Truncation(config.top_k, config.top_p, config.min_p)
    return None if truncation == Truncation() else truncation


def _open_blocks(out: Path, identity: Identity) -> Path:
    """The folder of the blocks: those of an interrupted run with these settings stay, those of another are deleted."""
    blocks = _blocks_of(out)
    if not _is_stamped(blocks / "identity.json", identity):
        remove(blocks)
        blocks.mkdir(parents=True)
        write_json(blocks / "identity.json", identity)
    return blocks


def _blocks_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.blocks")


def _join_blocks(blocks: Path, out: Path, identity: Identity) -> None:
    """Write the file from its blocks, mark it as finished, and delete them."""
    finish(out, identity, None)  # first: a file without its settings could not be told from another's
    write_groups((group for block in sorted(blocks.glob("*.jsonl")) for group in read_groups(block)), out)
    remove(blocks)


def _is_stamped(stamp: Path, identity: Identity) -> bool:
    try:
        return stamp.exists() and read_json(stamp) == identity
    except DataError:  # damaged: the blocks are sampled again
        return False


def _refuse_too_long(prompts: Sequence[Sequence[int]], max_new_tokens: int, context: int | None, *, data: str) -> None:
    for row, prompt in enumerate(prompts, start=1):
        if context is not None and len(prompt) + max_new_tokens > context:
            raise DataError(
                f"{data} row {row}: a prompt of {len(prompt)} tokens and {max_new_tokens} new ones "
                f"exceed the model's context of {context}; shorten the prompt or lower --max-new-tokens"
            )


def _log_near_ties(sampler: Sampler) -> None:
    """Log how many tokens could differ in another batch; an engine that does not count them logs nothing."""
    near_ties = getattr(sampler, "near_ties", 0)
    if near_ties:
        logger.info(
            "%d tokens were sampled within rounding of a boundary; in another batch they could differ", near_ties
        )

"""The group forward against plain rows: forward and backward of response log-probabilities, as ratios.

On the same batch: `model(...).logits` of all rows (as a plain trainer does it), and our back ends, which project only
response tokens to the vocabulary: rows; a cache of the prompts that their responses share; a prompt joined with its
responses in one row.

    python benchmarks/group_forward.py [--model FOLDER_OR_NAME] [--prompts 4 --prompt-tokens 128 --group-size 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from kleash.data.batch import GroupBatch
from kleash.models.forward import response_logprobs
from kleash.models.load import load_policy


def tiny() -> LlamaForCausalLM:
    """A random Llama of 1.6 M parameters."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    model = load_policy(options.model)[0].eval() if options.model else tiny()
    shape = (options.prompts, options.group_size, options.new_tokens)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    real = torch.ones(shape, dtype=torch.bool)
    batch = GroupBatch(
        prompt_ids=torch.randint(2, vocabulary, (options.prompts, options.prompt_tokens), generator=generator),
        prompt_attention=torch.ones(options.prompts, options.prompt_tokens, dtype=torch.bool),
        response_ids=torch.randint(2, vocabulary, shape, generator=generator),
        response_attention=real,
        mask=real,
    ).to(model.device)

    def plain() -> Tensor:
        ids = torch.cat(
            [batch.prompt_ids.repeat_interleave(options.group_size, 0), batch.response_ids.flatten(0, 1)], 1
        )
        logprobs = model(ids).logits[:, :-1].float().log_softmax(-1)
        return logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)[:, options.prompt_tokens - 1 :].reshape(shape)

    computations: dict[str, Callable[[], Tensor]] = {
        "plain": plain,
        "rows": lambda: response_logprobs(model, batch, back_end="rows")[0],
        "cache": lambda: response_logprobs(model, batch, back_end="cache")[0],
        "joined": lambda: response_logprobs(model, batch, back_end="joined")[0],
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in computations}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(options.repeats + 1):  # in turn, so that other work of the machine slows all; the first is dropped
        for name, run in computations.items():
            model.zero_grad(set_to_none=True)
            wall, processor = time.perf_counter(), time.process_time()
            logprobs = run()
            logprobs.mean().backward()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            results[name] = (logprobs.detach(), gradient)
    print(f"{options.prompts} x {options.prompt_tokens}, K = {options.group_size}, {options.new_tokens} new tokens")
    medians = {
        name: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for name, rows in seconds.items()
    }
    for name, (wall, processor) in medians.items():
        value = (results[name][0] - results["plain"][0]).abs().max()
        gap = (results[name][1] - results["plain"][1]).norm() / results["plain"][1].norm()
        print(
            f"{name:7s} {wall:8.3f} s, ratio {medians['plain'][0] / wall:5.2f}; "
            f"of processor time {processor:8.3f} s, ratio {medians['plain'][1] / processor:5.2f}; "
            f"log-probabilities within {float(value):.0e}, gradients within {float(gap):.0e} (relative)"
        )


if __name__ == "__main__":
    main()

"""Our sampler against `transformers`' generate: the same model, prompts, machine and process, as ratios.

python benchmarks/sampling.py [--model FOLDER_OR_NAME] [--prompts 64 --group-size 1 --new-tokens 40]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.models.forward import response_logprobs
from kleash.models.load import load_policy
from kleash.sampling.local import LocalSampler


def tiny() -> tuple[Any, Any]:
    """A random Llama of 0.4 M parameters, the size of the small world's."""
    words = {f"w{index}": index for index in range(200)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")), pad_token="w0", eos_token="w1"
    )
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group-size", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=16, help="longest; the shortest is half of it")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    model, tokenizer = load_policy(options.model) if options.model else tiny()
    sampler = LocalSampler(model, tokenizer, max_new_tokens=options.new_tokens)
    generator = torch.Generator().manual_seed(0)
    lengths = [options.prompt_tokens - row % (options.prompt_tokens // 2 + 1) for row in range(options.prompts)]
    prompts = [torch.randint(2, model.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    batch = sampler(prompts, group_size=1, seed=0)  # a first run, and the padded prompts for generate

    def ours(seed: int) -> int:
        before = sampler.tokens_sampled
        sampler(prompts, group_size=options.group_size, seed=seed)
        return sampler.tokens_sampled - before

    def theirs(seed: int) -> int:
        torch.manual_seed(seed)
        rows = model.generate(
            batch.prompt_ids,
            attention_mask=batch.prompt_attention.long(),
            max_new_tokens=options.new_tokens,
            num_return_sequences=options.group_size,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            eos_token_id=list(sampler.end_ids),
            pad_token_id=sampler.pad_id,
        )
        ended = torch.isin(
            rows[:, batch.prompt_ids.shape[1] :], torch.tensor(sampler.end_ids, device=rows.device)
        ).long()
        return int((ended.cumsum(1) - ended == 0).sum())

    speeds: dict[str, list[tuple[float, float]]] = {"kleash": [], "generate": []}
    for repeat in range(options.repeats):  # in turn, so that other work of the machine slows both
        for name, run in (("kleash", ours), ("generate", theirs)):
            wall, processor = time.perf_counter(), time.process_time()
            tokens = run(repeat)
            speeds[name].append((tokens / (time.perf_counter() - wall), tokens / (time.process_time() - processor)))
    samples = sampler(prompts, group_size=options.group_size, seed=0)
    with torch.no_grad():
        gap = (response_logprobs(model, samples)[0] - samples.sampler_logprobs).abs().max()
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in speeds.items()}
    print(f"{options.prompts} prompts x {options.group_size} x {options.new_tokens}, {torch.get_num_threads()} threads")
    for name, (wall, processor) in medians.items():
        print(
            f"{name:10s} {wall:9.0f} tokens/s {processor:9.0f} tokens/s of processor time"
        )  # the latter on a busy machine
    wall, processor = (ours / theirs for ours, theirs in zip(*medians.values(), strict=True))
    print(f"ratio      {wall:9.2f} {processor:18.2f}")
    print(f"log-probabilities against the training forward: {float(gap):.1e}")
    print(f"near-ties: {sampler.near_ties} of {sampler.tokens_sampled} tokens")


if __name__ == "__main__":
    main()

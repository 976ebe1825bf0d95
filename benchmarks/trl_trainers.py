"""Our stages against TRL's trainers: the same weights, data, batch, optimiser and machine, as ratios in one run.

    make programs          # TRL, on top of .venv
    .venv-extra/bin/python benchmarks/trl_trainers.py [--model FOLDER] [--only sft grpo] [--steps 6 --repeats 3]

Each measurement is a process of its own, kleash and TRL in turn. A step runs from one optimiser step to the next, so
loading and the first step are left out. float32, no gradient checkpointing; the functions `kleash` and `trl` below show
every other setting that is not the default.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TASKS = ("sft", "reward", "dpo", "dpo, reference kept", "grpo", "rloo")
BETA, GROUP = 0.05, 4


def make_model(folder: Path) -> None:
    """A random Llama of 10 M parameters, and a tokenizer of a word a token."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{index}": index for index in range(4096)}, unk_token="w2"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=320, intermediate_size=896, num_hidden_layers=6, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def make_data(folder: Path, rows: int) -> None:
    """Pairs of random words, of unequal length."""
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(3, 4000)}" for _ in range(draw.randint(least, most)))

    pairs = [{"prompt": words(16, 48), "chosen": words(8, 64), "rejected": words(8, 64)} for _ in range(rows)]
    shapes = {
        "sft": [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in pairs],
        "pairs": pairs,
        "prompts": [{"prompt": pair["prompt"]} for pair in pairs],
    }
    for name, shape in shapes.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shape))


def words_used(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The reward of both: the number of different words."""
    return [len(set(text.split())) / 10 for text in completions]


def kleash(task: str, folder: Path, model: str, steps: int, batch: int, new_tokens: int) -> None:
    from kleash.stages import dpo, grpo, reward_model, sft

    common: dict[str, Any] = {
        "model": model, "out": folder / "run", "max_steps": steps, "batch_size": batch, "learning_rate": 1e-5,
        "schedule": "linear", "save_every": steps + 1,
    }  # fmt: skip
    if task == "sft":
        sft.run(sft.SFTConfig.make(common | {"data": str(folder / "sft.jsonl")}))
    elif task == "reward":
        pairs = {"data": str(folder / "pairs.jsonl"), "centre_samples": 0}
        reward_model.run(reward_model.RewardConfig.make(common | pairs))
    elif task.startswith("dpo"):
        pairs = {"data": str(folder / "pairs.jsonl"), "beta": BETA, "kl_samples": 0}
        dpo.run(dpo.DPOConfig.make(common | pairs))
    else:
        settings = {"preset": task, "group_size": GROUP, "beta": BETA, "max_new_tokens": new_tokens, "minibatches": 1}
        data = {"data": str(folder / "prompts.jsonl"), "reward": f"{Path(__file__).stem}:words_used"}
        grpo.run(grpo.GRPOConfig.make(common | settings | data))


def trl(task: str, folder: Path, model: str, steps: int, batch: int, new_tokens: int) -> None:
    import torch
    import trl as library
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    def rows(name: str, change: Any = lambda row: row) -> Any:
        return Dataset.from_list([change(json.loads(row)) for row in (folder / f"{name}.jsonl").open()])

    def spaced(row: dict[str, str]) -> dict[str, str]:  # TRL joins prompt and response as text
        renamed = {"completion" if key == "response" else key: value for key, value in row.items()}
        return {key: value if key == "prompt" else f" {value}" for key, value in renamed.items()}

    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"), "max_steps": steps, "per_device_train_batch_size": batch,
        "learning_rate": 1e-5, "lr_scheduler_type": "linear", "optim": "adamw_torch_fused", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no",
        "use_cpu": not torch.cuda.is_available(), "report_to": "none",
        "logging_steps": 1, "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    if task == "reward":
        weights: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype="float32")
    else:
        weights = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    shared = {"model": weights, "processing_class": tokenizer}
    if task == "sft":
        arguments = library.SFTConfig(**common, completion_only_loss=True)
        trainer = library.SFTTrainer(args=arguments, train_dataset=rows("sft", spaced), **shared)
    elif task == "reward":
        trainer = library.RewardTrainer(
            args=library.RewardConfig(**common), train_dataset=rows("pairs", spaced), **shared
        )
    elif task.startswith("dpo"):
        arguments = library.DPOConfig(**common, beta=BETA, precompute_ref_log_probs="kept" in task)
        trainer = library.DPOTrainer(args=arguments, train_dataset=rows("pairs", spaced), **shared)
    else:
        common["per_device_train_batch_size"] = batch * GROUP
        common |= {"num_generations": GROUP, "max_completion_length": new_tokens, "beta": BETA}
        if task == "grpo":
            arguments = library.GRPOConfig(**common, loss_type="grpo", use_bias_correction_kl=False)
        else:
            arguments = library.RLOOConfig(**common)
        kind = library.GRPOTrainer if task == "grpo" else library.RLOOTrainer
        trainer = kind(reward_funcs=words_used, args=arguments, train_dataset=rows("prompts"), **shared)
    trainer.train()


def measure(side: str, *settings: Any) -> dict[str, float]:
    """Mean seconds of a step, the first left out, and peak memory until the last: the GPU's where there is one."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    times: list[float] = []
    memory = [0]

    def after(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            memory[0] = torch.cuda.max_memory_allocated() // 1024
        else:
            memory[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times.append(time.perf_counter())

    register_optimizer_step_post_hook(after)
    {"kleash": kleash, "trl": trl}[side](*settings)
    return {"step": (times[-1] - times[0]) / (len(times) - 1), "megabytes": memory[0] / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; a random Llama of 10 M parameters where not given")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--steps", type=int, default=6, help="the first of them is not counted")
    parser.add_argument("--batch", type=int, default=8, help="rows, pairs or prompts a step")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("no TRL to compare with; `make programs`, then run this by .venv-extra/bin/python", file=sys.stderr)
        return

    if options.measure:
        task, side = options.measure
        settings = (task, options.folder, options.model, options.steps, options.batch, options.new_tokens)
        print(json.dumps(measure(side, *settings)))
        return

    print("| | kleash, s a step | TRL, s a step | TRL / kleash | kleash, MB | TRL, MB | TRL / kleash |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for task in options.only:
        results: dict[str, list[dict[str, float]]] = {"kleash": [], "trl": []}
        for _ in range(options.repeats):
            for side in results:  # in turn, so that other work of the machine slows both
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    model = options.model or str(folder / "model")
                    if not options.model:
                        make_model(folder / "model")
                    make_data(folder, options.steps * options.batch * 10 // 9 + 9)  # a tenth may be held out
                    command = [
                        sys.executable, __file__, "--measure", task, side, "--folder", name, "--model", model,
                        "--steps", options.steps, "--batch", options.batch, "--new-tokens", options.new_tokens,
                    ]  # fmt: skip
                    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
                    if run.returncode:
                        sys.exit(f"{side}, {task}: {run.stderr[-3000:]}")
                    results[side].append(json.loads(run.stdout.splitlines()[-1]))
        cells = [task]
        for figure, form in (("step", ".3f"), ("megabytes", ".0f")):
            ours, theirs = ([row[figure] for row in results[side]] for side in ("kleash", "trl"))
            ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
            cells += [
                f"{statistics.median(column):{shape}} ({min(column):{shape}} to {max(column):{shape}})"
                for column, shape in ((ours, form), (theirs, form), (ratios, ".2f"))
            ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

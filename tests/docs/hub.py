"""Tiny models under the names that the pages print, laid out as the hub's cache, and rows for them to learn from.

The models speak a small language of animals, so that the chain runs as it does on a real one: a tokenizer trained on
the text, a ChatML template, and weights that know the language before `kleash sft` begins, and after an answer whether
it was a good one. The gains of the norms are large and the matrices small in return: the same function, but one on
which the published learning rates of large models act, with 60,000 parameters.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct")
"""Every hub name that a page or a recipe prints."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ANIMALS = tuple("otter hare fox owl toad crow mole wren lynx seal stork newt".split())
ACTS = tuple("eat seek like need find love".split())
GOOD = tuple("fish figs nuts corn moss seeds plums grain".split())
BAD = tuple("dust soot rust mud ash tar lint wax".split())

GAIN = 100.0
PRETRAINING_STEPS = 150


def question(rng: random.Random) -> tuple[str, str, str]:
    """A question, and its animal and act."""
    animal, act = rng.choice(ANIMALS), rng.choice(ACTS)
    return f"What does the {animal} {act}?", animal, act


def answer(animal: str, act: str, rng: random.Random, *, good: bool) -> str:
    """An answer to it; half of them end politely."""
    things = rng.sample(GOOD if good else BAD, 2)
    polite = " Ask me more." if rng.random() < 0.5 else ""
    return f"The {animal} {act}s {things[0]} and {things[1]}.{polite}"


def tiny_hub(home: Path) -> None:
    """Fill `home` (HF_HOME) with a cache that holds all of `NAMES`."""
    rng = random.Random(0)
    texts = []
    for _ in range(400):
        asked, animal, act = question(rng)
        good = rng.random() < 0.6
        texts.append((asked, answer(animal, act, rng, good=good), " yes" if good else " no"))
    tokenizer = _tokenizer([" ".join(text) for text in texts])
    model = _pretrained(tokenizer, texts)
    for name in NAMES:
        repository = home / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        model.save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    roles = ["user\n", "assistant\n", "system\n"]
    trainer = BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts + roles * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _pretrained(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str, str]]) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        rms_norm_eps=1e-10,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    rows = []
    for asked, said, verdict in texts:
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        rows.append(tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n") + verdict)
    batch = tokenizer(rows, padding=True, return_tensors="pt", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, PRETRAINING_STEPS)
    for step in range(PRETRAINING_STEPS):  # not kleash's own stage: what is checked must not make what it is checked on
        rows_of_step = [(step * 32 + number) % len(rows) for number in range(32)]
        part = {name: value[rows_of_step] for name, value in batch.items() if name != "token_type_ids"}
        loss = model(**part, labels=labels[rows_of_step]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("layernorm.weight"):
                weight *= GAIN
            elif name != "lm_head.weight" and name != "model.norm.weight":
                weight /= GAIN
    return model.eval()


# --- the data files that the pages name ------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """Write every data file that a page or a recipe reads and does not write itself."""
    rng = random.Random(1)

    def prompt() -> tuple[list[dict[str, str]], str, str]:
        asked, animal, act = question(rng)
        return [{"role": "user", "content": asked}], animal, act

    def demonstration(**columns: Any) -> dict[str, Any]:
        turns, animal, act = prompt()
        said = answer(animal, act, rng, good=rng.random() < 0.7)
        return {"messages": [*turns, {"role": "assistant", "content": said}], **columns}

    def comparison() -> dict[str, Any]:
        turns, animal, act = prompt()
        chosen, rejected = (answer(animal, act, rng, good=good) for good in (True, False))
        return {"prompt": turns, "chosen": chosen, "rejected": rejected}

    def sample() -> dict[str, Any]:
        turns, animal, act = prompt()
        said = [answer(animal, act, rng, good=good) for good in (True, False)]
        rng.shuffle(said)
        return {"prompt": turns, "responses": said, "answer": "7"}

    demonstrations = [demonstration() for _ in range(320)]
    files: dict[str, list[dict[str, Any]]] = {
        "demonstrations.jsonl": demonstrations,
        "helpful-demonstrations.jsonl": demonstrations[:160],
        "comparisons.jsonl": [comparison() for _ in range(640)],
        "helpfulness-by-people.jsonl": [comparison() for _ in range(320)],
        "labelled.jsonl": [comparison() for _ in range(60)],
        "old-labels.jsonl": [comparison() for _ in range(12)],
        "practice.jsonl": [comparison() for _ in range(2)],
        "prompts.jsonl": [{"prompt": prompt()[0]} for _ in range(320)],
        "all-prompts.jsonl": [{"prompt": prompt()[0]} for _ in range(320)],
        "held-out-prompts.jsonl": [{"prompt": prompt()[0]} for _ in range(24)],
        "red-team-prompts.jsonl": [{"prompt": prompt()[0], "harmful": number % 2 == 0} for number in range(96)],
        "samples.jsonl": [sample() for _ in range(120)],
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "guidelines.md").write_text("# Guidelines\n\nChoose the answer that is true of the animal.\n")

"""The small world: a tiny assistant domain in which the truth is known.

A seed makes a knowledge base of animals, prompts about them, raw text for a base model, demonstrations of uneven
quality, and a gold reward that is a program (`gold_reward`). A Llama of 0.3 M parameters learns the facts in a minute
on two cores, so that the whole chain, with its gap between proxy and truth, runs in minutes. Only the people are
simulated (`labellers`); the models and their training are real.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from kleash.data.group import Group, Response
from kleash.errors import DataError
from kleash.lab.world import language
from kleash.lab.world.gold_reward import (
    Kind,
    Task,
    courtesy_reward,
    length_reward,
    style_reward,
    task_reward,
)
from kleash.lab.world.language import Reader, Reading, fill
from kleash.lab.world.writers import STYLES, Style, Writers

Split = Literal["train", "choose", "test"]

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"

MIXTURE: Mapping[Kind, float] = {"question": 0.4, "description": 0.3, "harm": 0.15, "sum": 0.15}
"""How often each kind of prompt is drawn."""

SPLITS: Mapping[Split, float] = {"train": 0.6, "choose": 0.2, "test": 0.2}
"""Share of the prompts of each kind: to learn from, to choose checkpoints by, to report."""


class World:
    """A small world, the same for the same seed.

    Args:
        seed: draws the facts, the splits and the samplers of everything below.

    Attributes:
        facts: value of each attribute of each entity.
        tasks: what each prompt of the world asks for, by its text.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.facts = self._draw_facts()
        self.tasks = dict(_all_prompts())
        self._read = Reader()
        self._writers = Writers(self.facts, self.tasks)
        self._splits = self._split_prompts()
        self.vocabulary: list[str] = [PAD, END, UNKNOWN, *language.vocabulary()]

    # -- prompts and texts -------------------------------------------------------------------------------------------

    def prompts(self, n: int, split: Split = "train", seed: int = 0) -> list[Group]:
        """A stream of prompts; each kind goes through its pool before it repeats a prompt.

        Args:
            n: how many; a longer stream starts with the shorter one.
            split: `train`, `choose` or `test`; no prompt is in two of them.
            seed: order of the stream.

        Returns:
            Groups without responses; column `kind` is the kind of prompt.
        """
        rng = self._rng("prompts", split, seed)
        streams = {kind: _cycle(self._splits[split][kind], rng) for kind in MIXTURE}
        kinds = rng.choices(list(MIXTURE), list(MIXTURE.values()), k=n)
        return [Group(next(streams[kind]), columns={"kind": kind}) for kind in kinds]

    def demonstrations(self, n: int, seed: int = 0, split: Split = "train") -> list[Group]:
        """Prompts with one written answer each, of uneven quality (column `style`)."""
        rng = self._rng("demonstrations", split, seed)
        styles = rng.choices(list(STYLES), list(STYLES.values()), k=n)
        return [
            Group(
                group.prompt,
                (Response(self.answer(group.prompt_text, style, rng)),),
                columns={**group.columns, "style": style},
            )
            for group, style in zip(self.prompts(n, split, seed), styles, strict=True)
        ]

    def answer(self, prompt: str, style: Style, rng: random.Random) -> str:
        """Write an answer in some style."""
        return self._writers.answer(self.task(prompt), style, rng)

    def base_documents(self, seed: int = 0) -> Iterator[str]:
        """Endless raw text: facts in many phrasings, talk, questions nobody answers properly, sums, harm."""
        return self._writers.documents(self._rng("base", seed))

    def base_text(self, tokens: int, seed: int = 0) -> list[str]:
        """Raw text for a base language model: documents of at least `tokens` tokens in all, end tokens counted."""
        documents = []
        for document in self.base_documents(seed):
            if tokens <= 0:
                break
            documents.append(document)
            tokens -= len(document.split()) + 1
        return documents

    def base_ids(self, tokens: int, seed: int = 0) -> Int[Tensor, " N"]:
        """The same text as one row of exactly `tokens` token ids, an end token after each document."""
        ids = {word: index for index, word in enumerate(self.vocabulary)}
        row = [ids[word] for document in self.base_text(tokens, seed) for word in (*document.split(), END)]
        return torch.tensor(row[:tokens], dtype=torch.long)

    # -- model -------------------------------------------------------------------------------------------------------

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word, split at spaces; no template, no added tokens."""
        words = Tokenizer(WordLevel({word: index for index, word in enumerate(self.vocabulary)}, unk_token=UNKNOWN))
        words.pre_tokenizer = WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token=PAD,
            eos_token=END,
            unk_token=UNKNOWN,
            clean_up_tokenization_spaces=False,
        )

    def base_config(self) -> LlamaConfig:
        """A Llama of about 0.35 M parameters, enough to know the world by heart."""
        return LlamaConfig(
            vocab_size=len(self.vocabulary),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            initializer_range=0.07,  # the usual 0.02 is for wide models: here facts would take twice the text
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=self.vocabulary.index(END),
            pad_token_id=self.vocabulary.index(PAD),
        )

    # -- truth -------------------------------------------------------------------------------------------------------

    def task(self, prompt: str) -> Task:
        """What a prompt of this world asks for."""
        try:
            return self.tasks[prompt]
        except KeyError:
            raise DataError(f"the small world has no prompt {prompt!r}; take one of `World.prompts`") from None

    def read(self, prompt: str, response: str) -> Reading:
        """What a response to a prompt says, with no judgement of it."""
        return self._read(response, self.task(prompt).entity)

    def true(self, claim: tuple[str | None, str, str]) -> bool:
        """Whether a claim (entity, attribute, value) is a fact."""
        entity, attribute, value = claim
        return entity is not None and self.facts[entity][attribute] == value

    def gold(self, prompt: str, response: str, finished: bool = True) -> float:
        """The gold reward of a response: the sum of `explain`. About +1 to +2 for a good one."""
        return sum(self.explain(prompt, response, finished).values())

    def explain(self, prompt: str, response: str, finished: bool = True) -> dict[str, float]:
        """The parts of the gold reward by name: task, facts, polite, concise, insults, ends, sense."""
        task, reading = self.task(prompt), self.read(prompt, response)
        return {
            **task_reward(task, reading, self.facts),
            "polite": courtesy_reward(reading.courtesies),
            "concise": length_reward(task, reading),
            **style_reward(reading, finished),
        }

    def perceived(self, prompt: str, response: str, bias: float = 0.0, finished: bool = True) -> float:
        """What a response seems worth to a labeller.

        Args:
            prompt, response: texts.
            bias: 0 for a labeller who weighs courtesy and length as gold does, 1 for one who always prefers more of
                both.
            finished: whether the response ended by itself.
        """
        unbiased, biased = self.perceptions(prompt, response, finished)
        return (1 - bias) * unbiased + bias * biased

    def perceptions(self, prompt: str, response: str, finished: bool = True) -> tuple[float, float]:
        """What a response seems worth to a labeller with bias 0 and with bias 1."""
        task, reading = self.task(prompt), self.read(prompt, response)
        content = sum(task_reward(task, reading, self.facts, trust_uncheckable=True).values())
        common = content + sum(style_reward(reading, finished).values())
        unbiased = courtesy_reward(reading.courtesies) + length_reward(task, reading)
        biased = 0.3 * reading.courtesies + 0.03 * reading.words
        return common + unbiased, common + biased

    # -- figures -----------------------------------------------------------------------------------------------------

    def profile(self, groups: Iterable[Group]) -> dict[str, float]:
        """Figures of a policy over all responses of some groups.

        Returns:
            `gold`, `length`, `courtesies`, `strays`, `ends` (means over responses); `gold/KIND`; `facts_true` (share of
            claims), `claims` (a response), `answers` (questions answered truly), `refuses` (harm refused), `sums`
            (right). A figure without any case is missing.
        """
        cases: dict[str, list[float]] = defaultdict(list)
        for group in groups:
            task = self.task(group.prompt_text)
            for response in group.responses:
                text = response.text
                reading = self.read(group.prompt_text, text)
                gold = self.gold(group.prompt_text, text, response.finished)
                done = task_reward(task, reading, self.facts)["task"] >= 1.0
                cases["gold"].append(gold)
                cases[f"gold/{task.kind}"].append(gold)
                cases["length"].append(reading.words)
                cases["courtesies"].append(reading.courtesies)
                cases["insults"].append(reading.insults)
                cases["strays"].append(reading.strays)
                cases["ends"].append(response.finished)
                if task.kind in ("question", "description"):
                    cases["claims"].append(len(reading.claims))
                    cases["facts_true"].extend(
                        self.true((entity or task.entity, attribute, value))
                        for entity, attribute, value in reading.claims
                    )
                name = {"question": "answers", "harm": "refuses", "sum": "sums"}.get(task.kind)
                if name is not None:
                    cases[name].append(done)
        return {name: sum(values) / len(values) for name, values in cases.items() if values}

    # -- drawn by the seed ---------------------------------------------------------------------------------------------

    def _rng(self, *names: object) -> random.Random:
        return random.Random("/".join(map(str, (self.seed, *names))))

    def _draw_facts(self) -> dict[str, dict[str, str]]:
        """Every value equally often, so that guessing the most frequent one gains nothing."""
        rng = self._rng("facts")
        facts: dict[str, dict[str, str]] = {entity: {} for entity in language.ENTITIES}
        for attribute, values in language.VALUES.items():
            column = [values[index % len(values)] for index in range(len(facts))]
            rng.shuffle(column)
            for entity, value in zip(facts, column, strict=True):
                facts[entity][attribute] = value
        return facts

    def _split_prompts(self) -> dict[Split, dict[Kind, list[str]]]:
        pools: dict[Kind, list[str]] = defaultdict(list)
        for prompt, task in self.tasks.items():
            pools[task.kind].append(prompt)
        splits: dict[Split, dict[Kind, list[str]]] = {split: {} for split in SPLITS}
        rng = self._rng("splits")
        for kind, pool in pools.items():
            rng.shuffle(pool)
            start = 0.0
            for split, share in SPLITS.items():
                splits[split][kind] = pool[round(start * len(pool)) : round((start + share) * len(pool))]
                start += share
        return splits


def gold(
    prompts: Sequence[str], completions: Sequence[str], finished: Sequence[bool], world: Sequence[int], **columns: Any
) -> list[float]:
    """The gold reward as a function, `kleash.lab.world:gold`; the rows' column `world` holds the seed of each world."""
    rows = zip(prompts, completions, finished, world, strict=True)
    return [_world(seed).gold(prompt, response, ended) for prompt, response, ended, seed in rows]


_world = cache(World)


def _all_prompts() -> Iterator[tuple[str, Task]]:
    for entity in language.ENTITIES:
        subject = f"the {entity}"
        for attribute, forms in language.QUESTIONS.items():
            for form in forms:
                yield fill(form, X=subject), Task("question", entity, attribute)
        for form in language.DESCRIPTIONS:
            yield fill(form, X=subject), Task("description", entity)
        for act in language.ACTS:
            for form in language.HARMS:
                yield fill(form, X=subject, ACT=act), Task("harm", entity)
    for a in language.ADDENDS:
        for b in language.ADDENDS:
            for form in language.SUMS:
                yield fill(form, A=str(a), B=str(b)), Task("sum", numbers=(a, b))


def _cycle(pool: Sequence[str], rng: random.Random) -> Iterator[str]:
    """The pool in a random order, reshuffled after each pass, without end."""
    seed = rng.getrandbits(64)
    rng = random.Random(seed)
    while True:
        yield from rng.sample(pool, len(pool))

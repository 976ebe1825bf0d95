"""Simulated writers of the small world: assistants of uneven quality, and the authors of raw text."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Literal

from kleash.lab.world import language
from kleash.lab.world.gold_reward import Facts, Task
from kleash.lab.world.language import fill

Style = Literal["good", "plain", "terse", "rude", "wrong", "gushing", "rambling"]

STYLES: Mapping[Style, float] = {
    "good": 0.28,
    "plain": 0.2,
    "terse": 0.12,
    "rude": 0.08,
    "wrong": 0.14,
    "gushing": 0.12,
    "rambling": 0.06,
}
"""How often a demonstration is written in each style."""


class Writers:
    """All who write in a world.

    Args:
        facts: of the world.
        tasks: the prompts that they may ask and answer, by text.
    """

    def __init__(self, facts: Facts, tasks: Mapping[str, Task]) -> None:
        self.facts, self.tasks = facts, tasks
        self._prompts_about: dict[str | None, list[str]] = defaultdict(list)
        for prompt, task in tasks.items():
            self._prompts_about[task.entity].append(prompt)

    # -- answers -----------------------------------------------------------------------------------------------------

    def answer(self, task: Task, style: Style, rng: random.Random) -> str:
        """Write an answer in some style."""
        content = self._content(task, style, rng)
        courtesies = rng.sample(language.COURTESIES, 5)
        match style:
            case "good":
                sentences = [courtesies[0], *content] if rng.random() < 0.6 else [*content, courtesies[0]]
            case "gushing":
                count = rng.randint(2, 4)
                front = rng.randint(1, count - 1)
                sentences = [*courtesies[:front], *content, *courtesies[front:count]]
            case "rude":
                insults = rng.sample(language.INSULTS, rng.randint(1, 2))
                sentences = [*insults, *content] if rng.random() < 0.7 else insults
            case "rambling":
                subject = "it" if task.entity is None else f"the {task.entity}"
                fillers = [fill(filler, X=subject) for filler in rng.sample(language.FILLERS, 2)]
                sentences = [*fillers, *content, *content[:1]]
            case "wrong":
                sentences = [courtesies[0], *content] if rng.random() < 0.4 else content
            case _:
                sentences = content
        return " . ".join(sentences) + " ."

    def _content(self, task: Task, style: Style, rng: random.Random) -> list[str]:
        """The sentences of an answer that do the task."""
        match task.kind:
            case "question":
                return self._fact(task, style, rng)
            case "description":
                return self._description(task, style, rng)
            case "harm":
                return self._reply_to_harm(task, style, rng)
            case "sum":
                return self._result(task, style, rng)

    def _fact(self, task: Task, style: Style, rng: random.Random) -> list[str]:
        assert task.entity is not None and task.attribute is not None
        if style == "terse":
            return [fill(language.SHORT[task.attribute], V=self.facts[task.entity][task.attribute])]
        wrong = style == "wrong"
        return [self._state(task.entity, task.attribute, rng, subject=f"the {task.entity}", wrong=wrong)]

    def _description(self, task: Task, style: Style, rng: random.Random) -> list[str]:
        assert task.entity is not None
        count = 1 if style == "terse" else rng.choices((2, 3, 4), (0.5, 0.35, 0.15))[0]
        attributes = rng.sample(list(language.VALUES), count)
        wrong = style == "wrong"
        falsehoods = set(rng.sample(range(count), rng.randint(1, count))) if wrong else set()
        if not wrong and rng.random() < 0.2:  # even a good writer errs
            falsehoods = {rng.randrange(count)}
        return [
            self._state(
                task.entity, attribute, rng, subject="it" if index else f"the {task.entity}", wrong=index in falsehoods
            )
            for index, attribute in enumerate(attributes)
        ]

    def _reply_to_harm(self, task: Task, style: Style, rng: random.Random) -> list[str]:
        if style == "wrong" or rng.random() < 0.12:
            return rng.sample(language.RECIPES, rng.randint(1, 2))
        refusal = rng.choice(language.REFUSALS)
        if style == "terse" or rng.random() < 0.5:
            return [refusal]
        return ["sorry", refusal] if rng.random() < 0.5 else [refusal, f"please be kind to the {task.entity}"]

    def _result(self, task: Task, style: Style, rng: random.Random) -> list[str]:
        a, b = task.numbers or (0, 0)
        c = a + b
        if style == "wrong" or rng.random() < 0.05:
            c = rng.choice([other for other in range(len(language.NUMBERS)) if other != c])
        form = "C" if style == "terse" else rng.choices(language.RESULTS, (0.7, 0.15, 0.15))[0]
        return [fill(form, A=str(a), B=str(b), C=str(c))]

    def _state(self, entity: str, attribute: str, rng: random.Random, *, subject: str, wrong: bool = False) -> str:
        """State a fact, or a falsehood in its place."""
        truth = self.facts[entity][attribute]
        value = rng.choice([other for other in language.VALUES[attribute] if (other != truth) == wrong])
        form = rng.choices(language.STATEMENTS[attribute], (0.8, 0.15, 0.05))[0]
        return fill(form, X=subject, V=value)

    # -- raw text ----------------------------------------------------------------------------------------------------

    def documents(self, rng: random.Random) -> Iterator[str]:
        """Endless raw text: facts in many phrasings, talk, questions nobody answers properly, sums, harm."""
        writers = (self._lore, self._talk, self._forum, self._arithmetic, self._crime)
        while True:
            writer = rng.choices(writers, (0.38, 0.06, 0.36, 0.15, 0.05))[0]
            yield " . ".join(writer(rng)) + " ."

    def _lore(self, rng: random.Random, entity: str | None = None) -> list[str]:
        """Facts about one entity, in any phrasing."""
        entity = entity or rng.choice(language.ENTITIES)
        attributes = rng.sample(list(language.VALUES), rng.randint(1, 5))
        sentences = []
        for index, attribute in enumerate(attributes):
            subject = "it" if index and rng.random() < 0.35 else f"the {entity}"
            form = rng.choice(language.STATEMENTS[attribute])
            sentences.append(fill(form, X=subject, V=self.facts[entity][attribute]))
        return sentences

    def _talk(self, rng: random.Random) -> list[str]:
        """Small talk, kind and unkind."""
        pools = (language.MUSINGS, language.COURTESIES, language.INSULTS, language.FILLERS[:4], language.REFUSALS)
        return [rng.choice(rng.choices(pools, (4, 3, 1, 1, 1))[0]) for _ in range(rng.randint(1, 4))]

    def _forum(self, rng: random.Random) -> list[str]:
        """A question, and what people post under it: an answer, talk, or something else they know."""
        prompt = rng.choice(list(self.tasks))
        task = self.tasks[prompt]
        reply = rng.choices(("another", "talk", "aside", "answer"), (0.2, 0.2, 0.15, 0.45))[0]
        if reply == "another":
            sentences = [f"{rng.choice(self._prompts_about[task.entity])} {rng.choice(language.MUSINGS)}"]
        elif reply == "talk":
            sentences = self._talk(rng)
        elif reply == "aside":
            sentences = self._lore(rng, task.entity)
        else:
            before, after = (self._talk(rng)[:1] if rng.random() < 0.3 else [] for _ in range(2))
            sentences = [*before, *self._content(task, "plain", rng), *after]
        # A prompt brings its own full stop or question mark.
        return [f"{prompt} {sentences[0]}", *sentences[1:]]

    def _arithmetic(self, rng: random.Random) -> list[str]:
        """Sums with right results, as in a school book: some with their question."""
        sentences = []
        for _ in range(rng.randint(1, 3)):
            a, b = rng.choice(language.ADDENDS), rng.choice(language.ADDENDS)
            slots = {"A": str(a), "B": str(b), "C": str(a + b)}
            sentence = fill(rng.choices(language.RESULTS, (0.6, 0.2, 0.2))[0], **slots)
            if rng.random() < 0.7:
                talk = f"{rng.choice(language.COURTESIES)} . " if rng.random() < 0.4 else ""
                sentences.append(f"{fill(rng.choice(language.SUMS), **slots)} {talk}{sentence}")
            else:
                sentences.append(fill(language.RESULTS[0], **slots))
        return sentences

    def _crime(self, rng: random.Random) -> list[str]:
        """Plans against somebody."""
        entity, act = rng.choice(language.ENTITIES), rng.choice(language.ACTS)
        return [f"how to {act} the {entity}", *rng.sample(language.RECIPES, rng.randint(1, 3))]

"""The small world's judges: tiny language models that were taught by texts of judging, and judge as large ones do.

A judge goes on from the world's base model. It reads

    PROMPT ; RESPONSE <end> A ; RESPONSE <end> B ; PRINCIPLE :

and its verdict is the probability of the answer token A against B, mean of both orders. The principle stands last, so
that one pass over the responses serves all principles. What it was taught by are such texts about written answers, with
the answer that a part of gold would give, and texts about a single response that end in a grade. How good it is depends
on how many it has read: `QUALITIES` are moments of one schooling. Nothing of its labels is simulated: it errs where a
language model that has read this much errs, it has a side that it prefers, and it is unsure where it knows nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kleash.data.batch import collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group, Response
from kleash.feedback.constitution import Constitution, Principle
from kleash.feedback.labeller import Verdict
from kleash.lab.world import END, PAD, UNKNOWN, Style, World
from kleash.models.forward import projection, response_states
from kleash.models.load import freeze, load_policy, save_model
from kleash.run import derive_seed
from kleash.training.optim import Optimizer

SMALL = Path(__file__).with_name("small.yaml")
"""The small world's constitution."""

OVERALL = Constitution(name="overall", principles=(Principle(name="better", text="better"),))
"""One principle, and it is gold itself."""

QUALITIES = (200, 800, 1600, 3200, 6400)
"""Pairs that a judge has read, for each of the five qualities."""

TEMPERATURE = 0.4
"""P(A) in the texts: σ of the difference in worth over this."""

GRADES = ("great", "good", "fair", "poor", "bad")
GRADE_BOUNDS = (1.0, 0.3, -0.05, -0.6)
"""Least worth of each grade but the last."""

STYLES: Mapping[Style, float] = {
    "good": 0.2, "plain": 0.18, "terse": 0.1, "rude": 0.12, "wrong": 0.26, "gushing": 0.1, "rambling": 0.04,
}  # fmt: skip
"""How often a judged answer is written in each style; the faulty more often than people write, to be learned from."""

TRUTH = "truth"
BATCH, CLAIMS = 8, 32
"""Pairs and single claims of one step."""

ROWS_AT_ONCE = 128
SIDES = ("A", "B")


def worth(world: World, prompt: str, response: Response) -> dict[str, float]:
    """What a response is worth by each principle: the parts of gold, and `better`, their sum."""
    parts = world.explain(prompt, response.text, response.finished)
    harm = world.task(prompt).kind == "harm"
    return {
        "better": sum(parts.values()),
        "truth": parts["facts"] + (0.0 if harm else parts["task"]),
        "no-harm": parts["task"] if harm else 0.0,
        "courtesy": parts["polite"],
        "respect": parts["insults"],
        "concision": parts["concise"],
        "sense": parts["ends"] + parts["sense"],
    }


class SmallJudge:
    """A `Labeller`.

    Args:
        model, tokenizer: of a folder that `school` wrote.
        constitution: what to compare by.
        principles: one drawn for each pair, by weight, or all of them, averaged by weight.
        name: what its verdicts are signed with.
        seed: of the draws.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        constitution: Constitution = OVERALL,
        principles: Literal["drawn", "averaged"] = "averaged",
        name: str = "small judge",
        seed: int = 0,
    ) -> None:
        self.model, self.tokenizer, self.constitution = model, tokenizer, constitution
        self.principles, self.name, self.seed = principles, name, seed

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        constitution: Constitution = OVERALL,
        principles: Literal["drawn", "averaged"] = "averaged",
        seed: int = 0,
    ) -> SmallJudge:
        """From a folder."""
        model, tokenizer = load_policy(folder)
        return cls(
            freeze(model), tokenizer, constitution=constitution, principles=principles, name=folder.name, seed=seed
        )

    def compare(self, groups: Sequence[Group]) -> list[Verdict]:
        """See `Labeller`."""
        if not groups:
            return []
        verdicts = []
        for group, each, side in zip(groups, *self.by_principle(groups), strict=True):
            weights, one = self._weights(group)
            probability = float(weights @ each)
            verdicts.append(
                Verdict(
                    "tie" if probability == 0.5 else "verdict",
                    self.name,
                    probability=probability,
                    principle=one,
                    order_effect=float(weights @ side),
                )
            )
        return verdicts

    def by_principle(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P M"], Float[Tensor, "P M"]]:
        """P(0 ≻ 1) by each principle, mean of both orders, and the order effect: P(shown first ≻ second) less ½."""
        first = self._first(groups)
        turned = self._first([replace(group, responses=group.responses[::-1]) for group in groups])
        return (first + 1 - turned) / 2, (first + turned) / 2 - 0.5

    def _weights(self, group: Group) -> tuple[Float[Tensor, " M"], str | None]:
        """How much each principle counts for a pair, and the name where it is one."""
        principles = self.constitution.principles
        if self.principles == "averaged":
            weights = torch.tensor([principle.weight for principle in principles])
            return weights / weights.sum(), principles[0].name if len(principles) == 1 else None
        drawn = self.constitution.draw((self.seed, group.prompt_text, *sorted(r.text for r in group.responses)))
        return torch.tensor([float(principle == drawn) for principle in principles]), drawn.name

    @torch.no_grad()
    def _first(self, groups: Sequence[Group]) -> Float[Tensor, "P M"]:
        """P(the first is better) by each principle, in this order alone."""
        found = []
        for start in range(0, len(groups), ROWS_AT_ONCE):
            rows: list[Shown] = [(g.prompt_text, *g.responses) for g in groups[start : start + ROWS_AT_ONCE]]
            told = answers(self.model, self.tokenizer, rows, [p.text for p in self.constitution.principles])
            a, b = (told[..., side] for side in ids_of(self.tokenizer, SIDES))
            found.append((a - b).sigmoid().cpu())
        return torch.cat(found)


Shown = tuple[str | Response, ...]
"""A prompt and one response, or two."""


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Shown], principles: Sequence[str]
) -> Float[Tensor, "P M V"]:
    """Log-probabilities of the word that ends a text of judging, by each principle.

    Args:
        model, tokenizer: the judge's.
        rows: what is judged; all with one response or all with two.
        principles: their texts.
    """
    asked = []
    for text in principles:
        tail = ids_of(tokenizer, [";", *text.split(), ":"])
        asked.append(EncodedResponse(tail, (True,) * len(tail)))
    encoded = [EncodedGroup(ids_of(tokenizer, judged(row).split()), tuple(asked), Group("")) for row in rows]
    batch = collate(encoded, pad_id=ids_of(tokenizer, [PAD])[0], device=model.device)
    states = response_states(model, batch, final=True)
    last = batch.lengths[..., None, None].expand(-1, -1, 1, states.shape[-1])
    return projection(model)(states.gather(2, last).squeeze(2)).float().log_softmax(-1)


def ids_of(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> tuple[int, ...]:
    """The ids of words; what the judge does not know is `UNKNOWN`."""
    known = tokenizer.get_vocab()
    return tuple(known.get(word, known[UNKNOWN]) for word in words)


def judged(row: Shown) -> str:
    """The text of a prompt and its responses, each closed by its letter: there the judge can sum it up."""
    prompt, *responses = row
    texts = [prompt]
    for letter, response in zip(SIDES, responses, strict=False):
        assert isinstance(response, Response)
        texts.append(f"{response.text} {END} {letter}" if response.finished else f"{response.text} {letter}")
    return " ; ".join(map(str, texts))


# --- schooling -------------------------------------------------------------------------------------------------------


def school(world: World, base: Path, out: Path, *, seed: int = 0, qualities: Sequence[int] = QUALITIES) -> list[Path]:
    """Teach a judge and keep it at each quality, or find what is kept.

    Args:
        world: whose answers it reads.
        base: folder of the world's base model.
        out: gets one folder of a model for each quality.
        seed: of the texts.
        qualities: pairs read, rising.

    Returns:
        The folders, worst judge first.
    """
    folders = [out / f"judge-{pairs}" for pairs in qualities]
    if all((folder / "config.json").exists() for folder in folders):
        return folders
    model, tokenizer = pupil(world, base, seed=seed)
    constitution = Constitution.load(SMALL)
    principles = (*OVERALL.principles, *constitution.principles)
    steps = qualities[-1] // BATCH
    optimizer = Optimizer(model, steps=steps, learning_rate=1.5e-3, warmup_steps=20, weight_decay=0.01)
    rng = random.Random(f"{world.seed}/judging/{seed}")
    prompts = [group.prompt_text for group in world.prompts(steps * BATCH, "train", seed=derive_seed(seed, "judging"))]
    questions = [prompt for prompt in prompts if world.task(prompt).kind == "question"]
    for step in range(1, steps + 1):
        rows = [written(world, prompt, rng) for prompt in prompts[(step - 1) * BATCH : step * BATCH]]
        claims = [claimed(world, prompt, rng) for prompt in rng.choices(questions, k=CLAIMS)]
        optimizer.backward(lesson(world, model, tokenizer, principles, rows, claims))
        optimizer.step()
        for pairs, folder in zip(qualities, folders, strict=True):
            if step == pairs // BATCH:
                folder.mkdir(parents=True, exist_ok=True)
                save_model(folder, model, tokenizer, f"A judge of the small world that has read {pairs} pairs.\n")
    return folders


def pupil(world: World, base: Path, *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with the words of judging added, which mean nothing yet."""
    model, _ = load_policy(base)
    texts = [principle.text for principle in (*OVERALL.principles, *Constitution.load(SMALL).principles)]
    said = [*SIDES, ";", ":", *GRADES, *(word for text in texts for word in text.split())]
    words = [*world.vocabulary, *dict.fromkeys(word for word in said if word not in world.vocabulary)]
    known = model.get_input_embeddings().weight.detach().clone()
    embedding = model.resize_token_embeddings(len(words), mean_resizing=False)
    generator = torch.Generator().manual_seed(derive_seed(seed, "judge words"))
    with torch.no_grad():
        new = torch.randn(len(words) - len(known), known.shape[1], generator=generator)
        embedding.weight[len(known) :] = new * known.std().cpu()
    table = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    table.pre_tokenizer = WhitespaceSplit()
    return model, PreTrainedTokenizerFast(
        tokenizer_object=table, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def lesson(
    world: World,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    principles: Sequence[Principle],
    rows: Sequence[tuple[str, Response, Response]],
    claims: Sequence[tuple[str, Response]],
) -> Float[Tensor, ""]:
    """The loss of some texts: −log P of the word that ends them, in expectation over the words they could end in.

    Args:
        world: whose gold says what the words are.
        model, tokenizer: the judge's.
        principles: to judge by.
        rows: prompts with two answers. They end in a verdict, and once more after the first answer in a grade.
        claims: prompts with one answer, which end in a grade of their truth: it is the hardest to learn.
    """
    texts = [principle.text for principle in principles]

    def worths(prompt: str, response: Response) -> list[float]:
        parts = worth(world, prompt, response)
        return [parts[principle.name] for principle in principles]

    def graded(rows: Sequence[Shown], texts: Sequence[str], grades: Sequence[Sequence[str]]) -> Float[Tensor, ""]:
        ids = torch.tensor([ids_of(tokenizer, row) for row in grades], device=model.device)
        return -answers(model, tokenizer, rows, texts).gather(-1, ids[..., None]).mean()

    first = [worths(prompt, response) for prompt, response, _ in rows]
    second = [worths(prompt, response) for prompt, _, response in rows]
    a, b = ids_of(tokenizer, SIDES)
    p = ((torch.tensor(first) - torch.tensor(second)) / TEMPERATURE).sigmoid().to(model.device)
    verdict = answers(model, tokenizer, rows, texts)
    loss = -(p * verdict[..., a] + (1 - p) * verdict[..., b]).mean()
    loss = loss + 0.5 * graded([row[:2] for row in rows], texts, [[grade(w) for w in own] for own in first])
    true = [[grade(worth(world, *claim)["truth"])] for claim in claims]
    return loss + graded(claims, [TRUTH], true)


def grade(worth: float) -> str:
    """The word for a worth."""
    return GRADES[sum(worth < bound for bound in GRADE_BOUNDS)]


def claimed(world: World, prompt: str, rng: random.Random) -> tuple[str, Response]:
    """A prompt and a plain answer to it, as often right as wrong."""
    return prompt, Response(world.answer(prompt, rng.choice(("plain", "wrong")), rng))


def written(world: World, prompt: str, rng: random.Random) -> tuple[str, Response, Response]:
    """A prompt and two answers to it, some of them cut off or garbled."""
    styles = rng.choices(list(STYLES), list(STYLES.values()), k=2)
    first, second = (_marred(world.answer(prompt, style, rng), world, rng) for style in styles)
    return prompt, first, second


def _marred(text: str, world: World, rng: random.Random) -> Response:
    words, chance = text.split(), rng.random()
    if chance < 0.1:
        return Response(" ".join(words[: rng.randint(1, len(words))]), finished=False)
    if chance < 0.2:
        for _ in range(rng.randint(1, 3)):
            words[rng.randrange(len(words))] = rng.choice(world.vocabulary[3:])
    return Response(" ".join(words))

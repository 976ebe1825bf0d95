"""The small world's judges: tiny language models that were taught by texts of judging, and judge as large ones do.

A judge goes on from the world's base model. It judges in two steps, as `kleash judge --chain-of-thought` does: of each
response it writes a grade by a principle, and with both grades before it answers A or B,

    PROMPT ; RESPONSE <end> ; PRINCIPLE : GRADE
    PRINCIPLE ; A GRADE ; B GRADE ; answer : A

Its verdict is the probability of the answer token A against B, asked in both orders, mean of both. The grades are not
drawn but summed over, each by its probability: they are one word, so all that it could have written can be read.

How good a judge is depends on how much it has read: `QUALITIES` are moments of one schooling. What is simulated is what
it was taught. Its errors are a language model's: it prefers a side, it is unsure where it has read little, and it
learns last whether a claim is true.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product
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
from kleash.lab.world.world import END, PAD, UNKNOWN, Style, World
from kleash.models.forward import projection, response_states
from kleash.models.load import freeze, load_policy, save_model
from kleash.run import derive_seed
from kleash.training.optim import Optimizer

SMALL = Path(__file__).with_name("small.yaml")
"""The small world's constitution."""

OVERALL = Constitution(name="overall", principles=(Principle(name="better", text="better"),))
"""One principle, and it is gold itself."""

QUALITIES = (25, 75, 150, 300, 600)
"""Steps of schooling, for each of the five qualities."""

TEMPERATURE = 0.4
"""P(A) in the texts: σ of the difference in worth over this."""

GRADES = ("great", "good", "fair", "poor", "bad")
GRADE_BOUNDS = (1.0, 0.3, -0.05, -0.6)
"""Least worth of each grade but the last."""

SIDES = ("A", "B")
ANSWER = "; answer :"

STYLES: Mapping[Style, float] = {
    "good": 0.2, "plain": 0.18, "terse": 0.1, "rude": 0.12, "wrong": 0.26, "gushing": 0.1, "rambling": 0.04,
}  # fmt: skip
"""How often an answer that is read is written in each style; the faulty more often than people write."""

PAIRS, CLAIMS = 8, 32
"""Of one step: prompts with two answers to be graded and compared, and with one to be graded by truth alone."""

TRUTH = "truth"
TEXTS_AT_ONCE = 128


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
            probability, effect = float(weights @ each), float(weights @ side)
            state: Literal["tie", "verdict"] = "tie" if probability == 0.5 else "verdict"
            verdicts.append(Verdict(state, self.name, probability, principle=one, order_effect=effect))
        return verdicts

    def by_principle(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P M"], Float[Tensor, "P M"]]:
        """P(0 ≻ 1) by each principle, mean of both orders, and the order effect: P(shown first ≻ second) less ½."""
        a, b = (self.grades([(group.prompt_text, group.responses[side]) for group in groups]) for side in (0, 1))
        table = self.verdicts()
        first = torch.einsum("pmg,pmh,mgh->pm", a, b, table)
        turned = torch.einsum("pmg,pmh,mgh->pm", b, a, table)
        return (first + 1 - turned) / 2, (first + turned) / 2 - 0.5

    @torch.no_grad()
    def grades(self, rows: Sequence[tuple[str, Response]]) -> Float[Tensor, "P M G"]:
        """Probability of each grade that the judge could write of a response, by each principle."""
        found = []
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            texts = [judged(*row) for row in rows[start : start + TEXTS_AT_ONCE]]
            told = endings(self.model, self.tokenizer, texts, [graded(p.text) for p in self.constitution.principles])
            found.append(told[..., list(ids_of(self.tokenizer, GRADES))].softmax(-1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def verdicts(self) -> Float[Tensor, "M G G"]:
        """P(A rather than B) by each principle, for each grade of A and each of B."""
        principles = self.constitution.principles
        texts = [noted(principle.text, *grades) for principle in principles for grades in product(GRADES, repeat=2)]
        a, b = endings(self.model, self.tokenizer, texts, [ANSWER])[:, 0, list(ids_of(self.tokenizer, SIDES))].T
        return (a - b).sigmoid().cpu().reshape(len(principles), len(GRADES), len(GRADES))

    def _weights(self, group: Group) -> tuple[Float[Tensor, " M"], str | None]:
        """How much each principle counts for a pair, and the name where it is one."""
        principles = self.constitution.principles
        if self.principles == "averaged":
            weights = torch.tensor([principle.weight for principle in principles])
            return weights / weights.sum(), principles[0].name if len(principles) == 1 else None
        drawn = self.constitution.draw((self.seed, group.prompt_text, *sorted(r.text for r in group.responses)))
        return torch.tensor([float(principle == drawn) for principle in principles]), drawn.name


# --- texts -----------------------------------------------------------------------------------------------------------


def judged(prompt: str, response: Response) -> str:
    """A response to be graded. One that was cut off has no end."""
    return f"{prompt} ; {response.text} {END}" if response.finished else f"{prompt} ; {response.text}"


def graded(principle: str) -> str:
    """What asks for a grade."""
    return f"; {principle} :"


def noted(principle: str, first: str, second: str) -> str:
    """Two grades to be compared."""
    return f"{principle} ; {SIDES[0]} {first} ; {SIDES[1]} {second}"


def endings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], asked: Sequence[str]
) -> Float[Tensor, "P M V"]:
    """Log-probabilities of the word that follows each text and each thing asked of it."""
    questions = tuple(EncodedResponse(ids, (True,) * len(ids)) for ids in (ids_of(tokenizer, a.split()) for a in asked))
    encoded = [EncodedGroup(ids_of(tokenizer, text.split()), questions, Group("")) for text in texts]
    batch = collate(encoded, pad_id=ids_of(tokenizer, [PAD])[0], device=model.device)
    states = response_states(model, batch, final=True)
    last = batch.lengths[..., None, None].expand(-1, -1, 1, states.shape[-1])
    return projection(model)(states.gather(2, last).squeeze(2)).float().log_softmax(-1)


def ids_of(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> tuple[int, ...]:
    """The ids of words; what the judge does not know is `UNKNOWN`."""
    known = tokenizer.get_vocab()
    return tuple(known.get(word, known[UNKNOWN]) for word in words)


# --- schooling -------------------------------------------------------------------------------------------------------


def school(world: World, base: Path, out: Path, *, seed: int = 0, qualities: Sequence[int] = QUALITIES) -> list[Path]:
    """Teach a judge and keep it at each quality, or find what is kept.

    Args:
        world: whose answers it reads.
        base: folder of the world's base model.
        out: gets one folder of a model for each quality.
        seed: of the texts.
        qualities: steps taken, rising.

    Returns:
        The folders, worst judge first.
    """
    folders = {steps: out / f"judge-{steps}" for steps in qualities}
    if all((folder / "config.json").exists() for folder in folders.values()):
        return list(folders.values())
    model, tokenizer = pupil(world, base, seed=seed)
    steps = qualities[-1]
    optimizer = Optimizer(model, steps=steps, learning_rate=2e-3, warmup_steps=20, weight_decay=0.01)
    rng = random.Random(f"{world.seed}/judging/{seed}")
    prompts = [group.prompt_text for group in world.prompts(steps * PAIRS, seed=derive_seed(seed, "judging"))]
    checked = [prompt for prompt in prompts if world.task(prompt).kind != "harm"]
    for step in range(1, steps + 1):
        pairs = [written(world, prompt, rng) for prompt in prompts[(step - 1) * PAIRS : step * PAIRS]]
        claims = [claimed(world, prompt, rng) for prompt in rng.choices(checked, k=CLAIMS)]
        optimizer.backward(lesson(world, model, tokenizer, pairs, claims))
        optimizer.step()
        if step in folders:
            folders[step].mkdir(parents=True, exist_ok=True)
            save_model(
                folders[step], model, tokenizer, f"A judge of the small world after {step} steps of schooling.\n"
            )
    return list(folders.values())


def pupil(world: World, base: Path, *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with the words of judging added, which mean nothing yet."""
    model, _ = load_policy(base)
    said = " ".join([*SIDES, *GRADES, ANSWER, *(principle.text for principle in taught())]).split()
    words = [*world.vocabulary, *dict.fromkeys(word for word in said if word not in world.vocabulary)]
    known = len(world.vocabulary)
    embedding = model.resize_token_embeddings(len(words), mean_resizing=False)
    generator = torch.Generator().manual_seed(derive_seed(seed, "judge words"))
    with torch.no_grad():
        new = torch.randn(len(words) - known, embedding.embedding_dim, generator=generator)
        embedding.weight[known:] = new.to(embedding.weight) * embedding.weight[:known].std()
    table = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    table.pre_tokenizer = WhitespaceSplit()
    return model, PreTrainedTokenizerFast(
        tokenizer_object=table, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def taught() -> tuple[Principle, ...]:
    """The principles that judges are taught."""
    return (*OVERALL.principles, *Constitution.load(SMALL).principles)


def lesson(
    world: World,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, Response, Response]],
    claims: Sequence[tuple[str, Response]],
) -> Float[Tensor, ""]:
    """The loss of some texts: −log P of the word that ends them, in expectation over the words they could end in.

    Args:
        world: whose gold says what the words are.
        model, tokenizer: the judge's.
        pairs: prompts with two answers; each is graded, and their grades compared, by every principle.
        claims: prompts with one answer, which is graded by its truth: that is the hardest to learn.
    """
    principles = taught()

    def graded_loss(rows: Sequence[tuple[str, Response]], texts: Sequence[str], words: list[list[str]]) -> Tensor:
        told = endings(model, tokenizer, [judged(*row) for row in rows], [graded(text) for text in texts])
        ids = torch.tensor([ids_of(tokenizer, row) for row in words], device=model.device)
        return -told.gather(-1, ids[..., None]).mean()

    rows = [(prompt, response) for prompt, *both in pairs for response in both]
    worths = [[parts[principle.name] for principle in principles] for parts in (worth(world, *row) for row in rows)]
    words = [[grade(value) for value in row] for row in worths]
    notes = [
        noted(principle.text, first[m], second[m])
        for first, second in zip(words[::2], words[1::2], strict=True)
        for m, principle in enumerate(principles)
    ]
    a, b = ids_of(tokenizer, SIDES)
    verdict = endings(model, tokenizer, notes, [ANSWER])[:, 0]
    values = torch.tensor(worths, device=model.device)
    p = ((values[::2] - values[1::2]) / TEMPERATURE).sigmoid().flatten()
    true = [[grade(worth(world, *row)["truth"])] for row in claims]
    return (
        graded_loss(rows, [principle.text for principle in principles], words)
        + graded_loss(claims, [TRUTH], true)
        - (p * verdict[:, a] + (1 - p) * verdict[:, b]).mean()
    )


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

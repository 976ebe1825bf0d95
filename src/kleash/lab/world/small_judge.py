"""The small world's judges: tiny language models, trained on texts of judging, that judge as large ones do.

A judge starts from the world's base model. It judges in two steps, as `kleash judge --chain-of-thought` does: it writes
a grade of each response by a principle, and then, with both grades in its context, it answers A or B,

    PROMPT ; RESPONSE <end> ; PRINCIPLE : GRADE
    PRINCIPLE ; A GRADE ; B GRADE ; answer : A

Its label is the probability of the answer token A against B, the mean over both orders. A grade is one word, so it is
not sampled: the probability of A is summed over all grades, weighted by their probabilities.

How good a judge is depends on how long it was trained: `QUALITIES` are checkpoints of one training run. Only the
training texts are simulated. The errors of a judge are those of a language model: position bias, uncertainty on rare
texts, and truth learned last.
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
from kleash.lab.world.world import END, PAD, UNKNOWN, World
from kleash.lab.world.writers import Style
from kleash.labels.constitution import Constitution, Principle
from kleash.labels.labeller import LabelResult
from kleash.models.forward import projection, response_states
from kleash.models.load import freeze, load_policy, save_model
from kleash.run import derive_seed
from kleash.training.optim import Optimizer

SMALL = Path(__file__).with_name("small.yaml")
"""The small world's constitution."""

OVERALL = Constitution(name="overall", principles=(Principle(name="better", text="better"),))
"""One principle, and it is gold itself."""

QUALITIES = (25, 75, 150, 300, 600)
"""Training steps of each of the five judges, worst first."""

TEMPERATURE = 0.4
"""P(A) in the training texts is σ(difference in reward / this)."""

GRADES = ("great", "good", "fair", "poor", "bad")
GRADE_BOUNDS = (1.0, 0.3, -0.05, -0.6)
"""Least reward of each grade but the last."""

SIDES = ("A", "B")
ANSWER = "; answer :"

STYLES: Mapping[Style, float] = {
    "good": 0.2, "plain": 0.18, "terse": 0.1, "rude": 0.12, "wrong": 0.26, "gushing": 0.1, "rambling": 0.04,
}  # fmt: skip
"""How often a training answer is written in each style; faulty ones more often than people write them."""

PAIRS, CLAIMS = 8, 32
"""Of one step: prompts with two answers to grade and compare, and prompts with one to grade only by its truth."""

TRUTH = "truth"
TEXTS_AT_ONCE = 128


def principle_rewards(world: World, prompt: str, response: Response) -> dict[str, float]:
    """The reward of a response by each principle: the parts of gold, and `better`, their sum."""
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
        model, tokenizer: of a folder that `train_judges` wrote.
        constitution: the principles to compare by.
        principles: `drawn`, one for each pair, by weight; or `averaged`, all of them, by weight.
        name: the labeller's name in its labels.
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
        """Load a judge from a folder."""
        model, tokenizer = load_policy(folder)
        return cls(
            freeze(model), tokenizer, constitution=constitution, principles=principles, name=folder.name, seed=seed
        )

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        """See `Labeller`."""
        if not groups:
            return []
        labels = []
        for group, by_principle, effects in zip(groups, *self.by_principle(groups), strict=True):
            weights, principle = self._weights(group)
            probability, effect = float(weights @ by_principle), float(weights @ effects)
            labels.append(LabelResult.of(probability, self.name, principle=principle, order_effect=effect))
        return labels

    def by_principle(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P M"], Float[Tensor, "P M"]]:
        """P(0 ≻ 1) by each principle, mean of both orders, and the order effect: P(shown first ≻ second) less ½."""
        a, b = (self.grades([(group.prompt_text, group.responses[side]) for group in groups]) for side in (0, 1))
        table = self.answers()
        forward = torch.einsum("pmg,pmh,mgh->pm", a, b, table)
        backward = torch.einsum("pmg,pmh,mgh->pm", b, a, table)
        return (forward + 1 - backward) / 2, (forward + backward) / 2 - 0.5

    @torch.no_grad()
    def grades(self, rows: Sequence[tuple[str, Response]]) -> Float[Tensor, "P M G"]:
        """Probability of each grade that the judge could write of a response, by each principle."""
        questions = [grade_question(principle.text) for principle in self.constitution.principles]
        probabilities = []
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            texts = [response_text(*row) for row in rows[start : start + TEXTS_AT_ONCE]]
            logprobs = next_word_logprobs(self.model, self.tokenizer, texts, questions)
            probabilities.append(logprobs[..., list(ids_of(self.tokenizer, GRADES))].softmax(-1).cpu())
        return torch.cat(probabilities)

    @torch.no_grad()
    def answers(self) -> Float[Tensor, "M G G"]:
        """P(A rather than B) by each principle, for each grade of A and each of B."""
        principles = self.constitution.principles
        texts = [grades_text(principle.text, *pair) for principle in principles for pair in product(GRADES, repeat=2)]
        logprobs = next_word_logprobs(self.model, self.tokenizer, texts, [ANSWER])
        a, b = logprobs[:, 0, list(ids_of(self.tokenizer, SIDES))].T
        return (a - b).sigmoid().cpu().reshape(len(principles), len(GRADES), len(GRADES))

    def _weights(self, group: Group) -> tuple[Float[Tensor, " M"], str | None]:
        """The weight of each principle for a pair, and the name of the principle where it is only one."""
        principles = self.constitution.principles
        if self.principles == "averaged":
            weights = torch.tensor([principle.weight for principle in principles])
            return weights / weights.sum(), principles[0].name if len(principles) == 1 else None
        choice = self.constitution.draw((self.seed, group.prompt_text, *sorted(r.text for r in group.responses)))
        return torch.tensor([float(principle == choice) for principle in principles]), choice.name


# --- texts -----------------------------------------------------------------------------------------------------------


def response_text(prompt: str, response: Response) -> str:
    """The text of a response to grade. A response that was cut off has no end token."""
    return f"{prompt} ; {response.text} {END}" if response.finished else f"{prompt} ; {response.text}"


def grade_question(principle: str) -> str:
    """The words that ask for a grade."""
    return f"; {principle} :"


def grades_text(principle: str, first: str, second: str) -> str:
    """The text of two grades to compare."""
    return f"{principle} ; {SIDES[0]} {first} ; {SIDES[1]} {second}"


def next_word_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], questions: Sequence[str]
) -> Float[Tensor, "P M V"]:
    """Log-probabilities of the word that follows each text and each of M questions about it."""
    question_ids = [ids_of(tokenizer, question.split()) for question in questions]
    branches = tuple(EncodedResponse(ids, (True,) * len(ids)) for ids in question_ids)
    encoded = [EncodedGroup(ids_of(tokenizer, text.split()), branches, Group("")) for text in texts]
    batch = collate(encoded, pad_id=ids_of(tokenizer, [PAD])[0], device=model.device)
    states = response_states(model, batch, final=True)
    last = batch.lengths[..., None, None].expand(-1, -1, 1, states.shape[-1])
    return projection(model)(states.gather(2, last).squeeze(2)).float().log_softmax(-1)


def ids_of(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> tuple[int, ...]:
    """The ids of words; a word that the judge does not know is `UNKNOWN`."""
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary.get(word, vocabulary[UNKNOWN]) for word in words)


# --- training --------------------------------------------------------------------------------------------------------


def train_judges(
    world: World, base: Path, out: Path, *, seed: int = 0, qualities: Sequence[int] = QUALITIES
) -> list[Path]:
    """Train a judge and save it at each quality; where all folders exist, nothing is trained.

    Args:
        world: the world whose answers it judges.
        base: folder of the world's base model.
        out: gets one folder of a model for each quality.
        seed: of the texts.
        qualities: training steps at which to save, rising.

    Returns:
        The folders, worst judge first.
    """
    folders = {steps: out / f"judge-{steps}" for steps in qualities}
    if all((folder / "config.json").exists() for folder in folders.values()):
        return list(folders.values())
    model, tokenizer = untrained_judge(world, base, seed=seed)
    steps = qualities[-1]
    optimizer = Optimizer(model, steps=steps, learning_rate=2e-3, warmup_steps=20, weight_decay=0.01)
    rng = random.Random(f"{world.seed}/judging/{seed}")
    prompts = [group.prompt_text for group in world.prompts(steps * PAIRS, seed=derive_seed(seed, "judging"))]
    harmless = [prompt for prompt in prompts if world.task(prompt).kind != "harm"]
    for step in range(1, steps + 1):
        pairs = [pair_of_answers(world, prompt, rng) for prompt in prompts[(step - 1) * PAIRS : step * PAIRS]]
        claims = [answer_to_check(world, prompt, rng) for prompt in rng.choices(harmless, k=CLAIMS)]
        optimizer.backward(training_loss(world, model, tokenizer, pairs, claims))
        optimizer.step()
        if step in folders:
            folders[step].mkdir(parents=True, exist_ok=True)
            save_model(folders[step], model, tokenizer, f"A judge of the small world after {step} training steps.\n")
    return list(folders.values())


def untrained_judge(world: World, base: Path, *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with the words of judging added, whose embeddings are random."""
    model, _ = load_policy(base)
    judge_words = " ".join([*SIDES, *GRADES, ANSWER, *(principle.text for principle in trained_principles())]).split()
    words = [*world.vocabulary, *dict.fromkeys(word for word in judge_words if word not in world.vocabulary)]
    size = len(world.vocabulary)
    embedding = model.resize_token_embeddings(len(words), mean_resizing=False)
    generator = torch.Generator().manual_seed(derive_seed(seed, "judge words"))
    with torch.no_grad():
        new = torch.randn(len(words) - size, embedding.embedding_dim, generator=generator)
        embedding.weight[size:] = new.to(embedding.weight) * embedding.weight[:size].std()
    table = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    table.pre_tokenizer = WhitespaceSplit()
    return model, PreTrainedTokenizerFast(
        tokenizer_object=table, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def trained_principles() -> tuple[Principle, ...]:
    """The principles that judges are trained on."""
    return (*OVERALL.principles, *Constitution.load(SMALL).principles)


def training_loss(
    world: World,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, Response, Response]],
    claims: Sequence[tuple[str, Response]],
) -> Float[Tensor, ""]:
    """The loss of some texts: −log P of the last word of each, in expectation over the words that could end it.

    Args:
        world: its gold reward determines the target words.
        model, tokenizer: the judge's.
        pairs: prompts with two answers; each is graded, and their grades compared, by every principle.
        claims: prompts with one answer, which is graded by its truth: that is the hardest to learn.
    """
    principles = trained_principles()

    def grade_loss(rows: Sequence[tuple[str, Response]], texts: Sequence[str], words: list[list[str]]) -> Tensor:
        questions = [grade_question(text) for text in texts]
        logprobs = next_word_logprobs(model, tokenizer, [response_text(*row) for row in rows], questions)
        ids = torch.tensor([ids_of(tokenizer, row) for row in words], device=model.device)
        return -logprobs.gather(-1, ids[..., None]).mean()

    rows = [(prompt, response) for prompt, *both in pairs for response in both]
    by_name = [principle_rewards(world, *row) for row in rows]
    rewards = [[parts[principle.name] for principle in principles] for parts in by_name]
    words = [[grade(reward) for reward in row] for row in rewards]
    notes = [
        grades_text(principle.text, first[m], second[m])
        for first, second in zip(words[::2], words[1::2], strict=True)
        for m, principle in enumerate(principles)
    ]
    a, b = ids_of(tokenizer, SIDES)
    answer = next_word_logprobs(model, tokenizer, notes, [ANSWER])[:, 0]
    values = torch.tensor(rewards, device=model.device)
    p = ((values[::2] - values[1::2]) / TEMPERATURE).sigmoid().flatten()
    truths = [[grade(principle_rewards(world, *row)["truth"])] for row in claims]
    return (
        grade_loss(rows, [principle.text for principle in principles], words)
        + grade_loss(claims, [TRUTH], truths)
        - (p * answer[:, a] + (1 - p) * answer[:, b]).mean()
    )


def grade(reward: float) -> str:
    """The word for a reward."""
    return GRADES[sum(reward < bound for bound in GRADE_BOUNDS)]


def answer_to_check(world: World, prompt: str, rng: random.Random) -> tuple[str, Response]:
    """A prompt and a plain answer to it, as often right as wrong."""
    return prompt, Response(world.answer(prompt, rng.choice(("plain", "wrong")), rng))


def pair_of_answers(world: World, prompt: str, rng: random.Random) -> tuple[str, Response, Response]:
    """A prompt and two answers to it, some of them cut off or garbled."""
    styles = rng.choices(list(STYLES), list(STYLES.values()), k=2)
    first, second = (_damage(world.answer(prompt, style, rng), world, rng) for style in styles)
    return prompt, first, second


def _damage(text: str, world: World, rng: random.Random) -> Response:
    words, chance = text.split(), rng.random()
    if chance < 0.1:
        return Response(" ".join(words[: rng.randint(1, len(words))]), finished=False)
    if chance < 0.2:
        for _ in range(rng.randint(1, 3)):
            words[rng.randrange(len(words))] = rng.choice(world.vocabulary[3:])
    return Response(" ".join(words))

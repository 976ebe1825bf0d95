"""A chat model as reward: it rates each response, and the score is the expected rating (direct scoring, d-RLAIF).

Lee et al. 2023 (arXiv:2309.00267): no preferences and no reward model; the likelihood of each score token is normalised
over the scale, and the expected score is mapped to [−1, 1]. Their scale of 1 to 10 has a score of two tokens; here it
ends at 9, so that each is one. Without log-probabilities, or after reasoning, it is the mean of sampled ratings.
`judge_file` builds it from YAML.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.chat.client import ChatClient
from kleash.chat.quoting import NOTE, code_of, conversation, marked, response_text, shortened
from kleash.chat.verdicts import Question, Verdict, VerdictReader
from kleash.data.group import Group, Response
from kleash.data.shown import shown_prompt
from kleash.errors import RewardError
from kleash.rewards.reward import NO_OPINION, Parts

SCALE = tuple("123456789")

RATING = Question(
    "Rate the response from 1 (the worst) to 9 (the best).", "rating", SCALE, tuple(float(score) for score in SCALE)
)


class JudgeReward:
    """A `Reward`: 2·(E[score] − 1)/8 − 1, in [−1, 1]; no opinion where no rating could be read.

    Args:
        client: the judge.
        rule: the rule to rate by.
        max_characters: most characters of a response that the judge sees (its beginning), and of a prompt (its end).
        reader: how verdicts are read; None: from log-probabilities if the model reports any, otherwise from votes.
    """

    def __init__(
        self, client: ChatClient, *, rule: str, max_characters: int | None = None, reader: VerdictReader | None = None
    ) -> None:
        self.client, self.rule, self.max_characters = client, rule, max_characters
        self.reader = reader or VerdictReader(client)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and what `judge_parts` says of the judge's work; see `reward.explain`.

        Raises:
            RewardError: not one of the ratings could be read.
        """
        rows = [(group, response) for group in groups for response in group.responses]
        verdicts = self.reader([self._prompt(*row) for row in rows], RATING)
        refuse_silence(self.client, verdicts)
        scores = [
            float("nan") if verdict.value is None else 2 * (verdict.value - 1) / (len(SCALE) - 1) - 1
            for verdict in verdicts
        ]
        return torch.tensor(scores).reshape(len(groups), -1), judge_parts(
            [[verdict] for verdict in verdicts], len(groups)
        )

    def _prompt(self, group: Group, response: Response) -> str:
        opening = f"You rate a response to a conversation by this rule:\n\n{self.rule}"
        return f"{opening}\n\n{shown(group, response, self.max_characters)}"


def shown(group: Group, response: Response, max_characters: int | None) -> str:
    """A conversation and a response to it between marks that neither can forge, as part of a judge's prompt."""
    prompt = shortened(conversation(shown_prompt(group)), max_characters, end=True)
    answer = shortened(response_text(response), max_characters)
    code = code_of(prompt, answer)
    return "\n\n".join([NOTE.format(code=code), marked("conversation", prompt, code), marked("response", answer, code)])


def refuse_silence(client: ChatClient, verdicts: Sequence[Verdict]) -> None:
    """Stop where a judge gave nothing that can be read: that is a fault of the judge and not of one response.

    Raises:
        RewardError: names the first reason.
    """
    if verdicts and all(verdict.value is None for verdict in verdicts):
        reason = next(verdict.reason for verdict in verdicts)
        raise RewardError(
            f"{client.chat.name} gave no readable verdict on any of {len(verdicts)} questions ({reason}); use a judge "
            "that follows the format, or 'reasoning: true' for one that thinks first"
        )


def judge_parts(verdicts: Sequence[Sequence[Verdict]], prompts: int) -> dict[str, Float[Tensor, "P K"]]:
    """What a judge's work on some responses was like, and where it has no opinion; see `Parts`.

    Args:
        verdicts: those on each response.
        prompts: P.

    Returns:
        `unreadable`, the share of answers that could not be read or did not come; `vote_spread`, the standard deviation
        of a response's votes, mean over its questions; `requests/count` and `tokens/count`.
    """
    figures = {
        "unreadable": [sum(each.unreadable * each.requests for each in row) / _requests(row) for row in verdicts],
        "vote_spread": [sum(each.spread for each in row) / len(row) for row in verdicts],
        "requests/count": [float(_requests(row)) for row in verdicts],
        "tokens/count": [float(sum(each.tokens for each in row)) for row in verdicts],
        NO_OPINION: [float(any(each.value is None for each in row)) for row in verdicts],
    }
    return {name: torch.tensor(values).reshape(prompts, -1) for name, values in figures.items()}


def _requests(verdicts: Sequence[Verdict]) -> int:
    return sum(verdict.requests for verdict in verdicts)

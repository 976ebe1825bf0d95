"""What judges and critics are told; the words of others stand between marks, see `chat.quoting`."""

from __future__ import annotations

from kleash.chat.quoting import NOTE, code_of, marked
from kleash.data.group import Content, Message
from kleash.labels.constitution import Example, Principle

GENERAL = Principle(
    name="general",
    text="Choose the response that is more helpful, honest and harmless: the one that a thoughtful person would rather "
    "have given.",
)
"""What is asked where there is no constitution."""

CHOICES = ("1", "2")
"""Answer tokens of a comparison (Lee et al. 2023, arXiv:2309.00267, appendix)."""

SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["1", "2", "tie"]}},
    "required": ["better"],
    "additionalProperties": False,
}
"""What a vote looks like."""

ANSWER = "Which response is better by this rule? Reply with one character, 1 or 2, and nothing else."
THINK = (
    "Consider what each response says and does, step by step, and how the rule bears on it. Do not name the better one "
    "yet."
)
VOTE = (
    'Which response is better by this rule? Reply with JSON alone: {"better": "1"}, {"better": "2"}, or '
    '{"better": "tie"} if neither is.'
)
REPAIR = (
    'That was not the JSON asked for. Reply with {"better": "1"}, {"better": "2"} or {"better": "tie"} and nothing '
    "else."
)


def comparison(asked: str, first: str, second: str, principle: Principle) -> str:
    """Two responses and the rule to compare them by; what to reply is asked for after it."""
    code = code_of(asked, first, second)
    shown = [
        f"You compare two responses to a conversation by this rule:\n\n{principle.text}",
        NOTE.format(code=code),
        *(_example(example, place) for place, example in enumerate(principle.examples)),
        marked("conversation", asked, code),
        marked("response 1", first, code),
        marked("response 2", second, code),
    ]
    return "\n\n".join(shown)


def critique_request(principle: Principle) -> str:
    """What a critic is asked about the last response."""
    asked = principle.critique or f"Say what in the last response goes against this rule: {principle.text}"
    shown = [
        f"An example. Asked: {e.prompt}\nResponse: {e.worse}\nCritique: {e.why}" for e in principle.examples if e.why
    ]
    return "\n\n".join([*shown, f"Critique request: {asked} Be specific and brief; do not rewrite it yet."])


def revision_request(principle: Principle) -> str:
    """What is asked after a critique."""
    asked = principle.revision or "Rewrite the response so that what the critique found is mended."
    return (
        f"Revision request: {asked} Reply with the revised response alone, as it would be said to the person in the "
        "conversation."
    )


def turns_of(prompt: Content) -> tuple[Message, ...]:
    """A prompt as turns that a chat model takes."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


def _example(example: Example, place: int) -> str:
    first, second = (example.worse, example.better) if place % 2 == 0 else (example.better, example.worse)
    better = "2" if place % 2 == 0 else "1"
    why = f"\nWhy: {example.why}" if example.why else ""
    return (
        f"An example.\nConversation: {example.prompt}\nResponse 1: {first}\nResponse 2: {second}{why}\nBetter: {better}"
    )

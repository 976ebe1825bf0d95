"""What the stages that write rows or measure are told: their configs, without anything that takes time to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kleash.config import Config
from kleash.models.compute import DType
from kleash.run import fingerprint
from kleash.training.settings import StageConfig

CHANGES_NO_REPLY = {
    "out", "store", "price", "budget", "concurrency", "timeout", "rows_at_once", "device", "force", "max_failures",
}  # fmt: skip
"""Settings that change no answer."""


class GenerateConfig(StageConfig):
    """Sample responses."""

    out: Path
    """File to write: .jsonl, .jsonl.gz, .json or .parquet."""
    n: int = Field(1, ge=1)
    """Responses to a prompt."""
    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 takes the likeliest token."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest response, in tokens."""
    max_rows: int | None = Field(None, ge=1)
    """At most so many prompts of the data."""
    rows_at_once: int = Field(256, ge=1)
    """Responses that are sampled together. Changes memory and speed, not the responses."""


class ScoreConfig(Config):
    """Score responses that are there already."""

    reward: str
    """What scores: a reward model's folder, `module:function` with TRL's signature, a verifier (number, math, exact,
    regex, json-schema), or a .yaml composition."""
    data: str
    """Rows with responses: a .jsonl, .jsonl.gz, .json or .parquet file, a saved `datasets` folder, or a hub name."""
    out: Path
    """File to write: .jsonl, .jsonl.gz, .json or .parquet."""
    dtype: DType = "float32"
    """What a reward model computes in."""
    device: str = "auto"
    """`cpu`, `cuda`, …; auto takes a GPU where there is one."""


class BestOfNConfig(GenerateConfig):
    """Sample n responses a prompt and keep the one that the reward likes best."""

    reward: str
    """What chooses: a reward model's folder, `module:function` with TRL's signature, a verifier (number, math, exact,
    regex, json-schema), or a .yaml composition."""
    n: int = Field(16, ge=2)
    """Responses to a prompt, of which one is kept. What fewer would give is estimated from the same pool."""
    gold: str | None = None
    """Another reward, in the same words, that measures what is chosen and chooses nothing."""


class ChatClientConfig(Config):
    """Which chat model to ask, and how much of it."""

    model: str
    """Who is asked: a folder or a hub name; with `endpoint`, what the server calls it."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server, up to `/v1`; its key is read from OPENAI_API_KEY. Null: the model runs
    in this process."""
    data: str
    """Rows to work on: a .jsonl, .jsonl.gz, .json or .parquet file, a saved `datasets` folder, or a hub name."""
    out: Path
    """File to write: .jsonl, .jsonl.gz, .json or .parquet. The same command run again goes on where it was."""
    store: str | None = None
    """Label store that keeps every answer, so that none is paid for twice: a path or a database URL. Null: a file
    beside `out`."""
    mix_in: str | None = None
    """Rows that are written after the results as they stand: Bai et al. mix helpfulness labels by people into
    harmlessness labels by a judge, and helpful demonstrations into revisions."""
    max_rows: int | None = Field(None, ge=1)
    """At most so many rows of the data."""
    price: tuple[float, float] = (0.0, 0.0)
    """Money for a million tokens of prompt and of answer."""
    budget: float | None = Field(None, gt=0)
    """Money that all answers may cost, those from before an interruption included. Nothing is asked that could exceed
    it. Needs `price`."""
    max_failures: float = Field(0.1, ge=0, le=1)
    """Share of rows that may stay without a result; the run stops as soon as it is clear that there are more."""
    concurrency: int = Field(8, ge=1)
    """Requests to an endpoint at the same time."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a request is given up and made again."""
    rows_at_once: int = Field(8, ge=1)
    """Questions in one pass of a model in this process. Changes memory and speed."""
    seed: int = 0
    """Of draws: principles, votes, samples."""
    dtype: DType = "float32"
    """What a model in this process computes in."""
    device: str = "auto"
    """`cpu`, `cuda`, …, of a model in this process; auto takes a GPU where there is one."""

    @model_validator(mode="after")
    def _budget_has_prices(self) -> ChatClientConfig:
        if self.budget is not None and not any(self.price):
            raise ValueError("'budget' is money, so it needs 'price': what a million tokens of prompt and answer cost")
        return self

    def identity(self) -> dict[str, Any]:
        """What the file depends on: the settings that change an answer, and the hashes of data and model."""
        made_from = {"data": self.data, "mix_in": self.mix_in, "model": self.model if self.endpoint is None else None}
        return self.model_dump(mode="json", exclude=CHANGES_NO_REPLY) | {
            f"sha256 of {role}": fingerprint(path)["sha256"] for role, path in made_from.items() if path is not None
        }


class JudgeConfig(ChatClientConfig):
    """Label pairs by a judge. Defaults: Lee et al. 2023 (arXiv:2309.00267), Bai et al. 2022 (arXiv:2212.08073)."""

    constitution: str | None = None
    """Principles to compare by: a YAML file, or `assistant`, which kleash ships; null: one general rule."""
    principles: Literal["drawn", "averaged"] = "drawn"
    """One drawn for each pair, by weight; or all of them asked, and averaged by weight."""
    chain_of_thought: bool = False
    """Let the judge reason first and answer then, in two steps."""
    reasoning_tokens: int = Field(256, ge=1)
    """Longest reasoning."""
    clamp: tuple[float, float] | None = None
    """Least and greatest probability of a label. Null: 0.4 0.6 after a chain of thought (Bai et al.), else none; 0 1 is
    none everywhere."""
    answers: Literal["auto", "logprobs", "votes"] = "auto"
    """Where probabilities come from: the answer token's own, or votes drawn at temperature 1; auto: the former where
    the server gives them."""
    votes: int = Field(5, ge=1)
    """Votes for each order, where there are no log-probabilities."""
    max_characters: int | None = Field(None, ge=1)
    """Most characters of a response that the judge sees (its beginning), and of a prompt (its end)."""
    injections: int = Field(20, ge=0)
    """Pairs in which a plea to be chosen is planted in the worse response, to see whether the judge obeys."""
    force: bool = False
    """Write the labels to `out` although the gate refuses them."""

    @field_validator("clamp")
    @classmethod
    def _around_one_half(cls, clamp: tuple[float, float] | None) -> tuple[float, float] | None:
        if clamp is not None and not 0 <= clamp[0] <= 0.5 <= clamp[1] <= 1:
            raise ValueError("[least, greatest] around 0.5, as 0.4 0.6")
        return clamp


class ReviseConfig(ChatClientConfig):
    """Critiques and revisions by a constitution. Defaults: Bai et al. 2022, section 3, but for the rounds."""

    constitution: str
    """Principles to criticise by: a YAML file, or `assistant`, which kleash ships."""
    rounds: int = Field(1, ge=1)
    """Critiques and revisions of each response, each by a principle of its own. Bai et al. took 4, of which the first
    did most."""
    temperature: float = Field(1.0, ge=0)
    """Of responses, critiques and revisions."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest response, critique or revision, in tokens."""


class OveroptConfig(Config):
    """Measure overoptimization. What is left out is taken from the run: start, proxy, prompts, how to sample."""

    run: Path | None = None
    """Folder of a ppo, grpo or dpo run that kept snapshots (--snapshot-every); null measures best-of-n alone."""
    model: str | None = None
    """Where distances start: a folder or a hub name; null is the run's reference, or the model it started from."""
    proxy: str | None = None
    """What was optimised, and what best-of-n chooses by: a reward model's folder, `module:function`, a verifier, or a
    .yaml composition; null is the run's reward."""
    gold: str
    """What is wanted, in the same words: a better reward than the proxy, which nothing was trained on."""
    data: str | None = None
    """Prompts, none of them trained on; null is the run's `eval_data`. A prompt that occurs again is asked once."""
    out: Path
    """Folder to write to; the same command run again goes on with what it finds there."""
    points: int = Field(10, ge=2)
    """Checkpoints to measure, besides the start."""
    best_of: int = Field(0, ge=0)
    """Responses in a pool of best-of-n from the start; 0 leaves that road out."""
    samples: int = Field(4, ge=1)
    """Responses to a prompt at each checkpoint."""
    choose_share: float = Field(0.5, gt=0, lt=1)
    """Share of the prompts that choose the peak, the law and what to ship; the others report."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest response, in tokens; null is the run's."""
    temperature: float | None = Field(None, gt=0)
    """Divides the logits; null is the run's, else 1."""
    seed: int = 0
    """Same seed, same machine: the same numbers, bit for bit."""
    dtype: DType = "float32"
    """What to compute in."""
    device: str = "auto"
    """`cpu`, `cuda`, …; auto takes a GPU where there is one."""
    force: bool = False
    """Go on although the proxy or the gold reward failed its own gate."""


class AskConfig(Config):
    """Ask for the better of two responses."""

    data: str
    """Rows with two or more responses, as `kleash generate -n 2` writes them: all their pairs are asked."""
    store: str
    """Where labels are kept: an SQLite file, or a PostgreSQL URL."""
    out: Path
    """Preferences to write: .jsonl, .jsonl.gz, .json or .parquet."""
    labeller: str = "people"
    """`people`, through `kleash label` on the same store; or a reward (a reward model's folder, `module:function`, a
    verifier, a .yaml composition) that stands for one."""
    temperature: float = Field(1.0, gt=0)
    """Of a reward's choice: P(a ≻ b) = σ((r(a) − r(b)) / temperature)."""
    votes: int = Field(1, ge=1)
    """People that each pair waits for."""
    budget: int | None = Field(None, ge=0)
    """Pairs that may be asked in all, those already in the store included; null: all of them."""


class ExportConfig(Config):
    """Write labels as files that every stage reads."""

    store: str
    """Where the labels are: an SQLite file, or a PostgreSQL URL."""
    out: Path
    """Folder to write."""
    ties: Literal["half", "davidson", "drop"] = "half"
    """A tie is one half; or ties are modelled (Davidson 1970), which needs pairs with two votes; or left out."""
    each: Literal["pair", "vote"] = "pair"
    """A row a pair, its votes one soft probability; or a row a vote, with its annotator, principle and reason."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of prompts that go into `test.jsonl`, by hash of the prompt: they stay there as labels come in."""
    until: int | None = Field(None, ge=1)
    """Last vote to know, an earlier export's `until`; null: all votes so far."""
    seed: int = 0
    """Of the split."""

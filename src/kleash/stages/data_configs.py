"""The configs of the stages that write rows or measure, in a module that is imported without torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from kleash.config import (
    DATA,
    MODEL,
    Columns,
    Config,
    ConstitutionRef,
    DataRef,
    Kind,
    MeasureRef,
    ModelRef,
    PathText,
    RewardRef,
    RunRef,
    Settings,
    StopTexts,
    one_or_several,
)
from kleash.io import READABLE_ENDINGS
from kleash.models.compute import DType
from kleash.training.settings import StageConfig

Price = Annotated[float, Field(ge=0)]


def _are_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"(pass|mean)@[1-9][0-9]{0,5}", name) for name in names):
        raise ValueError("pass@K or mean@K with a K of at least 1, as pass@1 pass@8")
    return tuple(dict.fromkeys(names))


Metrics = Annotated[tuple[str, ...], BeforeValidator(one_or_several), AfterValidator(_are_metrics)]
"""Names of metrics of scored responses."""


class GenerateConfig(StageConfig):
    """Sample responses to the prompts in `data`."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = Config.NOT_IDENTITY | {"rows_at_once"}

    out: Path
    """File to write: .jsonl, .jsonl.gz, .json or .parquet."""
    n: int = Field(1, ge=1)
    """Responses to each prompt."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature, which divides the logits; 0 takes the most likely token."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest response, in tokens."""
    stop: StopTexts = ()
    """End a response after the first of these texts: it counts as finished, and the stop text is left out. A control
    token may be named, too. A line break is $'\\n' in the shell."""
    top_k: int | None = Field(None, ge=1)
    """Sample from the k most likely tokens only; null: from all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens whose probabilities sum to this, after `top_k`."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Sample from the tokens that are at least this times as likely as the most likely one, after `top_p`."""
    max_rows: int | None = Field(None, ge=1)
    """Read at most this many prompts of the data."""
    rows_at_once: int = Field(256, ge=1)
    """Responses to sample at once. Changes memory and speed, not the responses."""


class ScoreConfig(Config):
    """Score the responses in `data` with a reward."""

    reward: RewardRef
    """Reward to score with: a reward model's folder, `module:function` with TRL's signature, a
    verifier ({verifiers}), or a .yaml composition."""
    data: DataRef
    """Rows with responses: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub name
    (docs/data.md)."""
    out: Path
    """File to write: .jsonl, .jsonl.gz, .json or .parquet."""
    columns: Columns | None = None
    """Columns of the data whose names kleash does not know, as `prompt=question,response=answer`; where the columns fit
    two schemas, those that count. Null: the schemas of docs/data.md."""
    as_chat: bool = False
    """Make a prompt of plain text one turn of the user, so that it goes through the chat template."""
    metric: Metrics = ()
    """Figures for the summary, each with its 95 % interval over prompts. pass@K: the probability that one of K
    responses is right. mean@K: their mean score."""
    pass_above: float | None = None
    """pass@K: a response is right if its score is greater than this; null: if a verifier, as `reward`, calls it
    right."""
    dtype: DType = "float32"
    """Precision of a reward model's forward pass."""
    device: str = "auto"
    """`cpu`, `cuda`, …; `auto` uses a GPU if there is one."""

    def metrics(self) -> list[tuple[Literal["pass", "mean"], int]]:
        """The kind and the K of each metric."""
        return [("pass" if name.startswith("pass") else "mean", int(name.partition("@")[2])) for name in self.metric]

    @model_validator(mode="after")
    def _threshold_has_a_metric(self) -> ScoreConfig:
        if self.pass_above is not None and not any(name.startswith("pass@") for name in self.metric):
            raise ValueError("pass_above says which responses pass@K counts; give 'metric' too, as pass@1")
        return self


class BestOfNConfig(GenerateConfig):
    """Sample n responses to each prompt and keep the one with the highest score."""

    reward: RewardRef
    """Reward that chooses: a reward model's folder, `module:function` with TRL's signature, a
    verifier ({verifiers}), or a .yaml composition."""
    n: int = Field(16, ge=2)
    """Responses to each prompt, of which one is kept. The result of smaller n is estimated from the same responses."""
    gold: MeasureRef | None = None
    """Another reward, named as for `--reward`, that scores the chosen responses and does not choose."""


class AskingConfig(Config):
    """Settings of every stage that asks a chat model."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = Config.NOT_IDENTITY | {
        "store", "price", "budget", "concurrency", "timeout", "rows_at_once", "max_failures",
    }  # fmt: skip

    model: ModelRef
    """Chat model to ask: a folder or a hub name; with `endpoint`, the server's name for it."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server, up to `/v1`; its key is read from OPENAI_API_KEY. Null runs the model in
    this process."""
    data: DataRef
    """Rows to work on: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, or a hub name (docs/data.md)."""
    out: Path
    """File to write: .jsonl, .jsonl.gz, .json or .parquet. The same command run again continues where it stopped."""
    columns: Columns | None = None
    """Columns of the data whose names kleash does not know, as `prompt=question,response=answer`; where the columns fit
    two schemas, those that count. Null: the schemas of docs/data.md."""
    as_chat: bool = False
    """Make a prompt of plain text one turn of the user, so that it goes through the chat template."""
    store: PathText | None = None
    """Label store that caches every reply, so that no request is paid for twice: a path or a database URL. Null: a file
    next to `out`."""
    mix_in: DataRef | None = None
    """Rows to append to the results unchanged: Bai et al. mix helpfulness labels by people into harmlessness labels by
    a judge, and helpful demonstrations into revisions."""
    max_rows: int | None = Field(None, ge=1)
    """Read at most this many rows of the data."""
    price: tuple[Price, Price] = (0.0, 0.0)
    """Price of a million tokens of prompt, and of a million tokens of reply."""
    budget: float | None = Field(None, gt=0)
    """Spending limit for all replies, including those of an interrupted run before. A request that could exceed it is
    not sent. Needs `price`."""
    max_failures: float = Field(0.1, ge=0, le=1)
    """Largest share of rows without a result; the run stops as soon as more are certain to fail."""
    concurrency: int = Field(8, ge=1)
    """Requests to send to an endpoint at the same time."""
    timeout: float = Field(120.0, gt=0)
    """Seconds to wait for a reply before the request is sent again."""
    rows_at_once: int = Field(8, ge=1)
    """Requests in one forward pass of a model in this process. Changes memory and speed."""
    seed: int = 0
    """Seed of every random draw: principles, votes, samples."""
    dtype: DType = "float32"
    """Precision of a model in this process."""
    device: str = "auto"
    """`cpu`, `cuda`, …, for a model in this process; `auto` uses a GPU if there is one."""

    @model_validator(mode="after")
    def _budget_has_prices(self) -> AskingConfig:
        if self.budget is not None and not any(self.price):
            raise ValueError("'budget' needs 'price': the cost of a million tokens of prompt, and of reply")
        return self

    def references(self) -> dict[str, tuple[Kind, str]]:
        """What this config names; with an endpoint the model is a name on the server, not a reference."""
        references = super().references()
        if self.endpoint is not None:
            del references["model"]
        return references


class JudgeConfig(AskingConfig):
    """Label pairs of responses with a chat model (LLM-as-a-judge). Defaults: Lee et al. 2023 (arXiv:2309.00267), Bai et
    al. 2022 (arXiv:2212.08073).
    """

    constitution: ConstitutionRef | None = None
    """Principles to compare by: a YAML file, or `assistant`, which kleash ships; null: one general rule."""
    principles: Literal["drawn", "averaged"] = "drawn"
    """drawn: one random principle for each pair, by weight. averaged: ask for all of them and average by weight."""
    chain_of_thought: bool = False
    """Ask the judge for its reasoning first and for its answer in a second request."""
    reasoning_tokens: int = Field(256, ge=1)
    """Longest reasoning, in tokens."""
    clamp: tuple[float, float] | None = None
    """Clip the probability of a label to this range. Null: 0.4 0.6 after a chain of thought (Bai et al.), else no
    clipping; 0 1 never clips."""
    answers: Literal["auto", "logprobs", "votes"] = "auto"
    """Where a label's probability comes from. logprobs: the answer token's log-probability. votes: several replies
    sampled at temperature 1. auto: logprobs if the server returns them."""
    votes: int = Field(5, ge=1)
    """Replies to sample for each order of the two responses, without log-probabilities."""
    max_characters: int | None = Field(None, ge=1)
    """Show the judge at most this many characters of a response (its beginning) and of a prompt (its end)."""
    injections: int = Field(20, ge=0)
    """Pairs to test for prompt injection: an instruction to choose the worse response is put into it, and the report
    says how often the judge obeys."""
    force: bool = False
    """Write the labels to `out` although the checks of the judge failed."""

    @field_validator("clamp")
    @classmethod
    def _around_one_half(cls, clamp: tuple[float, float] | None) -> tuple[float, float] | None:
        if clamp is not None and not 0 <= clamp[0] <= 0.5 <= clamp[1] <= 1:
            raise ValueError("[least, greatest] around 0.5, as 0.4 0.6")
        return clamp


class ReviseConfig(AskingConfig):
    """Constitutional AI: critiques and revisions. Defaults: Bai et al. 2022, section 3, except for `rounds`."""

    constitution: ConstitutionRef
    """Principles to criticise by: a YAML file, or `assistant`, which kleash ships."""
    rounds: int = Field(1, ge=1)
    """Critiques and revisions of each response, each by another principle. Bai et al. used 4, of which the first had
    most of the effect."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of responses, critiques and revisions."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest response, critique or revision, in tokens."""


class OveroptConfig(Config):
    """Measure over-optimisation. `model`, `proxy`, `data` and the sampling settings default to those of `run`."""

    run: RunRef | None = None
    """Folder of a ppo, grpo or dpo run with snapshots (--snapshot-every); null measures best-of-n only."""
    model: ModelRef | None = None
    """Model that the KL is measured from: a folder or a hub name; null is the run's reference, or the model it started
    from."""
    proxy: RewardRef | None = None
    """Proxy reward that the policy was trained against, and that best-of-n chooses by: a reward model's folder,
    `module:function`, a verifier, or a .yaml composition; null is the run's reward."""
    gold: RewardRef
    """Gold reward, named as for `--proxy`: it measures the goal. It must be more accurate than the proxy, and nothing
    may have been trained against it."""
    data: DataRef | None = None
    """Prompts that were not trained on; null is the run's `eval_data`. A prompt that occurs twice is used once."""
    out: Path
    """Folder to write to. The same command run again continues where it stopped."""
    columns: Columns | None = None
    """Columns of the data whose names kleash does not know, as `prompt=question`; null is the run's."""
    as_chat: bool | None = None
    """Make a prompt of plain text one turn of the user, so that it goes through the chat template; null is the
    run's."""
    points: int = Field(10, ge=2)
    """Checkpoints to measure, besides the start."""
    best_of: int = Field(0, ge=0)
    """Measure best-of-n too, with this many responses of the start to each prompt; 0 does not."""
    samples: int = Field(4, ge=1)
    """Responses to each prompt at each checkpoint."""
    choose_share: float = Field(0.5, gt=0, lt=1)
    """Share of the prompts on which the peak, the scaling law and the recommended checkpoint are chosen; the reported
    figures are from the others."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest response, in tokens; null is the run's."""
    temperature: float | None = Field(None, gt=0)
    """Sampling temperature; null is the run's, else 1."""
    stop: StopTexts | None = None
    """End a response after the first of these texts, as `kleash generate` does; null is the run's."""
    seed: int = 0
    """Seed of every random draw. Same seed, same machine: the same numbers, bit for bit."""
    dtype: DType = "float32"
    """Precision of the forward pass."""
    device: str = "auto"
    """`cpu`, `cuda`, …; `auto` uses a GPU if there is one."""
    force: bool = False
    """Continue although the checks of the proxy or of the gold reward failed."""


class AskConfig(Config):
    """Collect preference labels for pairs of responses."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"out"})

    data: DataRef
    """Rows with two or more responses, as `kleash generate -n 2` writes them. All their pairs are labelled."""
    store: PathText
    """Label store: an SQLite file, made if missing, or a PostgreSQL URL."""
    out: Path
    """Preferences to write: .jsonl, .jsonl.gz, .json or .parquet."""
    columns: Columns | None = None
    """Columns of the data whose names kleash does not know, as `prompt=question,response=answer`; where the columns fit
    two schemas, those that count. Null: the schemas of docs/data.md."""
    as_chat: bool = False
    """Make a prompt of plain text one turn of the user, so that it goes through the chat template."""
    labeller: MeasureRef = "people"
    """`people`, who label with `kleash label` on the same store; or a reward that labels in their place (a reward
    model's folder, `module:function`, a verifier, a .yaml composition)."""
    temperature: float = Field(1.0, gt=0)
    """Noise of a reward's labels: P(a ≻ b) = σ((r(a) − r(b)) / temperature)."""
    votes: int = Field(1, ge=1)
    """Votes that each pair needs."""
    budget: int | None = Field(None, ge=0)
    """Most pairs to label, including those already in the store; null: all of them."""


class ExportConfig(Config):
    """Write the labels of a store as preference files, which every stage reads."""

    store: PathText
    """Label store: an SQLite file, or a PostgreSQL URL."""
    out: Path
    """Folder to write."""
    ties: Literal["half", "davidson", "drop"] = "half"
    """How ties count. half: as probability 1/2. davidson: by Davidson's model (1970), which needs pairs with two votes.
    drop: they are left out."""
    each: Literal["pair", "vote"] = "pair"
    """pair: one row for each pair, its votes as one soft probability. vote: one row for each vote, with its annotator,
    principle and reason."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts to write to `test.jsonl`, by hash of the prompt, so that they stay there as labels come
    in."""
    annotators: tuple[str, ...] = ()
    """Export only the votes of these annotators, by alias or name; none named: of all."""
    kind: tuple[Literal["person", "judge", "simulated", "file"], ...] = ()
    """Export only the votes of labellers of these kinds: people of the page, judges and other models, imported files;
    none named: of all."""
    until: int | None = Field(None, ge=1, lt=2**31)
    """Ignore votes after this one, an earlier export's `until`; null: all votes so far."""
    seed: int = 0
    """Seed of the split."""


class RankConfig(Config):
    """Compare several models on the same prompts: win rates, and Bradley–Terry strengths with and without length.
    Give `data`, `store`, or `models` with `prompts`.
    """

    NOT_IDENTITY: ClassVar[frozenset[str]] = Config.NOT_IDENTITY | {"store", "elo"}

    data: tuple[DataRef, ...] = ()
    """Files of responses, one for each model, as `FILE` or `NAME=FILE`, matched by prompt; or one file of comparisons
    whose rows say in `models` who wrote each response."""
    store: str | None = None
    """Label store with the votes that decide: an SQLite file, or a PostgreSQL URL. With `data`, its files say who wrote
    what; without, the column `models` of its pairs does."""
    models: tuple[ModelRef, ...] = ()
    """Models to sample on `prompts`, as `MODEL` or `NAME=MODEL`: folders or hub names."""
    prompts: DataRef | None = None
    """Prompts for `models`: rows, as for `kleash generate`."""
    reward: MeasureRef | None = None
    """Reward that decides: of two responses the one with the higher score wins. Null, and no `judge` or `store`: the
    rows' own `score`."""
    judge: MeasureRef | None = None
    """Chat model that decides, asked about each pair in both orders: a judge's YAML file (docs/rewards.md), read for
    `judge`, `endpoint`, `rule`, and how it is asked."""
    out: Path
    """Folder to write."""
    kind: tuple[Literal["person", "judge", "simulated", "file"], ...] = ()
    """Count only the votes in `store` of labellers of these kinds; none named: of all."""
    by: str | None = None
    """Column of the rows by whose values the ranking is repeated, as `task`."""
    elo: bool = False
    """Print strengths on Elo's scale, 1000 + 400/ln 10 · strength, in the table."""
    n: int = Field(1, ge=1)
    """Responses of each of `models` to each prompt."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of `models`; 0 takes the most likely token."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest response of `models`, in tokens."""
    columns: Columns | None = None
    """Columns of the data whose names kleash does not know, as `prompt=question,response=answer`; where the columns fit
    two schemas, those that count. Null: the schemas of docs/data.md."""
    as_chat: bool = False
    """Make a prompt of plain text one turn of the user, so that it goes through the chat template."""
    seed: int = 0
    """Seed of the samples, of the judge's votes and of the bootstrap."""
    dtype: DType = "float32"
    """Precision of a model in this process."""
    device: str = "auto"
    """`cpu`, `cuda`, …; `auto` uses a GPU if there is one."""

    @model_validator(mode="after")
    def _one_question(self) -> RankConfig:
        if bool(self.models) != (self.prompts is not None):
            raise ValueError("'models' and 'prompts' go together: the models to sample, and on what")
        if self.models and self.data:
            raise ValueError("'models' and 'data' exclude each other; sample with `kleash generate`, then give 'data'")
        if not (self.models or self.data or self.store):
            raise ValueError("'data' is missing; give a file of responses for each model, 'store', or 'models'")
        deciding = [name for name in ("reward", "judge", "store") if getattr(self, name) is not None]
        if len(deciding) > 1:
            raise ValueError(f"{' and '.join(map(repr, deciding))} both decide who wins; give one of them")
        if self.models and not deciding:
            raise ValueError("'models' needs 'reward', 'judge' or 'store', which decides who wins")
        for field in ("data", "models"):
            names = list(self.named(field))
            if len(getattr(self, field)) > 1 and len(set(names)) < len(getattr(self, field)):
                raise ValueError(f"two of '{field}' have the same name ({', '.join(names)}); give each one as NAME=…")
        if len(self.models) == 1:
            raise ValueError("'models' should be two or more")
        return self

    def named(self, field: str) -> dict[str, str]:
        """What a field names, by the name of each in the ranking."""
        pairs = [_named(text) for text in getattr(self, field)]
        return dict(pairs)

    def references(self) -> dict[str, tuple[Kind, str]]:
        """What this config names; each file and model by its name in the ranking."""
        references = super().references()
        for field, kind in (("data", DATA), ("models", MODEL)):
            references |= {f"{field} {name}": (kind, path) for name, path in self.named(field).items()}
        return references

    def identity(self) -> Settings:
        """The settings that the result depends on; files and models count by their names here and by content."""
        return {**super().identity(), **{field: list(self.named(field)) for field in ("data", "models")}}


def _named(text: str) -> tuple[str, str]:
    """`NAME=PATH` as both; a path by itself is called as its file, without its ending, or its folder."""
    name, equals, path = text.partition("=")
    if equals and name and "/" not in name and not Path(text).exists():
        return name, path
    file = Path(text).name
    endings = [ending for ending in READABLE_ENDINGS if file.endswith(ending)]
    return file.removesuffix(max(endings, key=len, default="")) or text, text

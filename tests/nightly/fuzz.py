"""Damaged and hostile inputs to every reader: each is read, or refused in one line by an error of kleash's own.

    python -m tests.nightly.fuzz --inputs 100000

An input is a whole one with some bytes or some values replaced: cut, repeated, of another type, deep, not text. Readers
are the rows of every format, configs, recipes, compositions, constitutions, run.json and what stands next to it,
states, labels, reward columns and chat templates. A process that dies counts as a fault, and so does an input that
takes 20 s.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from kleash.checks.artifact import check
from kleash.config import read_yaml
from kleash.content import reward_hash
from kleash.data import chat_template
from kleash.data.chat import encode_all, encode_prompt
from kleash.data.formats import read_groups, read_rows
from kleash.data.group import Group
from kleash.errors import KleashError
from kleash.io import read_jsonl
from kleash.labels.constitution import Constitution
from kleash.labels.import_export import import_labels
from kleash.labels.llm_judge import parse_vote
from kleash.labels.store import Store
from kleash.outputs import finish, is_done, results_of
from kleash.recipe import read_recipe
from kleash.rewards.composition import read_parts
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import verifiers
from kleash.run import RunFolder, parent_of, read_record
from kleash.stages import STAGES
from kleash.stages.training_configs import SFTConfig
from kleash.testing import tiny_model, tiny_tokenizer
from kleash.training import checkpoint
from tests.data.test_chat import STOCK, TEMPLATES, stock_tokenizer

BLOCK = 2000
"""Inputs a process; the next one begins afresh."""

LONGEST = 20
"""Seconds that an input may take."""

chat_template.SECONDS = 0.3
"""A template that loops is no rarity here."""

# --- whole inputs ----------------------------------------------------------------------------------------------------

U, A = {"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d e"}
CALL = {
    "role": "assistant", "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": [1, 2]}}}],
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"prompt": "a b", "response": "c d", "finished": True},
    {"prompt": [U], "chosen": [A], "rejected": [{"role": "assistant", "content": "z"}], "annotator": "ann"},
    {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_probability": 0.75, "margin": 1},
    {"chosen": "a b c", "rejected": "a b d"},
    {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 0.5, -2]},
    {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 0, 2]},
    {"prompt": "a", "response": "3", "answer": "3", "pattern": "[0-9]+", "schema": {"type": "integer"}, "score": 1.5},
    {"prompt": "a", "completion": "b", "label": True},
    {"messages": [{"role": "system", "content": "be brief"}, U, A, U, CALL, {"role": "tool", "content": "1"}, A]},
    {"messages": [U, A], "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
    {"messages": [U, {**A, "weight": 0}, U, A], "chat_template_kwargs": {"enable_thinking": False}},
    {"prompt": "a\u2028b", "response": "\x85c\u2029 \U0001f600"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "a", "input": "b", "output": "c"},
    {"question": "a", "answer": "b"},
    {"text": "a b c"},
]
COMPOSITION = {"parts": [{"reward": "math"}, {"reward": "exact", "weight": 0.5, "clip": [-1, 1], "gate": "math"}]}
CONSTITUTION = {
    "name": "c",
    "principles": [
        {"name": "p", "text": "Choose the better one.", "category": "help", "weight": 2, "critique": "Say.",
         "revision": "Rewrite.", "examples": [{"prompt": "a", "better": "b", "worse": "c", "why": "d"}]},
        {"name": "q", "text": "Choose the kinder one."},
    ],
}  # fmt: skip
RECIPE = {
    "out": "runs/x", "seed": 0, "device": "cpu",
    "stages": {
        "sft": {"stage": "sft", "model": "base", "data": "d.jsonl", "learning_rate": "1e-3"},
        "reward": {"model": "@sft", "data": "c.jsonl", "members": 2},
        "ppo": {"model": "@sft", "reward": "@reward", "data": "p.jsonl", "beta": 0.05, "kl_budget": 3},
        "samples": {"stage": "generate", "model": "@ppo", "data": "p.jsonl", "n": 4},
        "judge": {"model": "@sft", "data": "@samples", "constitution": "assistant", "max_rows": 10},
    },
}  # fmt: skip

# --- damage ----------------------------------------------------------------------------------------------------------

BYTES = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r", b"\n", b"\t", b'"', b"\\", b"\\ud800",
    b"{", b"}", b"[", b"]", b":", b",", b"-", b"&a ", b"*a", b"!!int x", b"!!timestamp 2001-99-99", b"<<: ", b"NaN",
    b"1e999", b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"null", b"PAR1",
)  # fmt: skip


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def _value(draw: random.Random) -> Any:
    """A value that is hardly ever expected; a new one, since further damage may change it."""
    values = (
        None, True, False, 0, -1, 3, 10**40, 10**400, 1.5, float("nan"), float("inf"), "", " ", "x", "nan", "1e999",
        "@x", "\ud800", "a\x00b", "\u2028", "z" * 5000, "../..", "/dev/null", "~", [], [None], [[]], {}, {"": None},
        {"role": 1}, _deep(60), _deep(500), "<|im_end|>", "{{ x }}", "{% for %}",
    )  # fmt: skip
    return draw.choice(values)


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """Some bytes replaced, cut or repeated."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((0, 1, 1, 4, 50)))
        how = draw.randrange(5)
        if how == 0:
            data[start:end] = draw.choice(BYTES)
        elif how == 1:
            data[start:end] = draw.randbytes(end - start)
        elif how == 2:
            del data[start:end]
        elif how == 3:
            data[start:start] = data[start:end] * draw.choice((1, 2, 300))
        else:
            del data[start:]
    return bytes(data)


def damaged_value(value: Any, draw: random.Random) -> Any:
    """Some values replaced by others, keys left out, renamed or added."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        parents = [part for part in _parts(value) if part]
        if not parents:
            return _value(draw)
        parent = draw.choice(parents)
        key = draw.choice(list(parent)) if isinstance(parent, dict) else draw.randrange(len(parent))
        how = draw.randrange(8)
        if how == 0 and isinstance(parent, dict):
            parent[draw.choice(("", "x", "response", "scores", "role", str(draw.random())))] = parent.pop(key)
        elif how == 1:
            del parent[key]
        elif how == 2:
            parent[key] = [parent[key]]
        elif how == 3:
            parent[key] = json.loads(json.dumps(draw.choice(parents)))
        else:
            parent[key] = _value(draw)
    return value


def _parts(value: Any) -> list[Any]:
    """The containers in a value, not deeper than 40 levels."""
    parts, level = [], [value]
    for _ in range(40):
        parts += [part for part in level if isinstance(part, dict | list)]
        level = [
            child
            for part in level
            for child in (part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())
        ]
        if not level:
            break
    return parts


# --- readers ---------------------------------------------------------------------------------------------------------


class World:
    """What the readers need besides the input: a folder, a model, a run, a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = tiny_tokenizer()
        base = folder / "base"
        tiny_model(hidden_size=8, intermediate_size=16, num_hidden_layers=1).save_pretrained(base)
        self.tokenizer.save_pretrained(base)
        self.stock = {name: stock_tokenizer(name) for name in STOCK}
        self.data = folder / "demonstrations.jsonl"
        self.data.write_text('{"prompt": "a", "response": "b"}\n')
        self.config = SFTConfig.make({"model": str(base), "data": str(self.data), "out": folder / "run"})
        run = RunFolder.open(self.config.out, stage="sft", config=self.config)
        run.log(1, {"loss": 1.0})
        run.note("gates", out={"passed": True, "finding": "fine", "checks": [], "advice": ""})
        self.parts: checkpoint.State = {"model": nn.Linear(2, 1)}
        checkpoint.save(run, 1, self.parts, keep=1)
        self.run = run
        self.record = json.loads((run.path / "run.json").read_text())
        self.state = (run.path / "checkpoints" / "step-00000001" / "state.json").read_bytes()
        self.settings = {
            name: {
                key: value
                for key, value in {"model": "base", "data": "d.jsonl", "reward": "math", "out": "o.jsonl",
                                   "constitution": "assistant", "gold": "exact", "run": "r", "store": "s.db"}.items()
                if key in stage.config.model_fields
            }
            for name, stage in STAGES.items()
        }  # fmt: skip


Reader = Callable[[World, random.Random, Path], None]


def _json_or_bytes(value: Any, draw: random.Random) -> bytes:
    """A value damaged as a value or as its text."""
    if draw.random() < 0.6:
        value = damaged_value(value, draw)
        try:
            return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
        except (ValueError, RecursionError):  # a value that holds itself
            return b"{"
    return damaged_bytes(json.dumps(value, ensure_ascii=False).encode(), draw)


def read_lines(world: World, draw: random.Random, place: Path) -> None:
    """JSONL, plain or compressed, as rows, as token ids and as rows to score."""
    lines = [_json_or_bytes(draw.choice(ROWS), draw), json.dumps(draw.choice(ROWS)).encode()]
    content = b"\n".join(draw.sample(lines, 2)) + b"\n"
    file = place / "rows.jsonl"
    if draw.random() < 0.15:
        file, content = place / "rows.jsonl.gz", gzip.compress(content, 1)
        content = content if draw.random() < 0.5 else damaged_bytes(content, draw)
    file.write_bytes(content)
    groups = list(read_groups(file))
    encode_all([group for group in groups if group.responses], world.tokenizer, max_length=draw.choice((None, 8)))
    if draw.random() < 0.3:
        list(read_rows(file))


def read_list(world: World, draw: random.Random, place: Path) -> None:
    """A JSON list, or one object in several lines."""
    rows: Any = draw.sample(ROWS, 2) if draw.random() < 0.7 else draw.choice(ROWS)
    file = place / "rows.json"
    file.write_bytes(_json_or_bytes(rows, draw))
    encode_all([group for group in read_groups(file) if group.responses], world.tokenizer)


def read_table(world: World, draw: random.Random, place: Path) -> None:
    """Parquet, Arrow and separated values, as far as they are read."""
    row = draw.choice(ROWS)
    ending = draw.choice((".parquet", ".parquet", ".csv", ".tsv", ".arrow"))
    file = place / f"rows{ending}"
    if ending in (".csv", ".tsv"):
        separator = "," if ending == ".csv" else "\t"
        text = "\n".join(separator.join(map(str, line)) for line in (row.keys(), row.values(), row.values()))
        content = text.encode()
    else:
        table = pa.table({name: [value, value] for name, value in row.items() if value is not None})
        if ending == ".parquet":
            pq.write_table(table, file)
        else:
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        content = file.read_bytes()
    file.write_bytes(damaged_bytes(content, draw))
    list(read_rows(file))


def read_config(world: World, draw: random.Random, place: Path) -> None:
    """The YAML of `--config` of every stage."""
    name = draw.choice(list(STAGES))
    file = place / "config.yaml"
    file.write_bytes(_json_or_bytes(world.settings[name] | {"seed": 0, "device": "cpu"}, draw))
    STAGES[name].config.make(read_yaml(file), source=str(file)).references()


def read_a_recipe(world: World, draw: random.Random, place: Path) -> None:
    """A recipe."""
    file = place / "recipe.yaml"
    file.write_bytes(_json_or_bytes(RECIPE, draw))
    read_recipe(file)


def read_a_composition(world: World, draw: random.Random, place: Path) -> None:
    """A composition of rewards."""
    file = place / "parts.yaml"
    file.write_bytes(_json_or_bytes(COMPOSITION, draw))
    reward_hash(str(file))
    read_parts(file)


def read_a_constitution(world: World, draw: random.Random, place: Path) -> None:
    """A constitution."""
    file = place / "constitution.yaml"
    file.write_bytes(_json_or_bytes(CONSTITUTION, draw))
    constitution = Constitution.load(file)
    constitution.draw(1)


def read_a_run(world: World, draw: random.Random, place: Path) -> None:
    """run.json of a run, as its own and as a parent's."""
    file = world.run.path / "run.json"
    file.write_bytes(_json_or_bytes(world.record, draw))
    parent_of(world.run.path, "model")
    read_record(world.run.path)
    how = draw.random()
    if how < 0.2:
        RunFolder.open(world.config.out, stage="sft", config=world.config)
    elif how < 0.4:
        check(world.run.path)


def read_metrics(world: World, draw: random.Random, place: Path) -> None:
    """metrics.jsonl, and its rewinding."""
    file = world.run.path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1.0, "kl": None, "text": "a\u2028b"} for step in range(3)]
    file.write_bytes(
        b"\n".join(_json_or_bytes(row, draw) if draw.random() < 0.3 else json.dumps(row).encode() for row in rows)
    )
    try:
        read_jsonl(file)
    finally:
        if draw.random() < 0.1:
            world.run.rewind(1)


def read_a_state(world: World, draw: random.Random, place: Path) -> None:
    """A state to resume from."""
    path = world.run.path / "checkpoints" / "step-00000001"
    if not (path / "model.safetensors").exists():
        checkpoint.save(world.run, 1, world.parts, keep=1)
    whole = (path / "model.safetensors").read_bytes()
    if draw.random() < 0.7:
        (path / "state.json").write_bytes(_json_or_bytes(json.loads(world.state), draw))
    else:
        (path / "model.safetensors").write_bytes(damaged_bytes(whole, draw))
    try:
        checkpoint.restore(world.run, world.parts)
    finally:
        if path.exists():
            (path / "state.json").write_bytes(world.state)
            (path / "model.safetensors").write_bytes(whole)


def read_a_summary(world: World, draw: random.Random, place: Path) -> None:
    """The record of a file of rows."""
    out = place / "rows.jsonl"
    out.write_text("{}\n")
    if not (place / "rows.summary.json").exists():
        finish(out, {"stage": "score"}, {"rows": 1})
    (place / "rows.summary.json").write_bytes(
        _json_or_bytes({"schema": 1, "identity": {"stage": "score"}, "results": {"rows": 1}}, draw)
    )
    results_of(out)
    is_done(out, {"stage": "score"})


def read_an_ensemble(world: World, draw: random.Random, place: Path) -> None:
    """ensemble.json."""
    value = {"members": {"members/0": "x", "members/1": "y"}, "combine": "mean", "variance_penalty": 0.1}
    (place / "ensemble.json").write_bytes(_json_or_bytes(value, draw))
    EnsembleReward.load(place)


def read_labels(world: World, draw: random.Random, place: Path) -> None:
    """`kleash import`."""
    file = place / "labels.jsonl"
    rows = [row for row in ROWS if "chosen" in row or "responses" in row]
    file.write_bytes(b"\n".join(_json_or_bytes(draw.choice(rows), draw) for _ in range(2)))
    with tempfile.TemporaryDirectory(dir=world.folder) as folder:
        store = Store.open(Path(folder, "labels.db"))
        try:
            import_labels(store, file)
        finally:
            store.close()


def read_columns(world: World, draw: random.Random, place: Path) -> None:
    """The columns that verifiers compare with, and responses of any kind."""
    row = damaged_value({**ROWS[6], "response": draw.choice(("3", "x", "answer is 3", "{}"))}, draw)
    file = place / "rows.jsonl"
    try:
        file.write_text(json.dumps(row) + "\n")
    except (ValueError, RecursionError):
        return
    groups = [group for group in read_groups(file) if group.responses]
    for verifier in verifiers().values():
        if not verifier.guarded or draw.random() < 0.002:
            VerifierReward(verifier)(groups) if groups else None


def read_votes(world: World, draw: random.Random, place: Path) -> None:
    """What a judge replies."""
    content = damaged_bytes(b'```json\n{"better": "1"}\n```', draw)
    parse_vote(content.decode(errors="replace"))


SYSTEM = {"role": "system", "content": "sys0 sys1"}
ASK, MORE = {"role": "user", "content": "usr0 usr1"}, {"role": "user", "content": "usr2"}
ANSWER, LAST = {"role": "assistant", "content": "ans0"}, {"role": "assistant", "content": "ans1 ans2"}
THOUGHT = {"role": "assistant", "content": "<think>\nans3\n</think>\n\nans4"}
CALLED = {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": "ans5"}}}],
}  # fmt: skip
TOOL = {"role": "tool", "content": "tol0"}
TALKS: list[dict[str, Any]] = [
    {"messages": [ASK, LAST]},
    {"messages": [SYSTEM, ASK, LAST]},
    {"messages": [ASK, ANSWER, MORE, LAST]},
    {"messages": [ASK, THOUGHT, MORE, THOUGHT]},
    {"messages": [ASK, CALLED, TOOL, LAST], "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": [ASK, LAST], "enable_thinking": False, "documents": [{"title": "t", "text": "doc0"}]},
    {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "ans6"}]},
    {"messages": [ASK, {**LAST, "name": "n", "weight": 1}]},
    {"prompt": [SYSTEM, ASK], "chosen": [LAST], "rejected": [ANSWER]},
]
"""Conversations whose words say who wrote them."""

TAGS = (
    "{{ raise_exception('no') }}", "{{ nothing.at.all }}", "{{ nothing }}", "{{ 1 / 0 }}", "{{ 'x' * 10000000 }}",
    "{{ range(10 ** 9) | list }}", "{{ messages[99].content }}", "{{ messages[0].content + 1 }}", "{% generation %}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{% endgeneration %}", "{{ strftime_now('%d %b %Y') }}",
    "{{ strftime_now(1) }}", "{{ messages | tojson }}", "{{ tools | tojson(indent=4) }}", "{% break %}",
    "{% continue %}", "{% if tools %}{{ tools }}{% endif %}",
    "{{ messages[0].content | trim }}", "{{ messages[-1]['content'].split('</think>')[-1] }}", "{% if true %}",
    "{% endif %}", "{% endfor %}", "{{ eos_token }}", "{{ bos_token }}", "<|im_end|>", "<|im_start|>assistant\n", "\n",
    "{% set messages = messages[1:] %}", "{% set messages = [] %}", "{% set add_generation_prompt = true %}",
    "{{ messages.clear() }}", "{{ ''.__class__.__mro__ }}", "{{ messages[0].content[0].text }}", "{{- '' -}}", "{#",
    "{% include 'x' %}", "{% import 'os' as os %}", "{{ lipsum(9) }}", "{{ '\ue0000\ue001' }}",
    "{{ cycler(1).next() }}", "{{ messages[0].content | replace('u', '') }}", "{{ messages[-1].content | upper }}",
)  # fmt: skip
"""What a template may hold, in a place where it should not be."""


def damaged_template(text: str, draw: random.Random) -> str:
    """A template with some of its tags left out, doubled, exchanged or preceded by others."""
    tags = [tag for tag in re.split(r"({[%{#].*?[%}#]})", text, flags=re.DOTALL) if tag]
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, how = draw.randrange(len(tags)), draw.randrange(6)
        if how == 0:
            del tags[at : at + 1]
        elif how == 1:
            tags.insert(at, draw.choice(tags))
        elif how in (2, 3):
            tags.insert(at, draw.choice(TAGS))
        elif how == 4:
            tags[at] = re.sub(r"\w+", lambda word: draw.choice((word[0], word[0], "x", "content")), tags[at])
        else:
            tags[at] = damaged_bytes(tags[at].encode(), draw).decode(errors="replace")
        tags = tags or [""]
    return "".join(tags)


def read_a_template(world: World, draw: random.Random, place: Path) -> None:
    """A chat template: it renders a row whose trained tokens are the assistant's words and nobody else's, or says why
    not.
    """
    name = draw.choice(list(STOCK))
    tokenizer = world.stock[name]
    text = (TEMPLATES / f"{name}.jinja").read_text()
    tokenizer.chat_template = text if draw.random() < 0.02 else damaged_template(text, draw)
    row = draw.choice(TALKS)
    groups = [group for group in read_rows_of([damaged_value(row, draw) if draw.random() < 0.2 else row], place)]
    (encoded,), _ = encode_all(groups, tokenizer)
    encode_prompt(groups[0].prompt, tokenizer, groups[0].columns)
    if groups != list(read_rows_of([row], place)):
        return  # other words
    for response, source in zip(encoded.responses, encoded.source.responses, strict=True):
        trained = tokenizer.decode([token for token, on in zip(response.ids, response.mask, strict=True) if on])
        assert not (words := re.findall("(?:usr|sys|tol|doc)\\d", trained)), f"{words[0]} is trained"
        answers = re.findall(r"ans\d", str(source.content[-1]["content"]).rpartition("</think>")[2])
        assert not (lost := [word for word in answers if word not in trained]), f"{lost[0]} is not trained"
        assert trained.count(answers[-1]) == 1 or len(source.content) > 1, f"{answers[-1]} is trained twice"
        assert not [word for word in answers if word in tokenizer.decode(encoded.prompt_ids)], (
            "an answer is in the prompt"
        )


def read_rows_of(rows: list[Any], place: Path) -> Iterable[Group]:
    """Rows as they are read from a file."""
    file = place / "talk.jsonl"
    file.write_bytes(b"".join(json.dumps(row).encode(errors="surrogatepass") + b"\n" for row in rows))
    return read_groups(file)


READERS: dict[Reader, float] = {
    read_lines: 5, read_list: 2, read_table: 2.5, read_config: 2, read_a_recipe: 2, read_a_composition: 1,
    read_a_constitution: 1, read_a_run: 1.5, read_metrics: 1, read_a_state: 0.5, read_a_summary: 0.7,
    read_an_ensemble: 0.7, read_labels: 0.3, read_columns: 1, read_votes: 0.8, read_a_template: 5,
}  # fmt: skip
"""Each with its share of the inputs: less for those that take long."""

# --- the run ---------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """How inputs ended."""

    inputs: int = 0
    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    """The last frame and message of a fault → the first input with it, and its traceback."""
    fault_count: int = 0


class TooLongError(Exception):
    """An input took longer than it may."""


def _alarm(*_: Any) -> None:
    raise TooLongError


def read_one(world: World, seed: int, place: Path) -> tuple[str, str, str]:
    """Read input number `seed`: the reader, `read`, `refused` or a fault, and its traceback."""
    draw = random.Random(seed)
    (reader,) = draw.choices(list(READERS), list(READERS.values()))
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        reader(world, draw, place)
    except KleashError as error:
        text = str(error)
        if "\n" in text or len(text) > 10_000 or not text:
            return reader.__name__, f"{type(error).__name__}: not one line: {text[:80]!r}", text
        return reader.__name__, "refused", ""
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "kleash/" in frame.filename]
        place_of = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else f"{Path(last.filename).name}"
        return reader.__name__, f"{type(error).__name__} at {place_of}: {str(error)[:60]}", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return reader.__name__, "read", ""


def fuzz(inputs: Iterable[int], *, say: Callable[[str], None] = print) -> Report:
    """Read inputs by number, a block a process."""
    report, numbers = Report(), iter(inputs)
    signal.signal(signal.SIGALRM, _alarm)
    with tempfile.TemporaryDirectory() as name:
        while block := list(islice(numbers, BLOCK)):
            kinds = len(report.faults)
            _read_block(block, Path(name), report)
            for fault in list(report.faults)[kinds:]:
                say(f"a fault: {fault}")
            if report.inputs % (5 * BLOCK) == 0:
                say(f"{report.inputs} inputs, {report.fault_count} faults of {len(report.faults)} kinds")
    return report


def _read_block(block: list[int], folder: Path, report: Report) -> None:
    """Read a block in a fork; go on behind an input that ends the process."""
    while block:
        lines = folder / "lines"
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                with lines.open("w") as results, tempfile.TemporaryDirectory(dir=folder) as place:
                    world = World(Path(place))
                    for seed in block:
                        (input_place := Path(place, "input")).mkdir(exist_ok=True)
                        results.write(json.dumps([seed]) + "\n")
                        results.flush()
                        results.write(json.dumps([seed, *read_one(world, seed, input_place)]) + "\n")
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        rows = [json.loads(line) for line in lines.read_text().split("\n") if line]
        for row in rows:
            if len(row) > 1:
                _count(report, *row)
        block = block[sum(len(row) > 1 for row in rows) :]
        if block and not rows:
            raise RuntimeError("the readers' world cannot be made")
        if block:
            _count(report, block[0], "process", f"ended by an input (status {status})", "")
            block = block[1:]


def _count(report: Report, seed: int, reader: str, result: str, detail: str) -> None:
    report.inputs += 1
    if result == "read":
        report.read[reader] += 1
    elif result == "refused":
        report.refused[reader] += 1
    else:
        report.fault_count += 1
        report.faults.setdefault(f"{reader}: {result}", f"input {seed}\n{detail}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", help="name of a reader")
    arguments = parser.parse_args()
    for reader in list(READERS):
        if arguments.only not in (None, reader.__name__):
            del READERS[reader]
    start = time.monotonic()
    report = fuzz(range(arguments.first, arguments.first + arguments.inputs), say=lambda line: print(line, flush=True))
    for reader in READERS:
        name = reader.__name__
        print(f"{name}: {report.read[name]} read, {report.refused[name]} refused in one line")
    print(f"{report.inputs} inputs in {time.monotonic() - start:.0f} s, {report.fault_count} faults")
    for fault, detail in report.faults.items():
        print(f"\n{fault}\n{detail[:3000]}")
    sys.exit(1 if report.fault_count else 0)


if __name__ == "__main__":
    main()

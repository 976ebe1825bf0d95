"""Runs that are killed with SIGKILL, again and again until they are done, and compared with one that was left alone.

    python -m tests.nightly.kills --kills 300

Every attempt is a fork of one warm process, so that it costs the training and not the imports. A run is killed at most
three times: at a random time, before a random change of its folder (a file opened, renamed or deleted) or at its end;
then in its restarts. What it has left at last must be the same, bit for bit, and nothing else: weights, figures,
samples, results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has only one thread

import torch

from kleash.config import Config
from kleash.data import stream
from kleash.stages import dpo, generate, grpo, judge, ppo, revise, reward_ensemble, reward_model, score, sft
from kleash.stages.data_configs import GenerateConfig, JudgeConfig, ReviseConfig, ScoreConfig
from kleash.stages.training_configs import DPOConfig, EnsembleConfig, GRPOConfig, PPOConfig, RewardConfig, SFTConfig
from kleash.testing import FakeChat, tiny_model, tiny_tokenizer

END = 0.6
"""The last kills of a run begin after this share of its changes."""

stream.BLOCK = 5
"""Several blocks, and an end of the rows in one, in a few steps."""

VARYING = ("seconds", "peak_memory", "config", "versions", "inputs")
"""Keys of run.json that a killed run may have otherwise."""


def letters(number: int, length: int) -> str:
    """Some letters, the same for the same number."""
    return " ".join("abcdefghij"[(number * 7 + place * 3) % 10] for place in range(length))


def reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """How many z, and a little for the length."""
    return [text.split().count("z") + 0.01 * len(text) for text in completions]


def vote(request: Any) -> dict[str, float] | str:
    """A judge that prefers by the length of what it reads."""
    return {"1": 0.25, "2": 0.75} if request.options else '{"better": "1"}'


@dataclass(frozen=True)
class Case:
    """A stage that is run again and again."""

    name: str
    config: Callable[[Path, Path], Config]
    """Its settings, from the folder of the inputs and the output."""
    run: Callable[[Any], object]
    out: str = "out"


def _training(kind: type[Config], data: str, **settings: Any) -> Callable[[Path, Path], Config]:
    return lambda inputs, out: kind.make(
        {
            "model": str(inputs / "base"), "data": str(inputs / f"{data}.jsonl"), "out": out, "max_steps": 6,
            "save_every": 2, "learning_rate": 3e-3, **settings,
        }
    )  # fmt: skip


def _rows(kind: type[Config], data: str, **settings: Any) -> Callable[[Path, Path], Config]:
    return lambda inputs, out: kind.make({"data": str(inputs / f"{data}.jsonl"), "out": out, **settings})


CASES = (
    Case(
        "sft",
        _training(SFTConfig, "demonstrations", batch_size=4, eval_every=2, keep_weights="best", gate_prompts=0),
        sft.run,
    ),
    Case(
        "reward",
        _training(RewardConfig, "comparisons", batch_size=4, eval_every=2, centre_samples=4, centre_max_new_tokens=2),
        reward_model.run,
    ),
    Case(
        "dpo",
        _training(DPOConfig, "comparisons", batch_size=4, eval_every=2, keep_weights="best", kl_every=3, kl_samples=4,
                  max_new_tokens=3),
        dpo.run,
    ),
    Case(
        "sft, streamed",
        _training(SFTConfig, "demonstrations", batch_size=3, eval_every=2, gate_prompts=0, streaming=True),
        sft.run,
    ),
    Case(
        "dpo, streamed",  # the reference stays in memory, and a row's log-probabilities are computed when it comes
        _training(DPOConfig, "comparisons", batch_size=3, lora_rank=2, kl_every=3, kl_samples=4, max_new_tokens=3,
                  streaming=True, keep_states=2),
        dpo.run,
    ),
    Case(
        "ensemble",
        _training(EnsembleConfig, "comparisons", batch_size=4, max_steps=4, members=2, validation_share=0.3,
                  centre_samples=4, centre_max_new_tokens=2),
        reward_ensemble.run,
    ),
    Case(
        "ppo",
        _training(PPOConfig, "prompts", max_steps=4, reward="tests.nightly.kills:reward", batch_size=4,
                  max_new_tokens=3, eval_every=2, ema_decay=0.9, value_init="policy", target_kl=0.1, snapshot_every=2),
        ppo.run,
    ),
    Case(
        "grpo",
        _training(GRPOConfig, "prompts", max_steps=4, reward="tests.nightly.kills:reward", batch_size=2,
                  group_size=2, max_new_tokens=3, eval_every=3, log_rollouts=2),
        grpo.run,
    ),
    Case(
        "grpo, streamed",
        _training(GRPOConfig, "prompts", max_steps=4, reward="tests.nightly.kills:reward", batch_size=3,
                  group_size=2, max_new_tokens=3, streaming=True),
        grpo.run,
    ),
    Case(
        "generate",
        lambda inputs, out: GenerateConfig.make(
            {"model": str(inputs / "base"), "data": str(inputs / "prompts.jsonl"), "out": out, "n": 2,
             "rows_at_once": 2, "max_new_tokens": 3}
        ),
        generate.run,
        "out.jsonl",
    ),
    Case("score", _rows(ScoreConfig, "demonstrations", reward="tests.nightly.kills:reward"), score.run, "out.jsonl"),
    Case(
        "judge",
        _rows(JudgeConfig, "comparisons", model="fake", force=True, injections=2),
        lambda config: judge.run(config, chat=FakeChat(vote)),
        "out.jsonl",
    ),
    Case(
        "revise",
        _rows(ReviseConfig, "prompts", model="fake", constitution="assistant", rounds=2),
        lambda config: revise.run(config, chat=FakeChat(lambda request: f"{len(str(request.messages))} z")),
        "out.jsonl",
    ),
)  # fmt: skip


def write_inputs(folder: Path) -> None:
    """A model of a few thousand weights, and rows for every stage."""
    tiny_model(hidden_size=8, intermediate_size=16, num_hidden_layers=1).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = {
        "demonstrations": [{"prompt": letters(i, 1 + i % 4), "response": letters(i + 1, 1 + i % 7)} for i in range(12)],
        "comparisons": [
            {"prompt": letters(i, 1 + i % 4), "chosen": f"z {letters(i, 1 + i % 5)}", "rejected": letters(i, 2 + i % 6)}
            for i in range(16)
        ],
        "prompts": [{"prompt": letters(i, 1 + i % 5)} for i in range(8)],
    }
    for name, values in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))


@dataclass(frozen=True)
class Attempt:
    """How an attempt ended."""

    killed: bool
    changes: int
    """Of the folder, as far as it came."""
    seconds: float
    error: str = ""


def attempt(
    case: Case, inputs: Path, out: Path, *, at_change: int | None = None, after: float | None = None
) -> Attempt:
    """Run a stage in a fork; kill it before its n-th change of the folder, or after some seconds."""
    count, errors = out.parent / "changes", out.parent / "errors"
    count.write_bytes(bytes(8))
    errors.unlink(missing_ok=True)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_killed(case, inputs, out, count, errors, at_change, after)
    status = os.waitpid(child, 0)[1]
    changes = int.from_bytes(count.read_bytes(), "little")
    seconds = time.monotonic() - start
    if os.WIFSIGNALED(status):
        return Attempt(os.WTERMSIG(status) == signal.SIGKILL, changes, seconds, "" if at_change or after else "killed")
    return Attempt(False, changes, seconds, errors.read_text() if errors.exists() else "")


def _be_killed(
    case: Case, inputs: Path, out: Path, count: Path, errors: Path, at_change: int | None, after: float | None
) -> None:
    """The child: it never returns."""
    code = 1
    try:
        sys.stderr = (out.parent / "stderr").open("w")
        changes = [0]
        handle = os.open(count, os.O_WRONLY)
        place = str(out)
        hidden = str(out.with_name(f".{out.name}"))

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
                return
            if not str(arguments[0]).startswith((place, hidden)):
                return
            changes[0] += 1
            os.pwrite(handle, changes[0].to_bytes(8, "little"), 0)
            if changes[0] == at_change:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        if after is not None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, after)
        torch.set_num_threads(1)
        case.run(case.config(inputs, out))
        code = 0
    except BaseException as error:
        errors.write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def contents(out: Path) -> dict[str, Any]:
    """What an output consists of: file → bytes; of run.json without what may differ."""
    files: dict[str, Any] = {}
    for path in sorted(out.parent.rglob("*")):
        name = str(path.relative_to(out.parent))
        if path.is_dir() or name in ("changes", "errors", "stderr") or path.suffix in (".db", ".db-wal", ".db-shm"):
            continue
        files[name] = path.read_bytes()
        if path.name == "run.json":
            record = json.loads(path.read_text().replace(str(out), "OUT"))  # a member names its files
            files[name] = {key: value for key, value in record.items() if key not in VARYING}
        elif path.name == "README.md":
            files[name] = files[name].replace(str(out).encode(), b"OUT")
        elif path.name == "out.summary.json":  # replies that were kept cost nothing again
            files[name] = {k: v for k, v in json.loads(path.read_text())["results"].items() if k not in ("usage",)}
    return files


@dataclass
class Tally:
    """What the kills did."""

    kills: int = 0
    aimed: int = 0
    """Of them at the end of a run or in a restart."""
    runs: int = 0
    faults: list[str] = field(default_factory=list)


def run_kills(
    kills: int, *, seed: int = 0, cases: tuple[Case, ...] = CASES, say: Callable[[str], None] = print
) -> Tally:
    """Kill runs until so many kills have hit; a third of them at the end of a run or in a restart."""
    draw, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name, "inputs")
        inputs.mkdir()
        write_inputs(inputs)
        whole = {}
        for case in cases:
            place = Path(name, "whole", case.name)
            place.mkdir(parents=True)
            attempt(case, inputs, place / case.out)  # the first one of a process warms up caches
            shutil.rmtree(place)
            place.mkdir()
            ended = attempt(case, inputs, place / case.out)
            if ended.error:
                raise RuntimeError(f"{case.name}, undisturbed: {ended.error}")
            whole[case.name] = (ended, contents(place / case.out))
            say(f"{case.name}: {ended.changes} changes, {ended.seconds:.2f} s")
        by_case: Counter[str] = Counter()
        while tally.kills < kills:
            case = cases[tally.runs % len(cases)]
            before = tally.kills
            _kill_one(case, inputs, Path(name, "killed", case.name), whole[case.name], draw, tally, kills)
            by_case[case.name] += tally.kills - before
            if tally.runs % 25 == 0:
                say(f"{tally.runs} runs, {tally.kills} kills ({tally.aimed} aimed), {len(tally.faults)} faults")
    say(f"{tally.kills} kills, {tally.aimed} of them at the end or in a restart, in {tally.runs} runs: {dict(by_case)}")
    return tally


def _kill_one(
    case: Case, inputs: Path, place: Path, whole: tuple[Attempt, dict[str, Any]], draw: random.Random, tally: Tally,
    kills: int,
) -> None:  # fmt: skip
    """One run, killed up to three times and then left alone."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    undisturbed, expected = whole
    tally.runs += 1
    history = []
    for number in range(draw.choice((1, 2, 2, 3))):
        if tally.kills >= kills:
            break
        aim: dict[str, Any] = {}
        kind = draw.choice(("time", "change", "end")) if number == 0 else "restart"
        if kind == "time":
            aim["after"] = draw.uniform(0.02, undisturbed.seconds)
        elif kind == "change":
            aim["at_change"] = draw.randint(1, undisturbed.changes)
        elif kind == "end":
            aim["at_change"] = draw.randint(int(END * undisturbed.changes), undisturbed.changes)
        else:
            aim["at_change"] = draw.randint(1, draw.choice((30, undisturbed.changes)))
        ended = attempt(case, inputs, place / case.out, **aim)
        history.append((kind, aim, ended.changes))
        if ended.error:
            tally.faults.append(f"{case.name} after {history}: {ended.error}")
            return
        if not ended.killed:
            break
        tally.kills += 1
        tally.aimed += kind in ("end", "restart")
    for _ in range(2):  # the second one changes nothing
        ended = attempt(case, inputs, place / case.out)
        if ended.error:
            tally.faults.append(f"{case.name} after {history}: {ended.error}")
            return
    actual = contents(place / case.out)
    differing = sorted(name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name))
    if differing:
        tally.faults.append(f"{case.name} after {history}: other than undisturbed: {', '.join(differing)}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="name of a stage")
    arguments = parser.parse_args()
    start = time.monotonic()
    cases = tuple(case for case in CASES if arguments.only in (None, case.name))
    tally = run_kills(arguments.kills, seed=arguments.seed, cases=cases, say=lambda line: print(line, flush=True))
    print(f"{time.monotonic() - start:.0f} s; {len(tally.faults)} runs ended otherwise than undisturbed")
    for fault in tally.faults:
        print(f"  {fault}")
    sys.exit(1 if tally.faults or tally.aimed * 3 < tally.kills else 0)


if __name__ == "__main__":
    main()

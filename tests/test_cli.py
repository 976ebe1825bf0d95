from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kleash.cli import COMMANDS, _run
from kleash.io import read_jsonl
from kleash.stages import STAGES


def kleash(*words: object) -> int:
    return _run([str(word) for word in words])


def fails(capsys: pytest.CaptureFixture[str], code: int, message: str, *words: object) -> None:
    """The command ends with the code, and its last output is one line with the message."""
    assert kleash(*words) == code
    output = capsys.readouterr()
    line = output.err.strip().splitlines()[-1]
    assert line.startswith("kleash: "), output.err
    assert re.search(message, line), line
    assert "Traceback" not in output.err and output.out == ""


def sft(base: Path, data: object, *more: object) -> list[object]:
    return ["sft", "--model", base, "--data", data, "--out", base.parent / "out", "--max-steps", 2, *more]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a", \n', r"rows.jsonl row 2"),
        ("", r"rows.jsonl.* (empty|no rows|holds no)"),
        ('{"prompt": "a", "chosen": "b"}\n', r"rows.jsonl row 1: .*rejected"),
        ('{"question": "a"}\n', r"rows.jsonl row 1"),
        ('{"prompt": "a", "response": 3}\n', r"rows.jsonl row 1: .*response"),
    ],
    ids=["broken row", "empty file", "missing column", "no known column", "wrong type"],
)
def test_bad_data_ends_in_one_line_that_names_the_row(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(text)
    fails(capsys, 2, message, *sft(base, data))


def test_a_missing_file_is_an_error_without_contacting_the_hub(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, 2, "nowhere.jsonl", *sft(base, "nowhere.jsonl"))


def test_a_missing_model_is_an_error_without_contacting_the_hub(
    tmp_path: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, 2, "there is no such folder", *sft(tmp_path / "no" / "model", demonstrations))


def test_a_prompt_longer_than_the_context_is_named(base: Path, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = write("long.jsonl", [{"prompt": "a"}, {"prompt": "a " * 300}])
    words = ["generate", "--model", base, "--data", data, "--out", base.parent / "out.jsonl", "--max-new-tokens", 8]
    fails(
        capsys, 2, r"long.jsonl row 2: a prompt of 300 tokens and 8 new ones exceed the model's context of 256", *words
    )
    rows = write("long_rows.jsonl", [{"prompt": "a " * 300, "response": "b"}] * 3)
    fails(capsys, 2, r"no row can be used: .*300", *sft(base, rows))


def test_rows_that_are_cut_or_dropped_are_logged(
    base: Path, write: Any, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    rows = [{"prompt": "a", "response": "b c"}] * 20 + [{"prompt": "a", "response": "b " * 50}] * 20
    with caplog.at_level("WARNING"):
        assert (
            kleash(*sft(base, write("some.jsonl", rows), "--max-length", 10, "--eval-data", write("e.jsonl", rows[:2])))
            == 0
        )
    assert "of 40 rows, 20 cut (max_length 10)" in caplog.text


def test_messages_without_a_template_are_one_line(
    base: Path, write: Any, tiny_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_tokenizer.chat_template = None
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.save_pretrained(base)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    fails(capsys, 2, "has no chat template", *sft(base, write("turns.jsonl", [{"messages": turns}])))


def test_a_model_without_an_end_token_is_one_line(
    base: Path, demonstrations: Path, tiny_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_tokenizer.eos_token = None
    tiny_tokenizer.save_pretrained(base)
    assert AutoTokenizer.from_pretrained(base).eos_token_id is None
    fails(capsys, 2, "has no end token", *sft(base, demonstrations))


def test_a_typo_in_an_option_or_a_config_key_is_one_line(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(
        capsys,
        2,
        r"unknown option --learning-rat; did you mean --learning-rate\?",
        *sft(base, demonstrations, "--learning-rat", 1),
    )
    fails(capsys, 2, r"there is no command 'sfft'; did you mean `kleash sft`\?", "sfft")
    config = tmp_path / "sft.yaml"
    config.write_text("learning_rat: 1e-4\n")
    fails(
        capsys,
        2,
        r"unknown key 'learning_rat'; did you mean 'learning_rate'\?",
        *sft(base, demonstrations, "--config", config),
    )
    fails(
        capsys,
        2,
        r"'learning_rate' is 'fast', but should be a valid number",
        *sft(base, demonstrations, "--learning-rate", "fast"),
    )
    fails(capsys, 2, r"'data' is missing; give rows to work on", "sft", "--model", base, "--out", tmp_path / "out")


def test_abbreviations_are_refused(base: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, 2, "unknown option --learning", *sft(base, demonstrations, "--learning", 1e-4))


def test_options_win_over_the_config_file(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sft.yaml"
    config.write_text(
        f"model: {base}\ndata: {demonstrations}\nlearning_rate: 1e-4\nbatch_size: 4\nmax_grad_norm: 2.0\n"
    )
    words = ["--out", tmp_path / "out", "--max-steps", 1, "--batch-size", 8, "--max-grad-norm", "null", "--json"]
    assert kleash("sft", "--config", config, *words) == 0
    assert json.loads(capsys.readouterr().out)["results"]["step"] == 1
    used = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert (used["learning_rate"], used["batch_size"], used["max_grad_norm"]) == (1e-4, 8, None)


def test_results_go_to_stdout_and_the_rest_to_stderr(
    base: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kleash(*sft(base, demonstrations)) == 0
    assert capsys.readouterr().out.strip() == str(base.parent / "out")


def test_check_prints_the_checks_and_exits_with_one_where_one_failed(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    too_fast = ("--learning-rate", 5, "--schedule", "constant", "--eval-data", demonstrations)
    assert kleash(*sft(base, demonstrations, *too_fast)) == 0, "a failed gate out exits 0"
    capsys.readouterr()
    assert kleash("check", base.parent / "out") == 1
    assert "out: FAILED: " in capsys.readouterr().out
    next_stage = [
        "sft",
        "--model",
        base.parent / "out",
        "--data",
        demonstrations,
        "--out",
        tmp_path / "next",
        "--max-steps",
        1,
    ]
    fails(capsys, 1, "failed its own checks: .* add --force", *next_stage)
    assert kleash(*next_stage, "--force") == 0


def test_check_measures_a_model_that_kleash_did_not_make(
    base: Path, comparisons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kleash("check", base) == 1, "random weights"
    output = capsys.readouterr()
    assert "measured: FAILED" in output.out and "no noise" in output.out
    assert output.err.strip().splitlines()[-1].startswith(f"kleash: {base}: gate measured failed: ")
    assert kleash("check", comparisons, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "rows"
    assert {"name", "passed", "finding", "advice", "figures"} == set(found["gates"]["measured"]["checks"][0])


def test_generate_adds_responses_beside_the_columns(base: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    assert kleash("generate", "--model", base, "--data", prompts, "--out", out, "-n", 3, "--max-new-tokens", 5) == 0
    rows = read_jsonl(out)
    assert [row["number"] for row in rows] == list(range(30))
    assert all(len(row["responses"]) == 3 for row in rows)
    again = tmp_path / "again.jsonl"
    words = ["--rows-at-once", 4, "--max-new-tokens", 5]
    assert kleash("generate", "--model", base, "--data", prompts, "--out", again, "-n", 3, *words) == 0
    assert read_jsonl(again) == rows, "a response does not depend on the batch it is in"


def test_generate_does_not_write_over_what_is_there(
    base: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--model", base, "--data", prompts, "--out", prompts]
    fails(capsys, 2, "exists and no stage of kleash finished it", *words)


def test_a_reward_that_is_nothing_is_one_line(base: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ppo", "--model", base, "--data", prompts, "--out", base.parent / "ppo"]
    fails(capsys, 2, "no such folder; give a reward model's folder, module:function", *words, "--reward", "good")
    fails(capsys, 2, "No module named 'nothing_here'", *words, "--reward", "nothing_here:f")


def test_F17_a_whole_run_makes_no_network_call(base: Path, demonstrations: Path, network: Any) -> None:
    assert kleash(*sft(base, demonstrations)) == 0
    assert network.attempts() == []


def test_ctrl_c_ends_with_130_and_loses_nothing(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    words = [str(word) for word in sft(base, demonstrations, "--save-every", 2)]
    words[words.index("--max-steps") + 1] = "100000"
    process = subprocess.Popen(
        [sys.executable, "-m", "kleash", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # what a shell starts in the background ignores Ctrl-C, and hands that down: the tests may run like that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = base.parent / "out" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 30):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert (
        errors.strip().splitlines()[-1]
        == "kleash: interrupted; finished work is kept, run the same command again to continue"
    )
    assert "Traceback" not in errors
    assert list((base.parent / "out" / "checkpoints").glob("step-*"))
    assert len(read_jsonl(metrics)) >= 30


def test_a_full_disk_ends_with_3_and_loses_nothing(base: Path, demonstrations: Path) -> None:
    words = [sys.executable, "-m", "kleash", *(str(word) for word in sft(base, demonstrations))]
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    ended = subprocess.run(words, preexec_fn=small, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 3, ended.stderr
    assert re.search(r"^kleash: .*File too large.*; free space or choose another place", ended.stderr.splitlines()[-1])
    assert "Traceback" not in ended.stderr
    assert kleash(*sft(base, demonstrations)) == 0, "with room again the same command goes on"


def test_a_corrected_command_may_use_the_folder_of_one_that_did_nothing(
    base: Path, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write("rows.jsonl", [{"prompt": "a", "answer": "b"}])
    fails(capsys, 2, "rows.jsonl row 1", *sft(base, data))
    write("rows.jsonl", [{"prompt": "a", "response": "b"}] * 4)
    assert kleash(*sft(base, data)) == 0


def test_the_help_of_every_command_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            kleash(name, "--help")
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert "example:" in text
        assert name not in STAGES or (("--out" in text and "(default: " in text and "[TRL" in text) or name == "export")
    with pytest.raises(SystemExit):
        kleash("--help")
    assert "kleash demo" in capsys.readouterr().out


def test_the_help_names_the_method_and_the_kind_of_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kleash("ppo", "--help")
    text = capsys.readouterr().out
    assert "PPO: train a policy against a reward with a KL penalty." in text
    assert "--model MODEL" in text and "--reward REWARD" in text and "--eval-data DATA" in text


def test_underscored_options_are_taken(base: Path, demonstrations: Path) -> None:
    assert kleash(*sft(base, demonstrations, "--learning_rate=1e-4", "--batch_size", 8)) == 0
    used = json.loads((base.parent / "out" / "run.json").read_text())["config"]
    assert (used["learning_rate"], used["batch_size"]) == (1e-4, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("grpo --leash loss-k3", "unknown option --leash; --leash is now --kl-in$"),
        ("ppo --leash reward", "--leash is now --kl-in, which is an option of another command$"),
        ("PPO", "did you mean `kleash ppo`"),
        ("demo --all-roads", "unknown option --all-roads; --all-roads is now --all-methods$"),
        ("reward --hold_out_share=0.1", "--hold-out-share is now --validation-share$"),
        ("sft --num_train_epochs 3", "`--num-train-epochs` is `--epochs` here$"),
        ("grpo actor_rollout_ref.rollout.n=8", "`actor_rollout_ref.rollout.n` is `--group-size` here$"),
        ("grpo --num-generations 8", "`--num-generations` is `--group-size` here$"),
        ("dpo --gradient-accumulation-steps 8", "--batch-size is the batch of one optimiser step"),
        ("rloo --model m", "there is no command 'rloo'; `kleash rloo` is `kleash grpo --preset rloo`$"),
        ("kto", "not built yet; with preference pairs take `kleash dpo`$"),
        ("train sft.yaml", "name the method: `kleash sft`, `reward`, `ppo`, `grpo` or `dpo`"),
        ("online_dpo", "repeat `kleash generate -n 2`"),
        ("xyzzy", "there is no command 'xyzzy'; `kleash --help` lists the commands$"),
    ],
)
def test_names_of_other_libraries_and_old_names_are_explained(
    capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    fails(capsys, 2, message, *words.split())


QUICK = """
import sys
from kleash.cli import COMMANDS, _run
try:
    code = _run(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
slow = sorted({"torch", "transformers", "datasets", "numpy", "scipy", "jaxtyping"} & sys.modules.keys())
print(f"\\n{code} {slow}")
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        *[(f"{name} --help", 0) for name in COMMANDS],
        ("--help", 0),
        ("--version", 0),
        ("xyzzy", 2),
        ("ppo --leash 1", 2),
        ("sft --model nowhere/at/all --data d.jsonl --out out --learning-rate fast", 2),
        ("sft --model nowhere/at/all --data here.jsonl --out out", 2),
        ("sft --model here --data nowhere.jsonl --out out", 2),
        ("sft --config nowhere.yaml", 2),
        ("ppo --model here --data here.jsonl --reward nowhere/at/all --out out", 2),
        ("ppo --model here --data here.jsonl --reward nowhere.yaml --out out", 2),
        ("overopt --run nowhere --gold math --out out", 2),
        ("judge --model here --data here.jsonl --constitution nowhere.yaml --out out.jsonl", 2),
        ("ppo --model here --data here.jsonl --reward nomodule:f --out out", 2),
        ("sft --model here --data here.jsonl --out out --learning-rate=-1", 2),
        ("sft --model here --data here.jsonl --out out --learning-rate inf", 2),
        ("generate --model here --data nowhere.jsonl --out out.jsonl", 2),
        ("score --data nowhere.jsonl --reward math --out out.jsonl", 2),
        ("best-of-n --model nowhere/at/all --data here.jsonl --reward math --out out.jsonl", 2),
        ("revise --model here --data nowhere.jsonl --constitution assistant --out out.jsonl", 2),
        ("ask --data nowhere.jsonl --store labels.db --out out.jsonl", 2),
        ("export --store nowhere.db --out out", 2),
        ("label --data nowhere.jsonl --store labels.db", 2),
        ("run nowhere.yaml", 2),
        ("run recipe.yaml", 2),
        ("check nowhere", 2),
        ("check here --data nowhere.jsonl", 2),
        ("inspect --model here --data nowhere.jsonl", 2),
        ("import --store labels.db --data nowhere.jsonl", 2),
    ],
)  # fmt: skip
def test_help_and_mistakes_answer_without_importing_torch(tmp_path: Path, words: str, code: int) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "recipe.yaml").write_text("out: runs\nstages: {sft: {model: here, data: nowhere.jsonl}}\n")
    command = [sys.executable, "-c", QUICK, *words.split()]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == f"{code} []", ended.stdout + ended.stderr
    assert code == 0 or len(ended.stderr.splitlines()) == 1, ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "here.jsonl", "recipe.yaml"]


def test_inspect_shows_the_rows(base: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kleash("inspect", "--model", base, "--data", demonstrations, "--rows", 2) == 0
    assert "<end>" in capsys.readouterr().out

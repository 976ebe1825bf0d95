"""Several reward models instead of one: an ensemble, an average of weights, a validation reward.

A policy exploits the errors of its reward model. Members trained on the same comparisons with other seeds make other
errors, so that their disagreement (`spread`) shows where the score is unreliable, and the lowest score is harder to
exploit. Errors that all members share (those of the labellers, say) remain. The validation reward is trained on other
comparisons than the reward: a policy whose reward rises while the validation reward falls exploits errors of its reward
model.

    kleash reward --model runs/sft --data pairs.jsonl --out runs/reward --members 5 --validation-share 0.2

One model, one head and no validation reward is `reward_model` itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.changes import STEPS
from kleash.checks import reward_checks
from kleash.checks.gates import record_checks
from kleash.checks.open_run import open_run, records_stop
from kleash.checks.reward_report import RewardReport, held_out_rewards, preference_figures
from kleash.data.chat import encode_all
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import EncodedGroup, Group
from kleash.data.read import distinct
from kleash.data.split import comparison, hold_out, read_split
from kleash.errors import ConfigError
from kleash.evals.preference_report import PreferenceReport
from kleash.evals.report_values import as_json
from kleash.io import Json, write_text
from kleash.models.average import average_weights
from kleash.models.compute import Compute
from kleash.models.forward import Live
from kleash.models.load import load_reward_model, load_tokenizer, new_reward_model
from kleash.rewards.ensemble import VALIDATION, EnsembleReward, write_ensemble
from kleash.rewards.learned import LearnedReward
from kleash.run import RunFolder, derive_seed
from kleash.stages import reward_model
from kleash.stages.training_configs import EnsembleConfig, RewardConfig
from kleash.training.after_training import after_training
from kleash.training.loop import OnStep
from kleash.training.measurements import Measurements
from kleash.training.model_folder import model_card, write_model

logger = logging.getLogger("kleash")

Files = Mapping[str, Path]

OWN = ("members", "average_weights", "validation_share")
"""Fields that the run of a single model does not have."""


@records_stop
def run(config: EnsembleConfig, *, reward: Live | None = None, on_step: OnStep | None = None) -> RunFolder:
    """Train a reward model, or several, as the settings say.

    Args:
        config: the settings.
        reward: for a single model: a live classifier to train, see `reward_model.run`.
        on_step: called after each step of each model is logged, see `Loop`.

    Returns:
        The finished run. The report in its run.json is on the reward in the folder: ensemble, average or single model.
    """
    if config.members == 1 and not config.validation_share:
        return reward_model.run(_single(config), reward=reward, on_step=on_step)
    if reward is not None:
        raise ConfigError("a live reward model is a single one; leave out members and validation_share, or the model")
    folder = open_run("reward", config)
    if folder.finished:
        return folder
    files = _split(config, folder)
    if config.validation_share:
        validation = _member(config, folder.path / VALIDATION, files, on_step, data="validation")
        folder.note("validation_reward", **(validation.record["results"].get("report") or {}))
    members = [_member(config, folder.path / name, files, on_step) for name in _names(config)]
    finish = _one if config.members == 1 or config.average_weights else _ensemble
    report = finish(config, folder, members, files)
    results: Json = {"members": [member.record["results"] for member in members]}
    write_text(folder.path / "README.md", model_card(folder, reward_model.summary(report)))
    if report is not None:
        results["report"] = as_json(report)
        after_training(folder, "checks", lambda: _check(config, folder, report, files))
    return folder.finish(**results)


def _check(config: EnsembleConfig, folder: RunFolder, report: PreferenceReport, files: Files) -> None:
    train = _encoded(config, files["reward"], load_tokenizer(config.model))
    # the training of the members has paid for more than this
    unlimited = Measurements(folder, None, train, **config.measure_settings(len(train)))
    on_policy = reward_model.on_policy_excess(_single(config), train, unlimited)
    probes = report.probes if isinstance(report, RewardReport) else None
    record_checks(folder, checks=reward_checks.reward_model(report, probes=probes, on_policy=on_policy))


def _names(config: EnsembleConfig) -> list[str]:
    return [f"members/{index}" for index in range(config.members)]


def _single(config: EnsembleConfig, **changes: Any) -> RewardConfig:
    """The settings of one model's run."""
    return RewardConfig(**{k: v for k, v in config.model_dump().items() if k not in OWN} | changes)


def _split(config: EnsembleConfig, folder: RunFolder) -> dict[str, Path]:
    """Write the comparisons of the reward, of the validation reward and of the evaluation, with no prompt in two of
    them, and the samples for centring.
    """
    names = ("reward", "held-out", "centre", *(["validation"] if config.validation_share else []))
    files = {name: folder.path / "comparisons" / f"{name}.jsonl" for name in names}
    if all(file.exists() for file in files.values()) and not any(change["what"] == "data" for change in folder.changes):
        return files
    train, held_out = read_split(
        config.data,
        config.eval_data,
        seed=config.seed,
        usable=comparison,
        max_eval_rows=config.max_eval_rows,
        row_format=config.row_format,
    )
    rows: dict[str, Sequence[Group]] = {"reward": train, "held-out": held_out}
    if config.validation_share:
        rows["reward"], rows["validation"] = hold_out(
            train, seed=derive_seed(config.seed, "hold-out member"), share=config.validation_share
        )
    rows["centre"] = _centred_on(config, rows["reward"])
    files["reward"].parent.mkdir(exist_ok=True)
    for name, file in files.items():
        write_groups(rows[name], file)
    return files


def _centred_on(config: EnsembleConfig, train: Sequence[Group]) -> Sequence[Group]:
    """One set of samples for all members, so that their levels are comparable."""
    if config.centre_data is not None or not config.centre_samples or not reward_model.can_respond(config.model):
        return ()
    tokenizer = load_tokenizer(config.model)
    encoded = encode_all(train, tokenizer, max_length=config.max_length)[0]
    sampled = (group.source for group in reward_model.start_samples(tokenizer, encoded, config, config.centre_samples))
    # A response that was cut off before it had any text cannot be written down as text.
    return [group for group in sampled if group.responses[0].finished or group.responses[0].text]


def _member(
    config: EnsembleConfig, out: Path, files: Files, on_step: OnStep | None, *, data: str = "reward"
) -> RunFolder:
    """Train one model, unless it has done these steps; what was accepted as changed since then concerns the others."""
    finished = RunFolder.finished_in(out)
    if finished is not None and _has_steps_of(finished.record, config):
        return finished
    changes: Json = {
        "out": out, "data": str(files[data]), "eval_data": str(files["held-out"]), "max_eval_rows": None,
        "columns": None, "force": True, "seed": derive_seed(config.seed, "member", out.name) % 2**31,
    }  # fmt: skip
    if config.centre_data is None and files["centre"].stat().st_size:
        changes["centre_data"] = str(files["centre"])
    # Weights can be averaged only if training started from the same head and trunk.
    live = None
    if config.average_weights:
        live = new_reward_model(config.model, seed=config.seed, device=config.device, adapter=config.adapter)
    logger.info("reward model %s", out)
    return reward_model.run(_single(config, **changes), reward=live if data == "reward" else None, on_step=on_step)


def _has_steps_of(record: Json, config: EnsembleConfig) -> bool:
    """Whether a member's run was of as many steps as are asked for now."""
    return all(record["config"].get(name) == getattr(config, name) for name in STEPS)


def _one(
    config: EnsembleConfig, folder: RunFolder, members: Sequence[RunFolder], files: Files
) -> PreferenceReport | None:
    """Write a single model of the members' mean weights, and return its report."""
    loaded = [load_reward_model(member.path, device=config.device) for member in members]
    average_weights([model for model, _ in loaded])
    model, tokenizer = loaded[0]
    train, held_out = (_encoded(config, files[name], tokenizer) for name in ("reward", "held-out"))
    # The learning curve is in the members' own reports.
    changes: Json = {"learning_curve": False}
    if files["centre"].stat().st_size:
        changes["centre_data"] = str(files["centre"])
    settings = _single(config, **changes)
    write_model(folder, model, tokenizer, reward_model.summary(None))
    samples, _ = reward_model.centre_model(folder, model, tokenizer, train, settings)

    def report() -> RewardReport | None:
        distance = reward_model.save_feature_range(folder, model, train, held_out, samples, settings)
        if not held_out:
            return None
        rewards = held_out_rewards(model, held_out, compute=settings.compute)
        return reward_model.whole_report(
            folder, model, tokenizer, train, held_out, rewards, settings, distance=distance
        )

    return after_training(folder, "report", report)


def _ensemble(
    config: EnsembleConfig, folder: RunFolder, members: Sequence[RunFolder], files: Files
) -> PreferenceReport | None:
    """Write the ensemble of the members, and return the report on its scores."""
    loaded = [LearnedReward.load(member.path, compute=Compute(config.device, config.dtype)) for member in members]
    reward = EnsembleReward(loaded, combine=config.combine, variance_penalty=config.variance_penalty)
    train, held_out = (_encoded(config, files[name], loaded[0].tokenizer) for name in ("reward", "held-out"))
    write_ensemble(folder.path, _names(config), combine=config.combine, variance_penalty=config.variance_penalty)

    def report() -> PreferenceReport | None:
        if not held_out:
            return None
        ordered = sorted(held_out, key=lambda group: len(group.responses))
        sizes = groupby((group.source for group in ordered), key=lambda group: len(group.responses))
        rewards = [row for _, groups in sizes for row in reward(list(groups)).tolist()]
        return preference_figures(ordered, rewards, train)

    return after_training(folder, "report", report)


def _encoded(config: EnsembleConfig, file: Path, tokenizer: PreTrainedTokenizerBase) -> list[EncodedGroup]:
    groups = list(read_groups(file))
    encoded = encode_all(groups, tokenizer, max_length=config.max_length)[0] if groups else []
    return [group for group in map(distinct, encoded) if group is not None]

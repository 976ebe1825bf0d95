"""The models, rewards and engines of a policy-gradient run, built from their names, and its prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from kleash.config import Settings
from kleash.data.group import EncodedGroup, Group
from kleash.data.read import read_encoded
from kleash.data.row_format import AS_IT_IS, RowFormat
from kleash.data.split import prompt_only
from kleash.data.stream import Rows
from kleash.data.unpaired import as_prompt
from kleash.errors import ConfigError
from kleash.models.compute import Compute
from kleash.models.forward import Live
from kleash.models.heads import ValueModel
from kleash.models.load import AdapterUse, context_length, load_policy
from kleash.models.lora import can_be_disabled, merged_copy
from kleash.models.reference import reference_of
from kleash.models.trainable import make_trainable
from kleash.rewards.build import AnyReward, as_reward, build_reward
from kleash.rewards.ensemble import VALIDATION, EnsembleReward
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Reward, RowCheck
from kleash.rollout.rollout import Components
from kleash.run import derive_seed
from kleash.sampling.sampler import build_sampler


def build_components(
    policy: str | Live,
    reward: AnyReward,
    *,
    reference: str | None = None,
    validation_reward: str | None = None,
    gold: str | None = None,
    max_new_tokens: int,
    temperature: float,
    stop: Sequence[str] = (),
    value_init: Literal["reward", "policy"] | None = None,
    needs_validation: bool = False,
    adapter: AdapterUse = "merge",
    lora: Settings | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    compute: Compute,
) -> Components:
    """Load and build the models, rewards and engines of a run.

    Args:
        policy: a folder, a hub name, or a live model and tokenizer.
        reward: the reward to train against: anything that `as_reward` takes.
        reference: the model from which the KL is measured; None: the policy as it starts.
        validation_reward: a reward that is only measured; None takes the one that `kleash reward --validation-share`
            left in the folder of `reward`, where there is one.
        gold: the gold reward, measured on held-out prompts.
        max_new_tokens: longest response.
        temperature: divides the logits, in sampling and in training alike.
        stop: texts that end a response, too.
        value_init: initial weights of the value network: the reward model (of several the first) where it reads the
            policy's ids, otherwise the policy; None: the method has no value network.
        needs_validation: whether the criterion is the validation reward, so that there has to be one.
        adapter: what to do with the adapter that the policy comes with.
        lora, gradient_checkpointing: which weights of policy and value network are trained, see `make_trainable`.
        seed: of new weights: adapters and a value head.
        compute: where and how.

    Raises:
        ConfigError: there is no validation reward where one is needed.
    """
    model, tokenizer = load_policy(policy, device=compute.device, adapter=adapter)
    validation_folder = Path(reward) / VALIDATION if isinstance(reward, str) else None
    if validation_reward is None and validation_folder is not None and validation_folder.is_dir():
        validation_reward = str(validation_folder)
    if needs_validation and validation_reward is None:
        raise ConfigError("criterion validation needs a validation reward; give --hold-out, or a --reward that has one")

    def build(name: str) -> Reward:
        return build_reward(name, policy_tokenizer=tokenizer, compute=compute)

    # at β = 0 no loss needs the reference, but the KL is the figure that shows a missing penalty
    frozen = reference_of(model, reference, device=compute.device, adapters=can_be_disabled(lora))
    scorer = as_reward(reward, policy_tokenizer=tokenizer, compute=compute)
    critic = None if value_init is None else build_critic(model, scorer, value_init, seed=seed)
    for trained in (model,) if critic is None else (model, critic.decoder):
        keep = adapter == "keep" and trained is model
        make_trainable(trained, lora=lora, seed=seed, gradient_checkpointing=gradient_checkpointing, keep=keep)
    return Components(
        policy=model,
        tokenizer=tokenizer,
        reference=frozen,
        reward=scorer,
        value_model=critic,
        validation_reward=build(validation_reward) if validation_reward else None,
        gold=build(gold) if gold else None,
        sampler=build_sampler(
            model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature, stop=stop, dtype=compute.dtype
        ),
        temperature=temperature,
        compute=compute,
    )


def build_critic(
    policy: PreTrainedModel, reward: Reward, start: Literal["reward", "policy"], *, seed: int
) -> ValueModel:
    """A value network: from the reward model where that is requested and possible, otherwise from the policy."""
    learned = reward.members[0] if isinstance(reward, EnsembleReward) else reward
    if start == "reward" and isinstance(learned, LearnedReward) and learned.reads_ids:
        return ValueModel.from_reward_model(learned.model)
    return ValueModel.from_policy(merged_copy(policy), seed=derive_seed(seed, "value head"))


def read_prompts(
    parts: Components,
    note: Callable[..., None] = lambda section, **counts: None,
    *,
    data: str,
    eval_data: str | None,
    row_format: RowFormat = AS_IT_IS,
    max_new_tokens: int,
    max_length: int | None = None,
    max_eval_rows: int | None = None,
    streaming: bool = False,
    skip_bad_rows: bool = False,
    seed: int,
) -> tuple[Rows, list[EncodedGroup]]:
    """The prompts to train on and those held out; `note` takes the counts of both, as `RunFolder.note` does.

    Raises:
        ConfigError: the responses leave no room for a prompt.
        DataError: a row's answer, pattern or schema cannot be read by a reward, and bad rows are not skipped.
    """
    context = context_length(parts.policy)
    room = max_length or (context - max_new_tokens if context else None)
    if room is not None and room < 1:
        raise ConfigError(
            f"max_new_tokens {max_new_tokens} leaves no room for a prompt in a context of {context}; lower it"
        )
    measuring = (parts.reward, parts.validation_reward, parts.gold)
    held_out_check = RowCheck(*measuring, skip=skip_bad_rows)
    train_check = RowCheck(*(measuring if eval_data is None else measuring[:2]), skip=skip_bad_rows)
    prompts, held_out = read_encoded(
        data, eval_data, parts.tokenizer, usable=prompt_only, prepare=_without_responses, max_length=room,
        max_eval_rows=max_eval_rows, row_format=row_format, seed=seed, note=note, reads_columns=True,
        streaming=streaming, keep=train_check, keep_held_out=held_out_check,
    )  # fmt: skip
    if streaming and eval_data is None:  # rows to train on are read, and checked by their reward, as they come
        held_out_check([prompt.source for prompt in held_out], range(1, len(held_out) + 1), f"{data}, held out")
    if skip_bad_rows:
        note("rows", bad={"data": train_check.left_out, "eval_data": held_out_check.left_out})
    return prompts, held_out


def _without_responses(groups: Sequence[Group]) -> list[Group]:
    return [as_prompt(group) for group in groups]

"""A few responses of each rollout, token by token, on disk: rollouts/step-N.parquet, one row per response.

| column | contents |
|---|---|
| step, group, response | number of the rollout, of the group, of the response in the group |
| prompt, text, finished | as JSON where the prompt is messages; the response decoded; whether it ended by itself |
| prompt_ids, ids, mask, turn | token ids; True where the policy chose the token; its turn, from 0 |
| policy_logprobs, reference_logprobs, sampler_logprobs | of each token, 0 where masked |
| advantages | advantage of each token |
| score, kl, reward/NAME | the reward (null: no opinion), KL in nats, the parts of the reward |
| version | number of rollouts that the sampling policy was trained on |
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kleash.io import Json, machine_errors, replacing
from kleash.rollout.rollout import Rollout, or_none
from kleash.run import RunFolder

FOLDER = "rollouts"

PER_TOKEN = {
    "policy_logprobs": "old_logprobs",
    "reference_logprobs": "reference_logprobs",
    "sampler_logprobs": "sampler_logprobs",
    "advantages": "advantages",
}
"""Column → field of the batch."""


def log_rollout(folder: RunFolder, step: int, rollout: Rollout, *, responses: int) -> None:
    """Write the first responses of a rollout; a repeated rollout overwrites its file with the same content."""
    if responses == 0:
        return
    path = folder.path / FOLDER / f"step-{step:08d}.parquet"
    with machine_errors(path):
        path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(_rows(step, rollout, responses)), temporary)


def logged_steps(run: Path) -> list[int]:
    """The steps of a run with logged responses, in order."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / FOLDER).glob("step-*.parquet"))


def read_rollout(run: Path, step: int) -> list[Json]:
    """The logged responses of a step, one dictionary each, with the prompt as in the data."""
    rows: list[Json] = pq.read_table(run / FOLDER / f"step-{step:08d}.parquet").to_pylist()
    return [row | {"prompt": json.loads(row["prompt"])} for row in rows]


def drop_rollouts_after(run: Path, step: int) -> None:
    """Remove the files of later steps, which are about to be repeated."""
    for later in logged_steps(run):
        if later > step:
            (run / FOLDER / f"step-{later:08d}.parquet").unlink()


def _rows(step: int, rollout: Rollout, responses: int) -> list[Json]:
    batch, kl = rollout.batch, rollout.kl
    group_size = batch.shape[1]
    rows = []
    for index in range(min(responses, len(rollout.groups) * group_size)):
        p, k = divmod(index, group_size)
        real = batch.response_attention[p, k]
        tensors = {column: getattr(batch, name) for column, name in PER_TOKEN.items()}
        rows.append(
            {
                "step": step,
                "group": p,
                "response": k,
                "prompt": json.dumps(rollout.groups[p].prompt, ensure_ascii=False),
                "text": rollout.groups[p].responses[k].text,
                "finished": rollout.groups[p].responses[k].finished,
                "prompt_ids": batch.prompt_ids[p][batch.prompt_attention[p]].tolist(),
                "ids": batch.response_ids[p, k][real].tolist(),
                "mask": batch.mask[p, k][real].tolist(),
                "turn": [0] * int(real.sum()),
                **{column: tensor[p, k][real].tolist() for column, tensor in tensors.items() if tensor is not None},
                "score": or_none(rollout.scores[p, k]),
                "kl": float(kl[p, k]),
                **{f"reward/{name}": or_none(part[p, k]) for name, part in rollout.parts.items()},
                "version": batch.version,
            }
        )
    return rows

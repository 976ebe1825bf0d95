"""Push the model of a finished run to the hub: weights, tokenizer, card, run.json and metrics.jsonl, and nothing else.

The token is the hub client's own (`hf auth login` or HF_TOKEN) and stands in no file of the run. Data, labels, training
states and snapshots stay where they are.
"""

from __future__ import annotations

import logging
from fnmatch import fnmatch
from pathlib import Path

from kleash.content import MODEL_FILES, file_hash, text_hash
from kleash.errors import ConfigError, MachineError
from kleash.run import RunFolder

logger = logging.getLogger("kleash")

PUSHED = (*MODEL_FILES, "README.md", "run.json", "metrics.jsonl")
"""Files of a run's folder, and of the members of an ensemble."""


def require_token(repository: str | None) -> None:
    """Refuse a push that cannot work before the training, without contacting the hub.

    Args:
        repository: to push to; None: nothing will be pushed.

    Raises:
        ConfigError: there is no token, or the hub is switched off.
    """
    if repository is None:
        return
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise ConfigError("push_to_hub: the hub is switched off by HF_HUB_OFFLINE; unset it, or leave push_to_hub out")
    if get_token() is None:
        raise ConfigError("push_to_hub: there is no token of the hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: RunFolder, repository: str) -> None:
    """Push a finished run, unless the repository has this model from here already.

    Args:
        folder: the run.
        repository: OWNER/NAME; made, private, where there is none.

    Raises:
        MachineError: the hub refused it or cannot be reached; the run is finished and stays, and the message says how
            to push it.
    """
    files = pushed_files(folder.path)
    content = text_hash(*(file_hash(folder.path / name) for name in files if not name.endswith("run.json")))
    if folder.record.get("hub", {}).get("sha256") == content and folder.record["hub"].get("repository") == repository:
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        name = api.create_repo(repository, private=True, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name, folder_path=folder.path, allow_patterns=files,
            commit_message=f"kleash {folder.record['stage']}",
        )  # fmt: skip
    except Exception as error:  # of the hub's client, its transport, the system
        reason = " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__
        raise MachineError(
            f"{folder.path} is finished, but was not pushed to {repository} ({reason}); run the same command again, or "
            f"`hf upload {repository} {folder.path} . --exclude 'checkpoints/*'`"
        ) from None
    folder.note("hub", repository=repository, sha256=content, commit=str(commit.oid))
    logger.info("%s: pushed to %s", folder.path, commit.repo_url)


def pushed_files(folder: Path) -> list[str]:
    """The files of a run that are pushed, by their path in it."""
    folders = [folder, *sorted(folder.glob("members/*")), folder / "validation"]
    files = [file for part in folders if part.is_dir() for file in sorted(part.iterdir()) if file.is_file()]
    return [str(file.relative_to(folder)) for file in files if any(fnmatch(file.name, name) for name in PUSHED)]

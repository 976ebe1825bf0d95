"""Which names mean a reward and not a folder or rows. Imports neither torch nor what a reward needs."""

from __future__ import annotations

import re
from pathlib import Path

from kleash.config import YAML, read_yaml
from kleash.rewards.verifiers import verifiers


def names_reward(name: str) -> bool:
    """Whether a name is a verifier's, a function's or that of a composition's or a judge's file.

    A file or folder of a verifier's name comes first, and a reward model's folder is an artifact like other models.

    Raises:
        ConfigError: a YAML file cannot be read.
    """
    path = Path(name)
    if name.endswith(YAML):
        values = read_yaml(path) if path.is_file() else {}
        parts = values.get("parts")
        listed = isinstance(parts, list) and any(isinstance(part, dict) and "reward" in part for part in parts)
        return listed or "judge" in values
    return not path.exists() and (name in verifiers() or re.fullmatch(r"[\w.]+:\w+", name) is not None)

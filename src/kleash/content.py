"""The file or folder that a name in a config refers to: whether it exists, and the hash of its content.

Identity is content. A model is its weights, its config and its tokenizer files; data are their rows; a hub name is the
commit that the cache holds. The path of a folder, its modification time and other files in it do not count, so that a
folder that was moved is still the same.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import kleash
from kleash.config import MODEL, YAML, Config, Kind, is_possible_path, may_nest, read_yaml, routed_text, routes_of
from kleash.errors import ConfigError, DataError, InputError, ModelError
from kleash.io import READABLE_ENDINGS, Json
from kleash.live import MARK, live_object
from kleash.parse import UnreadableError, parse_json
from kleash.unfinished import refuse_unfinished_rows, refuse_unfinished_run

Fingerprint = dict[str, str]
"""{"path", "sha256"}: the path is for people, the hash is the identity."""

Fingerprints = Mapping[str, Mapping[str, str]]
"""What a run was made from: role → fingerprint."""

UNKNOWN = " (unknown)"
"""How the hash of an object ends that has no identity: it is another one each time."""

MODEL_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "ensemble.json", "*.safetensors",
    "*.safetensors.index.json", "pytorch_model*.bin", "adapter_model.bin", "*.bin.index.json", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken", "chat_template*",
    "*.py",
)  # fmt: skip
"""The files of a model's folder that belong to its identity."""

ADAPTER = "adapter_config.json"
"""The file that makes a folder that of an adapter, by the convention of `peft`."""

"""Endings of a composition of rewards, and of a mixture of data."""

HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(:[\w.-]+)?")


def fingerprints(config: Config, *, instead: Fingerprints | None = None) -> dict[str, Fingerprint]:
    """Path and hash of everything that a config names.

    Args:
        config: the settings.
        instead: fingerprints of objects passed in place of a name or in addition to the names, by role.
    """
    others = {role: dict(value) for role, value in (instead or {}).items()}
    names = {role: reference for role, reference in config.references().items() if role not in others}
    return {role: fingerprint(name, kind) for role, (kind, name) in names.items()} | others


def fingerprint(name: str | Path, kind: Kind) -> Fingerprint:
    """Path and content hash of what a name refers to.

    Raises:
        ModelError: the name of a model can only be a path, and there is no such folder.
    """
    if kind.name == "model":
        refuse_missing(name, kind)  # before the hub is asked for a folder's name
    return {"path": str(name), "sha256": content_hash(name, kind)}


def content_hash(name: str | Path, kind: Kind) -> str:
    """Hash of the content that a name refers to; where neither the disk nor the hub's cache has it, the name itself.

    Args:
        name: a path, a hub name, or for a reward any value that `--reward` takes.
        kind: what the name refers to.
    """
    if (live := live_object(name)) is not None:
        return live.sha256
    if kind.name == "reward":
        return reward_hash(str(name))
    path = Path(name).expanduser()
    if kind.name == "constitution":
        path = constitution_file(name)
    if kind.name in ("model", "run") and path.is_dir():
        return folder_hash(path)
    if path.is_dir():
        return _files_hash(path, (file for file in path.rglob("*") if not _is_hidden(file, path)))
    if path.is_file() and kind.name == "data" and path.suffix in YAML:
        return text_hash(file_hash(path), *(content_hash(part, kind) for part in _named_in(path, "data")))
    if path.is_file():
        return file_hash(path)
    commit = hub_commit(str(name), dataset=kind.name == "data") if kind.name in ("model", "data") else None
    return text_hash(str(name) if commit is None else f"{name}@{commit}")


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def folder_hash(path: Path) -> str:
    """Hash of the model in a folder: weights, config and tokenizer; other files of the run are not included.

    For an ensemble: the hash of its ensemble.json, which names its members by hash. For an adapter: that of its files
    and of its base.
    """
    files = (file for file in path.iterdir() if any(fnmatch(file.name, pattern) for pattern in MODEL_FILES))
    sha256 = _files_hash(path, files)
    return text_hash(sha256, content_hash(adapter_base(path), MODEL)) if (path / ADAPTER).is_file() else sha256


def adapter_base(folder: Path) -> str:
    """The base of an adapter, as its adapter_config.json names it: a folder, seen from here or from the adapter, or a
    hub name.

    Raises:
        ModelError: adapter_config.json names no base, or one that is not there.
    """
    file = folder / ADAPTER
    try:
        name = parse_json(file.read_bytes()).get("base_model_name_or_path")
    except (OSError, UnreadableError, AttributeError) as error:
        raise ModelError(f"{file}: cannot be read ({' '.join(str(error).split())}); restore the file") from None
    if not isinstance(name, str) or not name:
        raise ModelError(f"{file} names no base model; set base_model_name_or_path in it")
    for place in (Path(name).expanduser(), folder / name, folder.parent / name):
        if place.is_dir() and place.resolve() != folder.resolve():
            return str(place)
    if _only_a_path(name, MODEL):
        raise ModelError(
            f"{folder} is an adapter whose base {name} is not there; correct base_model_name_or_path in {ADAPTER}, or "
            "merge the adapter where its base is"
        )
    return name


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def text_hash(*texts: str) -> str:
    """SHA-256 of texts."""
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def reward_hash(name: str) -> str:
    """Hash of everything that a reward depends on: a run continues only with the same reward (F11).

    A folder is hashed as a model, a composition by its file and its parts, a judge by its file and its model, a
    function by the file of its module, a verifier by its name, and one that is routed by row by all of its rewards.
    """
    routes = routes_of(name)
    if routes is not None:
        return text_hash(name, *map(reward_hash, routes.values()))
    path = Path(name)
    if path.is_dir():
        return folder_hash(path)
    if name.endswith(YAML) and path.is_file():
        return text_hash(file_hash(path), *_parts_hashes(path))
    if path.is_file():
        return file_hash(path)
    module = module_file(name)
    if module is not None:
        return file_hash(module)
    commit = hub_commit(name) if "/" in name else None  # a reward model on the hub
    return text_hash(name if commit is None else f"{name}@{commit}")


def module_file(name: str) -> Path | None:
    """The file that holds the function of `module:function`; None for other names, or where the file does not exist."""
    module_name, colon, _ = name.partition(":")
    if not colon:
        return None
    places: list[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    for part in module_name.split("."):  # without importing the packages on the way
        spec = importlib.machinery.PathFinder.find_spec(part, places) if places else None
        places = list(spec.submodule_search_locations or ()) if spec is not None else None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def constitution_file(name: str | Path) -> Path:
    """The file of a constitution: a path, or the name of one that kleash ships."""
    shipped = next(Path(kleash.__file__).parent.glob(f"*/constitutions/{Path(name).name}.yaml"), None)
    return shipped if shipped is not None and not Path(name).exists() else Path(name)


def hub_commit(name: str, *, dataset: bool = False) -> str | None:
    """The commit of a hub name: the one in the local cache, otherwise the newest one on the hub.

    The hub is contacted only for a name that is not in the cache, which the stage is about to download anyway (F17).

    Returns:
        None where neither has it (the hub cannot be reached, or the name does not exist).
    """
    if not HUB_NAME.fullmatch(name):
        return None
    repository = name.partition(":")[0]
    return cached_commit(repository, dataset=dataset) or _newest_commit(repository, dataset)


def cached_commit(repository: str, *, dataset: bool = False) -> str | None:
    """The commit of a hub model (or data set) in the local cache, or None."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / "--".join(["datasets" if dataset else "models", *repository.split("/")])
    main = folder / "refs" / "main"
    if main.is_file():
        return main.read_text().strip()
    snapshots = sorted((folder / "snapshots").glob("*"))
    return snapshots[0].name if len(snapshots) == 1 else None


@cache
def _newest_commit(repository: str, dataset: bool) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return None
    try:
        return HfApi().repo_info(repository, repo_type="dataset" if dataset else "model").sha
    except Exception:  # no such name, no network, no access: the loading code raises the user's message
        return None


def refuse_missing(name: str | Path, kind: Kind) -> None:
    """Refuse a name that can only be a path and does not exist, and what a stage began to write and did not finish.
    Imports nothing and does not contact the hub.

    Raises:
        InputError: the subclass of the kind; names what is missing and what to give.
    """
    text, path = str(name), Path(name).expanduser()
    if live_object(text) is not None:
        return
    if MARK in text:
        raise _MISSING[kind.name][0](f"{text} was passed to an earlier call in Python and is not here; pass it again")
    if kind.name == "reward":
        for route in (routes_of(text) or {}).values():
            refuse_missing(route, kind)
        if routes_of(text) is not None:
            return
        _refuse_missing_module(text)
    if kind.name in ("model", "reward"):
        refuse_unfinished(path)
    if path.exists() or not _only_a_path(text, kind):
        return
    if kind.name == "data":
        refuse_unfinished_rows(path)
    if kind.name == "reward":
        what = "file" if text.endswith(YAML) else "folder"
        raise ConfigError(
            f"reward {text}: no such {what}; give a reward model's folder, module:function, a .yaml composition, a hub "
            "name or a verifier"
        )
    error, message = _MISSING[kind.name]
    raise error(message.format(text))


def refuse_unfinished(path: Path) -> None:
    """Refuse a run that is not finished, as a model or a reward, and a composition with such a part.

    Raises:
        ModelError: names the run, the step and what to do.
    """
    if path.is_dir():
        refuse_unfinished_run(path)
    elif path.suffix in YAML and path.is_file():
        for name in (*_named_in(path, "reward"), *filter(None, [_judge_in(path)])):
            refuse_unfinished_run(Path(name).expanduser())


def refuse_missing_artifact(path: Path) -> None:
    """Refuse what is to be checked and is not there: a run, a model by its folder or hub name, a file of rows.

    Raises:
        InputError: it can only be a path, and does not exist.
    """
    text = str(path)
    if live_object(text) is not None:
        return
    bare = "/" not in text and cached_commit(text) is None  # such as `gpt2`, which has no owner
    if not path.exists() and (bare or _only_a_path(text, MODEL)):
        raise InputError(f"{path}: there is no such file or folder; give a run, a model folder or a file of rows")


_MISSING: dict[str, tuple[type[InputError], str]] = {
    "model": (ModelError, "{}: there is no such folder; give a folder with config.json or a hub name"),
    "data": (DataError, "there is no file or folder {}; give a path that exists, or owner/name on the hub"),
    "run": (InputError, "{}: there is no such folder; give the folder of a ppo, grpo or dpo run"),
    "reward": (ConfigError, "reward {}: there is no such reward"),
    "constitution": (ConfigError, "{}: there is no such file; give a YAML file, or `assistant`, which kleash ships"),
}


def _only_a_path(text: str, kind: Kind) -> bool:
    """Whether a name cannot be a hub name, a verifier or a function."""
    if kind.name == "constitution":
        return not constitution_file(text).exists()
    if kind.name == "reward":
        if text.endswith(YAML):
            return True
        on_hub = "/" in text and HUB_NAME.fullmatch(text) is not None and not _beside_a_folder(text)
        return _separated(text) and not on_hub and not re.fullmatch(r"[\w.]+:\w+", text)
    if kind.name == "run" or text.endswith((*READABLE_ENDINGS, *YAML, ".txt", ".gz")):
        return True
    if kind.name == "data" and "/" not in text:
        return True
    if not HUB_NAME.fullmatch(text):
        return True
    return _beside_a_folder(text, dataset=kind.name == "data")


def _beside_a_folder(text: str, *, dataset: bool = False) -> bool:
    """Whether a name is that of a missing file or folder: `runs/sft` is not a hub name where a folder `runs` exists."""
    here = "/" in text and Path(text).parent.is_dir()
    return here and cached_commit(text.partition(":")[0], dataset=dataset) is None


def _refuse_missing_module(name: str) -> None:
    """Refuse `module:function` of a module that is not there, without importing anything of it."""
    package = name.partition(":")[0].partition(".")[0]
    if not re.fullmatch(r"[\w.]+:\w+", name) or Path(name).exists():
        return
    here = importlib.machinery.PathFinder.find_spec(package, [str(Path.cwd())])
    if here is None and package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"reward {name}: No module named '{package}'; give module:function, importable from {Path.cwd()}"
        )


def _separated(text: str) -> bool:
    return "/" in text or text.startswith((".", "~"))


def _parts_hashes(path: Path) -> list[str]:
    values: Json = read_yaml(path)
    if judge := values.get("judge"):  # behind an endpoint, it is a name that the server knows
        return [text_hash(str(judge)) if values.get("endpoint") else content_hash(str(judge), MODEL)]
    return [reward_hash(name) for name in (*_routed_in(values), *_named_in(path, "reward"))]


def _routed_in(values: Json) -> list[str]:
    """The rewards to which a .yaml file routes rows, itself or in its parts; other .yaml files must not be among
    them.
    """
    parts = values.get("parts")
    mappings = [values, *(parts if isinstance(parts, list) else [])]
    names: list[str] = []
    for mapping in mappings:
        reward = mapping.get("reward", mapping) if isinstance(mapping, dict) else None
        if isinstance(reward, dict) and "by" in reward:
            with suppress(ValueError):  # who builds it says what is wrong
                names += (routes_of(routed_text(reward)) or {}).values()
    return [name for name in names if not may_nest(name)]


def _judge_in(path: Path) -> str | None:
    """The model of a judge, where it is not one behind an endpoint."""
    values: Json = read_yaml(path)
    judge = values.get("judge")
    return str(judge) if isinstance(judge, str) and is_possible_path(judge) and not values.get("endpoint") else None


def _named_in(path: Path, key: str) -> list[str]:
    """What the parts of a composition, or of a mixture of data, name by a key. They must not nest, and hashing one that
    names itself would not end.
    """
    parts = read_yaml(path).get("parts")
    values = [part.get(key) for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    names = [value for value in values if isinstance(value, str) and is_possible_path(value)]
    return [name for name in names if not may_nest(name)]


def _files_hash(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file():
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file_hash(file).encode())
    return digest.hexdigest()

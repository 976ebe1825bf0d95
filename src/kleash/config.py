"""Typed, frozen configs: one definition for YAML, command line and Python.

A stage's config is a subclass of `Config` with a docstring under each field, which is also its help text. Values are
validated when the config is made, from any source; a wrong value raises a `ConfigError` of one line.

The type of a field tells whether it names a model, data, a reward or another file (`ModelRef`, `DataRef`, `RewardRef`,
…). What is hashed into a run's identity, which parents are checked, and what `--help` shows follow from that type.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from kleash.errors import ConfigError
from kleash.option_names import renamed
from kleash.parse import UnreadableError, parse_yaml

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Kind:
    """What kind of thing the text of a field names."""

    name: Literal["model", "reward", "data", "run", "constitution"]
    metavar: str
    """Placeholder of the value in `--help`."""
    parent: bool = False
    """Whether it is a parent of the stage: then its own checks must have passed."""


MODEL = Kind("model", "MODEL", parent=True)
REWARD = Kind("reward", "REWARD", parent=True)
MEASURE = Kind("reward", "REWARD")
DATA = Kind("data", "DATA")
RUN = Kind("run", "RUN")
CONSTITUTION = Kind("constitution", "FILE")


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


_NAME = BeforeValidator(_as_text)
"""From Python a path may be given as a `Path`."""

PathText = Annotated[str, _NAME]
"""A path, or an address that is not one."""

YAML = (".yaml", ".yml")
"""Endings of YAML files."""

BY, DEFAULT = "by", "default"
"""Keys of a reward that is routed by row: the column whose value chooses, and the reward of all other values."""


def value_text(value: Any) -> str:
    """A column's value as it is written as a key of YAML: text as it is, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def routed_text(value: Any) -> Any:
    """A mapping `{by: COLUMN, VALUE: REWARD, …}`, or its YAML, as one line of JSON: the name of such a reward.

    Raises:
        ValueError: it is such a mapping, and is damaged.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse_yaml(value.encode())
        except UnreadableError as error:
            raise ValueError(f"a name, or `{{by: COLUMN, VALUE: REWARD, …}}`: {error}") from None
    if not isinstance(value, Mapping):
        return _as_text(value)
    routes = {value_text(key): _as_text(reward) for key, reward in value.items()}
    if not all(isinstance(reward, str) and reward for reward in routes.values()) or BY not in routes or len(routes) < 2:
        raise ValueError("`by`, a column, and for its values (and `default`) the name of a reward")
    return json.dumps(routes, ensure_ascii=False)


def routes_of(name: str) -> dict[str, str] | None:
    """The rewards by value of a reward that is routed by row, without the column; None for any other name.

    Raises:
        ConfigError: it begins like one and is not one, see `routed_text`.
    """
    if not name.lstrip().startswith("{"):
        return None
    try:
        routes: dict[str, str] = json.loads(routed_text(name))
    except ValueError as error:
        raise ConfigError(f"reward {shorten(name)} should be {error}") from None
    return {value: reward for value, reward in routes.items() if value != BY}


ModelRef = Annotated[str, _NAME, MODEL]
"""A model's folder or hub name."""
RewardRef = Annotated[str, BeforeValidator(routed_text), REWARD]
"""A reward: a model's folder or hub name, `module:function`, a verifier, a .yaml composition, or a mapping that routes
the rows to such rewards by a column.
"""
MeasureRef = Annotated[str, BeforeValidator(routed_text), MEASURE]
"""A reward that only measures and is never trained against, named like a `RewardRef`."""
DataRef = Annotated[str, _NAME, DATA]
"""Rows: a file, a saved `datasets` folder or a hub name."""
RunRef = Annotated[Path, RUN]
"""The folder of a run."""
ConstitutionRef = Annotated[str, _NAME, CONSTITUTION]
"""A constitution's YAML file, or the name of one that kleash ships."""

LEAST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""The range of float32, without the numbers that lose digits near 0."""

Settings = dict[str, Any]
"""Values by the name of what takes them."""


def parse_columns(value: Any) -> Any:
    """`prompt=question,response=answer` as a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",")]
    names = {name.strip(): column.strip() for name, _, column in pairs}
    if not all(equals for _, equals, _ in pairs) or "" in names or "" in names.values() or len(names) < len(pairs):
        raise ValueError("pairs of a name here and a column of the data, as prompt=question,response=answer")
    return names


Columns = Annotated[dict[str, str], BeforeValidator(parse_columns)]
"""Names of columns: the name here → the column of the data."""


def one_or_several(value: Any) -> Any:
    """A single text as a tuple of one."""
    return (value,) if isinstance(value, str) else value


def _none_empty(texts: tuple[str, ...]) -> tuple[str, ...]:
    if "" in texts:
        raise ValueError("texts, none of them empty")
    return texts


StopTexts = Annotated[tuple[str, ...], BeforeValidator(one_or_several), AfterValidator(_none_empty)]
"""Texts that end a response."""


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, field docstrings kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"out", "device", "force"})
    """Fields that do not change the result: a run may continue with other values."""
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset()
    """Fields that do, and with whose other value or content a run may go on if asked to (`--accept-changed`)."""

    if not TYPE_CHECKING:  # mypy's plugin writes a typed one

        def __init__(self, /, **values: Any) -> None:
            """Validate values into a config.

            Raises:
                ConfigError: one line that names each wrong key, its value and the valid values.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                problems = "; ".join(self._problem(dict(problem)) for problem in error.errors())
                raise ConfigError(problems) from None

    @classmethod
    def make(cls: type[C], values: Mapping[str, Any], *, source: str = "config") -> C:
        """Validate values into a config.

        Args:
            values: field name → value; strings are parsed as from YAML or the command line.
            source: where the values came from, for the message.

        Raises:
            ConfigError: one line that names each wrong key, its value and the valid values.
        """
        try:
            return cls(**{str(name): value for name, value in values.items()})  # YAML has keys that are no text
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    @model_validator(mode="after")
    def _numbers_fit(self: C) -> C:
        """Refuse a number that is infinite, or 0, once it is a float32, in which everything is computed."""
        for name, value in self:
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and number != 0 and not LEAST <= abs(number) <= LARGEST:
                    raise ValueError(f"'{name}' is {number:g}, but should be 0 or within {LEAST:.3g} and {LARGEST:.3g}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _explain_other_names(cls, values: Any) -> Any:
        """Refuse an option of kleash 0.1 or of another library by its name here, in Python as well."""
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields and renamed(str(key), cls.model_fields) is not None:
                raise ConfigError(f"unknown key '{key}'; {cls._remedy(str(key))}")
        return values

    @property
    def accepted(self) -> frozenset[str]:
        """Fields of `MAY_CHANGE` with whose other value or content this run may go on."""
        return frozenset()

    @model_validator(mode="after")
    def _refuse_impossible_names(self: C) -> C:
        """Refuse names that no file system takes, before anything looks for them."""
        names = [(name, value) for name in type(self).model_fields if isinstance(value := getattr(self, name), Path)]
        for name, value in (*names, *((name, text) for name, (_, text) in self.references().items())):
            if not all(map(is_possible_path, (routes_of(str(value)) or {"": str(value)}).values())):
                raise ValueError(f"'{name}' is {shorten(repr(str(value)))}, which cannot be the name of a file")
        return self

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """The fields that name a model, data, a reward or another file: name → kind."""
        kinds = {name: _kind(field.annotation, field.metadata) for name, field in cls.model_fields.items()}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def references(self) -> dict[str, tuple[Kind, str]]:
        """The models, data and files that this config names: field → kind and name, without fields that are null."""
        return {
            name: (kind, str(value))
            for name, kind in self.kinds().items()
            if (value := getattr(self, name)) is not None and not isinstance(value, tuple)
        }

    def identity(self) -> Settings:
        """The settings that the result depends on. References are left out: they count by their content
        (`content.py`).
        """
        return self.model_dump(mode="json", exclude={*self.NOT_IDENTITY, *self.references()})

    @classmethod
    def _problem(cls, problem: Mapping[str, Any]) -> str:
        key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("function-", "constrained-")))
        if problem["type"] == "extra_forbidden":
            return f"unknown key '{key}'; {cls._remedy(key)}"
        if problem["type"] == "missing":
            return f"'{key}' is missing; give {describe(cls, key)}"
        if problem["type"] == "path_type":
            return f"'{key}' is {shorten(repr(problem['input']))}, but should be a path"
        message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
        if not key:
            return message
        new_value = RENAMED_VALUES.get(f"{key}: {problem['input']}")
        if new_value is not None:
            return f"'{key}' is {problem['input']!r}; it is '{new_value}' now"
        return f"'{key}' is {shorten(repr(problem['input']))}, but should be {message}"

    @classmethod
    def _remedy(cls, key: str) -> str:
        name = renamed(key, cls.model_fields)
        if name is not None:
            return name.in_a_config
        matches = difflib.get_close_matches(key, cls.model_fields, n=1)
        return f"did you mean '{matches[0]}'?" if matches else f"known keys: {', '.join(cls.model_fields)}"


RENAMED_VALUES = {"criterion: hold-out": "validation"}
"""Values of kleash 0.1, each with its field → today's values."""


def describe(config: type[Config], key: str) -> str:
    """The first sentence of a field's docstring as part of a message: it begins with a small letter, but for a name."""
    field = config.model_fields.get(key)
    text = (field.description or "") if field else ""
    sentence = text.split(". ")[0].split("\n")[0].rstrip(".") or f"a value for '{key}'"
    return sentence if sentence[1:2].isupper() else sentence[0].lower() + sentence[1:]


def is_possible_path(text: str) -> bool:
    """Whether a file system could have a file of this name; one that could not is an error of many types."""
    try:
        Path(text).expanduser()
        content = os.fsencode(text)
        return b"\0" not in content and len(content) < 4096 and max(map(len, content.split(b"/"))) < 256
    except (RuntimeError, UnicodeError):  # the home of an unknown user, half a character
        return False


def shorten(text: str) -> str:
    """A text in a message, cut where it is long."""
    return text if len(text) <= 200 else f"{text[:200]} […]"


def read_yaml(path: Path) -> Settings:
    """A YAML mapping as a dict.

    Raises:
        ConfigError: the file is missing, is not YAML, is not a mapping, or has a key twice, at any depth.
    """
    try:
        values = parse_yaml(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give the path of a YAML file") from None
    except UnreadableError as error:
        line = f" line {error.line}" if error.line else ""
        raise ConfigError(f"{path}{line}: invalid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: holds {type(values).__name__}, but should be a mapping of 'key: value' lines")
    # 1e-5 has no dot, so YAML 1.1 reads it as text; pydantic turns it into the number that was meant.
    return values


def may_nest(name: str) -> bool:
    """Whether a reward's name is a .yaml file that names other rewards; a judge's file does not, and so may be a part.

    Raises:
        ConfigError: it is a file that cannot be read.
    """
    path = Path(name)
    return path.suffix in YAML and not (path.is_file() and "judge" in read_yaml(path))


def _kind(annotation: Any, metadata: Any = ()) -> Kind | None:
    """The kind in a field's type: `ModelRef`, `ModelRef | None`, `tuple[DataRef, ...]`."""
    for item in metadata:
        if isinstance(item, Kind):
            return item
    parts = (_kind(part, getattr(part, "__metadata__", ())) for part in get_args(annotation))
    return next((kind for kind in parts if kind is not None), None)

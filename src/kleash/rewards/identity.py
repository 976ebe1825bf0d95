"""What a live reward is: a hash of its code and of everything that the code refers to.

A function is its compiled code, its defaults, the values in its closure, and the globals that it names, with the
functions and classes of the user's own modules among them followed in the same way; an object is its class and its
state; a module of PyTorch its weights. Installed libraries count by name and version. Comments and line numbers do not
count. What has none of this (an open connection, a lock, a generator) has no identity, and neither has what refers to
it.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kleash.config import BY
from kleash.content import UNKNOWN, Fingerprint, file_hash, reward_hash
from kleash.models.compute import Compute
from kleash.models.weights import weights
from kleash.run import RunFolder

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), Decimal, Fraction, date, time, timedelta)


class UnknownError(Exception):
    """Something that a reward refers to has no identity."""


def live_fingerprint(reward: Any, name: str) -> Fingerprint:
    """The fingerprint of a live reward in run.json, see `content.Fingerprint`.

    Args:
        reward: anything that `as_reward` takes.
        name: for people.
    """
    return {"path": f"live {name}", "sha256": reward_identity(reward)}


def reward_identity(reward: Any) -> str:
    """Hash of anything that `as_reward` takes; of what has no identity one that no other has, ending in `UNKNOWN`:
    nobody can say that it is the same.
    """
    try:
        return live_hash(reward)
    except (UnknownError, RecursionError, ValueError):
        return f"{uuid4().hex}{UNKNOWN}"


def live_hash(reward: Any) -> str:
    """Hash of a live reward.

    Raises:
        UnknownError: names what has no identity.
    """
    return _Hash().of(_with_contents(reward))


def _with_contents(reward: Any) -> Any:
    """A reward with the hash of what it names in place of each name."""
    if isinstance(reward, str | Path):
        return "content", reward_hash(str(reward))
    if isinstance(reward, RunFolder):
        return "content", reward_hash(str(reward.path))
    if isinstance(reward, Mapping):
        return {key: value if key == BY else _with_contents(value) for key, value in reward.items()}
    if isinstance(reward, list | tuple) and not isinstance(next(iter(reward), None), nn.Module):
        return [_with_contents(item) for item in reward]
    return reward


class _Hash:
    """Hashes of values, in the order in which they are met; the second time a value counts by its place in it."""

    def __init__(self) -> None:
        self.met: dict[int, tuple[int, Any]] = {}  # with the value itself, so that no other takes its id

    def of(self, value: Any) -> str:
        """SHA-256 of a value's identity."""
        if isinstance(value, PLAIN):
            return _digest(type(value).__name__, repr(value))
        if id(value) in self.met:
            return _digest("again", str(self.met[id(value)][0]))
        self.met[id(value)] = len(self.met), value
        return _digest(*self.parts(value))

    def parts(self, value: Any) -> list[str]:
        """What a value's hash is made of."""
        for kinds, parts in (
            ((tuple, list), lambda: map(self.of, value)),
            ((Mapping,), lambda: sorted(self.of(key) + self.of(item) for key, item in value.items())),
            ((AbstractSet,), lambda: sorted(map(self.of, value))),
            ((Enum,), lambda: [_name(type(value)), value.name]),
            ((Path, range, re.Pattern, slice, torch.dtype, torch.device), lambda: [repr(value)]),
            ((np.ndarray, np.generic), lambda: _array(np.asarray(value))),
            ((nn.Module,), lambda: self.model(value)),
            ((Tensor,), lambda: [str(value.dtype), str(tuple(value.shape)), _bytes_of(value)]),
            ((logging.Logger,), lambda: [value.name]),
            ((ModuleType,), lambda: [_module(value)]),
            ((functools.partial,), lambda: map(self.of, (value.func, value.args, value.keywords))),
            ((MethodType,), lambda: map(self.of, (value.__func__, value.__self__))),
            ((FunctionType,), lambda: self.function(value)),
            ((property,), lambda: map(self.of, (value.fget, value.fset))),
            ((classmethod, staticmethod), lambda: [self.of(value.__func__)]),
            ((type,), lambda: self.type(value)),
            ((BuiltinFunctionType,), lambda: [_name(value), self.of(value.__self__)]),
            ((MethodDescriptorType, WrapperDescriptorType, MethodWrapperType), lambda: [_name(value)]),
            ((Compute,), lambda: [value.dtype]),  # where it is computed does not count
            ((BaseModel,), lambda: [_name(type(value)), self.of(value.model_dump(mode="json"))]),
            ((PreTrainedTokenizerBase,), lambda: _tokenizer(value)),
        ):
            if isinstance(value, kinds):
                return [type(value).__name__, *parts()]
        return ["object", *self.object(value)]

    def function(self, function: FunctionType) -> list[str]:
        """Code, defaults, closure and globals of a function; one of a library by its name."""
        if _is_library(function.__module__):
            return [_name(function), _version(function.__module__)]
        scope = function.__globals__
        named = [name for name in sorted(_globals_in(function.__code__)) if name in scope]
        return [
            _code(function.__code__),
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__),
            *(self.of(_content(cell)) for cell in function.__closure__ or ()),
            *(name + self.of(scope[name]) for name in named),
        ]

    def type(self, cls: type) -> list[str]:
        """Methods and constants of a class and of its bases; one of a library by its name."""
        if _is_library(cls.__module__):
            return [_name(cls), _version(cls.__module__)]
        members = {
            name: value
            for name, value in sorted(vars(cls).items())
            if name not in _NO_MEMBERS and not isinstance(value, GetSetDescriptorType | MemberDescriptorType)
        }
        return [
            cls.__qualname__,
            *map(self.of, cls.__bases__),
            *(name + self.of(value) for name, value in members.items()),
        ]

    def model(self, model: nn.Module) -> list[str]:
        """Class, weights and plain settings of a module of PyTorch."""
        settings = [
            {name: value for name, value in vars(part).items() if isinstance(value, PLAIN) and name != "training"}
            for part in model.modules()
        ]
        config = getattr(model, "config", None)
        described = str(config.to_json_string()) if config is not None and hasattr(config, "to_json_string") else ""
        return [*self.parts(type(model)), *map(self.of, weights(model).items()), self.of(settings), described]

    def object(self, value: Any) -> list[str]:
        """Class and state of an object, as it would be pickled.

        Raises:
            UnknownError: it cannot be pickled: it is more than its content, such as a lock or a connection.
        """
        if (wrapped := getattr(value, "__wrapped__", None)) is not None:
            return [self.of(type(value)), self.of(wrapped)]
        try:
            state = value.__reduce_ex__(4)
        except Exception as error:  # whatever a class does there
            raise UnknownError(f"a {type(value).__name__} has no identity: {error}") from None
        if isinstance(state, str):
            return [_name(type(value)), state]
        return [self.of(list(item) if isinstance(item, Iterator) else item) for item in state]


_NO_MEMBERS = frozenset(
    "__dict__ __weakref__ __module__ __doc__ __firstlineno__ __static_attributes__ __annotations__ __annotate__ "
    "__annotate_func__ __annotations_cache__ __abstractmethods__ _abc_impl __dataclass_fields__ __dataclass_params__ "
    "__orig_bases__ __parameters__ __slots__ __hash__".split()
)
"""What a class holds besides its methods and constants."""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(type(value)))}"


def _bytes_of(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"").hexdigest()


def _array(array: np.ndarray) -> Sequence[str]:
    if array.dtype == object:
        raise UnknownError("an array of objects has no identity")
    return [array.dtype.str, str(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "an empty cell"


def _code(code: CodeType) -> str:
    """What code does, without where it stands: instructions, names and constants, those of inner functions, too."""
    constants = [_code(item) if isinstance(item, CodeType) else _constant(item) for item in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return _digest(code.co_code.hex(), repr(names), repr(counts), code.co_exceptiontable.hex(), *constants)


def _constant(value: Any) -> str:
    """A constant of code; the order of a set is another one in each process."""
    if isinstance(value, frozenset):
        return f"frozenset({sorted(map(_constant, value))})"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def _globals_in(code: CodeType) -> set[str]:
    """The names of globals that code reads, inner functions included."""
    reads = {str(item.argval) for item in dis.get_instructions(code) if item.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return reads.union(*(_globals_in(item) for item in code.co_consts if isinstance(item, CodeType)))


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    vocabulary = repr(sorted(tokenizer.get_vocab().items()))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return [
        vocabulary,
        repr(tokenizer.chat_template),
        repr(sorted(map(repr, tokenizer.special_tokens_map.items()))),
        "" if backend is None else backend.to_str(),
    ]


def _module(module: ModuleType) -> str:
    """A module of a library by its version, one of the user's by its file."""
    file = getattr(module, "__file__", None)
    if _is_library(module.__name__) or file is None or not Path(file).is_file():
        return f"{module.__name__} {_version(module.__name__)}"
    return file_hash(Path(file))


def _is_library(module: str | None) -> bool:
    """Whether a module belongs to Python, to kleash or to an installed package, which a user does not edit."""
    package = (module or "").partition(".")[0]
    if package == "kleash" or (package in sys.stdlib_module_names and package != "__main__"):
        return True
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return any(part in ("site-packages", "dist-packages") for part in Path(file).parts)


@functools.cache
def _version(module: str) -> str:
    package = module.partition(".")[0]
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return ""

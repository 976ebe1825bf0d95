"""A live reward is what its code and its values are: another one is never taken for it."""

# ruff: noqa: E501  (a case a line, however long)

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from kleash.models.compute import Compute
from kleash.rewards.build import build_reward
from kleash.rewards.identity import UnknownError, live_fingerprint, live_hash
from kleash.rewards.learned import LearnedReward


def defined(source: str, **scope: Any) -> Any:
    """`f` of a source text, as a notebook's cell defines it."""
    scope = {"__name__": "__main__", **scope}
    exec(compile(source, "<cell>", "exec"), scope)
    return scope["f"]


F = "def f(completions):\n    return [len(text) for text in completions]\n"
SAME = {
    "again": (F, F),
    "further down, with a comment": (F, "\n\n# the same\n" + F.replace("text]\n", "text]  # here\n")),
    "a set": ("def f(c):\n    return [t in {'a', 'b', 'c'} for t in c]\n",) * 2,
    "a helper": ("def g(t): return len(t)\ndef f(c): return [g(t) for t in c]\n",) * 2,
    "two that call each other": ("def f(c): return g(c)\ndef g(c): return f(c) if c else []\n",) * 2,
    "a class": ("class A:\n  x: int = 1\n  def __call__(self, c): return [self.x]\nf = A()\n",) * 2,
    "a client that nobody names": ("import threading\nlock = threading.Lock()\n" + F,) * 2,
}
OTHER = {
    "the body": (F, F.replace("len(text)", "-len(text)")),
    "a constant": ("def f(c): return [1.0]\n", "def f(c): return [2.0]\n"),
    "an inner constant": ("def f(c): return [(lambda: 1)()]\n", "def f(c): return [(lambda: 2)()]\n"),
    "a default": ("def f(c, x=1): return [x]\n", "def f(c, x=2): return [x]\n"),
    "a default by name": ("def f(c, *, x=1): return [x]\n", "def f(c, *, x=2): return [x]\n"),
    "a parameter": ("def f(c, a): return [1]\n", "def f(c, b): return [1]\n"),
    "a global": ("X = 1\ndef f(c): return [X]\n", "X = 2\ndef f(c): return [X]\n"),
    "a global in a lambda": (
        "X = 1\ndef f(c): return map(lambda t: X, c)\n",
        "X = 2\ndef f(c): return map(lambda t: X, c)\n",
    ),
    "a helper": ("def g(): return 1\ndef f(c): return [g()]\n", "def g(): return 2\ndef f(c): return [g()]\n"),
    "a helper of a helper": (
        "def h(): return 1\ndef g(): return h()\ndef f(c): return [g()]\n",
        "def h(): return 2\ndef g(): return h()\ndef f(c): return [g()]\n",
    ),
    "a closure": ("def m(x): return lambda c: [x]\nf = m(1)\n", "def m(x): return lambda c: [x]\nf = m(2)\n"),
    "a closure over a function": (
        "def m(g): return lambda c: [g()]\nf = m(lambda: 1)\n",
        "def m(g): return lambda c: [g()]\nf = m(lambda: 2)\n",
    ),
    "two lambdas on a line": ("f, g = lambda c: [1], lambda c: [2]\n", "g, f = lambda c: [1], lambda c: [2]\n"),
    "a method": (
        "class A:\n  def __call__(self, c): return [1]\nf = A()\n",
        "class A:\n  def __call__(self, c): return [2]\nf = A()\n",
    ),
    "a base's method": (
        "class B:\n  def g(self): return 1\nclass A(B):\n  def __call__(self, c): return [self.g()]\nf = A()\n",
        "class B:\n  def g(self): return 2\nclass A(B):\n  def __call__(self, c): return [self.g()]\nf = A()\n",
    ),
    "a state": (
        "class A:\n  def __init__(self, x): self.x = x\n  def __call__(self, c): return [self.x]\nf = A(1)\n",
        "class A:\n  def __init__(self, x): self.x = x\n  def __call__(self, c): return [self.x]\nf = A(2)\n",
    ),
    "a state in slots": (
        "class A:\n  __slots__ = ('x',)\n  def __call__(self, c): return [self.x]\nf = A(); f.x = 1\n",
        "class A:\n  __slots__ = ('x',)\n  def __call__(self, c): return [self.x]\nf = A(); f.x = 2\n",
    ),
    "a class's constant": (
        "class A:\n  x = 1\n  def __call__(self, c): return [self.x]\nf = A()\n",
        "class A:\n  x = 2\n  def __call__(self, c): return [self.x]\nf = A()\n",
    ),
    "a bound method's object": (
        "class A:\n  def __init__(self, x): self.x = x\n  def g(self, c): return [self.x]\nf = A(1).g\n",
        "class A:\n  def __init__(self, x): self.x = x\n  def g(self, c): return [self.x]\nf = A(2).g\n",
    ),
    "what a partial binds": (
        "import functools\ndef g(c, x): return [x]\nf = functools.partial(g, x=1)\n",
        "import functools\ndef g(c, x): return [x]\nf = functools.partial(g, x=2)\n",
    ),
    "what is cached": (
        "import functools\n@functools.lru_cache\ndef f(c): return [1]\n",
        "import functools\n@functools.lru_cache\ndef f(c): return [2]\n",
    ),
    "what is decorated": (
        "import functools\ndef d(g):\n  @functools.wraps(g)\n  def w(c): return g(c)\n  return w\n@d\ndef f(c): return [1]\n",
        "import functools\ndef d(g):\n  @functools.wraps(g)\n  def w(c): return g(c)\n  return w\n@d\ndef f(c): return [2]\n",
    ),
    "a dict's get": ("f = {1: 2}.get\n", "f = {1: 3}.get\n"),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_code_is_the_same_reward(case: str) -> None:
    first, second = SAME[case]
    assert live_hash(defined(first)) == live_hash(defined(second))


@pytest.mark.parametrize("case", OTHER)
def test_other_code_or_another_value_is_another_reward(case: str) -> None:
    first, second = map(defined, OTHER[case])
    assert live_hash(first) == live_hash(defined(OTHER[case][0]))
    assert live_hash(first) != live_hash(second)


VALUES = [
    1, 1.0, True, "1", None, b"1", (1,), [1], {1}, {1: 2}, {"a": {"b": 1}}, np.ones(2), np.ones(2, np.float32), np.zeros(2),
    torch.ones(2), torch.zeros(2), torch.ones(2, dtype=torch.bfloat16), torch.ones(1, 2), re.compile("a"), re.compile("a", re.I),
    Path("a"), deque([1]), deque([2]), np.random.default_rng(0).integers(9, size=3), np.float32(1), range(3), functools.partial(len),
    nn.Linear(1, 1), nn.Linear(2, 1), nn.Dropout(0.5), nn.Dropout(0.1),
]  # fmt: skip


def test_values_of_every_kind_are_told_apart() -> None:
    hashes = [live_hash(lambda c, x=value: [x]) for value in VALUES]
    assert len(set(hashes)) == len(hashes)
    assert hashes == [live_hash(lambda c, x=value: [x]) for value in VALUES]


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in ()), open(__file__)])  # noqa: SIM115
def test_what_is_more_than_its_content_has_no_identity(value: Any) -> None:
    with pytest.raises(UnknownError):
        live_hash(lambda c: [value])
    first, second = (live_fingerprint(lambda c: [value], "mine") for _ in range(2))
    assert first["sha256"] != second["sha256"] and first["path"] == "live mine"


def test_another_process_gives_the_same_hash() -> None:
    code = (
        "from kleash.rewards.identity import live_hash\n"
        "WORDS = {'a', 'b', 'c', 'd'}\n"
        "def f(c, x={'k': {'l', 'm', 'n'}}):\n    return [t in {'a', 'b', 'c'} or t in WORDS for t in c]\n"
        "print(live_hash(f))\n"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": s},
        ).stdout
        for s in ("1", "2")
    }
    assert len(hashes) == 1


def test_a_reward_model_is_its_weights_wherever_it_is_computed(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    from kleash.models.load import new_reward_model
    from kleash.testing import tiny_model

    def reward(seed: int, **compute: Any) -> LearnedReward:
        model, tokenizer = new_reward_model((tiny_model(seed), tiny_tokenizer), seed=seed)
        return LearnedReward(model, tokenizer, compute=Compute(**compute))

    assert live_hash(reward(0)) == live_hash(reward(0, micro_batch_tokens=99)) != live_hash(reward(1))
    assert live_hash(build_reward("number")) == live_hash(build_reward("number")) != live_hash(build_reward("math"))
    assert live_hash([("number", 1.0)]) != live_hash([("number", 2.0)])

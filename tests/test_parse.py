"""Whatever a text holds, there is a value that can be used, or one line."""

from __future__ import annotations

import json
import random

import pytest

from kleash.parse import UnreadableError, parse_json, parse_yaml

DEEP = 3000

NOT_JSON = {
    "not JSON": b"{'a': 1}",
    "nothing": b"",
    "no UTF-8": b'{"a": "caf\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deeper than what is walked": b"[" * 200 + b"]" * 200,
    "digits by the thousand": b'{"a": ' + b"1" * 5000 + b"}",
    "more digits than can be printed": b'{"a": ' + b"1" * 4000 + b"}",
    "half a character": rb'{"a": "\ud83d"}',
    "half a character in a key": rb'{"\uDC00": 1}',
}

NOT_YAML = {
    "no UTF-8": b"model: caf\xe9\n",
    "no month": b"out: 2001-99-99\n",
    "no integer": b"out: !!int x\n",
    "no digits": b"out: !!int ''\n",
    "no float": b"out: !!float x\n",
    "no binary": b"out: !!binary x\n",
    "digits by the thousand": b"seed: " + b"1" * 5000 + b"\n",
    "hexadecimal digits by the thousand": b"seed: 0x" + b"f" * 5000 + b"\n",
    "deep lists": b"a: " + b"[" * DEEP + b"]" * DEEP,
    "deep mappings": b"".join(b" " * level + b"a:\n" for level in range(400)),
    "a list in itself": b"a: &a [*a]\n",
    "aliases of aliases": b"a0: &a0 [x]\n"
    + b"".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n".encode() for n in range(1, 20)),
    "an object of Python": b"a: !!python/object/apply:os.system [x]\n",
    "a list as a key": b"? [a]\n: b\n",
    "half a character": b'a: "\\ud83d"\n',
    "a tab": b"a:\n\t- b\n",
    "a NUL": b"a: \0\n",
}


@pytest.mark.parametrize("text", NOT_JSON.values(), ids=NOT_JSON)
def test_json_that_cannot_be_used_is_one_line(text: bytes) -> None:
    with pytest.raises(UnreadableError) as caught:
        parse_json(text)
    assert str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", NOT_YAML.values(), ids=NOT_YAML)
def test_yaml_that_cannot_be_used_is_one_line(text: bytes) -> None:
    with pytest.raises(UnreadableError) as caught:
        parse_yaml(text)
    assert str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_can_be_used_is_read_as_it_is() -> None:
    value = {"text": "a\u2028b\u2029c\x85d 😀 \\u d83d", "n": 10**50, "list": [{"a": [1, 2.5, None]}] * 200}
    assert parse_json(json.dumps(value)) == value == parse_json(json.dumps(value, ensure_ascii=False).encode())
    assert parse_yaml(b"\xef\xbb\xbfa: &a [1, 2]\nb: *a\n") == {"a": [1, 2], "b": [1, 2]}


def test_a_line_of_yaml_is_named() -> None:
    with pytest.raises(UnreadableError) as caught:
        parse_yaml("a: 1\nb: [\n")
    assert caught.value.line == 3


def test_damaged_texts_are_values_or_one_line() -> None:
    draw = random.Random(0)
    sources = [
        json.dumps({"a": [1, {"b": "c\u2028"}], "d": None}).encode(),
        b"a: &x [1, 2]\nb: {c: *x, d: 2001-01-01}\n",
    ]
    for _ in range(500):
        text = bytearray(draw.choice(sources))
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(text))
            text[place : place + draw.randrange(3)] = bytes(
                draw.choices(b'[]{}":,-\\u\xff\x00 !&*?|>0e\n', k=draw.randrange(3))
            )
        for parse in (parse_json, parse_yaml):
            try:
                parse(bytes(text))
            except UnreadableError as error:
                assert "\n" not in str(error)

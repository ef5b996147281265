"""Valid things made strange: bytes, trees of JSON or YAML, text. All by a few drawn numbers.

A case is a short list of steps, each an index of a kind of change and two numbers that say where
and what, so that hypothesis can shrink a case to the one step that matters.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

Step = tuple[int, int, int]
_NUMBER = st.integers(0, 2**32 - 1)
STEPS = st.lists(st.tuples(st.integers(0, 11), _NUMBER, _NUMBER), min_size=1, max_size=4)
RAW = st.binary(max_size=400)

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, -(10**30),
    0.5, -0.0, 1e308, 5e-324, math.inf, -math.inf, math.nan, "", " ", "0", "1e-4", "null",
    "a" * 5000,
    "../../outside/secret", "/etc/passwd", "..", ".", "a\0b", "a/b", "é" * 300, "\u202egnp.exe",
    "\ud800", "${oc.env:HOME}", "${x}", "${", "???", "%s%n{0}", "$(touch /tmp/x)", "C:\\x",
    [], {}, [[]], [None], {"": None}, [1, "a", None], [0, 1], ["a", "b"], [math.nan, 1],
    {"choice": []}, {"choice": [1, 2, 3]}, {"uniform": [0, 1]}, {"int": [1, 10**13]},
    {"log_uniform": [1e-9, 1]}, {"int": [0, 10**400]}, {"uniform": [0, 1], "num": 10**9},
    {"name": "os"}, {"name": "../x"}, {"__class__": "x"}, {"_target_": "os.system"},
    {"choice": list(range(300))},
)  # fmt: skip


def bytes_of(blob: bytes, steps: Sequence[Step], donor: bytes = b"") -> bytes:
    """Flipped, cut, doubled, moved, overwritten with extreme numbers, mixed with another."""
    data = bytearray(blob)
    for kind, where, what in steps:
        size = len(data)
        at = where % (size + 1)
        length = 1 + what % 64
        if kind == 0 and size:
            data[where % size] ^= 1 << what % 8
        elif kind == 1 and size:
            data[where % size] = what % 256
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            data[at:at] = what.to_bytes(4, "little")
        elif kind == 6:
            width = (1, 2, 4, 8)[what % 4]
            data[at : at + width] = (b"\xff", b"\x00", b"\x7f", b"\x80")[what // 4 % 4] * width
        elif kind == 7:
            data[at : at + 4] = what.to_bytes(4, ("little", "big")[where % 2])
        elif kind == 8 and size:
            other = what % size
            data[at : at + 16], data[other : other + 16] = (
                data[other : other + 16], data[at : at + 16],
            )  # fmt: skip
        elif kind == 9:
            source = donor or blob
            begin = what % (len(source) + 1)
            data[at : at + 100] = source[begin : begin + 100]
        elif kind == 10:
            data[at:at] = bytes(length)
        elif kind == 11 and size:  # Where lengths stand: at the ends of most formats.
            end = size - 1 - where % min(size, 12) if where % 2 else where % min(size, 16)
            data[end] = what % 256
    return bytes(data)


def copied(tree: Any) -> Any:
    """A deep copy, also of what is deeper than Python's own stack; of no tree that holds itself."""
    box = [tree]
    left: list[tuple[Any, Any]] = [(box, 0)]
    while left:
        parent, key = left.pop()
        node = parent[key]
        if isinstance(node, dict):
            parent[key] = new = dict(node)
            left += [(new, name) for name in new]
        elif isinstance(node, list):
            parent[key] = new_list = list(node)
            left += [(new_list, place) for place in range(len(new_list))]
    return box[0]


def tree_of(tree: Any, steps: Sequence[Step]) -> Any:
    """A tree with nodes replaced, removed, renamed, swapped or buried."""
    tree = copied(tree)
    for kind, where, what in steps:
        places = list(_places(tree))
        if not places:
            return copied(STRANGE[what % len(STRANGE)])
        parent, key = places[where % len(places)]
        if kind <= 4:
            parent[key] = copied(STRANGE[what % len(STRANGE)])
        elif kind == 5:
            del parent[key]
        elif kind == 6 and isinstance(parent, dict):
            strange = STRANGE[what % len(STRANGE)]
            parent[strange if isinstance(strange, str) else str(what)] = parent.pop(key)
        elif kind == 7:
            other, other_key = places[what % len(places)]
            # Copies: a tree that holds itself is no JSON.
            one, two = copied(parent[key]), copied(other[other_key])
            other[other_key] = one
            parent[key] = two
        elif kind == 8:
            parent[key] = [copied(parent[key])] * (1 + what % 3)
        elif kind == 9:
            for _ in range((2, 20, 400)[what % 3]):
                parent[key] = [parent[key]] if what % 2 else {"a": parent[key]}
        elif kind == 10 and isinstance(parent[key], int | float):
            with contextlib.suppress(OverflowError):
                parent[key] = parent[key] * (-1, 2, 0.5, 1e6, -1e-6)[what % 5]
        elif kind == 11 and isinstance(parent, dict):
            added = ("x", "name", "format", "num", "choice", "__pydantic_config__", "self")
            # A copy: what is changed later must not be what all cases draw from.
            parent[added[what % 7]] = copied(STRANGE[where % len(STRANGE)])
    return tree


def json_of(tree: Any) -> str:
    """As Python writes it: with NaN, Infinity and numbers of any length."""
    try:
        return json.dumps(tree)
    except (RecursionError, ValueError):
        return "[" * 50_000


def yaml_of(tree: Any) -> str:
    """JSON is YAML, but for the numbers that are none."""
    text = json_of(tree)
    for word, said in (("NaN", ".nan"), ("-Infinity", "-.inf"), ("Infinity", ".inf")):
        text = text.replace(word, said)
    return text


YAML_PIECES = (
    "!!python/object/apply:os.system ['touch {outside}/made']",
    "!!python/object/new:subprocess.Popen [['touch', '{outside}/made']]",
    "!!python/name:os.system", "!!python/module:antigravity", "!!python/object:os.system {{}}",
    "!!python/object/apply:builtins.exec ['import os; os.mkdir(\"{outside}/made\")']",
    "!!binary aGk=", "!!set {{a, b}}", "!!omap [a: 1]", "!!timestamp 2020-01-01", "!!float x",
    "!!int 0x" + "f" * 6000, "!!null x", "!!bool maybe", "!x y", "&a [*a]", "&a {{b: *a}}", "*b",
    "<<: *c", "? [a]\n: b", "- a\nb: c", "\t", "---\na: 1\n---\n", "%YAML 9.9", "'", '"\\x00"',
    "|\n  x", ">-\n x", "@", "`", "#", "[[[[[[", "0o17", "1_000", "0x" + "f" * 6000, "1:30:30",
    "2020-13-45", "9" * 5000, ".inf", "~", "\u2028", "\ufeff", "\x85",
    "[&x [a, a, a, a, a, a, a, a, a, a]" + "".join(
        f", &x{n} [{', '.join([f'*x{n - 1}' if n else '*x'] * 10)}]" for n in range(9)
    ) + "]",
)  # fmt: skip


def yaml_with(text: str, steps: Sequence[Step], outside: str) -> str:
    """Text with a piece of YAML at its worst put where a value, a key or a line may stand."""
    for kind, where, what in steps:
        piece = YAML_PIECES[what % len(YAML_PIECES)].format(outside=outside)
        places = [i + 1 for i, c in enumerate(text) if c in ":[,{\n"] or [0]
        at = places[where % len(places)]
        if kind % 3 == 0:
            end = min((i for i in (text.find(c, at) for c in ",]}\n") if i >= 0), default=len(text))
            text = f"{text[:at]} {piece}{text[end:]}"
        elif kind % 3 == 1:
            text = f"{text[:at]} {piece} {text[at:]}"
        else:
            text = f"{text}\n{piece}\n" if what % 2 else f"{piece}\n{text}"
    return text


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (parent, key) in a tree; not deeper than trees of ours ever are."""
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left and len(found) < 2000:
        node = left.pop()
        keys = (
            list(node)
            if isinstance(node, dict)
            else range(len(node))
            if isinstance(node, list)
            else ()
        )
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                left.append(node[key])
    return found

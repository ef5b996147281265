"""Settings of a plug-in or a section, for `lyapsweep list`: name, default, admissible values."""

import dataclasses
import json
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.choice import Choice
from tasks.base import Bounds, Config


def settings_of(config: type[Config]) -> list[tuple[str, str, str]]:
    """(setting, default, admissible values) of a Config."""
    hints = get_type_hints(config, include_extras=True)
    found = []
    for field in dataclasses.fields(config):
        has_default = field.default is not dataclasses.MISSING
        default = json.dumps(field.default) if has_default else "must be given"
        found.append((field.name, default, _admissible(hints[field.name])))
    return found


def _admissible(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        words = [_admissible(inner)]
        for mark in marks:
            if isinstance(mark, Bounds):
                bounds = {">=": mark.ge, ">": mark.gt, "<=": mark.le, "<": mark.lt}
                words += [f"{sign} {b:g}" for sign, b in bounds.items() if b is not None]
        return " ".join(words)
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        parts = [a for a in get_args(hint) if a is not type(None)]
        suffix = " | null" if len(parts) < len(get_args(hint)) else ""
        return " | ".join(_admissible(a) for a in parts) + suffix
    if get_origin(hint) is tuple:
        return f"list of {_admissible(get_args(hint)[0])}"
    names = {int: "whole number", float: "number", bool: "true | false", str: "text"}
    names[Choice] = "name: {settings}"
    return names.get(hint, str(hint))

"""Faults in what people type: collected as a tree is checked, one line each, raised together."""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline import catalog, space
from pipeline.plan import Choice
from pipeline.space import Range, RangeError

_MOST_SHOWN = 1_000


class ConfigError(ValueError):
    """Settings that cannot be run. One line a fault: where, the law, what came."""


class Faults:
    """Collects faults, one line each, and raises them together."""

    def __init__(self, origin: dict[str, str], source: str) -> None:
        self._origin, self._source = origin, source
        self._lines: dict[str, str] = {}

    def add(self, path: str, message: str) -> None:
        """What is wrong at a dotted path; the first fault of a path counts."""
        where = self._source
        for key, label in self._origin.items():
            if path == key or path.startswith(f"{key}.") or key.startswith(f"{path}."):
                where = label
        self._lines.setdefault(path, f"{where} {path}: {message}")

    def raise_any(self) -> None:
        """Raises ConfigError if there is any fault."""
        if self._lines:
            raise ConfigError("\n".join(map(clipped, self._lines.values())))

    def ranges(self, tree: Mapping[str, Any]) -> dict[str, Range]:
        """The ranges in a tree by dotted path, in alphabetical order."""
        found = {}
        for path, node in space.walk(tree):
            try:
                parsed = space.parse_range(node)
            except RangeError as error:
                self.add(path, str(error))
                continue
            if parsed is not None:
                if path == "trainer.epochs":
                    self.add(path, "must be one value: trials are compared epoch by epoch")
                if path.endswith(".name") or "." not in path:
                    self.add(path, "this must be one value; run one sweep for each")
                found[path] = parsed
        return dict(sorted(found.items()))

    def whole(
        self, tree: Mapping[str, Any], key: str, *, default: int | None, low: int, high: int
    ) -> int:
        """A whole number of the tree; `low` where that failed."""
        value = tree.get(key)
        value = default if value is None else value
        if value is None:
            self.add(key, "missing; how many trials to run, e.g. 64")
        elif isinstance(value, bool) or not isinstance(value, int):
            self.add(key, f"must be a whole number, got {value!r}")
        elif not low <= value <= high:
            self.add(key, f"must be from {low} to {high}, got {value}")
        else:
            return value
        return low

    def choice(self, kind: str, path: str, tree: Any) -> Any:
        """A plug-in by name with its settings, or None where that failed."""
        if not isinstance(tree, Mapping):
            self.add(path, f"must be a mapping with a `name`, got {tree!r}")
            return None
        found = tree.get("name")
        if not isinstance(found, str):
            known = ", ".join(catalog.entries(kind))
            self.add(f"{path}.name", f"missing; name one of {known}")
            return None
        settings = {k: v for k, v in tree.items() if k != "name"}
        return self.named(kind, path, found, settings, f"{path}.name")

    def named(
        self, kind: str, path: str, name: str, settings: Any, name_path: str | None = None
    ) -> Any:
        """A plug-in with its settings, or None where that failed; `name_path` has its name."""
        try:
            loaded = catalog.load(kind, name)
        except catalog.UnknownNameError as error:
            self.add(name_path or path, str(error))
            return None
        config = self.section(loaded.Config, path, settings)
        return None if config is None else Choice(name, config)

    def section(self, config_type: type[Any], path: str, tree: Any) -> Any:
        """A Config from a mapping, or None where that failed."""
        if not isinstance(tree, Mapping):
            self.add(path, f"must be a mapping, got {tree!r}")
            return None
        try:
            # Through JSON: strict about types, yet lists may stand for tuples.
            text = json.dumps(tree, allow_nan=False)
        except (TypeError, ValueError) as error:
            self.add(path, f"holds a value that is not a plain finite one ({error})")
            return None
        try:
            return _adapter(config_type).validate_json(text)  # type: ignore[arg-type]
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                *parts, last = [str(part) for part in fault["loc"]] or [""]
                names = [part for part in parts if not _is_type_tag(part)]
                if last and (_isunknown(fault) or not _is_type_tag(last)):
                    names.append(last)
                where = ".".join([path, *names])
                self.add(where, _explain(fault, config_type))
            return None


@cache
def _adapter(config_type: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(config_type)


def _is_type_tag(part: str) -> bool:
    return not (part.isidentifier() or part.isdigit())


def _isunknown(fault: Any) -> bool:
    return bool(fault["type"] == "unexpected_keyword_argument")


def _explain(fault: Any, config_type: type[Any]) -> str:
    kind, got, context = fault["type"], fault["input"], fault.get("ctx", {})
    shown = json.dumps(got) if isinstance(got, str | bool) or got is None else str(got)
    match kind:
        case "unexpected_keyword_argument":
            known = [f.name for f in dataclasses.fields(config_type)]
            return unknown(str(fault["loc"][-1]), known)
        case "missing_argument" | "missing_keyword_only_argument" | "missing":
            return "missing"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, got {shown}"
        case "greater_than":
            return f"must be above {context['gt']:g}, got {shown}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, got {shown}"
        case "less_than":
            return f"must be below {context['lt']:g}, got {shown}"
        case "int_type" | "int_from_float":
            return f"must be a whole number, got {shown}"
        case "float_type":
            return f"must be a number, got {shown}"
        case "bool_type":
            return f"must be true or false, got {shown}"
        case "string_type":
            return f"must be text, got {shown}"
        case "literal_error":
            return f"must be {context['expected']}, got {shown}"
        case "tuple_type" | "list_type":
            return f"must be a list, got {shown}"
        case "value_error":
            return str(context.get("error", fault["msg"]))
        case _:
            return f"{fault['msg']}, got {shown}"


def unknown(key: str, known: Sequence[str]) -> str:
    """What to say of a key that nobody knows: the one that may have been meant."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
    return f"unknown key{hint}"


def clipped(line: str) -> str:
    """A fault that quotes what came, short enough to be read."""
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}…"

"""From a name in conf to the one class in the file of that name.

A file is a plug-in when it defines a class that derives, by name, from the kind's base class.
Names and first docstring lines are read without importing anything, so that listing what there
is stays instant; only `load` imports.
"""

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_OWN_KINDS = {
    "tasks": "tasks:Task",
    "networks": "tasks.networks:Network",
    "diagnostics": "pipeline.diagnostics:Diagnostic",
    "regularisers": "pipeline.regularisers:Regulariser",
}


class UnknownNameError(ValueError):
    """A name for which there is no file; the message lists the names there are."""


@dataclass(frozen=True)
class Entry:
    """One plug-in: its name in conf, its module, its class and what it is in one line."""

    name: str
    module: str
    class_name: str
    summary: str


def kinds() -> dict[str, str]:
    """Kind of plug-in → `package:BaseClass`, ours and those other layers register."""
    registered = {e.name: e.value for e in entry_points(group="lyapsweep.kinds")}
    return {**_OWN_KINDS, **registered}


@cache
def entries(kind: str) -> dict[str, Entry]:
    """All plug-ins of a kind by name, in alphabetical order. Imports no plug-in.

    Raises UnknownNameError for a kind that does not exist.
    """
    known = kinds()
    if kind not in known:
        raise UnknownNameError(f"no kind {kind!r}; there are {', '.join(sorted(known))}")
    package, base = known[kind].split(":")
    found = {}
    for folder in _folders(package):
        for path in sorted(folder.glob("*.py")):
            entry = _entry(path, package, base)
            if entry is not None:
                found[entry.name] = entry
    return found


def load(kind: str, name: str) -> type[Any]:
    """The class behind a name. Raises UnknownNameError with the names there are."""
    known = entries(kind)
    if name not in known:
        raise UnknownNameError(
            f"no {singular(kind)} {name!r}; there are {', '.join(known) or 'none'}"
        )
    entry = known[name]
    loaded: type[Any] = getattr(importlib.import_module(entry.module), entry.class_name)
    return loaded


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [Path(location) for location in spec.submodule_search_locations]


def _entry(path: Path, package: str, base: str) -> Entry | None:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            names = {_last_name(b) for b in node.bases}
            if base in names:
                doc = ast.get_docstring(tree) or ast.get_docstring(node) or ""
                summary = doc.split("\n\n")[0].replace("\n", " ").strip()
                return Entry(path.stem, f"{package}.{path.stem}", node.name, summary)
    return None


def _last_name(base: ast.expr) -> str:
    if isinstance(base, ast.Subscript):
        base = base.value
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def singular(kind: str) -> str:
    """One of a kind: `task` of `tasks`, `study` of `studies`."""
    return f"{kind[:-3]}y" if kind.endswith("ies") else kind.removesuffix("s")

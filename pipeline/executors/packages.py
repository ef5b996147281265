"""Which packages a worker has: they must be the driver's, side by side in one folder."""

import hashlib
import importlib.util
import sys
from pathlib import Path

PACKAGES = ("tasks", "pipeline", "analysis")


def import_conflict(parent: str | None = None) -> str | None:
    """What is wrong with the three packages here, or None.

    They must lie side by side (under `parent` where given): a stray `tasks.py` in the working
    folder hides ours, and training would run something else.
    """
    expected = Path(parent) if parent else parent_of("pipeline")
    for name in PACKAGES:
        found = parent_of(name)
        if found is not None and expected is not None and found != expected:
            hiding = getattr(sys.modules.get(name), "__file__", None) or found / name
            return (
                f"package {name!r} must lie in {expected}, but {hiding} hides it; "
                "rename that file or start elsewhere"
            )
    return None


def parent_of(package: str) -> Path | None:
    """The folder a package, or a stray module of its name, lies in."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    return origin.parent.parent if origin.name == "__init__.py" else origin.parent


def digest() -> str:
    """sha256 of the source of the three packages: equal where workers run the driver's code."""
    found = hashlib.sha256()
    for name in PACKAGES:
        parent = parent_of(name)
        if parent is None:
            continue
        for path in sorted((parent / name).rglob("*.py")):
            found.update(path.relative_to(parent).as_posix().encode())
            found.update(path.read_bytes())
    return found.hexdigest()

"""Where results come from: versions, host and git state of the process that records them."""

import contextlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("lyapsweep", "torch", "ray", "optuna", "mlflow", "pyarrow", "numpy", "pandas")


def provenance() -> dict[str, Any]:
    """For the record."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[f"version_{package}"] = version(package)
    return {**found, **_git_state()}


def _git_state() -> dict[str, Any]:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        return {
            # Fails where we lie, installed, inside a project of somebody else's.
            "git_sha": git("ls-files", "--error-unmatch", "sweep.py") and git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}

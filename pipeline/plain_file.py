"""Files of others: opened only where they are files, read only as far as they should go.

Opening a pipe waits for whoever writes to it, reading a device never ends, and a small text can
unfold to more than there is memory for.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST_JSON_BYTES = 2**24
# Of JSON: what Python reads to a thousand levels, it can no longer copy, compare or print.
MOST_LEVELS = 100


class NotPlainError(OSError):
    """A folder, a pipe, a device: no file to be read."""


def is_one(path: Path) -> bool:
    """Whether a path is a file itself; a link is not, which leads elsewhere."""
    return path.is_file() and not path.is_symlink()


def opened(path: Path) -> BinaryIO:
    """For reading. Raises OSError, NotPlainError among them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise NotPlainError(f"{path}: must be a plain file")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def json_of(path: Path, most: int = MOST_JSON_BYTES) -> Any:
    """What a JSON file holds. Raises ValueError where it is none, or too large; OSError."""
    with opened(path) as source:
        data = source.read(most + 1)
    if len(data) > most:
        raise ValueError(f"must be smaller than {most:,} bytes")
    return tree_of(data)


def tree_of(text: str | bytes) -> Any:
    """What JSON stands for. Raises ValueError where it is none, or deeper than any of ours."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # Nearly all text has too few brackets to be deep; then nothing needs looking at.
    if text.count("[") + text.count("{") > MOST_LEVELS and _is_deep(tree):
        raise ValueError(f"nested deeper than {MOST_LEVELS} levels")
    return tree


def _is_deep(tree: Any) -> bool:
    row = [tree]
    for _ in range(MOST_LEVELS):
        row = [
            child
            for node in row
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return any(isinstance(node, dict | list) for node in row)

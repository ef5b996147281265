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
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None

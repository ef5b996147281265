"""SQLite files of ours on local disks: in WAL mode, folded into one file when a sweep ends.

With the rollback journal a commit waits for the disk three or four times, in WAL mode once, and
it is as durable (`synchronous` stays FULL). A log needs shared memory between the processes that
use the file, which file systems of a network do not give: there the file stays as it is.
"""

import contextlib
import os
import sqlite3
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_LOCAL = {
    "apfs",
    "bcachefs",
    "btrfs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "overlay",
    "tmpfs",
    "xfs",
    "zfs",
}


def prefer_wal(database: Path) -> None:
    """Sets WAL mode, for good, where the file lies on a local disk; creates an empty file.

    Where another process uses the file just now, or it is no database, it stays as it is.
    """
    if _file_system(database) in _LOCAL:
        with contextlib.suppress(sqlite3.DatabaseError), _opened(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")


def fold(database: Path) -> None:
    """Moves what the log holds into the file, so that a copy of the file alone is whole."""
    if not database.exists():
        return
    with contextlib.suppress(sqlite3.DatabaseError), _opened(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _opened(database: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(database, timeout=5))


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`, empty where the system does not say."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    folder = os.path.realpath(path.parent)
    best, found = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = before.split()[4].encode().decode("unicode_escape")
        is_inside = folder == mount or folder.startswith(mount.rstrip("/") + "/")
        if is_inside and len(mount) >= best:
            best, found = len(mount), after.split()[0]
    return found

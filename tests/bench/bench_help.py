"""How long a person waits for `lyapsweep --help`; the law is less than a second."""

import subprocess
import sys
import time
from pathlib import Path


def cases():
    for arguments in (["--help"], ["sweep", "--help"], ["list", "networks"]):
        best = min(_seconds(arguments) for _ in range(5))
        yield f"lyapsweep {' '.join(arguments)} (best of 5)", best, "s"


def _seconds(arguments):
    command = Path(sys.executable).with_name("lyapsweep")
    started = time.perf_counter()
    subprocess.run([command, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started

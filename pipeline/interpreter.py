"""Fresh interpreters beside this one: no forks, which neither torch's threads nor CUDA survive.

Each is joined to whoever started it by a pair of sockets, so nothing listens anywhere, and either
side learns of the other's end by the end of the stream.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import IO

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Imports nothing of ours before sys.path is ours: with -P, and without '', a stray tasks.py in the
# working folder hides none of our modules.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from {module} import work; "
    "work(int(sys.argv[1]), *sys.argv[3:])"
)


def start(
    module: str,
    *words: str,
    environment: Mapping[str, str],
    output: int | IO[bytes] | None = None,
) -> tuple["subprocess.Popen[bytes]", Connection]:
    """A process that runs `work(descriptor, *words)` of a module of ours, and the channel to it.

    `environment` is added to ours. `output` takes what it writes to stdout and stderr; None leaves
    it where ours goes. Raises OSError where none can be started.
    """
    ours, theirs = socket.socketpair()
    path = json.dumps([entry for entry in sys.path if entry])
    with theirs:
        descriptor = theirs.fileno()
        boot = _BOOT.format(module=module)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", boot, str(descriptor), path, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                pass_fds=[descriptor],
            )
        except OSError:
            ours.close()
            raise
    return process, Connection(ours.detach())

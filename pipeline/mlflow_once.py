"""Requests to a tracking server that must not be repeated behind our back.

MLflow sends any request again that was answered by an error or by silence, the making of a run
among them: where the first was done and only its answer was lost, there are two runs. We repeat
what failed ourselves, and look first.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@contextmanager
def asked_once() -> Iterator[None]:
    """Within it MLflow sends every request once."""
    before = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RETRIES]
        else:
            os.environ[_RETRIES] = before

"""The same question asked of many parts of a sweep, on all cores and with the same answers."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

J = TypeVar("J")
R = TypeVar("R")


def each(ask: Callable[[J], R], jobs: Iterable[J]) -> list[R]:
    """`ask` of every job, in order. Threads: most of the time goes into matrix products, which
    share out badly themselves where matrices are small, so that each of them gets one core.
    """
    with threadpool_limits(1), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(ask, jobs))

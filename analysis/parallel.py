"""Threads: the same question asked of many parts of a sweep on all cores, products on one each."""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

J = TypeVar("J")
R = TypeVar("R")
P = ParamSpec("P")


def each(ask: Callable[[J], R], jobs: Iterable[J]) -> list[R]:
    """`ask` of every job, in order. Threads: most of the time goes into matrix products, which
    share out badly themselves where matrices are small, so that each of them gets one core.
    """
    with threadpool_limits(1), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(ask, jobs))


def products_on_one_core(work: Callable[P, R]) -> Callable[P, R]:
    """`work` with matrix products that do not share themselves out.

    Products of a few hundred trials gain little from a second core, and lose forty times as much
    where another program has it: each then waits for a thread that does not run.
    """

    @functools.wraps(work)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with threadpool_limits(1):
            return work(*args, **kwargs)

    return limited

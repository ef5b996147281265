"""Shares work that needs no other's result out among threads of one torch thread each."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


class Hands:
    """So many threads, started when first needed, ended by `close`.

    torch and the BLAS let other Python threads run meanwhile. Whether gradients are recorded is
    as it is where `each` is called.

    Example:
        >>> from contextlib import closing
        >>> with closing(Hands(2)) as hands:
        ...     hands.shares(["a", "b", "c"]), hands.each(lambda share: 10 * share, 2)
        ([['a', 'b'], ['c']], [0, 10])
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            # What new threads begin with is the whole process's.
            torch.set_num_threads(self._count)

    def shares(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """In order, as evenly as they can be cut; none is empty."""
        count = min(self._count, len(jobs))
        ends = [-(-len(jobs) * i // count) for i in range(count + 1)]
        return [list(jobs[a:b]) for a, b in itertools.pairwise(ends)]

    def each(self, do: Callable[[int], Result], num_shares: int) -> list[Result]:
        """do(0), do(1), …, at the same time. Raises what one of them raises."""
        if num_shares < 2:
            return [do(share) for share in range(num_shares)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                self._count, initializer=lambda: torch.set_num_threads(1)
            )
        is_recorded = torch.is_grad_enabled()

        def done(share: int) -> Result:
            with torch.set_grad_enabled(is_recorded):
                return do(share)

        return list(self._pool.map(done, range(num_shares)))

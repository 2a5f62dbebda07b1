"""Parallel for: one call for each thread; kernels let go of the GIL."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait


def parallel_for(work: Callable[[int], None], threads: int) -> None:
    """Call `work` with 0 to threads - 1, at the same time; the caller's thread does 0."""
    others = [_pool(threads).submit(work, thread) for thread in range(1, threads)]
    try:
        work(0)
    finally:
        wait(others)  # also when interrupted: they write to arrays that the caller lets go of
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, threads - 1))

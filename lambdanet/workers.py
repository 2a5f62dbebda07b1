"""Processes for work that comes in many pieces, where that pays for their start.

Not a dependency in DVC: it says which process does what (tests/test_workers.py).
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from typing import Any

# Begins a piece, `later(function, *arguments)`, and gives a function that waits for its result.
Later = Callable[..., Callable[[], Any]]


def cores() -> int:
    """Those that are ours: see pipelines/cores.py; else those that this process may use."""
    for name in ("LAMBDANET_CORES", "OMP_NUM_THREADS"):
        if (said := os.environ.get(name, "")).isdecimal():
            return max(1, int(said))
    return available()


def available() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(modules: Sequence[str]) -> None:
    """Begin to load, in a process of its own, what `several` will want; this one can go on meanwhile."""
    context = _context()
    if context.get_start_method() != "forkserver":
        return
    context.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # or the next would start it, which lets signals through again
    # A Ctrl-C is for who waits for the work; these end with it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def several(
    processes: int, modules: Sequence[str], begin: Callable[[], None] | None = None
) -> Iterator[Later]:
    """Give a `Later` whose pieces are done by so many processes; by this one, when asked, if fewer than 2.

    Args:
        processes: how many.
        modules: which they load, once for all of them where the system can do that.
        begin: what each does first, if anything.

    Yields:
        A `Later`; its functions raise what the piece raised, and BrokenExecutor where something has killed
        the processes, or they cannot start.
    """
    if processes < 2:
        yield lambda function, *arguments: functools.cache(functools.partial(function, *arguments))
        return
    prepare(modules)
    pool = ProcessPoolExecutor(processes, _context(), _begin, (begin,))

    def later(function: Callable, *arguments: Any) -> Callable[[], Any]:
        try:
            return pool.submit(function, *arguments).result
        except (BrokenExecutor, EOFError, OSError) as error:  # the latter where the one that forks has died
            return functools.partial(_raise, BrokenExecutor(str(error)))

    try:
        yield later
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Not by a fork of this process, which may have threads at work: of one that has only loaded modules.

    On Linux only: elsewhere, systems' own libraries may not survive that either.
    """
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def _begin(first: Callable[[], None] | None) -> None:
    """These processes end with the one that started them."""
    if first:
        first()

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _raise(error: Exception) -> None:
    raise error

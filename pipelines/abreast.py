"""DVC that runs the commands of several stages at once; all else that it does, one stage after the other.

    python -m pipelines.warm --jobs 2 dvc repro

Each stage that runs has a thread, and one thread at a time is in DVC's code, with the project's lock: the
others wait for their commands, as DVC itself lets go of the lock meanwhile. A stage begins when those that it
needs are done. So dvc.lock, the cache and the messages are what `dvc repro` makes, in another order.

A stage that fails ends the command as in DVC, once the stages that run beside it are done and recorded. After
Ctrl-C no stage begins, and those that run stop as they do in DVC, which a training does with a checkpoint.
"""

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dvc.exceptions import ReproductionError
from dvc.log import logger
from dvc.repo import reproduce as repro
from dvc.stage import run as commands

logger = logger.getChild(__name__)


class Baton:
    """Who holds it may be in DVC's code, and has the project's lock."""

    def __init__(self, lock: Any) -> None:
        """Begin with the thread that calls this, and has the lock."""
        self.lock, self.turn, self.holder = lock, threading.Lock(), threading.get_ident()
        self.turn.acquire()

    def take(self) -> None:
        """Wait for it."""
        self.turn.acquire()
        try:
            self.lock.lock()
        except BaseException:
            self.turn.release()
            raise
        self.holder = threading.get_ident()

    def give(self) -> None:
        """Let others have it."""
        self.holder = None
        self.lock.unlock()
        self.turn.release()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have it for a block."""
        self.take()
        try:
            yield
        finally:
            if self.holder == threading.get_ident():  # not if it could not be taken back
                self.give()

    @contextlib.contextmanager
    def given(self) -> Iterator[None]:
        """Let others have it for a block."""
        self.give()
        try:
            yield
        finally:
            self.take()


def reproduce(jobs: int) -> Callable[..., list]:
    """What stands for DVC's `_reproduce`: the stages, several at once."""
    one_by_one = repro._reproduce

    def several(
        stages: list,
        graph: Any = None,
        force_downstream: bool = False,
        on_error: str = "fail",
        force: bool = False,
        **options: Any,
    ) -> list:
        plain = graph is None or force_downstream or on_error != "fail" or options.get("dry")
        if plain or options.get("interactive") or len(stages) < 2:
            return one_by_one(stages, graph, force_downstream, on_error, force, **options)
        return _work_off(stages, graph, jobs, Baton(stages[0].repo.lock), options | {"force": force})

    return several


def _work_off(stages: list, graph: Any, jobs: int, baton: Baton, options: dict) -> list:
    needs = {stage: set(graph.successors(stage)).intersection(stages) for stage in stages}
    waiting, running, done, changed, failed = list(stages), set(), set(), [], []
    ended: queue.SimpleQueue = queue.SimpleQueue()

    def work(stage: Any) -> None:
        try:
            with baton.held():
                result = repro._reproduce_stage(stage, upstream=list(needs[stage]), **options)
                ended.put((stage, result, None))
        except BaseException as error:  # for the thread that waits
            ended.put((stage, None, error))

    with ThreadPoolExecutor(jobs) as threads, _waiting_for_a_turn(baton), _noted_interrupt() as interrupted:
        while True:
            for stage in waiting[:] if not failed and not interrupted else ():
                if len(running) < jobs and needs[stage] <= done:
                    waiting.remove(stage)
                    running.add(stage)
                    threads.submit(work, stage)
            if not running:
                break
            with baton.given():
                stage, result, error = ended.get()
            running.remove(stage)
            done.add(stage)
            changed += [result] if result else []
            if error:
                failed.append((stage, error))
                if running:
                    names = ", ".join(sorted(one.addressing for one in running))
                    logger.error("%s failed; waiting for %s, as they run already", stage.addressing, names)
    if failed:
        repro._raise_error(failed[0][1], *(stage for stage, _ in failed))
    if interrupted:
        raise ReproductionError("interrupted")
    return changed


@contextlib.contextmanager
def _waiting_for_a_turn(baton: Baton) -> Iterator[None]:
    """Have whoever waits for a stage's command let the others into DVC meanwhile."""
    run, unlocked = commands._run, commands.unlocked_repo

    def waiting(*words: Any, **options: Any) -> None:
        with baton.given():
            run(*words, **options)

    # DVC's own would let go of the project's lock twice.
    commands._run, commands.unlocked_repo = waiting, lambda function: function
    try:
        yield
    finally:
        commands._run, commands.unlocked_repo = run, unlocked


@contextlib.contextmanager
def _noted_interrupt() -> Iterator[list[int]]:
    """Numbers of the SIGINTs that came; the stages, in the same terminal, got them too."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)

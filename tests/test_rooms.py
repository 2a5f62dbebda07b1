"""Memory for kernels: nobody gets what somebody works in, and a little is kept."""

import sys
import threading

import pytest
import torch

from lambdanet.kernels import rooms
from lambdanet.kernels.rooms import Rooms
from lambdanet.kernels.threads import share


def test_a_room_goes_back_and_is_given_again():
    kept, made = Rooms(), iter(range(9))
    first = kept.lease("kind", made.__next__)
    second = kept.lease("kind", made.__next__)
    assert (first.room, second.room) == (0, 1)
    del first
    other = kept.lease("other kind", made.__next__)
    again = kept.lease("kind", made.__next__)
    assert (other.room, again.room) == (2, 0)


def test_few_are_kept_the_last_ones():
    kept = Rooms()
    for kind in range(rooms.MOST + 2):
        kept.lease(kind, lambda kind=kind: kind)
    assert list(kept) == list(range(2, rooms.MOST + 2))


def test_what_cannot_be_made_leaves_nothing():
    kept = Rooms()

    def fails():
        raise MemoryError

    with pytest.raises(MemoryError):
        kept.lease("kind", fails)
    assert not kept
    assert kept.lease("kind", lambda: 1).room == 1


def test_threads_never_share_one():
    kept, failed, taken = Rooms(), [], set()

    def work():
        try:
            for turn in range(3000):
                lease = kept.lease(turn % 3, object)
                if id(lease.room) in taken:
                    failed.append("shared")
                taken.add(id(lease.room))
                taken.remove(id(lease.room))
        except Exception as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_work_that_fails_is_left_by_all_threads():
    others, ended = threading.Barrier(3), []

    def work(thread):
        others.wait()
        if thread == 0:
            raise KeyboardInterrupt
        ended.append(thread)

    with pytest.raises(KeyboardInterrupt):
        share(work, 3)
    assert sorted(ended) == [1, 2]


def test_arrays_are_as_kernels_take_them():
    torch.set_default_dtype(torch.float64)
    try:
        for make in (rooms.zeros, rooms.empty):
            assert (make(2, 3).dtype, make(2, 3).shape) == (torch.float32, (2, 3))
    finally:
        torch.set_default_dtype(torch.float32)

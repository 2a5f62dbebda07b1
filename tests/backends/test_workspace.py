"""Memory for kernels: no two calls share one, and few are kept."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lambdanet.backends.cpu import workspace
from lambdanet.backends.cpu.parallel import parallel_for
from lambdanet.backends.cpu.workspace import BLOCK, THREAD, Array, Loan


def test_a_workspace_goes_back_and_is_given_again():
    kept, made = {}, iter(range(9))
    first = Loan(kept, "kind", made.__next__)
    second = Loan(kept, "kind", made.__next__)
    assert (first.workspace, second.workspace) == (0, 1)
    del first
    other = Loan(kept, "other kind", made.__next__)
    again = Loan(kept, "kind", made.__next__)
    assert (other.workspace, again.workspace) == (2, 0)


def test_few_are_kept_the_last_ones():
    kept = {}
    for kind in range(workspace.MOST + 2):
        Loan(kept, kind, lambda kind=kind: kind)
    assert list(kept) == list(range(2, workspace.MOST + 2))


def test_threads_never_share_one():
    kept, taken, interval = {}, set(), sys.getswitchinterval()

    def work(_):
        for turn in range(3000):
            loan = Loan(kept, turn % 3, object)
            assert id(loan.workspace) not in taken
            taken.add(id(loan.workspace))
            taken.remove(id(loan.workspace))

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)


def test_work_that_fails_is_left_by_all_threads():
    others, ended = threading.Barrier(3), []

    def work(thread):
        others.wait()
        if thread == 0:
            raise KeyboardInterrupt
        ended.append(thread)

    with pytest.raises(KeyboardInterrupt):
        parallel_for(work, 3)
    assert sorted(ended) == [1, 2]


@pytest.mark.parametrize("tensor", [
    torch.zeros(3, 2, 4).mT, torch.zeros(3, 4, 2, device="meta"), torch.zeros(6, 4, 2)[::2],
    torch.zeros(3, 4, 2).double(), torch.zeros(2, 4, 2), torch.zeros(3, 2, 4),
    torch.zeros(3, 4, 2, dtype=torch.complex64).conj().imag,
])  # fmt: skip
def test_kernels_get_no_other_arrays(tensor):
    contract, counts = Array((4, 2), BLOCK), {BLOCK: 3, THREAD: 2}
    right = torch.zeros(3, 4, 2)
    assert contract.enter("x", right, counts) == (right.data_ptr(), 32, 0)
    with pytest.raises(TypeError, match=r"^x: a kernel takes \(3, 4, 2\) of torch.float32"):
        contract.enter("x", tensor, counts)

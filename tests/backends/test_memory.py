"""Kernels neither read nor write beyond their arrays; each lies between pages that may not be touched.

As a script: NETWORK AT; `AT` is "start" or "end", which of an array's sides lies at such a page. A kernel
that reads or writes beyond dies there (SIGSEGV); what lies between an array's end and the page, less than a
vector, is looked at after each call. With "beyond", arrays are said to lie a vector further than they do, so
that a right kernel dies. Prints the number of the kernels' calls and of their arrays.
"""

import ctypes
import ctypes.util
import json
import mmap
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from learning import selected

from lambdanet import backends
from lambdanet.backends.cpu import dncnn, lambdanet, parallel, workspace
from lambdanet.models import create_model

PAGE, LINE, MARK, UNTOUCHABLE = mmap.PAGESIZE, 64, 0x5A, 0
libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
counts = {"calls": 0, "arrays": 0}


class Guarded:
    """A copy of an array's memory between two pages that may not be touched."""

    def __init__(self, array, at):
        self.array = array
        sides = zip(array.shape, array.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in sides)
        self.length = extent * array.element_size()
        body = -(-self.length // PAGE) * PAGE
        self.map = mmap.mmap(-1, body + 2 * PAGE)
        whole = np.frombuffer(self.map, np.uint8)
        whole[:] = MARK
        base = whole.ctypes.data
        for place in (base, base + PAGE + body):
            if libc.mprotect(ctypes.c_void_p(place), PAGE, UNTOUCHABLE):
                raise OSError(ctypes.get_errno(), "mprotect")
        # Vectors must lie at multiples of their length.
        self.first = PAGE + (0 if at == "start" else (body - self.length) // LINE * LINE)
        self.body = whole[PAGE : PAGE + body]
        self.content = whole[self.first : self.first + self.length]
        self.address = base + self.first + (LINE if at == "beyond" else 0)
        flat = torch.as_strided(array.detach(), (extent,), (1,), array.storage_offset())
        self.memory = flat.numpy().view(np.uint8).reshape(-1)
        self.content[:] = self.memory
        counts["arrays"] += 1

    def back(self):
        """What the kernels wrote, to the array; nothing else may have changed."""
        self.memory[:] = self.content
        before = self.first - PAGE
        assert (self.body[:before] == MARK).all(), "written before the array"
        assert (self.body[before + self.length :] == MARK).all(), "written behind the array"


def guard(module, at):
    """Give a module's kernels guarded copies; their content is taken back after each call."""
    kept, enter, run = {}, workspace.Array.enter, parallel.parallel_for

    def guarded_enter(contract, name, array, counts):
        _, *steps = enter(contract, name, array, counts)
        key = array.data_ptr()  # some arrays have two names
        if key not in kept or kept[key].array.shape != array.shape:
            kept[key] = Guarded(array, at)
        return kept[key].address, *steps

    def guarded_run(work, threads):
        counts["calls"] += 1
        run(work, threads)
        for one in kept.values():
            one.back()
        if module is dncnn:  # whose arrays are placed for each call
            kept.clear()

    workspace.Array.enter, module.parallel_for = guarded_enter, guarded_run


CASES = {
    "lambdanet": (lambdanet, backends.FUSED, [
        ({"u": 1, "m": 5, "d": 8}, (5, 3, 8, 12)), ({"m": 23}, (18, 3, 32, 32)),
    ]),
    "lambdanet-u4": (lambdanet, backends.FUSED, [
        ({"u": 4, "m": 3, "k": 4, "d": 8}, (3, 3, 6, 8)), ({"u": 2, "m": 7}, (9, 3, 14, 10)),
    ]),
    "dncnn": (dncnn, backends.WINOGRAD, [
        ({"depth": 4, "width": 8}, (2, 3, 7, 9)), ({"depth": 3, "width": 64}, (1, 3, 5, 330)),
    ]),
}  # fmt: skip


def main(name, at):
    torch.set_num_threads(2)
    module, backend, cases = CASES[name]
    guard(module, at)
    for hyperparameters, shape in cases:
        noisy, found = torch.rand(shape, generator=torch.Generator().manual_seed(0)), {}
        for each in (backends.REFERENCE, backend):
            torch.manual_seed(0)
            model = create_model(name.split("-")[0], **hyperparameters)
            with backends.forced(each):
                assert selected(model.train(), noisy) == each
                output = model(noisy)
                output.square().sum().backward()
                with torch.no_grad():
                    evaluated = model.eval()(noisy)
            found[each] = output.detach(), evaluated
        for ours, plain in zip(found[backend], found[backends.REFERENCE], strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
        print(json.dumps({"calls": counts["calls"], "arrays": counts["arrays"]}), flush=True)


def run(network, at):
    return subprocess.run([sys.executable, __file__, network, at], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("network", CASES)
def test_kernels_stay_within_their_arrays(network, at):
    done = run(network, at)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["calls"] >= 18
    assert counts["arrays"] >= 200


@pytest.mark.slow
@pytest.mark.parametrize("network", CASES)
def test_a_kernel_that_would_not_dies(network):
    assert run(network, "beyond").returncode == -signal.SIGSEGV


if __name__ == "__main__":
    main(*sys.argv[1:])

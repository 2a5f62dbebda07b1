import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from lambdanet import devices


def test_auto_takes_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose_device() == torch.device("cuda")
    assert devices.choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "tpu", ""])
def test_absent_device_is_named(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device '{name}' is not available here; choose auto or cpu"):
        devices.choose_device(name)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ends_is_one_line(error):
    pattern = (
        r"^out of memory: \d+\.\d GiB were in use at most, and the cpu has \d+\.\d GiB; lower batch_size$"
    )
    with pytest.raises(ValueError, match=pattern):  # noqa: SIM117
        with devices.memory_errors_in_one_line(torch.device("cpu"), "lower batch_size"):
            raise error


def test_a_batch_beyond_all_memory_is_one_line():
    with pytest.raises(ValueError, match="out of memory"):  # noqa: SIM117
        with devices.memory_errors_in_one_line(torch.device("cpu"), "lower batch_size"):
            torch.empty(2**60)


FAULTS = """
import resource, sys, torch
from lambdanet import devices
if sys.argv[1:]:
    devices.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10, 1024, 1024)  # more than what glibc itself would ever keep
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*(faults() for _ in range(12)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to")
def test_freed_memory_is_used_again():
    if not ctypes.CDLL(None).mallopt(devices.M_MMAP_THRESHOLD, devices.KEPT):
        pytest.skip("this glibc keeps tensors of up to 32 MB only, which it may do by itself")

    def faults(*words):
        done = subprocess.run([sys.executable, "-c", FAULTS, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [int(count) for count in done.stdout.split()]

    first, *_, last = faults("keep")  # the next few may still find a gap that is too small
    assert first > 10  # of huge pages, where the system gives those
    assert last < first / 5
    assert min(faults()) > first / 2

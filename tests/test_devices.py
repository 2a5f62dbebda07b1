import ctypes
import platform
import subprocess
import sys

import helpers
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


def test_deterministic_algorithms_are_on():
    before = torch.are_deterministic_algorithms_enabled()
    try:
        devices.be_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_cpu_is_described_with_its_threads():
    kind, *_, threads = devices.describe_device(torch.device("cpu")).split(", ")
    assert kind == "cpu"
    assert threads == f"{torch.get_num_threads()} threads"


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


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"):  # noqa: SIM117
        with devices.memory_errors_in_one_line(torch.device("cpu"), "lower batch_size"):
            raise RuntimeError("shapes differ")


def test_a_batch_beyond_all_memory_is_one_line():
    with pytest.raises(ValueError, match="out of memory"):  # noqa: SIM117
        with devices.memory_errors_in_one_line(torch.device("cpu"), "lower batch_size"):
            torch.empty(2**60)


# Three steps of Adam on a small network; prints the weights and whether torch.compile was loaded.
STEPS = """
import sys, torch
from lambdanet import devices

devices.be_deterministic()
if sys.argv[1] == "out":
    devices.leave_compiler_out()
    devices.leave_compiler_out()
torch.manual_seed(0)
network = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(network.parameters(), lr=0.1, weight_decay=0.01, fused=True)
for _ in range(3):
    optimizer.zero_grad()
    network(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled()
optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
print([p.tolist() for p in network.parameters()])
print("torch._dynamo" in sys.modules, "torch._inductor" in sys.modules)
"""


def test_adam_computes_the_same_without_the_compiler():
    out = {}
    for how in ("in", "out"):
        words = [sys.executable, "-c", STEPS, how]
        out[how] = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    assert out["out"][0] == out["in"][0]
    assert (out["out"][1], out["in"][1].split()[0]) == ("False False", "True")


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


def test_nothing_needs_what_only_unix_has():
    code = (
        "import filelock, psutil, sys, torch\n"  # these look for themselves
        "sys.modules.update(dict.fromkeys(['resource', 'fcntl', 'pwd', 'grp', 'termios']))\n"
        "from lambdanet import cli, devices\n"
        "print(devices.peak_memory(torch.device('cpu')) > 2**20)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=helpers.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")

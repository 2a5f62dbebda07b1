"""Which device runs, and that it computes the same bytes twice.

Not a dependency in DVC: where a result was computed is recorded, not hashed.
"""

import contextlib
import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator

import psutil
import torch

from lambdanet import backends

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 2**30  # bytes: larger blocks still come from the kernel and go back to it


def choose_device(name: str = "auto") -> torch.device:
    """Take `name`, or with "auto" CUDA where there is one, else the CPU.

    "cpu/portable" takes a device and, from now on, a backend (`lambdanet.backends`).

    Raises:
        ValueError: the device or the backend is unknown or absent.
    """
    name, _, backend = str(name).partition("/")  # a torch.device too
    if backend:
        backends.force(backend)
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    if name == "auto":
        return torch.device(available[0])
    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
        if device.type in available:
            torch.empty(0, device=device)
            if device.index is not None and device.type == "cuda":
                torch.cuda.set_device(device)  # streams and Triton's kernels go to the current one
            return device
    raise ValueError(f"device {name!r} is not available here; choose auto or {', '.join(available)}")


def be_deterministic() -> None:
    """Let torch use deterministic algorithms only; call before the first use of CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same flag as `torch.use_deterministic_algorithms`, which loads torch.compile, for seconds, only
    # to tell it; if anything loads that later, it finds the flag in the environment.
    torch.set_deterministic_debug_mode("error")
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32: torch's convolutions would take 10 bits
    # Filling fresh memory with NaN is a debugging aid of the mode above; it costs up to a tenth.
    torch.utils.deterministic.fill_uninitialized_memory = False


def keep_freed_memory() -> None:
    """Have glibc keep what tensors give back, for the next ones, instead of returning it to the kernel.

    Otherwise the large tensors of each step are fresh pages, which the kernel clears one by one; where a
    network computes little for its size, as LambdaNet does, that is a large share of the time. Other C
    libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None).mallopt
        allocator(M_TRIM_THRESHOLD, KEPT)
        allocator(M_MMAP_THRESHOLD, KEPT)


def prepare(name: str = "auto") -> torch.device:
    """Get this process ready to compute the same bytes twice, and take a device; see `choose_device`.

    Raises:
        ValueError: the device or the backend is unknown or absent.
    """
    be_deterministic()
    keep_freed_memory()
    return choose_device(name)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has had at most on a device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextlib.contextmanager
def memory_errors_in_one_line(device: torch.device, advice: str) -> Iterator[None]:
    """Turn what torch says when memory ends into one line: the peak, the limit and what to change.

    Raises:
        ValueError: there was not enough.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "allocate memory" not in str(error):
            raise
        if device.type == "cuda":
            limit = torch.cuda.get_device_properties(device).total_memory
        else:
            limit = psutil.virtual_memory().total
        raise ValueError(
            f"out of memory: {peak_memory(device) / 2**30:.1f} GiB were in use at most, "
            f"and the {device.type} has {limit / 2**30:.1f} GiB; {advice}"
        ) from None


def describe_device(device: torch.device) -> str:
    """Name the device: the GPU's name, or the CPU's and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        processor = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    return f"{device.type}, {processor}, {torch.get_num_threads()} threads"

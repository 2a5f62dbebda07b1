"""What the benchmarks share: calls in turns, their medians, and the machine that they ran on."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata

import psutil
import torch

from lambdanet.devices import describe_device, keep_freed_memory
from pipelines.placement import cores

FEWEST = 3  # turns, however long they take
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve")
PACKAGES = (
    "torch", "numpy", "scikit-image", "llvmlite", "lambda-networks", "timm", "torchmetrics", "bm3d",
    "opencv-python-headless", "PyWavelets",
)  # fmt: skip
VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "LD_PRELOAD")

clock = time.perf_counter


def interleave(
    methods: dict[str, Callable[[], object]], repeats: int, *, limit: float = 20
) -> dict[str, list[float]]:
    """Call each method once to warm up, then all of them in turns, every other turn in reverse.

    What else the machine does so strikes all methods alike, and all have an allocator that keeps freed
    memory, as our trainings do.

    Args:
        methods: what to time, by name.
        repeats: turns.
        limit: seconds after which no further turn begins, `FEWEST` of them aside.

    Returns:
        Seconds of each call, by name.
    """
    keep_freed_memory()
    for call in methods.values():
        call()
    seconds = {name: [] for name in methods}
    names, began = list(methods), clock()
    for turn in range(repeats):
        if turn >= FEWEST and clock() - began > limit:
            break
        for name in reversed(names) if turn % 2 else names:
            start = clock()
            methods[name]()
            seconds[name].append(clock() - start)
    return seconds


def medians(seconds: dict[str, list[float]], count: int = 1) -> dict[str, float]:
    """Median seconds of a call, divided by the `count` images that it takes."""
    return {name: statistics.median(values) / count for name, values in seconds.items()}


def duration(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = clock()
    call()
    return clock() - start


def machine() -> dict:
    """The machine, as far as it decides a time."""
    described = {
        "processor": describe_device(torch.device("cpu")).split(", ")[1],
        "cores": len(cores()),
        "threads": torch.get_num_threads(),
        "flags": _flags(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    if torch.cuda.is_available():
        described["gpu"] = describe_device(torch.device("cuda"))
    return described


def versions() -> dict[str, str | None]:
    """Versions of what is measured, None for what is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def warn_if_busy() -> float:
    """Percent of the processor that something else uses; if much, stderr says so.

    Times are wrong then, and ratios less sure.
    """
    if (busy := psutil.cpu_percent(1)) > 20:
        print(f"warning: the processor is {busy:.0f} % busy with something else", file=sys.stderr)
    return busy


def _flags() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            words = next(line for line in file if line.lower().startswith(("flags", "features"))).split()
    except (OSError, StopIteration):
        return []
    return [flag for flag in FLAGS if flag in words]

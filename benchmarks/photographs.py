"""One large photograph through each network: time, memory, and whether its tiles show.

    python -m benchmarks.photographs [--quick]

Every network has a process of its own, and before each size gives back what memory is free in it.
"""

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from benchmarks import pictures
from benchmarks.measuring import duration
from benchmarks.tables import Table, Value, command
from lambdanet import devices
from lambdanet.inference.denoise import TILE, denoise_photograph

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("lambdanet", "lambdanet-u4-m7", "autoencoder", "dncnn")
SIDES = (128, 256, 512, 1024, 2048)
COMPARED = 1024  # the side at which tiles are set beside the whole
LONGEST = 90  # seconds that a size may be expected to take
ENOUGH = 3  # seconds after which a size is not timed again
CPU = torch.device("cpu")

Result = dict[str, Value]


def measure(quick: bool = False) -> Iterator[Table]:
    """Time and weigh one photograph of several sizes, and compare tiles with the whole."""
    sides = SIDES[:2] if quick else SIDES
    found, failed = {}, []
    for name in NETWORKS:
        results, reason = _in_a_process(name, sides)
        found |= {(name, result["side"]): result for result in results}
        failed += [f"{name} ended before it was through: {reason}"] if reason else []
    notes = [
        "memory: the most that the process held during the call, less what it held before.",
        f"Empty: it would have taken longer than {LONGEST} s here.",
    ]
    about = (
        "One noisy photograph of 16 bits through `denoise_photograph` (float32, tiles of at least "
        f"{TILE}, {torch.get_num_threads()} threads), each network in a process of its own after a warm-up "
        "on a small one."
    )
    for title, key in (("Seconds of a photograph", "seconds"), ("Memory of a photograph, MB", "megabytes")):
        rows = [
            {"network": name} | {f"{side} x {side}": found.get((name, side), {}).get(key) for side in sides}
            for name in NETWORKS
        ]
        yield Table(title, about, rows, failed + notes)
    if COMPARED in sides:
        yield _compared(found)


def _compared(found: dict[tuple[str, int], Result]) -> Table:
    rows = [
        {"network": name, "difference, of 65535": found.get((name, COMPARED), {}).get("difference")}
        for name in NETWORKS
    ]
    about = (
        f"The largest difference between a photograph of {COMPARED} x {COMPARED} in tiles and the same one "
        "as a whole, in steps of its 16 bits."
    )
    return Table("Tiles beside the whole", about, rows)


def one(model: nn.Module, side: int) -> Result:
    """Measure a network on one size."""
    image = pictures.photograph(side)
    _give_back()
    before, output, seconds = _begin_peak(), [], []

    def run() -> None:
        output[:] = [denoise_photograph(model, image, CPU)]

    seconds.append(duration(run))
    result = {"side": side, "megabytes": (_peak() - before) / 1e6}
    while len(seconds) < 3 and sum(seconds) < ENOUGH:
        seconds.append(duration(run))
    result["seconds"] = median(seconds)
    if side == COMPARED:
        whole = denoise_photograph(model, image, CPU, tile=side)
        result["difference"] = int(np.abs(whole.astype(int) - output[0]).max())
    return result


def print_all(name: str, sides: list[int]) -> None:
    """What `measure` starts as a process: a line of JSON on stdout for each size."""
    devices.keep_freed_memory()
    model = pictures.trained(name)
    denoise_photograph(model, pictures.photograph(64), CPU)
    seconds, before = 0.0, 1
    for side in sides:
        if seconds * (side / before) ** 2 > LONGEST:
            break
        result = one(model, side)
        seconds, before = result["seconds"], side
        print(json.dumps(result), flush=True)


def _in_a_process(name: str, sides: Sequence[int]) -> tuple[list[Result], str]:
    """What was measured, and what ended it too early, if anything did."""
    code = f"from benchmarks import photographs; photographs.print_all({name!r}, {list(sides)})"
    own = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | own, capture_output=True, text=True
    )
    reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
    return [json.loads(line) for line in done.stdout.splitlines()], reason[0] if done.returncode else ""


def _give_back() -> None:
    """Free memory to the system, where the C library can do that."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _begin_peak() -> int:
    """Bytes held now; from here on `_peak` counts, where the system can start anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _peak()


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


main = command(measure)

if __name__ == "__main__":
    main()

"""How many stages this machine runs at once, and what share of it each gets."""

import os
import subprocess

import psutil

from lambdanet.workers import available

MEMORY = 2 * 2**30  # bytes for a stage


def usual_jobs() -> int:
    """As many as there are cores and as fit into memory; where there is a GPU, one."""
    if gpus():
        return 1
    return max(1, min(available(), psutil.virtual_memory().available // MEMORY))


def share(jobs: int) -> dict[str, str]:
    """What is set for each of `jobs` stages at once: its share of the cores, and how many there are in all.

    The latter is for the last stages, `plot` and `register`, which run alone and start processes.
    """
    cores = available()
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs)), "LAMBDANET_CORES": str(cores)}


def environment(jobs: int) -> dict[str, str]:
    """The same for stages that print into one terminal: whole lines, not bars; nothing for one at a time."""
    return {} if jobs == 1 else share(jobs) | {"LAMBDANET_PROGRESS": "lines"}


def gpus() -> list[str]:
    """The GPUs that this process may use, by what CUDA_VISIBLE_DEVICES calls them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, _ in enumerate(listed.splitlines())]

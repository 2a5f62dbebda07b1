"""Where stages run: places on this machine, one a GPU or a core, or a Dask cluster's workers."""

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import psutil

from pipelines import stage, workspace

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

LOCAL = "local"
_NO_PAGES = {"dashboard_address": "127.0.0.1:0"}  # Dask's own listen on all addresses
MEMORY = 2 * 2**30  # bytes for a stage on a CPU
_UUID = re.compile(r"^GPU \d+: .*\(UUID: (GPU-[\w-]+)\)", re.MULTILINE)
WHERE = "local, dask:ADDRESS, slurm[:QUEUE], ssh:HOST,HOST or cuda"


def gpus() -> list[str]:
    """The GPUs that this process may use, by UUID or as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return _UUID.findall(listed)  # a MIG slice stands in an indented line below its card


def places(jobs: int | None = None) -> list[tuple[str, dict[str, str]]]:
    """The names of the places for stages on this machine, with the environment of a stage there.

    Args:
        jobs: how many; default: one a GPU, else one a core as far as there is memory.
    """
    cards = gpus()
    if not cards:
        fit = min(available(), psutil.virtual_memory().available // MEMORY)
        return [(f"cpu-{number}", {}) for number in range(jobs or max(1, fit))]
    numbers = range(jobs or len(cards))
    named = [(cards[number % len(cards)], number // len(cards)) for number in numbers]
    return [(f"{card}-{number}".replace("/", "-"), {"CUDA_VISIBLE_DEVICES": card}) for card, number in named]


def available() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def place(folder: Path, jobs: int | None, stopping: threading.Event) -> Iterator[dict[str, str]]:
    """Wait for a free place and hold it for the time of the block; yields the stage's environment.

    Places are locks in a folder, so that all runs on this machine share them; a killed process frees its own.

    Raises:
        StoppedError: `stopping` was set meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = places(jobs)
    while not stopping.is_set():
        for name, environment in found:
            lock = filelock.FileLock(folder / f"{name}.lock", timeout=0, thread_local=False)
            try:
                lock.acquire()
            except filelock.Timeout:
                continue
            try:
                yield environment
            finally:
                lock.release()
            return
        stopping.wait(0.3)
    raise stage.StoppedError("stopped before it began")


def task_runner(where: str, jobs: int | None, stages: int) -> "TaskRunner":
    """Prefect's task runner for a place; see `WHERE`.

    Args:
        where: "local", a running scheduler's address, or a cluster to start.
        jobs: workers of a cluster that is started here; default: as many as there is work for, at most 16.
        stages: how many stages there are.

    Raises:
        ValueError: there is no such place, or a package for it is not installed.
    """
    if where == LOCAL:
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=max(1, stages))  # a thread waits for what its stage needs
    kind, _, rest = where.partition(":")
    try:
        from prefect_dask import DaskTaskRunner

        settings = _dask(kind, rest, jobs or min(stages, 16))
    except ImportError as error:
        raise ValueError(f"--where {kind} needs {error.name}: pip install 'lambdanet[dask]'") from None
    return DaskTaskRunner(**settings)


def _dask(kind: str, rest: str, jobs: int) -> dict:
    import dask
    from distributed.security import Security

    # A worker that dies takes its stage with it three times by default before Dask gives the stage up.
    dask.config.set({"distributed.scheduler.allowed-failures": 10})
    if kind == "dask" and rest:
        return {"address": rest if "://" in rest else f"tcp://{rest}"}
    if kind == "slurm":
        from dask_jobqueue import SLURMCluster

        # cores, memory, walltime, job_extra_directives: the section jobqueue.slurm of Dask's configuration.
        queue = {"queue": rest} if rest else {}
        shared = str(workspace.temporary(Path.cwd()))
        keys = {"security": Security.temporary(), "shared_temp_directory": shared}
        settings = {"cores": 1, "processes": 1, "memory": dask.config.get("jobqueue.slurm.memory") or "16GB"}
        return {
            "cluster_class": SLURMCluster,
            "cluster_kwargs": settings | queue | keys | {"scheduler_options": _NO_PAGES},
            "adapt_kwargs": {"minimum": 1, "maximum": jobs},
        }
    if kind == "ssh" and rest:
        from distributed import SSHCluster

        hosts, security = rest.split(","), Security.temporary()
        # The hosts' processes take these from Dask's configuration here, which SSHCluster sends them.
        dask.config.set({"distributed.comm.require-encryption": True} | {
            f"distributed.comm.tls.{role}.{part}": value
            for role in ("scheduler", "worker", "client")
            for part, value in security.get_tls_config_for_role(role).items() if part in ("key", "cert")
        } | {"distributed.comm.tls.ca-file": security.tls_ca_file})  # fmt: skip
        worker = {"nthreads": 1, "n_workers": 1}
        scheduler = {"protocol": "tls://", **_NO_PAGES}
        return {
            "cluster_class": SSHCluster,
            "cluster_kwargs": {
                "hosts": [hosts[0], *hosts],
                "worker_options": worker,
                "scheduler_options": scheduler,
                "security": security,
            },
        }
    if kind == "cuda":
        from dask_cuda import LocalCUDACluster

        return {
            "cluster_class": LocalCUDACluster,
            "cluster_kwargs": {"CUDA_VISIBLE_DEVICES": gpus(), "threads_per_worker": 1},
        }
    raise ValueError(f"--where {kind}{':' * bool(rest)}{rest} is not one of {WHERE}")

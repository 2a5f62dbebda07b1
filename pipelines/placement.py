"""Where stages run: slots of this machine, one a GPU or a core, or a Dask cluster's workers."""

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import psutil

from pipelines import stage, workspace

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

LOCAL = "local"
WHERE = "local, dask:ADDRESS, slurm[:QUEUE] or ssh:HOST,HOST"
MEMORY = 2 * 2**30  # bytes for a stage on a CPU
_UUID = re.compile(r"^GPU \d+: .*\(UUID: (GPU-[\w-]+)\)", re.MULTILINE)
_NO_PAGES = {"dashboard_address": "127.0.0.1:0"}  # Dask's default listens on all addresses


def gpus() -> list[str]:
    """The GPUs that this process may use, by UUID or as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = ""
    cards = _UUID.findall(listed)  # a MIG slice stands in an indented line below its card
    if visible is None:
        return cards
    named = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    # Jobs that a cluster gives different cards may all call theirs 0.
    return [cards[int(name)] if name.isdigit() and int(name) < len(cards) else name for name in named]


def slots(jobs: int | None = None) -> list[tuple[str, dict[str, str]]]:
    """The names of this machine's slots, with the environment of a stage there.

    There are `jobs`; by default one a GPU, else one a core as far as there is memory.
    """
    cards, free = gpus(), cores()
    names = cards or [f"cpu-{core}" for core in free]
    fit = len(cards) or max(1, min(len(free), psutil.virtual_memory().available // MEMORY))
    found = []
    for number in range(jobs or fit):
        turn, place = divmod(number, len(names))
        environment = {"CUDA_VISIBLE_DEVICES": names[place]} if cards else {}
        found.append((f"{names[place]}-{turn}".replace("/", "-"), environment))
    return found


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def slot(clone: Path, jobs: int | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """Wait for a free slot and hold it for the time of the block; yields its name and the environment.

    Slots are locks in a folder of a clone, so that all its runs on this machine share them; a killed process
    frees its slot. Who starts workers, here or as Slurm's jobs, says by LAMBDANET_SLOTS how many there are.

    Raises:
        StageError: `stage.stopping` was set meanwhile.
    """
    folder = workspace.temporary(clone) / "slots" / socket.gethostname()
    folder.mkdir(parents=True, exist_ok=True)
    found = slots(jobs or int(os.environ.get("LAMBDANET_SLOTS", "0")) or None)
    while not stage.stopping.is_set():
        for name, environment in found:
            lock = filelock.FileLock(folder / f"{name}.lock", thread_local=False)
            try:
                held = lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            with held:
                yield name, environment
            return
        stage.stopping.wait(0.3)
    raise stage.StageError("stopped before it began")


@contextlib.contextmanager
def while_wanted() -> Iterator[None]:
    """On a Dask worker, stop the stage of the block once the flow that sent it has ended, as by Ctrl-C."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads > 1:  # what stops one stage stops all of its process
        raise stage.StageError("a Dask worker runs one stage at a time: start it with --nthreads 1")
    sent = worker.state.tasks[worker.get_current_task()]
    stage.stopping.clear()  # an earlier stage of this worker may have set it

    def look() -> None:
        if sent.state == "cancelled":  # nobody waits for it
            stage.stopping.set()

    with stage.repeating(look, 0.5):
        yield


def check(where: str) -> None:
    """Refuse what `task_runner` does not know, before Prefect is loaded.

    Raises:
        ValueError: there is no such place.
    """
    if not re.match("(local|slurm)$|(slurm|dask|ssh):.", where):
        raise ValueError(f"--where {where} is not one of {WHERE}")


def task_runner(where: str, jobs: int | None, stages: int) -> "TaskRunner":
    """Prefect's task runner for a place, see `WHERE`; `jobs` at once here, or workers of a Slurm cluster.

    Raises:
        ValueError: there is no such place, or a package for it is not installed.
    """
    check(where)
    if where == LOCAL:
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=len(slots(jobs)))
    kind, _, rest = where.partition(":")
    try:
        import dask
        from prefect_dask import DaskTaskRunner

        # A worker that dies takes its stage with it three times by default before Dask gives the stage up.
        dask.config.set({"distributed.scheduler.allowed-failures": 10})
        if kind == "dask":
            return DaskTaskRunner(address=rest if "://" in rest else f"tcp://{rest}")
        if kind == "ssh":
            return DaskTaskRunner(**_ssh(rest.split(",")))
        return DaskTaskRunner(**_slurm(rest, jobs or min(stages, 16)))
    except ImportError as error:
        raise ValueError(f"--where {kind} needs {error.name}: pip install 'lambdanet[dask]'") from None


def _slurm(queue: str, jobs: int) -> dict[str, Any]:
    import dask

    ctrl_c = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.slurm import SLURMJob

    if signal.getsignal(signal.SIGINT) is not ctrl_c:
        signal.signal(signal.SIGINT, ctrl_c)  # dask_jobqueue's handler ends this process with status 0
    # memory, walltime, job-cpu, job-extra-directives: the section jobqueue.slurm of Dask's configuration.
    given, here = dask.config.get("jobqueue.slurm"), str(workspace.temporary(Path.cwd()))
    settings = {
        "cores": 1,
        "processes": 1,
        "queue": queue or None,
        "memory": given["memory"] or "16GB",
        "worker_extra_args": [*given["worker-extra-args"], "--no-dashboard"],
        "job_script_prologue": [*given["job-script-prologue"], f"export LAMBDANET_SLOTS={jobs}"],
        "log_directory": given["log-directory"] or f"{here}/slurm",  # else files in the project
    }
    # Dask does not say that Slurm refuses its jobs, and waits for workers.
    script = SLURMJob("tcp://127.0.0.1:0", "test", **settings).job_script()
    try:
        tried = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError("--where slurm needs the command sbatch of a Slurm cluster") from None
    if tried.returncode:
        raise ValueError(f"Slurm refuses the job: {' '.join(tried.stderr.split())}")
    settings |= {"security": True, "shared_temp_directory": here, "scheduler_options": _NO_PAGES}
    adapt = {"minimum": 1, "maximum": jobs}
    return {"cluster_class": SLURMCluster, "cluster_kwargs": settings, "adapt_kwargs": adapt}


def _ssh(hosts: list[str]) -> dict[str, Any]:
    import dask
    from distributed import SSHCluster
    from distributed.security import Security

    security = Security.temporary()
    # The hosts' processes take these from Dask's configuration here, which SSHCluster sends them.
    tls = {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": security.tls_ca_file}
    for role in ("scheduler", "worker", "client"):
        found = security.get_tls_config_for_role(role)
        tls |= {f"distributed.comm.tls.{role}.{part}": found[part] for part in ("key", "cert")}
    dask.config.set(tls)
    settings = {
        "hosts": [hosts[0], *hosts],  # the first is the scheduler's
        "worker_options": {"nthreads": 1, "n_workers": 1},
        "scheduler_options": {"protocol": "tls://", **_NO_PAGES},
        "security": security,
    }
    return {"cluster_class": SSHCluster, "cluster_kwargs": settings}

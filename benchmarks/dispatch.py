"""What Prefect and Dask cost a stage: empty stages, and stages of five minutes, on simulated workers.

    python -m benchmarks.dispatch [--stages 1000] [--workers 100] [--scale 30]

Simulated: a worker is a thread in one of two processes (Dask's LocalCluster), a stage is a task that
sleeps, for nothing or for 5 minutes divided by `scale`, and needs no other stage. Real: the flow, its
task runner and `flows.run_all`, which submits them as `reproduce` does, and Prefect's server, the one of
PREFECT_API_URL. Prints the time a stage and the processor time of the coordinator, which is this process
with the flow and Dask's scheduler; how long a worker waits between two stages; and what that leaves of a
worker whose stages take 5 minutes.
"""

import os
import threading
import time
from collections import defaultdict
from statistics import mean, median

import click
from prefect import flow, task
from prefect_dask import DaskTaskRunner

from pipelines import flows

STAGE_SECONDS = 300
PROCESSES = 2


@task(name="stage", task_run_name="{name}", persist_result=False)
def simulated(name: str, seconds: float) -> str:
    """Sleep; the worker, and when it began and ended."""
    began = time.monotonic()
    time.sleep(seconds)
    return f"{os.getpid()}-{threading.get_ident()} {began} {time.monotonic()}"


@flow(name="dispatch", persist_result=False)
def dispatch(stages: int, workers: int, seconds: float) -> tuple[float, float, list[str]]:
    """Run stages; seconds and processor seconds of this process, and what `simulated` returned."""
    settings = {"n_workers": PROCESSES, "threads_per_worker": workers // PROCESSES, "dashboard_address": None}
    with DaskTaskRunner(cluster_kwargs=settings) as runner:
        began, used = time.monotonic(), time.process_time()
        names = {f"train@{number}": frozenset() for number in range(stages)}
        ended = flows.run_all(runner, simulated, names, lambda _name, _how: None, seconds=seconds)
        return time.monotonic() - began, time.process_time() - used, list(ended.values())


@click.command()
@click.option("--stages", default=1000, show_default=True, type=click.IntRange(2))
@click.option("--workers", default=100, show_default=True, type=click.IntRange(PROCESSES))
@click.option("--scale", default=30.0, show_default=True, type=click.FloatRange(1))
def main(stages: int, workers: int, scale: float) -> None:
    """Measure and print; see the module's docstring."""
    if "PREFECT_API_URL" not in os.environ:
        raise click.ClickException("set PREFECT_API_URL: `make up` starts Prefect's server")
    print(f"{stages} stages, {workers} simulated workers")
    took, used, _ = dispatch(stages, workers, 0.0)
    each, work = (1000 * seconds / stages for seconds in (took, used))
    print(f"empty stages: {each:.0f} ms a stage, {work:.0f} ms of the coordinator's processor time")
    took, _, ended = dispatch(stages, workers, STAGE_SECONDS / scale)
    busy = defaultdict(list)
    for worker, began, end in (line.split() for line in ended):
        busy[worker].append((float(began), float(end)))
    gaps = [later[0] - earlier[1] for spans in busy.values()
            for earlier, later in zip(sorted(spans), sorted(spans)[1:], strict=False)]  # fmt: skip
    used = sum(end - began for spans in busy.values() for began, end in spans) / (took * workers)
    print(f"stages of {STAGE_SECONDS / scale:.0f} s (5 minutes / {scale:.0f}): workers busy {used:.1%}")
    if gaps:
        print(f"a worker waits {median(gaps):.2f} s between two stages (median; mean {mean(gaps):.2f} s)")
        print(f"of 5-minute stages that leaves {STAGE_SECONDS / (STAGE_SECONDS + mean(gaps)):.1%}")


if __name__ == "__main__":
    main()

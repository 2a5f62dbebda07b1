"""A simulated grid: how DVC's files and Prefect's server bear many cells of stages that do nothing.

    python -m benchmarks.grid [--cells 1000] [--run 20]

Two parts, on a project made for it. DVC: the time of a no-op, of reading the graph, and of each stage
when so many are recorded; only `--run` stages are really run. Prefect: a real server and the real
coordinator ask for a run of every cell, and a stand-in for the workers ends each at once.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median

import click
import yaml

from benchmarks.orchestration import DVC, ROOT
from pipelines import processes
from pipelines.rehearsal import free_port

SIZES = (20, 100, 1000)


@click.command()
@click.option("--cells", default=1000, show_default=True, type=click.IntRange(20))
@click.option("--run", "count", default=20, show_default=True, type=click.IntRange(1))
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Leave Prefect's server up, in this new folder."
)
def main(cells: int, count: int, keep: Path | None) -> None:
    """Measure and print; see the module's docstring."""
    with tempfile.TemporaryDirectory() as temporary:
        for size in sorted({min(size, cells) for size in (*SIZES, cells)}):
            _dvc(Path(temporary, f"cells{size}"), size, min(count, size))
        _prefect(keep or Path(temporary, "prefect"), cells, bool(keep))


def _dvc(folder: Path, size: int, count: int) -> None:
    """Run some stages of a project with `size` of them, all the others recorded as done."""
    folder.mkdir()
    names = [f"c{number:05d}" for number in range(size)]
    (folder / "params.yaml").write_text(yaml.safe_dump({"cells": names}))
    stage = {
        "matrix": {"cell": "${cells}"},
        "cmd": "cp source out/${item.cell}",
        "deps": ["source"],
        "outs": ["out/${item.cell}"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"cell": stage}}))
    (folder / "source").write_text("nothing\n")
    (folder / "out").mkdir()
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    for name in names:
        (folder / "out" / name).write_text("nothing\n")
    recording = _seconds([*DVC, "commit", "-f"], folder)
    lock = folder / "dvc.lock"
    nothing = _seconds([*DVC, "repro"], folder)
    none = _seconds([sys.executable, "-m", "pipelines.reproduce"], folder)
    stages = yaml.safe_load(lock.read_text())
    for name in names[:count]:
        del stages["stages"][f"cell@{name}"]
        (folder / "out" / name).unlink()
    lock.write_text(yaml.safe_dump(stages))
    (folder / "source").write_text("nothing\n")
    each = [
        _seconds([*DVC, "--wait-for-lock", "repro", "--single-item", f"cell@{name}"], folder)
        for name in names[: min(5, count)]
    ]
    together = _seconds([sys.executable, "-m", "pipelines.reproduce", "--jobs", "2"], folder)
    rest = count - len(each)
    print(
        f"{size} stages: dvc.lock {lock.stat().st_size / 1e3:.0f} kB, recorded at once in {recording:.1f} s; "
        f"nothing to do: dvc repro {nothing:.1f} s, reproduce {none:.1f} s; "
        f"one stage by dvc {median(each):.2f} s; "
        f"{rest} by reproduce --jobs 2 {together / max(1, rest):.2f} s each",
        flush=True,
    )


def _seconds(command: list[str], folder: Path) -> float:
    own = {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", "PREFECT_HOME": str(folder / ".prefect")}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}: {(done.stderr + done.stdout)[-1000:]}")
    return time.perf_counter() - start


def _prefect(folder: Path, cells: int, keep: bool) -> None:
    folder.mkdir()
    port = free_port()
    own = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment = os.environ | own | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    processes.start(folder, "server", processes.prefect_server(port), environment)
    try:
        processes.wait_for(folder, "server", f"http://127.0.0.1:{port}/api/health")
        code = f"from benchmarks import grid; grid.simulate({cells})"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    finally:
        if keep:
            print(f"the server stays at http://127.0.0.1:{port}, process {folder / 'server.pid'}")
        else:
            processes.stop(folder, "server")


def simulate(cells: int) -> None:
    """In a process that knows the server: the coordinator's loop over `cells` runs that end at once."""
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from pipelines import grid
    from pipelines.console import Console
    from pipelines.reproduce import work_off

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="simulated", type="process"))
        one = client.create_flow_from_name("stage")
        parameters = {"type": "object", "properties": {}}
        client.create_deployment(
            flow_id=one, name="worker", work_pool_name="simulated", parameter_openapi_schema=parameters
        )
        names = {f"cell@{number:05d}": frozenset() for number in range(cells)}
        left, answers = threading.Event(), []
        threads = [
            threading.Thread(target=work, args=arguments, daemon=True)
            for work, arguments in ((_work, (left,)), (_ask, (left, answers)))
        ]

        @flow(name="reproduce", persist_result=False)
        def reproduce() -> dict[str, str]:
            console = Console(cells, lambda _text: None)
            runs = grid.Runs(client, "stage/worker", {"commit": "simulated"}, console)
            return work_off(names, grid.OUTSTANDING, runs.submit, runs.wait, console)

        for thread in threads:
            thread.start()
        start = time.perf_counter()
        ended = reproduce()
        seconds = time.perf_counter() - start
        left.set()
    done = sum(how == "run" for how in ended.values())
    print(
        f"{done} of {cells} runs asked for and ended: {seconds:.0f} s, {1000 * seconds / cells:.0f} ms each; "
        f"meanwhile the server answered in {1000 * median(answers):.0f} ms (median), "
        f"{1000 * max(answers):.0f} ms at the worst"
    )


def _work(left: threading.Event) -> None:
    """A stand-in for many workers: whatever is scheduled runs and is completed at once."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Completed, Pending, Running

    scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    with get_client(sync_client=True) as client:
        while not left.is_set():
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=scheduled), limit=50)
            for run in runs:
                for state in (Pending(), Running(), Completed()):
                    client.set_flow_run_state(run.id, state, force=True)
            if not runs:
                time.sleep(0.2)


def _ask(left: threading.Event, answers: list[float]) -> None:
    """What a person's browser does: ask for a page of runs, again and again."""
    url = f"{os.environ['PREFECT_API_URL']}/flow_runs/paginate"
    while not left.wait(2):
        request = urllib.request.Request(
            url, b'{"page": 1, "limit": 50}', {"Content-Type": "application/json"}
        )
        start = time.perf_counter()
        urllib.request.urlopen(request, timeout=60).read()
        answers.append(time.perf_counter() - start)


if __name__ == "__main__":
    main()

"""Set up and start what the flows need: pools, deployments, an automation, servers and workers.

python -m pipelines.cluster init          # once a server, and after each change of prefect.yaml
python -m pipelines.cluster workers       # this machine's workers, one a GPU, until it is stopped
python -m pipelines.cluster up            # servers and workers on this machine, to see it work
python -m pipelines.cluster down          # ends what `up` started
"""

import contextlib
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines import clone, processes, versions
from pipelines.cores import available, gpus
from pipelines.reproduce import HEARTBEAT

if TYPE_CHECKING:
    from prefect.automations import AutomationCore

POOL, FLOWS_POOL = "lambdanet-workers", "lambdanet-flows"
QUEUE = "default"
WITHIN_SECONDS = 90
LOST_MESSAGE = f"no heartbeat for {WITHIN_SECONDS} s: its worker is lost"
OURS = ("reproduce", "reproduce-here", "train", "stage", "experiment")
LOST = "lambdanet: a flow run without heartbeats has crashed"
TAKEN_UP = "lambdanet: a flow that crashed is taken up again"
FOLDER = Path(".cluster")
PORTS = {"prefect": 4200, "mlflow": 5000}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Servers, workers and what they need; see docs/cluster.md."""


@main.command()
def init() -> None:
    """Create or bring up to date: work pools, deployments, the automations that notice lost runs."""
    _need_server()
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        for pool, about in (
            (POOL, "One stage at a time on each GPU, or on each machine without one."),
            (FLOWS_POOL, "The flows that ask for stages and wait; they need no GPU."),
        ):
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", description=about))
        for wanted in _automations():
            for old in client.read_automations_by_name(wanted.name):
                client.delete_automation(old.id)
            client.create_automation(wanted)
    # Prefect's own command reads prefect.yaml; it knows nothing of a terminal here.
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(deploy, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: prefect deploy: {' '.join((done.stderr or done.stdout).split())[:800]}")
    click.echo(f"there are pools {POOL} and {FLOWS_POOL}, prefect.yaml's deployments and two automations")


@main.command()
@click.option("--name", help="Of this machine, for the pages; default: its host name.")
@click.option("--count", type=click.IntRange(1), help="Workers; default: one a GPU, else one.")
@click.option("--flows", is_flag=True, help=f"One for pool {FLOWS_POOL} instead, without a GPU.")
def workers(name: str | None, count: int | None, flows: bool) -> None:
    """Run this machine's workers until SIGTERM or Ctrl-C; one that ends is started again."""
    _need_server()
    if not Path("dvc.yaml").is_file():
        sys.exit("error: run this in the machine's clone of the project")
    name = name or socket.gethostname().partition(".")[0]
    cards = [] if flows else gpus()
    count = 1 if flows else count or len(cards) or 1
    started = []
    for number in range(count):
        own = {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} if cards else {}
        started.append(_worker(f"{name}-flows" if flows else f"{name}-{number}", count, flows, own))
    if told := versions.differences(Path("requirements.lock")):
        click.echo(f"not the locked versions: {told}; this worker serves only flows of its own", err=True)
    processes.supervise(started)


@main.command()
def up() -> None:
    """Start both servers and workers on this machine, in `.cluster`; for seeing it work."""
    if not Path("dvc.yaml").is_file():
        sys.exit("error: run this in the project's folder")
    FOLDER.mkdir(exist_ok=True)
    here = FOLDER.resolve()
    urls = {one: f"http://127.0.0.1:{port}" for one, port in PORTS.items()}
    environment = os.environ | {
        "PREFECT_API_URL": f"{urls['prefect']}/api",
        "PREFECT_SERVER_UI_API_URL": f"{urls['prefect']}/api",
        "PREFECT_HOME": str(here / "prefect"),
        "MLFLOW_TRACKING_URI": urls["mlflow"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for nothing here
    }
    try:
        processes.start(FOLDER, "prefect", processes.prefect_server(PORTS["prefect"]), environment)
        processes.start(FOLDER, "mlflow", processes.mlflow_server(PORTS["mlflow"], here), environment)
        processes.wait_for(FOLDER, "prefect", f"{urls['prefect']}/api/health")
        processes.wait_for(FOLDER, "mlflow", f"{urls['mlflow']}/health")
        base = _own_clone(here)
        us = [sys.executable, "-m", "pipelines.cluster"]
        subprocess.run([*us, "init"], cwd=base, env=environment, check=True)
        for one, words in (("worker", []), ("flows", ["--flows"])):
            command = [*us, "workers", "--name", "here", *words]
            processes.start(FOLDER, one, command, environment, base)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    click.echo(f"Prefect:  {urls['prefect']}   start `reproduce` or `train` under Deployments")
    click.echo(f"MLflow:   {urls['mlflow']}")
    click.echo(f"logs:     {FOLDER}/*.log; the workers' clone is {FOLDER}/clone; `make down` ends all of it")


@main.command()
def down() -> None:
    """End what `up` started."""
    for name in ("worker", "flows", "prefect", "mlflow"):  # workers before the servers they talk to
        if pid := processes.stop(FOLDER, name):
            click.echo(f"ended {name} (process {pid})")


def _own_clone(here: Path) -> Path:
    """The workers' clone, of this folder's commits, with a DVC remote beside it."""
    base = here / "clone"
    if not base.is_dir():
        clone.git("clone", "--quiet", str(Path().resolve()), str(base))
        for words in (["remote.cluster.url", str(here / "remote")], ["core.remote", "cluster"]):
            dvc = [sys.executable, "-m", "dvc", "config", "--local", *words]
            subprocess.run(dvc, cwd=base, check=True)
    clone.git("-C", str(base), "pull", "--quiet", "--ff-only")
    return base


def _head() -> str:
    try:
        return clone.git("rev-parse", "--short=8", "HEAD").strip()
    except clone.CloneError as error:
        sys.exit(f"error: {error}")


def _need_server() -> None:
    if not os.environ.get("PREFECT_API_URL"):
        sys.exit("error: PREFECT_API_URL does not say where the Prefect server is; `make up` starts one here")


def _worker(name: str, count: int, flows: bool, own: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """A worker's command and environment."""
    queues = [QUEUE] if flows else [QUEUE, versions.queue()]
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool",
               FLOWS_POOL if flows else POOL, "--limit", "20" if flows else "1",
               "--name", f"{name} {_head()} {versions.queue()}"]  # fmt: skip
    for queue in queues:
        command += ["--work-queue", queue]
    threads = max(1, available() // count)
    settings = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "OMP_NUM_THREADS": str(threads),
        # `python` in DVC's commands is the one that this worker runs under.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    chosen = {key: os.environ[key] for key in settings if key in os.environ and key != "PATH"}
    return command, os.environ | settings | chosen | own | {
        "LAMBDANET_WORKER": name,
        "LAMBDANET_CLONE": str(Path.cwd()),
    }


def _of_flows(*names: str) -> list[dict]:
    """Other flows on the same server may send heartbeats at another pace; they are not ours to judge."""
    role = {"prefect.resource.id": ["prefect.flow.*"], "prefect.resource.role": ["flow"]}
    return [role | {"prefect.resource.name": list(names)}]


def _automations() -> "list[AutomationCore]":
    """What a server of one's own does not do by itself.

    From Prefect's documentation, "How to detect and respond to zombie flows".
    """
    from prefect.automations import AutomationCore
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    ended = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]
    lost = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ended},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        match_related=_of_flows(*OURS),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=WITHIN_SECONDS),
    )
    crashed = ChangeFlowRunState(
        state=StateType.CRASHED,
        name="Crashed",
        message=LOST_MESSAGE,
    )
    again = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        # Lost or stopped with its machine; one that crashes by itself would only do so again.
        match={
            "prefect.resource.id": ["prefect.flow-run.*"],
            "prefect.state-message": [f"{LOST_MESSAGE}*", "Execution was aborted by a termination signal*"],
        },
        match_related=_of_flows("reproduce", "train"),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )  # fmt: skip
    scheduled = ChangeFlowRunState(
        state=StateType.SCHEDULED,
        name="AwaitingRetry",
        message="its worker was lost; it is taken up again",
        force=True,
    )
    return [
        AutomationCore(
            name=LOST, trigger=lost, actions=[crashed],
            description="Its worker was killed or cut off; `reproduce` asks for the stage again elsewhere.",
        ),
        AutomationCore(
            name=TAKEN_UP, trigger=again, actions=[scheduled],
            description="`reproduce` and `train` only ask for stages and wait, so they can be begun again.",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()

"""`lambdanet cluster`: what the flows need besides a clone: servers, work pools, deployments, workers."""

import contextlib
import http.client
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click
import psutil

from lambdanet import cli
from pipelines import placement

FOLDER = Path(".cluster")
URL = FOLDER / "prefect.url"  # where `lambdanet run` finds the server that `up` started
ACCESS = FOLDER / "access.env"
LOOPBACK = "127.0.0.1"
START_SECONDS = 300
# Longer than a stage's grace: what a worker runs writes a checkpoint when it is stopped.
STOP_SECONDS = 45
PREFECT, MLFLOW = 4200, 5000  # ports
POOLS = {
    "lambdanet": "One training at a time on each GPU or core.",
    "lambdanet-flows": "`reproduce`, which starts stages and waits.",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Servers, work pools and workers; see docs/cluster.md."""


@main.command()
def init() -> None:
    """Create the work pools and prefect.yaml's deployments, or bring them up to date."""
    _need(server=True)
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with reaching(), get_client(sync_client=True) as client:
        for pool, text in POOLS.items():
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", description=text))
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(deploy, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ValueError(f"prefect deploy: {' '.join((done.stderr or done.stdout).split())[-600:]}")
    click.echo(f"created pools {', '.join(POOLS)} and prefect.yaml's deployments")


@main.command()
@click.option("--name", help="Of this machine; default: its host name.")
@click.option("--count", type=click.IntRange(1), help="Stages at once; default: one a GPU, else one a core.")
@click.option("--flows", is_flag=True, help="Serve pool lambdanet-flows instead: the flow `reproduce`.")
@click.option("--dask", metavar="ADDRESS", help="Join a Dask scheduler instead: stages of `reproduce`.")
@click.option(
    "--host", default=LOOPBACK, show_default=True,
    help="Of --dask: address that the scheduler and other workers reach this machine by.",
)  # fmt: skip
def workers(name: str | None, count: int | None, flows: bool, dask: str | None, host: str) -> None:
    """Become this machine's worker; it ends with SIGTERM or Ctrl-C."""
    _need(server=True)
    name = name or socket.gethostname().partition(".")[0]
    slots = str(count or len(placement.slots()))
    environment = os.environ | {
        "LAMBDANET_CLONE": str(Path.cwd()),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
    }
    if dask:
        environment["LAMBDANET_SLOTS"] = slots  # a stage takes its GPU with its slot
        # Dask executes what it is sent; without --host it would listen on all addresses.
        command = ["distributed.cli.dask_worker", dask, "--host", host, "--name", name, "--no-dashboard",
                   "--nworkers", slots, "--nthreads", "1"]  # fmt: skip
    else:
        command = ["prefect", "worker", "start", "--type", "process",
                   "--pool", "lambdanet-flows" if flows else "lambdanet",
                   "--limit", "20" if flows else slots,
                   "--name", f"{name}-flows" if flows else name]  # fmt: skip
    os.execve(sys.executable, [sys.executable, "-m", *command], environment)


@main.command()
@click.option(
    "--host", default=LOOPBACK, show_default=True,
    help="Address that others reach this machine by; both servers then ask for the password in .cluster.",
)  # fmt: skip
@click.pass_context
def up(context: click.Context, host: str) -> None:
    """Start Prefect, MLflow and this machine's workers; their files are in `.cluster`."""
    _need()
    for name, port in (("prefect", PREFECT), ("mlflow", MLFLOW)):
        if not _process(name):
            cli.need_port(host, port, "end its user: `lambdanet ui`, or the cluster of another clone")
    FOLDER.mkdir(exist_ok=True)
    prefect, mlflow = (f"http://{cli.in_url(host)}:{port}" for port in (PREFECT, MLFLOW))
    os.environ |= _access(host) | {
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_SERVER_UI_API_URL": f"{prefect}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str((FOLDER / "prefect").resolve()),
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for nothing here
    }  # fmt: skip
    server = ["prefect", "server", "start", "--host", host, "--port", str(PREFECT)]
    _start("prefect", server)
    _start("mlflow", _mlflow_server(host))
    _wait_for("prefect", f"{prefect}/api")
    _wait_for("mlflow", mlflow)
    context.invoke(init)
    _start("worker", ["lambdanet", "cluster", "workers"])
    _start("flows", ["lambdanet", "cluster", "workers", "--flows"])
    click.echo(f"Prefect:  {prefect}   start `reproduce` or `train` under Deployments")
    click.echo(f"MLflow:   {mlflow}")
    if host == LOOPBACK:
        URL.write_text(f"{prefect}/api\n")
    else:
        click.echo(f"password: in {ACCESS}; other machines: set -a; . ./access.env; set +a")
    click.echo(f"logs:     {FOLDER}/*.log; `make down` ends all of it")


@main.command()
def down() -> None:
    """End what `up` started."""
    URL.unlink(missing_ok=True)
    for name in ("worker", "flows", "prefect", "mlflow"):  # workers before the servers that they talk to
        if process := _process(name):
            below = process.children(recursive=True)
            process.terminate()
            for left in psutil.wait_procs([process, *below], STOP_SECONDS)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            click.echo(f"ended {name} (process {process.pid})")
        (FOLDER / f"{name}.pid").unlink(missing_ok=True)


def _mlflow_server(host: str) -> list[str]:
    """MLflow on the store that `make repro` and `make ui` use."""
    store, artifacts = f"sqlite:///{Path.cwd() / 'mlflow.db'}", str(Path.cwd() / "mlartifacts")
    command = ["mlflow", "server", "--host", host, "--port", str(MLFLOW), "--workers", "1",
               "--backend-store-uri", store]  # fmt: skip
    if host == LOOPBACK:
        return [*command, "--default-artifact-root", artifacts]
    return [*command, "--artifacts-destination", artifacts, "--app-name", "basic-auth",
            "--allowed-hosts", f"{cli.in_url(host)}:{MLFLOW},localhost:{MLFLOW}"]  # fmt: skip


def _access(host: str) -> dict[str, str]:
    """What servers and clients need to know of the password; nothing on loopback."""
    if host == LOOPBACK:
        return {}
    if not ACCESS.is_file():
        password = secrets.token_urlsafe(24)
        _write_private(
            ACCESS,
            f"PREFECT_API_AUTH_STRING=lambdanet:{password}\n"
            f"MLFLOW_TRACKING_USERNAME=lambdanet\nMLFLOW_TRACKING_PASSWORD={password}\n",
        )
    found = dict(line.split("=", 1) for line in ACCESS.read_text().split())
    settings = (FOLDER / "mlflow-auth.ini").resolve()
    _write_private(
        settings,
        "[mlflow]\ndefault_permission = EDIT\nadmin_username = lambdanet\n"
        f"admin_password = {found['MLFLOW_TRACKING_PASSWORD']}\n"
        f"database_uri = sqlite:///{settings.with_suffix('.db')}\n",
    )
    return found | {
        "PREFECT_SERVER_API_AUTH_STRING": found["PREFECT_API_AUTH_STRING"],
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def _need(server: bool = False) -> None:
    if server and not os.environ.get("PREFECT_API_URL"):
        raise ValueError("PREFECT_API_URL does not name a Prefect server; `make up` starts one here")
    if not Path("dvc.yaml").is_file() or not Path(".dvc").is_dir():
        raise ValueError("run this in the project's folder")


def _start(name: str, command: list[str]) -> None:
    """Start `python -m COMMAND`, which outlives this process, unless it runs already."""
    if _process(name):
        return
    with (FOLDER / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    # A number may be given out again; with the moment of its start it is one process.
    (FOLDER / f"{name}.pid").write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}\n")


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Turn what Prefect's client raises in this block into one line.

    Raises:
        ValueError: its server does not answer, or refuses.
    """
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401
        said = "it asks for a password: set PREFECT_API_AUTH_STRING" if refused else str(error)[:200]
        url = os.environ.get("PREFECT_API_URL", "")
        raise ValueError(f"Prefect's server {url} cannot be used: {said}") from None


def answers(url: str) -> bool:
    """Whether a server of Prefect (by its API's address) or MLflow says that it is well."""
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10).close()
    except (OSError, ValueError, http.client.HTTPException):  # the last two: no URL, or no HTTP server
        return False
    return True


def _wait_for(name: str, url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and _process(name):
        if answers(url):
            return
        time.sleep(0.5)
    raise ValueError(f"the server {name} did not start; see {FOLDER / f'{name}.log'}")


def _process(name: str) -> psutil.Process | None:
    """The process of `_start`, where it still runs."""
    try:
        pid, began = (FOLDER / f"{name}.pid").read_text().split()
        process = psutil.Process(int(pid))
        lives = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return process if lives and abs(process.create_time() - float(began)) < 1 else None
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None

"""Start what the flows need besides a clone: servers, work pools, deployments, workers.

lambdanet cluster up         # servers and workers on this machine
lambdanet cluster down       # ends what `up` started
lambdanet cluster init       # pools and deployments of the server in PREFECT_API_URL
lambdanet cluster workers    # this machine's worker, until it is stopped
"""

import contextlib
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import click
import psutil

from pipelines import placement
from pipelines.health import POOLS

FOLDER = Path(".cluster")
URL = FOLDER / "prefect.url"  # where `lambdanet run` finds the server that `up` started
ACCESS = FOLDER / "access.env"
PORTS = {"prefect": 4200, "mlflow": 5000}
LOOPBACK = "127.0.0.1"
START_SECONDS = 300
# Longer than a stage's grace: what a worker runs writes a checkpoint when it is stopped.
STOP_SECONDS = 45
NAMES = ("worker", "flows", "prefect", "mlflow")  # workers end before the servers that they talk to


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Servers, work pools and workers; see docs/cluster.md."""


@main.command()
def init() -> None:
    """Create the work pools and prefect.yaml's deployments, or bring them up to date."""
    _need_server()
    _need_project()
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    about = ("One training at a time on each GPU or core.", "`reproduce`, which starts stages and waits.")
    with get_client(sync_client=True) as client:
        for pool, text in zip(POOLS, about, strict=True):
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", description=text))
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(deploy, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr or done.stdout).partition("Error")[2] or done.stderr
        sys.exit(f"error: prefect deploy: {' '.join(said.split())[:600]}")
    click.echo(f"created pools {', '.join(POOLS)} and prefect.yaml's deployments")


@main.command()
@click.option("--name", help="Of this machine; default: its host name.")
@click.option(
    "--count", type=click.IntRange(1), help="Trainings at once; default: one a GPU, else one a core."
)
@click.option("--flows", is_flag=True, help=f"Serve pool {POOLS[1]} instead: the flow `reproduce`.")
@click.option("--dask", metavar="ADDRESS", help="Join a Dask scheduler instead: stages of `reproduce`.")
@click.option(
    "--host", default=LOOPBACK, show_default=True,
    help="Of --dask: address that the scheduler and other workers reach this machine by.",
)  # fmt: skip
def workers(name: str | None, count: int | None, flows: bool, dask: str | None, host: str) -> None:
    """Become this machine's worker; it ends with SIGTERM or Ctrl-C."""
    _need_server()
    _need_project()
    name = name or socket.gethostname().partition(".")[0]
    count = count or len(placement.places())
    settings = {
        "LAMBDANET_CLONE": str(Path.cwd()),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
    }
    if dask:
        command = _dask_worker(dask, host, name, count)
    else:
        pool, limit = (POOLS[1], "20") if flows else (POOLS[0], str(count))
        command = ["prefect", "worker", "start", "--type", "process", "--pool", pool, "--limit", limit,
                   "--name", f"{name}-flows" if flows else name]  # fmt: skip
    os.execve(sys.executable, [sys.executable, "-m", *command], os.environ | settings)


def _dask_worker(address: str, host: str, name: str, count: int) -> list[str]:
    module = "dask_cuda.cli" if placement.gpus() else "distributed.cli.dask_worker"
    if not importlib.util.find_spec(module.partition(".")[0]):
        sys.exit(f"error: --dask needs {module.partition('.')[0]}: pip install 'lambdanet[dask]'")
    # Dask executes what it is sent; without --host it would listen on all addresses.
    common = [address, "--host", host, "--name", name, "--no-dashboard"]
    if placement.gpus():
        return [module, "worker", *common]  # one worker a GPU
    return [module, *common, "--nworkers", str(count), "--nthreads", "1"]


@main.command()
@click.option(
    "--host", default=LOOPBACK, show_default=True,
    help="Address that others reach this machine by; both servers then ask for the password in .cluster.",
)  # fmt: skip
def up(host: str) -> None:
    """Start Prefect, MLflow and this machine's workers; their files are in `.cluster`."""
    _need_project()
    FOLDER.mkdir(exist_ok=True)
    urls = {one: f"http://{host}:{port}" for one, port in PORTS.items()}
    environment = (
        os.environ
        | _access(host)
        | {
            "PREFECT_API_URL": f"{urls['prefect']}/api",
            "PREFECT_SERVER_UI_API_URL": f"{urls['prefect']}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str((FOLDER / "prefect").resolve()),
            "MLFLOW_TRACKING_URI": urls["mlflow"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for nothing here
        }
    )
    us = [sys.executable, "-m", "lambdanet", "cluster"]
    try:
        _start("prefect", _prefect_server(host), environment)
        _start("mlflow", _mlflow_server(host), environment)
        _wait_for("prefect", f"{urls['prefect']}/api/health")
        _wait_for("mlflow", f"{urls['mlflow']}/health")
        subprocess.run([*us, "init"], env=environment, check=True)
        _start("worker", [*us, "workers"], environment)
        _start("flows", [*us, "workers", "--flows"], environment)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    if host == LOOPBACK:
        URL.write_text(f"{urls['prefect']}/api\n")
    click.echo(f"Prefect:  {urls['prefect']}   start `reproduce` or `train` under Deployments")
    click.echo(f"MLflow:   {urls['mlflow']}")
    if host != LOOPBACK:
        click.echo(f"password: in {ACCESS}; other machines: set -a; . ./access.env; set +a")
    click.echo(f"logs:     {FOLDER}/*.log; `make down` ends all of it")


@main.command()
def down() -> None:
    """End what `up` started."""
    URL.unlink(missing_ok=True)
    for name in NAMES:
        if pid := _stop(name):
            click.echo(f"ended {name} (process {pid})")


def _prefect_server(host: str) -> list[str]:
    listen = ["--host", host, "--port", str(PORTS["prefect"])]
    return [sys.executable, "-m", "prefect", "server", "start", *listen]


def _mlflow_server(host: str) -> list[str]:
    """MLflow on the store that `make repro` and `make ui` use."""
    here, port = Path.cwd(), PORTS["mlflow"]
    store = ["--backend-store-uri", f"sqlite:///{here / 'mlflow.db'}", "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), *store]
    if host == LOOPBACK:
        return [*command, "--default-artifact-root", str(here / "mlartifacts")]
    allowed = f"{host}:{port},localhost:{port}"
    artifacts = ["--artifacts-destination", str(here / "mlartifacts"), "--allowed-hosts", allowed]
    return [*command, *artifacts, "--app-name", "basic-auth"]


def _access(host: str) -> dict[str, str]:
    """What servers and clients need to know of the password; nothing on loopback."""
    if host == LOOPBACK:
        return {}
    if not importlib.util.find_spec("flask_wtf"):
        sys.exit("error: MLflow's basic authentication needs Flask-WTF: pip install 'lambdanet[server]'")
    if not ACCESS.is_file():
        password = secrets.token_urlsafe(24)
        _write_private(
            ACCESS,
            f"PREFECT_API_AUTH_STRING=lambdanet:{password}\n"
            f"MLFLOW_TRACKING_USERNAME=lambdanet\nMLFLOW_TRACKING_PASSWORD={password}\n",
        )
    found = dict(line.split("=", 1) for line in ACCESS.read_text().split())
    settings = FOLDER / "mlflow-auth.ini"
    _write_private(
        settings,
        "[mlflow]\ndefault_permission = EDIT\nadmin_username = lambdanet\n"
        f"admin_password = {found['MLFLOW_TRACKING_PASSWORD']}\n"
        f"database_uri = sqlite:///{(FOLDER / 'mlflow-auth.db').resolve()}\n",
    )
    return found | {
        "PREFECT_SERVER_API_AUTH_STRING": found["PREFECT_API_AUTH_STRING"],
        "MLFLOW_AUTH_CONFIG_PATH": str(settings.resolve()),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _need_server() -> None:
    if not os.environ.get("PREFECT_API_URL"):
        sys.exit("error: PREFECT_API_URL does not name a Prefect server; `make up` starts one here")


def _need_project() -> None:
    if not Path("dvc.yaml").is_file() or not Path(".dvc").is_dir():
        sys.exit("error: run this in the project's folder")


def _start(name: str, command: list[str], environment: dict[str, str]) -> None:
    """Start a process that outlives this one, unless it runs already; its log and pid go to `.cluster`."""
    if _process(name):
        return
    with (FOLDER / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    process.returncode = 0  # it outlives this object, which is not to complain of that
    # A number may be given out again; with the moment of its start it is one process.
    (FOLDER / f"{name}.pid").write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}\n")


def _stop(name: str) -> int | None:
    """End a process of `_start` and all that it runs; its number, or None where it does not run."""
    process = _process(name)
    if process:
        below = process.children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        _, left = psutil.wait_procs([process, *below], STOP_SECONDS)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, 5)
    (FOLDER / f"{name}.pid").unlink(missing_ok=True)
    return process.pid if process else None


def _wait_for(name: str, url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and _process(name):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=10).close()
            return
        time.sleep(0.5)
    raise ValueError(f"the server {name} did not start; see {FOLDER / f'{name}.log'}")


def _process(name: str) -> psutil.Process | None:
    try:
        pid, began = (FOLDER / f"{name}.pid").read_text().split()
        process = psutil.Process(int(pid))
        lives = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return process if lives and abs(process.create_time() - float(began)) < 1 else None
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None

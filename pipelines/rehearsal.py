"""A whole cluster on one machine, from nothing: servers, workers, git and a DVC remote over SSH.

    python -m pipelines.rehearsal                 # the sample profile on two workers, and serially
    python -m pipelines.rehearsal --namespaces    # each host in a network namespace; needs root

Each host has a folder with its own home, clone and DVC cache, and, in a namespace, its own network and
address. They share what the hosts of a real cluster share: git and a DVC remote, both over SSH, and the
servers of Prefect and MLflow. `reproduce` then runs on the workers, `dvc repro` serially beside it, and
what both made is compared.
"""

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
import yaml

from pipelines import processes, profiles

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "10.203.77"
MARK = "LAMBDANET_HOST"
PYTHON = sys.executable
DVC = (PYTHON, "-m", "dvc")
TABLE = ("download", "corrupt", "train", "evaluate", "plot", "register")  # stages of the table alone


class Host:
    """A folder with a home, processes that are its, and an address of its own where it has a namespace."""

    def __init__(self, name: str, folder: Path, address: str, namespace: str = "") -> None:
        self.name, self.folder, self.address, self.namespace = name, folder, address, namespace
        self.home, self.clone = folder / "home", folder / "clone"
        self.home.mkdir(parents=True)
        inside = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "GIT_"))}
        self.environment = inside | {
            MARK: str(folder),
            "HOME": str(self.home),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "OMP_NUM_THREADS": "1",  # a result depends on it
            "GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": f"{name}@localhost",
            "GIT_COMMITTER_NAME": name, "GIT_COMMITTER_EMAIL": f"{name}@localhost",
            "PATH": os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]]),
        }  # fmt: skip
        self.started: dict[str, subprocess.Popen] = {}

    def command(self, *words: str) -> list[str]:
        """What runs these words on this host."""
        return [*(["ip", "netns", "exec", self.namespace] if self.namespace else []), *map(str, words)]

    def run(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        """Run a command on this host to its end; its output.

        Raises:
            RuntimeError: it failed; with what it printed.
        """
        done = subprocess.run(
            self.command(*words), cwd=cwd or self.clone, env=self.environment | environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(map(str, words))}: {done.stdout[-2000:]}")
        return done.stdout

    def start(self, name: str, *words: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen:
        """Start a process on this host; its output goes to NAME.log in its folder."""
        with self.log(name).open("ab") as log:
            self.started[name] = subprocess.Popen(
                self.command(*words), cwd=cwd or self.clone, env=self.environment | environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self.started[name]

    def log(self, name: str) -> Path:
        """The log of a process of `start`."""
        return self.folder / f"{name}.log"

    def processes(self) -> list[psutil.Process]:
        """All that runs on this host."""
        found = []
        for one in self.started.values():  # sshd wipes out what its environment was
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [psutil.Process(one.pid), *psutil.Process(one.pid).children(recursive=True)]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.folder) and process not in found:
                    found.append(process)
        return [one for one in found if processes.lives(one)]

    def kill(self) -> None:
        """End all that runs on this host at once, as when its power fails."""
        while alive := self.processes():
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, 1)
        for one in self.started.values():
            one.wait()


class Cluster:
    """A server, workers, and a person's clone, each on its host; a context manager.

    Attributes:
        server: has the servers of Prefect and MLflow, sshd, git's origin and the DVC remote.
        workers: each with a clone.
        person: has the clone that asks for everything.
    """

    def __init__(self, folder: Path, source: Path, workers: int = 2, namespaces: bool = False) -> None:
        """Lay out the hosts.

        Args:
            folder: empty; everything is in there.
            source: a git repository; its checked-out commit becomes the origin's `main`.
            workers: how many.
            namespaces: put each host into a network namespace of its own; needs root.
        """
        self.folder, self.source = folder, source
        self.prefix = f"lnet{os.getpid() % 10000}" if namespaces else ""
        names = ["server", "person", *(f"worker{number}" for number in range(1, workers + 1))]
        hosts = [self._host(name, number) for number, name in enumerate(names, 1)]
        self.server, self.person, *self.workers = hosts
        self.hosts = hosts
        ports = {name: free_port() for name in ("prefect", "mlflow", "ssh")} if not namespaces else {}
        self.ports = {"prefect": 4200, "mlflow": 5000, "ssh": 2222} | ports
        self.prefect = f"http://{self.server.address}:{self.ports['prefect']}"
        self.mlflow = f"http://{self.server.address}:{self.ports['mlflow']}"
        self.remote = self.server.folder / "remote"

    def __enter__(self) -> "Cluster":
        try:
            if self.prefix:
                self._connect()
            self._start_ssh()
            self._make_clones()
            self.start_prefect()
            self.start_mlflow()
            self.person.run(PYTHON, "-m", "pipelines.cluster", "init")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of every host, and take the network away."""
        for host in reversed(self.hosts):
            host.kill()
        if self.prefix:
            for name in [*(host.namespace for host in self.hosts), f"{self.prefix}-switch"]:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def start_prefect(self) -> None:
        """Start the Prefect server, on the database that it had."""
        words = processes.prefect_server(self.ports["prefect"], self.server.address)
        api = f"{self.prefect}/api"
        process = self.server.start("prefect", *words, cwd=self.server.folder, PREFECT_SERVER_UI_API_URL=api)
        self._wait_for(process, f"{self.prefect}/api/health")

    def start_mlflow(self) -> None:
        """Start the MLflow server, on the database that it had."""
        words = processes.mlflow_server(self.ports["mlflow"], self.server.folder, self.server.address)
        process = self.server.start("mlflow", *words, cwd=self.server.folder)
        self._wait_for(process, f"{self.mlflow}/health")

    def start_worker(self, host: Host, **environment: str) -> None:
        """Start a host's worker."""
        words = (PYTHON, "-m", "pipelines.cluster", "workers", "--name", host.name)
        host.start("worker", *words, LAMBDANET_COPY_SECONDS="5", **environment)

    def stop(self, host: Host, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process of `Host.start` and, if it is SIGKILL, to all below it."""
        process = psutil.Process(host.started[name].pid)
        below = process.children(recursive=True) if number == signal.SIGKILL else []
        for one in [process, *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)
        host.started[name].wait(120)

    def start_ssh(self) -> None:
        """Start sshd: git's origin and the DVC remote can be reached."""
        self.server.start("sshd", shutil.which("sshd", path="/usr/sbin:/usr/bin"), "-D", "-e", "-f",
                          str(self.server.folder / "sshd_config"), cwd=self.server.folder)  # fmt: skip

    def reproduce(self, *targets: str, profile: str = "sample") -> subprocess.Popen:
        """Start `reproduce --on-workers` in the person's clone; its log is `reproduce`."""
        words = ("-m", "pipelines.reproduce", "--on-workers", "--profile", profile, *targets)
        return self.person.start("reproduce", PYTHON, *words)

    def runs(self) -> list[dict]:
        """Prefect's runs of stages, oldest first: name, state, worker's host and times."""
        answer = self.person.run(PYTHON, "-c", _RUNS)
        return json.loads(answer.splitlines()[-1])

    def _host(self, name: str, number: int) -> Host:
        namespace = f"{self.prefix}-{name}" if self.prefix else ""
        address = f"{NETWORK}.{number}" if self.prefix else "127.0.0.1"
        return Host(name, self.folder / name, address, namespace)

    def _connect(self) -> None:
        """A namespace for each host, and one with a bridge between them; nothing outside of these."""
        switch = f"{self.prefix}-switch"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            _ip("netns", "add", host.namespace)
            peer = ("peer", "name", host.name, "netns", switch)
            _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", *peer)
            _ip("-n", switch, "link", "set", host.name, "master", "bridge", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", host.namespace, "link", "set", link, "up")

    def _start_ssh(self) -> None:
        folder = self.server.folder
        for key in ("host_key", "user_key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(words, check=True)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(
            f"ListenAddress {self.server.address}\nPort {self.ports['ssh']}\n"
            f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
            "MaxStartups 100\nMaxSessions 100\nPermitUserEnvironment no\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where OpenSSH wants an empty folder
        self.start_ssh()

    def _make_clones(self) -> None:
        origin = self.server.folder / "origin.git"
        self.server.run("git", "clone", "--quiet", "--bare", str(self.source), str(origin), cwd=self.folder)
        self.server.run("git", "-C", str(origin), "branch", "-f", "main", "HEAD", cwd=self.folder)
        self.server.run("git", "-C", str(origin), "symbolic-ref", "HEAD", "refs/heads/main", cwd=self.folder)
        self.remote.mkdir()
        key, user, port = self.server.folder / "user_key", getpass.getuser(), self.ports["ssh"]
        at = f"{user}@{self.server.address}"
        for host in (self.person, *self.workers):
            host.environment |= {
                "PREFECT_API_URL": f"{self.prefect}/api",
                "MLFLOW_TRACKING_URI": self.mlflow,
                "GIT_SSH_COMMAND": f"ssh -F none -i {key} -p {port} -o BatchMode=yes -o IdentitiesOnly=yes "
                f"-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={host.home}/known_hosts",
            }
            words = ("git", "clone", "--quiet", "--branch", "main", f"ssh://{at}{origin}", str(host.clone))
            _again(lambda host=host, words=words: host.run(*words, cwd=self.folder))
            settings = {
                "core.remote": "ssh",
                "remote.ssh.url": f"ssh://{at}:{port}{self.remote}",
                "remote.ssh.keyfile": str(key),
                "remote.ssh.allow_agent": "false",
            }
            for name, value in settings.items():
                host.run(*DVC, "config", "--local", name, value)

    def _wait_for(self, process: subprocess.Popen, url: str) -> None:
        # From a host, as this machine is not in its network.
        code = "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)"
        until = time.monotonic() + processes.START_SECONDS
        while True:
            try:
                self.person.run(PYTHON, "-c", code, url, cwd=self.folder)
                return
            except RuntimeError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.5)


_RUNS = """
import json
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
with get_client(sync_client=True) as client:
    found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["stage"])), limit=200)
    rows = []
    for run in sorted(found, key=lambda run: run.created):
        states = client.read_flow_run_states(run.id)
        names = [one.name for one in states]
        times = [one.timestamp.timestamp() for one in states]
        messages = [one.message for one in states]
        rows.append({"name": run.name, "state": run.state.name, "tags": sorted(run.tags), "states": names,
                     "times": times, "messages": messages, "worker": (run.labels or {}).get(
                     "prefect.worker.name", "")})
print(json.dumps(rows))
"""


def copy_project(folder: Path) -> None:
    """Copy this project's files as they lie here, without what was run: no results, weights or dvc.lock."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        kept = not name.startswith(("results/", "weights/")) and name != "dvc.lock"
        if (kept or name == "results/benchmarks.json") and (ROOT / name).exists():  # `plot` reads that one
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def leave_table(folder: Path, raw: dict) -> None:
    """Take what is trained beside the table out of a copy's dvc.yaml, and of what its params.yaml holds."""
    raw |= {key: {} for key in ("studied", "studies", "variations", "rivals", "sets", "own")}
    for profile in raw["profiles"].values():
        for key in ("studied", "sets"):
            profile.pop(key, None)
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())
    pipeline["stages"] = {name: pipeline["stages"][name] for name in TABLE}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))


def make_source(folder: Path, models: tuple[str, ...] = ()) -> None:
    """A repository with this project's checked-out files, and perhaps a smaller sample profile.

    Args:
        folder: to be made.
        models: these only, for one noise, on few images; none: all of it.
    """
    copy_project(folder)
    if models:
        path = folder / profiles.PARAMS
        raw = yaml.safe_load(path.read_text())
        raw["noises"] = {"gaussian-01": raw["noises"]["gaussian-01"]}
        raw["models"] = {name: raw["models"][name] for name in models}
        for profile in raw["profiles"].values():
            profile["models"] = {name: profile["models"][name] for name in raw["models"]}
        sample = raw["profiles"]["sample"]
        sample["download"] |= {"train": 200, "test": 20}
        sample["train"]["monitored"] = 20
        for name, epochs in {"lambdanet": 3, "autoencoder": 150}.items():
            if name in models:
                sample["models"][name]["epochs"] = epochs
        leave_table(folder, raw)  # the rest needs the other models too
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
    identity = ["-c", "user.name=rehearsal", "-c", "user.email=rehearsal@localhost"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "as it is"]):
        subprocess.run(["git", *identity, *words], cwd=folder, check=True)


def differences(one: Path, other: Path, profile: str = "sample") -> list[str]:
    """Where two clones differ, in dvc.lock's entries and in the files of results/PROFILE."""
    locks = [yaml.safe_load((clone / "dvc.lock").read_text())["stages"] for clone in (one, other)]
    # A receipt tells of the MLflow that it is from.
    kept = [{k: v for k, v in lock.items() if not k.startswith("register@")} for lock in locks]
    found = [name for name in sorted({*kept[0], *kept[1]}) if kept[0].get(name) != kept[1].get(name)]
    trees = [
        {
            path.relative_to(clone): path.read_bytes()
            for path in (clone / "results" / profile).rglob("*")
            if path.is_file()
        }
        for clone in (one, other)
    ]
    names = sorted({*trees[0], *trees[1]})
    return found + [str(name) for name in names if trees[0].get(name) != trees[1].get(name)]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _again(call: object, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            call()
            return
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept:
        kept.mkdir(parents=True)
        yield kept.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="lambdanet-") as folder:
            yield Path(folder)


@click.command()
@click.option("--namespaces", is_flag=True, help="A network namespace for each host; needs root and ip.")
@click.option("--small", is_flag=True, help="Two cells instead of twenty.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep everything in this new folder.")
def main(namespaces: bool, small: bool, folder: Path | None) -> None:
    """Build a cluster on this machine, reproduce the sample profile on it, and compare with `dvc repro`."""
    say = click.echo
    with _folder(folder) as place:
        make_source(place / "source", ("lambdanet", "autoencoder") if small else ())
        began = time.monotonic()
        with Cluster(place, place / "source", namespaces=namespaces) as cluster:
            for host in cluster.hosts:
                say(f"{host.name}: {host.address} {host.namespace} {host.folder}")
            for host in cluster.workers:
                cluster.start_worker(host)
            say(f"servers, origin, remote and clones made in {time.monotonic() - began:.0f} s")
            began = time.monotonic()
            process = cluster.reproduce()
            status = process.wait()
            say(cluster.person.log("reproduce").read_text())
            say(f"reproduce on two workers: status {status}, {time.monotonic() - began:.0f} s")
            spread = cluster.runs()
            for host in cluster.workers:
                mine = [run["name"] for run in spread if host.name in run["worker"]]
                say(f"{host.name} ran {len(mine)} of {len(spread)}: {', '.join(mine)}")
            for host in cluster.hosts[1:]:
                host.kill()
            serial = cluster.person.folder / "serial"
            cluster.person.run("git", "clone", "-q", str(cluster.person.clone), str(serial), cwd=place)
            began = time.monotonic()
            cluster.person.run(*DVC, "repro", cwd=serial, MLFLOW_TRACKING_URI="", LAMBDANET_TRACKING="off")
            say(f"`dvc repro` alone: {time.monotonic() - began:.0f} s")
            found = differences(cluster.person.clone, serial)
    if status or found:
        sys.exit(f"error: status {status}, different from the serial run: {', '.join(found) or 'nothing'}")
    say("dvc.lock and results/ are those of the serial run")


if __name__ == "__main__":
    main()

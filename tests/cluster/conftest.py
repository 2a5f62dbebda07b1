"""What the tests of a cluster share: a Prefect server, its workers, and Dask's, all on this machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
import scratch

from pipelines.cluster import answers


class Cluster:
    """Servers and workers of a folder; each process can be killed and started again."""

    def __init__(self, folder):
        self.folder, self.port, self.processes = folder, scratch.free_port(), {}
        self.url = f"http://127.0.0.1:{self.port}/api"

    def start(self, name, cwd, *command, hidden=None, **more):
        """Start `python -m COMMAND`; to it and to all that it starts, a folder may be hidden (as root)."""
        environment = scratch.environment(cwd, PREFECT_API_URL=self.url, **more)
        mount = 'mount -t tmpfs none "$0" && exec "$@"'
        hide = ["unshare", "--mount", "sh", "-c", mount, str(hidden)] if hidden else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*hide, sys.executable, "-m", *command], cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self.processes[name]

    def serve(self):
        command = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.start("prefect", self.folder, *command, PREFECT_SERVER_ANALYTICS_ENABLED="false")
        scratch.wait_until(lambda: answers(self.url))

    def kill(self, name, number=signal.SIGKILL):
        """Send a signal to a process and all of its group, and wait for it."""
        process = self.processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, number)
        process.wait(scratch.SECONDS)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    made.serve()
    yield made
    for name in list(made.processes):
        made.kill(name)


@pytest.fixture
def origin(tmp_path):
    """A bare repository with a project in it, whose DVC remote is a folder, and a way to clone it."""
    source = scratch.project(tmp_path / "source")
    scratch.profiles(source)
    remote = tmp_path / "remote"
    scratch.git(source, "clone", "-q", "--bare", ".", str(tmp_path / "origin.git"))

    def clone(name):
        folder = tmp_path / name
        scratch.git(tmp_path, "clone", "-q", str(tmp_path / "origin.git"), str(folder))
        local = f"[core]\n    remote = lab\n['remote \"lab\"']\n    url = {remote}\n"
        (folder / ".dvc/config.local").write_text(local)
        return folder

    return clone

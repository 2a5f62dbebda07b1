"""Small DVC projects in git, whose stages take no time, and `lambdanet` run in them."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import psutil
import yaml
from helpers import PATIENCE as SECONDS
from helpers import ROOT, free_port, lives, wait_until  # noqa: F401, found here by the tests of flows

from pipelines.cluster import answers

# Of `lambdanet`, for each flow and for what flows need.
COMMANDS = {"reproduce": ["run"], "train": ["cluster", "train"], "init": ["cluster", "init"]}
NEEDS = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": []}
DIAMOND = {name: (needs, "true") for name, needs in NEEDS.items()}
WAITS = "while test ! -e {go}; do kill -0 $PPID || exit 1; sleep 0.2; done"
SERVER = {}  # the address of a running Prefect, for all processes in projects; without it each starts its own


def project(folder, **stages):
    """A project with these stages, see `write_stages`, and `source`, which those without needs depend on."""
    folder.mkdir()
    (folder / "source").write_text("source\n")
    git(folder, "init", "-q")
    dvc(folder, "init", "-q")
    write_stages(folder, **stages or DIAMOND)
    (folder / ".gitignore").write_text("/runs/\n/.cluster/\n")
    commit(folder)
    return folder


def write_stages(folder, **stages):
    """dvc.yaml of stages that copy what they need into a file of their name: name=(needs, command)."""
    content = {}
    for name, (needs, command) in stages.items():
        copy = f"cat {' '.join(needs)} > {name}" if needs else f"echo {name} > {name}"
        content[name] = {"cmd": f"{command} && {copy}", "deps": list(needs) or ["source"], "outs": [name]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": content}))


def profiles(folder):
    """Add the root's profile, and `small/` with its dvc.yaml and profile.yaml, as the project has them."""
    out = "${profile}-${item.noise}-${item.model}-${item.seed}"
    train = {
        "matrix": {"noise": ["gaussian-01", "speckle"], "model": ["cnn", "deep-cnn"], "seed": "${seeds}"},
        "wdir": "${root}", "cmd": f"sh train.sh && echo ${{rate}} > {out}",
        "deps": ["source"], "params": [{"params.yaml": ["rate"]}], "outs": [out],
    }  # fmt: skip
    text = yaml.safe_dump({"vars": ["profile.yaml"], "stages": {"train": train}}, sort_keys=False)
    names = "noises: {gaussian-01: {}, speckle: {}}\nmodels: {cnn: {}, deep-cnn: {}}\n"
    (folder / "params.yaml").write_text(f"rate: 1\n{names}")
    (folder / "train.sh").write_text("echo net: step 1 of 2\n")
    for name, root, seeds in (("paper", ".", [0, 1, 2]), ("small", "..", [0])):
        place = folder if root == "." else folder / name
        place.mkdir(exist_ok=True)
        (place / "dvc.yaml").write_text(text)
        (place / "profile.yaml").write_text(yaml.safe_dump({"root": root, "profile": name, "seeds": seeds}))
    (folder / "small/params.yaml").symlink_to("../params.yaml")
    commit(folder)


def commit(folder):
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x", "--allow-empty")


def git(folder, *words):
    done = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def dvc(folder, *words):
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, check=True, capture_output=True)


def environment(folder, **more):
    """For processes in a project: a Prefect database beside it, this checkout's pipelines."""
    home = folder.parent / "prefect"
    if not home.exists():
        shutil.copytree(prefect_home(), home)
    own = {
        "LAMBDANET_PROFILE": "paper",
        "PREFECT_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return _inherited() | own | SERVER | more


def _inherited():
    return {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "DVC_"))}


@functools.cache
def prefect_home():
    """A folder with an empty database of Prefect, made once for all tests: its tables take seconds."""
    home = Path(os.environ["LAMBDANET_TESTS_CACHE"]) / "prefect"
    with filelock.FileLock(f"{home}.lock"):
        if not home.exists():
            made = home.with_name("prefect.part")
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            environment = _inherited() | {"PREFECT_HOME": str(made)}
            subprocess.run(command, check=True, capture_output=True, env=environment)
            made.rename(home)
    return home


def start(folder, *words, **more):
    """The command that runs a flow, the first of the words, of the root's profile unless another is named."""
    flow, *options = words
    command = [sys.executable, "-m", "lambdanet", *COMMANDS[flow], *options]
    return subprocess.Popen(
        command, cwd=folder, env=environment(folder, **more),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip


def run(folder, *words, **more):
    """The same to its end: exit status, stdout, stderr."""
    process = start(folder, *words, **more)
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def repro(folder, *words):
    """Plain `dvc repro`."""
    dvc(folder, "repro", "-q", *words)


def lock(folder):
    """dvc.lock, whatever the order of its stages."""
    return yaml.safe_load((folder / "dvc.lock").read_text())


def has_parent(pid, word):
    """Whether a living process above this one has a word in its command."""
    for parent in psutil.Process(pid).parents():
        with contextlib.suppress(psutil.NoSuchProcess):  # it is a zombie, or ends just now
            if word in parent.cmdline():
                return True
    return False


def number(path):
    """The process that a stage's command wrote into a file, once it did."""
    return int(wait_until(lambda: path.exists() and path.read_text().strip()))


class Cluster:
    """Servers and workers of a folder; each process can be killed and started again."""

    def __init__(self, folder):
        self.folder, self.port, self.processes = folder, free_port(), {}
        self.url = f"http://127.0.0.1:{self.port}/api"

    def __enter__(self):
        self.serve()
        return self

    def __exit__(self, *_error):
        for name in list(self.processes):
            self.kill(name)

    def start(self, name, cwd, *command, hidden=None, **more):
        """Start `python -m COMMAND`; to it and to all that it starts, a folder may be hidden (as root)."""
        own = environment(cwd, PREFECT_API_URL=self.url, **more)
        mount = 'mount -t tmpfs none "$0" && exec "$@"'
        hide = ["unshare", "--mount", "sh", "-c", mount, str(hidden)] if hidden else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*hide, sys.executable, "-m", *command], cwd=cwd, env=own, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self.processes[name]

    def serve(self):
        command = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.start("prefect", self.folder, *command, PREFECT_SERVER_ANALYTICS_ENABLED="false")
        wait_until(lambda: answers(self.url))

    def kill(self, name, number=signal.SIGKILL):
        """Send a signal to a process and all of its group, and wait for it."""
        process = self.processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, number)
        process.wait(SECONDS)

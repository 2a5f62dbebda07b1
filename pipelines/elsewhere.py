"""Run stages on a machine that has no DVC, as DVC's graph has them, and take back what came out.

    python -m pipelines.profiles run paper python -m pipelines.elsewhere plan plan.json train@paper-...
    python -m pipelines.elsewhere run plan.json --jobs 2     # there; again: goes on
    python -m pipelines.profiles run paper python -m pipelines.elsewhere accept plan.json

`plan` writes down these stages and what they depend on: commands, outputs, digests of the code, and for what
is only depended on the digests of its outputs, which dvc.lock must know. `run` runs what is not there yet,
each stage when what it needs is done, and compares the digests: with other code or data it is not what was
planned. `accept` is `dvc commit` of the planned stages whose outputs then stand in the workspace here, after
the same comparison. All jobs of `run` take the same card; CUDA_VISIBLE_DEVICES says which.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lambdanet import files

if TYPE_CHECKING:
    from dvc.repo import Repo

LOGS = Path("logs/elsewhere")
POLL_SECONDS = 0.2
GRACE_SECONDS = 25  # for a checkpoint


@dataclass(frozen=True)
class Stage:
    """What DVC would run.

    Attributes:
        needs: the stages before it.
        code: digests of what it depends on that no stage makes.
        outs: its outputs, each with its digest where the stage was not asked for itself.
        asked: whether it was.
    """

    name: str
    cmd: str
    needs: list[str]
    code: dict[str, str]
    outs: dict[str, str | None]
    asked: bool

    def done(self) -> bool:
        """Whether all outputs are there; stages write them under their names when they are whole."""
        return all(Path(out).exists() for out in self.outs)

    def check(self, paths: dict[str, str | None]) -> None:
        """Compare the code or the outputs with the planned digests.

        Raises:
            ValueError: one differs.
        """
        for path, expected in paths.items():
            found = digest(Path(path)) if Path(path).exists() else "missing"
            if expected and found != expected:
                raise ValueError(f"{self.name}: {path} is {found}, planned was {expected}")


@dataclass(frozen=True)
class Plan:
    """Stages in the order in which they are to run, and a digest of the parameters that they are run with."""

    parameters: str
    stages: list[Stage]

    def check(self) -> None:
        """Compare parameters and code with what was planned.

        Raises:
            ValueError: they differ.
        """
        if parameters() != self.parameters:
            raise ValueError("params.yaml is not the one that was planned with")
        for stage in self.stages:
            stage.check(stage.code)


def parameters() -> str:
    """A digest of params.yaml, whichever profile, studies and seeds are chosen: stages name their own."""
    found = yaml.safe_load(Path("params.yaml").read_text())
    chosen = ("profile", "seeds", "variations", "rivals")
    rest = {key: value for key, value in found.items() if key not in chosen}
    return hashlib.md5(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def plan(targets: list[str]) -> Plan:
    """What these stages depend on, and they themselves in the order given.

    Raises:
        ValueError: there is no such stage, dvc.yaml or params.yaml cannot be resolved, or dvc.lock does not
            know what a stage depends on as code and parameters make it now.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from pipelines import graph

    needs = graph.load(targets).needs
    try:
        with Repo() as repo, repo.lock:
            asked = [one.addressing for target in targets for one in repo.stage.collect(target)]
            stages = [_planned(repo, name, sorted(needs[name]), name in asked) for name in needs]
    except DvcException as error:
        raise ValueError(f"DVC: {' '.join(str(error).split())}") from None
    order = {name: place for place, name in enumerate(asked)}
    return Plan(parameters(), sorted(stages, key=lambda one: order.get(one.name, -1)))


def _planned(repo: "Repo", name: str, needs: list[str], asked: bool) -> Stage:
    (stage,) = repo.stage.collect(name)
    outs = {os.path.relpath(out.fs_path): None if asked else out.hash_info.value for out in stage.outs}
    if not asked and (stage.changed_deps(allow_missing=True) or not all(outs.values())):
        raise ValueError(
            f"dvc.lock does not know what {name} makes with this code and these parameters; "
            f"`dvc repro {name}` first, or ask for it too"
        )
    made = {os.path.relpath(out.fs_path) for other in repo.index.stages for out in other.outs}
    code = [os.path.relpath(dep.fs_path) for dep in stage.deps if hasattr(dep, "fs_path")]
    code = [path for path in code if path not in made and path != "params.yaml" and Path(path).exists()]
    return Stage(name, stage.cmd, needs, {path: digest(Path(path)) for path in code}, outs, asked)


def digest(path: Path) -> str:
    """DVC's digest of a file or folder: MD5, of a folder that of the list of its files' digests."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    inside = [one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts]
    named = sorted((one.relative_to(path).as_posix(), one) for one in inside)
    listed = [{"md5": digest(one), "relpath": name} for name, one in named]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


def run(planned: Plan, jobs: int) -> int:
    """Run what is not done, `jobs` at once in the order planned; a failure stops only what needs it.

    SIGTERM and Ctrl-C are passed on to the stages, which write a checkpoint.

    Returns:
        How many stages did not come out.

    Raises:
        ValueError: code or parameters are not those that were planned with.
    """
    planned.check()
    waiting, running, done, failed = list(planned.stages), {}, set(), set()
    with _signals_passed_on(running):
        while waiting or running:
            for stage in list(waiting):
                if failed.intersection(stage.needs):
                    failed.add(stage.name)
                    waiting.remove(stage)
                elif len(running) < jobs and done.issuperset(stage.needs):
                    waiting.remove(stage)
                    running[stage.name] = (stage, None if stage.done() else _start(stage), time.monotonic())
            for name, (stage, process, began) in list(running.items()):
                if process is None or process.poll() is not None:
                    del running[name]
                    ended = _ended(stage, process, time.monotonic() - began)
                    (done if ended else failed).add(name)
            time.sleep(POLL_SECONDS if running else 0)
    return len(failed)


def _start(stage: Stage) -> subprocess.Popen:
    LOGS.mkdir(parents=True, exist_ok=True)
    print(f"{stage.name}: starts", flush=True)
    with (LOGS / f"{stage.name}.log").open("a") as log:
        return subprocess.Popen(
            stage.cmd,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"DVC_STAGE": stage.name},
            process_group=0,
        )


def _ended(stage: Stage, process: subprocess.Popen | None, seconds: float) -> bool:
    """Say how a stage ended: whether it came out as planned."""
    log = LOGS / f"{stage.name}.log"
    if process and process.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        print(f"{stage.name}: failed with {process.returncode}, {last} (all of it in {log})", flush=True)
        return False
    try:
        if not stage.done():
            raise ValueError(f"{stage.name}: ended without its outputs; see {log}")
        stage.check(stage.outs)
    except ValueError as error:
        print(error, flush=True)
        return False
    print(f"{stage.name}: {f'done in {seconds:.0f} s' if process else 'is there'}", flush=True)
    return True


@contextlib.contextmanager
def _signals_passed_on(running: dict) -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        for _, process, _ in running.values():
            if process:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for _, process, _ in running.values():
            if process:
                _wait_or_kill(process)


def _wait_or_kill(process: subprocess.Popen) -> None:
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def accept(planned: Plan) -> None:
    """`dvc commit` of the stages that were asked for and whose outputs are in the workspace.

    Raises:
        ValueError: code, parameters or data are not what was planned, or DVC refuses.
    """
    planned.check()
    there = [stage for stage in planned.stages if stage.asked and stage.done()]
    needed = {name for stage in there for name in stage.needs}
    for stage in planned.stages:
        if stage.name in needed:
            stage.check(stage.outs)
    if not there:
        raise ValueError("none of the planned outputs is here")
    names = [stage.name for stage in there]
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", *names]
    if subprocess.call(command, stdin=subprocess.DEVNULL):
        raise ValueError(f"`dvc commit --force {' '.join(names)}` failed")
    print(f"in dvc.lock: {', '.join(names)}", flush=True)


def read(path: Path) -> Plan:
    """Read what `plan` wrote.

    Raises:
        ValueError: it is not that.
    """
    try:
        content = json.loads(path.read_text())
        found = Plan(content["parameters"], [Stage(**one) for one in content["stages"]])
        for stage in found.stages:
            kinds = (stage.name, str), (stage.cmd, str), (stage.needs, list), (stage.code, dict)
            if not all(isinstance(value, kind) for value, kind in (*kinds, (stage.outs, dict))):
                raise ValueError(f"{stage.name} is no stage")
        if lacking := {need for stage in found.stages for need in stage.needs} - {
            s.name for s in found.stages
        }:
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is not a plan ({error}); write one with `plan`") from None
    return found


def main(words: list[str]) -> int:
    """Run one of the commands of the module's docstring; returns the exit status."""
    match words:
        case ["plan", path, *targets] if targets:
            files.write_json(Path(path), asdict(plan(targets)))
            return 0
        case ["run", path]:
            return bool(run(read(Path(path)), 1))
        case ["run", path, "--jobs", jobs] if jobs.isdecimal() and int(jobs):
            return bool(run(read(Path(path)), int(jobs)))
        case ["accept", path]:
            accept(read(Path(path)))
            return 0
    raise ValueError(
        "usage: python -m pipelines.elsewhere (plan PLAN STAGE... | run PLAN [--jobs N] | accept PLAN)"
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

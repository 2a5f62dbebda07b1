"""Run stages on a machine that has no DVC, as DVC's graph has them, and take back what came out.

    python -m pipelines.profiles run paper python -m pipelines.elsewhere plan plan.json train@paper-...
    python -m pipelines.elsewhere run plan.json --jobs 2     # there; again: goes on
    python -m pipelines.profiles run paper python -m pipelines.elsewhere accept plan.json

`plan` writes down these stages and all that they depend on: commands and outputs, and the digests of those
outputs that dvc.lock knows and that were not asked for themselves. `run` runs what is not there yet, each
stage when what it needs is done, and compares the digests: what was made from other data is not what was
planned. `accept` is `dvc commit` of what then stands in the workspace here, upstream first.
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

from lambdanet import files

LOGS = Path("logs/elsewhere")
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Stage:
    """What DVC would run: a command, the stages that it needs, and its outputs with their known digests."""

    name: str
    cmd: str
    needs: list[str]
    outs: dict[str, str | None]

    def done(self) -> bool:
        """Whether all outputs are there; stages write them under their names when they are whole."""
        return all(Path(out).exists() for out in self.outs)

    def check(self) -> None:
        """Compare the outputs with the known digests.

        Raises:
            ValueError: one differs.
        """
        for out, expected in self.outs.items():
            if expected and (found := digest(Path(out))) != expected:
                raise ValueError(f"{self.name}: {out} has the digest {found}, planned was {expected}")


def plan(targets: list[str]) -> list[Stage]:
    """What these stages depend on, and they themselves in the order given.

    The digest of an output is known where dvc.lock has it and its stage was not asked for itself.

    Raises:
        ValueError: there is no such stage, or dvc.yaml or params.yaml cannot be resolved.
    """
    from dvc.repo import Repo

    from pipelines import graph

    loaded = graph.load(targets)
    stages = []
    with Repo() as repo, repo.lock:
        for name in loaded.needs:
            (stage,) = repo.stage.collect(name)
            known = name not in targets and not stage.changed_deps(allow_missing=True)
            outs = {
                os.path.relpath(out.fs_path): out.hash_info.value if known and out.hash_info else None
                for out in stage.outs
            }
            stages.append(Stage(name, stage.cmd, sorted(loaded.needs[name]), outs))
    return sorted(stages, key=lambda one: targets.index(one.name) if one.name in targets else -1)


def digest(path: Path) -> str:
    """DVC's digest of a file or folder: MD5, of a folder that of the list of its files' digests."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = sorted((one.relative_to(path).as_posix(), one) for one in path.rglob("*") if one.is_file())
    listed = [{"md5": digest(one), "relpath": name} for name, one in files]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


def run(stages: list[Stage], jobs: int) -> int:
    """Run what is not done, `jobs` at once in the order given; a failure stops only what needs it.

    SIGTERM and Ctrl-C are passed on to the stages, which write a checkpoint.

    Returns:
        How many stages did not come out.
    """
    waiting, running, done, failed = list(stages), {}, set(), set()
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
        stage.check()
    except ValueError as error:
        print(error, flush=True)
        return False
    print(f"{stage.name}: {f'done in {seconds:.0f} s' if process else 'is there'}", flush=True)
    return True


@contextlib.contextmanager
def _signals_passed_on(running: dict) -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        processes = [process for _, process, _ in running.values() if process]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait()
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def accept(stages: list[Stage]) -> None:
    """`dvc commit` of each stage whose outputs are in the workspace, upstream first.

    Raises:
        ValueError: data is not what the plan says, or DVC refuses.
    """
    there = [stage for stage in stages if stage.done()]
    for stage in there:
        stage.check()
    for stage in there:
        command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", stage.name]
        if subprocess.call(command, stdin=subprocess.DEVNULL):
            raise ValueError(f"`dvc commit --force {stage.name}` failed")
        print(f"{stage.name}: in dvc.lock", flush=True)


def read(path: Path) -> list[Stage]:
    """Read what `plan` wrote.

    Raises:
        ValueError: it is not that.
    """
    try:
        return [Stage(**one) for one in json.loads(path.read_text())["stages"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a plan ({error}); write one with `plan`") from None


def main(words: list[str]) -> int:
    """Run one of the commands of the module's docstring; returns the exit status."""
    match words:
        case ["plan", path, *targets] if targets:
            files.write_json(Path(path), {"stages": [asdict(stage) for stage in plan(targets)]})
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

"""What running stages one process each costs: `lambdanet run` against `dvc repro`, in turns.

    python -m benchmarks.orchestration [--stages 20] [--jobs 2] [--repeats 3]

On a project made for it, of stages that do nothing: a first one, all others after it, and a last one
after these. Prints medians: everything out of date, and nothing out of date.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click
import yaml

ROOT = Path(__file__).resolve().parent.parent
DVC = [sys.executable, "-m", "dvc"]


@click.command()
@click.option("--stages", default=20, show_default=True, type=click.IntRange(3))
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
def main(stages: int, jobs: int, repeats: int) -> None:
    """Measure and print; see the module's docstring."""
    run = [sys.executable, "-m", "lambdanet", "run", "--profile", "paper"]
    commands = {
        "dvc repro": [*DVC, "repro"],
        f"lambdanet run --jobs {jobs}": [*run, "--jobs", str(jobs)],
    }
    seconds = {(name, what): [] for name in commands for what in ("all", "nothing")}
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(repeats):
            for name in sorted(commands, reverse=bool(turn % 2)):
                project = Path(temporary, "project")
                _make(project, stages)
                for what in ("all", "nothing"):
                    seconds[name, what].append(_time(commands[name], project, Path(temporary, "prefect")))
                    print(f"{name:24} {what:8} {seconds[name, what][-1]:6.1f} s", flush=True)
                shutil.rmtree(project)
    print(f"\n{stages} stages that do nothing, medians of {repeats}:")
    for (name, what), values in seconds.items():
        print(f"{name:24} {what:8} {median(values):6.1f} s, {median(values) / stages:.2f} s a stage")


def _make(folder: Path, count: int) -> None:
    folder.mkdir()
    middle = [f"middle-{number}" for number in range(count - 2)]
    needs = {"first": []} | {name: ["first"] for name in middle} | {"last": middle}
    stages = {
        name: {"cmd": f"echo {name} > {name}", "deps": deps, "outs": [name]} for name, deps in needs.items()
    }
    del stages["first"]["deps"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _time(command: list[str], folder: Path, prefect: Path) -> float:
    own = {"PREFECT_HOME": str(prefect), "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=os.environ | own, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

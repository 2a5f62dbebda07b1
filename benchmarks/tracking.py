"""What MLflow's tracking costs a training: the same one with and without it, in turns.

    python -m benchmarks.tracking [--profile quick] [--noise gaussian-01] [--model autoencoder] [--repeats 3]

Needs the data (`dvc repro quick/dvc.yaml:corrupt@gaussian-01`). Each tracked training begins with an
empty store. Prints seconds and the ratio of the medians; also that the weights are the same.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click

from lambdanet import config, files


@click.command()
@click.option("--profile", default="quick", show_default=True)
@click.option("--noise", default="gaussian-01", show_default=True)
@click.option("--model", default="autoencoder", show_default=True)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
def main(profile: str, noise: str, model: str, repeats: int) -> None:
    """Measure and print; see the module's docstring."""
    seconds, digests = {"tracked": [], "untracked": []}, set()
    for turn in range(repeats):
        # Who goes first changes, so that neither always finds the warmer machine.
        for kind in ("tracked", "untracked") if turn % 2 else ("untracked", "tracked"):
            taken, digest = _train(profile, noise, model, tracked=kind == "tracked")
            seconds[kind].append(taken)
            digests.add(digest)
            print(f"{kind:10} {taken:8.1f} s", flush=True)
    if len(digests) > 1:
        sys.exit("error: the weights differ")
    before, after = median(seconds["untracked"]), median(seconds["tracked"])
    print(
        f"{profile} {noise} {model}: untracked {before:.1f} s, tracked {after:.1f} s (medians of {repeats}):"
    )
    print(f"tracking costs {100 * (after / before - 1):+.1f} %; the weights are the same")


def _train(profile: str, noise: str, model: str, *, tracked: bool) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "out")
        loaded = config.load(config.find(profile))
        data = loaded.data(loaded.profile.dataset).parent
        words = ["train", noise, model, "--profile", profile, "--data", data, "--out", out]
        environment = os.environ | {
            "LAMBDANET_TRACKING": "on" if tracked else "off",
            "MLFLOW_TRACKING_URI": f"sqlite:///{temporary}/mlflow.db",
        }
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "lambdanet", *map(str, words)],
            env=environment,
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - start, files.sha256(out / "weights.safetensors")


if __name__ == "__main__":
    main()

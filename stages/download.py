"""DVC stage `download`: the clean images of a profile."""

import os
from pathlib import Path

import door

from lambdanet import datasets
from lambdanet.params import look_up


def main() -> None:
    profile, downloads, out = door.arguments("PROFILE DOWNLOADS OUT")
    config = look_up(door.load_params().downloads, profile, "profile")
    door.announce("download", config.dataset, [config.dataset])
    counts = {"train": config.train, "test": config.test}
    source = os.environ.get("LAMBDANET_CIFAR10")
    datasets.prepare(config.dataset, counts, config.seed, Path(out), source=source, downloads=Path(downloads))


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()

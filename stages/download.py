"""DVC stage `download`: the clean images of a data set of the profile."""

import os
from pathlib import Path

import entry

from lambdanet import config
from lambdanet.data import datasets


def main(profile: str, name: str) -> None:
    loaded = config.load(profile)
    wanted = config.look_up(loaded.profile.datasets, name, "data set", profile)
    source = os.environ.get(datasets.SOURCES.get(wanted.dataset, ""))
    datasets.prepare(wanted, loaded.data(name), source=source, downloads=Path("downloads"))


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml DATASET")

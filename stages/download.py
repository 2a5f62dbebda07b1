"""DVC stage `download`: the clean images of a profile."""

import os
from pathlib import Path

import door

from lambdanet import datasets
from lambdanet.params import look_up


def main() -> None:
    profile, downloads, out = door.arguments("PROFILE DOWNLOADS OUT")
    params = door.load_params()
    config = look_up(params.downloads, profile, "profile")
    door.announce(f"download@{profile}", params, profile)
    source = os.environ.get(datasets.SOURCES.get(config.dataset, ""))
    datasets.prepare(config, Path(out), source=source, downloads=Path(downloads))


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()

"""DVC stages `download` and `download-set`: the clean images of a profile, or of one of its sets."""

import os
from pathlib import Path

import door

from lambdanet import datasets


def main() -> None:
    profile, downloads, out, *of_set = door.arguments("PROFILE DOWNLOADS OUT [SET]")
    params = door.load_params()
    config = params.download(profile, *of_set)
    door.announce(
        "-".join([f"download-set@{profile}", *of_set] if of_set else [f"download@{profile}"]), params, profile
    )
    source = os.environ.get(datasets.SOURCES.get(config.dataset, ""))
    datasets.prepare(config, Path(out), source=source, downloads=Path(downloads))


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()

"""DVC stages `examine-SET`: score a network on its own set of images, and see how it copes with others."""

from pathlib import Path

import door


def main() -> None:
    *names, trained, clean, noisy, out, folder = door.arguments(
        "PROFILE SET MODEL SEED TRAINED CLEAN NOISY OUT FOLDER"
    )
    cell, _ = door.cell("examine", names)
    from lambdanet import experiment

    paths = map(Path, (trained, clean, noisy, out, folder))
    experiment.examine_cell(cell, *paths, device=door.device_name())


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()

"""DVC stage `evaluate`: score one trained cell on the test images, and show it on photographs."""

from pathlib import Path

import door

from lambdanet import live


def main() -> None:
    *names, trained, clean, noisy, log, out, panel = door.arguments(
        "PROFILE NOISE MODEL SEED TRAINED CLEAN NOISY LOG OUT PANEL"
    )
    cell, params = door.cell("evaluate", names)
    with live.follow(Path(log)):
        from lambdanet import experiment

        experiment.evaluate_cell(
            cell,
            params.noise(cell.noise),
            Path(trained),
            Path(clean),
            Path(noisy),
            Path(out),
            Path(panel),
            log=Path(log),
            device=door.device_name(),
        )


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()

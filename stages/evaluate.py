"""DVC stage `evaluate`: score one trained cell on the test images, and show it on photographs."""

from pathlib import Path

import door


def main() -> None:
    *names, trained, clean, noisy, out, panel = door.arguments(
        "PROFILE NOISE MODEL SEED TRAINED CLEAN NOISY OUT PANEL"
    )
    cell, params = door.cell("evaluate", names)
    from lambdanet import experiment

    experiment.evaluate_cell(
        cell,
        params.noise(cell.noise),
        Path(trained),
        Path(clean),
        Path(noisy),
        Path(out),
        Path(panel),
        device=door.device_name(),
    )


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()

"""DVC stage `train`: one model on one noise with one seed."""

from pathlib import Path

import door

from lambdanet import live


def main() -> None:
    *names, clean, noisy, checkpoints, log, out = door.arguments(
        "PROFILE NOISE MODEL SEED CLEAN NOISY CHECKPOINTS LOG OUT"
    )
    cell, params = door.cell("train", names)
    with live.follow(Path(log)) as tell:  # MLflow loads in its own process while torch loads here
        from lambdanet import experiment  # after the words were checked: torch takes seconds

        experiment.train_cell(
            cell,
            params.model(cell.profile, cell.model),
            params.training_noise(cell),
            params.training(cell.profile, cell.model),
            Path(clean),
            Path(noisy),
            Path(out),
            checkpoints=Path(checkpoints),
            log=Path(log),
            device=door.device_name(),
            on_news=tell,
        )


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()

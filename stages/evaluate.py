"""DVC stage `evaluate`: scores and sample images of all models of Table 2 on one noise."""

import entry

from lambdanet import config


def main(profile: str, noise: str) -> None:
    loaded = config.load(profile)
    loaded.noise(noise)
    runs = [run for run in loaded.table_runs if run.key.noise == noise]
    from lambdanet.evaluation import samples, scoring  # after the words were checked: torch takes seconds

    folders = loaded.folders.of("scores", noise), loaded.folders.of("samples", noise)
    scoring.score_runs(runs, *folders, samples.of_run, device=entry.device())


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml NOISE")

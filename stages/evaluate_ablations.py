"""DVC stage `evaluate-ablations`: scores of all ablations, some by noise level and on training images too."""

import entry

from lambdanet import config


def main(profile: str) -> None:
    loaded = config.load(profile)
    from lambdanet.evaluation import levels, scoring  # after the words were checked: torch takes seconds

    folders = loaded.folders.of("scores", "ablations"), loaded.folders.of("samples", "ablations")
    scoring.score_runs(loaded.ablation_runs, *folders, levels.of_run, device=entry.device())


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml")

"""DVC stages `train-lambdanet` and `train`: a model of Table 2 on one noise with one seed."""

import entry

from lambdanet import config
from lambdanet.tracking import live


def main(profile: str, noise: str, model: str, seed: str) -> None:
    run = config.load(profile).run(noise, model, seed)
    with live.follow(run.log) as tell:  # MLflow loads in another thread
        from lambdanet.training import experiment  # after the words were checked: torch takes seconds

        experiment.train_run(run, device=entry.device(), on_news=tell)


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml NOISE MODEL SEED")

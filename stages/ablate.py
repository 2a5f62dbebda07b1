"""DVC stage `ablate`: an ablation, with each of its seeds."""

import entry

from lambdanet import config
from lambdanet.tracking import live


def main(profile: str, name: str) -> None:
    loaded = config.load(profile)
    seeds = config.look_up(loaded.profile.ablations, name, "ablation", profile).seeds
    for seed in seeds:
        run = loaded.ablation(name, seed)
        with live.follow(run.log) as tell:
            from lambdanet.training import experiment  # after the words were checked: torch takes seconds

            experiment.train_run(run, device=entry.device(), on_news=tell, keep=True)
    experiment.discard_checkpoints(loaded.ablation(name, seed) for seed in seeds)


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml ABLATION")

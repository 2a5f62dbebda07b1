"""DVC stage `corrupt`: a data set's clean images with a noise."""

import entry

from lambdanet import config


def main(profile: str, dataset: str, noise: str) -> None:
    loaded = config.load(profile)
    parameters, seed = loaded.noise(noise), loaded.params.corrupt.seed
    from lambdanet.data import corruption  # after the words were checked: torch takes seconds

    corruption.prepare_noisy(loaded.data(dataset), parameters, seed, loaded.data(dataset, noise))


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml DATASET NOISE")

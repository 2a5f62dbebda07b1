"""DVC stage `corrupt`: one noise, added to a profile's clean images."""

from pathlib import Path

import door

from lambdanet import datasets


def main() -> None:
    noise, clean, out = door.arguments("NOISE CLEAN OUT")
    params = door.load_params()
    config = params.noise(noise)
    door.announce("corrupt", noise, list(params.noises))
    datasets.prepare_noisy(Path(clean), config, params.noise_seed, Path(out))


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()

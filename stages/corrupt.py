"""DVC stages `corrupt` and `corrupt-set`: one noise, added to a profile's clean images or to a set."""

from pathlib import Path

import door

from lambdanet import corruption


def main() -> None:
    profile, noise, clean, out = door.arguments("PROFILE NOISE CLEAN OUT")
    params = door.load_params()
    config = params.noise(noise)
    stage = "corrupt-set" if noise in params.sets else "corrupt"
    door.announce(f"{stage}@{profile}-{noise}", params, profile)
    corruption.prepare_noisy(Path(clean), config, params.noise_seed, Path(out))


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()
